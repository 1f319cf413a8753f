//! CPU time counted by control groups, where this host may make them: over all processes of a guest, also those that ended
//! and that nobody waited for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::control_groups::{PREFIX, Version, candidates, sweep};

/// Where groups can be made.
#[derive(Debug)]
pub(crate) struct CpuGroups {
    version: Version,
    parent: PathBuf,
    made: AtomicU64,
}

impl CpuGroups {
    /// Finds a place to make groups at, by making one. `None` when there is none.
    pub(crate) fn find() -> Option<CpuGroups> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&own, &mounts, "cpuacct").into_iter().find_map(|(version, parent)| {
            sweep(&parent);
            let groups = CpuGroups { version, parent, made: AtomicU64::new(0) };
            groups.make().ok()?;
            Some(groups)
        })
    }

    /// Makes an empty group.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn make(&self) -> io::Result<CpuGroup> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.parent.join(format!("{PREFIX}{}-cpu-{number}", std::process::id()));
        fs::create_dir(&path)?;
        match CpuGroup::at(self.version, &path) {
            Ok(mut group) => {
                group.own = Some(path);
                Ok(group)
            }
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }
}

/// A group that counts the CPU time of one instance.
#[derive(Debug)]
pub(crate) struct CpuGroup {
    version: Version,
    /// Removed in the end, when it was made for this.
    own: Option<PathBuf>,
    counter: File,
    before: Duration,
}

impl CpuGroup {
    /// The count of the group at `path`, from now on.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn at(version: Version, path: impl AsRef<Path>) -> io::Result<CpuGroup> {
        let counter = File::open(path.as_ref().join(match version {
            Version::One => "cpuacct.usage",
            Version::Two => "cpu.stat",
        }))?;
        let mut group = CpuGroup { version, own: None, counter, before: Duration::ZERO };
        group.before = group.used()?;
        Ok(group)
    }

    /// Moves a process that has no children into the group, if it is not in it anyway.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn attach(&self, pid: i32) -> io::Result<()> {
        self.own.as_ref().map_or(Ok(()), |path| fs::write(path.join("cgroup.procs"), pid.to_string()))
    }

    /// CPU time of everything that was in the group.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn used(&self) -> io::Result<Duration> {
        let mut text = [0; 512];
        let len = self.counter.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..len]);
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| io::ErrorKind::InvalidData.into());
        let total = match self.version {
            Version::One => number(&text).map(Duration::from_nanos),
            Version::Two => {
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                line.map_or(Err(io::ErrorKind::InvalidData.into()), number).map(Duration::from_micros)
            }
        };
        total.map(|total| total.saturating_sub(self.before))
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_counts_what_runs_in_it_and_is_removed() {
        // An ordinary user has no place for groups.
        let Some(groups) = CpuGroups::find() else { return };
        let group = groups.make().unwrap();
        let path = group.own.clone().unwrap();
        assert_eq!(group.used().unwrap(), Duration::ZERO);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read go; i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        group.attach(child.id().cast_signed()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(group.used().unwrap() > Duration::from_millis(1), "{:?}", group.used());
        drop(group);
        assert!(!path.exists());
    }
}
