//! What is wrong with a command line, a file or a module: one line that says so, the right exit code, and nothing left
//! behind.

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use support::guests;
use support::{Palisade, assert_exceeded};

#[test]
fn a_missing_file_suggests_the_one_that_is_there() {
    let palisade = Palisade::new();
    palisade.file("resize.wasm", "");
    palisade.run(["run", "resise.wasm"]).assert_error(125, &["no such file: resise.wasm", "did you mean resize.wasm?"]);
    palisade.run(["run", "other/x.wasm"]).assert_error(125, &["no such file: other/x.wasm", "check the path"]);
}

#[test]
fn an_error_is_one_json_object_when_asked_for() {
    let ended = Palisade::new().run(["run", "missing.wasm", "--json"]);
    let report = ended.report(125);
    assert_eq!((&report["error"]["kind"], ended.stderr.as_str()), (&"not_found".into(), ""), "{report:#}");
}

#[test]
fn an_unknown_option_suggests_the_nearest() {
    let palisade = Palisade::new();
    palisade.run(["run", "x.wasm", "--wal-time", "2s"]).assert_error(125, &["--wal-time", "'--wall-time'"]);
    palisade.run(["run", "x.wasm", "--memroy", "1MiB"]).assert_error(125, &["--memroy", "'--memory'"]);
    palisade.run(["doctor", "--jsno"]).assert_error(125, &["--jsno", "'--json'"]);
}

#[test]
fn an_unknown_command_suggests_the_nearest_or_lists_all() {
    let palisade = Palisade::new();
    palisade.run(["inspct", "x"]).assert_error(125, &["'inspct'", "'inspect'"]);
    palisade.run(["execute", "x"]).assert_error(125, &["'execute'", "run, inspect, backends, doctor"]);
}

#[test]
fn a_command_line_without_a_plugin_shows_the_usage() {
    Palisade::new().run(["run"]).assert_error(125, &["<PLUGIN>", "usage: palisade run"]);
    Palisade::new().run(["run", "x", "y"]).assert_error(125, &["'y'", "[-- <ARGS>...]"]);
}

#[test]
fn a_malformed_limit_shows_how_to_write_one() {
    let palisade = Palisade::new();
    for (option, value, advice) in [
        ("--wall-time", "5", "`5s`"),
        ("--wall-time", "99999999999999999999h", "--wall-time"),
        ("--memory", "64XB", "`64MiB`"),
        ("--memory", "99999999999TiB", "--memory"),
        ("--fuel", "many", "`10k`"),
        ("--fuel", "", "--fuel"),
        ("--seed", "x", "--seed"),
    ] {
        palisade.run(["run", "x.wasm", option, value]).assert_error(125, &[option, advice]);
    }
}

#[test]
fn a_malformed_grant_shows_how_to_write_one() {
    let palisade = Palisade::new();
    palisade.file("x.wat", guests::NOTHING);
    palisade.run(["run", "x.wat", "--dir", "/tmp"]).assert_error(125, &["`--dir /tmp`", "HOST::GUEST"]);
    palisade.run(["run", "x.wat", "--dir", "/tmp::/x:rx"]).assert_error(125, &["HOST::GUEST"]);
    palisade.run(["run", "x.wat", "--env", "PATH"]).assert_error(125, &["`--env PATH`", "NAME=VALUE"]);
    palisade.run(["run", "x.wat", "--env", "=x"]).assert_error(125, &["environment variable"]);
    palisade.run(["run", "x.wat", "--dir", ".::/a", "--dir", "..::/a"]).assert_error(125, &["`/a` is granted twice"]);
    palisade.run(["run", "x.wat", "--dir", "nowhere::/a"]).assert_error(125, &["nowhere"]);
}

#[test]
fn an_unknown_backend_lists_those_that_are_linked() {
    let palisade = Palisade::new();
    palisade.file("x.wat", guests::NOTHING);
    palisade
        .run(["run", "x.wat", "--backend", "wasmtim"])
        .assert_error(125, &["`wasmtim`", "linked backends: process, wasmer, wasmtime"]);
    palisade
        .run(["inspect", "x.wat", "--backend", ""])
        .assert_error(125, &["linked backends: process, wasmer, wasmtime"]);
}

#[test]
fn an_entry_that_does_not_exist_lists_those_that_do_and_suggests_the_nearest() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (func (export "resize")) (func (export "crop")))"#);
    palisade.run(["run", "x.wat"]).assert_error(125, &["no export `_start`", "it has: `resize`, `crop`"]);
    let mistyped = palisade.run(["run", "x.wat", "--entry", "resise"]);
    mistyped.assert_error(125, &["no export `resise`", "did you mean `resize`?", "`crop`"]);
    palisade.file("none.wat", "(module)");
    palisade.run(["run", "none.wat"]).assert_error(125, &["no export `_start`", "no entry point at all"]);
}

#[test]
fn an_entry_of_another_type_says_what_it_is() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (memory (export "m") 1) (func (export "f") (param i64)) (func (export "g")))"#);
    palisade.run(["run", "x.wat", "--entry", "f"]).assert_error(125, &["`f` is a func(i64) -> ()", "it has: `g`"]);
    palisade.run(["run", "x.wat", "--entry", "m"]).assert_error(125, &["`m` is a memory", "`() -> i32`"]);
}

#[test]
fn names_of_entries_move_no_cursor() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (func (export "\1b[2J\0aentry\c2\9b")))"#);
    palisade.run(["run", "x.wat"]).assert_error(125, &["entry"]);
}

#[test]
fn every_missing_import_is_listed_with_advice_and_nothing_runs() {
    let palisade = Palisade::new();
    let guest = r#"(module
        (import "env" "emscripten_resize_heap" (func (param i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_wriet" (func))
        (import "wasi:cli/environment@0.2.0" "get-environment" (func (param i32)))
        (import "my_host" "kv_get" (func (param i32 i32)))
        (func $f unreachable) (start $f) (func (export "_start")))"#;
    palisade.file("x.wat", guest);
    palisade.run(["run", "x.wat"]).assert_error(
        126,
        &[
            "`env.emscripten_resize_heap` (func(i32) -> (i32)): an undefined C symbol or Emscripten",
            "`wasi_snapshot_preview1.fd_wriet` (func() -> ()): did you mean `fd_write`?",
            "`wasi:cli/environment@0.2.0.get-environment`",
            "WASI preview 2",
            "`my_host.kv_get`",
            "`palisade.host_call`",
        ],
    );
    let report = palisade.run(["run", "x.wat", "--json"]).report(126);
    assert_eq!(report["error"]["kind"], "unsupported", "{report:#}");
}

#[test]
fn names_of_missing_imports_move_no_cursor() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (import "\1b]0;x\07" "\1b[2J\0a\0d" (func)) (func (export "_start")))"#);
    palisade.run(["run", "x.wat"]).assert_error(126, &["imports what this host does not provide"]);
}

#[test]
fn files_that_are_no_modules_say_what_they_are() {
    let palisade = Palisade::new();
    let valid = wat_bytes();
    let cases: [(&str, &[u8], &str); 8] = [
        ("empty.wasm", b"", "the artifact is empty"),
        ("short.wasm", b"\0as", "does not begin with `\\0asm`"),
        ("head.wasm", b"\0asm", "malformed"),
        ("truncated.wasm", &valid[..valid.len() - 3], "malformed"),
        ("trailing.wasm", &[&valid[..], b"\xff\xff\xff"].concat(), "malformed"),
        ("text.wasm", b"#!/bin/sh\necho hello\n", "does not begin with `\\0asm`"),
        ("component.wasm", b"\0asm\x0d\0\x01\0", "component"),
        ("random.wasm", &random_bytes(), "does not begin with `\\0asm`"),
    ];
    for (name, bytes, expected) in cases {
        palisade.file(name, bytes);
        for command in ["run", "inspect"] {
            palisade.run([command, name]).assert_error(125, &[expected]);
        }
        let report = palisade.run(["run", name, "--json"]).report(125);
        assert_eq!(report["error"]["kind"], "invalid_artifact", "{name}: {report:#}");
    }
}

#[test]
fn random_bytes_after_a_valid_head_are_refused() {
    let palisade = Palisade::new();
    palisade.file("x.wasm", [b"\0asm\x01\0\0\0", &random_bytes()[..]].concat());
    palisade.run(["run", "x.wasm"]).assert_error(125, &["malformed at byte"]);
}

#[test]
fn text_that_is_no_module_says_where_on_one_line() {
    let palisade = Palisade::new();
    palisade.file("x.wat", "(module\n  (func (export \"_start\")\n    (i32.bogus)))\n");
    palisade.run(["run", "x.wat"]).assert_error(125, &["x.wat is not WebAssembly text", "i32.bogus"]);
    palisade.file("y.wat", b"\xff\xfe(module)");
    palisade.run(["run", "y.wat"]).assert_error(125, &["y.wat is not WebAssembly text", "utf-8"]);
    palisade.file("z.wat", "(module \x1b[2J)");
    palisade.run(["run", "z.wat"]).assert_error(125, &["z.wat is not WebAssembly text"]);
    palisade.file("deep.wat", "(".repeat(1 << 20));
    palisade.run(["run", "deep.wat"]).assert_error(125, &["deep.wat is not WebAssembly text"]);
}

#[test]
fn a_valid_file_whose_code_is_not_valid_is_refused() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (func (export "_start") (i32.add (i64.const 1) (i32.const 1)) drop))"#);
    palisade.run(["run", "x.wat"]).assert_error(125, &["malformed at byte", "type mismatch"]);
}

#[test]
fn proposals_beyond_webassembly_2_are_refused_by_name() {
    let palisade = Palisade::new();
    for (guest, expected) in [
        (r#"(module (memory 1) (memory 1))"#, "multiple memories"),
        (r#"(module (memory i64 1))"#, "memory64"),
        (r#"(module (memory 1 1 shared))"#, "threads"),
    ] {
        palisade.file("x.wat", guest);
        palisade.run(["run", "x.wat"]).assert_error(125, &[expected]);
    }
}

#[test]
fn a_gibibyte_of_declared_memory_is_a_matter_of_the_quota() {
    let palisade = Palisade::new();
    let guest = r#"(module (memory 16384) (func (export "_start")))"#;
    let report = palisade.guest(guest, &["--json"]).report(137);
    assert_exceeded(&report, "memory_bytes", 128 << 20, "starting");
    assert_eq!(report["outcome"]["used"], 1 << 30);
    assert_eq!(palisade.guest(guest, &["--memory", "1GiB"]).code, 0);
}

#[test]
fn a_hundred_huge_tables_are_a_matter_of_the_quota() {
    let tables = "(table 10000000 funcref)".repeat(100);
    let guest = format!(r#"(module {tables} (func (export "_start")))"#);
    let report = Palisade::new().guest(&guest, &["--json"]).report(137);
    assert_exceeded(&report, "memory_bytes", 128 << 20, "starting");
}

#[test]
fn a_table_that_grows_is_a_matter_of_the_quota() {
    let guest = r#"(module (table 1 funcref) (func (export "_start") (drop (table.grow 0 (ref.null func) (i32.const 10000000)))))"#;
    let report = Palisade::new().guest(guest, &["--json", "--memory", "1MiB"]).report(137);
    assert_exceeded(&report, "memory_bytes", 1 << 20, "running");
}

#[test]
fn what_is_not_a_readable_file_is_an_error() {
    let palisade = Palisade::new();
    palisade.run(["run", "."]).assert_error(125, &["cannot read: ."]);
    palisade.file("x.wat", guests::NOTHING);
    palisade.run(["run", "x.wat/y"]).assert_error(125, &["x.wat/y"]);
    palisade.run(["run", ""]).assert_error(125, &["a value is required for '<PLUGIN>'"]);
    palisade.run(["run", "x.wat", "-i", "@missing"]).assert_error(125, &["no such file: missing"]);
    palisade.run(["run", "x.wat", "-i", "@."]).assert_error(125, &["cannot read: ."]);
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    Palisade::new().run(["run", "/dev/zero"]).assert_error(125, &["/dev/zero is larger than"]);
}

#[test]
fn names_that_are_not_utf_8_are_no_obstacle() {
    let palisade = Palisade::new();
    let name = OsStr::from_bytes(b"caf\xe9.wat");
    palisade.file(name, guests::writes(1, "ran"));
    let ended = palisade.run([OsStr::new("run"), name]);
    assert_eq!((ended.code, ended.text()), (0, "ran"), "{ended:?}");
    let missing = palisade.run([OsStr::new("run"), OsStr::from_bytes(b"missing\xff.wat")]);
    missing.assert_error(125, &["no such file: missing"]);
}

#[test]
fn arguments_that_are_not_utf_8_are_refused() {
    let palisade = Palisade::new();
    palisade.file("x.wat", guests::NOTHING);
    let bad = OsStr::from_bytes(b"\xff\xfe");
    let run = |arguments: &[&str]| palisade.run(["run", "x.wat"].iter().chain(arguments).map(OsStr::new).chain([bad]));
    run(&["--"]).assert_error(125, &["invalid UTF-8"]);
    run(&["--dir"]).assert_error(125, &["invalid UTF-8"]);
    run(&["--env"]).assert_error(125, &["invalid UTF-8"]);
    run(&["--wall-time"]).assert_error(125, &["invalid UTF-8"]);
}

#[test]
fn names_of_files_move_no_cursor() {
    Palisade::new().run(["run", "\x1b[2J.wasm"]).assert_error(125, &["no such file"]);
}

#[test]
fn failed_runs_leave_nothing_in_the_working_directory() {
    let palisade = Palisade::new();
    let files = [palisade.file("a.wasm", b"\0asm"), palisade.file("b.wat", guests::SPIN)];
    palisade.run(["run", "a.wasm"]).assert_error(125, &["malformed"]);
    assert_eq!(palisade.run(["run", "b.wat", "--fuel", "1"]).code, 124);
    assert_eq!(support::files_below(&palisade.folder()), files);
}

/// A small valid module.
fn wat_bytes() -> Vec<u8> {
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b".to_vec()
}

/// Bytes without any structure, the same every time.
fn random_bytes() -> Vec<u8> {
    // A linear congruential generator (Knuth's MMIX), of which the high byte is taken.
    let next = |state: &u64| Some(state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
    std::iter::successors(Some(1), next).skip(1).take(4096).map(|state: u64| (state >> 56) as u8).collect()
}
