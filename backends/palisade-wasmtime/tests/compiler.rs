//! Compiling in a process of its own. The process is this program, so that it has a `main` of its own.

use std::future::poll_fn;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libtest_mimic::{Arguments, Trial};
use palisade_core::{
    Artifact, BackendOptions, Call, ErrorKind, Execution, HostFunctions, Module, Outcome, Policy, PreparedExt, Result,
    Sandbox, block_on,
};
use palisade_wasmtime::Wasmtime;

fn main() -> ExitCode {
    if let Some(compiled) = Wasmtime::compile_if_asked() {
        return compiled;
    }
    let tests = [
        ("compiled_code_runs", compiled_code_runs as fn()),
        ("compiled_code_is_kept_in_the_cache", compiled_code_is_kept_in_the_cache),
        ("a_module_that_needs_no_slot_is_compiled_as_well", a_module_that_needs_no_slot_is_compiled_as_well),
        ("a_program_that_does_not_compile_is_told", a_program_that_does_not_compile_is_told),
        ("giving_up_ends_the_compiler", giving_up_ends_the_compiler),
    ];
    let tests = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), tests.collect()).exit_code()
}

fn options() -> BackendOptions {
    BackendOptions::new().instances_max(4).compiler("/proc/self/exe")
}

fn load(sandbox: &Wasmtime, wat: &str) -> Result<Arc<dyn Module>> {
    block_on(sandbox.load(Artifact::wasm(wat::parse_str(wat).expect("the test's module is well-formed"))))
}

fn run(module: &dyn Module) -> Execution {
    let prepared = module.prepare(Policy::default(), HostFunctions::new()).expect("it is prepared");
    block_on(prepared.run(Call::new())).expect("the call is made")
}

const ANSWER: &str = r#"(module (func (export "_start") (result i32) (i32.const 42)))"#;

fn compiled_code_runs() {
    let sandbox = Wasmtime::open(&options()).expect("it opens");
    let module = load(&sandbox, ANSWER).expect("it loads");
    assert_eq!(run(&*module).outcome, Outcome::from_exit_code(42));
    assert!(!module.info().cached && module.info().notes.is_empty(), "{:?}", module.info().notes);
}

fn compiled_code_is_kept_in_the_cache() {
    let scratch = tempfile::tempdir().expect("there is a place for files");
    let options = options().cache(scratch.path().join("cache"), scratch.path().join("data/key"));
    for cached in [false, true] {
        let sandbox = Wasmtime::open(&options).expect("it opens");
        let module = load(&sandbox, ANSWER).expect("it loads");
        assert_eq!((module.info().cached, &module.info().notes[..]), (cached, &[][..]));
        assert_eq!(run(&*module).outcome, Outcome::from_exit_code(42));
    }
}

fn a_module_that_needs_no_slot_is_compiled_as_well() {
    let sandbox = Wasmtime::open(&options()).expect("it opens");
    let wat = format!(r#"(module {} (memory 1) (func (export "_start")))"#, "(table 1 funcref)".repeat(9));
    assert_eq!(run(&*load(&sandbox, &wat).expect("it loads")).outcome, Outcome::Completed);
}

fn a_program_that_does_not_compile_is_told() {
    for (program, kind) in [("/no/such/program", ErrorKind::Io), ("/bin/false", ErrorKind::InvalidArtifact)] {
        let sandbox = Wasmtime::open(&options().compiler(program)).expect("it opens");
        assert_eq!(load(&sandbox, ANSWER).expect_err(program).kind(), kind, "{program}");
    }
    // It says nothing, which is no code.
    let sandbox = Wasmtime::open(&options().compiler("/bin/true")).expect("it opens");
    assert_eq!(load(&sandbox, ANSWER).expect_err("no code").kind(), ErrorKind::Internal);
}

/// Whether there are places to compile `count` artifacts at once.
fn load_at_once(sandbox: &Wasmtime, count: usize) -> bool {
    let artifact = || Artifact::wasm(wat::parse_str(ANSWER).expect("the test's module is well-formed"));
    let mut loads: Vec<_> = (0..count).map(|_| Some(sandbox.load(artifact()))).collect();
    let mut room = true;
    block_on(poll_fn(|context| {
        for load in &mut loads {
            let Some(Poll::Ready(loaded)) = load.as_mut().map(|load| load.as_mut().poll(context)) else { continue };
            *load = None;
            if let Err(error) = loaded {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
                room = false;
            }
        }
        if loads.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    }));
    room
}

/// CPU time of all children that have ended, in hundredths of a second.
fn children_cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("there is procfs");
    let fields: Vec<_> = stat.rsplit_once(')').expect("it has a name").1.split_whitespace().collect();
    fields[13..15].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn giving_up_ends_the_compiler() {
    let sandbox = Wasmtime::open(&options()).expect("it opens");
    // Much work for few bytes: every branch carries every local.
    let change: String =
        (0..1000).map(|local| format!("(local.set {local} (i32.add (local.get {local}) (i32.const 1)))")).collect();
    let wat = |number: u32| {
        let branches = "(br_if 0 (local.get 0))".repeat(1500);
        let locals = "(local i32)".repeat(1000);
        let body = format!("{locals} (loop {change} {branches}) (drop (i32.const {number}))");
        format!(r#"(module (func (export "_start") {body}))"#)
    };
    let artifact = |number| Artifact::wasm(wat::parse_str(wat(number)).expect("the test's module is well-formed"));
    let before = children_cpu();
    block_on(sandbox.load(artifact(0))).expect("it loads");
    let whole = children_cpu() - before;
    let before = children_cpu();
    let mut context = Context::from_waker(Waker::noop());
    let mut loads: Vec<_> = (1..=8).map(|number| sandbox.load(artifact(number))).collect();
    loads.iter_mut().for_each(|load| assert!(matches!(load.as_mut().poll(&mut context), Poll::Pending)));
    drop(loads);
    // Bounded by the test runner's own limit: all eight places come back, or this never ends.
    while !load_at_once(&sandbox, 8) {
        std::thread::yield_now();
    }
    let used = children_cpu() - before;
    assert!(used < 8 * whole / 2, "{used} for eight that were given up at once; one takes {whole}");
}
