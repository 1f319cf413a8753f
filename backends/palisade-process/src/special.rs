//! Directories that are not files: what lies in them is the kernel, other processes or devices.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use palisade_core::{Error, ErrorKind, Result};
use palisade_filesystems::{Fuse, special_directory};

/// Refuses `directory` when it lies on a special file system. What is mounted below it is not shown to guests.
///
/// # Errors
///
/// [`ErrorKind::InvalidPolicy`] naming the file system, [`ErrorKind::Io`] when it cannot be looked at.
pub(crate) fn refuse(directory: &Path, fuse: Fuse) -> Result<()> {
    let place = directory.display();
    let open = |flags: i32| File::options().read(true).custom_flags(flags | libc::O_DIRECTORY).open(directory);
    // One that cannot be read can be looked at all the same, unless it lies in memory.
    let found = open(0).or_else(|_| open(libc::O_PATH)).and_then(|opened| special_directory(&opened, fuse));
    let found = found.map_err(|error| {
        Error::new(ErrorKind::Io, "prepare", format!("the granted directory {place} cannot be looked at"))
            .with_source(error)
    })?;
    let Some(name) = found else { return Ok(()) };
    let message = format!("the granted directory {place} is on `{name}`, which holds no files of its own");
    let help = match name {
        "fuse" => {
            "whoever serves it may let the guest wait for ever; open the backend with `fuse` (`--fuse`) to allow it"
        }
        _ => "grant a directory of ordinary files; copy there what the guest needs",
    };
    Err(Error::new(ErrorKind::InvalidPolicy, "prepare", message).with_help(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_not_files_are_refused() {
        for special in ["/proc", "/proc/self", "/sys", "/dev", "/dev/pts"] {
            if Path::new(special).exists() {
                let error = refuse(Path::new(special), Fuse::Refused).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidPolicy, "{special}");
            }
        }
        refuse(&std::env::temp_dir(), Fuse::Refused).unwrap();
        refuse(Path::new("/"), Fuse::Refused).unwrap();
    }
}
