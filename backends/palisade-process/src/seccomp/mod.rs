//! The system call filter: rules as data, compiled to a balanced tree.

mod policy;
mod program;

use std::collections::BTreeMap;

use palisade_core::{Clocks, Policy};

use policy::Group;
use program::{Action, Decision};

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;

/// Whether there is a table for this machine's architecture.
pub(crate) const ARCH_SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// A stage of an instance's life, each with rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// An executable, from before it is executed to its end.
    Executable,
    /// A shared library while it is loaded; its constructors run here.
    LibraryLoading,
    /// A shared library afterwards. Adds to the filter of the stage before; the stricter answer counts.
    LibraryLocked,
    /// The self-test: the rules of an executable, but what kills only fails, so that all of it can be tried.
    SelfTest,
}

fn groups(stage: Stage, policy: &Policy) -> Vec<&'static Group> {
    let clocks = match policy.grants.clocks {
        Clocks::Fine => &policy::CLOCKS_FINE,
        Clocks::Coarse { .. } => &policy::CLOCKS_COARSE,
    };
    let mut groups = vec![&policy::COMPUTE, clocks];
    let files =
        stage != Stage::LibraryLocked || !policy.grants.directories.is_empty() || policy.grants.scratch.is_some();
    if files {
        groups.push(&policy::FILES);
    }
    if stage != Stage::LibraryLocked {
        groups.extend([&policy::LOAD_CODE, &policy::START]);
    }
    if policy.quota.threads != Some(0) {
        groups.push(&policy::THREADS);
    }
    let processes = policy.grants.child_processes && policy.quota.processes != Some(0);
    if processes && stage == Stage::Executable {
        groups.push(&policy::PROCESSES);
    }
    groups.push(&policy::FORBIDDEN);
    if stage == Stage::LibraryLoading {
        groups.push(&policy::LOCK);
    }
    groups
}

fn rules(stage: Stage, policy: &Policy) -> Vec<(u32, Decision)> {
    let mut rules = BTreeMap::new();
    for group in groups(stage, policy) {
        for (numbers, decision) in group.0 {
            for number in *numbers {
                let mut decision = *decision;
                if stage == Stage::SelfTest && decision == Decision::always(Action::Kill) {
                    decision = Decision::always(Action::Errno(libc::EPERM));
                }
                rules.insert(u32::try_from(*number).unwrap_or(u32::MAX), decision);
            }
        }
    }
    rules.into_iter().collect()
}

/// The filter of `stage` under `policy`, as bytes of an array of `sock_filter`.
pub(crate) fn filter(stage: Stage, policy: &Policy) -> Vec<u8> {
    program::encode(&program::compile(ARCH, &rules(stage, policy), Action::Errno(libc::ENOSYS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use program::{compile, evaluate};

    const STAGES: [Stage; 4] = [Stage::Executable, Stage::LibraryLoading, Stage::LibraryLocked, Stage::SelfTest];

    fn policies() -> Vec<Policy> {
        let mut all = Vec::new();
        for (fine, threads, processes, directories) in
            (0..16).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0))
        {
            let mut policy = Policy::default();
            if fine {
                policy.grants.clocks = Clocks::Fine;
            }
            if threads {
                policy.quota.threads = Some(4);
            }
            policy.grants.child_processes = processes;
            policy.quota.processes = processes.then_some(2);
            if directories {
                policy.grants.directories.push(palisade_core::DirectoryGrant::read_only("/a", "/a"));
            }
            all.push(policy);
        }
        all
    }

    /// What the rules say, without any tree.
    fn expected(rules: &[(u32, Decision)], number: u32, arguments: [u64; 6]) -> u32 {
        let Some((_, decision)) = rules.iter().find(|rule| rule.0 == number) else {
            return if number >= 0x4000_0000 { Action::Kill } else { Action::Errno(libc::ENOSYS) }.value();
        };
        let holds = |c: &program::Condition| {
            let argument = arguments[usize::from(c.argument)];
            argument as u32 & c.mask == c.value && (!c.wide || argument >> 32 == 0)
        };
        let case = decision.cases.iter().find(|(conditions, _)| conditions.iter().all(holds));
        case.map_or(decision.otherwise, |(_, action)| *action).value()
    }

    /// Values next to those the rules compare with, in every argument the rules look at, and with upper bits set.
    fn edges(decision: &Decision) -> Vec<[u64; 6]> {
        let mut all = vec![[0; 6], [u64::MAX; 6]];
        for (conditions, _) in decision.cases {
            let mut fitting = [0u64; 6];
            for c in *conditions {
                fitting[usize::from(c.argument)] |= u64::from(c.value);
            }
            all.push(fitting);
            for c in *conditions {
                let at = usize::from(c.argument);
                for value in [fitting[at] + 1, fitting[at].wrapping_sub(1), !fitting[at], fitting[at] | 1 << 32] {
                    let mut edge = fitting;
                    edge[at] = value;
                    all.push(edge);
                }
                for bit in 0..32 {
                    let mut edge = fitting;
                    edge[at] ^= 1 << bit;
                    all.push(edge);
                }
            }
        }
        all
    }

    #[test]
    fn the_tree_says_what_the_rules_say_for_every_number_and_edge() {
        let mut evaluated = 0;
        for policy in policies() {
            for stage in STAGES {
                let rules = rules(stage, &policy);
                let program = compile(ARCH, &rules, Action::Errno(libc::ENOSYS));
                let numbers = (0..1024).chain([0x3fff_ffff, 0x4000_0000, 0x4000_0001, u32::MAX]);
                for number in numbers {
                    let decision = rules.iter().find(|rule| rule.0 == number).map(|rule| rule.1);
                    for arguments in decision.map_or(vec![[0; 6], [u64::MAX; 6]], |decision| edges(&decision)) {
                        let (said, meant) =
                            (evaluate(&program, ARCH, number, arguments), expected(&rules, number, arguments));
                        assert_eq!(said, meant, "{stage:?} number {number} arguments {arguments:x?}");
                        evaluated += 1;
                    }
                }
            }
        }
        assert!(evaluated > 100_000, "{evaluated}");
    }

    #[test]
    fn other_architectures_are_killed() {
        const I386: u32 = 0x4000_0003;
        const AARCH64: u32 = 0xc000_00b7;
        for stage in STAGES {
            let program = compile(ARCH, &rules(stage, &Policy::default()), Action::Errno(libc::ENOSYS));
            for arch in [0, I386, AARCH64, u32::MAX] {
                for number in 0..1024 {
                    assert_eq!(evaluate(&program, arch, number, [0; 6]), Action::Kill.value());
                }
            }
        }
    }

    #[test]
    fn what_matters_is_decided_as_meant() {
        let says = |stage, policy: &Policy, number: libc::c_long, arguments| {
            evaluate(&compile(ARCH, &rules(stage, policy), Action::Errno(libc::ENOSYS)), ARCH, number as u32, arguments)
        };
        let policy = Policy::default();
        let (allow, kill) = (Action::Allow.value(), Action::Kill.value());
        for stage in [Stage::Executable, Stage::LibraryLoading, Stage::LibraryLocked] {
            assert_eq!(says(stage, &policy, libc::SYS_read, [0; 6]), allow);
            assert_eq!(says(stage, &policy, libc::SYS_ptrace, [0; 6]), kill);
            // Writable and executable memory, in any way.
            assert_ne!(says(stage, &policy, libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_clone, [17, 0, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_execve, [0; 6]), allow);
            // TIOCSTI, also with a bit the kernel ignores.
            assert_ne!(says(stage, &policy, libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_ioctl, [0, 0x1_0000_5412, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_socket, [2, 1, 0, 0, 0, 0]), allow);
        }
        // Huge pages, and flags that came after this table, in every stage and whatever is granted.
        let mut writable = Policy::default();
        writable.grants.directories.push(palisade_core::DirectoryGrant::read_write("/a", "/a"));
        for (stage, policy) in STAGES.into_iter().flat_map(|stage| [(stage, &policy), (stage, &writable)]) {
            for flags in [0x40022, 0x4_0022 | 21 << 26, 0x22 | 1 << 27, 0x22 | 1 << 31] {
                assert_ne!(says(stage, policy, libc::SYS_mmap, [0, 4096, 3, flags, u64::MAX, 0]), allow, "{stage:?}");
                assert_ne!(says(stage, policy, libc::SYS_mmap, [0, 4096, 5, flags, 3, 0]), allow, "{stage:?}");
            }
            assert_eq!(says(stage, policy, libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0]), allow);
            // Groups of processes; set-id bits, also with bits the kernel ignores.
            assert_eq!(says(stage, policy, libc::SYS_kill, [1, 9, 0, 0, 0, 0]), allow);
            for pid in [0, u64::MAX, 1 << 31, 0xffff_ffff_0000_0000] {
                assert_ne!(says(stage, policy, libc::SYS_kill, [pid, 9, 0, 0, 0, 0]), allow, "{stage:?}");
            }
            for mode in [0o4755u64, 0o2755, 0o6000, 0x1_0000_0800] {
                assert_ne!(says(stage, policy, libc::SYS_fchmodat, [3, 1, mode, 0, 0, 0]), allow);
                assert_ne!(says(stage, policy, libc::SYS_chmod, [1, mode, 0, 0, 0, 0]), allow);
                assert_ne!(says(stage, policy, libc::SYS_openat, [3, 1, 0o101, mode, 0, 0]), allow);
                assert_ne!(says(stage, policy, libc::SYS_openat, [3, 1, 0o2020_0002, mode, 0, 0]), allow);
                assert_ne!(says(stage, policy, 452, [3, 1, mode, 0, 0, 0]), allow);
            }
        }
        // An open that makes nothing has no mode: what lies there is somebody's leftover.
        assert_eq!(says(Stage::Executable, &writable, libc::SYS_openat, [3, 1, 0, 0o4755, 0, 0]), allow);
        assert_eq!(says(Stage::Executable, &writable, libc::SYS_fchmodat, [3, 1, 0o1777, 0, 0, 0]), allow);
        assert_eq!(says(Stage::LibraryLoading, &policy, libc::SYS_openat, [0; 6]), allow);
        assert_ne!(says(Stage::LibraryLocked, &policy, libc::SYS_openat, [0; 6]), allow);
        assert_eq!(says(Stage::LibraryLoading, &policy, libc::SYS_mmap, [0, 4096, 5, 2, 9, 0]), allow);
        assert_ne!(says(Stage::LibraryLocked, &policy, libc::SYS_mmap, [0, 4096, 5, 2, 9, 0]), allow);
    }

    #[test]
    fn the_tree_is_shallow() {
        let rules = rules(Stage::Executable, &Policy::default());
        let program = compile(ARCH, &rules, Action::Errno(libc::ENOSYS));
        assert!(program.len() < 800, "{} instructions", program.len());
    }
}
