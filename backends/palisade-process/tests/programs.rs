//! Programs in their jails: what works, every quota, and bad input.

mod common;

use std::time::Duration;

use common::*;
use palisade_core::*;

#[track_caller]
fn assert_exceeded(execution: &Execution, resource: Resource) {
    let holds = matches!(&execution.outcome,
        Outcome::QuotaExceeded { resource: found, limit, used, .. } if *found == resource && used > limit);
    assert!(holds, "{:?}", execution.outcome);
}

#[test]
fn a_program_of_this_machine_reads_its_input_and_writes_its_output() {
    let execution = run(&program("cat"), &fine(), Call::new().input("hello"));
    assert_eq!((&execution.outcome, &execution.output[..]), (&Outcome::Completed, &b"hello"[..]));
    assert_eq!(execution.usage.input_bytes, 5);
}

#[test]
fn a_megabyte_goes_in_and_out() {
    let input: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
    let execution = run(&guest(), &fine(), Call::new().arguments(["echo"]).input(input.clone()));
    assert_eq!(execution.outcome, Outcome::Completed);
    assert!(execution.output == input);
}

#[test]
fn arguments_and_environment_are_those_given_and_no_others() {
    let mut policy = fine();
    policy.grants.environment.insert("NAME".into(), "value = x".into());
    assert_eq!(output(&act(&["arguments", "a", "b c"], &policy)), "guest|arguments|a|b c");
    assert_eq!(output(&act(&["environment"], &policy)), "NAME=value = x\n");
    assert_eq!(output(&act(&["environment"], &fine())), "");
}

#[test]
fn exit_codes_and_error_text_come_back() {
    assert_eq!(act(&["exit", "0"], &fine()).outcome, Outcome::Completed);
    assert_eq!(act(&["exit", "7"], &fine()).outcome, Outcome::from_exit_code(7));
    assert_eq!(act(&["exit", "75"], &fine()).outcome, Outcome::from_exit_code(75));
    assert_eq!(&act(&["stderr", "oh"], &fine()).error[..], b"oh");
}

#[test]
fn faults_are_signals() {
    for (action, signal) in [("segv", 11), ("divide", 8), ("abort", 6)] {
        let outcome = act(&[action], &fine()).outcome;
        let holds = matches!(outcome, Outcome::Trapped { trap: TrapKind::Signal { number }, .. } if number == signal);
        assert!(holds, "{action}: {outcome:?}");
    }
}

#[test]
fn a_program_ends_by_the_signals_it_sends_itself_unless_it_handles_them() {
    // Not those that a Rust program ignores or handles from its start on.
    for number in [1, 2, 3, 4, 6, 9, 10, 12, 14, 15, 24] {
        let execution = act(&["signal", &number.to_string()], &fine());
        let expected = TrapKind::Signal { number };
        let ended = matches!(&execution.outcome, Outcome::Trapped { trap, .. } if *trap == expected);
        assert!(ended, "signal {number}: {:?}", execution.outcome);
        assert_eq!(output(&execution), "before ", "signal {number}: what it said before");
    }
    // What ends nobody, what it ignores, what it handles, what it holds back and waits for.
    for signal in ["17", "18", "19", "20", "23", "28"] {
        assert_eq!(output(&act(&["signal", signal], &fine())), "before survived", "signal {signal}");
    }
    assert_eq!(output(&act(&["signal-ignored", "15"], &fine())), "survived");
    assert_eq!(output(&act(&["signal-handled", "15", "1000"], &fine())), "handled 1000");
    assert_eq!(output(&act(&["signal-held", "15"], &fine())), "waited for 15");
    assert_eq!(output(&act(&["stop"], &fine())), "went on");
}

#[test]
fn wall_time_ends_whatever_it_does() {
    let mut policy = fine();
    policy.quota.wall_time = Some(Duration::from_millis(60));
    for action in ["spin", "sleep", "close"] {
        let execution = act(&[action], &policy);
        assert_exceeded(&execution, Resource::WallTime);
        assert!(execution.usage.wall_time >= Duration::from_millis(60), "{action}");
    }
    let prepared = prepare(&guest(), &policy).unwrap();
    let input = Input::Stream(Box::pin(Never));
    let execution = block_on(prepared.run(Call::new().arguments(["read"]).input(input))).unwrap();
    assert_exceeded(&execution, Resource::WallTime);
}

/// Input that never comes.
struct Never;

impl futures_core::Stream for Never {
    type Item = std::io::Result<Bytes>;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}

#[test]
fn cpu_time_ends_a_spinning_program_and_not_a_sleeping_one() {
    let mut policy = fine();
    policy.quota.cpu_time = Some(Duration::from_millis(50));
    let execution = act(&["spin"], &policy);
    assert_exceeded(&execution, Resource::CpuTime);
    assert!(execution.usage.cpu_time >= Duration::from_millis(50), "{:?}", execution.usage);
    policy.quota.wall_time = Some(Duration::from_millis(200));
    assert_exceeded(&act(&["sleep"], &policy), Resource::WallTime);
}

#[test]
fn memory_is_refused_beyond_its_quota() {
    let mut policy = fine();
    policy.quota.memory_bytes = Some(64 << 20);
    let within = act(&["touch", &(32 << 20).to_string()], &policy);
    assert_eq!(within.outcome, Outcome::Completed);
    assert!(within.usage.memory_peak_bytes >= 32 << 20, "{:?}", within.usage);
    // Where control groups can be made the kernel ends it, else its allocator is refused.
    let outcome = act(&["touch", &(64 << 20).to_string()], &policy).outcome;
    let by_group = layer(&within, "memory control group") == LayerStatus::Enforced;
    match by_group {
        true => assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::Memory, .. }), "{outcome}"),
        false => assert_eq!(outcome, Outcome::from_exit_code(9)),
    }
    policy.quota.memory_bytes = Some(1 << 20);
    let too_small = prepare(&guest(), &policy).and_then(|prepared| block_on(prepared.run(Call::new())));
    assert!(!matches!(&too_small, Ok(execution) if execution.outcome.is_success()), "{too_small:?}");
}

fn layer(execution: &Execution, name: &str) -> LayerStatus {
    let found = execution.isolation.iter().find(|layer| layer.name == name);
    found.unwrap_or_else(|| panic!("{:?}", execution.isolation)).status
}

#[test]
fn the_stack_ends() {
    let mut policy = fine();
    policy.quota.stack_bytes = Some(256 << 10);
    let outcome = act(&["recurse"], &policy).outcome;
    assert!(!outcome.leaves_instance_usable(), "{outcome}");
}

#[test]
fn output_and_error_text_end_at_their_quotas() {
    let mut policy = fine();
    (policy.quota.output_bytes, policy.quota.log_bytes) = (Some(100_000), Some(50_000));
    assert_eq!(act(&["write", "100000"], &policy).outcome, Outcome::Completed);
    let execution = act(&["write", "100001"], &policy);
    assert_exceeded(&execution, Resource::Output);
    assert_eq!(execution.output.len(), 100_000);
    assert_exceeded(&act(&["flood"], &policy), Resource::Output);
    assert_exceeded(&act(&["flood-error"], &policy), Resource::Log);
}

#[test]
fn open_files_end_at_their_quota() {
    let mut policy = fine();
    policy.quota.open_files = Some(9);
    assert_eq!(output(&act(&["files", "/dev/null"], &policy)), "9");
}

#[test]
fn no_process_and_no_thread_appears() {
    assert_eq!(output(&act(&["fork"], &fine())), "-1");
    assert_eq!(output(&act(&["thread"], &fine())), "refused");
    assert_eq!(output(&act(&["id"], &fine())), "1");
}

#[test]
fn threads_are_those_granted_and_are_counted_apart_from_other_guests() {
    let mut policy = fine();
    for threads in [1, 7] {
        policy.quota.threads = Some(threads);
        let execution = act(&["threads"], &policy);
        assert_eq!(output(&execution), threads.to_string(), "{:?}", execution.outcome);
    }
    let prepared = prepare(&guest(), &policy).unwrap();
    let run = || output(&block_on(prepared.run(Call::new().arguments(["threads"]))).unwrap());
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        all.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), "7"));
    });
    policy.quota.cpu_time = Some(Duration::from_millis(100));
    assert_exceeded(&act(&["burn-threads"], &policy), Resource::CpuTime);
}

#[test]
fn child_processes_are_those_granted_and_die_with_the_first() {
    let groups = sandbox().capabilities().grants.contains(&GrantKind::ChildProcesses);
    let mut policy = fine();
    policy.grants.child_processes = true;
    if !groups {
        assert_eq!(prepare(&guest(), &policy).unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    // Granted, but none of them.
    assert_eq!(output(&act(&["children"], &policy)), "0\n");
    policy.quota.processes = Some(5);
    let execution = act(&["children"], &policy);
    // The grandchild counts too, and is made by one of the five.
    assert!(["4\n", "5\n"].contains(&output(&execution).as_str()), "{execution:?}");
    assert!(output(&act(&["run", "exit", "7"], &policy)).contains("7"));
    assert!(output(&act(&["run", "cat", "/etc/passwd"], &policy)).starts_with("refused"));
    assert_eq!(output(&act(&["thread"], &policy)), "refused");
    // Memory is bounded over all of them.
    policy.quota.memory_bytes = Some(64 << 20);
    let outcome = act(&["run", "touch", &(100 << 20).to_string()], &policy).outcome;
    assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::Memory, .. }), "{outcome:?}");
    // All of them go at the deadline, whatever session they are in.
    policy.quota.wall_time = Some(Duration::from_millis(150));
    assert_exceeded(&act(&["children", "stay"], &policy), Resource::WallTime);
    // CPU time is that of all of them, also of those nobody waited for, where groups count it.
    policy.quota.wall_time = Some(Duration::from_secs(10));
    policy.quota.cpu_time = Some(Duration::from_millis(100));
    match prepare(&guest(), &policy) {
        Ok(_) => {
            assert_exceeded(&act(&["run", "spin"], &policy), Resource::CpuTime);
            assert_exceeded(&act(&["burn-children"], &policy), Resource::CpuTime);
            let execution = act(&["run", "exit", "7"], &policy);
            assert!(output(&execution).contains("7"), "{execution:?}");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    }
}

#[test]
fn granted_directories_are_seen_and_read_only_ones_do_not_change() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "contents").unwrap();
    let mut policy = fine();
    policy.grants.directories.push(DirectoryGrant::read_only(host.path(), "/data"));
    assert_eq!(output(&act(&["cat", "/data/file"], &policy)), "contents");
    assert!(output(&act(&["put", "/data/new", "x"], &policy)).starts_with("refused"));
    assert!(output(&act(&["put", "/data/file", "x"], &policy)).starts_with("refused"));
    assert_eq!(std::fs::read(host.path().join("file")).unwrap(), b"contents");
    policy.grants.directories[0].access = Access::ReadWrite;
    let error = prepare(&guest(), &policy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    policy.quota.disk_bytes = None;
    if rustix::process::geteuid().is_root() {
        policy.grants.directories[0].owner = Some(0);
    }
    assert_eq!(output(&act(&["put", "/data/new", "fresh"], &policy)), "written");
    assert_eq!(std::fs::read(host.path().join("new")).unwrap(), b"fresh");
}

#[test]
fn nothing_of_the_host_is_there() {
    for path in ["/etc/passwd", "/proc/self/environ", "/sys/kernel", "/root", "/home", "/tmp/x", "/../etc/passwd"] {
        assert!(output(&act(&["cat", path], &fine())).starts_with("refused"), "{path}");
    }
    assert_eq!(output(&act(&["list", "/"], &fine())), "");
}

#[test]
fn system_calls_that_only_attack_end_the_program_and_are_named() {
    for (number, name) in
        [("101", "ptrace"), ("165", "mount"), ("321", "bpf"), ("272", "unshare"), ("175", "init_module")]
    {
        let execution = act(&["say", "syscall", number], &fine());
        let Outcome::Denied { grant } = &execution.outcome else { panic!("{number}: {execution:?}") };
        assert_eq!(grant, &format!("the system call {name}"));
        assert_eq!(output(&execution), "here\n", "what it said before");
    }
}

#[test]
fn system_calls_that_programs_try_fail_as_they_expect() {
    // socket, fork, a number that does not exist; io_uring_setup, memfd_create, keyctl, shmget, landlock_create_ruleset;
    // setuid, chroot, perf_event_open; name_to_handle_at, flock, getxattr; seccomp.
    let (enosys, eperm, eopnotsupp) = (38, 1, 95);
    for (number, errno) in [
        ("41", 13),
        ("57", 11),
        ("999", enosys),
        ("425", enosys),
        ("319", enosys),
        ("250", enosys),
        ("29", enosys),
        ("444", enosys),
        ("105", eperm),
        ("161", eperm),
        ("298", eperm),
        ("303", eopnotsupp),
        ("73", eopnotsupp),
        ("191", eopnotsupp),
        ("317", 22),
    ] {
        assert_eq!(output(&act(&["syscall", number], &fine())), format!("-1 {errno}"), "{number}");
    }
}

#[test]
fn a_program_cannot_speak_as_its_worker() {
    let execution = act(&["forge"], &fine());
    assert_eq!((&execution.outcome, output(&execution).as_str()), (&Outcome::Completed, "-1"));
}

#[test]
fn cancelling_and_dropping_end_it() {
    let prepared = prepare(&guest(), &fine()).unwrap();
    let token = CancelToken::new();
    let theirs = token.clone();
    let call = Call::new().arguments(["sleep"]).cancel(token);
    let mut instance = block_on(prepared.instantiate()).unwrap();
    let cancelling = std::thread::spawn(move || theirs.cancel());
    assert!(matches!(block_on(instance.call(call)).unwrap().outcome, Outcome::Cancelled { .. }));
    cancelling.join().unwrap();
    assert_eq!(block_on(instance.call(Call::new())).unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn a_kept_instance_of_a_program_starts_it_anew_for_each_call() {
    let prepared = prepare(&guest(), &fine()).unwrap();
    let mut instance = block_on(prepared.instantiate()).unwrap();
    for text in ["one", "two"] {
        let execution = block_on(instance.call(Call::new().arguments(["echo"]).input(text))).unwrap();
        assert_eq!(output(&execution), text);
    }
    let error = block_on(instance.call(Call::new().entry("other"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn bad_artifacts_are_refused_before_anything_runs() {
    let load = |kind, bytes: Vec<u8>| block_on(sandbox().load(Artifact::new(kind, bytes))).unwrap_err();
    let good = guest().bytes().to_vec();
    let mut bits = good.clone();
    bits[4] = 1;
    for bytes in [Vec::new(), b"#!/bin/sh\n".to_vec(), good[..good.len() / 2].to_vec(), bits] {
        assert_eq!(load(ArtifactKind::Executable, bytes).kind(), ErrorKind::InvalidArtifact);
    }
    assert_eq!(load(ArtifactKind::SharedLibrary, good).kind(), ErrorKind::InvalidArtifact);
    assert_eq!(load(ArtifactKind::Executable, plugin().bytes().to_vec()).kind(), ErrorKind::InvalidArtifact);
    assert_eq!(load(ArtifactKind::Wasm, b"\0asm\x01\0\0\0".to_vec()).kind(), ErrorKind::Unsupported);
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let refused = |policy: &Policy| prepare(&guest(), policy).unwrap_err();
    let error = refused(&Policy::default());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("fine"), "{error}");
    for change in [
        |policy: &mut Policy| policy.quota.fuel = Some(1),
        |policy: &mut Policy| policy.grants.network = true,
        |policy: &mut Policy| policy.grants.randomness = Randomness::Seeded(1),
        |policy: &mut Policy| policy.grants.interpreter = Some("python3".into()),
    ] {
        let mut policy = fine();
        change(&mut policy);
        assert_eq!(refused(&policy).kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn scripts_run_with_a_granted_interpreter() {
    let script = |text: &str| Artifact::new(ArtifactKind::Script, text.to_owned()).named("script.py");
    let mut policy = fine();
    let print = script("import sys, json, hashlib\nprint(json.dumps(sys.argv[1:]), sys.stdin.read(), end='')");
    assert_eq!(prepare(&print, &policy).unwrap_err().kind(), ErrorKind::Unsupported);
    policy.grants.interpreter = Some("python3".into());
    let execution = run(&print, &policy, Call::new().arguments(["a"]).input("in"));
    assert_eq!(output(&execution), "[\"a\"] in", "{execution:?}");
    let fails = script("import sys\nsys.exit(3)");
    assert_eq!(run(&fails, &policy, Call::new()).outcome, Outcome::from_exit_code(3));
    let peeks = script("import os\nprint(sorted(os.listdir('/etc')))");
    assert_eq!(run(&peeks, &policy, Call::new()).outcome, Outcome::from_exit_code(1));
    policy.grants.interpreter = Some("no-such-interpreter".into());
    assert_eq!(prepare(&print, &policy).unwrap_err().kind(), ErrorKind::NotFound);
    policy.grants.interpreter = Some("sh".into());
    let shell = Artifact::new(ArtifactKind::Script, "read line; echo \"$line $1\"").named("script.sh");
    assert_eq!(output(&run(&shell, &policy, Call::new().arguments(["x"]).input("line\n"))), "line x\n");
}

#[test]
fn every_result_says_what_stood_around_the_guest() {
    let execution = act(&["exit"], &fine());
    let enforced: Vec<_> = execution.isolation.iter().filter(|layer| layer.status == LayerStatus::Enforced).collect();
    assert!(enforced.len() >= 12, "{:?}", execution.isolation);
    assert!(enforced.iter().any(|layer| layer.name == "seccomp"));
}

#[test]
fn a_program_calls_host_functions_within_its_grant_and_quota() {
    let functions = || {
        HostFunctions::new()
            .add("shout", |call| async move { Ok(call.input.to_ascii_uppercase().into()) })
            .add("refuse", |_| async { Err("no".into()) })
            .add("wait", |_| std::future::pending())
    };
    let mut policy = fine();
    policy.quota.wall_time = Some(Duration::from_secs(2));
    policy.grants.host_functions = ["shout", "refuse", "wait"].map(str::to_owned).into();
    let module = block_on(sandbox().load(guest())).unwrap();
    let run = |policy: &Policy, arguments: &[&'static str]| {
        let prepared = module.prepare(policy.clone(), functions()).unwrap();
        block_on(prepared.run(Call::new().arguments(arguments.iter().copied()))).unwrap()
    };
    let execution = run(&policy, &["host-call", "shout", "question"]);
    assert_eq!((output(&execution).as_str(), execution.usage.host_calls), ("0 QUESTION", 1));
    let execution = run(&policy, &["host-call", "refuse", ""]);
    assert_eq!((&execution.outcome, output(&execution).as_str()), (&Outcome::Completed, "1 no"));
    assert!(matches!(run(&policy, &["host-call", "other", ""]).outcome, Outcome::Denied { .. }));
    let outcome = run(&policy, &["host-call", "wait", ""]).outcome;
    let holds = matches!(outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, phase: Phase::HostCall, .. });
    assert!(holds, "{outcome:?}");
    for forged in ["kind", "setup", "long", "lengths"] {
        let outcome = run(&policy, &["host-call-forged", forged]).outcome;
        assert!(matches!(outcome, Outcome::Trapped { trap: TrapKind::Other, .. }), "{forged}: {outcome:?}");
    }
    // Its two descriptors take none of those it may open.
    for files in [3, 4, 5, 6, 20] {
        policy.quota.open_files = Some(files);
        let counted = output(&run(&policy, &["files", "/dev/null"]));
        assert_eq!(counted, files.to_string());
    }
    policy.quota.host_calls = Some(0);
    assert_exceeded(&run(&policy, &["host-call", "shout", ""]), Resource::HostCalls);
    assert_eq!(output(&act(&["host-call", "shout", ""], &fine())), "nobody answers");
}

#[test]
fn what_is_held_for_a_host_call_counts_as_memory() {
    const MIB: u64 = 1 << 20;
    let functions = || {
        let answer = |call: HostCall| async move {
            let len: usize = String::from_utf8_lossy(&call.input).trim_matches('x').parse().unwrap_or(0);
            Ok(vec![b'y'; len].into())
        };
        HostFunctions::new().add("take", |_| async { Ok("".into()) }).add("give", answer)
    };
    let mut policy = fine();
    policy.quota.memory_bytes = Some(96 * MIB);
    policy.grants.host_functions = ["take", "give"].map(str::to_owned).into();
    let module = block_on(sandbox().load(guest())).unwrap();
    let run = |arguments: &[String]| {
        let prepared = module.prepare(policy.clone(), functions()).unwrap();
        block_on(prepared.run(Call::new().arguments(arguments.iter().cloned()))).unwrap()
    };
    let take = |held: u64, passed: u64| {
        run(&["host-call-long".to_owned(), "take".to_owned(), (held * MIB).to_string(), (passed * MIB).to_string()])
    };
    assert_eq!(output(&take(30, 20)), "6 0");
    // What the guest holds fits, and would fit whatever its host holds.
    assert_exceeded(&take(30, 40), Resource::Memory);
    let give = |len: u64| run(&["host-call".to_owned(), "give".to_owned(), (len * MIB).to_string()]);
    assert_eq!(output(&give(8)).len() as u64, 2 + 8 * MIB);
    assert_exceeded(&give(200), Resource::Memory);
}

#[test]
fn a_scratch_directory_is_the_instances_own_and_has_its_size() {
    let mut policy = fine();
    policy.grants.scratch = Some("/tmp/own".to_owned());
    policy.quota.disk_bytes = Some(64 << 10);
    // Also where it has a user namespace of its own besides.
    for threads in [Some(0), Some(2)] {
        policy.quota.threads = threads;
        assert_eq!(output(&act(&["put", "/tmp/own/file", "text"], &policy)), "written");
        assert_eq!(output(&act(&["list", "/tmp/own"], &policy)), "", "the next one sees nothing of it");
        assert!(output(&act(&["put", "/tmp/file", "text"], &policy)).starts_with("refused"));
        assert!(output(&act(&["put", "/tmp/own/../file", "text"], &policy)).starts_with("refused"));
        let large = "x".repeat((64 << 10) + 1);
        let said = output(&act(&["put", "/tmp/own/file", &large], &policy));
        assert!(said.starts_with("refused") && said.contains("space"), "{said}");
        assert_eq!(output(&act(&["put", "/tmp/own/file", &large[1..]], &policy)), "written");
    }
    // What cannot be bounded, or would hide something, is refused.
    let refused = |policy: &Policy| prepare(&guest(), policy).unwrap_err().kind();
    let mut other = policy.clone();
    other.quota.disk_bytes = None;
    assert_eq!(refused(&other), ErrorKind::Unsupported);
    for path in ["/", "/plugin", "/lib", "/a/../.."] {
        other = policy.clone();
        other.grants.scratch = Some(path.to_owned());
        assert_eq!(refused(&other), ErrorKind::InvalidPolicy, "{path}");
    }
}
