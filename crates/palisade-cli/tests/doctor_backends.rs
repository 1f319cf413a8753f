//! `palisade backends` and `palisade doctor`.

mod support;

use serde_json::json;
use support::Palisade;

/// Every quota, by its name in policies.
const QUOTAS: [&str; 12] = [
    "wall_time",
    "cpu_time",
    "fuel",
    "memory_bytes",
    "stack_bytes",
    "output_bytes",
    "log_bytes",
    "open_files",
    "disk_bytes",
    "host_calls",
    "processes",
    "threads",
];

#[test]
fn a_person_sees_every_capability_in_a_table() {
    let ended = Palisade::new().run(["backends"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let text = ended.text();
    assert!(text.starts_with("process: ") && text.contains("\nwasmer: ") && text.contains("\nwasmtime: "), "{text}");
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("  ").map(str::trim));
    for quota in QUOTAS {
        assert!(value(&format!("quota {quota}")).is_some_and(|value| value != "-"), "{quota} is missing in\n{text}");
    }
    // One column for each backend.
    let columns =
        |name: &str| value(name).map(|value| value.split("  ").map(str::trim).filter(|v| !v.is_empty()).collect());
    assert_eq!(columns("quota fuel"), Some(vec!["-", "yes, deterministic", "yes, deterministic"]));
    // The process backend has child processes where this machine lets it bound their memory.
    let processes = columns("quota processes").unwrap_or_default();
    assert_eq!(processes[1..], ["always 0"; 2]);
    assert!(["yes", "always 0"].contains(&processes[0]), "{text}");
    assert_eq!(columns("grant network"), Some(vec!["-"; 3]));
    assert_eq!(columns("grant host_functions"), Some(vec!["yes"; 3]));
    assert!(text.contains("guests share the host's process"), "{text}");
}

#[test]
fn a_program_gets_the_capabilities_as_json() {
    let ended = Palisade::new().run(["backends", "--json"]);
    assert_eq!(ended.code, 0);
    let list = ended.json();
    let expected = [("process", "Linux "), ("wasmer", "wasmer 7.3.0"), ("wasmtime", "wasmtime 48.0.8")];
    assert_eq!(list.as_array().map(Vec::len), Some(expected.len()), "{list:#}");
    for (index, (name, engine)) in expected.into_iter().enumerate() {
        assert_eq!(list[index]["name"], name);
        let capabilities = &list[index]["capabilities"];
        let quotas = capabilities["quotas"].as_object().expect("the quotas");
        assert_eq!(quotas.len(), QUOTAS.len(), "{list:#}");
        for quota in QUOTAS {
            let expected: &[&str] = match (name, quota) {
                ("process", "fuel") => &["unsupported"],
                // Where this machine lets it bound their memory.
                ("process", "processes") => &["enforced", "always_zero"],
                ("wasmer" | "wasmtime", "processes" | "threads") => &["always_zero"],
                _ => &["enforced"],
            };
            let found = quotas[quota].as_str().unwrap_or_default();
            assert!(expected.contains(&found), "{name}: {quota} is {found}");
        }
        assert!(capabilities["engine"].as_str().is_some_and(|found| found.starts_with(engine)), "{list:#}");
        assert_eq!(capabilities["fuel_deterministic"], name != "process");
        assert_eq!(capabilities["abis"], json!(["command", "reactor"]));
    }
}

#[test]
fn listing_backends_leaves_nothing_behind() {
    let palisade = Palisade::new();
    palisade.run(["backends"]);
    assert!(!palisade.cache().exists() && !palisade.data().exists());
}

#[test]
fn the_doctor_finds_by_trying_that_every_limit_holds() {
    let ended = Palisade::new().run(["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let text = ended.text();
    let (wasmer, wasmtime) = text.split_once("Backend wasmtime").expect("both backends were tried");
    for backend in [wasmer, wasmtime] {
        for tried in ["deadline stops a loop", "fuel stops a loop", "memory is bounded"] {
            let line = backend.lines().find(|line| line.contains(tried)).unwrap_or_else(|| panic!("{tried:?}: {text}"));
            assert!(line.starts_with("ok "), "{line}");
        }
    }
    let cache = wasmtime.lines().find(|line| line.contains("cache of compiled code")).expect("the line of the cache");
    assert!(cache.starts_with("ok "), "{cache}");
    assert!(text.contains("Every limit holds on this machine"), "{text}");
}

#[test]
fn the_doctors_findings_come_as_json() {
    let ended = Palisade::new().run(["doctor", "--json"]);
    assert_eq!(ended.code, 0);
    let report = ended.json();
    let of = |backend: &str| report["backends"][backend].as_array().expect("the findings").clone();
    assert!(of("wasmtime").len() >= 6 && of("wasmer").len() >= 5, "{report:#}");
    let findings = [of("wasmtime"), of("wasmer")].concat();
    for finding in &findings {
        assert_ne!(finding["status"], "missing", "{finding:#}");
        assert!(finding["subject"].is_string() && finding["detail"].is_string(), "{finding:#}");
    }
    let worst = if findings.iter().all(|finding| finding["status"] == "ok") { "ok" } else { "degraded" };
    assert_eq!(report["worst"], worst);
}

#[test]
fn the_doctor_says_what_is_wrong_with_the_cache_and_what_to_do() {
    let palisade = Palisade::new();
    palisade.run(["doctor"]);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(palisade.cache(), open).expect("permissions");
    let ended = palisade.run(["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let (_, wasmtime) = ended.text().split_once("Backend wasmtime").expect("the backend was tried");
    let line = wasmtime.lines().find(|line| line.contains("cache of compiled code")).expect("the line of the cache");
    assert!(
        line.starts_with("degraded") && line.contains("others can write to it") && line.contains("mended"),
        "{line}"
    );
}

#[test]
fn help_and_version_are_no_errors() {
    let palisade = Palisade::new();
    let help = palisade.run(["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for part in ["Run code you don't trust", "run ", "inspect ", "backends ", "doctor ", "Exit codes", "  124 "] {
        assert!(help.text().contains(part), "{part:?} is missing in {help:?}");
    }
    assert!(palisade.run(["run", "--help"]).text().contains("--wall-time <TIME>"));
    assert!(palisade.run(["--version"]).text().starts_with("palisade "));
    let nothing = palisade.run([""; 0]);
    assert_eq!((nothing.code, nothing.text()), (125, ""));
    assert!(nothing.stderr.contains("Usage: palisade <COMMAND>"), "{nothing:?}");
}
