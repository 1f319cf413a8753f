//! What the guest is granted: by options, and by a policy file with options on top.

mod support;

use support::Palisade;
use support::guests::{self, makes_file, writes_arguments, writes_environment, writes_file};

/// WASI's error numbers for what a guest may not do.
const ERRNO_BADF: i32 = 8;
const ERRNO_NOENT: i32 = 44;

#[test]
fn without_a_grant_there_is_no_directory() {
    let palisade = Palisade::new();
    palisade.file("secret", "secret");
    let ended = palisade.guest(&writes_file("secret"), &[]);
    assert_eq!((ended.code, ended.text()), (ERRNO_BADF, ""));
}

#[test]
fn a_directory_is_read_only_unless_it_says_otherwise() {
    let palisade = Palisade::new();
    palisade.file("data", "content");
    for access in [".::/work", ".::/work:ro", ".::/work:rw"] {
        assert_eq!(palisade.guest(&writes_file("data"), &["--dir", access]).text(), "content", "{access}");
    }
    for access in [".::/work", ".::/work:ro"] {
        let ended = palisade.guest(&makes_file("new"), &["--dir", access]);
        assert!(ended.code != 0 && !palisade.folder().join("new").exists(), "{access}: {ended:?}");
    }
    assert_eq!(palisade.guest(&makes_file("new"), &["--dir", ".::/work:rw"]).code, 0);
    assert_eq!(std::fs::read(palisade.folder().join("new")).expect("the file the guest made"), b"made");
}

#[test]
fn nothing_outside_a_granted_directory_is_reached() {
    let palisade = Palisade::new();
    let inside = palisade.folder().join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    let secret = palisade.file("secret", "secret");
    std::os::unix::fs::symlink(&secret, inside.join("absolute")).expect("a link");
    std::os::unix::fs::symlink("../secret", inside.join("relative")).expect("a link");
    for name in ["../secret", "absolute", "relative", "/etc/passwd"] {
        let ended = palisade.guest(&writes_file(name), &["--dir", "inside::/work"]);
        assert!(ended.code != 0 && ended.stdout.is_empty(), "{name}: {ended:?}");
    }
    assert_eq!(palisade.guest(&writes_file("missing"), &["--dir", "inside::/work"]).code, ERRNO_NOENT);
}

#[test]
fn files_grow_up_to_the_disk_quota_and_not_a_byte_more() {
    let palisade = Palisade::new();
    // A new file is charged a block and its name, besides what is written.
    let run = |name: &str, bytes: u64| {
        let entry = 4096 + name.len() as u64;
        let limit = (entry + bytes).to_string();
        let options = ["--json", "--dir", ".::/work:rw", "--disk", &limit];
        let report = palisade.guest(&makes_file(name), &options).json();
        let made = std::fs::read(palisade.folder().join(name)).expect("the file the guest made");
        let used = report["usage"]["disk_bytes"].as_u64().map(|used| used - entry);
        (made.len(), used, report["outcome"]["kind"].as_str().map(str::to_owned))
    };
    assert_eq!(run("exactly", 4), (4, Some(4), Some("completed".into())));
    // As on a full disk, the guest learns it: by a short write, and by an error, at which this one aborts.
    assert_eq!(run("less", 3), (3, Some(3), Some("completed".into())));
    assert_eq!(run("nothing", 0), (0, Some(0), Some("trapped".into())));
    let ended = palisade.guest(&makes_file("none"), &["--dir", ".::/work:rw", "--disk", "0"]);
    assert!(ended.code != 0 && !palisade.folder().join("none").exists(), "{ended:?}");
}

#[test]
fn only_the_granted_environment_is_seen() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", writes_environment());
    let mut command = palisade.command();
    command.env("SECRET", "of the host").args(["run", "guest.wat", "--env", "B=2=two", "--env", "A=1", "--env", "E="]);
    let ended = support::Running::start(&mut command).finish();
    assert_eq!((ended.code, ended.text()), (0, "A=1\0B=2=two\0E=\0"), "{ended:?}");
}

#[test]
fn arguments_after_two_dashes_are_the_guests() {
    let ended = Palisade::new().guest(&writes_arguments(), &["--", "--json", "two words", "", "--"]);
    assert_eq!(ended.text(), "guest.wat\0--json\0two words\0\0--\0", "{ended:?}");
}

#[test]
fn a_seed_makes_randomness_repeat() {
    let guest = r#"(module
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "palisade" "output_write" (func $write (param i32 i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (if (call $random (i32.const 0) (i32.const 32)) (then unreachable))
            (call $write (i32.const 0) (i32.const 32))))"#;
    let palisade = Palisade::new();
    let bytes = |options: &[&str]| palisade.guest(guest, options).stdout;
    assert_eq!(bytes(&["--seed", "7"]).len(), 32);
    assert_eq!(bytes(&["--seed", "7"]), bytes(&["--seed", "7"]));
    assert_ne!(bytes(&["--seed", "7"]), bytes(&["--seed", "8"]));
    assert_ne!(bytes(&[]), bytes(&[]));
}

#[test]
fn clocks_are_coarse_unless_fine_ones_are_granted() {
    // Ends with 1 when the steps are a millisecond, with 2 when they are not.
    let guest = r#"(module
        (import "wasi_snapshot_preview1" "clock_res_get" (func $resolution (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "steps") (result i32)
            (if (call $resolution (i32.const 1) (i32.const 0)) (then unreachable))
            (select (i32.const 1) (i32.const 2) (i64.eq (i64.load (i32.const 0)) (i64.const 1000000)))))"#;
    let palisade = Palisade::new();
    assert_eq!(palisade.guest(guest, &["--entry", "steps"]).code, 1);
    assert_eq!(palisade.guest(guest, &["--entry", "steps", "--fine-clocks"]).code, 2);
}

#[test]
fn a_policy_file_holds_and_options_go_before_it() {
    let palisade = Palisade::new();
    palisade.file("data", "content");
    palisade.file(
        "policy.toml",
        r#"
        [quota]
        fuel = "1M"
        memory_bytes = "2MiB"
        wall_time = "7s"
        [grants]
        environment = { A = "of the file", B = "of the file" }
        [[grants.directories]]
        host = "."
        guest = "/work"
        "#,
    );
    let report = palisade.guest(guests::SPIN, &["--json", "--policy", "policy.toml", "--fuel", "10k"]).report(124);
    support::assert_exceeded(&report, "fuel", 10_000, "running");
    assert_eq!((&report["quota"]["memory_bytes"], &report["quota"]["wall_time"]), (&"2MiB".into(), &"7s".into()));
    let content = palisade.guest(&writes_file("data"), &["--policy", "policy.toml"]);
    assert_eq!(content.text(), "content", "{content:?}");
    let environment = palisade.guest(&writes_environment(), &["--policy", "policy.toml", "--env", "B=of the option"]);
    assert_eq!(environment.text(), "A=of the file\0B=of the option\0");
}

#[test]
fn a_bound_that_the_file_sets_can_be_lifted() {
    let palisade = Palisade::new();
    palisade.file("policy.toml", "[quota]\noutput_bytes = 1\n");
    let guest = guests::writes(1, "text");
    assert_eq!(palisade.guest(&guest, &["--policy", "policy.toml"]).code, 122);
    let lifted = palisade.guest(&guest, &["--policy", "policy.toml", "--output-limit", "unlimited"]);
    assert_eq!((lifted.code, lifted.text()), (0, "text"));
}

#[test]
fn an_unknown_field_is_named_with_its_line_and_the_nearest_known_one() {
    let palisade = Palisade::new();
    palisade.file("x.wat", guests::NOTHING);
    for (policy, parts) in [
        ("[quota]\nwal_time = \"1s\"", ["line 2", "`wal_time`", "did you mean `wall_time`?"]),
        ("[qouta]\n", ["line 1", "`qouta`", "did you mean `quota`?"]),
        ("[grants]\n\nenviroment = {}", ["line 3", "`enviroment`", "did you mean `environment`?"]),
    ] {
        palisade.file("policy.toml", policy);
        palisade.run(["run", "x.wat", "--policy", "policy.toml"]).assert_error(125, &parts);
    }
}

#[test]
fn hostile_policy_files_are_errors_and_no_more() {
    let palisade = Palisade::new();
    palisade.file("x.wat", guests::NOTHING);
    let nested = format!("x = {}", "[".repeat(100_000));
    let tables = format!("[{}x]", "a.".repeat(100_000));
    let many = format!("[grants]\nhost_functions = [{}]", (0..5000).map(|n| format!("\"f{n}\",")).collect::<String>());
    let policies: [&[u8]; 12] = [
        b"\xff\xfe",
        b"[quota",
        b"[quota]\nfuel = -1",
        b"[quota]\nwall_time = 5",
        b"[quota]\nmemory_bytes = \"99999999999999 GiB\"",
        b"[quota]\nfuel = nan",
        b"[grants]\nenvironment = { \"A=B\" = \"x\" }",
        b"[grants.clocks]\ncoarse = { step = \"0s\" }",
        b"quota = \"\\u001b[2J\"",
        nested.as_bytes(),
        tables.as_bytes(),
        many.as_bytes(),
    ];
    for policy in policies {
        palisade.file("policy.toml", policy);
        palisade.run(["run", "x.wat", "--policy", "policy.toml"]).assert_error(125, &[]);
    }
    palisade.run(["run", "x.wat", "--policy", "/dev/zero"]).assert_error(125, &["/dev/zero is larger than"]);
    palisade.run(["run", "x.wat", "--policy", "."]).assert_error(125, &["cannot read: ."]);
    palisade.run(["run", "x.wat", "--policy", "polcy.toml"]).assert_error(125, &["did you mean policy.toml?"]);
}

#[test]
fn a_policy_the_backend_cannot_enforce_is_refused_before_anything_runs() {
    let palisade = Palisade::new();
    palisade.file("x.wat", r#"(module (func $f unreachable) (start $f) (func (export "_start")))"#);
    for (policy, part) in [
        ("[grants]\nnetwork = true", "network"),
        ("[grants]\nchild_processes = true", "child_processes"),
        ("[quota]\nstack_bytes = \"1GiB\"", "a stack of 1073741824 bytes"),
    ] {
        palisade.file("policy.toml", policy);
        palisade.run(["run", "x.wat", "--policy", "policy.toml"]).assert_error(126, &[part]);
    }
}
