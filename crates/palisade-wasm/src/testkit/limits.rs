//! Every quota stops a guest that exceeds it, with the right outcome, and lets it have exactly what it allows.
#![allow(missing_docs, reason = "a test's name says what holds")]

use std::time::Duration;

use super::{SLEEP, SPIN, assert_exceeded, block_on, generous, prepare, run, run_call, wall_time};
use palisade_core::{Call, HostFunctions, Outcome, Phase, Quota, Resource, Sandbox};

const DEADLINE: Duration = Duration::from_millis(30);

pub fn wall_time_stops_a_loop(sandbox: &dyn Sandbox) {
    let execution = run(sandbox, SPIN, wall_time(DEADLINE));
    assert_exceeded(&execution, Resource::WallTime, Phase::Running);
    assert!(execution.usage.wall_time > DEADLINE);
    assert!(execution.usage.fuel > 0);
}

pub fn wall_time_stops_a_start_function(sandbox: &dyn Sandbox) {
    let execution =
        run(sandbox, r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#, wall_time(DEADLINE));
    assert_exceeded(&execution, Resource::WallTime, Phase::Starting);
}

pub fn wall_time_stops_a_reactors_initialization(sandbox: &dyn Sandbox) {
    let wat = r#"(module (func (export "_initialize") (loop (br 0))) (func (export "_start")))"#;
    assert_exceeded(&run(sandbox, wat, wall_time(DEADLINE)), Resource::WallTime, Phase::Starting);
}

pub fn wall_time_stops_a_sleep(sandbox: &dyn Sandbox) {
    assert_exceeded(&run(sandbox, SLEEP, wall_time(DEADLINE)), Resource::WallTime, Phase::HostCall);
}

pub fn wall_time_stops_between_bulk_operations(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 512)
      (func (export "_start") (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x2000000)) (br 0))))"#;
    assert_exceeded(&run(sandbox, wat, wall_time(DEADLINE)), Resource::WallTime, Phase::Running);
}

pub fn wall_time_stops_a_tree_of_calls_without_loops(sandbox: &dyn Sandbox) {
    // Each function calls the next one 64 times, eight deep: 2^48 calls.
    let functions: String =
        (0..8).map(|level| format!("(func $f{level} {})", format!("(call $f{})", level + 1).repeat(64))).collect();
    let wat = format!(r#"(module {functions} (func $f8) (func (export "_start") (call $f0)))"#);
    assert_exceeded(&run(sandbox, &wat, wall_time(DEADLINE)), Resource::WallTime, Phase::Running);
}

pub fn a_guest_that_ends_too_late_was_too_late(sandbox: &dyn Sandbox) {
    assert_exceeded(
        &run(sandbox, r#"(module (func (export "_start")))"#, wall_time(Duration::ZERO)),
        Resource::WallTime,
        Phase::Running,
    );
}

pub fn cpu_time_stops_a_loop_but_not_a_sleep(sandbox: &dyn Sandbox) {
    let quota = Quota { cpu_time: Some(DEADLINE), ..generous() };
    let execution = run(sandbox, SPIN, quota.clone());
    assert_exceeded(&execution, Resource::CpuTime, Phase::Running);
    assert!(execution.usage.cpu_time > DEADLINE);
    let sleeping = run(sandbox, SLEEP, Quota { wall_time: Some(DEADLINE * 4), ..quota });
    assert_exceeded(&sleeping, Resource::WallTime, Phase::HostCall);
    assert!(sleeping.usage.cpu_time < DEADLINE, "{:?} on a CPU while asleep", sleeping.usage.cpu_time);
}

pub fn exactly_the_fuel_used_is_enough(sandbox: &dyn Sandbox) {
    let wat = r#"(module (func (export "_start") (local i32)
      (loop (local.set 0 (i32.add (local.get 0) (i32.const 1))) (br_if 0 (i32.lt_u (local.get 0) (i32.const 1000))))))"#;
    let used = run(sandbox, wat, generous()).usage.fuel;
    assert!(used > 1000);
    assert_eq!(run(sandbox, wat, generous()).usage.fuel, used, "fuel is deterministic");
    let enough = run(sandbox, wat, Quota { fuel: Some(used), ..generous() });
    assert_eq!(enough.outcome, Outcome::Completed);
    for limit in [used - 1, used / 2, 1, 0] {
        let short = run(sandbox, wat, Quota { fuel: Some(limit), ..generous() });
        assert_exceeded(&short, Resource::Fuel, Phase::Running);
        assert_eq!(short.usage.fuel, limit);
    }
}

pub fn fuel_covers_start_functions_and_the_length_of_bulk_operations(sandbox: &dyn Sandbox) {
    let start = r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#;
    assert_exceeded(&run(sandbox, start, Quota { fuel: Some(10_000), ..generous() }), Resource::Fuel, Phase::Starting);
    let fill =
        r#"(module (memory 1) (func (export "_start") (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))))"#;
    assert!(run(sandbox, fill, generous()).usage.fuel >= 65_536);
    assert_exceeded(&run(sandbox, fill, Quota { fuel: Some(65_535), ..generous() }), Resource::Fuel, Phase::Running);
}

pub fn initial_memory_counts_to_the_byte(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 2) (func (export "_start")))"#;
    let exact = run(sandbox, wat, Quota { memory_bytes: Some(2 << 16), ..generous() });
    assert_eq!(exact.outcome, Outcome::Completed);
    assert_eq!(exact.usage.memory_peak_bytes, 2 << 16);
    let short = run(sandbox, wat, Quota { memory_bytes: Some((2 << 16) - 1), ..generous() });
    assert_exceeded(&short, Resource::Memory, Phase::Starting);
}

pub fn grown_memory_counts_with_the_initial_one(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 1) (func (export "_start")
      (if (i32.eq (memory.grow (i32.const 3)) (i32.const -1)) (then unreachable))
      (i32.store (i32.const 262140) (i32.const 1))))"#;
    let exact = run(sandbox, wat, Quota { memory_bytes: Some(4 << 16), ..generous() });
    assert_eq!(exact.outcome, Outcome::Completed);
    assert_eq!(exact.usage.memory_peak_bytes, 4 << 16);
    assert_exceeded(
        &run(sandbox, wat, Quota { memory_bytes: Some((4 << 16) - 1), ..generous() }),
        Resource::Memory,
        Phase::Running,
    );
}

pub fn growing_beyond_the_modules_own_maximum_is_the_guests_business(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 1 1) (func (export "_start")
      (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))))"#;
    assert_eq!(run(sandbox, wat, generous()).outcome, Outcome::Completed);
}

pub fn tables_count_as_memory(sandbox: &dyn Sandbox) {
    let tables = "(table 10000000 funcref)".repeat(100);
    let wat = format!(r#"(module {tables} (func (export "_start")))"#);
    assert_exceeded(&run(sandbox, &wat, Quota::default()), Resource::Memory, Phase::Starting);
    let grow = r#"(module (table 1 funcref) (func (export "_start")
      (loop (drop (table.grow (ref.null func) (i32.const 1000))) (br 0))))"#;
    assert_exceeded(
        &run(sandbox, grow, Quota { memory_bytes: Some(1 << 20), ..generous() }),
        Resource::Memory,
        Phase::Running,
    );
}

pub fn a_declared_gigabyte_is_refused_before_it_is_mapped(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 16384) (func (export "_start")))"#;
    let execution = run(sandbox, wat, Quota::default());
    assert_exceeded(&execution, Resource::Memory, Phase::Starting);
    assert_eq!(execution.usage.memory_peak_bytes, 0);
}

pub fn modules_too_large_for_the_pool_still_run(sandbox: &dyn Sandbox) {
    let tables = "(table 150000 funcref)".repeat(6);
    let wat =
        format!(r#"(module {tables} (memory 1) (func (export "_start") (i32.store (i32.const 0) (i32.const 1))))"#);
    let execution = run(sandbox, &wat, generous());
    assert_eq!(execution.outcome, Outcome::Completed);
    assert_eq!(execution.usage.memory_peak_bytes, 6 * 150_000 * 8 + (1 << 16));
}

pub fn what_the_host_holds_counts_as_memory(sandbox: &dyn Sandbox) {
    let flood = r#"(module (import "palisade" "output_write" (func $write (param i32 i32))) (memory (export "memory") 1)
      (func (export "_start") (loop (call $write (i32.const 0) (i32.const 65536)) (br 0))))"#;
    assert_exceeded(
        &run(sandbox, flood, Quota { memory_bytes: Some(1 << 20), ..generous() }),
        Resource::Memory,
        Phase::Running,
    );
    let call = Call::new().input(vec![0; 1 << 20]);
    let quota = Quota { memory_bytes: Some(1 << 19), ..generous() };
    let execution = run_call(sandbox, r#"(module (func (export "_start")))"#, quota, HostFunctions::new(), call);
    assert_exceeded(&execution, Resource::Memory, Phase::Starting);
}

/// Recurses as deep as its input is long.
const RECURSE: &str = r#"(module (import "palisade" "input_len" (func $len (result i32)))
  (func $f (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $f (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0))))
  (func (export "_start") (drop (call $f (call $len)))))"#;

pub fn the_stack_is_bounded_by_its_own_quota(sandbox: &dyn Sandbox) {
    let depth = |depth: usize, stack_bytes| {
        let quota = Quota { stack_bytes: Some(stack_bytes), ..generous() };
        run_call(sandbox, RECURSE, quota, HostFunctions::new(), Call::new().input(vec![0; depth]))
    };
    assert_eq!(depth(100, 64 << 10).outcome, Outcome::Completed);
    assert_exceeded(&depth(50_000, 64 << 10), Resource::Stack, Phase::Running);
    assert_eq!(depth(50_000, 8 << 20).outcome, Outcome::Completed);
    assert_exceeded(&depth(10_000_000, 8 << 20), Resource::Stack, Phase::Running);
    assert_exceeded(&depth(10_000_000, 512 << 10), Resource::Stack, Phase::Running);
}

pub fn output_and_log_keep_exactly_their_limit(sandbox: &dyn Sandbox) {
    let write = |import: &str, arguments: &str, len: u32| {
        format!(
            r#"(module (import "palisade" "{import}" (func $write (param {arguments} i32 i32)))
              (memory (export "memory") 1) (data (i32.const 0) "0123456789")
              (func (export "_start") (call $write {} (i32.const 0) (i32.const {len}))))"#,
            if arguments.is_empty() { "" } else { "(i32.const 2)" }
        )
    };
    let quota = Quota { output_bytes: Some(8), log_bytes: Some(8), ..generous() };
    let exact = run(sandbox, &write("output_write", "", 8), quota.clone());
    assert_eq!((exact.outcome, &exact.output[..]), (Outcome::Completed, &b"01234567"[..]));
    let more = run(sandbox, &write("output_write", "", 9), quota.clone());
    assert_exceeded(&more, Resource::Output, Phase::Running);
    assert_eq!((&more.output[..], more.usage.output_bytes), (&b"01234567"[..], 8));
    let exact = run(sandbox, &write("error_write", "", 8), quota.clone());
    assert_eq!((exact.outcome, &exact.error[..]), (Outcome::Completed, &b"01234567"[..]));
    assert_exceeded(&run(sandbox, &write("error_write", "", 9), quota.clone()), Resource::Log, Phase::Running);
    assert_exceeded(&run(sandbox, &write("log", "i32", 1), quota), Resource::Log, Phase::Running);
}

pub fn exactly_the_allowed_number_of_host_calls_is_made(sandbox: &dyn Sandbox) {
    let calls = |count: u32| {
        let wat = format!(
            r#"(module (import "palisade" "host_call" (func $call (param i32 i32 i32 i32) (result i64)))
              (memory (export "memory") 1) (data (i32.const 0) "f") (global $n (mut i32) (i32.const {count}))
              (func (export "_start") (loop
                (drop (call $call (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))
                (global.set $n (i32.sub (global.get $n) (i32.const 1)))
                (br_if 0 (global.get $n)))))"#
        );
        let functions = HostFunctions::new().add("f", |_| async { Ok(Default::default()) });
        run_call(sandbox, &wat, Quota { host_calls: Some(3), ..generous() }, functions, Call::new())
    };
    let allowed = calls(3);
    assert_eq!((allowed.outcome, allowed.usage.host_calls), (Outcome::Completed, 3));
    let refused = calls(4);
    assert_exceeded(&refused, Resource::HostCalls, Phase::Running);
    assert_eq!(refused.usage.host_calls, 3);
}

pub fn quotas_of_calls_begin_anew_and_memory_stays(sandbox: &dyn Sandbox) {
    let wat = r#"(module (memory 1) (func (export "_start") (drop (memory.grow (i32.const 1)))))"#;
    block_on(async {
        let quota = Quota { memory_bytes: Some(3 << 16), fuel: Some(100), ..generous() };
        let prepared = prepare(sandbox, wat, quota, HostFunctions::new()).await.unwrap();
        let mut instance = prepared.instantiate().await.unwrap();
        for pages in [2, 3] {
            let execution = instance.call(Call::new()).await.unwrap();
            assert_eq!(execution.outcome, Outcome::Completed);
            assert_eq!(execution.usage.memory_peak_bytes, pages << 16);
        }
        let execution = instance.call(Call::new()).await.unwrap();
        assert_exceeded(&execution, Resource::Memory, Phase::Running);
    });
}

pub fn a_sibling_is_not_disturbed(sandbox: &dyn Sandbox) {
    let quick = r#"(module (func (export "_start")))"#;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let hog = prepare(sandbox, SPIN, wall_time(Duration::from_millis(200)), HostFunctions::new()).await.unwrap();
        let quick = prepare(sandbox, quick, generous(), HostFunctions::new()).await.unwrap();
        // A hog on every worker thread; the others still come to their end, because hogs yield.
        let hogs: Vec<_> = (0..2)
            .map(|_| {
                let hog = hog.clone();
                tokio::spawn(async move { palisade_core::PreparedExt::run(&*hog, Call::new()).await.unwrap() })
            })
            .collect();
        for _ in 0..100 {
            let quick = quick.clone();
            let sibling =
                tokio::spawn(async move { palisade_core::PreparedExt::run(&*quick, Call::new()).await.unwrap() });
            assert_eq!(sibling.await.unwrap().outcome, Outcome::Completed);
        }
        for hog in hogs {
            assert_exceeded(&hog.await.unwrap(), Resource::WallTime, Phase::Running);
        }
    });
}
