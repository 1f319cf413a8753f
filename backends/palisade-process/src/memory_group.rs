//! Memory bounded by control groups, where this host may make them: version 1 and 2.
//!
//! A group counts everything a guest makes the kernel hold, and the kernel says when it had to end a guest for it. Groups are
//! made when they are first needed and used again: making one costs several times what joining one does.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::control_groups::{PREFIX, Version, candidates, sweep};
use crate::cpu_group::CpuGroup;

/// Most groups kept for later.
const KEPT_MAX: usize = 64;
/// Where groups can be made, and those that are free.
#[derive(Debug)]
pub(crate) struct MemoryGroups {
    version: Version,
    parent: PathBuf,
    free: Mutex<Vec<PathBuf>>,
    made: AtomicU64,
}

impl MemoryGroups {
    /// Finds a place to make groups at, by making one. `None` when there is none.
    pub(crate) fn find() -> Option<Arc<MemoryGroups>> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&own, &mounts, "memory").into_iter().find_map(|(version, parent)| {
            let groups = Arc::new(MemoryGroups { version, parent, free: Mutex::default(), made: AtomicU64::new(0) });
            sweep(&groups.parent);
            // A group that can be made but bounds nothing is no group.
            let group = groups.take(1 << 30).ok()?;
            drop(group);
            Some(groups)
        })
    }

    /// Version of the interface.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// An empty group that holds at most `bytes`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> io::Result<MemoryGroup> {
        loop {
            let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_new = kept.is_none();
            let path = match kept {
                Some(path) => path,
                None => {
                    let number = self.made.fetch_add(1, Ordering::Relaxed);
                    let path = self.parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
                    fs::create_dir(&path)?;
                    path
                }
            };
            let mut group = MemoryGroup { groups: Arc::clone(self), kills_before: 0, is_good: false, path };
            match group.bound(bytes) {
                Ok(()) => {
                    group.is_good = true;
                    group.kills_before = group.kills();
                    return Ok(group);
                }
                // One that was kept may have been removed by somebody else since: it is forgotten, and another made.
                Err(_) if !is_new => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether this machine swaps.
fn swaps() -> bool {
    // A line of headings, then one for each place.
    fs::read_to_string("/proc/swaps").is_ok_and(|places| places.lines().count() > 1)
}

impl Drop for MemoryGroups {
    fn drop(&mut self) {
        for path in self.free.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// A group for one instance. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    groups: Arc<MemoryGroups>,
    path: PathBuf,
    kills_before: u64,
    /// It bounds what it should, and can be used again.
    is_good: bool,
}

impl MemoryGroup {
    /// Bounds memory and swap together to `bytes`.
    fn bound(&self, bytes: u64) -> io::Result<()> {
        let limit = bytes.to_string();
        // A bound on memory alone is none where the rest goes to swap. Without the file the kernel does not count swap.
        let without_swap = |file: &str, limit: &str| match self.write(file, limit) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.path.is_dir() && !swaps() {
                true => Ok(()),
                false => Err(error),
            },
            written => written,
        };
        match self.groups.version {
            Version::One => {
                // With a limit on memory and swap together in place, the one on memory cannot rise above it.
                let _ = self.write("memory.memsw.limit_in_bytes", "-1");
                self.write("memory.limit_in_bytes", &limit)?;
                without_swap("memory.memsw.limit_in_bytes", &limit)?;
                // What an earlier guest left in the page cache is nobody's any more; what stays is counted again.
                let _ = self.write("memory.force_empty", "0");
                self.write("memory.max_usage_in_bytes", "0")
            }
            Version::Two => {
                self.write("memory.max", &limit)?;
                without_swap("memory.swap.max", "0")?;
                // Where the kernel does not end a group as a whole, the end of its first process does.
                let _ = self.write("memory.oom.group", "1");
                // Where the kernel cannot reset the peak, a group serves once.
                let _ = self.write("memory.peak", "0");
                Ok(())
            }
        }
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.path.join(file), text)
    }

    fn number(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        value.trim().parse().unwrap_or(0)
    }

    /// A count of the CPU time of what will be in the group, where the same groups count that.
    pub(crate) fn cpu(&self) -> Option<io::Result<CpuGroup>> {
        (self.groups.version == Version::Two).then(|| CpuGroup::at(Version::Two, &self.path))
    }

    /// Moves a process that does nothing yet into the group.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn attach(&self, pid: i32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    fn kills(&self) -> u64 {
        match self.groups.version {
            Version::One => self.number("memory.oom_control", "oom_kill "),
            Version::Two => self.number("memory.events", "oom_kill "),
        }
    }

    /// Whether the kernel ended a process of the group for its memory.
    pub(crate) fn overran(&self) -> bool {
        self.kills() > self.kills_before
    }

    /// Memory the group holds now, in bytes.
    pub(crate) fn now_bytes(&self) -> u64 {
        let file = match self.groups.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        fs::read_to_string(self.path.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Memory in which the kernel keeps what files hold, in bytes. Files of a scratch directory are memory and do not count here.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.number("memory.stat", "inactive_file ").saturating_add(self.number("memory.stat", "active_file "))
    }

    /// The file with the most memory the group held at once, in bytes.
    pub(crate) fn peak_file(&self) -> PathBuf {
        self.path.join(match self.groups.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let mut free = self.groups.free.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_good && free.len() < KEPT_MAX && self.groups.version == Version::One {
            free.push(path);
        } else {
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_used_again_and_removed_in_the_end() {
        // An ordinary user has no place for groups; then there is nothing to leave behind.
        let Some(groups) = MemoryGroups::find() else { return };
        let first = groups.take(1 << 20).unwrap();
        let path = first.path.clone();
        assert!(path.is_dir() && !first.overran());
        drop(first);
        let second = groups.take(1 << 21).unwrap();
        assert_eq!(second.path == path, groups.version() == Version::One);
        let second_path = second.path.clone();
        drop(second);
        // One that somebody else removed meanwhile is made anew, and not offered for ever.
        let _ = fs::remove_dir(&second_path);
        for _ in 0..3 {
            assert!(groups.take(1 << 20).unwrap().path.is_dir());
        }
        drop(groups);
        assert!(!path.exists());
    }
}
