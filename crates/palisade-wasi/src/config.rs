//! What all instances of a prepared module share.

use std::io;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use palisade_core::{Access, Clocks, Error, ErrorKind, Policy, Randomness, Result};

/// What the instances of a prepared module share: the granted directories, opened once, and everything else a policy
/// says about WASI.
#[derive(Debug)]
pub struct WasiConfig {
    pub(crate) program: String,
    /// As `NAME=value`.
    pub(crate) environment: Vec<String>,
    pub(crate) directories: Vec<Granted>,
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
    pub(crate) guest: String,
    pub(crate) writable: bool,
}

impl WasiConfig {
    /// Opens the directories that `policy` grants. `program` becomes the first argument of every call.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when a granted directory does not exist, [`ErrorKind::Io`] when it cannot be opened.
    pub fn new(program: &str, policy: &Policy) -> Result<WasiConfig> {
        let mut directories = Vec::with_capacity(policy.grants.directories.len());
        for grant in &policy.grants.directories {
            let dir = Dir::open_ambient_dir(&grant.host, ambient_authority()).map_err(|error| {
                let path = grant.host.display();
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
                Error::new(kind, "prepare", message).context("directory", path).help(help).source(error)
            })?;
            let writable = match grant.access {
                Access::ReadOnly => false,
                Access::ReadWrite => true,
            };
            directories.push(Granted { dir: Arc::new(dir), guest: grant.guest.clone(), writable });
        }
        Ok(WasiConfig {
            program: program.to_owned(),
            environment: policy.grants.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            directories,
            clocks: policy.grants.clocks,
            randomness: policy.grants.randomness,
            open_files_max: policy.quota.open_files.unwrap_or(u64::MAX),
            disk_bytes_max: policy.quota.disk_bytes.unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::DirectoryGrant;

    #[test]
    fn a_missing_directory_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        let mut policy = Policy::default();
        policy.grants.directories.push(DirectoryGrant::read_only(&missing, "/data"));
        let error = WasiConfig::new("guest", &policy).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::NotFound, "prepare"));
        assert!(error.message().contains(missing.to_str().unwrap()), "{error}");
        assert!(error.help_text().is_some());
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_file_cannot_be_granted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut policy = Policy::default();
        policy.grants.directories.push(DirectoryGrant::read_only(file.path(), "/data"));
        assert_eq!(WasiConfig::new("guest", &policy).unwrap_err().kind(), ErrorKind::Io);
    }
}
