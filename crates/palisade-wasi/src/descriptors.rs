//! The table of open descriptors.

use std::fs::File;
use std::sync::Arc;

use cap_std::fs::Dir;

use crate::directory::Listing;
use crate::errno::Fail;
use crate::{Errno, WasiConfig};

/// Most descriptors whatever the quota says, since each costs the host a descriptor of its own.
const DESCRIPTORS_MAX: usize = 65_536;
/// Most directory listings kept open at once in one table.
const LISTINGS_MAX: usize = 16;

/// What a descriptor stands for.
#[derive(Debug)]
pub(crate) enum Descriptor {
    Stdin,
    Stdout,
    Stderr,
    File(OpenFile),
    Directory(OpenDirectory),
}

/// An open regular file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) file: File,
    /// Kept here rather than by the host, so that seeking costs no system call.
    pub(crate) position: u64,
    /// In step with the host's own flag, which makes appending atomic.
    pub(crate) append: bool,
    pub(crate) nonblock: bool,
    pub(crate) readable: bool,
    /// Whether the guest asked to write.
    pub(crate) writable: bool,
    /// Whether the host's descriptor can be written: also when the guest asked to create or to truncate only.
    pub(crate) host_writable: bool,
    /// Whether the grant allows changes.
    pub(crate) granted_writable: bool,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    pub(crate) dir: Arc<Dir>,
    /// What it lies on (`st_dev`).
    pub(crate) device: u64,
    /// Whether the grant allows changes.
    pub(crate) writable: bool,
    /// Which granted directory this is, if it is one.
    pub(crate) granted: Option<usize>,
    pub(crate) listing: Option<Box<Listing>>,
}

/// The open descriptors by number.
#[derive(Debug)]
pub(crate) struct Descriptors {
    slots: Vec<Option<Descriptor>>,
    /// No number below this is free.
    lowest_free: usize,
    open: u64,
    peak: u64,
    open_max: u64,
}

impl Descriptors {
    /// The standard streams, and the granted directories from 3 on.
    pub(crate) fn new(config: &WasiConfig) -> Self {
        let streams = [Descriptor::Stdin, Descriptor::Stdout, Descriptor::Stderr];
        let directories = config.directories.iter().enumerate().map(|(index, granted)| {
            Descriptor::Directory(OpenDirectory {
                dir: Arc::clone(&granted.dir),
                device: granted.device,
                writable: granted.writable,
                granted: Some(index),
                listing: None,
            })
        });
        let slots: Vec<_> = streams.into_iter().chain(directories).map(Some).collect();
        Descriptors { lowest_free: slots.len(), slots, open: 0, peak: 0, open_max: config.open_files_max }
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    pub(crate) fn get(&mut self, fd: u32) -> Result<&mut Descriptor, Fail> {
        self.slots.get_mut(fd as usize).and_then(Option::as_mut).ok_or(Fail::Errno(Errno::BadF))
    }

    /// An open file; anything else is a bad descriptor.
    pub(crate) fn file(&mut self, fd: u32) -> Result<&mut OpenFile, Fail> {
        match self.get(fd)? {
            Descriptor::File(file) => Ok(file),
            _ => Err(Errno::BadF.into()),
        }
    }

    /// An open file; a standard stream cannot be sought.
    pub(crate) fn seekable(&mut self, fd: u32) -> Result<&mut OpenFile, Fail> {
        match self.get(fd)? {
            Descriptor::File(file) => Ok(file),
            Descriptor::Directory(_) => Err(Errno::BadF.into()),
            Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => Err(Errno::SPipe.into()),
        }
    }

    /// An open directory to look paths up in.
    pub(crate) fn directory(&mut self, fd: u32) -> Result<&mut OpenDirectory, Fail> {
        match self.get(fd)? {
            Descriptor::Directory(directory) => Ok(directory),
            Descriptor::File(_) => Err(Errno::NotDir.into()),
            Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => Err(Errno::BadF.into()),
        }
    }

    /// Refuses when the quota has no room for one more; to be asked before the host opens anything.
    pub(crate) fn check_room(&self) -> Result<(), Fail> {
        let full = self.open >= self.open_max || self.lowest_free >= DESCRIPTORS_MAX;
        if full { Err(Errno::MFile.into()) } else { Ok(()) }
    }

    /// Adds `descriptor` under the lowest free number.
    pub(crate) fn insert(&mut self, descriptor: Descriptor) -> Result<u32, Fail> {
        self.check_room()?;
        let fd = self.lowest_free;
        match self.slots.get_mut(fd) {
            Some(slot) => *slot = Some(descriptor),
            None => self.slots.push(Some(descriptor)),
        }
        self.open += 1;
        self.peak = self.peak.max(self.open);
        self.find_lowest_free(fd + 1);
        u32::try_from(fd).map_err(|_| Fail::Errno(Errno::MFile))
    }

    pub(crate) fn close(&mut self, fd: u32) -> Result<(), Fail> {
        let slot = self.slots.get_mut(fd as usize).ok_or(Errno::BadF)?;
        let descriptor = slot.take().ok_or(Errno::BadF)?;
        self.open -= u64::from(counts(&descriptor));
        self.lowest_free = self.lowest_free.min(fd as usize);
        Ok(())
    }

    /// Moves `from` to `to`, closing what was there.
    pub(crate) fn renumber(&mut self, from: u32, to: u32) -> Result<(), Fail> {
        self.get(from)?;
        self.get(to)?;
        if from != to {
            self.close(to)?;
            let moved = self.slots[from as usize].take();
            self.slots[to as usize] = moved;
            self.find_lowest_free(self.lowest_free.min(from as usize));
        }
        Ok(())
    }

    /// Makes room for one more listing. Those that are closed start again where they were when they are next read.
    pub(crate) fn bound_listings(&mut self) {
        let mut listings: Vec<_> = self
            .slots
            .iter_mut()
            .filter_map(|slot| match slot {
                Some(Descriptor::Directory(directory)) if directory.listing.is_some() => Some(&mut directory.listing),
                _ => None,
            })
            .collect();
        if listings.len() >= LISTINGS_MAX {
            listings.iter_mut().for_each(|listing| **listing = None);
        }
    }

    fn find_lowest_free(&mut self, from: usize) {
        let free = self.slots.iter().skip(from).position(Option::is_none);
        self.lowest_free = free.map_or(self.slots.len(), |offset| from + offset);
    }
}

/// Whether the quota on open files counts `descriptor`.
fn counts(descriptor: &Descriptor) -> bool {
    match descriptor {
        Descriptor::File(_) => true,
        Descriptor::Directory(directory) => directory.granted.is_none(),
        Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::Policy;
    use palisade_filesystems::Fuse;

    fn table(open_files: Option<u64>) -> Descriptors {
        let mut policy = Policy::default();
        policy.quota.open_files = open_files;
        Descriptors::new(&WasiConfig::new("guest", &policy, Fuse::Refused).unwrap())
    }

    fn file() -> Descriptor {
        Descriptor::File(OpenFile {
            file: tempfile::tempfile().unwrap(),
            position: 0,
            append: false,
            nonblock: false,
            readable: true,
            writable: false,
            host_writable: false,
            granted_writable: false,
        })
    }

    #[test]
    fn the_lowest_free_number_is_used() {
        let mut table = table(None);
        assert_eq!([(); 4].map(|()| table.insert(file()).unwrap()), [3, 4, 5, 6]);
        table.close(5).unwrap();
        table.close(1).unwrap();
        table.close(3).unwrap();
        assert_eq!([(); 4].map(|()| table.insert(file()).unwrap()), [1, 3, 5, 7]);
        assert!(matches!(table.close(9), Err(Fail::Errno(Errno::BadF))));
        assert_eq!(table.peak(), 6);
    }

    #[test]
    fn exactly_the_quota_can_be_open() {
        let mut table = table(Some(2));
        assert!(table.insert(file()).is_ok());
        assert!(table.insert(file()).is_ok());
        assert!(matches!(table.insert(file()), Err(Fail::Errno(Errno::MFile))));
        table.close(3).unwrap();
        // A stream that is closed makes a number free, not room in the quota.
        table.close(0).unwrap();
        assert_eq!(table.insert(file()).ok(), Some(0));
        assert!(matches!(table.insert(file()), Err(Fail::Errno(Errno::MFile))));
        assert_eq!(table.peak(), 2);
    }

    #[test]
    fn renumbering_closes_the_target_and_frees_the_source() {
        let mut table = table(Some(2));
        table.insert(file()).unwrap();
        table.insert(file()).unwrap();
        table.renumber(4, 4).unwrap();
        assert!(matches!(table.renumber(4, 100), Err(Fail::Errno(Errno::BadF))));
        assert!(matches!(table.renumber(100, 4), Err(Fail::Errno(Errno::BadF))));
        table.renumber(3, 4).unwrap();
        assert!(table.get(3).is_err() && table.get(4).is_ok());
        assert_eq!(table.insert(file()).ok(), Some(3));
        table.renumber(3, 1).unwrap();
        assert!(table.file(1).is_ok());
        assert!(table.insert(file()).is_err());
    }
}
