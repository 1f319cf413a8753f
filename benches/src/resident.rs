//! What this process holds, as the kernel counts it.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// What a process holds, with all its descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Resident memory, in bytes; memory shared between these processes counts once, as far as the kernel tells.
    pub memory_bytes: u64,
    /// Open file descriptors.
    pub files: u64,
    /// Threads.
    pub threads: u64,
    /// Processes.
    pub processes: u64,
}

/// What this process and its descendants hold now.
pub fn held() -> Held {
    let mut held = Held::default();
    let mut left = vec![std::process::id()];
    while let Some(process) = left.pop() {
        // One that ended meanwhile holds nothing.
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        held.processes += 1;
        for task in tasks.flatten() {
            held.threads += 1;
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        held.files += fs::read_dir(format!("/proc/{process}/fd")).map_or(0, |files| files.count() as u64);
        held.memory_bytes += if process == std::process::id() { resident(process) } else { proportional(process) };
    }
    // The descriptor by which this process's own were listed.
    held.files = held.files.saturating_sub(1);
    held
}

/// CPU time of this process, without its children: what a busy machine's other programs do not change much.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Allows this process as many open files as it may allow itself: each module holds some.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, what is there must do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn resident(process: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

/// A child's memory, with what it shares counted by its part.
fn proportional(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kibibytes.map_or_else(|| resident(process), |kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_seen() {
        let before = held();
        let file = fs::File::open("/proc/self/stat").expect("it opens");
        let memory = vec![1u8; 64 << 20];
        let after = held();
        assert!(after.files > before.files, "{before:?} {after:?}");
        assert!(after.memory_bytes >= before.memory_bytes + (60 << 20), "{before:?} {after:?}");
        assert!(after.threads >= 1 && after.processes >= 1);
        drop((file, memory));
    }
}
