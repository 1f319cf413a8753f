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

fn groups(stage: Stage, policy: &Policy, objects: bool) -> Vec<&'static Group> {
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
    if policy.grants.executable_memory && stage != Stage::LibraryLocked {
        groups.push(&policy::MAKE_CODE);
    }
    if objects {
        groups.push(&policy::OBJECTS);
    }
    let threads = policy.quota.threads != Some(0);
    if threads {
        groups.push(&policy::THREADS);
    }
    let processes = policy.grants.child_processes && policy.quota.processes != Some(0);
    if processes && stage == Stage::Executable {
        groups.push(&policy::PROCESSES);
        if threads {
            groups.push(&policy::PROCESSES_AND_THREADS);
        }
    } else if policy.grants.directories.is_empty() {
        groups.push(&policy::OWN_LOCKS);
    }
    groups.push(&policy::FORBIDDEN);
    if stage == Stage::LibraryLoading {
        groups.push(&policy::LOCK);
    }
    groups
}

fn rules(stage: Stage, policy: &Policy, objects: bool) -> Vec<(u32, Decision)> {
    let mut rules = BTreeMap::new();
    for group in groups(stage, policy, objects) {
        for (numbers, decision) in group.0 {
            for number in *numbers {
                let mut decision = *decision;
                if decision.otherwise == Action::Kill {
                    decision.otherwise = killing(stage);
                }
                rules.insert(u32::try_from(*number).unwrap_or(u32::MAX), decision);
            }
        }
    }
    rules.into_iter().collect()
}

/// What is done where the rules say that a guest is killed.
fn killing(stage: Stage) -> Action {
    match stage {
        // The host does it, and says for which call. The thread that made it goes no further meanwhile.
        Stage::Executable | Stage::LibraryLoading => Action::Ask,
        // The filter below this one asks. Two that ask would be one too many: only one of them has somebody who listens.
        Stage::LibraryLocked => Action::Allow,
        Stage::SelfTest => Action::Errno(libc::EPERM),
    }
}

/// What the host is asked about in `stage`.
fn asking(stage: Stage) -> Action {
    if stage == Stage::LibraryLocked { Action::Allow } else { Action::Ask }
}

/// The filter of `stage` under `policy`, as bytes of an array of `sock_filter`. `objects`: pipes and their like may be made,
/// because something counts them.
pub(crate) fn filter(stage: Stage, policy: &Policy, objects: bool) -> Vec<u8> {
    program::encode(&compile(stage, &rules(stage, policy, objects)))
}

fn compile(stage: Stage, rules: &[(u32, Decision)]) -> Vec<program::Instruction> {
    program::compile(ARCH, rules, Action::Errno(libc::ENOSYS), asking(stage))
}

/// What is known of a call that the host is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// This signal, which ends a process that does not handle it, is sent to the first process, or to this thread.
    Signal { number: i32, thread: Option<i32> },
    /// A call that only an attack makes.
    Forbidden(i32),
}

/// What the call `number` with `arguments` is, of those that the host is asked about.
pub(crate) fn asked(number: i32, arguments: [u64; 6]) -> Asked {
    // The kernel takes these as numbers of 32 bits.
    let at = |index: usize| arguments[index] as u32 as i32;
    match number.into() {
        libc::SYS_kill => Asked::Signal { number: at(1), thread: None },
        libc::SYS_tgkill => Asked::Signal { number: at(2), thread: Some(at(1)) },
        libc::SYS_tkill => Asked::Signal { number: at(1), thread: Some(at(0)) },
        _ => Asked::Forbidden(number),
    }
}

/// The name of a system call that only an attack makes; its number, where it has none here.
pub(crate) fn name(number: i32) -> String {
    let named = policy::NAMES.iter().find(|(known, _)| *known == i64::from(number));
    named.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use program::evaluate;

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
    fn expected(stage: Stage, rules: &[(u32, Decision)], number: u32, arguments: [u64; 6]) -> u32 {
        let Some((_, decision)) = rules.iter().find(|rule| rule.0 == number) else {
            return if number >= 0x4000_0000 { Action::Kill } else { Action::Errno(libc::ENOSYS) }.value();
        };
        let holds = |c: &program::Condition| {
            let argument = arguments[usize::from(c.argument)];
            argument as u32 & c.mask == c.value && (!c.wide || argument >> 32 == 0)
        };
        let case = decision.cases.iter().find(|(conditions, _)| conditions.iter().all(holds));
        match case.map_or(decision.otherwise, |(_, action)| *action) {
            Action::Ask => asking(stage).value(),
            action => action.value(),
        }
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
                let rules = rules(stage, &policy, policy.grants.directories.is_empty());
                let program = compile(stage, &rules);
                let numbers = (0..1024).chain([0x3fff_ffff, 0x4000_0000, 0x4000_0001, u32::MAX]);
                for number in numbers {
                    let decision = rules.iter().find(|rule| rule.0 == number).map(|rule| rule.1);
                    for arguments in decision.map_or(vec![[0; 6], [u64::MAX; 6]], |decision| edges(&decision)) {
                        let (said, meant) =
                            (evaluate(&program, ARCH, number, arguments), expected(stage, &rules, number, arguments));
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
            let program = compile(stage, &rules(stage, &Policy::default(), true));
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
            evaluate(&compile(stage, &rules(stage, policy, true)), ARCH, number as u32, arguments)
        };
        let policy = Policy::default();
        let (allow, ask) = (Action::Allow.value(), Action::Ask.value());
        // Below the second filter of a library lies the first, which is stricter here.
        assert_eq!(says(Stage::LibraryLocked, &policy, libc::SYS_ptrace, [0; 6]), allow);
        assert_ne!(says(Stage::SelfTest, &policy, libc::SYS_ptrace, [0; 6]), allow);
        for stage in [Stage::Executable, Stage::LibraryLoading] {
            assert_eq!(says(stage, &policy, libc::SYS_ptrace, [0; 6]), ask);
        }
        for stage in [Stage::Executable, Stage::LibraryLoading, Stage::LibraryLocked] {
            assert_eq!(says(stage, &policy, libc::SYS_read, [0; 6]), allow);
            // Writable and executable memory, in any way.
            assert_ne!(says(stage, &policy, libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_clone, [17, 0, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_execve, [0; 6]), allow);
            // TIOCSTI, also with a bit the kernel ignores.
            assert_ne!(says(stage, &policy, libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_ioctl, [0, 0x1_0000_5412, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_socket, [2, 1, 0, 0, 0, 0]), allow);
            // Sockets within a process, and nothing that leads out of it by an address or by a message's.
            assert_eq!(says(stage, &policy, libc::SYS_socketpair, [1, 1, 0, 0, 0, 0]), allow);
            assert_ne!(says(stage, &policy, libc::SYS_socketpair, [2, 1, 0, 0, 0, 0]), allow);
            assert_eq!(says(stage, &policy, libc::SYS_sendto, [3, 1, 1, 0, 0, 0]), allow);
            for address in [1, 1 << 32, u64::MAX] {
                assert_ne!(says(stage, &policy, libc::SYS_sendto, [3, 1, 1, 0, address, 0]), allow);
            }
            for call in [libc::SYS_connect, libc::SYS_bind, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_setsockopt]
            {
                assert_ne!(says(stage, &policy, call, [0; 6]), allow);
            }
        }
        // Where nothing counts them there are none.
        for call in [libc::SYS_pipe, libc::SYS_pipe2, libc::SYS_socketpair, libc::SYS_eventfd2, libc::SYS_epoll_create1]
        {
            let rules = rules(Stage::Executable, &policy, false);
            assert_ne!(evaluate(&compile(Stage::Executable, &rules), ARCH, call as u32, [1, 1, 0, 0, 0, 0]), allow);
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
            assert_eq!(says(stage, policy, libc::SYS_kill, [2, 9, 0, 0, 0, 0]), allow);
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
        let rules = rules(Stage::Executable, &Policy::default(), true);
        let program = compile(Stage::Executable, &rules);
        assert!(program.len() < 1000, "{} instructions", program.len());
    }

    #[test]
    fn threads_are_made_by_every_c_library_and_by_go_and_by_nothing_else() {
        let mut policy = Policy::default();
        policy.quota.threads = Some(4);
        let clone = |policy: &Policy, flags: u64| {
            let rules = rules(Stage::Executable, policy, true);
            evaluate(&compile(Stage::Executable, &rules), ARCH, libc::SYS_clone as u32, [flags, 0, 0, 0, 0, 0])
        };
        let allow = Action::Allow.value();
        // glibc; musl, with the flag for detached threads; Go without TLS and with it.
        let threads = [0x003d_0f00, 0x007d_0f00, 0x0005_0f00, 0x000d_0f00];
        // A process that shares memory, one thread flag missing each, a namespace, a parent that is another's, a signal.
        let others = [0x4111, 0x003d_0e00, 0x003c_0f00, 0x003d_0f00 | 0x1000_0000, 0x003d_8f00, 0x003d_0f11, 0x11];
        for flags in threads {
            assert_eq!(clone(&policy, flags), allow, "{flags:#x}");
            assert_ne!(clone(&Policy::default(), flags), allow, "{flags:#x} without a grant");
        }
        for flags in others {
            assert_ne!(clone(&policy, flags), allow, "{flags:#x}");
        }
        // Both at once.
        policy.grants.child_processes = true;
        policy.quota.processes = Some(4);
        for flags in threads.into_iter().chain([0x11, 0x4111, 0x0120_0011]) {
            assert_eq!(clone(&policy, flags), allow, "{flags:#x}");
        }
        for flags in [0x003d_0f00 | 0x1000_0000, 0x1000_0011, 0x003d_8f00] {
            assert_ne!(clone(&policy, flags), allow, "{flags:#x}");
        }
    }

    #[test]
    fn the_host_is_asked_about_signals_that_would_end_the_first_process() {
        let mut policies = vec![Policy::default()];
        policies[0].grants.clocks = Clocks::Fine;
        let mut processes = policies[0].clone();
        (processes.grants.child_processes, processes.quota.processes) = (true, Some(2));
        policies.push(processes);
        for policy in &policies {
            let says = |number: libc::c_long, arguments| {
                let rules = rules(Stage::Executable, policy, true);
                evaluate(&compile(Stage::Executable, &rules), ARCH, number as u32, arguments)
            };
            let harmless = [0, 17, 18, 19, 20, 21, 22, 23, 28];
            for signal in 0..=64u64 {
                let answer =
                    if signal > 31 || harmless.contains(&signal) { Action::Allow } else { Action::Ask }.value();
                assert_eq!(says(libc::SYS_kill, [1, signal, 0, 0, 0, 0]), answer, "signal {signal}");
                assert_eq!(says(libc::SYS_tgkill, [1, 7, signal, 0, 0, 0]), answer, "signal {signal}");
                assert_eq!(says(libc::SYS_tkill, [7, signal, 0, 0, 0, 0]), answer, "signal {signal}");
                assert_eq!(says(libc::SYS_kill, [2, signal, 0, 0, 0, 0]), Action::Allow.value());
            }
        }
        let signal = |thread| Asked::Signal { number: 6, thread };
        assert_eq!(asked(libc::SYS_kill as i32, [1, 6, 0, 0, 0, 0]), signal(None));
        assert_eq!(asked(libc::SYS_tgkill as i32, [1, 9, 6, 0, 0, 0]), signal(Some(9)));
        assert_eq!(asked(libc::SYS_tkill as i32, [9, 6, 0, 0, 0, 0]), signal(Some(9)));
        assert_eq!(asked(libc::SYS_ptrace as i32, [0; 6]), Asked::Forbidden(libc::SYS_ptrace as i32));
    }

    #[test]
    fn code_is_made_by_those_only_who_were_granted_it() {
        let mut granted = Policy::default();
        granted.grants.executable_memory = true;
        let says = |policy: &Policy, number: libc::c_long, arguments| {
            let rules = rules(Stage::Executable, policy, true);
            evaluate(&compile(Stage::Executable, &rules), ARCH, number as u32, arguments)
        };
        let allow = Action::Allow.value();
        for (number, arguments) in [
            (libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0]),
            (libc::SYS_mmap, [0, 4096, 5, 0x22, u64::MAX, 0]),
            (libc::SYS_mmap, [0, 4096, 7, 0x1, 3, 0]),
            (libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]),
            (libc::SYS_mprotect, [0, 4096, 7, 0, 0, 0]),
        ] {
            assert_eq!(says(&granted, number, arguments), allow, "{number} {arguments:?}");
            assert_ne!(says(&Policy::default(), number, arguments), allow, "{number} {arguments:?}");
        }
        // Huge pages, newer flags and growing downwards are no code.
        assert_ne!(says(&granted, libc::SYS_mmap, [0, 4096, 7, 0x40022, u64::MAX, 0]), allow);
        assert_ne!(says(&granted, libc::SYS_mmap, [0, 4096, 7, 0x22 | 1 << 27, u64::MAX, 0]), allow);
        assert_ne!(says(&granted, libc::SYS_mprotect, [0, 4096, 0x0100_0005, 0, 0, 0]), allow);
    }

    /// A limit of one byte keeps the kernel from starting a program of the host's for a core dump; one of zero does not.
    #[test]
    fn the_limit_on_core_dumps_stays_as_it_is() {
        for stage in STAGES {
            let says = |number: libc::c_long, arguments| {
                let rules = rules(stage, &Policy::default(), true);
                evaluate(&compile(stage, &rules), ARCH, number as u32, arguments)
            };
            let (unchanged, allow) = (Action::Errno(0).value(), Action::Allow.value());
            let (core, files) = (u64::from(libc::RLIMIT_CORE), u64::from(libc::RLIMIT_NOFILE));
            assert_eq!(says(libc::SYS_prlimit64, [0, core, 1, 0, 0, 0]), unchanged, "{stage:?}");
            assert_eq!(says(libc::SYS_prlimit64, [1 << 32, core | 1 << 32, 1 << 32, 0, 0, 0]), unchanged, "{stage:?}");
            assert_eq!(says(libc::SYS_setrlimit, [core, 1, 0, 0, 0, 0]), unchanged, "{stage:?}");
            assert_eq!(says(libc::SYS_prlimit64, [0, core, 0, 1, 0, 0]), allow, "{stage:?}: it may be read");
            assert_eq!(says(libc::SYS_prlimit64, [0, files, 1, 0, 0, 0]), allow, "{stage:?}");
            assert_ne!(
                says(libc::SYS_prlimit64, [1, core, 1, 0, 0, 0]),
                allow,
                "{stage:?}: of another, or by its number"
            );
        }
    }

    #[test]
    fn whatever_only_an_attack_asks_for_has_a_name() {
        for (number, decision) in rules(Stage::Executable, &Policy::default(), true) {
            if decision == Decision::always(Action::Ask) {
                assert!(!name(number as i32).starts_with("number"), "system call {number}");
            }
        }
        assert_eq!(name(libc::SYS_ptrace as i32), "ptrace");
        assert_eq!(name(999), "number 999");
    }

    #[test]
    fn locks_that_nobody_can_hold_against_a_guest_are_its_own() {
        let lock = |policy: &Policy, command: i32| {
            let rules = rules(Stage::Executable, policy, true);
            let arguments = [3, command as u64, 0, 0, 0, 0];
            evaluate(&compile(Stage::Executable, &rules), ARCH, libc::SYS_fcntl as u32, arguments)
        };
        let alone = Policy::default();
        let mut shares = alone.clone();
        shares.grants.directories.push(palisade_core::DirectoryGrant::read_only("/a", "/a"));
        let mut several = alone.clone();
        (several.grants.child_processes, several.quota.processes) = (true, Some(2));
        for command in [libc::F_SETLK, libc::F_SETLKW] {
            assert_eq!(lock(&alone, command), Action::Errno(0).value());
            for policy in [&shares, &several] {
                assert_eq!(lock(policy, command), Action::Errno(libc::EPERM).value());
            }
        }
        // Never by the kernel, where another guest could see it.
        for command in [libc::F_OFD_SETLK, libc::F_OFD_SETLKW, libc::F_OFD_GETLK, libc::F_SETLEASE, libc::F_GETLEASE] {
            for policy in [&alone, &shares, &several] {
                assert_eq!(lock(policy, command), Action::Errno(libc::EINVAL).value());
            }
        }
    }
}
