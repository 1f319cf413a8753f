//! What the tests of both engines in one process share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use palisade::{
    Artifact, BackendOptions, Call, HostFunctions, Outcome, Policy, Prepared, PreparedExt, Quota, Resource, Sandbox,
    TrapKind, block_on,
};

pub(crate) type Opens = fn() -> Arc<dyn Sandbox>;

pub(crate) fn wasmtime() -> Arc<dyn Sandbox> {
    Arc::new(palisade::Wasmtime::open(&BackendOptions::new()).expect("Wasmtime opens"))
}

pub(crate) fn wasmer() -> Arc<dyn Sandbox> {
    Arc::new(palisade_wasmer::Wasmer::open(&BackendOptions::new()).expect("Wasmer opens"))
}

/// A fault, and whether an outcome is that one's.
type Fault = (&'static str, &'static str, fn(&Outcome) -> bool);

fn trapped(outcome: &Outcome, expected: TrapKind) -> bool {
    matches!(outcome, Outcome::Trapped { trap, .. } if *trap == expected)
}

const FAULTS: &[Fault] = &[
    ("out of bounds", "(drop (i32.load (i32.const 0x7fff0000)))", |outcome| {
        trapped(outcome, TrapKind::MemoryOutOfBounds)
    }),
    ("bulk out of bounds", "(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536))", |outcome| {
        trapped(outcome, TrapKind::MemoryOutOfBounds)
    }),
    ("division", "(drop (i32.div_s (i32.const 1) (i32.load (i32.const 0))))", |outcome| {
        trapped(outcome, TrapKind::DivisionByZero)
    }),
    ("unreachable", "unreachable", |outcome| trapped(outcome, TrapKind::Unreachable)),
    ("null reference", "(call_indirect (i32.const 1))", |outcome| trapped(outcome, TrapKind::IndirectCall)),
    ("stack overflow", "(call $deep (i32.const 0))", |outcome| {
        matches!(outcome, Outcome::QuotaExceeded { resource: Resource::Stack, .. })
    }),
    ("nothing", "nop", |outcome| *outcome == Outcome::Completed),
];

fn module(body: &str) -> String {
    format!(
        r#"(module (memory 1) (table 2 funcref)
          (func $deep (param i32) (call $deep (i32.add (local.get 0) (i32.const 1))) (drop (i32.load (local.get 0))))
          (func (export "_start") {body}))"#
    )
}

fn prepare(sandbox: &dyn Sandbox, wat: &str, functions: HostFunctions) -> Arc<dyn Prepared> {
    let wasm = wat::parse_str(wat).expect("the module is well-formed");
    let module = block_on(sandbox.load(Artifact::wasm(wasm))).expect("the module loads");
    let quota = Quota { wall_time: Some(Duration::from_secs(60)), ..Quota::unlimited() };
    let mut policy = Policy { quota, ..Policy::default() };
    policy.grants.host_functions = functions.names().map(str::to_owned).collect();
    module.prepare(policy, functions).expect("the policy is admitted")
}

/// Calls the host function `other`, then faults itself.
const CALLS_THE_OTHER: &str = r#"(module
  (import "palisade" "host_call" (func $call (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1) (data (i32.const 0) "other")
  (func (export "_start")
    (if (i64.ne (call $call (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 0)) (i64.const 0)) (then (return)))
    unreachable))"#;

/// Lets both engines fault on many threads, in turn and inside each other, after they were opened in this order.
pub(crate) fn faults_keep_apart(first: Opens, second: Opens) {
    const THREADS: usize = 16;
    const ROUNDS: usize = 40;
    let engines = [first(), second()];
    let prepared: Vec<Vec<_>> = FAULTS
        .iter()
        .map(|(_, body, _)| {
            engines.iter().map(|engine| prepare(&**engine, &module(body), HostFunctions::new())).collect()
        })
        .collect();
    let nested: Vec<_> = (0..2)
        .map(|outer| {
            let inner: Vec<_> = prepared.iter().map(|engines| Arc::clone(&engines[1 - outer])).collect();
            let functions = HostFunctions::new().add("other", move |_| {
                let inner = inner.clone();
                async move {
                    for ((name, _, expected), prepared) in FAULTS.iter().zip(inner) {
                        let outcome = prepared.run(Call::new()).await.map_err(|error| error.to_string())?.outcome;
                        if !expected(&outcome) {
                            return Err(format!("{name} inside the other engine: {outcome}").into());
                        }
                    }
                    Ok(Default::default())
                }
            });
            prepare(&*engines[outer], CALLS_THE_OTHER, functions)
        })
        .collect();
    let faults: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (prepared, nested) = (&prepared, &nested);
                scope.spawn(move || {
                    let mut faults = 0;
                    for round in 0..ROUNDS {
                        for (index, (name, _, expected)) in FAULTS.iter().enumerate() {
                            // Another order on each thread and in each round.
                            let engine = (thread + round + index) % 2;
                            for engine in [engine, 1 - engine] {
                                let outcome =
                                    block_on(prepared[index][engine].run(Call::new())).expect("it runs").outcome;
                                assert!(expected(&outcome), "{name} on engine {engine}: {outcome}");
                                faults += 1;
                            }
                        }
                        let outcome = block_on(nested[round % 2].run(Call::new())).expect("it runs").outcome;
                        assert!(trapped(&outcome, TrapKind::Unreachable), "nested in engine {}: {outcome}", round % 2);
                        faults += 1 + FAULTS.len();
                    }
                    faults
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no fault reaches its host")).sum()
    });
    assert_eq!(faults, THREADS * ROUNDS * (3 * FAULTS.len() + 1));
}
