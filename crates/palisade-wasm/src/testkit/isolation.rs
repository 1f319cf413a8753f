//! Nothing of one instance is visible to the next.
#![allow(missing_docs, reason = "a test's name says what holds")]

use super::{block_on, generous, prepare};
use palisade_core::{Call, HostFunctions, Outcome, PreparedExt, Sandbox};

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

pub fn nothing_of_the_previous_instance_is_visible(sandbox: &dyn Sandbox) {
    block_on(async {
        let prepared = prepare(sandbox, LEAVES_TRACES, generous(), HostFunctions::new()).await.unwrap();
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
