//! The state of one instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;

use crate::descriptors::Descriptors;
use crate::directory::Reading;
use crate::disk::Disk;
use crate::poll::Poll;
use crate::random::Filling;
use crate::sync::{Syncing, Work};
use crate::{GuestMemory, Stop, Streams, WasiConfig};

/// The WASI state of one instance.
///
/// There is one method for each function of WASI, with the parameters of the Wasm import, in the order of
/// [`for_each_wasi_function`](crate::for_each_wasi_function). Each gives the error number for the guest; `Err` means
/// that the call does not return to the guest now.
#[derive(Debug)]
pub struct WasiContext {
    pub(crate) config: Arc<WasiConfig>,
    pub(crate) arguments: Vec<String>,
    monotonic_origin: Option<Instant>,
    pub(crate) disk: Disk,
    /// The function that is to be called again.
    pub(crate) pending: Option<Pending>,
    pub(crate) work: Option<Work>,
    pub(crate) random: Option<Box<ChaCha20Rng>>,
    /// Built by the first call that needs it: most instances of small functions never do.
    descriptors: Option<Descriptors>,
}

/// How far a function came that is called again with the same arguments. With others, it begins anew.
#[derive(Debug)]
pub(crate) enum Pending {
    Poll(Poll),
    Filling(Filling),
    Reading(Reading),
    Syncing(Syncing),
}

impl WasiContext {
    /// The state of a fresh instance.
    pub fn new(config: Arc<WasiConfig>) -> Self {
        WasiContext {
            disk: Disk::new(config.disk_bytes_max),
            config,
            arguments: Vec::new(),
            monotonic_origin: None,
            pending: None,
            work: None,
            random: None,
            descriptors: None,
        }
    }

    /// Starts a call with these arguments after the program's name. What is counted per call starts again.
    pub fn begin_call(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
        self.disk = Disk::new(self.config.disk_bytes_max);
        self.pending = None;
        self.work = None;
    }

    /// What the guest waits for, when a function returned a [`Wait`](crate::Wait) with `work`: a future that any thread may
    /// poll, and that is ready when the function is to be called again. Whatever is done goes on when it is dropped.
    pub fn take_work(&mut self) -> Option<Work> {
        self.work.take()
    }

    /// Most files and directories that were open at once, besides the standard streams and the granted directories.
    pub fn open_files_peak(&self) -> u64 {
        self.descriptors.as_ref().map_or(0, Descriptors::peak)
    }

    /// Bytes by which files grew in this call.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.used()
    }

    /// Where the monotonic clock starts: one step before the guest's first look. So it does not tell how long the host is up,
    /// and is never zero, which programs take for a clock that does not work: Go's runtime ends the guest.
    pub(crate) fn monotonic_origin(&mut self) -> Instant {
        let step = Duration::from_nanos(self.config.clocks.resolution());
        *self.monotonic_origin.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_sub(step).unwrap_or(now)
        })
    }

    pub(crate) fn descriptors(&mut self) -> &mut Descriptors {
        let WasiContext { descriptors, config, .. } = self;
        descriptors.get_or_insert_with(|| Descriptors::new(config))
    }

    /// The descriptors and the disk quota, for functions that need both.
    pub(crate) fn descriptors_and_disk(&mut self) -> (&mut Descriptors, &mut Disk) {
        let WasiContext { descriptors, config, disk, .. } = self;
        (descriptors.get_or_insert_with(|| Descriptors::new(config)), disk)
    }
}

// Every backend moves the context between threads with its store.
const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<WasiContext>();
};

// The signature every method has is spelled out in `functions`; this keeps the list and the methods in step.
macro_rules! check_signatures {
    ($($module:literal {
        $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
    })*) => {
        const _: () = {
            $($(
                let _: fn(
                    &mut WasiContext,
                    &mut GuestMemory<'_>,
                    &mut Streams,
                    $($type),*
                ) -> Result<crate::Errno, Stop> = WasiContext::$method;
            )*)*
        };
    };
}
crate::for_each_wasi_function!(check_signatures);
