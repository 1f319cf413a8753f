//! Host functions: called by name, granted by name, and no harm done when they misbehave.
#![allow(missing_docs, reason = "a test's name says what holds")]

use std::time::Duration;

use super::{assert_exceeded, block_on, generous, load, prepare, run_call};
use palisade_core::{
    Bytes, Call, ErrorKind, Execution, HostFunctions, Outcome, Phase, Policy, PreparedExt, Quota, Resource, Sandbox,
};

/// Calls the host function whose name is the input; writes its result as output, or as error text.
const CALLER: &str = r#"(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
  (import "palisade" "host_result_read" (func $result_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 512) "argument")
  (func (export "_start") (result i32)
    (local $reply i64) (local $len i32)
    (local.set $len (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $reply (call $host_call (i32.const 0) (local.get $len) (i32.const 512) (i32.const 8)))
    (local.set $len (call $result_read (i32.const 0) (i32.const 1024) (i32.wrap_i64 (local.get $reply))))
    (if (result i32) (i64.eqz (i64.shr_u (local.get $reply) (i64.const 32)))
      (then (call $output (i32.const 1024) (local.get $len)) (i32.const 0))
      (else (call $error (i32.const 1024) (local.get $len)) (i32.const 1)))))"#;

fn functions() -> HostFunctions {
    HostFunctions::new()
        .add("shout", |call| async move { Ok(call.input.to_ascii_uppercase().into()) })
        .add("fails", |_| async { Err("no such thing".into()) })
        .add("panics", |_| async { panic!("told to") })
        .add("hangs", |_| std::future::pending())
        .add("later", |call| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(call.input)
        })
        .add("large", |_| async { Ok(vec![0; 1 << 20].into()) })
        .add_blocking("blocks", |call| Ok([&call.input[..], b"!"].concat().into()))
}

fn call(sandbox: &dyn Sandbox, name: &'static str, quota: Quota) -> Execution {
    run_call(sandbox, CALLER, quota, functions(), Call::new().input(name))
}

pub fn results_and_errors_reach_the_guest(sandbox: &dyn Sandbox) {
    for (name, output) in [("shout", "ARGUMENT"), ("later", "argument"), ("blocks", "argument!")] {
        let execution = call(sandbox, name, generous());
        assert_eq!((execution.outcome, execution.output), (Outcome::Completed, Bytes::from(output)), "{name}");
        assert_eq!(execution.usage.host_calls, 1);
    }
    let failed = call(sandbox, "fails", generous());
    assert_eq!((failed.outcome, &failed.error[..]), (Outcome::from_exit_code(1), &b"no such thing"[..]));
}

pub fn a_panic_ends_that_call_only(sandbox: &dyn Sandbox) {
    let crashed = call(sandbox, "panics", generous());
    assert!(
        matches!(&crashed.outcome, Outcome::Crashed { message } if message.contains("told to")),
        "{}",
        crashed.outcome
    );
    assert_eq!(call(sandbox, "shout", generous()).outcome, Outcome::Completed);
}

pub fn a_function_that_never_returns_is_ended_by_the_deadline(sandbox: &dyn Sandbox) {
    let quota = Quota { wall_time: Some(Duration::from_millis(20)), ..Quota::unlimited() };
    assert_exceeded(&call(sandbox, "hangs", quota), Resource::WallTime, Phase::HostCall);
}

pub fn a_blocking_function_is_left_behind_by_the_deadline(sandbox: &dyn Sandbox) {
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let functions = HostFunctions::new().add_blocking("blocks", move |_| {
        let _ = blocked.lock().unwrap().recv();
        Ok(Bytes::new())
    });
    let quota = Quota { wall_time: Some(Duration::from_millis(20)), ..Quota::unlimited() };
    let execution = run_call(sandbox, CALLER, quota, functions, Call::new().input("blocks"));
    assert_exceeded(&execution, Resource::WallTime, Phase::HostCall);
    drop(release);
}

pub fn what_is_not_granted_is_denied_by_name(sandbox: &dyn Sandbox) {
    let execution = call(sandbox, "open_the_gate", generous());
    assert_eq!(execution.outcome, Outcome::Denied { grant: "host_functions: open_the_gate".into() });
    block_on(async {
        // Offered but not granted is the same to the guest.
        let prepared = load(sandbox, CALLER).await.unwrap().prepare(Policy::default(), functions()).unwrap();
        let execution = prepared.run(Call::new().input("shout")).await.unwrap();
        assert_eq!(execution.outcome, Outcome::Denied { grant: "host_functions: shout".into() });
    });
}

pub fn a_grant_of_what_does_not_exist_is_refused(sandbox: &dyn Sandbox) {
    block_on(async {
        let mut policy = Policy::default();
        policy.grants.host_functions.insert("shoot".into());
        let error = load(sandbox, CALLER).await.unwrap().prepare(policy, functions()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("shoot") && error.to_string().contains("shout"), "{error}");
    });
}

pub fn results_count_as_memory(sandbox: &dyn Sandbox) {
    let quota = Quota { memory_bytes: Some(1 << 20), ..generous() };
    assert_exceeded(&call(sandbox, "large", quota), Resource::Memory, Phase::Running);
}

pub fn ranges_outside_the_memory_trap(sandbox: &dyn Sandbox) {
    let wat = CALLER.replace("(i32.const 512) (i32.const 8)", "(i32.const 0x1fffc) (i32.const 8)");
    let execution = run_call(sandbox, &wat, generous(), functions(), Call::new().input("shout"));
    assert!(matches!(execution.outcome, Outcome::Trapped { .. }), "{}", execution.outcome);
}

pub fn hundreds_of_calls_wait_on_one_thread(sandbox: &dyn Sandbox) {
    block_on(async {
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let waiting = std::sync::Arc::clone(&gate);
        let functions = HostFunctions::new().add("gate", move |_| {
            let waiting = std::sync::Arc::clone(&waiting);
            async move { waiting.acquire().await.map(|_| Bytes::new()).map_err(|error| error.to_string().into()) }
        });
        let prepared = prepare(sandbox, CALLER, generous(), functions).await.unwrap();
        let calls: Vec<_> = (0..500)
            .map(|_| {
                let prepared = prepared.clone();
                tokio::spawn(async move { prepared.run(Call::new().input("gate")).await.unwrap().outcome })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for call in calls {
            assert_eq!(call.await.unwrap(), Outcome::Completed);
        }
    });
}
