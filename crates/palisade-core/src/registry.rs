//! Backends announce themselves here; linking a backend's crate is enough to find it by name.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::{Error, ErrorKind, Result, Sandbox};

/// One backend. Submit it with `palisade_core::inventory::submit!`.
#[derive(Debug)]
pub struct BackendRegistration {
    /// Name for `--backend` and for [`backend`].
    pub name: &'static str,
    /// One line about what it is.
    pub summary: &'static str,
    /// Opens it.
    pub open: fn(&BackendOptions) -> Result<Arc<dyn Sandbox>>,
    /// Finds out, by trying, what this machine lets the backend enforce.
    pub probe: fn(&BackendOptions) -> Vec<Finding>,
}

inventory::collect!(BackendRegistration);

/// What is common to opening any backend.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BackendOptions {
    /// Where compiled code is kept that outlives the process. `None`: none is kept.
    pub cache: Option<CacheOptions>,
    /// Most instances alive at once. `None`: the backend's default.
    pub instances_max: Option<u32>,
    /// Interpreters that policies may name besides those that only root and this process's user can have installed: by
    /// their paths, or by the last part of a path. They are executed with whatever rights their jail leaves them, and must
    /// be the host's own.
    pub interpreters: Vec<PathBuf>,
    /// Whether directories on FUSE may be granted. A process of some user answers for each access there and may let it
    /// wait for ever, which no deadline interrupts; so it is `false` unless the host trusts those processes. virtiofs
    /// counts as FUSE.
    pub fuse: bool,
    /// A program that compiles hostile artifacts in a process of its own, with bounds on its memory and time, so that giving
    /// up ends the work. `None`: they are compiled in this process, on a thread that nothing ends, which is for hosts that
    /// trust their artifacts. Each backend says what the program has to do; the `palisade` command is one.
    pub compiler: Option<PathBuf>,
}

impl BackendOptions {
    /// The defaults: nothing kept on disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps compiled code in `directory`, proven by the key in `key_file`. Both are made when they do not exist.
    #[must_use]
    pub fn cache(mut self, directory: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        self.cache = Some(CacheOptions { directory: directory.into(), key_file: key_file.into() });
        self
    }

    /// Lists an interpreter by its path.
    #[must_use]
    pub fn interpreter(mut self, path: impl Into<PathBuf>) -> Self {
        self.interpreters.push(path.into());
        self
    }

    /// Sets the most instances alive at once.
    #[must_use]
    pub fn instances_max(mut self, instances: u32) -> Self {
        self.instances_max = Some(instances);
        self
    }

    /// Has artifacts compiled by `program`.
    #[must_use]
    pub fn compiler(mut self, program: impl Into<PathBuf>) -> Self {
        self.compiler = Some(program.into());
        self
    }

    /// Lets directories on FUSE be granted, or not.
    #[must_use]
    pub fn fuse(mut self, granted: bool) -> Self {
        self.fuse = granted;
        self
    }
}

/// Where compiled code is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// Directory of the compiled code.
    pub directory: PathBuf,
    /// The key that proves compiled code ours. Whoever can write both can make this host run anything, so it lies in
    /// another directory, which only its owner can read.
    pub key_file: PathBuf,
}

/// One thing found out about this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was tried.
    pub subject: String,
    /// How it went.
    pub status: FindingStatus,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty when there is nothing to do.
    pub advice: String,
}

/// How a probe of this machine went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingStatus {
    /// Works.
    Ok,
    /// Works, with something less than could be; nothing promised is lost.
    Degraded,
    /// Does not work; what needs it is refused.
    Missing,
}

/// All linked backends, sorted by name.
pub fn backends() -> Vec<&'static BackendRegistration> {
    let mut all: Vec<_> = inventory::iter::<BackendRegistration>().collect();
    all.sort_by_key(|registration| registration.name);
    all
}

/// The linked backend `name`.
///
/// # Errors
///
/// [`ErrorKind::NotFound`], listing those that are linked.
pub fn backend(name: &str) -> Result<&'static BackendRegistration> {
    let all = backends();
    all.iter().find(|registration| registration.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|registration| registration.name).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Error::new(ErrorKind::NotFound, "open", format!("no backend `{name}` is linked into this program"))
            .with_context("backend", name)
            .with_help(format!("linked backends: {known}"))
    })
}

/// Opens the linked backend `name`.
///
/// # Errors
///
/// As [`backend`], and those of the backend.
pub fn open(name: &str, options: &BackendOptions) -> Result<Arc<dyn Sandbox>> {
    (backend(name)?.open)(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_is_named_with_those_that_exist() {
        let error = backend("wasmtim").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("`wasmtim`") && error.to_string().contains("none"), "{error}");
    }
}
