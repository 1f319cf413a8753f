//! Files of granted directories, checked the plain way: for tests, not against a guest that races.

use std::path::{Component, Path, PathBuf};

use palisade_core::{Access, Policy};

use crate::{Fault, Shared};

pub(crate) const SUCCESS: u32 = 0;
const BAD_DESCRIPTOR: u32 = 8;
pub(crate) const QUOTA: u32 = 19;
pub(crate) const TOO_MANY: u32 = 33;
const NOT_FOUND: u32 = 44;
const IO: u32 = 29;
const NOT_PERMITTED: u32 = 63;
const READ_ONLY: u32 = 69;

/// One operation of the probe `file`.
pub(crate) struct Request {
    pub(crate) operation: u32,
    directory: u32,
    other_directory: u32,
    path: String,
    other_path: String,
    pub(crate) data: Vec<u8>,
}

impl Request {
    pub(crate) fn parse(input: &[u8]) -> Option<Request> {
        let number = |at: usize| Some(u32::from_le_bytes(input.get(4 * at..4 * at + 4)?.try_into().ok()?));
        let (path_len, other_len) = (number(3)? as usize, number(4)? as usize);
        let text = |from: usize, len: usize| Some(String::from_utf8_lossy(input.get(from..from + len)?).into_owned());
        Some(Request {
            operation: number(0)?,
            directory: number(1)?,
            other_directory: number(2)?,
            path: text(24, path_len)?,
            other_path: text(24 + path_len, other_len)?,
            data: input.get(24 + path_len + other_len..)?.to_vec(),
        })
    }
}

/// Whether `path`, without links, lies on a file system of the kernel.
pub(crate) fn is_special(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/sys")
}

/// The host's path for a guest's, and whether it may be changed.
pub(crate) fn resolve(shared: &Shared, policy: &Policy, directory: u32, path: &str) -> Result<(PathBuf, Access), u32> {
    let index = directory.checked_sub(3).ok_or(BAD_DESCRIPTOR)? as usize;
    let grant = policy.grants.directories.get(index).ok_or(BAD_DESCRIPTOR)?;
    if path.starts_with('/') {
        return if shared.has(Fault::OpensAbsolute) { Ok((path.into(), grant.access)) } else { Err(NOT_PERMITTED) };
    }
    let root = grant.host.canonicalize().map_err(|_| NOT_FOUND)?;
    let mut at = root.clone();
    let components: Vec<_> = Path::new(path).components().collect();
    for (number, component) in components.iter().enumerate() {
        match component {
            Component::ParentDir => drop(at.pop()),
            other => at.push(other),
        }
        let is_last = number + 1 == components.len();
        if at.is_symlink() {
            at = at.canonicalize().map_err(|_| NOT_FOUND)?;
            let fault = if is_last { Fault::FollowsFileLinks } else { Fault::FollowsDirectoryLinks };
            if !at.starts_with(&root) && !shared.has(fault) {
                return Err(NOT_PERMITTED);
            }
        } else if matches!(component, Component::ParentDir)
            && !at.starts_with(&root)
            && !shared.has(Fault::FollowsParent)
        {
            return Err(NOT_PERMITTED);
        }
    }
    if is_special(&at) && !shared.has(Fault::FollowsIntoSpecialDirectories) {
        return Err(NOT_PERMITTED);
    }
    Ok((at, grant.access))
}

impl Request {
    /// Whether it makes an entry that is not there.
    pub(crate) fn makes_an_entry(&self, shared: &Shared, policy: &Policy) -> bool {
        match self.operation {
            1 => resolve(shared, policy, self.directory, &self.path).is_ok_and(|(path, _)| !path.exists()),
            4..=6 => true,
            _ => false,
        }
    }
}

/// Performs a request, writing at most `room` bytes of data. Returns what was read, or nothing.
pub(crate) fn perform(shared: &Shared, policy: &Policy, request: &Request, room: usize) -> Result<Vec<u8>, u32> {
    let (path, access) = resolve(shared, policy, request.directory, &request.path)?;
    let read_only = access == Access::ReadOnly;
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => IO,
    };
    let other = || {
        let (other, access) = resolve(shared, policy, request.other_directory, &request.other_path)?;
        if access == Access::ReadOnly && !shared.has(Fault::ChangesReadOnly) { Err(READ_ONLY) } else { Ok(other) }
    };
    match request.operation {
        0 => return std::fs::read(path).map_err(failed),
        1 if read_only && !shared.has(Fault::WritesReadOnly) => return Err(READ_ONLY),
        5 if read_only && !shared.has(Fault::LinksReadOnly) => return Err(READ_ONLY),
        2..=4 | 6 if read_only && !shared.has(Fault::ChangesReadOnly) => return Err(READ_ONLY),
        _ => {}
    }
    let done = match request.operation {
        1 => std::fs::write(path, &request.data[..room.min(request.data.len())]),
        2 => std::fs::remove_file(path),
        3 => std::fs::rename(path, other()?),
        4 => std::fs::create_dir(path),
        5 => std::fs::hard_link(path, other()?),
        6 => std::os::unix::fs::symlink(&request.other_path, path),
        _ => return Err(NOT_PERMITTED),
    };
    done.map(|()| Vec::new()).map_err(failed)
}
