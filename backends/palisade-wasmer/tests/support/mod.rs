//! What the tests of this backend share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use palisade_core::{
    Artifact, BackendOptions, Call, Execution, HostFunctions, Module, Outcome, Phase, Policy, Prepared, PreparedExt,
    Quota, Resource, Result, Sandbox,
};
use palisade_wasmer::Wasmer;

/// One sandbox for all tests of a file: opening reserves address space.
pub(crate) fn sandbox() -> &'static Wasmer {
    static SANDBOX: OnceLock<Wasmer> = OnceLock::new();
    SANDBOX.get_or_init(|| Wasmer::open(&BackendOptions::new()).expect("the backend opens"))
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    runtime.block_on(future)
}

pub(crate) async fn load(wat: &str) -> Result<Arc<dyn Module>> {
    let wasm = wat::parse_str(wat).expect("the test's module is well-formed");
    sandbox().load(Artifact::wasm(wasm)).await
}

pub(crate) async fn prepare(wat: &str, quota: Quota, functions: HostFunctions) -> Result<Arc<dyn Prepared>> {
    let mut policy = Policy { quota, ..Policy::default() };
    policy.grants.host_functions = functions.names().map(str::to_owned).collect();
    load(wat).await?.prepare(policy, functions)
}

/// Runs `_start` of a fresh instance.
pub(crate) fn run(wat: &str, quota: Quota) -> Execution {
    run_call(wat, quota, HostFunctions::new(), Call::new())
}

pub(crate) fn run_call(wat: &str, quota: Quota, functions: HostFunctions, call: Call) -> Execution {
    block_on(async { prepare(wat, quota, functions).await?.run(call).await }).expect("the call is made")
}

/// No bound but wall time, so that a broken test ends.
pub(crate) fn generous() -> Quota {
    Quota { wall_time: Some(Duration::from_secs(60)), ..Quota::unlimited() }
}

pub(crate) fn wall_time(limit: Duration) -> Quota {
    Quota { wall_time: Some(limit), ..Quota::unlimited() }
}

/// Asserts that `resource` ran out in `phase`, by more than its limit.
#[track_caller]
pub(crate) fn assert_exceeded(execution: &Execution, resource: Resource, phase: Phase) {
    match &execution.outcome {
        Outcome::QuotaExceeded { resource: found, limit, used, phase: found_phase } => {
            assert_eq!((*found, *found_phase), (resource, phase), "{}", execution.outcome);
            assert!(used > limit, "{used} is not more than {limit}");
        }
        other => panic!("expected {resource} to run out, but the guest {other}"),
    }
}

/// Sleeps for as long as a clock can say.
pub(crate) const SLEEP: &str = r#"
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; one subscription: monotonic clock, timeout of 2^64-1 ns, relative
  (data (i32.const 16) "\01\00\00\00")
  (data (i32.const 24) "\ff\ff\ff\ff\ff\ff\ff\ff")
  (func (export "_start") (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
"#;

pub(crate) const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;
