//! How many commits a journal acknowledged, in a file of its own beside it: what tells a log that was damaged or taken away
//! from one that ends there.
//!
//! It is written after a commit is safe and before anybody hears of it, so **a journal that has fewer commits than its mark
//! lost some**. It is not flushed with each commit, and needs not be: a process that is killed leaves it written, and
//! a loss of power takes back at most the latest numbers, so the journal may have more commits than the mark says, never less.
//! It is one part of a disk's sector, which is written as a whole or not at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::private;

const MAGIC: [u8; 8] = *b"PLSDmark";
const BYTES: usize = 20;

/// How long a number may wait to be flushed while there are more: often enough that a power failure hides little damage,
/// seldom enough to cost nothing beside the flushes of the commits.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    synced_at: Instant,
}

/// What a mark's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// There is none, or one that was being made.
    Nothing,
    Commits(u64),
    Damaged,
}

/// Where the mark of the journal at `path` is.
pub(crate) fn path_of(journal: &Path) -> PathBuf {
    let mut path = journal.as_os_str().to_owned();
    path.push("-mark");
    path.into()
}

pub(crate) fn read(path: &Path) -> io::Result<Said> {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(Said::Nothing),
        Ok(bytes) => Ok(decode(&bytes).map_or(Said::Damaged, Said::Commits)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Said::Nothing),
        Err(error) => Err(error),
    }
}

impl Mark {
    /// Opens the mark's file, or makes one, for no commits, that is safe when this returns. Whatever else it says stays.
    pub(crate) fn open(path: &Path) -> io::Result<Mark> {
        let is_made = read(path)? == Said::Nothing;
        let mut mark = Mark { file: private::open(path)?, synced_at: Instant::now() };
        if is_made {
            mark.begin(0)?;
            private::sync_name(path)?;
        }
        Ok(mark)
    }

    /// Writes what may have been damaged, and makes it safe.
    pub(crate) fn begin(&mut self, commits: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > BYTES as u64 {
            self.file.set_len(BYTES as u64)?;
        }
        self.note(commits)?;
        self.sync()
    }

    /// Notes that so many commits are safe.
    pub(crate) fn note(&mut self, commits: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(commits), 0)?;
        if self.synced_at.elapsed() >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced_at = Instant::now();
        Ok(())
    }
}

fn encode(commits: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&commits.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
    let commits = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
    (encode(commits) == *bytes).then_some(commits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_what_was_noted_or_that_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("journal"));
        assert_eq!(read(&path).unwrap(), Said::Nothing);
        let mut mark = Mark::open(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Said::Commits(0));
        mark.note(u64::MAX - 1).unwrap();
        assert_eq!(read(&path).unwrap(), Said::Commits(u64::MAX - 1));
        assert_eq!(read(&path).unwrap(), Said::Commits(u64::MAX - 1));
        drop(Mark::open(&path).unwrap());
        assert_eq!(read(&path).unwrap(), Said::Commits(u64::MAX - 1), "opening changes nothing");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&path).unwrap(), Said::Damaged, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(read(&path).unwrap(), if at == 0 { Said::Nothing } else { Said::Damaged }, "{at} bytes");
        }
    }
}
