//! File systems that are not files: what lies in them is the kernel, other processes or devices.

use std::path::Path;

use palisade_core::{Error, ErrorKind, Result};

/// Their numbers (`linux/magic.h`) and names. A directory on one of them is granted to nobody: a file there may be the
/// memory of a process, a switch of the kernel or a terminal.
const SPECIAL: [(u64, &str); 19] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0x1cd1, "devpts"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x1980_0202, "mqueue"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x9584_58f6, "hugetlbfs"),
    (0x6e73_6673, "nsfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x6c6f_6f70, "binderfs"),
];

/// Refuses `directory` when it lies on such a file system.
///
/// # Errors
///
/// [`ErrorKind::InvalidPolicy`] naming the file system, [`ErrorKind::Io`] when it cannot be looked at.
pub(crate) fn refuse(directory: &Path) -> Result<()> {
    let place = directory.display();
    let found = rustix::fs::statfs(directory).map_err(|error| {
        Error::new(ErrorKind::Io, "prepare", format!("the granted directory {place} cannot be looked at"))
            .source(std::io::Error::from(error))
    })?;
    // The number has 32 bits; the field is signed and as wide as a word.
    let number = u64::from(found.f_type as u32);
    match SPECIAL.iter().find(|(special, _)| *special == number) {
        None => Ok(()),
        Some((_, name)) => {
            let message = format!("the granted directory {place} is on `{name}`, which holds no files of its own");
            let help = "grant a directory of ordinary files; copy there what the guest needs";
            Err(Error::new(ErrorKind::InvalidPolicy, "prepare", message).help(help))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_not_files_are_refused() {
        for special in ["/proc", "/proc/self", "/sys", "/dev/pts"] {
            if Path::new(special).exists() {
                let error = refuse(Path::new(special)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidPolicy, "{special}");
            }
        }
        refuse(&std::env::temp_dir()).unwrap();
        refuse(Path::new("/")).unwrap();
    }
}
