//! The Wasmer backend against hand-written embeddings of the same engine: fresh instance + call + drop, a warm call, and
//! the time in which a guest is stopped.
//!
//! `cargo bench -p palisade-benches --bench wasmer`

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::{Artifact, BackendOptions, Call, HostFunctions, Policy, Prepared, PreparedExt};
use palisade_benches::paired::{compare, report};
use palisade_benches::wasmer_baseline::{Embedding, Thread};

/// One 128 KiB memory, of which one page is touched, and a tiny function.
const MODULE: &str = r#"
(module
  (memory (export "memory") 2)
  (global $counter (mut i32) (i32.const 0))
  (func (export "_start")
    (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
    (i32.store (i32.const 1024) (global.get $counter))))
"#;

/// The same with its limits written by hand.
const METERED: &str = r#"
(module
  (import "host" "check" (func $check))
  (memory (export "memory") 2)
  (global $counter (mut i32) (i32.const 0))
  (global $fuel (export "fuel") (mut i64) (i64.const 0))
  (global $stop (export "stop") (mut i64) (i64.const 0))
  (func (export "_start")
    (if (i64.lt_s (i64.or (global.get $fuel) (global.get $stop)) (i64.const 0)) (then (call $check)))
    (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
    (i32.store (i32.const 1024) (global.get $counter))
    (global.set $fuel (i64.sub (global.get $fuel) (i64.const 7)))))
"#;

const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;

fn prepare(wat: &str, change: impl FnOnce(&mut Policy)) -> Arc<dyn Prepared> {
    let sandbox = palisade::open("wasmer", &BackendOptions::new()).expect("the backend opens");
    let wasm = wat::parse_str(wat).expect("the module is well-formed");
    let module = palisade::block_on(sandbox.load(Artifact::wasm(wasm))).expect("the module loads");
    let mut policy = Policy::default();
    policy.quota.cpu_time = Some(Duration::from_secs(10));
    policy.quota.fuel = Some(1_000_000_000);
    change(&mut policy);
    module.prepare(policy, HostFunctions::new()).expect("the policy is admitted")
}

fn main() {
    let prepared = prepare(MODULE, |_| ());
    let wasm = wat::parse_str(METERED).expect("the module is well-formed");
    let embedding = Embedding::new(&wasm).expect("the baseline compiles");
    let fresh = |count: u32| {
        palisade::block_on(async {
            for _ in 0..count {
                let execution = prepared.run(Call::new()).await.expect("the call is made");
                assert!(execution.outcome.is_success(), "{}", execution.outcome);
            }
        });
    };
    let comparison = compare(41, 500, fresh, |count| {
        (0..count).for_each(|_| embedding.fresh().expect("it ends"));
    });
    report("fresh instance + call + drop, against a call on the caller's own thread", &comparison, 1.25);
    let by_hand = Embedding::new(&wasm).expect("the baseline compiles");
    let thread = Thread::start(move || move || by_hand.fresh().expect("it ends"));
    let comparison = compare(41, 500, fresh, |count| (0..count).for_each(|_| thread.call()));
    report("fresh instance + call + drop, against a call on another thread", &comparison, 1.25);

    let mut instance = palisade::block_on(prepared.instantiate()).expect("there is a slot");
    let mut warm = |count: u32| {
        palisade::block_on(async {
            for _ in 0..count {
                let execution = instance.call(Call::new()).await.expect("the call is made");
                assert!(execution.outcome.is_success(), "{}", execution.outcome);
            }
        });
    };
    let mut by_hand = embedding.warm().expect("it starts");
    let comparison = compare(41, 5000, &mut warm, |count| (0..count).for_each(|_| by_hand.call().expect("it ends")));
    println!(
        "TIME warm call: {:?}; by hand on the caller's own thread, where nothing can stop it: {:?}",
        comparison.subject, comparison.baseline
    );
    let by_hand = Embedding::new(&wasm).expect("the baseline compiles");
    let thread = Thread::start(move || {
        let mut instance = by_hand.warm().expect("it starts");
        move || {
            instance.call().expect("it ends");
            // The code lives as long as its engine.
            let _ = &by_hand;
        }
    });
    let comparison = compare(41, 5000, &mut warm, |count| (0..count).for_each(|_| thread.call()));
    report("warm call, against a call on another thread", &comparison, 1.5);

    let limit = Duration::from_millis(5);
    let spin = prepare(SPIN, |policy| {
        policy.quota.wall_time = Some(limit);
        policy.quota.fuel = None;
    });
    let mut late: Vec<_> = (0..300)
        .map(|_| {
            let started = Instant::now();
            let execution = palisade::block_on(spin.run(Call::new())).expect("the call is made");
            assert!(!execution.outcome.is_success());
            started.elapsed().saturating_sub(limit)
        })
        .collect();
    late.sort();
    let p99 = late[late.len() * 99 / 100];
    let met = if p99 <= Duration::from_millis(10) { "met" } else { "MISSED" };
    println!("TIME a spinning guest is stopped {p99:?} after its deadline at the 99th percentile; target 10 ms: {met}");
}
