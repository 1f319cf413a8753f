//! Shared libraries in their jails.

mod common;

use std::time::Duration;

use common::*;
use palisade_core::*;

fn call(entry: &'static str) -> Call {
    Call::new().entry(entry)
}

fn run_entry(entry: &'static str, input: &'static str) -> Execution {
    run(&plugin(), &Policy::default(), call(entry).input(input))
}

#[test]
fn input_comes_back_and_is_counted() {
    let execution = run_entry("echo", "hello");
    assert_eq!((&execution.outcome, output(&execution).as_str()), (&Outcome::Completed, "hello"), "{execution:?}");
    assert_eq!((execution.usage.input_bytes, execution.usage.output_bytes), (5, 5));
}

#[test]
fn a_megabyte_goes_in_and_out() {
    let input: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
    let execution = run(&plugin(), &Policy::default(), call("echo").input(input.clone()));
    assert!(execution.output == input, "{}", execution.outcome);
}

#[test]
fn errors_and_log_records_come_back() {
    let execution = run_entry("fail", "");
    assert_eq!(execution.outcome, Outcome::from_exit_code(75));
    assert_eq!(&execution.error[..], b"went wrong");
    assert_eq!((execution.log[0].level, execution.log[0].message.as_str()), (LogLevel::Warn, "a warning"));
}

#[test]
fn host_functions_answer_within_their_grant_and_quota() {
    let functions = || {
        HostFunctions::new()
            .add("shout", |call| async move { Ok(call.input.to_ascii_uppercase().into()) })
            .add("refuse", |_| async { Err("no".into()) })
            .add("panic", |_| async { panic!("on purpose") })
            .add("wait", |_| std::future::pending())
    };
    let mut policy = Policy::default();
    policy.quota.wall_time = Some(Duration::from_millis(500));
    policy.grants.host_functions = ["shout", "refuse", "panic", "wait"].map(str::to_owned).into();
    let module = block_on(sandbox().load(plugin())).unwrap();
    let run = |policy: &Policy, name: &'static str| {
        let prepared = module.prepare(policy.clone(), functions()).unwrap();
        block_on(prepared.run(call("host_function").input(name))).unwrap()
    };
    let execution = run(&policy, "shout");
    assert_eq!((output(&execution).as_str(), execution.usage.host_calls), ("QUESTION", 1));
    let execution = run(&policy, "refuse");
    assert_eq!((&execution.outcome, output(&execution).as_str()), (&Outcome::from_exit_code(1), "no"));
    assert!(matches!(run(&policy, "panic").outcome, Outcome::Crashed { .. }));
    assert!(matches!(run(&policy, "other").outcome, Outcome::Denied { .. }));
    let outcome = run(&policy, "wait").outcome;
    assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, phase: Phase::HostCall, .. }));
    policy.quota.host_calls = Some(0);
    assert!(matches!(run(&policy, "shout").outcome, Outcome::QuotaExceeded { resource: Resource::HostCalls, .. }));
}

#[test]
fn a_kept_instance_keeps_its_memory_and_a_fresh_one_has_none() {
    let prepared = prepare(&plugin(), &Policy::default()).unwrap();
    let mut instance = block_on(prepared.instantiate()).unwrap();
    for count in ["1", "2", "3"] {
        assert_eq!(output(&block_on(instance.call(call("count"))).unwrap()), count);
    }
    let mut fresh = block_on(prepared.instantiate()).unwrap();
    assert_eq!(output(&block_on(fresh.call(call("count"))).unwrap()), "1");
}

#[test]
fn whatever_it_does_has_an_outcome() {
    let trapped = |entry: &'static str| run_entry(entry, "").outcome;
    for (entry, signal) in [("segv", 11), ("aborts", 6), ("panics", 6)] {
        let outcome = trapped(entry);
        let holds = matches!(outcome, Outcome::Trapped { trap: TrapKind::Signal { number }, .. } if number == signal);
        assert!(holds, "{entry}: {outcome:?}");
    }
    assert!(matches!(trapped("recurse"), Outcome::QuotaExceeded { resource: Resource::Stack, .. }));
    assert!(matches!(trapped("logs"), Outcome::QuotaExceeded { resource: Resource::Log, .. }));
    for entry in ["exits", "floods"] {
        assert!(matches!(trapped(entry), Outcome::Trapped { trap: TrapKind::Other, .. }), "{entry}");
    }
}

#[test]
fn a_deadline_ends_a_spinning_library_and_its_constructor() {
    let mut policy = Policy::default();
    policy.quota.wall_time = Some(Duration::from_millis(60));
    for (artifact, entry) in [(plugin(), "spin"), (constructor("spins"), "entry")] {
        let outcome = run(&artifact, &policy, call(entry)).outcome;
        assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, .. }), "{outcome}");
    }
    policy.quota.wall_time = Some(Duration::from_secs(20));
    policy.quota.cpu_time = Some(Duration::from_millis(40));
    let outcome = run(&plugin(), &policy, call("spin")).outcome;
    assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::CpuTime, .. }), "{outcome}");
}

#[test]
fn a_hostile_constructor_harms_only_its_instance() {
    let outcome = run(&constructor("crashes"), &Policy::default(), call("entry")).outcome;
    assert!(matches!(outcome, Outcome::Trapped { trap: TrapKind::Signal { number: 11 }, .. }), "{outcome:?}");
    let outcome = run(&constructor("forges"), &Policy::default(), call("entry")).outcome;
    assert!(matches!(outcome, Outcome::Trapped { trap: TrapKind::Other, .. }), "{outcome:?}");
}

#[test]
fn a_forged_return_is_only_its_own_result() {
    let prepared = prepare(&plugin(), &Policy::default()).unwrap();
    let mut instance = block_on(prepared.instantiate()).unwrap();
    let outcome = block_on(instance.call(call("forges"))).unwrap().outcome;
    // It may well say that it returned; it may not say that it was loaded once more.
    assert!(matches!(outcome, Outcome::Trapped { trap: TrapKind::Other, .. }), "{outcome:?}");
    assert_eq!(block_on(instance.call(call("echo"))).unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn nothing_a_plugin_must_not_do_works() {
    let execution = run_entry("attack", "");
    assert_eq!((&execution.outcome, output(&execution).as_str()), (&Outcome::Completed, ""));
}

#[test]
fn coarse_clocks_are_coarse_and_fine_ones_fine() {
    let steps = |policy: &Policy| -> (u64, u64) {
        let text = output(&run(&plugin(), policy, call("clocks")));
        let (counter, clock) = text.split_once(' ').unwrap();
        (counter.parse().unwrap(), clock.parse().unwrap())
    };
    let (counter, clock) = steps(&Policy::default());
    assert!(counter >= 900_000 && clock >= 900_000, "{counter} {clock}");
    let (counter, clock) = steps(&fine());
    assert!(counter < 100_000 && clock < 100_000, "{counter} {clock}");
}

#[test]
fn entries_are_the_functions_it_exports() {
    let module = block_on(sandbox().load(plugin())).unwrap();
    let names: Vec<_> = module.info().entries.iter().map(|entry| entry.name.as_str()).collect();
    assert!(names.contains(&"echo") && names.contains(&"clocks"), "{names:?}");
    let prepared = module.prepare(Policy::default(), HostFunctions::new()).unwrap();
    let error = block_on(prepared.run(call("ehco"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
