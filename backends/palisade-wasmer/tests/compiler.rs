//! Compiling in a process of its own. The process is this program, so that it has a `main` of its own.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use palisade_core::{
    Artifact, BackendOptions, Call, ErrorKind, HostFunctions, Module, Outcome, Policy, PreparedExt, Quota, Resource,
    Result, Sandbox, block_on,
};
use palisade_wasmer::Wasmer;

fn main() -> ExitCode {
    if let Some(compiled) = Wasmer::compile_if_asked() {
        return compiled;
    }
    let tests = [
        ("compiled_code_runs_within_its_limits", compiled_code_runs_within_its_limits as fn()),
        ("a_program_that_does_not_compile_is_told", a_program_that_does_not_compile_is_told),
    ];
    let tests = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), tests.collect()).exit_code()
}

fn load(program: &str, wat: &str) -> Result<Arc<dyn Module>> {
    let sandbox = Wasmer::open(&BackendOptions::new().compiler(program)).expect("it opens");
    block_on(sandbox.load(Artifact::wasm(wat::parse_str(wat).expect("the test's module is well-formed"))))
}

const PLUGIN: &str = r#"(module
  (memory (export "memory") 1)
  (func (export "_start") (result i32) (i32.const 42))
  (func $trap (export "trap") unreachable)
  (func (export "spin") (loop (br 0)))
  (func (export "grow") (drop (memory.grow (i32.const 100)))))"#;

fn compiled_code_runs_within_its_limits() {
    let module = load("/proc/self/exe", PLUGIN).expect("it loads");
    let quota = Quota { fuel: Some(1_000_000), memory_bytes: Some(1 << 20), ..Quota::default() };
    let prepared = module.prepare(Policy { quota, ..Policy::default() }, HostFunctions::new()).expect("it is prepared");
    let run = |entry: &'static str| block_on(prepared.run(Call::new().entry(entry))).expect("the call is made").outcome;
    assert_eq!(run("_start"), Outcome::from_exit_code(42));
    let trapped = run("trap");
    assert!(matches!(&trapped, Outcome::Trapped { message, .. } if message.contains("`trap`")), "{trapped}");
    for (entry, expected) in [("spin", Resource::Fuel), ("grow", Resource::Memory)] {
        let outcome = run(entry);
        assert!(matches!(&outcome, Outcome::QuotaExceeded { resource, .. } if *resource == expected), "{outcome}");
    }
}

fn a_program_that_does_not_compile_is_told() {
    for (program, kind) in [
        ("/no/such/program", ErrorKind::Io),
        ("/bin/false", ErrorKind::InvalidArtifact),
        // It says nothing, which is no code.
        ("/bin/true", ErrorKind::Internal),
    ] {
        assert_eq!(load(program, PLUGIN).expect_err(program).kind(), kind, "{program}");
    }
}
