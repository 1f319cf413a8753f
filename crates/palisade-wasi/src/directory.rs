//! Reading directories.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use cap_std::fs::MetadataExt;
use rustix::fs::{Dir, Mode, OFlags};

use crate::context::Pending;
use crate::errno::{Fail, settle};
use crate::layout::{Filetype, dirent};
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// Most bytes written in one call; a guest has to come back for the rest anyway.
const BUFFER_BYTES_MAX: u32 = 1 << 20;
/// Entries read before the guest's limits are looked at: some tenths of a millisecond.
const PART_ENTRIES: usize = 512;

/// A directory being read, at some position.
///
/// A cookie is the number of entries before the one it stands for. The listing stays where the guest stopped reading,
/// so that going through a directory takes one pass over it whatever the size of the guest's buffer.
#[derive(Debug)]
pub(crate) struct Listing {
    dir: Dir,
    /// The cookie of the next entry.
    cookie: u64,
    /// The next entry when it is already taken from `dir`, because it did not fit into the guest's buffer.
    taken: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: CString,
    ino: u64,
    filetype: Filetype,
}

impl Listing {
    fn open(dir: impl AsFd) -> Result<Listing, Fail> {
        // A description of its own: duplicates share a position, and granted directories are shared by instances.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
        Ok(Listing { dir: Dir::new(fd)?, cookie: 0, taken: None })
    }

    /// The next entry. `.` and `..` come first, wherever the file system has them; `ino` is for both.
    fn take(&mut self, ino: u64) -> Result<Next, Fail> {
        if let Some(entry) = self.taken.take() {
            return Ok(Next::Entry(entry));
        }
        match self.cookie {
            0 => return Ok(Next::Entry(Entry { name: c".".into(), ino, filetype: Filetype::Directory })),
            // The number of the parent would tell about a directory that may not be granted.
            1 => return Ok(Next::Entry(Entry { name: c"..".into(), ino, filetype: Filetype::Directory })),
            _ => {}
        }
        let Some(entry) = self.dir.next().transpose()? else { return Ok(Next::End) };
        let name = entry.file_name();
        // A name that is not UTF-8 has no path in WASI.
        if name == c"." || name == c".." || name.to_str().is_err() {
            return Ok(Next::Skipped);
        }
        Ok(Next::Entry(Entry { name: name.to_owned(), ino: entry.ino(), filetype: entry.file_type().into() }))
    }
}

/// What comes next in a directory.
enum Next {
    Entry(Entry),
    /// Something that guests are not shown.
    Skipped,
    End,
}

/// A buffer that is being filled with entries.
#[derive(Debug)]
pub(crate) struct Reading {
    arguments: (i32, i32, i32, i64),
    listing: Box<Listing>,
    ino: u64,
    used: usize,
}

impl WasiContext {
    /// Reads entries of a directory from a cookie on. The last one is cut off when the buffer is full.
    ///
    /// # Errors
    ///
    /// [`Stop::Yield`] when there is more to read.
    #[expect(clippy::too_many_arguments, reason = "WASI's parameters")]
    pub fn fd_readdir(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        buf: i32,
        buf_len: i32,
        cookie: i64,
        bufused: i32,
    ) -> Result<Errno, Stop> {
        let arguments = (fd, buf, buf_len, cookie);
        let reading = match self.pending.take() {
            Some(Pending::Reading(reading)) if reading.arguments == arguments => Some(reading),
            _ => None,
        };
        settle(|| {
            memory.slice(bufused as u32, 4)?;
            memory.slice(buf as u32, buf_len as u32)?;
            let buffer = memory.slice_mut(buf as u32, (buf_len as u32).min(BUFFER_BYTES_MAX))?;
            let cookie = cookie as u64;
            let Reading { mut listing, ino, mut used, .. } = match reading {
                Some(reading) => reading,
                None => {
                    let (listing, ino) = self.listing(fd, cookie)?;
                    Reading { arguments, listing, ino, used: 0 }
                }
            };
            let mut ended = false;
            let mut read = 0;
            while used < buffer.len() || listing.cookie < cookie {
                if read == PART_ENTRIES {
                    self.pending = Some(Pending::Reading(Reading { arguments, listing, ino, used }));
                    return Err(Stop::Yield.into());
                }
                read += 1;
                let entry = match listing.take(ino)? {
                    Next::Entry(entry) => entry,
                    Next::Skipped => continue,
                    Next::End => {
                        ended = true;
                        break;
                    }
                };
                if listing.cookie >= cookie {
                    let name = entry.name.as_bytes();
                    let header = dirent(listing.cookie + 1, entry.ino, name.len(), entry.filetype);
                    used += copy(&header, &mut buffer[used..]);
                    let fits = buffer.len() - used >= name.len();
                    used += copy(name, &mut buffer[used..]);
                    if !fits {
                        listing.taken = Some(entry);
                        break;
                    }
                }
                listing.cookie += 1;
            }
            // What is at its end holds no descriptor of the host; whoever asks again starts anew and finds the end.
            if !ended {
                self.descriptors().directory(fd as u32)?.listing = Some(listing);
            }
            Ok(memory.write_u32(bufused as u32, used as u32)?)
        })
    }

    /// The listing of a directory at `cookie` or before, and the directory's number.
    fn listing(&mut self, fd: i32, cookie: u64) -> Result<(Box<Listing>, u64), Fail> {
        let descriptors = self.descriptors();
        let directory = match descriptors.directory(fd as u32) {
            Err(Fail::Errno(Errno::NotDir)) => return Err(Errno::BadF.into()),
            result => result?,
        };
        // Rewinding starts anew, to see what changed.
        let live = directory.listing.take_if(|listing| cookie > 0 && listing.cookie <= cookie);
        directory.listing = None;
        let dir = Arc::clone(&directory.dir);
        let listing = match live {
            Some(listing) => listing,
            None => {
                descriptors.bound_listings();
                Box::new(Listing::open(&*dir)?)
            }
        };
        Ok((listing, dir.dir_metadata()?.ino()))
    }
}

/// Copies what fits; gives its length.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DIRENT_BYTES;
    use crate::tests::{Guest, read_write};
    use std::collections::BTreeSet;

    /// Reads until the guest would go on, and tells after how many parts.
    fn read_on(guest: &mut Guest, fd: i32, buf_len: u32, cookie: u64) -> (Errno, usize) {
        for parts in 1.. {
            let errno = guest.run(|context, memory, streams| {
                context.fd_readdir(memory, streams, fd, 1024, buf_len as i32, cookie as i64, 8)
            });
            match errno {
                Err(Stop::Yield) => {}
                other => return (other.unwrap(), parts),
            }
        }
        unreachable!()
    }

    /// Entries as (cookie of the next, name), and whether the last was cut off.
    fn read(guest: &mut Guest, fd: i32, buf_len: u32, cookie: u64) -> (Vec<(u64, String)>, bool) {
        let (errno, _) = read_on(guest, fd, buf_len, cookie);
        assert_eq!(errno, Errno::Success);
        let mut bytes = &guest.memory[1024..1024 + guest.u32(8) as usize];
        let mut entries = Vec::new();
        while bytes.len() >= DIRENT_BYTES {
            let next = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
            let Some(name) = bytes.get(DIRENT_BYTES..DIRENT_BYTES + len) else { return (entries, true) };
            entries.push((next, String::from_utf8(name.to_vec()).unwrap()));
            bytes = &bytes[DIRENT_BYTES + len..];
        }
        (entries, !bytes.is_empty())
    }

    fn scratch(files: usize) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        (0..files).for_each(|number| std::fs::write(scratch.path().join(format!("file{number}")), "").unwrap());
        scratch
    }

    #[test]
    fn every_entry_comes_once_whatever_the_buffer() {
        let scratch = scratch(40);
        for buf_len in [30, 31, 32, 64, 100, 1000, 100_000] {
            let mut guest = Guest::new(&read_write(scratch.path()));
            let (mut names, mut cookie) = (Vec::new(), 0);
            loop {
                let (entries, cut) = read(&mut guest, 3, buf_len, cookie);
                if entries.is_empty() {
                    assert!(!cut, "{buf_len}");
                    break;
                }
                cookie = entries.last().unwrap().0;
                names.extend(entries.into_iter().map(|(_, name)| name));
            }
            assert_eq!(&names[..2], [".", ".."]);
            assert_eq!(names.len(), 42, "{buf_len}");
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 42);
        }
    }

    #[test]
    fn cookies_can_be_gone_back_to() {
        let scratch = scratch(10);
        let mut guest = Guest::new(&read_write(scratch.path()));
        let (all, cut) = read(&mut guest, 3, 4096, 0);
        assert!(!cut && all.len() == 12);
        for start in [5, 0, 11, 3, 12, 1] {
            let (entries, _) = read(&mut guest, 3, 60, start);
            assert_eq!(entries, all[start as usize..][..entries.len()], "{start}");
        }
        assert_eq!(read(&mut guest, 3, 4096, u64::MAX), (vec![], false));
        std::fs::write(scratch.path().join("late"), "").unwrap();
        assert_eq!(read(&mut guest, 3, 4096, 0).0.len(), 13);
    }

    #[test]
    fn removing_while_reading_loses_nothing() {
        let scratch = scratch(30);
        let mut guest = Guest::new(&read_write(scratch.path()));
        let mut cookie = 0;
        loop {
            let (entries, _) = read(&mut guest, 3, 100, cookie);
            let Some(last) = entries.last() else { break };
            cookie = last.0;
            for (_, name) in entries.iter().filter(|(_, name)| !name.starts_with('.')) {
                std::fs::remove_file(scratch.path().join(name)).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_directories_can_be_read_in_turns() {
        let scratch = scratch(8);
        let mut policy = read_write(scratch.path());
        let grant = policy.grants.directories[0].clone();
        policy.grants.directories.extend(
            (0..40).map(|number| palisade_core::DirectoryGrant { guest: format!("/{number}"), ..grant.clone() }),
        );
        let mut guest = Guest::new(&policy);
        let (all, _) = read(&mut guest, 3, 4096, 0);
        for start in [0, 2, 4, 6] {
            for fd in 3..44 {
                let (entries, _) = read(&mut guest, fd, 80, start);
                assert_eq!(entries[..2], all[start as usize..][..2], "{fd} {start}");
            }
        }
    }

    #[test]
    fn a_buffer_too_small_for_a_header_gets_a_part_of_it() {
        let scratch = scratch(1);
        let mut guest = Guest::new(&read_write(scratch.path()));
        let run = |guest: &mut Guest, len| {
            guest.run(|context, memory, streams| context.fd_readdir(memory, streams, 3, 1024, len, 0, 8))
        };
        assert_eq!((run(&mut guest, 10), guest.u32(8)), (Ok(Errno::Success), 10));
        assert_eq!((run(&mut guest, 0), guest.u32(8)), (Ok(Errno::Success), 0));
        assert_eq!(run(&mut guest, -1), Ok(Errno::Fault));
        assert_eq!(
            guest.run(|context, memory, streams| context.fd_readdir(memory, streams, 1, 1024, 64, 0, 8)),
            Ok(Errno::BadF)
        );
    }

    #[test]
    fn no_call_goes_through_a_large_directory_at_once() {
        use std::os::unix::ffi::OsStrExt;
        let files = 2 * PART_ENTRIES;
        let scratch = scratch(files);
        let mut guest = Guest::new(&read_write(scratch.path()));
        guest.memory.resize(1 << 20, 0);
        // By a cookie beyond the end.
        assert_eq!(read_on(&mut guest, 3, 100, u64::MAX), (Errno::Success, 3));
        assert_eq!(guest.u32(8), 0);
        // By a large buffer, which is filled to the end, since one with room left tells that the directory has ended.
        assert_eq!(read_on(&mut guest, 3, 1 << 19, 0), (Errno::Success, 3));
        let (entries, cut) = read(&mut guest, 3, 1 << 19, 0);
        assert_eq!((entries.iter().collect::<BTreeSet<_>>().len(), cut), (files + 2, false));
        // By names that guests are not shown.
        for number in 0..files {
            let name = [format!("hidden{number}").as_bytes(), &[0xff]].concat();
            std::fs::write(scratch.path().join(std::ffi::OsStr::from_bytes(&name)), "").unwrap();
        }
        assert_eq!(read_on(&mut guest, 3, 1 << 19, 0), (Errno::Success, 5));
        let (entries, cut) = read(&mut guest, 3, 1 << 19, 0);
        assert_eq!((entries.len(), cut), (files + 2, false));
    }
}
