//! A guest's memory and the arguments of its calls.

use std::sync::Arc;

use palisade::{DirectoryGrant, Input, Policy};
use palisade_wasi::{Fuse, GuestMemory, Stop, Streams, StreamsLimits, WasiConfig, WasiContext};

/// Size of the guest's memory.
const MEMORY_BYTES: usize = 4096;
/// Disk the guest may use.
const DISK_BYTES: u64 = 1 << 16;

type Call = fn(
    &mut WasiContext,
    &mut GuestMemory<'_>,
    &mut Streams,
    &mut dyn FnMut() -> u64,
) -> Result<palisade_wasi::Errno, Stop>;

macro_rules! calls {
    ($($module:literal {
        $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
    })*) => {
        // Both modules have the same methods, with other layouts behind some of them.
        &[$($((|context, memory, streams, next| {
            let _ = &next;
            $(let $parameter = next() as $type;)*
            context.$method(memory, streams, $($parameter),*)
        }) as Call,)*)*]
    };
}

const CALLS: &[Call] = palisade_wasi::for_each_wasi_function!(calls);

/// The bytes are a program: how much memory they begin with, the memory, then calls with their arguments. Nothing panics, and the disk quota holds.
pub fn wasi(data: &[u8]) {
    let Ok(scratch) = tempfile::tempdir() else { return };
    let mut policy = Policy::default();
    policy.grants.directories =
        vec![DirectoryGrant::read_write(scratch.path(), "/rw"), DirectoryGrant::read_only(scratch.path(), "/ro")];
    policy.quota.disk_bytes = Some(DISK_BYTES);
    let Ok(config) = WasiConfig::new("guest", &policy, Fuse::Refused) else { return };
    let mut context = WasiContext::new(Arc::new(config));
    context.begin_call(vec!["argument".into()]);
    let mut streams = Streams::new(Input::Bytes("input".into()), None, StreamsLimits::from(&policy.quota));
    let Some((len, data)) = data.split_first() else { return };
    let (head, rest) = data.split_at(data.len().min(usize::from(*len)));
    let mut memory = vec![0; MEMORY_BYTES];
    memory[..head.len()].copy_from_slice(head);
    let mut bytes = rest.iter().copied();
    for _ in 0..64 {
        let Some(index) = bytes.next() else { break };
        let call = CALLS[usize::from(index) % CALLS.len()];
        // One byte says what kind of number comes: a small one, one of two bytes, or an edge.
        let mut next = || match bytes.next().unwrap_or(0) {
            small @ 0..=199 => u64::from(small),
            200..=239 => u64::from(u16::from_le_bytes([bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)])),
            240..=247 => u64::MAX,
            248..=251 => 1 << 31,
            _ => u64::from(u32::MAX) - u64::from(bytes.next().unwrap_or(0)),
        };
        let mut guest = GuestMemory::new(&mut memory);
        match call(&mut context, &mut guest, &mut streams, &mut next) {
            Ok(_) | Err(Stop::Wait(_) | Stop::Yield | Stop::Exceeded { .. }) => {}
            Err(Stop::Exit(_)) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(context.disk_bytes() <= DISK_BYTES);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // A path and an io vector; then calls around opening, writing and listing.
    let mut head = b"a/b/../c\0\0\0\0\x10\x00\0\0\x20\0\0\0".to_vec();
    head.resize(64, 0);
    let calls: Vec<u8> = (0..=91).flat_map(|call| [call, 3, 0, 0, 8, 9, 255, 0, 16, 1, 64]).collect();
    let opens = [37, 3, 0, 0, 1, 9, 200, 255, 255, 0, 0, 32];
    vec![[&[64], &head[..], &calls].concat(), [&[64], &head[..], &opens].concat()]
}
