//! What is left of a memory quota.

use palisade_core::Resource;

use crate::Stop;

/// What is left of a memory quota, for what the host is about to take for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The quota; `u64::MAX` when there is none.
    pub limit: u64,
    /// Bytes of it that are not used.
    pub left: u64,
}

impl Room {
    /// Whether `bytes` fit.
    ///
    /// # Errors
    ///
    /// [`Stop::Exceeded`] when they do not.
    pub fn check(self, bytes: u64) -> Result<(), Stop> {
        if bytes <= self.left {
            return Ok(());
        }
        let used = self.limit.saturating_sub(self.left).saturating_add(bytes);
        Err(Stop::Exceeded { resource: Resource::Memory, limit: self.limit, used })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_what_is_left_fits() {
        let room = Room { limit: 100, left: 30 };
        assert_eq!(room.check(30), Ok(()));
        assert_eq!(room.check(31), Err(Stop::Exceeded { resource: Resource::Memory, limit: 100, used: 101 }));
        assert!(Room { limit: u64::MAX, left: u64::MAX }.check(u64::MAX).is_ok());
        assert!(Room { limit: 100, left: 100 }.check(u64::MAX).is_err());
    }
}
