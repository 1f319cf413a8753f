//! Clocks.

use std::time::{Duration, Instant, SystemTime};

use crate::errno::{Fail, settle};
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// A clock a guest may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Realtime,
    Monotonic,
}

impl Clock {
    pub(crate) fn from_id(id: u32) -> Result<Clock, Errno> {
        match id {
            0 => Ok(Clock::Realtime),
            1 => Ok(Clock::Monotonic),
            // CPU time would tell how busy the host is, and the quota on it is the host's business.
            2 | 3 => Err(Errno::NotSup),
            _ => Err(Errno::Inval),
        }
    }
}

impl WasiContext {
    /// Writes a clock's resolution in nanoseconds.
    pub fn clock_res_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        id: i32,
        resolution: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            Clock::from_id(id as u32)?;
            Ok(memory.write_u64(resolution as u32, self.config.clocks.resolution())?)
        })
    }

    /// Writes a clock's time in nanoseconds.
    pub fn clock_time_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        id: i32,
        _precision: i64,
        time: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let now = match Clock::from_id(id as u32)? {
                Clock::Realtime => realtime()?,
                Clock::Monotonic => nanos(self.monotonic_origin().elapsed()),
            };
            Ok(memory.write_u64(time as u32, self.config.clocks.quantize(now))?)
        })
    }
}

/// The host's time of day in nanoseconds, not yet quantized.
pub(crate) fn realtime() -> Result<u64, Fail> {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Errno::Overflow)?;
    Ok(nanos(since_epoch))
}

/// `base + nanos`; `None` when that is too far away to be told.
pub(crate) fn after(base: Instant, nanos: u64) -> Option<Instant> {
    base.checked_add(Duration::from_nanos(nanos))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Guest;
    use palisade_core::{Clocks, Policy};

    fn time(guest: &mut Guest, id: i32) -> Result<u64, Errno> {
        match guest.run(|context, memory, streams| context.clock_time_get(memory, streams, id, 0, 8)) {
            Ok(Errno::Success) => Ok(guest.u64(8)),
            Ok(errno) => Err(errno),
            Err(stop) => panic!("{stop:?}"),
        }
    }

    #[test]
    fn clocks_advance_in_steps_and_the_monotonic_one_starts_at_the_first() {
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Coarse { step: Duration::from_secs(1000) };
        let mut guest = Guest::new(&policy);
        assert_eq!(time(&mut guest, 1), Ok(1_000_000_000_000));
        let now = time(&mut guest, 0).unwrap();
        assert!(now > 0 && now.is_multiple_of(1_000_000_000_000));
        assert_eq!(guest.call2(WasiContext::clock_res_get, 1, 16), Errno::Success);
        assert_eq!(guest.u64(16), 1_000_000_000_000);
    }

    #[test]
    fn a_monotonic_clock_is_never_zero() {
        for clocks in [Clocks::Fine, Clocks::default()] {
            let mut policy = Policy::default();
            policy.grants.clocks = clocks;
            assert_ne!(time(&mut Guest::new(&policy), 1), Ok(0), "{clocks:?}");
        }
    }

    #[test]
    fn other_clocks_are_refused() {
        let mut guest = Guest::new(&Policy::default());
        assert_eq!(time(&mut guest, 2), Err(Errno::NotSup));
        assert_eq!(time(&mut guest, 3), Err(Errno::NotSup));
        assert_eq!(time(&mut guest, 4), Err(Errno::Inval));
        assert_eq!(time(&mut guest, -1), Err(Errno::Inval));
    }

    #[test]
    fn distant_instants_are_none_rather_than_a_panic() {
        let now = Instant::now();
        // Whether u64::MAX nanoseconds can be represented is the host's affair; adding them twice must not panic.
        assert!(after(now, 1).is_some());
        let _ = after(now, u64::MAX).and_then(|later| after(later, u64::MAX));
    }
}
