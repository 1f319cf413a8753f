//! Setting the times of files.

use std::os::fd::AsFd;

use cap_fs_ext::SystemTimeSpec;
use cap_std::time::{Duration, SystemTime};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::Errno;
use crate::errno::Fail;
use crate::layout::known_bits;

/// One of the two times of a file, to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    Keep,
    Now,
    Nanos(u64),
}

/// What a guest wants a file's times to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    access: Time,
    modification: Time,
}

impl Times {
    pub(crate) fn new(atim: i64, mtim: i64, flags: i32) -> Result<Times, Fail> {
        let flags = known_bits(flags, 15)?;
        let time = |set: u32, now: u32, nanos: i64| match (flags & set != 0, flags & now != 0) {
            (true, true) => Err(Errno::Inval),
            (true, false) => Ok(Time::Nanos(nanos as u64)),
            (false, true) => Ok(Time::Now),
            (false, false) => Ok(Time::Keep),
        };
        Ok(Times { access: time(1, 2, atim)?, modification: time(4, 8, mtim)? })
    }

    /// Sets the times of an open file or directory.
    pub(crate) fn set(&self, file: impl AsFd) -> Result<(), Fail> {
        let timespec = |time: Time| match time {
            Time::Keep => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            Time::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            // At most 2^64 / 10^9 seconds: both parts fit.
            Time::Nanos(nanos) => {
                Timespec { tv_sec: (nanos / 1_000_000_000) as _, tv_nsec: (nanos % 1_000_000_000) as _ }
            }
        };
        let times = Timestamps { last_access: timespec(self.access), last_modification: timespec(self.modification) };
        Ok(rustix::fs::futimens(file, &times)?)
    }

    /// The times as `cap-fs-ext` takes them.
    pub(crate) fn specs(&self) -> (Option<SystemTimeSpec>, Option<SystemTimeSpec>) {
        let spec = |time: Time| match time {
            Time::Keep => None,
            Time::Now => Some(SystemTimeSpec::SymbolicNow),
            Time::Nanos(nanos) => {
                let epoch = SystemTime::from_std(std::time::SystemTime::UNIX_EPOCH);
                Some(SystemTimeSpec::Absolute(epoch + Duration::from_nanos(nanos)))
            }
        };
        (spec(self.access), spec(self.modification))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(Times::new(0, 0, 1 | 8).is_ok());
        for flags in [3, 12, 15, 16, -1] {
            assert!(matches!(Times::new(0, 0, flags), Err(Fail::Errno(Errno::Inval))), "{flags}");
        }
    }

    #[test]
    fn the_latest_time_does_not_overflow() {
        let times = Times::new(-1, -1, 5).unwrap();
        let (access, modification) = times.specs();
        assert!(access.is_some() && modification.is_some());
        // Whether the file system can store it is another matter.
        let _ = times.set(tempfile::tempfile().unwrap());
    }
}
