//! Nothing of one instance is visible to the next, and nothing is left behind.
//!
//! One test per process would be cleaner for the resident size; so this file has one test for it, and the others are
//! small.

mod support;

use palisade_core::{Call, HostFunctions, Outcome, PreparedExt};
use support::{block_on, generous, prepare};

/// Fails when anything was left in its memory, global or table; then leaves something.
const LEAVES_TRACES: &str = r#"(module
  (memory 8) (global $g (mut i32) (i32.const 0)) (table $t 16 funcref) (func $f) (elem declare func $f)
  (func (export "_start")
    (local $at i32)
    (loop $scan
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $scan (i32.lt_u (local.get $at) (i32.const 0x80000))))
    (if (global.get $g) (then unreachable))
    (if (i32.eqz (ref.is_null (table.get $t (i32.const 7)))) (then unreachable))
    (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 0x80000))
    (global.set $g (i32.const 42))
    (table.set $t (i32.const 7) (ref.func $f))))"#;

#[test]
fn nothing_of_the_previous_instance_is_visible() {
    block_on(async {
        let prepared = prepare(LEAVES_TRACES, generous(), HostFunctions::new()).await.unwrap();
        for _ in 0..200 {
            let execution = prepared.run(Call::new()).await.unwrap();
            assert_eq!(execution.outcome, Outcome::Completed);
        }
        // The check itself can fail: a kept instance finds what it left.
        let mut kept = prepared.instantiate().await.unwrap();
        assert_eq!(kept.call(Call::new()).await.unwrap().outcome, Outcome::Completed);
        assert!(matches!(kept.call(Call::new()).await.unwrap().outcome, Outcome::Trapped { .. }));
    });
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("statm has a second field");
    pages * rustix::param::page_size() as u64
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("Linux has /proc").count()
}

#[test]
fn ten_thousand_fresh_runs_leave_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let prepared = runtime.block_on(prepare(LEAVES_TRACES, generous(), HostFunctions::new())).unwrap();
    let cycle = |runs: usize| {
        for _ in 0..runs {
            runtime.block_on(prepared.run(Call::new())).unwrap();
        }
    };
    cycle(1000);
    let (resident, files) = (resident_bytes(), count("/proc/self/fd"));
    cycle(10_000);
    let grown = resident_bytes().saturating_sub(resident);
    // The other test of this file may still be running and owns a slot and a runtime; a leak of 1 KiB per run would
    // be 10 MiB.
    assert!(grown < 4 << 20, "resident memory grew by {grown} bytes");
    assert!(count("/proc/self/fd") <= files + 8, "file descriptors were left behind");
}
