//! The disk quota of one call.

use crate::Errno;
use crate::errno::Fail;

/// Most files, directories and links a call may create: each costs the host an inode or a directory entry whatever its
/// size.
const ENTRIES_MAX: u64 = 16_384;
/// What each of them is charged besides its name: a block, which a new directory, a long link or a full directory takes.
const ENTRY_BYTES: u64 = 4096;

/// What a call used of the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    used: u64,
    used_max: u64,
    entries: u64,
}

impl Disk {
    pub(crate) fn new(used_max: u64) -> Self {
        Disk { used: 0, used_max, entries: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// How many of `len` bytes may be written at `offset` into a file of `size` bytes. A hole that the write leaves
    /// counts too.
    pub(crate) fn fit(&self, size: u64, offset: u64, len: usize) -> Result<usize, Fail> {
        let end_max = size.saturating_add(self.used_max - self.used);
        let room = usize::try_from(end_max.saturating_sub(offset)).unwrap_or(usize::MAX);
        if len > 0 && room == 0 { Err(Errno::DQuot.into()) } else { Ok(len.min(room)) }
    }

    /// Refuses when a file of `size` bytes may not become `size_new` bytes long.
    pub(crate) fn check_resize(&self, size: u64, size_new: u64) -> Result<(), Fail> {
        let grows = size_new.saturating_sub(size);
        if grows > self.used_max - self.used { Err(Errno::DQuot.into()) } else { Ok(()) }
    }

    /// Counts that a file of `size` bytes became `size_new` bytes long. Shrinking gives nothing back, or a guest could
    /// write for ever.
    pub(crate) fn count(&mut self, size: u64, size_new: u64) {
        self.used = self.used.saturating_add(size_new.saturating_sub(size)).min(self.used_max);
    }

    /// Refuses when no entry called `name` may be created.
    pub(crate) fn check_entry(&self, name: &str) -> Result<(), Fail> {
        let full = self.entries >= ENTRIES_MAX || entry_bytes(name) > self.used_max - self.used;
        if full { Err(Errno::DQuot.into()) } else { Ok(()) }
    }

    /// Counts an entry that was created.
    pub(crate) fn count_entry(&mut self, name: &str) {
        self.entries += 1;
        self.used = self.used.saturating_add(entry_bytes(name)).min(self.used_max);
    }
}

fn entry_bytes(name: &str) -> u64 {
    ENTRY_BYTES + name.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_exact() {
        let mut disk = Disk::new(10);
        assert_eq!(disk.fit(5, 5, 10).ok(), Some(10));
        assert_eq!(disk.fit(5, 5, 11).ok(), Some(10));
        assert_eq!(disk.fit(5, 0, 20).ok(), Some(15));
        assert_eq!(disk.fit(5, 14, 2).ok(), Some(1));
        assert!(matches!(disk.fit(5, 15, 1), Err(Fail::Errno(Errno::DQuot))));
        assert_eq!(disk.fit(5, u64::MAX, 0).ok(), Some(0));
        disk.count(5, 15);
        assert_eq!(disk.used(), 10);
        assert_eq!(disk.fit(15, 0, 15).ok(), Some(15));
        assert!(disk.fit(15, 15, 1).is_err());
        disk.count(15, 0);
        assert_eq!(disk.used(), 10);
    }

    #[test]
    fn resizing_is_all_or_nothing() {
        let disk = Disk::new(10);
        assert!(disk.check_resize(5, 15).is_ok());
        assert!(disk.check_resize(5, 16).is_err());
        assert!(disk.check_resize(u64::MAX, 0).is_ok());
        assert!(Disk::new(u64::MAX).check_resize(0, u64::MAX).is_ok());
    }

    #[test]
    fn entries_are_bounded() {
        let mut disk = Disk::new(u64::MAX);
        (0..ENTRIES_MAX).for_each(|_| {
            assert!(disk.check_entry("name").is_ok());
            disk.count_entry("name");
        });
        assert!(matches!(disk.check_entry("name"), Err(Fail::Errno(Errno::DQuot))));
    }

    #[test]
    fn an_entry_costs_a_block_and_its_name() {
        let mut disk = Disk::new(4099);
        assert!(matches!(disk.check_entry("name"), Err(Fail::Errno(Errno::DQuot))));
        assert!(disk.check_entry("abc").is_ok());
        disk.count_entry("abc");
        assert_eq!(disk.used(), 4099);
        assert!(disk.check_entry("").is_err());
        assert!(Disk::new(0).check_entry("").is_err());
    }
}
