//! What all instances of a prepared module share.

use std::io;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt};
use palisade_core::{Access, Clocks, DirectoryGrant, Error, ErrorKind, Policy, Randomness, Result};
use palisade_filesystems::{Fuse, special_directory};

/// What the instances of a prepared module share: the granted directories, opened once, and everything else a policy
/// says about WASI.
#[derive(Debug)]
pub struct WasiConfig {
    pub(crate) program: String,
    /// As `NAME=value`.
    pub(crate) environment: Vec<String>,
    pub(crate) directories: Vec<Granted>,
    pub(crate) fuse: Fuse,
    pub(crate) clocks: Clocks,
    pub(crate) randomness: Randomness,
    pub(crate) open_files_max: u64,
    pub(crate) disk_bytes_max: u64,
}

/// An opened directory grant.
#[derive(Debug)]
pub(crate) struct Granted {
    /// Shared, so that a new instance costs no system call.
    pub(crate) dir: Arc<Dir>,
    /// What it lies on (`st_dev`).
    pub(crate) device: u64,
    pub(crate) guest: String,
    pub(crate) writable: bool,
}

impl WasiConfig {
    /// Opens the directories that `policy` grants. `program` becomes the first argument of every call.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when a granted directory does not exist, [`ErrorKind::Io`] when it cannot be opened,
    /// [`ErrorKind::InvalidPolicy`] when it lies on a special file system, or on FUSE without `fuse` granting that.
    pub fn new(program: &str, policy: &Policy, fuse: Fuse) -> Result<WasiConfig> {
        let directories = policy.grants.directories.iter().map(|grant| Granted::open(grant, fuse));
        Ok(WasiConfig {
            program: program.to_owned(),
            environment: policy.grants.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            directories: directories.collect::<Result<_>>()?,
            fuse,
            clocks: policy.grants.clocks,
            randomness: policy.grants.randomness,
            open_files_max: policy.quota.open_files.unwrap_or(u64::MAX),
            disk_bytes_max: policy.quota.disk_bytes.unwrap_or(u64::MAX),
        })
    }
}

impl Granted {
    fn open(grant: &DirectoryGrant, fuse: Fuse) -> Result<Granted> {
        let path = grant.host.display();
        let failed = |error: io::Error| {
            let (kind, message, help) = match error.kind() {
                io::ErrorKind::NotFound => (
                    ErrorKind::NotFound,
                    format!("granted directory `{path}` does not exist"),
                    "create the directory, or correct or remove its entry in `grants.directories`",
                ),
                io::ErrorKind::NotADirectory => (
                    ErrorKind::Io,
                    format!("granted directory `{path}` is not a directory"),
                    "grant the directory that contains the file",
                ),
                _ => (
                    ErrorKind::Io,
                    format!("granted directory `{path}` cannot be opened"),
                    "check that this process may read and enter the directory",
                ),
            };
            Error::new(kind, "prepare", message)
                .with_context("directory", path.to_string())
                .with_help(help)
                .with_source(error)
        };
        let dir = Dir::open_ambient_dir(&grant.host, ambient_authority()).map_err(failed)?;
        if let Some(name) = special_directory(&dir, fuse).map_err(failed)? {
            let help = match name {
                "fuse" => {
                    "grant a directory on the host's own disks, or let the host trust FUSE (`BackendOptions::fuse`)"
                }
                _ => "grant a directory of files: what the kernel shows there is not a guest's to see",
            };
            return Err(Error::new(
                ErrorKind::InvalidPolicy,
                "prepare",
                format!("granted directory `{path}` lies on {name}, which is never granted"),
            )
            .with_context("directory", path.to_string())
            .with_help(help));
        }
        let device = dir.dir_metadata().map_err(failed)?.dev();
        let writable = match grant.access {
            Access::ReadOnly => false,
            Access::ReadWrite => true,
        };
        Ok(Granted { dir: Arc::new(dir), device, guest: grant.guest.clone(), writable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        let mut policy = Policy::default();
        policy.grants.directories.push(DirectoryGrant::read_only(&missing, "/data"));
        let error = WasiConfig::new("guest", &policy, Fuse::Refused).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::NotFound, "prepare"));
        assert!(error.message().contains(missing.to_str().unwrap()), "{error}");
        assert!(error.help().is_some());
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_file_cannot_be_granted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut policy = Policy::default();
        policy.grants.directories.push(DirectoryGrant::read_only(file.path(), "/data"));
        assert_eq!(WasiConfig::new("guest", &policy, Fuse::Refused).unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn a_special_file_system_cannot_be_granted() {
        for (path, name) in [("/proc", "procfs"), ("/proc/self", "procfs"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
            let mut policy = Policy::default();
            policy.grants.directories.push(DirectoryGrant::read_only(path, "/data"));
            let error = WasiConfig::new("guest", &policy, Fuse::Granted).unwrap_err();
            assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidPolicy, "prepare"), "{path}");
            assert!(error.message().contains(path) && error.message().contains(name), "{error}");
        }
    }
}
