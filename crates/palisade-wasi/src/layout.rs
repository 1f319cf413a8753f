//! How WASI's numbers and records look in a guest's memory.

use cap_std::fs::{FileType, Metadata, MetadataExt};
use palisade_core::Clocks;

use crate::errno::Fail;
use crate::{Errno, GuestMemory};

/// Kinds of file, as in `filetype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Filetype {
    Unknown = 0,
    BlockDevice = 1,
    CharacterDevice = 2,
    Directory = 3,
    RegularFile = 4,
    SocketStream = 6,
    SymbolicLink = 7,
}

impl From<FileType> for Filetype {
    fn from(file_type: FileType) -> Self {
        use cap_std::fs::FileTypeExt;
        if file_type.is_file() {
            Filetype::RegularFile
        } else if file_type.is_dir() {
            Filetype::Directory
        } else if file_type.is_symlink() {
            Filetype::SymbolicLink
        } else if file_type.is_block_device() {
            Filetype::BlockDevice
        } else if file_type.is_char_device() {
            Filetype::CharacterDevice
        } else if file_type.is_socket() {
            Filetype::SocketStream
        } else {
            Filetype::Unknown
        }
    }
}

impl From<rustix::fs::FileType> for Filetype {
    fn from(file_type: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType;
        match file_type {
            FileType::RegularFile => Filetype::RegularFile,
            FileType::Directory => Filetype::Directory,
            FileType::Symlink => Filetype::SymbolicLink,
            FileType::BlockDevice => Filetype::BlockDevice,
            FileType::CharacterDevice => Filetype::CharacterDevice,
            FileType::Socket => Filetype::SocketStream,
            _ => Filetype::Unknown,
        }
    }
}

/// Bits of `rights`.
pub(crate) mod rights {
    pub(crate) const FD_DATASYNC: u64 = 1 << 0;
    pub(crate) const FD_READ: u64 = 1 << 1;
    pub(crate) const FD_SEEK: u64 = 1 << 2;
    pub(crate) const FD_FDSTAT_SET_FLAGS: u64 = 1 << 3;
    pub(crate) const FD_SYNC: u64 = 1 << 4;
    pub(crate) const FD_TELL: u64 = 1 << 5;
    pub(crate) const FD_WRITE: u64 = 1 << 6;
    pub(crate) const FD_ADVISE: u64 = 1 << 7;
    pub(crate) const FD_ALLOCATE: u64 = 1 << 8;
    pub(crate) const PATH_CREATE_DIRECTORY: u64 = 1 << 9;
    pub(crate) const PATH_CREATE_FILE: u64 = 1 << 10;
    pub(crate) const PATH_LINK_SOURCE: u64 = 1 << 11;
    pub(crate) const PATH_LINK_TARGET: u64 = 1 << 12;
    pub(crate) const PATH_OPEN: u64 = 1 << 13;
    pub(crate) const FD_READDIR: u64 = 1 << 14;
    pub(crate) const PATH_READLINK: u64 = 1 << 15;
    pub(crate) const PATH_RENAME_SOURCE: u64 = 1 << 16;
    pub(crate) const PATH_RENAME_TARGET: u64 = 1 << 17;
    pub(crate) const PATH_FILESTAT_GET: u64 = 1 << 18;
    pub(crate) const PATH_FILESTAT_SET_TIMES: u64 = 1 << 20;
    pub(crate) const FD_FILESTAT_GET: u64 = 1 << 21;
    pub(crate) const FD_FILESTAT_SET_SIZE: u64 = 1 << 22;
    pub(crate) const FD_FILESTAT_SET_TIMES: u64 = 1 << 23;
    pub(crate) const PATH_SYMLINK: u64 = 1 << 24;
    pub(crate) const PATH_REMOVE_DIRECTORY: u64 = 1 << 25;
    pub(crate) const PATH_UNLINK_FILE: u64 = 1 << 26;
    pub(crate) const POLL_FD_READWRITE: u64 = 1 << 27;

    /// What can be done with a directory.
    pub(crate) const DIRECTORY: u64 = PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_LINK_SOURCE
        | PATH_LINK_TARGET
        | PATH_OPEN
        | FD_READDIR
        | PATH_READLINK
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_SYMLINK
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE
        | PATH_FILESTAT_GET
        | PATH_FILESTAT_SET_TIMES
        | FD_FILESTAT_GET
        | FD_FILESTAT_SET_TIMES;

    /// What can be done with a file.
    pub(crate) const FILE: u64 = FD_DATASYNC
        | FD_READ
        | FD_SEEK
        | FD_FDSTAT_SET_FLAGS
        | FD_SYNC
        | FD_TELL
        | FD_WRITE
        | FD_ADVISE
        | FD_ALLOCATE
        | FD_FILESTAT_GET
        | FD_FILESTAT_SET_SIZE
        | FD_FILESTAT_SET_TIMES
        | POLL_FD_READWRITE;

    /// What a read-only grant takes away.
    pub(crate) const MUTATING: u64 = PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_LINK_SOURCE
        | PATH_LINK_TARGET
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_SYMLINK
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE
        | PATH_FILESTAT_SET_TIMES
        | FD_FILESTAT_SET_TIMES
        | FD_FILESTAT_SET_SIZE
        | FD_ALLOCATE
        | FD_WRITE;
}

/// Bits of `fdflags`.
pub(crate) mod fdflags {
    pub(crate) const APPEND: u32 = 1;
    pub(crate) const NONBLOCK: u32 = 4;
    /// Data, read and full synchronisation.
    pub(crate) const SYNCS: u32 = 2 | 8 | 16;
    pub(crate) const ALL: u32 = 31;
}

/// Bits of `oflags`.
pub(crate) mod oflags {
    pub(crate) const CREATE: u32 = 1;
    pub(crate) const DIRECTORY: u32 = 2;
    pub(crate) const EXCLUSIVE: u32 = 4;
    pub(crate) const TRUNCATE: u32 = 8;
    pub(crate) const ALL: u32 = 15;
}

/// Which layout of records a guest expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Snapshot {
    /// `wasi_unstable`
    Zero,
    /// `wasi_snapshot_preview1`
    One,
}

/// A `filestat` before encoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filestat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) filetype: Filetype,
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) atim: u64,
    pub(crate) mtim: u64,
    pub(crate) ctim: u64,
}

impl Filestat {
    /// What a standard stream shows.
    pub(crate) const STREAM: Filestat =
        Filestat { dev: 0, ino: 0, filetype: Filetype::Unknown, nlink: 0, size: 0, atim: 0, mtim: 0, ctim: 0 };

    pub(crate) fn new(metadata: &Metadata, clocks: Clocks) -> Self {
        // Timestamps are clocks too: at full resolution they would tell what the coarse clocks hide.
        let time = |seconds: i64, nanos: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            clocks.quantize(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(nanos).unwrap_or(0)))
        };
        Filestat {
            dev: metadata.dev(),
            ino: metadata.ino(),
            filetype: metadata.file_type().into(),
            nlink: metadata.nlink(),
            size: metadata.len(),
            atim: time(metadata.atime(), metadata.atime_nsec()),
            mtim: time(metadata.mtime(), metadata.mtime_nsec()),
            ctim: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(crate) fn write(&self, memory: &mut GuestMemory<'_>, address: u32, snapshot: Snapshot) -> Result<(), Fail> {
        let mut bytes = [0; 64];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, self.dev);
        put(8, self.ino);
        put(16, self.filetype as u64);
        match snapshot {
            Snapshot::One => {
                put(24, self.nlink);
                put(32, self.size);
                put(40, self.atim);
                put(48, self.mtim);
                put(56, self.ctim);
                memory.write(address, &bytes)?;
            }
            Snapshot::Zero => {
                put(24, self.size);
                put(32, self.atim);
                put(40, self.mtim);
                put(48, self.ctim);
                let nlink = u32::try_from(self.nlink).unwrap_or(u32::MAX);
                bytes[20..24].copy_from_slice(&nlink.to_le_bytes());
                memory.write(address, &bytes[..56])?;
            }
        }
        Ok(())
    }
}

/// Writes an `fdstat`.
pub(crate) fn write_fdstat(
    memory: &mut GuestMemory<'_>,
    address: u32,
    filetype: Filetype,
    flags: u32,
    rights_base: u64,
    rights_inheriting: u64,
) -> Result<(), Fail> {
    let mut bytes = [0; 24];
    bytes[0] = filetype as u8;
    bytes[2..4].copy_from_slice(&(flags as u16).to_le_bytes());
    bytes[8..16].copy_from_slice(&rights_base.to_le_bytes());
    bytes[16..24].copy_from_slice(&rights_inheriting.to_le_bytes());
    Ok(memory.write(address, &bytes)?)
}

/// The size of a `dirent` without its name.
pub(crate) const DIRENT_BYTES: usize = 24;

/// Encodes a `dirent`.
pub(crate) fn dirent(next: u64, ino: u64, name_bytes: usize, filetype: Filetype) -> [u8; DIRENT_BYTES] {
    let mut bytes = [0; DIRENT_BYTES];
    bytes[0..8].copy_from_slice(&next.to_le_bytes());
    bytes[8..16].copy_from_slice(&ino.to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(name_bytes).unwrap_or(u32::MAX).to_le_bytes());
    bytes[20] = filetype as u8;
    bytes
}

/// Refuses bits that WASI does not define.
pub(crate) fn known_bits(value: i32, known: u32) -> Result<u32, Fail> {
    let value = value as u32;
    if value & !known == 0 { Ok(value) } else { Err(Errno::Inval.into()) }
}

/// `base + index * size` in a guest's address space.
pub(crate) fn element(base: u32, index: u32, size: u32) -> Result<u32, Fail> {
    index.checked_mul(size).and_then(|offset| base.checked_add(offset)).ok_or(Fail::Errno(Errno::Fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filestat_layouts_differ_in_the_link_count() {
        let stat =
            Filestat { dev: 1, ino: 2, filetype: Filetype::RegularFile, nlink: 3, size: 4, atim: 5, mtim: 6, ctim: 7 };
        let mut bytes = [0xff; 64];
        stat.write(&mut GuestMemory::new(&mut bytes), 0, Snapshot::One).unwrap();
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([0, 8, 16, 24, 32, 40, 48, 56].map(|at| word(&bytes, at)), [1, 2, 4, 3, 4, 5, 6, 7]);
        let mut bytes = [0xff; 64];
        stat.write(&mut GuestMemory::new(&mut bytes), 0, Snapshot::Zero).unwrap();
        assert_eq!([0, 8, 24, 32, 40, 48, 56].map(|at| word(&bytes, at)), [1, 2, 4, 5, 6, 7, u64::MAX]);
        assert_eq!((bytes[16], bytes[20..24].to_vec()), (4, vec![3, 0, 0, 0]));
    }

    #[test]
    fn addresses_do_not_wrap() {
        assert!(matches!(element(u32::MAX, 1, 4), Err(Fail::Errno(Errno::Fault))));
        assert!(matches!(element(0, u32::MAX, 48), Err(Fail::Errno(Errno::Fault))));
        assert_eq!(element(8, 2, 4).ok(), Some(16));
    }
}
