//! `palisade inspect`.

mod support;

use serde_json::json;
use support::{Palisade, control_characters, guests};

const PLUGIN: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "palisade" "host_call" (func (param i32 i32 i32 i32) (result i64)))
    (import "env" "missing" (func (param i64) (result f32)))
    (memory (export "memory") 2 16)
    (func $init) (start $init)
    (func (export "resize") (result i32) (i32.const 0))
    (func (export "_start"))
    (func (export "helper") (param i32)))"#;

#[test]
fn a_person_sees_what_a_plugin_imports_exports_and_needs() {
    let palisade = Palisade::new();
    palisade.file("plugin.wat", PLUGIN);
    let ended = palisade.run(["inspect", "plugin.wat"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let lines: Vec<String> =
        ended.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "name plugin.wat",
        "memory 128 KiB to start with, at most 1 MiB",
        "start runs code before its entry",
        "entries resize, _start",
        "needs directories: it can open files in the directories it is granted",
        "needs host_functions: it calls host functions by name; each must be granted",
        "needs 1 imports that nothing here provides",
        "IMPORT PROVIDED BY TYPE",
        "palisade.host_call palisade func(i32, i32, i32, i32) -> (i64)",
        "env.missing NOTHING func(i64) -> (f32)",
        "EXPORT TYPE",
        "helper func(i32) -> ()",
        "memory memory of 2 to 16 pages",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected:?} is missing in {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("kind ") && line.contains("reactor")), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("wasi_snapshot_preview1.path_open WASI preview 1 ")),
        "{lines:#?}"
    );
}

#[test]
fn a_program_gets_the_same_as_json() {
    let palisade = Palisade::new();
    palisade.file("plugin.wat", PLUGIN);
    let ended = palisade.run(["inspect", "plugin.wat", "--json"]);
    assert_eq!(ended.code, 0);
    let info = ended.json();
    assert_eq!(
        (&info["name"], &info["artifact"], &info["abi"]),
        (&json!("plugin.wat"), &json!("wasm"), &json!("reactor"))
    );
    let entries = json!([{ "name": "resize", "returns_code": true }, { "name": "_start", "returns_code": false }]);
    assert_eq!(info["entries"], entries);
    assert_eq!(
        info["imports"][2],
        json!({ "module": "env", "name": "missing", "ty": "func(i64) -> (f32)", "provider": null })
    );
    assert_eq!(info["imports"][1]["provider"], "palisade");
    assert_eq!(info["exports"].as_array().map(Vec::len), Some(4));
    assert_eq!((&info["memory_initial_bytes"], &info["memory_maximum_bytes"]), (&json!(131072), &json!(1048576)));
    assert_eq!((&info["has_start"], &info["cached"]), (&json!(true), &json!(false)));
    assert_eq!(info["hash"].as_str().map(str::len), Some(64));
    assert!(info["size_bytes"].as_u64() > Some(100) && info["compiled_bytes"].as_u64() > Some(0), "{info:#}");
}

#[test]
fn a_command_is_told_from_a_reactor() {
    let palisade = Palisade::new();
    palisade.file("command.wat", guests::exits_with(0));
    assert_eq!(palisade.run(["inspect", "command.wat", "--json"]).json()["abi"], "command");
}

#[test]
fn a_module_without_entries_is_said_to_be_none() {
    let palisade = Palisade::new();
    palisade.file("empty.wat", "(module)");
    let ended = palisade.run(["inspect", "empty.wat"]);
    assert_eq!(ended.code, 0);
    assert!(ended.text().contains("none: it cannot be run"), "{ended:?}");
}

#[test]
fn names_that_the_guest_chose_move_no_cursor() {
    let palisade = Palisade::new();
    let guest = r#"(module
        (import "\1b]0;title\07" "\1b[2J\0d\0a" (func))
        (func (export "\1b[31mred\c2\9b5m\7f"))
        (memory (export "\0d\08\09") 1))"#;
    palisade.file("\u{1b}[2J.wat", guest);
    let ended = palisade.run(["inspect", "\u{1b}[2J.wat"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(control_characters(ended.text()), "\n", "{ended:?}");
    assert_eq!(control_characters(&ended.stderr), "", "{ended:?}");
    assert!(ended.text().contains("[31mred"), "{ended:?}");
}
