//! Tells file systems that hold files from those that are doors into the kernel or another process.
//!
//! A granted directory is given away with all that is in it. What lies on procfs, sysfs or a control group is not content
//! of a directory but a part of the host: its memory, its settings, its devices. No policy may grant that, so every backend
//! asks here when it opens a granted directory, and whenever a guest opens something below one.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType, Mode, OFlags, fstatfs, openat};

/// Whether directories on FUSE may be granted. A process of some user answers for each access, and may let it wait for
/// ever: no deadline of a guest interrupts that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fuse {
    /// They are refused like special file systems.
    #[default]
    Refused,
    /// Whoever runs the host trusts the processes behind them. virtiofs counts as FUSE as well.
    Granted,
}

impl From<bool> for Fuse {
    /// Whether it is granted.
    fn from(granted: bool) -> Fuse {
        if granted { Fuse::Granted } else { Fuse::Refused }
    }
}

/// Names and magic numbers (`f_type`) of special file systems.
const SPECIAL: [(u32, &str); 40] = [
    (0x0000_9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x5a3c_69f0, "apparmorfs"),
    (0x0000_1cd1, "devpts"),
    (0xcafe_4a11, "bpf"),
    (0x1980_0202, "mqueue"),
    (0x6165_676c, "pstore"),
    (0x6265_6570, "configfs"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6573_5543, "fusectl"),
    // Its pages are reserved for others, and no memory quota counts them.
    (0x9584_58f6, "hugetlbfs"),
    (0x6e73_6673, "nsfs"),
    (0x5049_4446, "pidfs"),
    (0x5049_5045, "pipefs"),
    (0x534f_434b, "sockfs"),
    (0x0904_1934, "anon_inodefs"),
    (0x474d_454d, "guest_memfs"),
    (0x5345_434d, "secretmem"),
    (0x444d_4142, "dma-buf"),
    (0x454d_444d, "devmem"),
    (0x6759_6969, "rpc_pipefs"),
    (0x6e66_7364, "nfsd"),
    (0x0765_5821, "resctrl"),
    (0xabba_1974, "xenfs"),
    (0x6c6f_6f70, "binderfs"),
    (0x6264_6576, "bdev"),
    (0x6461_7866, "dax"),
    // Opening a directory makes the host mount something, and waits for it.
    (0x0000_0187, "autofs"),
    (0x0000_9fa2, "usbdevfs"),
    (0x0a64_7361, "functionfs"),
    (0x0000_9fa1, "openpromfs"),
    (0x0bad_1dea, "futexfs"),
];
const FUSE: u32 = 0x6573_5546;
/// tmpfs and ramfs: a directory of files, unless it is the host's `/dev`, which cannot be told apart by its number.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// Entries of a directory that are looked at for device nodes; a `/dev` has them among its first.
const ENTRIES_MAX: usize = 4096;

/// The special file system that `file` lies on, by name; `None` when it is an ordinary one. `file` may be open with
/// `O_PATH`.
///
/// # Errors
///
/// The operating system's.
///
/// ```
/// use palisade_filesystems::{Fuse, special};
///
/// let status = std::fs::File::open("/proc/self/status")?;
/// assert_eq!(special(&status, Fuse::Refused)?, Some("procfs"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn special(file: impl AsFd, fuse: Fuse) -> io::Result<Option<&'static str>> {
    Ok(name(magic(file)?, fuse))
}

/// As [`special`], for a directory that a guest is to reach others from: it must not be a directory of devices either,
/// such as `/dev`.
///
/// # Errors
///
/// The operating system's. `directory` may be open with `O_PATH`, but must be readable where it lies in memory.
pub fn special_directory(directory: impl AsFd, fuse: Fuse) -> io::Result<Option<&'static str>> {
    let magic = magic(&directory)?;
    if let Some(name) = name(magic, fuse) {
        return Ok(Some(name));
    }
    if IN_MEMORY.contains(&magic) && holds_devices(directory)? { Ok(Some("devtmpfs")) } else { Ok(None) }
}

fn name(magic: u32, fuse: Fuse) -> Option<&'static str> {
    if magic == FUSE && fuse == Fuse::Refused {
        return Some("fuse");
    }
    SPECIAL.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

fn magic(file: impl AsFd) -> io::Result<u32> {
    // The field's type differs between architectures; the numbers have 32 bits.
    Ok(fstatfs(file)?.f_type as u32)
}

fn holds_devices(directory: impl AsFd) -> io::Result<bool> {
    // A description of its own, since the given one may be for paths only.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let listing = Dir::new(openat(directory, c".", flags, Mode::empty())?)?;
    for entry in listing.take(ENTRIES_MAX) {
        if matches!(entry?.file_type(), FileType::CharacterDevice | FileType::BlockDevice) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs::File;

    #[test]
    fn an_ordinary_directory_is_not_special() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = File::open(scratch.path()).unwrap();
        assert_eq!(special_directory(&directory, Fuse::Granted).unwrap(), None);
        std::fs::write(scratch.path().join("file"), "text").unwrap();
        assert_eq!(special(File::open(scratch.path().join("file")).unwrap(), Fuse::Granted).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_makes_up_is_special() {
        for (path, name) in [("/proc", "procfs"), ("/proc/self/maps", "procfs"), ("/sys", "sysfs")] {
            assert_eq!(special(File::open(path).unwrap(), Fuse::Granted).unwrap(), Some(name), "{path}");
        }
        assert!(special_directory(File::open("/dev").unwrap(), Fuse::Granted).unwrap().is_some());
    }

    #[test]
    fn a_path_descriptor_is_enough() {
        use rustix::fs::CWD;
        let open = |path: &str| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(special(open("/proc/self/mem"), Fuse::Granted).unwrap(), Some("procfs"));
        assert_eq!(special_directory(open("/dev"), Fuse::Granted).unwrap(), Some("devtmpfs"));
    }

    #[test]
    fn fuse_is_as_configured() {
        assert_eq!((name(FUSE, Fuse::Refused), name(FUSE, Fuse::Granted)), (Some("fuse"), None));
    }

    #[test]
    fn no_number_is_listed_twice() {
        let numbers: BTreeSet<_> = SPECIAL.iter().map(|(number, _)| *number).chain(IN_MEMORY).chain([FUSE]).collect();
        assert_eq!(numbers.len(), SPECIAL.len() + IN_MEMORY.len() + 1);
    }
}
