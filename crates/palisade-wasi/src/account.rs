//! The memory account of one instance: linear memories, tables, and what the host holds for it.
//!
//! Written by one thread at a time, from the engine's hooks and from host functions; hence relaxed atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use palisade_core::Resource;

use crate::{Room, Stop};

/// What one table entry costs the host, for engines that keep a pointer for each.
pub const TABLE_ENTRY_BYTES: u64 = size_of::<usize>() as u64;

/// The memory account of one instance: linear memories, tables, and what the host holds for it.
#[derive(Debug)]
pub struct Account {
    limit: u64,
    /// Linear memories and tables.
    guest: AtomicU64,
    /// Buffers of the host.
    host: AtomicU64,
    peak: AtomicU64,
    /// What would have been charged by the growth that was refused; zero while none was.
    refused: AtomicU64,
}

impl Account {
    /// An account with at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Account {
            limit,
            guest: AtomicU64::new(0),
            host: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Begins a call: what is there stays, the peak starts anew.
    pub fn begin_call(&self) {
        self.peak.store(0, Relaxed);
        self.refused.store(0, Relaxed);
    }

    fn charged(&self) -> u64 {
        self.guest.load(Relaxed).saturating_add(self.host.load(Relaxed))
    }

    /// What may still be charged.
    pub fn room(&self) -> Room {
        Room { limit: self.limit, left: self.limit.saturating_sub(self.charged()) }
    }

    /// Most that was charged at once in this call.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// Charges what the guest is about to get, or refuses it and remembers that.
    ///
    /// # Errors
    ///
    /// [`Stop::Exceeded`] when it does not fit.
    pub fn grow(&self, bytes: u64) -> Result<(), Stop> {
        let charged = self.charged().saturating_add(bytes);
        if charged > self.limit {
            self.refused.store(charged, Relaxed);
            return Err(self.exceeded(charged));
        }
        self.guest.fetch_add(bytes, Relaxed);
        self.peak.fetch_max(charged, Relaxed);
        Ok(())
    }

    /// Charges what the host holds, which it does already.
    ///
    /// # Errors
    ///
    /// As [`Account::grow`]; it is charged all the same.
    pub fn hold(&self, bytes: u64) -> Result<(), Stop> {
        self.host.store(bytes, Relaxed);
        let charged = self.charged();
        self.peak.fetch_max(charged.min(self.limit), Relaxed);
        if charged > self.limit { Err(self.exceeded(charged)) } else { Ok(()) }
    }

    /// The growth that was refused, if any was.
    pub fn refused(&self) -> Option<Stop> {
        match self.refused.load(Relaxed) {
            0 => None,
            used => Some(self.exceeded(used)),
        }
    }

    fn exceeded(&self, used: u64) -> Stop {
        Stop::Exceeded { resource: Resource::Memory, limit: self.limit, used }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_into_one_account_to_the_byte() {
        let account = Account::new(100);
        account.grow(60).unwrap();
        account.hold(40).unwrap();
        assert_eq!((account.room().left, account.peak(), account.refused()), (0, 100, None));
        assert!(account.hold(41).is_err());
        account.hold(0).unwrap();
        assert_eq!(account.grow(41).err(), account.refused());
        account.grow(40).unwrap();
        account.begin_call();
        assert_eq!((account.room().left, account.peak(), account.refused()), (0, 0, None));
    }
}
