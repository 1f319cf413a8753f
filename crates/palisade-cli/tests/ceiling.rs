//! What a daemon's operator lets nobody have, whatever is asked for.

mod support;

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use support::daemon::{Daemon, call};
use support::{Ended, Palisade, repository};

#[track_caller]
fn ok(ended: &Ended) -> String {
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.text().trim().to_owned()
}

fn hello() -> String {
    repository("plugins/hello/hello.wat").display().to_string()
}

/// Prints the file that its input names, in the first directory it was granted, or `-`.
const READS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file") (data (i32.const 16) "-")
    (func $say (param i32 i32)
        (i32.store (i32.const 32) (local.get 0)) (i32.store (i32.const 36) (local.get 1))
        (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40))))
    (func (export "_start")
        (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0)
                (i32.const 0) (i32.const 48))
            (then (call $say (i32.const 16) (i32.const 1)) (return)))
        (i32.store (i32.const 32) (i32.const 100)) (i32.store (i32.const 36) (i32.const 1000))
        (drop (call $read (i32.load (i32.const 48)) (i32.const 32) (i32.const 1) (i32.const 40)))
        (call $say (i32.const 100) (i32.load (i32.const 40)))))"#;

#[test]
fn by_default_nothing_of_the_host_is_granted() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let folder = format!("{}::/data", palisade.folder().display());
    palisade.file("x.sh", "echo");
    for refused in [
        &["submit", &hello(), "--dir", &folder][..],
        &["submit", "x.sh", "--interpreter", "sh"],
        &["submit", "/bin/cat", "--processes", "2"],
        &["submit", &hello(), "--memory", "1TiB"],
        &["submit", &hello(), "--memory", "unlimited"],
        &["submit", &hello(), "--wall-time", "unlimited"],
    ] {
        palisade.run(refused).assert_error(126, &["--ceiling"]);
    }
    assert!(call(&palisade, "plugins.list", json!({}))["result"]["plugins"].as_array().unwrap().is_empty());
    ok(&palisade.run(["submit", &hello(), "--input", "Ada", "--wait"]));
}

#[test]
fn a_task_reaches_what_it_asks_for_and_no_more_than_its_plugin_may() {
    let palisade = Palisade::new();
    palisade.file("file", "contents");
    palisade.file("reads.wat", READS);
    let folder = palisade.folder().display().to_string();
    let ceiling = format!("grants.directories = [{{ host = '{folder}', guest = '/' }}]");
    let file = palisade.file("ceiling.toml", ceiling);
    let _daemon = Daemon::start(&palisade, &["--ephemeral", "--ceiling", file.to_str().unwrap()]);
    let grant = format!("{folder}::/data");
    assert_eq!(ok(&palisade.run(["submit", "reads.wat", "--dir", &grant, "--wait"])), "contents");
    // The plugin has it now. A task that says nothing has what the plugin has; one that asks for less gets less.
    let submit = |policy: serde_json::Value| {
        let asked = call(&palisade, "tasks.submit", json!({ "plugin": "reads.wat", "policy": policy }));
        let Some(task) = asked["result"]["task"].as_str() else { return Err(asked["error"].clone()) };
        Ok(palisade.run(["wait", task]).text().trim().to_owned())
    };
    assert_eq!(ok(&palisade.run(["submit", "reads.wat", "--wait"])), "contents");
    assert_eq!(submit(json!({})).unwrap(), "-", "it asked for no directory");
    assert_eq!(
        submit(json!({ "grants": { "directories": [{ "host": folder, "guest": "/x" }] } })).unwrap(),
        "contents"
    );
    for refused in [
        json!({ "grants": { "directories": [{ "host": "/etc", "guest": "/x" }] } }),
        json!({ "grants": { "directories": [{ "host": folder, "guest": "/x", "access": "read_write" }] } }),
        json!({ "grants": { "child_processes": true } }),
        json!({ "quota": { "memory_bytes": "129MiB" } }),
    ] {
        let error = submit(refused.clone()).unwrap_err();
        assert_eq!(error["code"], json!(-32005), "{refused}: {error}");
    }
}

#[test]
fn the_daemons_own_is_granted_to_nobody() {
    let palisade = Palisade::new();
    palisade.file("reads.wat", READS);
    let data = palisade.data().join("daemon");
    let own = [data.clone(), palisade.data(), palisade.cache(), "/".into()];
    let grants = own.iter().map(|path| format!("{{ host = '{}', guest = '/' }}", path.display()));
    let ceiling = format!("grants.directories = [{}]", grants.collect::<Vec<_>>().join(", "));
    let file = palisade.file("ceiling.toml", ceiling);
    let _daemon = Daemon::start(&palisade, &["--ceiling", file.to_str().unwrap()]);
    std::fs::create_dir_all(palisade.cache()).unwrap();
    for path in own {
        let grant = format!("{}::/data", path.display());
        palisade.run(["submit", "reads.wat", "--dir", &grant]).assert_error(126, &["daemon's own"]);
    }
}

#[test]
fn each_tenant_may_have_a_ceiling_of_its_own() {
    let palisade = Palisade::new();
    let text = "[tenant.large.quota]\nmemory_bytes = '2GiB'\n[tenant.small.quota]\nmemory_bytes = '1MiB'\n";
    let file = palisade.file("ceiling.toml", text);
    let _daemon = Daemon::start(&palisade, &["--ephemeral", "--ceiling", file.to_str().unwrap()]);
    let submit = |tenant: &str, memory: &str| {
        palisade.run(["submit", &hello(), "-i", "x", "--tenant", tenant, "--memory", memory, "--wait"])
    };
    ok(&submit("large", "2GiB"));
    submit("other", "2GiB").assert_error(126, &["memory_bytes"]);
    ok(&submit("other", "1GiB"));
    submit("small", "2MiB").assert_error(126, &["memory_bytes"]);
    ok(&submit("small", "1MiB"));
}

#[test]
fn a_lower_ceiling_holds_for_what_was_accepted_before() {
    let palisade = Palisade::new();
    palisade.file("file", "contents");
    palisade.file("reads.wat", READS);
    let folder = palisade.folder().display().to_string();
    let file = palisade.file("ceiling.toml", format!("grants.directories = [{{ host = '{folder}', guest = '/' }}]"));
    let daemon = Daemon::start(&palisade, &["--ceiling", file.to_str().unwrap()]);
    let submit = ["submit", "reads.wat", "--dir", &format!("{folder}::/data"), "--delay", "1s", "--attempts", "1"];
    let task = ok(&palisade.run(submit));
    daemon.kill();
    // It waits in the journal, and may not have the directory any more.
    let _daemon = Daemon::start(&palisade, &[]);
    let report = palisade.run(["wait", &task, "--json"]).json();
    assert_eq!(report["state"], json!("failed"), "{report:#}");
    assert!(report["host_error"].as_str().unwrap().contains("--ceiling"), "{report:#}");
}

#[test]
fn what_a_daemon_keeps_is_its_owners_only() {
    let palisade = Palisade::new();
    let data = palisade.folder().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let serve = ["serve", "--data", data.to_str().unwrap()];
    palisade.run(serve).assert_error(125, &["others may look into", "chmod 700"]);
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Whatever the mask of the shell it is started from.
    let mut command = std::process::Command::new("sh");
    let program = palisade.command();
    command.arg("-c").arg("umask 000; exec \"$0\" \"$@\"").arg(program.get_program()).args(serve);
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(palisade.folder());
    let _daemon = Daemon::spawn(&mut command);
    let socket = data.join("socket");
    ok(&palisade.run(["submit", &hello(), "-i", "x", "--wait", "--socket", socket.to_str().unwrap()]));
    let mut places = vec![data.clone()];
    let mut files = 0;
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(&place).unwrap().flatten() {
            let found = entry.metadata().unwrap();
            assert_eq!(found.permissions().mode() & 0o077, 0, "{:?}", entry.path());
            files += 1;
            if found.is_dir() {
                places.push(entry.path());
            }
        }
    }
    assert!(files >= 4, "{files} files");
}
