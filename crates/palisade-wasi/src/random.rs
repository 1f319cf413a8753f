//! Random bytes.

use palisade_core::Randomness;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::errno::settle;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// Most bytes per call. No deadline interrupts the filling, which takes some hundred milliseconds for these.
const BYTES_MAX: u32 = 64 << 20;
/// Bytes asked of the operating system at once.
const CHUNK_BYTES: usize = 64 << 10;

impl WasiContext {
    /// Fills a buffer with random bytes.
    pub fn random_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        buf: i32,
        buf_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let buffer = memory.slice_mut(buf as u32, buf_len as u32)?;
            if buf_len as u32 > BYTES_MAX {
                return Err(Errno::TooBig.into());
            }
            match self.config.randomness {
                Randomness::Secure => {
                    for chunk in buffer.chunks_mut(CHUNK_BYTES) {
                        getrandom::fill(chunk).map_err(|_| Errno::Io)?;
                    }
                }
                Randomness::Seeded(seed) => {
                    self.random.get_or_insert_with(|| Box::new(ChaCha20Rng::seed_from_u64(seed))).fill_bytes(buffer)
                }
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
        assert_eq!(guest.call2(WasiContext::random_get, 0, len), Errno::Success);
        assert!(guest.memory[guest.memory.len() - 64..].iter().any(|byte| *byte != 0));
        assert_eq!(guest.call2(WasiContext::random_get, 1, len), Errno::Fault);
        assert_eq!(guest.call2(WasiContext::random_get, 0, 0), Errno::Success);
        assert_eq!(guest.call2(WasiContext::random_get, 0, -1), Errno::Fault);
    }
}
