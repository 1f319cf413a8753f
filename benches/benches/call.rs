//! Fresh instance + call + drop, and a warm call, through the trait with all quotas on, against a hand-written embedding
//! of the same engine with the same protections.
//!
//! `cargo bench -p palisade-benches --bench call`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use palisade::{Artifact, BackendOptions, Bytes, Call, HostFunctions, Instance, Policy, Prepared, PreparedExt};
use palisade_benches::baseline::{self, Embedding};
use palisade_benches::paired::{compare, report};
use tokio::runtime::Runtime;

/// One 128 KiB memory, of which one page is touched, and a tiny function.
const MODULE: &str = r#"
(module
  (memory (export "memory") 2)
  (global $counter (mut i32) (i32.const 0))
  (func (export "_start")
    (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
    (i32.store (i32.const 1024) (global.get $counter))))
"#;

/// Copies its input to its output.
const ECHO: &str = r#"
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 17)
  (func (export "_start")
    (call $output_write (i32.const 0) (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))))
"#;

/// Every quota that is optional by default is on.
fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.quota.cpu_time = Some(Duration::from_secs(10));
    policy.quota.fuel = Some(1_000_000_000);
    policy
}

fn prepare(runtime: &Runtime, wat: &str) -> Arc<dyn Prepared> {
    let sandbox = palisade::open("wasmtime", &BackendOptions::new()).expect("the backend opens");
    let wasm = wat::parse_str(wat).expect("the module is well-formed");
    let module = runtime.block_on(sandbox.load(Artifact::wasm(wasm))).expect("the module loads");
    module.prepare(policy(), HostFunctions::new()).expect("the policy is admitted")
}

/// `count` fresh instances, each called once and dropped.
async fn fresh(prepared: &dyn Prepared, count: u64) {
    for _ in 0..count {
        let execution = prepared.run(Call::new()).await.expect("the call is made");
        assert!(execution.outcome.is_success(), "{}", execution.outcome);
    }
}

/// `count` calls of one instance.
async fn warm(instance: &mut dyn Instance, count: u64) {
    for _ in 0..count {
        let execution = instance.call(Call::new()).await.expect("the call is made");
        assert!(execution.outcome.is_success(), "{}", execution.outcome);
    }
}

/// The time `work` takes.
fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let prepared = prepare(&runtime, MODULE);
    let engine = baseline::engine().expect("the baseline's engine starts");
    let wasm = wat::parse_str(MODULE).expect("the module is well-formed");
    let embedding = Embedding::new(&engine, &wasm).expect("the baseline compiles");

    // All calls of a measurement run in one `block_on`: entering an executor is not what is measured.
    criterion.bench_function("fresh/palisade", |bencher| {
        bencher.iter_custom(|count| timed(|| runtime.block_on(fresh(&*prepared, count))));
    });
    criterion.bench_function("fresh/baseline", |bencher| bencher.iter(|| embedding.fresh().expect("it ends")));
    let mut instance = runtime.block_on(prepared.instantiate()).expect("there is a slot");
    let mut by_hand = embedding.warm().expect("it starts");
    criterion.bench_function("warm/palisade", |bencher| {
        bencher.iter_custom(|count| timed(|| runtime.block_on(warm(&mut *instance, count))));
    });
    criterion.bench_function("warm/baseline", |bencher| bencher.iter(|| by_hand.call().expect("it ends")));

    let comparison = compare(
        101,
        2000,
        |count| runtime.block_on(fresh(&*prepared, count.into())),
        |count| {
            for _ in 0..count {
                black_box(embedding.fresh().expect("it ends"));
            }
        },
    );
    report("fresh instance + call + drop", &comparison, 1.25);
    let comparison = compare(
        101,
        10_000,
        |count| runtime.block_on(warm(&mut *instance, count.into())),
        |count| (0..count).for_each(|_| by_hand.call().expect("the guest ends")),
    );
    let met = if comparison.subject <= Duration::from_micros(1) { "met" } else { "MISSED" };
    println!(
        "TIME warm call: {:?} ({:?} by hand, sync); target at most 1 µs: {met}",
        comparison.subject, comparison.baseline
    );

    let echo = prepare(&runtime, ECHO);
    let mut echo = runtime.block_on(echo.instantiate()).expect("there is a slot");
    let input: Vec<u8> = (0..1 << 20).map(|index| index as u8).collect();
    let shared = Bytes::copy_from_slice(&input);
    let mut first = vec![0u8; input.len()];
    let mut second = vec![0u8; input.len()];
    let comparison = compare(
        101,
        20,
        |count| {
            runtime.block_on(async {
                for _ in 0..count {
                    let execution = echo.call(Call::new().input(shared.clone())).await.expect("the call is made");
                    assert_eq!(execution.output.len(), input.len());
                }
            });
        },
        |count| {
            for _ in 0..count {
                first.copy_from_slice(black_box(&input));
                second.copy_from_slice(black_box(&first));
                black_box(&mut second);
            }
        },
    );
    report("echo of 1 MiB against two copies", &comparison, 3.0);
}

criterion_group!(group, benches);
criterion_main!(group);
