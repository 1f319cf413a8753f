//! Random bytes.

use palisade_core::Randomness;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::context::Pending;
use crate::errno::settle;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// Bytes filled before the guest's limits are looked at: some tenth of a millisecond.
const PART_BYTES: usize = 64 << 10;

/// A buffer that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    arguments: [i32; 2],
    done: usize,
}

impl WasiContext {
    /// Fills a buffer with random bytes.
    ///
    /// # Errors
    ///
    /// [`Stop::Yield`] when there is more to fill.
    pub fn random_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        buf: i32,
        buf_len: i32,
    ) -> Result<Errno, Stop> {
        let arguments = [buf, buf_len];
        let done = match self.pending.take() {
            Some(Pending::Filling(filling)) if filling.arguments == arguments => filling.done,
            _ => 0,
        };
        settle(|| {
            let buffer = memory.slice_mut(buf as u32, buf_len as u32)?;
            let rest = buffer.get_mut(done..).unwrap_or_default();
            let part = rest.len().min(PART_BYTES);
            let more = rest.len() > part;
            let part = &mut rest[..part];
            match self.config.randomness {
                Randomness::Secure => getrandom::fill(part).map_err(|_| Errno::Io)?,
                Randomness::Seeded(seed) => {
                    self.random.get_or_insert_with(|| Box::new(ChaCha20Rng::seed_from_u64(seed))).fill_bytes(part)
                }
            }
            if more {
                self.pending = Some(Pending::Filling(Filling { arguments, done: done + part.len() }));
                return Err(Stop::Yield.into());
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Guest;
    use palisade_core::Policy;

    #[test]
    fn seeded_bytes_repeat_in_each_instance_and_differ_within_one() {
        let mut policy = Policy::default();
        policy.grants.randomness = Randomness::Seeded(7);
        let draw = |guest: &mut Guest| {
            assert_eq!(guest.call2(WasiContext::random_get, 0, 32), Errno::Success);
            guest.memory[..32].to_vec()
        };
        let (mut first, mut second) = (Guest::new(&policy), Guest::new(&policy));
        let bytes = draw(&mut first);
        assert_eq!(bytes, draw(&mut second));
        assert_ne!(bytes, draw(&mut first));
        policy.grants.randomness = Randomness::Seeded(8);
        assert_ne!(bytes, draw(&mut Guest::new(&policy)));
    }

    #[test]
    fn secure_bytes_are_filled_to_the_end() {
        let mut guest = Guest::new(&Policy::default());
        let len = guest.memory.len() as i32;
        let mut parts = 1;
        while guest.run(|context, memory, streams| context.random_get(memory, streams, 0, len)) == Err(Stop::Yield) {
            parts += 1;
        }
        assert_eq!(parts, guest.memory.len().div_ceil(PART_BYTES));
        let chunks = guest.memory.chunks(64).filter(|chunk| chunk.iter().any(|byte| *byte != 0));
        assert_eq!(chunks.count(), guest.memory.len() / 64);
        assert_eq!(guest.call2(WasiContext::random_get, 1, len), Errno::Fault);
        assert_eq!(guest.call2(WasiContext::random_get, 0, 0), Errno::Success);
        assert_eq!(guest.call2(WasiContext::random_get, 0, -1), Errno::Fault);
    }

    #[test]
    fn seeded_bytes_do_not_depend_on_the_parts_they_come_in() {
        let mut policy = Policy::default();
        policy.grants.randomness = Randomness::Seeded(7);
        let mut guest = Guest::new(&policy);
        let len = 2 * PART_BYTES + 5;
        let get = |guest: &mut Guest| {
            guest.run(|context, memory, streams| context.random_get(memory, streams, 0, len as i32))
        };
        assert_eq!([(); 3].map(|()| get(&mut guest)), [Err(Stop::Yield), Err(Stop::Yield), Ok(Errno::Success)]);
        let mut expected = vec![0; len];
        ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut expected);
        assert!(guest.memory[..len] == expected);
        // Another call in between begins anew.
        assert_eq!(get(&mut guest), Err(Stop::Yield));
        assert_eq!(guest.call2(WasiContext::random_get, 0, 4), Errno::Success);
        assert_eq!(get(&mut guest), Err(Stop::Yield));
        assert_eq!(get(&mut guest), Err(Stop::Yield));
    }
}
