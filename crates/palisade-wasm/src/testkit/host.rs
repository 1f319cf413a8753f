//! What guests ask of the host, and what the host holds for them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use palisade_core::{
    Artifact, Call, DirectoryGrant, Error, ErrorKind, Execution, HostFunctions, Outcome, Policy, PreparedExt, Quota,
    Resource, Result, Sandbox, block_on,
};

fn policy(quota: Quota) -> Policy {
    Policy { quota, ..Policy::default() }
}

/// No bound but wall time, so that a broken test ends.
fn generous() -> Quota {
    Quota { wall_time: Some(Duration::from_secs(60)), ..Quota::unlimited() }
}

fn with_directory(host: &Path) -> Policy {
    let mut policy = policy(generous());
    policy.grants.directories.push(DirectoryGrant::read_write(host, "/data"));
    policy
}

fn try_run(
    sandbox: &dyn Sandbox,
    wat: &str,
    policy: Policy,
    call: Call,
    functions: HostFunctions,
) -> Result<Execution> {
    let wasm = wat::parse_str(wat).expect("the test's module is well-formed");
    block_on(async { sandbox.load(Artifact::wasm(wasm)).await?.prepare(policy, functions)?.run(call).await })
}

/// Runs `_start` of a fresh instance.
fn run(sandbox: &dyn Sandbox, wat: &str, policy: Policy) -> Execution {
    try_run(sandbox, wat, policy, Call::new(), HostFunctions::new()).expect("the call is made")
}

#[track_caller]
fn assert_completed(execution: &Execution) {
    assert_eq!(execution.outcome, Outcome::Completed);
}

#[track_caller]
fn assert_exceeded(execution: &Execution, resource: Resource) {
    match &execution.outcome {
        Outcome::QuotaExceeded { resource: found, limit, used, .. } => {
            assert_eq!(*found, resource, "{}", execution.outcome);
            assert!(used > limit, "{used} is not more than {limit}");
        }
        other => panic!("expected {resource} to run out, but the guest {other}"),
    }
}

/// A deadline ends the filling of a large buffer with random bytes. What counts is the time on a CPU, compared with what
/// the whole buffer takes.
pub fn random_bytes_are_interrupted(sandbox: &dyn Sandbox) {
    let wat = r#"(module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 1024)
      (func (export "_start") (if (call $random (i32.const 0) (i32.const 0x4000000)) (then unreachable))))"#;
    let whole = run(sandbox, wat, policy(generous()));
    assert_completed(&whole);
    let limit = whole.usage.cpu_time / 8;
    let stopped = run(sandbox, wat, policy(Quota { wall_time: Some(limit), ..generous() }));
    assert_exceeded(&stopped, Resource::WallTime);
    let (used, whole) = (stopped.usage.cpu_time, whole.usage.cpu_time);
    assert!(used < whole / 2, "{used:?} on a CPU for a deadline of {limit:?}; the whole takes {whole:?}");
}

/// A guest that waits for the disk gets its answer.
pub fn files_are_brought_to_the_disk(sandbox: &dyn Sandbox) {
    let scratch = tempfile::tempdir().expect("there is a place for files");
    let wat = r#"(module
      (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_sync" (func $sync (param i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_datasync" (func $datasync (param i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "file")
      (data (i32.const 8) "\00\00\00\00\04\00\00\00")
      (func $check (param i32) (if (local.get 0) (then unreachable)))
      (func (export "_start")
        (call $check (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4)
          (i32.const 1) (i64.const 0x40) (i64.const 0) (i32.const 0) (i32.const 16)))
        (call $check (call $write (i32.load (i32.const 16)) (i32.const 8) (i32.const 1) (i32.const 20)))
        (call $check (call $datasync (i32.load (i32.const 16))))
        (call $check (call $sync (i32.load (i32.const 16))))))"#;
    assert_completed(&run(sandbox, wat, with_directory(scratch.path())));
    assert_eq!(std::fs::read(scratch.path().join("file")).expect("the file is there"), b"file");
}

/// What is not a directory of files cannot be granted, and cannot be reached below what can.
pub fn special_file_systems_are_refused(sandbox: &dyn Sandbox) {
    let nothing = r#"(module (func (export "_start")))"#;
    for path in ["/proc", "/proc/self", "/sys", "/dev"] {
        let refused: Error =
            try_run(sandbox, nothing, with_directory(Path::new(path)), Call::new(), HostFunctions::new())
                .expect_err(path);
        assert_eq!((refused.kind(), refused.operation()), (ErrorKind::InvalidPolicy, "prepare"), "{refused}");
    }
    // Opens what the argument of `_start` names, and exits with the error number.
    let open = |path: &str| {
        let wat = format!(
            r#"(module
              (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
              (memory (export "memory") 1)
              (data (i32.const 0) "{path}")
              (func (export "_start") (result i32)
                (call $open (i32.const 3) (i32.const 1) (i32.const 0) (i32.const {len})
                  (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 1024))))"#,
            len = path.len()
        );
        run(sandbox, &wat, with_directory(Path::new("/"))).outcome
    };
    let errno = |number| Outcome::from_exit_code(number);
    assert_eq!(open("proc/self/maps"), errno(63));
    assert_eq!(open("proc/self/mem"), errno(63));
    assert_eq!(open("sys"), errno(63));
    assert_eq!(open("no-such-file-anywhere"), errno(44));
}

/// What a running host function holds for its guest counts against the guest's memory, to the byte, and a function whose
/// input does not fit is not called.
pub fn the_input_of_a_host_function_is_charged(sandbox: &dyn Sandbox) {
    const PAGE: u64 = 1 << 16;
    const INPUT: u64 = 40_000;
    let wat = format!(
        r#"(module
          (import "palisade" "host_call" (func $call (param i32 i32 i32 i32) (result i64)))
          (memory (export "memory") 1)
          (data (i32.const 0) "count")
          (func (export "_start") (drop (call $call (i32.const 0) (i32.const 5) (i32.const 0) (i32.const {INPUT})))))"#
    );
    let run = |memory_bytes: u64| {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let functions = HostFunctions::new().add("count", move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(Default::default()) }
        });
        let mut policy = policy(Quota { memory_bytes: Some(memory_bytes), ..generous() });
        policy.grants.host_functions.insert("count".to_owned());
        let execution = try_run(sandbox, &wat, policy, Call::new(), functions).expect("the call is made");
        (execution, calls.load(Ordering::SeqCst))
    };
    let (exact, calls) = run(PAGE + INPUT);
    assert_completed(&exact);
    assert_eq!((exact.usage.memory_peak_bytes, calls), (PAGE + INPUT, 1));
    let (short, calls) = run(PAGE + INPUT - 1);
    assert_exceeded(&short, Resource::Memory);
    assert_eq!((short.usage.host_calls, calls), (0, 0));
}

/// However many stack sizes are in use, others still find room.
pub fn every_stack_size_can_be_used_beside_all_others(sandbox: &dyn Sandbox) {
    let wasm = wat::parse_str(r#"(module (func (export "_start")))"#).expect("the test's module is well-formed");
    let module = block_on(sandbox.load(Artifact::wasm(wasm))).expect("it loads");
    let prepared: Vec<_> = (0..24)
        .map(|number| {
            let quota = Quota { stack_bytes: Some((64 << 10) * (1 + 5 * number) + 8 * number), ..generous() };
            module.prepare(policy(quota), HostFunctions::new()).expect("there is an engine for each size")
        })
        .collect();
    for prepared in &prepared {
        assert_completed(&block_on(prepared.run(Call::new())).expect("the call is made"));
    }
}
