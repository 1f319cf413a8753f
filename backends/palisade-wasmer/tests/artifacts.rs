//! Artifacts and policies that cannot be run are refused, in words that help.

mod support;

use palisade_core::{
    Abi, Artifact, ArtifactKind, Call, ErrorKind, HostFunctions, Outcome, Policy, PreparedExt, Sandbox, TrapKind,
};
use support::{block_on, generous, load, prepare, run, sandbox};

fn load_error(bytes: &[u8]) -> (ErrorKind, String) {
    let error = block_on(sandbox().load(Artifact::wasm(bytes.to_vec()))).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn what_is_no_module_is_refused() {
    let good =
        wat::parse_str(r#"(module (func (export "_start") (drop (i32.add (i32.const 1) (i32.const 2)))))"#).unwrap();
    let mut wrong_type = good.clone();
    // Turns the addition into a test for zero, which leaves too much on the stack.
    let add = wrong_type.iter().rposition(|byte| *byte == 0x6a).unwrap();
    wrong_type[add] = 0x45;
    for bytes in [&b""[..], b"\0asm", b"hello, world", b"\x7fELF\x02\x01\x01", &good[..good.len() - 3], &wrong_type] {
        let (kind, message) = load_error(bytes);
        assert_eq!(kind, ErrorKind::InvalidArtifact, "{message}");
        assert!(!message.contains('\n'));
    }
}

#[test]
fn other_kinds_of_artifact_are_unsupported() {
    let artifact = Artifact::new(ArtifactKind::Executable, &b"\x7fELF"[..]);
    assert_eq!(block_on(sandbox().load(artifact)).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn every_missing_import_is_listed_with_advice() {
    let wat = r#"(module
      (import "env" "printf" (func (param i32 i32) (result i32)))
      (import "palisade" "output_rite" (func (param i32 i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
      (import "wasi:cli/run" "run" (func))
      (import "env" "memory" (memory 1))
      (func (export "_start")))"#;
    let error = block_on(prepare(wat, generous(), HostFunctions::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let message = error.to_string();
    for part in [
        "env.printf",
        "undefined C symbol",
        "did you mean `output_write`?",
        "wasi:cli/run.run",
        "preview 2",
        "env.memory",
    ] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains("fd_write"), "{message}");
    assert_eq!(error.context().len(), 4);
}

#[test]
fn an_import_of_the_wrong_type_is_refused() {
    let wat = r#"(module (import "palisade" "input_len" (func (param i64))) (func (export "_start")))"#;
    let error = block_on(prepare(wat, generous(), HostFunctions::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArtifact);
    assert!(error.to_string().contains("input_len"), "{error}");
}

#[test]
fn a_wrong_entry_is_named_with_those_that_exist() {
    block_on(async {
        let wat = r#"(module (memory (export "memory") 1) (global (export "g") i32 (i32.const 1))
          (func (export "resize")) (func (export "crop") (result i32) (i32.const 0)) (func (export "f") (param i32)))"#;
        let prepared = prepare(wat, generous(), HostFunctions::new()).await.unwrap();
        let mut instance = prepared.instantiate().await.unwrap();
        let cases = [
            ("_start", "no export `_start`"),
            ("resise", "did you mean `resize`?"),
            ("f", "`f` is a func(i32) -> ()"),
            ("memory", "`memory` is a memory"),
            ("g", "`g` is a global"),
        ];
        for (entry, expected) in cases {
            let error = instance.call(Call::new().entry(entry)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains("`resize`, `crop`"), "{message}");
        }
        // None of these was a call: the instance still serves.
        assert_eq!(instance.call(Call::new().entry("crop")).await.unwrap().outcome, Outcome::Completed);
    });
}

#[test]
fn malformed_arguments_and_policies_are_refused() {
    block_on(async {
        let module = load(r#"(module (func (export "_start")))"#).await.unwrap();
        let prepared = module.prepare(Policy::default(), HostFunctions::new()).unwrap();
        let error = prepared.run(Call::new().arguments(["a\0b"])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let refused = |change: &dyn Fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            module.prepare(policy, HostFunctions::new()).unwrap_err().kind()
        };
        assert_eq!(refused(&|policy| policy.grants.network = true), ErrorKind::Unsupported);
        assert_eq!(refused(&|policy| policy.grants.child_processes = true), ErrorKind::Unsupported);
        assert_eq!(refused(&|policy| policy.quota.stack_bytes = Some(1 << 30)), ErrorKind::Unsupported);
        assert_eq!(refused(&|policy| policy.quota.memory_bytes = Some(1 << 40)), ErrorKind::Unsupported);
        let missing = palisade_core::DirectoryGrant::read_only("/nonexistent/for/sure", "/x");
        assert_eq!(refused(&|policy| policy.grants.directories.push(missing.clone())), ErrorKind::NotFound);
    });
}

#[test]
fn traps_are_told_apart_and_name_the_function() {
    let cases = [
        ("unreachable", TrapKind::Unreachable),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", TrapKind::DivisionByZero),
        ("(drop (i32.load (i32.const 0x7fffffff)))", TrapKind::MemoryOutOfBounds),
        ("(call_indirect (i32.const 0))", TrapKind::IndirectCall),
        ("(call_indirect (i32.const 9))", TrapKind::TableOutOfBounds),
        ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", TrapKind::Arithmetic),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", TrapKind::Arithmetic),
    ];
    for (code, expected) in cases {
        let wat = format!(
            r#"(module (memory 1) (table 1 funcref) (func $culprit {code}) (func (export "_start") (call $culprit)))"#
        );
        match run(&wat, generous()).outcome {
            Outcome::Trapped { trap, message } => {
                assert_eq!(trap, expected, "{code}");
                assert!(message.contains("culprit"), "{code}: {message}");
            }
            other => panic!("{code}: {other}"),
        }
    }
}

#[test]
fn a_module_says_what_it_is() {
    block_on(async {
        let wat = r#"(module
          (import "palisade" "host_call" (func (param i32 i32 i32 i32) (result i64)))
          (import "env" "f" (func))
          (memory (export "memory") 2 10) (func $s) (start $s)
          (func (export "run") (result i32) (i32.const 0)) (func (export "other") (param i32)))"#;
        let module = load(wat).await.unwrap();
        let info = module.info();
        assert_eq!((info.abi, info.has_start, info.cached), (Abi::Reactor, true, false));
        assert_eq!((info.memory_initial_bytes, info.memory_maximum_bytes), (2 << 16, Some(10 << 16)));
        assert_eq!(info.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["run"]);
        assert_eq!(info.imports[0].provider.as_deref(), Some("palisade"));
        assert_eq!(info.imports[1].provider, None);
        assert!(info.needs.iter().any(|need| need.starts_with("host_functions")));
    });
}
