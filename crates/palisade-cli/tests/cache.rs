//! Compiled code that outlives the process.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use support::guests::{self, writes};
use support::{Palisade, Running, files_below};

/// Runs the same guest with `--json`.
fn run(palisade: &Palisade, options: &[&str]) -> Value {
    let report = palisade.guest(&writes(1, "text"), &[&["--json"], options].concat()).report(0);
    assert_eq!(report["output"], "text", "{report:#}");
    report
}

fn is_cached(report: &Value) -> bool {
    report["module"]["cached"].as_bool().expect("whether it was cached")
}

fn notes(report: &Value) -> Vec<&str> {
    report["module"]["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn permissions(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}

/// Damages the one file of compiled code and checks that the next run compiles anew, says so, and mends it.
fn assert_mended(damage: impl Fn(&Path)) {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    let files = files_below(&palisade.cache());
    assert_eq!(files.len(), 1, "{files:?}");
    damage(&files[0]);
    let mended = run(&palisade, &[]);
    assert!(!is_cached(&mended), "{mended:#}");
    assert_eq!(notes(&mended).len(), 1, "{mended:#}");
    assert!(notes(&mended)[0].contains("unusable") && notes(&mended)[0].contains("compiled again"), "{mended:#}");
    let after = run(&palisade, &[]);
    assert!(is_cached(&after) && notes(&after).is_empty(), "{after:#}");
}

#[test]
fn the_second_run_uses_the_code_of_the_first() {
    let palisade = Palisade::new();
    assert!(!is_cached(&run(&palisade, &[])));
    assert!(is_cached(&run(&palisade, &[])));
    // Another policy runs the same code.
    assert!(is_cached(&run(&palisade, &["--memory", "1MiB", "--fuel", "1M"])));
}

#[test]
fn another_module_is_not_taken_for_the_first() {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    let other = palisade.guest(&writes(1, "other"), &["--json"]).report(0);
    assert_eq!((is_cached(&other), &other["output"]), (false, &"other".into()));
}

#[test]
fn inspecting_fills_the_cache_too() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", writes(1, "text"));
    assert_eq!(palisade.run(["inspect", "guest.wat"]).code, 0);
    assert!(is_cached(&run(&palisade, &[])));
}

#[test]
fn a_flipped_bit_is_noticed() {
    assert_mended(|file| {
        let mut bytes = fs::read(file).expect("the compiled code");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).expect("the damaged code");
    });
}

#[test]
fn a_truncated_file_is_noticed() {
    assert_mended(|file| {
        let bytes = fs::read(file).expect("the compiled code");
        fs::write(file, &bytes[..bytes.len() - 1]).expect("the damaged code");
    });
    assert_mended(|file| fs::write(file, b"").expect("the damaged code"));
}

#[test]
fn a_link_in_place_of_the_file_is_not_followed() {
    assert_mended(|file| {
        let elsewhere = file.with_extension("elsewhere");
        fs::rename(file, &elsewhere).expect("the code moves");
        std::os::unix::fs::symlink(&elsewhere, file).expect("a link");
    });
}

#[test]
fn code_made_under_another_key_is_not_loaded() {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    let key = palisade.data().join("cache.key");
    fs::remove_file(&key).expect("the key");
    let mended = run(&palisade, &[]);
    assert!(!is_cached(&mended) && notes(&mended).len() == 1, "{mended:#}");
    assert!(key.exists());
}

#[test]
fn damage_is_a_note_to_a_person_and_quiet_silences_it() {
    let palisade = Palisade::new();
    for (options, lines) in [(&[][..], 2), (&["--quiet"][..], 0)] {
        run(&palisade, &[]);
        fs::write(&files_below(&palisade.cache())[0], b"damaged").expect("the damaged code");
        let ended = palisade.guest(&writes(1, "text"), options);
        assert_eq!((ended.text(), ended.stderr.lines().count()), ("text", lines), "{ended:?}");
        assert_eq!(ended.stderr.starts_with("palisade: note: compiled code in the cache is unusable"), lines > 0);
    }
}

#[test]
fn a_cache_that_others_can_write_to_is_not_used() {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    fs::set_permissions(palisade.cache(), fs::Permissions::from_mode(0o777)).expect("permissions");
    let ended = palisade.guest(&writes(1, "text"), &["--json"]);
    assert!(ended.stderr.starts_with("palisade: note: cannot use the cache of compiled code"), "{ended:?}");
    assert!(
        ended.stderr.contains("others can write to it") && ended.stderr.contains("going on without it"),
        "{ended:?}"
    );
    let report = ended.report(0);
    assert_eq!((is_cached(&report), &report["output"]), (false, &"text".into()));
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    fs::set_permissions(palisade.data().join("cache.key"), fs::Permissions::from_mode(0o644)).expect("permissions");
    let ended = palisade.guest(&writes(1, "text"), &["--json"]);
    assert!(ended.stderr.contains("others can read it; remove it"), "{ended:?}");
    assert!(!is_cached(&ended.report(0)));
}

#[test]
fn a_file_in_the_place_of_the_cache_is_no_obstacle() {
    let palisade = Palisade::new();
    fs::create_dir(palisade.cache().parent().expect("a parent")).expect("a directory");
    fs::write(palisade.cache(), b"").expect("a file");
    let ended = palisade.guest(&writes(1, "text"), &[]);
    assert_eq!((ended.code, ended.text()), (0, "text"), "{ended:?}");
    assert!(ended.stderr.starts_with("palisade: note: cannot use the cache"), "{ended:?}");
}

#[test]
fn the_cache_and_its_key_are_their_owners_alone() {
    let palisade = Palisade::new();
    run(&palisade, &[]);
    assert_eq!((permissions(&palisade.cache()), permissions(&palisade.data())), (0o700, 0o700));
    assert_eq!(permissions(&palisade.data().join("cache.key")), 0o600);
    assert_eq!(permissions(&files_below(&palisade.cache())[0]), 0o600);
}

#[test]
fn without_a_cache_nothing_is_left_behind() {
    let palisade = Palisade::new();
    assert!(!is_cached(&run(&palisade, &["--no-cache"])));
    assert!(!is_cached(&run(&palisade, &["--no-cache"])));
    palisade.run(["inspect", "guest.wat", "--no-cache"]);
    assert!(!palisade.cache().exists() && !palisade.data().exists());
}

#[test]
fn a_module_that_is_refused_leaves_nothing_in_the_cache() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (func (export "_start") (i32.add (i64.const 1) (i32.const 1)) drop))"#);
    assert_eq!(palisade.run(["run", "x.wat"]).code, 125);
    assert_eq!(files_below(&palisade.cache()), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn several_first_runs_at_once_all_succeed() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", writes(1, "text"));
    palisade.file("other.wat", guests::NOTHING);
    let start = |name| Running::start(palisade.command().args(["run", name, "--json"]));
    let running: Vec<_> = (0..6).flat_map(|_| [start("guest.wat"), start("other.wat")]).collect();
    for running in running {
        let ended = running.finish();
        assert_eq!(ended.stderr, "", "{ended:?}");
        let report = ended.report(0);
        assert_eq!(notes(&report), [""; 0], "{report:#}");
    }
    assert_eq!(files_below(&palisade.cache()).len(), 2, "nothing half written is left");
    assert_eq!(files_below(&palisade.data()), [palisade.data().join("cache.key")]);
    assert!(is_cached(&run(&palisade, &[])));
}
