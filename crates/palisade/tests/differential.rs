//! The same module, policy and input have the same outcome on both Wasm engines: the same class, the same output, the same
//! peak of memory. Fuel is not compared; its units differ.
//!
//! | allowed difference | why |
//! |---|---|
//! | one engine overflows its stack, the other does not | frames differ in size; so each module is run with a stack that is large for what generated modules do, and the difference is counted |

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use palisade::{
    Artifact, Bytes, Call, Execution, HostFunctions, LogRecord, Outcome, Policy, PreparedExt, Quota, Randomness,
    Resource, Sandbox, block_on,
};

/// Generated modules, each run under a generous and a tight policy.
const MODULES: u64 = 5_600;

/// What is compared of an execution.
#[derive(Debug, PartialEq)]
struct Seen {
    outcome: String,
    output: Bytes,
    error: Bytes,
    log: Vec<LogRecord>,
    memory_peak_bytes: u64,
}

fn class(outcome: &Outcome) -> String {
    match outcome {
        // What was asked for, in the same words on both.
        Outcome::QuotaExceeded { resource: Resource::Memory, limit, used, phase } => {
            format!("exceeded memory: {used} of {limit} while {phase}")
        }
        Outcome::QuotaExceeded { resource, phase, .. } => format!("exceeded {resource} while {phase}"),
        Outcome::Trapped { trap, .. } => format!("trapped: {trap}"),
        // A host's failure is never the same as anything.
        Outcome::Crashed { message } => panic!("a sandbox crashed: {message}"),
        other => other.to_string(),
    }
}

impl From<Execution> for Seen {
    fn from(execution: Execution) -> Self {
        Seen {
            outcome: class(&execution.outcome),
            output: execution.output,
            error: execution.error,
            log: execution.log,
            memory_peak_bytes: execution.usage.memory_peak_bytes,
        }
    }
}

fn run(sandbox: &dyn Sandbox, artifact: &Artifact, policy: &Policy, input: &Bytes) -> Result<Seen, String> {
    block_on(async {
        let module = sandbox.load(artifact.clone()).await.map_err(|error| format!("load: {:?}", error.kind()))?;
        let functions = HostFunctions::new().add("f", |call| async move { Ok(call.input) });
        let prepared =
            module.prepare(policy.clone(), functions).map_err(|error| format!("prepare: {:?}", error.kind()))?;
        let execution = prepared.run(Call::new().input(input.clone()).arguments(["one", "two"])).await;
        execution.map(Seen::from).map_err(|error| format!("call: {:?}", error.kind()))
    })
}

fn policy(memory_bytes: u64) -> Policy {
    let quota = Quota {
        wall_time: Some(Duration::from_secs(60)),
        memory_bytes: Some(memory_bytes),
        stack_bytes: Some(4 << 20),
        output_bytes: Some(1 << 20),
        log_bytes: Some(1 << 20),
        host_calls: Some(100),
        ..Quota::unlimited()
    };
    let mut policy = Policy { quota, ..Policy::default() };
    policy.grants.randomness = Randomness::Seeded(1);
    policy.grants.environment.insert("NAME".into(), "value".into());
    policy.grants.host_functions.insert("f".into());
    policy
}

/// Bytes for a generator, the same on every run.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// A module of WebAssembly 2.0 that comes to an end, exports `_start`, and can write output.
fn generate(seed: u64) -> Option<Vec<u8>> {
    let wat = |text: &str| Some(wat::parse_str(text).expect("it is well-formed"));
    let config = wasm_smith::Config {
        available_imports: wat(r#"(module
              (import "palisade" "output_write" (func (param i32 i32)))
              (import "palisade" "error_write" (func (param i32 i32)))
              (import "palisade" "log" (func (param i32 i32 i32)))
              (import "palisade" "input_read" (func (param i32 i32 i32) (result i32)))
              (import "palisade" "host_call" (func (param i32 i32 i32 i32) (result i64)))
              (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32))))"#),
        exports: wat(r#"(module (memory (export "memory") 1) (func (export "_start")))"#),
        // The exported one.
        min_memories: 0,
        max_memory32_bytes: 16 << 20,
        // Reference types come with `externref`, which both backends refuse: now and then, to see that they do.
        reference_types_enabled: seed.is_multiple_of(16),
        max_tables: 1,
        max_table_elements: 50_000,
        min_funcs: 3,
        // What both engines refuse, or where the standard leaves a choice.
        canonicalize_nans: true,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        ..wasm_smith::Config::default()
    };
    let noise = noise(seed, 4096);
    let mut module = wasm_smith::Module::new(config, &mut arbitrary::Unstructured::new(&noise)).ok()?;
    module.ensure_termination(1000).ok()?;
    Some(module.to_bytes())
}

#[derive(Default)]
struct Count {
    /// Modules that loaded on both.
    modules: AtomicUsize,
    completed: AtomicUsize,
    trapped: AtomicUsize,
    exceeded: AtomicUsize,
    wrote: AtomicUsize,
    stacks: AtomicUsize,
}

/// Whether it ran, or how it differs.
fn compare(
    engines: &[Arc<dyn Sandbox>; 2],
    artifact: &Artifact,
    policy: &Policy,
    input: &Bytes,
    count: &Count,
) -> Result<bool, String> {
    let [one, other] = [0, 1].map(|engine| run(&*engines[engine], artifact, policy, input));
    if let Ok(seen) = &one {
        let add = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
        match seen.outcome.split([' ', ':']).next() {
            Some("trapped") => add(&count.trapped),
            Some("exceeded") => add(&count.exceeded),
            _ => add(&count.completed),
        };
        if !seen.output.is_empty() || !seen.error.is_empty() || !seen.log.is_empty() {
            add(&count.wrote);
        }
    }
    if one == other {
        return Ok(one.is_ok());
    }
    let overflowed = |seen: &Result<Seen, String>| seen.as_ref().is_ok_and(|seen| seen.outcome.contains("stack"));
    if overflowed(&one) || overflowed(&other) {
        count.stacks.fetch_add(1, Ordering::Relaxed);
        return Ok(true);
    }
    Err(format!("Wasmtime: {one:?}\nWasmer:   {other:?}"))
}

#[test]
fn generated_modules_end_alike_on_both_engines() {
    let engines = [support::wasmtime(), support::wasmer()];
    let count = Count::default();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut differences = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed) as u64;
            if seed >= MODULES {
                return differences;
            }
            let Some(wasm) = generate(seed) else { continue };
            let artifact = Artifact::wasm(wasm);
            for memory_bytes in [256 << 20, 100_000] {
                let compared =
                    compare(&engines, &artifact, &policy(memory_bytes), &Bytes::from_static(b"some input"), &count);
                match compared {
                    Ok(ran) if memory_bytes > 100_000 => drop(count.modules.fetch_add(ran.into(), Ordering::Relaxed)),
                    Ok(_) => {}
                    Err(difference) => {
                        differences.push(format!("seed {seed}, {memory_bytes} bytes:\n{difference}"));
                    }
                }
            }
        }
    };
    let differences: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("nothing crashes")).collect()
    });
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{} modules: {} completed, {} trapped, {} exceeded, {} wrote, {} overflowed the stack of one engine only",
        of(&count.modules),
        of(&count.completed),
        of(&count.trapped),
        of(&count.exceeded),
        of(&count.wrote),
        of(&count.stacks)
    );
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n\n"));
    assert!(of(&count.modules) >= 2_000, "only {} modules ran", of(&count.modules));
    // The comparison means something only when all of these happen.
    let kinds = [("completed", &count.completed), ("trapped", &count.trapped), ("exceeded", &count.exceeded)];
    for (what, counter) in kinds {
        assert!(of(counter) >= 20, "only {} {what}", of(counter));
    }
    assert!(of(&count.stacks) * 100 <= of(&count.modules), "{} differ by their stacks", of(&count.stacks));
}

#[test]
fn the_suites_probes_end_alike_on_both_engines() {
    let engines = [support::wasmtime(), support::wasmer()];
    let count = Count::default();
    let words = |words: &[u32]| Bytes::from(words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    let inputs: Vec<Bytes> = [&[0u32, 0][..], &[1, 1], &[2, 10, 3], &[3, 0], &[4, 0], &[5, 0], &[100, 0], &[1000, 1]]
        .into_iter()
        .map(words)
        .chain([Bytes::new(), Bytes::from_static(b"\x02\0\0\0f"), Bytes::from_static(b"\x01\0\0\0g")])
        .collect();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/probes");
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).expect("the suite has probes") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_none_or(|extension| extension != "wat") {
            continue;
        }
        let verb = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        let artifact = palisade_conformance::probe::wasm(&verb);
        // Time differs between two runs of anything.
        if verb == "clock" {
            continue;
        }
        for input in &inputs {
            // Their input is a number of 64 bits, which many rounds or nanoseconds they take.
            let number = input.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if ["count", "sleep", "start"].contains(&&*verb) && !(1..=1000).contains(&number) {
                continue;
            }
            for memory_bytes in [64 << 20, 3 << 20, 100_000] {
                let difference = compare(&engines, &artifact, &policy(memory_bytes), input, &count);
                difference
                    .unwrap_or_else(|difference| panic!("{verb} with {input:?}, {memory_bytes} bytes:\n{difference}"));
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "only {compared} runs were compared");
    assert_eq!(count.stacks.load(Ordering::Relaxed), 0);
    // What generated modules hardly ever do.
    assert!(count.wrote.load(Ordering::Relaxed) > 100, "the probes write output");
}
