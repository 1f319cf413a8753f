//! Files that only their owner may read, whatever the umask.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use palisade_core::{Error, ErrorKind, Result};

const FILE_MODE: u32 = 0o600;
/// What nobody but the owner may have on a file.
const OTHERS: u32 = 0o077;

/// Opens a file for writing, made when it is not there. What is in it stays.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    // The umask may have taken rights of the owner's.
    if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    }
    Ok(file)
}

/// Makes a new file; fails when it is there.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// Flushes the name of a file, which is in its folder.
pub(crate) fn sync_name(file: &Path) -> io::Result<()> {
    File::open(folder_of(file))?.sync_all()
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a file that others may read or write, and a folder in which others may replace it. What is not there is fine.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`].
pub(crate) fn check(file: &Path, operation: &'static str) -> Result<()> {
    let mode = |path: &Path| fs::metadata(path).map(|metadata| metadata.permissions().mode()).ok();
    let refused = |path: &Path, mode: u32, message: &'static str, help: String| {
        Err(Error::new(ErrorKind::InvalidInput, operation, message)
            .with_context("path", path.display())
            .with_context("mode", format!("{:03o}", mode & 0o7777))
            .with_help(help))
    };
    if let Some(mode) = mode(file)
        && mode & OTHERS != 0
    {
        let help = format!("chmod 600 {}, and think about who may have read it", file.display());
        return refused(file, mode, "others may read or change the file", help);
    }
    let folder = folder_of(file);
    // With the sticky bit, others may make files there and replace none.
    if let Some(mode) = mode(folder)
        && mode & 0o022 != 0
        && mode & 0o1000 == 0
    {
        let help = format!("chmod 700 {}", folder.display());
        return refused(folder, mode, "others may replace files in the folder", help);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_its_owners_and_what_is_wider_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        drop(create_new(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert!(check(&path, "open").is_ok());
        for wide in [0o640, 0o604, 0o620, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(wide)).unwrap();
            let error = check(&path, "open").unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        drop(open(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        for (wide, is_refused) in [(0o770, true), (0o707, true), (0o755, false), (0o1777, false)] {
            fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(wide)).unwrap();
            assert_eq!(check(&path, "open").is_err(), is_refused, "{wide:o}");
        }
        assert!(check(&folder.path().join("not there"), "open").is_ok());
    }
}
