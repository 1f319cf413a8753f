//! Tests over the whole of WASI, and what the tests of its parts share.

use std::path::Path;
use std::sync::Arc;

use palisade_core::{DirectoryGrant, Input, Policy};
use palisade_filesystems::Fuse;

use crate::{Errno, GuestMemory, Stop, Streams, StreamsLimits, WasiConfig, WasiContext};

/// A context with memory and streams.
pub(crate) struct Guest {
    pub(crate) context: WasiContext,
    pub(crate) memory: Vec<u8>,
    pub(crate) streams: Streams,
}

impl Guest {
    pub(crate) fn new(policy: &Policy) -> Guest {
        Guest::with_input(policy, Input::default())
    }

    pub(crate) fn with_input(policy: &Policy, input: Input) -> Guest {
        Guest {
            context: WasiContext::new(Arc::new(WasiConfig::new("guest", policy, Fuse::Refused).unwrap())),
            memory: vec![0; 1 << 18],
            streams: Streams::new(input, None, StreamsLimits::from(&policy.quota)),
        }
    }

    pub(crate) fn run<T>(
        &mut self,
        function: impl FnOnce(&mut WasiContext, &mut GuestMemory<'_>, &mut Streams) -> T,
    ) -> T {
        function(&mut self.context, &mut GuestMemory::new(&mut self.memory), &mut self.streams)
    }

    pub(crate) fn call2(
        &mut self,
        function: fn(&mut WasiContext, &mut GuestMemory<'_>, &mut Streams, i32, i32) -> Result<Errno, Stop>,
        a: i32,
        b: i32,
    ) -> Errno {
        self.run(|context, memory, streams| function(context, memory, streams, a, b)).unwrap()
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.memory[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.memory[at..at + 8].try_into().unwrap())
    }
}

/// A policy with one writable directory.
pub(crate) fn read_write(directory: &Path) -> Policy {
    let mut policy = Policy::default();
    policy.grants.directories.push(DirectoryGrant::read_write(directory, "/rw"));
    policy
}

/// Where the helpers put paths, buffers and results in a guest's memory.
const PATH: usize = 0;
const PATH2: usize = 5000;
const IOVS: usize = 10_000;
const RESULT: usize = 10_100;
const DATA: usize = 11_000;

/// WASI with the arguments that matter.
impl Guest {
    fn text(&mut self, at: usize, text: &str) -> (i32, i32) {
        self.memory[at..at + text.len()].copy_from_slice(text.as_bytes());
        (at as i32, text.len() as i32)
    }

    fn on_path(
        &mut self,
        path: &str,
        function: impl FnOnce(&mut WasiContext, &mut GuestMemory<'_>, &mut Streams, i32, i32) -> Result<Errno, Stop>,
    ) -> Errno {
        let (path, len) = self.text(PATH, path);
        self.run(|context, memory, streams| function(context, memory, streams, path, len)).unwrap()
    }

    pub(crate) fn open(
        &mut self,
        dir: i32,
        path: &str,
        open_flags: u32,
        rights: u64,
        fd_flags: u32,
    ) -> Result<i32, Errno> {
        let errno = self.on_path(path, |context, memory, streams, path, len| {
            let (open_flags, rights) = (open_flags as i32, rights as i64);
            context.path_open(memory, streams, dir, 1, path, len, open_flags, rights, 0, fd_flags as i32, RESULT as i32)
        });
        if errno == Errno::Success { Ok(self.u32(RESULT) as i32) } else { Err(errno) }
    }

    /// Two paths, below two directories.
    fn on_paths(
        &mut self,
        old: &str,
        new: &str,
        function: impl FnOnce(&mut WasiContext, &mut GuestMemory<'_>, &mut Streams, [i32; 4]) -> Result<Errno, Stop>,
    ) -> Errno {
        let (old, old_len) = self.text(PATH, old);
        let (new, new_len) = self.text(PATH2, new);
        self.run(|context, memory, streams| function(context, memory, streams, [old, old_len, new, new_len])).unwrap()
    }

    fn link(&mut self, (old_fd, old): (i32, &str), (new_fd, new): (i32, &str)) -> Errno {
        self.on_paths(old, new, |context, memory, streams, [old, old_len, new, new_len]| {
            context.path_link(memory, streams, old_fd, 0, old, old_len, new_fd, new, new_len)
        })
    }

    fn rename(&mut self, (old_fd, old): (i32, &str), (new_fd, new): (i32, &str)) -> Errno {
        self.on_paths(old, new, |context, memory, streams, [old, old_len, new, new_len]| {
            context.path_rename(memory, streams, old_fd, old, old_len, new_fd, new, new_len)
        })
    }

    fn symlink(&mut self, target: &str, fd: i32, path: &str) -> Errno {
        self.on_paths(target, path, |context, memory, streams, [target, target_len, path, path_len]| {
            context.path_symlink(memory, streams, target, target_len, fd, path, path_len)
        })
    }

    fn stat(&mut self, fd: i32, path: &str, lookup: i32) -> Errno {
        self.on_path(path, |context, memory, streams, path, len| {
            context.path_filestat_get(memory, streams, fd, lookup, path, len, RESULT as i32)
        })
    }

    fn set_path_times(&mut self, fd: i32, path: &str, lookup: i32) -> Errno {
        self.on_path(path, |context, memory, streams, path, len| {
            context.path_filestat_set_times(memory, streams, fd, lookup, path, len, 0, 5_000_000_000, 4)
        })
    }

    fn mkdir(&mut self, fd: i32, path: &str) -> Errno {
        self.on_path(path, |context, memory, streams, path, len| {
            context.path_create_directory(memory, streams, fd, path, len)
        })
    }

    fn rmdir(&mut self, fd: i32, path: &str) -> Errno {
        self.on_path(path, |context, memory, streams, path, len| {
            context.path_remove_directory(memory, streams, fd, path, len)
        })
    }

    fn unlink(&mut self, fd: i32, path: &str) -> Errno {
        self.on_path(path, |context, memory, streams, path, len| {
            context.path_unlink_file(memory, streams, fd, path, len)
        })
    }

    fn close(&mut self, fd: i32) -> Errno {
        self.run(|context, memory, streams| context.fd_close(memory, streams, fd)).unwrap()
    }

    fn resize(&mut self, fd: i32, size: i64) -> Errno {
        self.run(|context, memory, streams| context.fd_filestat_set_size(memory, streams, fd, size)).unwrap()
    }

    fn iovs(&mut self, lens: &[usize]) -> (i32, i32) {
        let mut data = DATA;
        for (index, len) in lens.iter().enumerate() {
            let at = IOVS + 8 * index;
            self.memory[at..at + 4].copy_from_slice(&(data as u32).to_le_bytes());
            self.memory[at + 4..at + 8].copy_from_slice(&(*len as u32).to_le_bytes());
            data += len;
        }
        (IOVS as i32, lens.len() as i32)
    }

    fn try_write(&mut self, fd: i32, pieces: &[&[u8]]) -> Result<Result<usize, Errno>, Stop> {
        let bytes = pieces.concat();
        self.memory[DATA..DATA + bytes.len()].copy_from_slice(&bytes);
        let (iovs, iovs_len) = self.iovs(&pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>());
        let errno =
            self.run(|context, memory, streams| context.fd_write(memory, streams, fd, iovs, iovs_len, RESULT as i32))?;
        Ok(if errno == Errno::Success { Ok(self.u32(RESULT) as usize) } else { Err(errno) })
    }

    fn write(&mut self, fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
        self.try_write(fd, &[bytes]).unwrap()
    }

    fn pwrite(&mut self, fd: i32, bytes: &[u8], offset: i64) -> Result<usize, Errno> {
        self.memory[DATA..DATA + bytes.len()].copy_from_slice(bytes);
        let (iovs, iovs_len) = self.iovs(&[bytes.len()]);
        let errno = self.run(|context, memory, streams| {
            context.fd_pwrite(memory, streams, fd, iovs, iovs_len, offset, RESULT as i32)
        });
        if errno == Ok(Errno::Success) { Ok(self.u32(RESULT) as usize) } else { Err(errno.unwrap()) }
    }

    fn try_read(&mut self, fd: i32, lens: &[usize]) -> Result<Result<Vec<u8>, Errno>, Stop> {
        let (iovs, iovs_len) = self.iovs(lens);
        let errno =
            self.run(|context, memory, streams| context.fd_read(memory, streams, fd, iovs, iovs_len, RESULT as i32))?;
        let read = self.u32(RESULT) as usize;
        Ok(if errno == Errno::Success { Ok(self.memory[DATA..DATA + read].to_vec()) } else { Err(errno) })
    }

    fn read(&mut self, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        self.try_read(fd, &[len]).unwrap()
    }

    fn seek(&mut self, fd: i32, offset: i64, whence: i32) -> Result<u64, Errno> {
        let errno =
            self.run(|context, memory, streams| context.fd_seek(memory, streams, fd, offset, whence, RESULT as i32));
        if errno == Ok(Errno::Success) { Ok(self.u64(RESULT)) } else { Err(errno.unwrap()) }
    }
}

mod streams {
    use super::*;

    #[test]
    fn output_and_error_text_are_gathered_from_all_buffers() {
        let mut guest = Guest::new(&Policy::default());
        assert_eq!(guest.try_write(1, &[b"he", b"", b"llo"]), Ok(Ok(5)));
        assert_eq!(guest.write(2, b"oops"), Ok(4));
        assert_eq!(guest.write(0, b"x"), Err(Errno::BadF));
        let written = guest.streams.take_written();
        assert_eq!((written.output.as_slice(), written.error.as_slice()), (&b"hello"[..], &b"oops"[..]));
    }

    #[test]
    fn output_beyond_the_quota_stops_the_guest() {
        let mut policy = Policy::default();
        policy.quota.output_bytes = Some(4);
        let mut guest = Guest::new(&policy);
        assert_eq!(guest.write(1, b"1234"), Ok(4));
        assert!(matches!(guest.try_write(1, &[b"5"]), Err(Stop::Exceeded { .. })));
    }

    #[test]
    fn input_is_read_in_pieces_and_ends() {
        let mut guest = Guest::with_input(&Policy::default(), Input::Bytes("abcdef".into()));
        assert_eq!(guest.try_read(0, &[2, 0, 1]), Ok(Ok(b"abc".to_vec())));
        assert_eq!(guest.read(0, 0), Ok(vec![]));
        assert_eq!(guest.read(0, 10), Ok(b"def".to_vec()));
        assert_eq!(guest.read(0, 10), Ok(vec![]));
        assert_eq!(guest.read(1, 10), Err(Errno::BadF));
        assert_eq!(guest.seek(0, 0, 0), Err(Errno::SPipe));
    }

    #[test]
    fn streams_are_not_terminals() {
        let mut guest = Guest::new(&Policy::default());
        for fd in 0..3 {
            assert_eq!(guest.call2(WasiContext::fd_fdstat_get, fd, 64), Errno::Success);
            assert_eq!(guest.memory[64], 0, "{fd}");
        }
    }

    #[test]
    fn too_many_buffers_are_refused() {
        let mut guest = Guest::new(&Policy::default());
        let write = |guest: &mut Guest, count| {
            guest.run(|context, memory, streams| context.fd_write(memory, streams, 1, 0, count, RESULT as i32)).unwrap()
        };
        assert_eq!(write(&mut guest, 1024), Errno::Success);
        assert_eq!(write(&mut guest, 1025), Errno::Inval);
        assert_eq!(write(&mut guest, -1), Errno::Inval);
    }

    #[test]
    fn a_fault_in_a_later_buffer_writes_nothing() {
        let mut guest = Guest::new(&Policy::default());
        guest.iovs(&[4, 4]);
        guest.memory[IOVS + 8..IOVS + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let write = |context: &mut WasiContext, memory: &mut GuestMemory<'_>, streams: &mut Streams| {
            context.fd_write(memory, streams, 1, IOVS as i32, 2, RESULT as i32)
        };
        assert_eq!(guest.run(write), Ok(Errno::Fault));
        assert_eq!(guest.streams.output_bytes(), 0);
    }
}

mod files {
    use super::*;
    use crate::layout::fdflags::APPEND;
    use crate::layout::oflags::{CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE};
    use crate::layout::rights::{FD_READ, FD_WRITE};

    const BOTH: u64 = FD_READ | FD_WRITE;

    fn guest() -> (tempfile::TempDir, Guest) {
        let scratch = tempfile::tempdir().unwrap();
        let guest = Guest::new(&read_write(scratch.path()));
        (scratch, guest)
    }

    #[test]
    fn positions_move_with_reads_writes_and_seeks() {
        let (_scratch, mut guest) = guest();
        let fd = guest.open(3, "file", CREATE, BOTH, 0).unwrap();
        assert_eq!(guest.try_write(fd, &[b"01", b"23456789"]), Ok(Ok(10)));
        assert_eq!(guest.seek(fd, -4, 2), Ok(6));
        assert_eq!(guest.read(fd, 2), Ok(b"67".to_vec()));
        assert_eq!(guest.seek(fd, 0, 1), Ok(8));
        assert_eq!(guest.seek(fd, -9, 1), Err(Errno::Inval));
        assert_eq!(guest.seek(fd, i64::MIN, 0), Err(Errno::Inval));
        assert_eq!(guest.seek(fd, 0, 3), Err(Errno::Inval));
        assert_eq!(guest.seek(fd, i64::MAX, 0), Ok(i64::MAX as u64));
        assert_eq!(guest.seek(fd, 1, 1), Err(Errno::Inval));
        assert!(guest.write(fd, b"x").is_err());
        assert_eq!(guest.seek(fd, 3, 0), Ok(3));
        assert_eq!(guest.pwrite(fd, b"XX", 0), Ok(2));
        assert_eq!(guest.call2(WasiContext::fd_tell, fd, 64), Errno::Success);
        assert_eq!(guest.u64(64), 3);
        assert_eq!(guest.pwrite(fd, b"x", -1), Err(Errno::Inval));
        assert_eq!(guest.try_read(fd, &[3, 4]), Ok(Ok(b"3456789".to_vec())));
    }

    #[test]
    fn the_old_order_of_seek_origins() {
        let (_scratch, mut guest) = guest();
        let fd = guest.open(3, "file", CREATE, BOTH, 0).unwrap();
        guest.write(fd, b"01234567").unwrap();
        let seek = |guest: &mut Guest, offset, whence| {
            let errno = guest.run(|context, memory, streams| {
                context.unstable_fd_seek(memory, streams, fd, offset, whence, RESULT as i32)
            });
            (errno.unwrap(), guest.u64(RESULT))
        };
        assert_eq!(seek(&mut guest, -1, 0), (Errno::Success, 7));
        assert_eq!(seek(&mut guest, -2, 1), (Errno::Success, 6));
        assert_eq!(seek(&mut guest, 5, 2), (Errno::Success, 5));
    }

    #[test]
    fn appending_ignores_the_position_and_can_be_switched() {
        let (scratch, mut guest) = guest();
        std::fs::write(scratch.path().join("file"), "abc").unwrap();
        let fd = guest.open(3, "file", 0, BOTH, APPEND).unwrap();
        assert_eq!(guest.write(fd, b"d"), Ok(1));
        assert_eq!(guest.seek(fd, 0, 1), Ok(4));
        guest.seek(fd, 0, 0).unwrap();
        assert_eq!(guest.pwrite(fd, b"e", 0), Ok(1));
        assert_eq!(guest.call2(WasiContext::fd_fdstat_set_flags, fd, 0), Errno::Success);
        assert_eq!(guest.write(fd, b"A"), Ok(1));
        assert_eq!(guest.call2(WasiContext::fd_fdstat_set_flags, fd, 16), Errno::Inval);
        assert_eq!(guest.call2(WasiContext::fd_fdstat_set_flags, fd, APPEND as i32), Errno::Success);
        // Others may append too.
        std::fs::write(scratch.path().join("file"), "Abcde+").unwrap();
        assert_eq!(guest.write(fd, b"f"), Ok(1));
        assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), b"Abcde+f");
        assert_eq!(guest.context.disk_bytes(), 3);
    }

    #[test]
    fn every_new_entry_is_charged_a_block_and_its_name() {
        let (scratch, mut guest) = guest();
        std::fs::write(scratch.path().join("old"), "").unwrap();
        let entry = |name: &str| 4096 + name.len() as u64;
        let mut charged = 0;
        let mut expect = |guest: &mut Guest, done: Errno, bytes: u64, what: &str| {
            assert_eq!(done, Errno::Success, "{what}");
            charged += bytes;
            assert_eq!(guest.context.disk_bytes(), charged, "{what}");
        };
        let opened = |result: Result<i32, Errno>| result.err().unwrap_or(Errno::Success);
        let done = guest.mkdir(3, "dir");
        expect(&mut guest, done, entry("dir"), "mkdir");
        let done = guest.symlink("old", 3, "dir/soft");
        expect(&mut guest, done, entry("soft"), "symlink");
        let done = guest.link((3, "old"), (3, "dir/hard"));
        expect(&mut guest, done, entry("hard"), "link");
        let done = opened(guest.open(3, "dir/file", CREATE, BOTH, 0));
        expect(&mut guest, done, entry("file"), "create");
        let done = opened(guest.open(3, "dir/file", CREATE, BOTH, 0));
        expect(&mut guest, done, 0, "opened again");
        let done = guest.rename((3, "dir/file"), (3, "a-longer-name"));
        expect(&mut guest, done, entry("a-longer-name"), "rename");
        let done = guest.unlink(3, "a-longer-name");
        expect(&mut guest, done, 0, "nothing is given back");
    }

    #[test]
    fn without_disk_nothing_is_made() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("old"), "text").unwrap();
        let mut policy = read_write(scratch.path());
        policy.quota.disk_bytes = Some(0);
        let mut guest = Guest::new(&policy);
        assert_eq!(guest.mkdir(3, "new"), Errno::DQuot);
        assert_eq!(guest.symlink("x", 3, "new"), Errno::DQuot);
        assert_eq!(guest.link((3, "old"), (3, "new")), Errno::DQuot);
        assert_eq!(guest.rename((3, "old"), (3, "new")), Errno::DQuot);
        assert_eq!(guest.open(3, "new", CREATE, BOTH, 0), Err(Errno::DQuot));
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        // What is there can be read, changed and removed.
        let fd = guest.open(3, "old", CREATE, BOTH, 0).unwrap();
        assert_eq!(guest.write(fd, b"TEXT"), Ok(4));
        assert_eq!(guest.unlink(3, "old"), Errno::Success);
    }

    #[test]
    fn a_file_is_created_where_a_link_leads() {
        let (scratch, mut guest) = guest();
        std::fs::create_dir_all(scratch.path().join("a/b")).unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, scratch.path().join(name)).unwrap();
        };
        link("b/../../c", "a/link");
        link("link", "a/first");
        link("loop", "loop");
        link("../out", "out");
        assert!(guest.open(3, "a/first", CREATE, BOTH, 0).is_ok());
        assert!(scratch.path().join("c").is_file());
        assert_eq!(guest.open(3, "a/first", CREATE | EXCLUSIVE, BOTH, 0), Err(Errno::Exist));
        std::fs::remove_file(scratch.path().join("c")).unwrap();
        assert_eq!(guest.open(3, "a/first", CREATE | EXCLUSIVE, BOTH, 0), Err(Errno::Exist));
        assert_eq!(guest.open(3, "loop", CREATE, BOTH, 0), Err(Errno::Loop));
        assert_eq!(guest.open(3, "out", CREATE, BOTH, 0), Err(Errno::Perm));
    }

    #[test]
    fn rights_follow_from_how_a_file_was_opened() {
        let (scratch, mut guest) = guest();
        std::fs::write(scratch.path().join("file"), "abc").unwrap();
        let fd = guest.open(3, "file", 0, FD_READ, 0).unwrap();
        assert_eq!(guest.write(fd, b"x"), Err(Errno::BadF));
        assert_eq!(guest.resize(fd, 0), Errno::BadF);
        let fd = guest.open(3, "file", 0, FD_WRITE, 0).unwrap();
        assert_eq!(guest.read(fd, 1), Err(Errno::BadF));
        guest.call2(WasiContext::fd_fdstat_get, fd, 64);
        assert_eq!((guest.memory[64], guest.u64(72) & BOTH), (4, FD_WRITE));
    }

    #[test]
    fn the_disk_quota_is_exact() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "").unwrap();
        let mut policy = read_write(scratch.path());
        policy.quota.disk_bytes = Some(10);
        let mut guest = Guest::new(&policy);
        let fd = guest.open(3, "file", CREATE, BOTH, 0).unwrap();
        assert_eq!(guest.write(fd, b"1234567"), Ok(7));
        // What does not grow the file is free.
        assert_eq!(guest.pwrite(fd, b"abcdefg", 0), Ok(7));
        assert_eq!(guest.write(fd, b"89012"), Ok(3));
        assert_eq!(guest.write(fd, b"1"), Err(Errno::DQuot));
        assert_eq!(guest.pwrite(fd, b"x", 11), Err(Errno::DQuot));
        assert_eq!(guest.resize(fd, 11), Errno::DQuot);
        assert_eq!(guest.resize(fd, 10), Errno::Success);
        assert_eq!(guest.resize(fd, 0), Errno::Success);
        assert_eq!(guest.write(fd, b""), Ok(0));
        // Shrinking gives nothing back within a call.
        assert_eq!(guest.pwrite(fd, b"x", 0), Err(Errno::DQuot));
        assert_eq!(guest.context.disk_bytes(), 10);
        guest.context.begin_call(vec![]);
        assert_eq!(guest.context.disk_bytes(), 0);
        // A hole counts.
        assert_eq!(guest.resize(fd, 11), Errno::DQuot);
        assert_eq!(guest.pwrite(fd, b"xyz", 8), Ok(2));
        assert_eq!(guest.context.disk_bytes(), 10);
    }

    #[test]
    fn exactly_the_quota_of_files_can_be_open() {
        let scratch = tempfile::tempdir().unwrap();
        let mut policy = read_write(scratch.path());
        policy.quota.open_files = Some(2);
        let mut guest = Guest::new(&policy);
        assert_eq!(guest.open(3, "a", CREATE, BOTH, 0), Ok(4));
        assert_eq!(guest.open(3, ".", DIRECTORY, 0, 0), Ok(5));
        assert_eq!(guest.open(3, "b", CREATE, BOTH, 0), Err(Errno::MFile));
        assert!(!scratch.path().join("b").exists());
        assert_eq!(guest.close(4), Errno::Success);
        assert_eq!(guest.close(4), Errno::BadF);
        assert_eq!(guest.open(3, "b", CREATE, BOTH, 0), Ok(4));
        assert_eq!(guest.context.open_files_peak(), 2);
    }

    #[test]
    fn flags_of_opening() {
        let (scratch, mut guest) = guest();
        assert_eq!(guest.open(3, "file", 0, FD_READ, 0), Err(Errno::NoEnt));
        let fd = guest.open(3, "file", CREATE | EXCLUSIVE, BOTH, 0).unwrap();
        guest.write(fd, b"abc").unwrap();
        assert_eq!(guest.open(3, "file", CREATE | EXCLUSIVE, BOTH, 0), Err(Errno::Exist));
        assert_eq!(guest.open(3, "file", DIRECTORY, FD_READ, 0), Err(Errno::NotDir));
        assert_eq!(guest.open(3, "file/", 0, FD_READ, 0), Err(Errno::NotDir));
        assert_eq!(guest.open(3, "new/", CREATE, BOTH, 0), Err(Errno::IsDir));
        assert_eq!(guest.open(3, ".", DIRECTORY | CREATE, BOTH, 0), Err(Errno::Inval));
        assert_eq!(guest.open(3, ".", 0, FD_WRITE, 0), Err(Errno::IsDir));
        assert_eq!(guest.open(3, "file", 16, FD_READ, 0), Err(Errno::Inval));
        assert_eq!(guest.open(3, "file", 0, FD_READ, 16), Err(Errno::NotSup));
        assert_eq!(guest.open(3, "file", 0, FD_READ, 32), Err(Errno::Inval));
        assert_eq!(guest.open(fd, "file", 0, FD_READ, 0), Err(Errno::NotDir));
        assert_eq!(guest.open(1, "file", 0, FD_READ, 0), Err(Errno::BadF));
        assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), b"abc");
        guest.open(3, "file", TRUNCATE, 0, 0).unwrap();
        assert_eq!(std::fs::read(scratch.path().join("file")).unwrap(), b"");
    }

    #[test]
    fn a_fifo_neither_blocks_nor_opens() {
        use rustix::fs::{CWD, FileType, Mode};
        let (scratch, mut guest) = guest();
        let fifo = scratch.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for (flags, rights) in [(0, FD_READ), (0, FD_WRITE), (0, BOTH), (CREATE, BOTH), (TRUNCATE, BOTH), (0, 0)] {
            assert_eq!(guest.open(3, "fifo", flags, rights, 0), Err(Errno::NotSup), "{flags} {rights}");
        }
        assert_eq!(guest.open(3, "fifo", CREATE | EXCLUSIVE, BOTH, 0), Err(Errno::Exist));
        assert_eq!(guest.set_path_times(3, "fifo", 1), Errno::NotSup);
        assert_eq!(guest.set_path_times(3, "fifo", 0), Errno::Success);
        assert_eq!(guest.stat(3, "fifo", 1), Errno::Success);
        assert_eq!(guest.unlink(3, "fifo"), Errno::Success);
    }

    #[test]
    fn times_are_set_and_shown_in_steps() {
        let (_scratch, mut guest) = guest();
        let fd = guest.open(3, "file", CREATE, BOTH, 0).unwrap();
        let set = |guest: &mut Guest, nanos| {
            guest.run(|context, memory, streams| context.fd_filestat_set_times(memory, streams, fd, nanos, nanos, 5))
        };
        assert_eq!(set(&mut guest, 1_234_567_890), Ok(Errno::Success));
        assert_eq!(guest.stat(3, "file", 0), Errno::Success);
        assert_eq!((guest.u64(RESULT + 40), guest.u64(RESULT + 48)), (1_234_000_000, 1_234_000_000));
        assert_eq!(guest.set_path_times(3, "file", 1), Errno::Success);
        assert_eq!(guest.stat(3, "file", 0), Errno::Success);
        assert_eq!((guest.u64(RESULT + 40), guest.u64(RESULT + 48)), (1_234_000_000, 5_000_000_000));
        assert_eq!(guest.set_path_times(3, ".", 1), Errno::Success);
    }

    #[test]
    fn a_granted_directory_keeps_its_name_when_it_moves() {
        let (_scratch, mut guest) = guest();
        assert_eq!(guest.call2(WasiContext::fd_prestat_get, 3, 64), Errno::Success);
        assert_eq!((guest.memory[64], guest.u32(68)), (0, 3));
        assert_eq!(guest.call2(WasiContext::fd_renumber, 3, 0), Errno::Success);
        let name = |context: &mut WasiContext, memory: &mut GuestMemory<'_>, streams: &mut Streams| {
            context.fd_prestat_dir_name(memory, streams, 0, 64, 3)
        };
        assert_eq!((guest.run(name), &guest.memory[64..67]), (Ok(Errno::Success), &b"/rw"[..]));
        assert_eq!(guest.call2(WasiContext::fd_prestat_get, 3, 64), Errno::BadF);
        assert_eq!(guest.call2(WasiContext::fd_prestat_get, 1, 64), Errno::BadF);
        assert_eq!(guest.close(0), Errno::Success);
        assert_eq!(guest.open(0, "x", CREATE, BOTH, 0), Err(Errno::BadF));
    }
}

mod confinement {
    use super::*;
    use crate::layout::oflags::{CREATE, TRUNCATE};
    use crate::layout::rights::{FD_READ, FD_WRITE};

    /// A secret outside of `/rw` (descriptor 3) and `/ro` (4), both of which have a file and a directory.
    fn guest() -> (tempfile::TempDir, Guest) {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("secret"), "secret").unwrap();
        for name in ["rw", "ro"] {
            std::fs::create_dir_all(scratch.path().join(name).join("dir")).unwrap();
            std::fs::write(scratch.path().join(name).join("file"), "text").unwrap();
            std::os::unix::fs::symlink("file", scratch.path().join(name).join("link")).unwrap();
        }
        let mut policy = read_write(&scratch.path().join("rw"));
        policy.grants.directories.push(DirectoryGrant::read_only(scratch.path().join("ro"), "/ro"));
        let guest = Guest::new(&policy);
        (scratch, guest)
    }

    #[test]
    fn nothing_leads_outside() {
        let (scratch, mut guest) = guest();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, scratch.path().join("rw").join(name)).unwrap();
        };
        link("../secret", "up");
        link(scratch.path().join("secret").to_str().unwrap(), "absolute");
        link("..", "parent");
        link("/", "root");
        link("/proc/self/root", "proc");
        let escapes = [
            "..",
            "../",
            "../secret",
            "dir/../../secret",
            "./../secret",
            "/etc/passwd",
            "/",
            "up",
            "absolute",
            "parent",
            "parent/",
            "parent/secret",
            "parent/ro/file",
            "root",
            "root/",
            "root/etc/passwd",
            "dir/../parent/secret",
            "proc",
            "proc/etc",
            "../rw/file",
        ];
        for path in escapes {
            let refused = |result: Result<i32, Errno>| matches!(result, Err(Errno::Perm));
            assert!(refused(guest.open(3, path, 0, FD_READ, 0)), "{path}: {:?}", guest.open(3, path, 0, FD_READ, 0));
            assert!(guest.open(3, path, TRUNCATE, FD_WRITE, 0).is_err(), "{path}");
            assert_eq!(guest.stat(3, path, 1), Errno::Perm, "{path}");
            assert_eq!(guest.set_path_times(3, path, 1), Errno::Perm, "{path}");
        }
        for path in ["..", "../", "../new", "parent/new", "parent/../new", "root/new", "/new", "parent/secret"] {
            assert!(guest.open(3, path, CREATE, FD_WRITE, 0).is_err(), "{path}");
            assert_ne!(guest.mkdir(3, path), Errno::Success, "{path}");
            assert_ne!(guest.rmdir(3, path), Errno::Success, "{path}");
            assert_ne!(guest.unlink(3, path), Errno::Success, "{path}");
            assert_ne!(guest.symlink("file", 3, path), Errno::Success, "{path}");
            assert_ne!(guest.rename((3, "file"), (3, path)), Errno::Success, "{path}");
            assert_ne!(guest.rename((3, path), (3, "stolen")), Errno::Success, "{path}");
            assert_ne!(guest.link((3, "file"), (3, path)), Errno::Success, "{path}");
            assert_ne!(guest.link((3, path), (3, "stolen")), Errno::Success, "{path}");
            assert_ne!(guest.stat(3, path, 0), Errno::Success, "{path}");
            assert_ne!(guest.set_path_times(3, path, 0), Errno::Success, "{path}");
        }
        // A link can be seen and removed, and followed by nobody: with a slash it is not a directory to be removed.
        assert_eq!(guest.stat(3, "parent", 0), Errno::Success);
        assert_eq!(guest.rmdir(3, "parent/"), Errno::NotDir);
        assert_eq!(guest.unlink(3, "parent/"), Errno::NotDir);
        assert_eq!(guest.rename((3, "parent/"), (3, "x")), Errno::NotDir);
        assert_eq!(guest.stat(3, "parent/", 0), Errno::Perm);
        assert_eq!(std::fs::read(scratch.path().join("secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 3);
    }

    /// A guest that was granted all of the host, where special file systems are mounted.
    fn guest_with_everything() -> Guest {
        Guest::new(&read_write(Path::new("/")))
    }

    #[test]
    fn no_path_leads_onto_a_special_file_system() {
        let mut guest = guest_with_everything();
        let paths =
            ["proc/self/mem", "proc/self/maps", "proc/self", "proc", "proc/.", "sys", "sys/kernel", "dev", "dev/."];
        for path in paths {
            assert_eq!(guest.open(3, path, 0, FD_READ, 0), Err(Errno::Perm), "{path}");
        }
        assert_eq!(guest.open(3, "proc/self/mem", 0, FD_READ | FD_WRITE, 0), Err(Errno::Perm));
        assert_eq!(guest.open(3, "proc/new", CREATE, FD_WRITE, 0), Err(Errno::Perm));
        for path in ["proc/self/maps", "proc/uptime", "sys/kernel", "proc/self/."] {
            assert_eq!(guest.stat(3, path, 1), Errno::Perm, "{path}");
            assert_eq!(guest.stat(3, path, 0), Errno::Perm, "{path}");
            assert_eq!(guest.set_path_times(3, path, 1), Errno::Perm, "{path}");
            assert_eq!(guest.set_path_times(3, path, 0), Errno::Perm, "{path}");
        }
        for path in ["proc/new", "sys/fs/new", "dev/new", "proc/self/new"] {
            assert_eq!(guest.mkdir(3, path), Errno::Perm, "{path}");
            assert_eq!(guest.symlink("x", 3, path), Errno::Perm, "{path}");
            assert_eq!(guest.rmdir(3, path), Errno::Perm, "{path}");
            assert_eq!(guest.unlink(3, path), Errno::Perm, "{path}");
            assert_eq!(guest.rename((3, path), (3, "new")), Errno::Perm, "{path}");
            assert_eq!(guest.link((3, path), (3, "new")), Errno::Perm, "{path}");
        }
        let readlink = guest.on_path("proc/self/cwd", |context, memory, streams, path, len| {
            context.path_readlink(memory, streams, 3, path, len, DATA as i32, 100, RESULT as i32)
        });
        assert_eq!(readlink, Errno::Perm);
    }

    #[test]
    fn no_link_leads_onto_a_special_file_system() {
        let scratch = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        // Relative, since absolute ones lead nowhere from within a grant.
        std::os::unix::fs::symlink("../../proc", scratch.path().join("proc")).unwrap();
        std::os::unix::fs::symlink("../../dev/new", scratch.path().join("new")).unwrap();
        let below = scratch.path().to_str().unwrap().trim_start_matches('/');
        let mut guest = guest_with_everything();
        for path in ["proc", "proc/self/maps", "proc/"] {
            assert_eq!(guest.open(3, &format!("{below}/{path}"), 0, FD_READ, 0), Err(Errno::Perm), "{path}");
        }
        assert_eq!(guest.open(3, &format!("{below}/new"), CREATE, FD_WRITE, 0), Err(Errno::Perm));
        assert!(!Path::new("/dev/new").exists());
        // The everyday use beside it.
        assert!(guest.open(3, &format!("{below}/file"), CREATE, FD_WRITE, 0).is_ok());
        assert_eq!(guest.stat(3, &format!("{below}/proc"), 0), Errno::Success);
    }

    #[test]
    fn absolute_link_targets_are_neither_made_nor_told() {
        let (scratch, mut guest) = guest();
        std::os::unix::fs::symlink("/etc", scratch.path().join("rw/etc")).unwrap();
        assert_eq!(guest.symlink("/etc", 3, "new"), Errno::Perm);
        let readlink = |guest: &mut Guest, path: &str| {
            guest.on_path(path, |context, memory, streams, path, len| {
                context.path_readlink(memory, streams, 3, path, len, DATA as i32, 3, RESULT as i32)
            })
        };
        assert_eq!(readlink(&mut guest, "etc"), Errno::Perm);
        assert_eq!(readlink(&mut guest, "file"), Errno::Inval);
        assert_eq!(readlink(&mut guest, "link/"), Errno::NotDir);
        assert_eq!((readlink(&mut guest, "link"), guest.u32(RESULT)), (Errno::Success, 3));
        assert_eq!(&guest.memory[DATA..DATA + 3], b"fil");
    }

    #[test]
    fn every_change_below_a_read_only_grant_is_refused() {
        let (scratch, mut guest) = guest();
        let ro = scratch.path().join("ro");
        let before: Vec<_> = ["", "file", "dir", "link"]
            .map(|name| std::fs::symlink_metadata(ro.join(name)).unwrap().modified().unwrap())
            .into();
        assert_eq!(guest.open(4, "file", 0, FD_READ, 0), Ok(5));
        assert_eq!(guest.open(4, "dir", 0, FD_READ, 0), Ok(6));
        assert_eq!(guest.read(5, 10), Ok(b"text".to_vec()));
        type Change = (&'static str, fn(&mut Guest) -> Errno);
        let opened = |result: Result<i32, Errno>| result.err().unwrap_or(Errno::Success);
        let open: [(&str, u32, u64); 6] = [
            ("file", 0, FD_WRITE),
            ("file", 0, FD_READ | FD_WRITE),
            ("file", TRUNCATE, 0),
            ("file", CREATE, FD_READ),
            ("new", CREATE, FD_READ),
            ("link", TRUNCATE, FD_READ),
        ];
        for (path, flags, rights) in open {
            assert_eq!(opened(guest.open(4, path, flags, rights, 0)), Errno::RoFs, "{path} {flags} {rights}");
        }
        let changes: [Change; 20] = [
            ("fd_allocate", |guest| guest.run(|c, m, s| c.fd_allocate(m, s, 5, 0, 100)).unwrap()),
            ("fd_filestat_set_size", |guest| guest.resize(5, 0)),
            ("fd_filestat_set_times", |guest| guest.run(|c, m, s| c.fd_filestat_set_times(m, s, 5, 0, 0, 5)).unwrap()),
            ("fd_filestat_set_times, directory", |guest| {
                guest.run(|c, m, s| c.fd_filestat_set_times(m, s, 6, 0, 0, 5)).unwrap()
            }),
            ("fd_filestat_set_times, granted", |guest| {
                guest.run(|c, m, s| c.fd_filestat_set_times(m, s, 4, 0, 0, 5)).unwrap()
            }),
            ("path_create_directory", |guest| guest.mkdir(4, "new")),
            ("path_create_directory, below", |guest| guest.mkdir(6, "new")),
            ("path_filestat_set_times", |guest| guest.set_path_times(4, "file", 0)),
            ("path_filestat_set_times, following", |guest| guest.set_path_times(4, "link", 1)),
            ("path_link, within", |guest| guest.link((4, "file"), (4, "new"))),
            ("path_link, out of it", |guest| guest.link((4, "file"), (3, "new"))),
            ("path_link, into it", |guest| guest.link((3, "file"), (4, "new"))),
            ("path_rename, within", |guest| guest.rename((4, "file"), (4, "new"))),
            ("path_rename, out of it", |guest| guest.rename((4, "file"), (3, "new"))),
            ("path_rename, into it", |guest| guest.rename((3, "file"), (4, "new"))),
            ("path_symlink", |guest| guest.symlink("file", 4, "new")),
            ("path_unlink_file", |guest| guest.unlink(4, "file")),
            ("path_unlink_file, link", |guest| guest.unlink(4, "link")),
            ("path_remove_directory", |guest| guest.rmdir(4, "dir")),
            ("path_open, below", |guest| guest.open(6, "new", CREATE, FD_WRITE, 0).err().unwrap_or(Errno::Success)),
        ];
        for (name, change) in changes {
            assert_eq!(change(&mut guest), Errno::RoFs, "{name}");
        }
        assert_eq!(guest.write(5, b"x"), Err(Errno::BadF));
        assert_eq!(guest.pwrite(5, b"x", 0), Err(Errno::BadF));
        assert_eq!(guest.call2(WasiContext::fd_fdstat_set_flags, 5, 1), Errno::Success);
        assert_eq!(guest.write(5, b"x"), Err(Errno::BadF));
        let after: Vec<_> = ["", "file", "dir", "link"]
            .map(|name| std::fs::symlink_metadata(ro.join(name)).unwrap().modified().unwrap())
            .into();
        assert_eq!(before, after);
        assert_eq!(std::fs::read(ro.join("file")).unwrap(), b"text");
        assert!(scratch.path().join("rw/file").exists() && !scratch.path().join("rw/new").exists());
    }

    #[test]
    fn changes_below_a_writable_grant_work() {
        let (scratch, mut guest) = guest();
        let rw = scratch.path().join("rw");
        assert_eq!(guest.mkdir(3, "new/"), Errno::Success);
        assert_eq!(guest.mkdir(3, "new"), Errno::Exist);
        assert_eq!(guest.rename((3, "new/"), (3, "newer/")), Errno::Success);
        assert_eq!(guest.rename((3, "file"), (3, "other/")), Errno::NotDir);
        assert_eq!(guest.rename((3, "file/"), (3, "other")), Errno::NotDir);
        assert_eq!(guest.link((3, "file"), (3, "newer/hard")), Errno::Success);
        assert_eq!(guest.link((3, "file"), (3, "missing/")), Errno::NoEnt);
        assert_eq!(guest.link((3, "file"), (3, "dir/")), Errno::Exist);
        assert_eq!(guest.symlink("hard", 3, "newer/soft"), Errno::Success);
        assert_eq!(guest.symlink("x", 3, "file/"), Errno::NotDir);
        assert_eq!(std::fs::read(rw.join("newer/soft")).unwrap(), b"text");
        assert_eq!(guest.rmdir(3, "newer"), Errno::NotEmpty);
        assert_eq!(guest.unlink(3, "newer/"), Errno::IsDir);
        assert_eq!(guest.unlink(3, "newer/soft"), Errno::Success);
        assert_eq!(guest.unlink(3, "newer/hard/"), Errno::NotDir);
        assert_eq!(guest.unlink(3, "newer/hard"), Errno::Success);
        assert_eq!(guest.rmdir(3, "newer/"), Errno::Success);
        assert_eq!(guest.rmdir(3, "file"), Errno::NotDir);
        assert_eq!(guest.open(3, "link/", 0, FD_READ, 0), Err(Errno::NotDir));
    }

    #[test]
    fn malformed_paths_are_refused() {
        let (_scratch, mut guest) = guest();
        assert_eq!(guest.stat(3, "", 0), Errno::NoEnt);
        assert_eq!(guest.stat(3, "file\0", 0), Errno::Inval);
        assert_eq!(guest.stat(3, &"x".repeat(4096), 0), Errno::NameTooLong);
        assert_eq!(guest.stat(3, &"./".repeat(2047), 0), Errno::Success);
        guest.memory[PATH] = 0xff;
        let stat = |context: &mut WasiContext, memory: &mut GuestMemory<'_>, streams: &mut Streams| {
            context.path_filestat_get(memory, streams, 3, 0, PATH as i32, 1, RESULT as i32)
        };
        assert_eq!(guest.run(stat), Ok(Errno::IlSeq));
        assert_eq!(guest.stat(3, "file", 2), Errno::Inval);
    }

    #[test]
    fn entries_are_bounded_per_call() {
        let scratch = tempfile::tempdir().unwrap();
        let mut policy = read_write(scratch.path());
        policy.quota.disk_bytes = None;
        let mut guest = Guest::new(&policy);
        for number in 0..16_384 {
            // What fails does not count.
            assert_eq!(guest.mkdir(3, "missing/x"), Errno::NoEnt);
            assert_eq!(guest.symlink("x", 3, "link"), Errno::Success, "{number}");
            assert_eq!(guest.unlink(3, "link"), Errno::Success);
        }
        assert_eq!(guest.mkdir(3, "dir"), Errno::DQuot);
        assert_eq!(guest.open(3, "file", CREATE, FD_WRITE, 0), Err(Errno::DQuot));
        guest.context.begin_call(vec![]);
        assert_eq!(guest.mkdir(3, "dir"), Errno::Success);
    }
}

mod poll {
    use super::*;
    use crate::Wait;
    use std::time::{Duration, Instant};

    const SUBSCRIPTIONS: usize = 20_000;
    const EVENTS: usize = 30_000;

    enum On {
        Clock { id: u32, timeout: u64, absolute: bool },
        Read(u32),
        Write(u32),
    }

    /// Events as (userdata, errno, kind, bytes).
    type Events = Vec<(u64, u16, u8, u64)>;

    fn poll(guest: &mut Guest, subscriptions: &[On], unstable: bool) -> Result<Result<Events, Errno>, Stop> {
        let size = if unstable { 56 } else { 48 };
        for (index, on) in subscriptions.iter().enumerate() {
            let mut bytes = vec![0; size];
            bytes[..8].copy_from_slice(&(100 + index as u64).to_le_bytes());
            match on {
                On::Clock { id, timeout, absolute } => {
                    let at = if unstable { 24 } else { 16 };
                    bytes[at..at + 4].copy_from_slice(&id.to_le_bytes());
                    bytes[at + 8..at + 16].copy_from_slice(&timeout.to_le_bytes());
                    bytes[at + 24] = u8::from(*absolute);
                }
                On::Read(fd) => {
                    bytes[8] = 1;
                    bytes[16..20].copy_from_slice(&fd.to_le_bytes());
                }
                On::Write(fd) => {
                    bytes[8] = 2;
                    bytes[16..20].copy_from_slice(&fd.to_le_bytes());
                }
            }
            let at = SUBSCRIPTIONS + index * size;
            guest.memory[at..at + size].copy_from_slice(&bytes);
        }
        let count = subscriptions.len() as i32;
        let errno = guest.run(|context, memory, streams| {
            let poll = if unstable { WasiContext::unstable_poll_oneoff } else { WasiContext::poll_oneoff };
            poll(context, memory, streams, SUBSCRIPTIONS as i32, EVENTS as i32, count, RESULT as i32)
        })?;
        if errno != Errno::Success {
            return Ok(Err(errno));
        }
        let event = |index: usize| {
            let bytes = &guest.memory[EVENTS + 32 * index..][..32];
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            (word(0), u16::from_le_bytes([bytes[8], bytes[9]]), bytes[10], word(16))
        };
        Ok(Ok((0..guest.u32(RESULT) as usize).map(event).collect()))
    }

    fn relative(timeout: u64) -> On {
        On::Clock { id: 1, timeout, absolute: false }
    }

    #[test]
    fn a_timeout_counts_from_the_first_poll() {
        for unstable in [false, true] {
            let mut guest = Guest::new(&Policy::default());
            let before = Instant::now();
            let wait = |guest: &mut Guest| match poll(guest, &[relative(20_000_000)], unstable) {
                Err(Stop::Wait(Wait { until: Some(until), input: false, work: false })) => Some(until),
                Ok(Ok(events)) => {
                    assert_eq!(events, [(100, 0, 0, 0)]);
                    None
                }
                other => panic!("{other:?}"),
            };
            let until = wait(&mut guest).unwrap();
            assert!(until >= before + Duration::from_millis(20));
            while let Some(again) = wait(&mut guest) {
                assert_eq!(again, until);
            }
            assert!(Instant::now() >= until);
            // The next poll counts anew.
            assert!(wait(&mut guest).unwrap() > until);
        }
    }

    #[test]
    fn the_longest_timeouts_do_not_overflow() {
        let mut guest = Guest::new(&Policy::default());
        for id in [0, 1] {
            for absolute in [false, true] {
                let longest = [On::Clock { id, timeout: u64::MAX, absolute }];
                assert!(matches!(poll(&mut guest, &longest, false), Err(Stop::Wait(Wait { input: false, .. }))));
            }
        }
    }

    #[test]
    fn what_has_passed_is_ready_at_once() {
        let mut guest = Guest::new(&Policy::default());
        for id in [0, 1] {
            let events = poll(&mut guest, &[On::Clock { id, timeout: 0, absolute: true }, relative(u64::MAX)], false);
            assert_eq!(events, Ok(Ok(vec![(100, 0, 0, 0)])), "{id}");
        }
        assert_eq!(poll(&mut guest, &[relative(0), relative(0)], false).unwrap().unwrap().len(), 2);
        let other = poll(&mut guest, &[On::Clock { id: 9, timeout: 0, absolute: false }], false);
        assert_eq!(other, Ok(Ok(vec![(100, Errno::Inval as u16, 0, 0)])));
    }

    #[test]
    fn streams_are_ready_and_bad_descriptors_are_reported() {
        let mut guest = Guest::with_input(&Policy::default(), Input::Bytes("abc".into()));
        let events =
            poll(&mut guest, &[On::Write(1), On::Write(2), On::Read(0), On::Read(99), relative(1 << 40)], false);
        let bad = Errno::BadF as u16;
        assert_eq!(events, Ok(Ok(vec![(100, 0, 2, 0), (101, 0, 2, 0), (102, 0, 1, 3), (103, bad, 1, 0)])));
        assert_eq!(poll(&mut guest, &[On::Write(0)], false), Ok(Ok(vec![(100, bad, 2, 0)])));
        assert_eq!(poll(&mut guest, &[On::Read(1)], true), Ok(Ok(vec![(100, bad, 1, 0)])));
    }

    #[test]
    fn input_to_come_is_waited_for() {
        struct Never;
        impl futures_core::Stream for Never {
            type Item = std::io::Result<bytes::Bytes>;
            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                std::task::Poll::Pending
            }
        }
        let mut guest = Guest::with_input(&Policy::default(), Input::Stream(Box::pin(Never)));
        assert_eq!(poll(&mut guest, &[On::Read(0)], false), Err(Stop::Wait(Wait { input: true, ..Wait::default() })));
        assert!(matches!(
            poll(&mut guest, &[On::Read(0), relative(1 << 40)], false),
            Err(Stop::Wait(Wait { until: Some(_), input: true, work: false }))
        ));
        assert_eq!(guest.try_read(0, &[1]), Err(Stop::Wait(Wait { input: true, ..Wait::default() })));
        assert_eq!(guest.try_read(0, &[0]), Ok(Ok(vec![])));
    }

    #[test]
    fn counts_are_bounded() {
        let mut guest = Guest::new(&Policy::default());
        let poll = |guest: &mut Guest, count| {
            guest.run(|context, memory, streams| {
                context.poll_oneoff(memory, streams, SUBSCRIPTIONS as i32, 0, count, RESULT as i32)
            })
        };
        assert_eq!(poll(&mut guest, 0), Ok(Errno::Inval));
        assert_eq!(poll(&mut guest, 1024), Ok(Errno::Success));
        assert_eq!(poll(&mut guest, 1025), Ok(Errno::Inval));
        assert_eq!(poll(&mut guest, -1), Ok(Errno::Inval));
    }
}

mod every_function {
    use super::*;
    use proptest::prelude::*;

    trait Argument: Sized {
        fn draw(bits: u64) -> Self;
    }

    impl Argument for i32 {
        fn draw(bits: u64) -> i32 {
            bits as i32
        }
    }

    impl Argument for i64 {
        fn draw(bits: u64) -> i64 {
            bits as i64
        }
    }

    type Call = (&'static str, fn(&mut Guest, &mut dyn Iterator<Item = u64>) -> Result<Errno, Stop>);

    macro_rules! calls {
        ($($module:literal {
            $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
        })*) => {
            [$({
                const CALLS: &[Call] = &[$((
                stringify!($method),
                |guest, arguments| {
                    let _ = &arguments;
                    $(let $parameter = <$type>::draw(arguments.next().unwrap());)*
                    guest.run(|context, memory, streams| context.$method(memory, streams, $($parameter),*))
                },
            )),*];
                CALLS
            }),*]
        };
    }

    const CALLS: [&[Call]; 2] = crate::for_each_wasi_function!(calls);

    #[test]
    fn both_modules_are_complete() {
        assert_eq!(CALLS.map(<[Call]>::len), [46, 45]);
    }

    #[test]
    fn exits_end_the_guest() {
        let mut guest = Guest::new(&Policy::default());
        assert_eq!(guest.run(|context, memory, streams| context.proc_exit(memory, streams, 3)), Err(Stop::Exit(3)));
    }

    #[test]
    fn no_descriptor_is_a_socket() {
        let mut guest = Guest::new(&Policy::default());
        assert_eq!(guest.call2(WasiContext::sock_shutdown, 1, 0), Errno::NotSock);
        assert_eq!(guest.call2(WasiContext::sock_shutdown, 99, 0), Errno::BadF);
    }

    /// Small numbers, which are descriptors, flags and addresses, and the edges of the types.
    fn argument() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0u64..8,
            3 => 0u64..5000,
            1 => any::<u64>(),
            1 => prop::sample::select(vec![u64::MAX, u64::from(u32::MAX), i64::MAX as u64, 1 << 31, 4095, 4096, 4097]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_guest_passes_nothing_panics(
            memory in proptest::collection::vec(prop_oneof![3 => 0u8..8, 1 => any::<u8>()], 4096),
            calls in proptest::collection::vec(
                (any::<prop::sample::Index>(), any::<bool>(), proptest::collection::vec(argument(), 11)),
                1..60,
            ),
        ) {
            let scratch = tempfile::tempdir().unwrap();
            std::fs::write(scratch.path().join("a"), "text").unwrap();
            let mut policy = read_write(scratch.path());
            policy.grants.directories.push(DirectoryGrant::read_only(scratch.path(), "/ro"));
            policy.quota.disk_bytes = Some(1 << 16);
            let mut guest = Guest::with_input(&policy, Input::Bytes("input".into()));
            guest.memory = memory;
            // A path for small addresses to hit.
            guest.memory[..4].copy_from_slice(b"a/b/");
            for (index, unstable, arguments) in calls {
                let calls = CALLS[usize::from(unstable)];
                let (name, call) = calls[index.index(calls.len())];
                match call(&mut guest, &mut arguments.into_iter()) {
                    Ok(_) | Err(Stop::Wait(_) | Stop::Yield | Stop::Exit(_) | Stop::Exceeded { .. }) => {}
                    Err(other) => prop_assert!(false, "{name}: {other:?}"),
                }
            }
            prop_assert!(guest.context.disk_bytes() <= 1 << 16);
        }
    }
}
