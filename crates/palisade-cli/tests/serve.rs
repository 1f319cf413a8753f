//! The real daemon, driven by the real commands and by raw HTTP.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, PATIENCE, call, connect, exchange, post, socket};
use support::{Ended, Palisade, Running, repository};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Remembers what it is given: one byte of key, then the value.
const REMEMBERS: &str = r#"(module
        (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
        (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
        (memory (export "memory") 1)
        (data (i32.const 0) "kv.set") (data (i32.const 16) "\01\00\00\00")
        (func (export "_start")
            (drop (call $host_call (i32.const 0) (i32.const 6) (i32.const 16)
                (i32.add (i32.const 4) (call $input_read (i32.const 0) (i32.const 20) (i32.const 99)))))))"#;

fn plugin(name: &str) -> String {
    repository("plugins").join(name).display().to_string()
}

#[track_caller]
fn ok(ended: &Ended) -> String {
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.text().trim().to_owned()
}

#[test]
fn a_plugin_is_submitted_and_its_outcome_waited_for() {
    let palisade = Palisade::new();
    let daemon = Daemon::start(&palisade, &[]);
    assert!(daemon.ready.contains("daemon/socket"), "{}", daemon.ready);
    let mode = std::fs::metadata(socket(&palisade)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only its owner may use the socket");

    let task = ok(&palisade.run(["submit", &plugin("hello/hello.wat"), "-i", "Ada"]));
    let ended = palisade.run(["wait", &task]);
    assert_eq!((ended.code, ended.text()), (0, "Hello, Ada!\n"), "{ended:?}");
    let report = palisade.run(["wait", &task, "--json"]).report(0);
    assert_eq!(report["execution"]["output"], "Hello, Ada!\n", "{report:#}");
    assert_eq!((&report["state"], &report["failures"]), (&json!("completed"), &json!(0)), "{report:#}");
    assert!(ok(&palisade.run(["status", &task])).starts_with("completed"));

    // By its name, now that it is installed; with an entry of its own; and one that fails as in `palisade run`.
    let ended = palisade.run(["submit", "hello.wat", "-i", "Bob", "--wait"]);
    assert_eq!((ended.code, ended.text()), (0, "Hello, Bob!\n"), "{ended:?}");
    let ended = palisade.run(["submit", &plugin("reactor/upper.wat"), "--entry", "upper", "-i", "ahoy", "--wait"]);
    assert_eq!((ended.code, ended.text()), (0, "AHOY"), "{ended:?}");
    let ended = palisade.run(["submit", &plugin("spin/spin.wat"), "--wall-time", "100ms", "--attempts", "1", "--wait"]);
    assert_eq!(ended.code, 124, "{ended:?}");

    let plugins = palisade.run(["plugins", "--json"]).json();
    let names: Vec<_> = plugins["plugins"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["hello.wat", "spin.wat", "upper.wat"]);
    let agents = palisade.run(["agents", "stats", "hello.wat", "--json"]).json();
    assert_eq!(agents["agents"][0]["outcomes"]["completed"], 2, "{agents:#}");

    let (status, text) = exchange(&mut connect(&palisade), "GET /metrics HTTP/1.1", b"");
    assert!(status == 200 && text.contains("palisade_task_run_seconds_count") && text.ends_with("# EOF\n"), "{text}");
    assert_eq!(exchange(&mut connect(&palisade), "GET /healthz HTTP/1.1", b""), (200, "ok\n".to_owned()));
    let health = call(&palisade, "health", json!({}));
    assert_eq!((&health["result"]["durable"], &health["result"]["plugins"]), (&json!(true), &json!(3)), "{health:#}");
}

#[test]
fn one_key_is_one_task() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let submit = || palisade.run(["submit", &plugin("hello/hello.wat"), "--key", "k", "--json"]).json();
    let (first, second) = (submit(), submit());
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(first["task"], second["task"]);
}

#[test]
fn wrong_requests_get_the_standard_error_and_the_daemon_goes_on() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let code = |body: &[u8]| post(&palisade, body).1["error"]["code"].as_i64().unwrap();
    assert_eq!(code(b"{"), -32700);
    assert_eq!(code("[".repeat(1 << 20).as_bytes()), -32700);
    assert_eq!(code(b"[]"), -32600);
    assert_eq!(code(br#"{"id":1,"method":"health"}"#), -32600);

    let unknown = call(&palisade, "tasks.sumbit", json!({}));
    assert_eq!(
        (&unknown["error"]["code"], &unknown["error"]["data"]["nearest"]),
        (&json!(-32601), &json!("tasks.submit"))
    );
    let wrong = call(&palisade, "tasks.get", json!({ "task": "seven" }));
    assert_eq!((&wrong["error"]["code"], &wrong["error"]["data"]["method"]), (&json!(-32602), &json!("tasks.get")));
    let typo = call(&palisade, "tasks.submit", json!({ "plugin": "x", "prioritty": "high" }));
    assert!(typo["error"]["message"].as_str().unwrap().contains("prioritty"), "{typo:#}");
    let missing = call(&palisade, "tasks.get", json!({ "task": "01890a5d-ac96-774b-bcce-b302099a8057" }));
    assert_eq!((&missing["error"]["code"], &missing["error"]["data"]["kind"]), (&json!(-32006), &json!("not_found")));
    let invalid = json!({ "name": "x", "kind": "wasm", "bytes": "AAAA" });
    let invalid = call(&palisade, "plugins.install", invalid);
    assert_eq!(invalid["error"]["data"]["kind"], "invalid_artifact", "{invalid:#}");

    let batch = br#"[{"jsonrpc":"2.0","id":"a","method":"health"}, 1, {"jsonrpc":"2.0","method":"health"},
        {"jsonrpc":"2.0","id":null,"method":"nothing"}]"#;
    let (_, answers) = post(&palisade, batch);
    assert_eq!(answers.as_array().unwrap().len(), 3, "no answer to the notification: {answers:#}");
    assert_eq!((&answers[0]["id"], &answers[0]["result"]["durable"]), (&json!("a"), &json!(false)));
    assert_eq!((&answers[1]["error"]["code"], &answers[2]["error"]["code"]), (&json!(-32600), &json!(-32601)));
    assert_eq!(post(&palisade, br#"{"jsonrpc":"2.0","method":"health"}"#), (204, Value::Null));
    let long = vec![r#"{"jsonrpc":"2.0","id":1,"method":"health"}"#; 101].join(",");
    assert_eq!(code(format!("[{long}]").as_bytes()), -32600);

    // Larger than allowed by what it announces; and one that breaks off, on a connection that is dropped.
    let mut stream = connect(&palisade);
    stream.write_all(b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains(" 413 "), "{line}");
    connect(&palisade).write_all(b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").unwrap();
    assert_eq!(exchange(&mut connect(&palisade), "GET /rpc HTTP/1.1", b"").0, 405);
    assert_eq!(exchange(&mut connect(&palisade), "GET /else HTTP/1.1", b"").0, 404);
    assert!(call(&palisade, "health", json!({}))["result"].is_object());
}

#[test]
fn tcp_is_for_those_who_show_the_token() {
    let palisade = Palisade::new();
    let private = |name: &str, text: &str, mode: u32| {
        palisade.file(name, text);
        std::fs::set_permissions(palisade.folder().join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    private("token", TOKEN, 0o640);
    let daemon = Daemon::start(&palisade, &["--ephemeral", "--listen", "127.0.0.1:0", "--token-file", "token"]);
    let address = daemon.ready.trim().rsplit_once("http://").unwrap().1.to_owned();
    let send = |head: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(&mut stream, head, br#"{"jsonrpc":"2.0","id":1,"method":"health"}"#)
    };
    let (status, body) = send("POST /rpc HTTP/1.1");
    assert_eq!(status, 401);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["error"]["code"], -32050, "{body}");
    assert_eq!(send(&format!("POST /rpc HTTP/1.1\r\nauthorization: Bearer {}x", &TOKEN[1..])).0, 401);
    assert_eq!(send("GET /metrics HTTP/1.1").0, 401);
    let (status, body) = send(&format!("POST /rpc HTTP/1.1\r\nauthorization: Bearer {TOKEN}"));
    assert!(status == 200 && body.contains("\"result\""), "{body}");
    assert_eq!(send("GET /healthz HTTP/1.1").0, 200);

    palisade.run(["serve", "--listen", "127.0.0.1:0"]).assert_error(125, &["--token-file"]);
    private("weak", "secret", 0o600);
    let weak = palisade.run(["serve", "--ephemeral", "--listen", "0.0.0.0:0", "--token-file", "weak"]);
    weak.assert_error(125, &["16 to 512"]);
    for mode in [0o644, 0o604, 0o660, 0o602, 0o777] {
        private("open", TOKEN, mode);
        let open = palisade.run(["serve", "--ephemeral", "--listen", "127.0.0.1:0", "--token-file", "open"]);
        open.assert_error(125, &["others may read or replace the token in open", "chmod 600 open"]);
        assert!(!open.stderr.contains(TOKEN), "{open:?}");
    }
}

#[test]
fn what_was_acknowledged_outlives_a_killed_daemon() {
    let palisade = Palisade::new();
    let daemon = Daemon::start(&palisade, &["--tasks", "1"]);
    // It runs and takes the only place, so that the others are queued when the daemon dies.
    let spin = ok(&palisade.run(["submit", &plugin("spin/spin.wat"), "--wall-time", "1s", "--attempts", "1"]));
    let submit = |name: &str| ok(&palisade.run(["submit", &plugin("hello/hello.wat"), "-i", name]));
    let tasks: Vec<_> = ["Ada", "Bob", "Cleo"].map(|name| (submit(name), format!("Hello, {name}!\n"))).into();
    daemon.kill();
    palisade.run(["status", &spin]).assert_error(125, &["no daemon answers", "palisade serve"]);

    let _daemon = Daemon::start(&palisade, &[]);
    for (task, output) in &tasks {
        let ended = palisade.run(["wait", task]);
        assert_eq!((ended.code, ended.text()), (0, output.as_str()), "{ended:?}");
    }
    assert_eq!(palisade.run(["wait", &spin]).code, 124);
    let second = palisade.run(["serve"]);
    second.assert_error(125, &[]);
}

#[test]
fn a_daemon_told_to_end_lets_tasks_end_and_keeps_the_others() {
    let palisade = Palisade::new();
    let daemon = Daemon::start(&palisade, &["--tasks", "1"]);
    let running = ok(&palisade.run(["submit", &plugin("spin/spin.wat"), "--wall-time", "2s", "--attempts", "1"]));
    // In the only place as soon as it is seen running.
    let state = || palisade.run(["status", &running]).text().trim().to_owned();
    while state() == "queued" {}
    let queued = ok(&palisade.run(["submit", &plugin("hello/hello.wat"), "-i", "Ada"]));
    let waiting = palisade.start(["wait", &running]);
    daemon.signal(Signal::TERM);
    let (code, said) = daemon.ended();
    assert!(code == Some(0) && said.contains("1 tasks without an outcome are kept"), "{code:?} {said}");
    let ended = waiting.finish();
    // It was connected before the daemon ended, or came too late to reach it.
    assert!(ended.code == 124 || ended.stderr.contains("no daemon answers"), "{ended:?}");
    assert!(!socket(&palisade).exists(), "the socket is tidied up");

    let _daemon = Daemon::start(&palisade, &[]);
    assert_eq!(palisade.run(["wait", &running]).code, 124, "its outcome was kept");
    assert_eq!(palisade.run(["wait", &queued]).text(), "Hello, Ada!\n");
}

#[test]
fn a_task_that_runs_is_cancelled_and_a_wait_is_bounded() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let task = ok(&palisade.run(["submit", &plugin("spin/spin.wat")]));
    palisade.run(["wait", &task, "--timeout", "50ms"]).assert_error(125, &["no outcome after 50ms"]);
    assert_eq!(ok(&palisade.run(["cancel", &task])), "cancelled");
    assert_eq!(palisade.run(["wait", &task]).code, 130);

    // An agent that was ended takes no tasks until there is a new one.
    ok(&palisade.run(["agents", "terminate", "spin.wat"]));
    palisade.run(["submit", "spin.wat"]).assert_error(125, &["was terminated", "agents.spawn"]);
    ok(&palisade.run(["agents", "spawn", "spin.wat"]));
    let task = ok(&palisade.run(["submit", "spin.wat", "--wall-time", "50ms", "--attempts", "1"]));
    assert_eq!(palisade.run(["wait", &task]).code, 124);
    ok(&palisade.run(["plugins", "remove", "spin.wat"]));
    palisade.run(["submit", "spin.wat"]).assert_error(125, &["no plugin `spin.wat`"]);
}

#[test]
fn what_failed_too_often_is_tried_again_when_asked_for() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    // It asks to be tried again, each time.
    palisade.file("tempfail.wat", support::guests::command(r#"(func (export "_start") (call $exit (i32.const 75)))"#));
    let task = ok(&palisade.run(["submit", "./tempfail.wat", "--attempts", "1"]));
    assert_eq!(palisade.run(["wait", &task]).code, 75);
    let letters = palisade.run(["dlq", "--json"]).json();
    assert_eq!((&letters["tasks"][0]["task"], &letters["tasks"][0]["state"]), (&json!(task), &json!("dead_lettered")));
    ok(&palisade.run(["dlq", "requeue", &task]));
    assert_eq!(palisade.run(["wait", &task]).code, 75);
}

#[test]
fn tasks_are_listed_latest_first_and_filtered() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let hello = plugin("hello/hello.wat");
    let submit = |tenant: &str| ok(&palisade.run(["submit", &hello, "--tenant", tenant]));
    let tasks = ["a", "b", "a"].map(submit);
    for task in &tasks {
        assert_eq!(palisade.run(["wait", task]).code, 0);
    }
    let failed = ok(&palisade.run(["submit", &plugin("spin/spin.wat"), "--wall-time", "1ms", "--attempts", "1"]));
    assert_eq!(palisade.run(["wait", &failed]).code, 124);
    let list = |options: &[&str]| {
        let list = palisade.run([&["ls", "--json"], options].concat()).json();
        let ids = list["tasks"].as_array().unwrap().iter().map(|task| task["task"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>(), list["next"].clone())
    };
    let [first, second, third] = tasks.clone();
    assert_eq!(list(&[]).0, [failed.clone(), third.clone(), second.clone(), first.clone()]);
    assert_eq!(list(&["--tenant", "a"]), (vec![third.clone(), first.clone()], Value::Null));
    assert_eq!(list(&["--state", "completed", "--limit", "2"]), (vec![third, second.clone()], json!(second)));
    assert_eq!(list(&["--state", "completed", "--before", &second]).0, [first]);
    assert_eq!(
        list(&["--plugin", "spin.wat", "--state", "dead_lettered", "--state", "running"]).0,
        std::slice::from_ref(&failed)
    );
    let shown = ok(&palisade.run(["ls", "--plugin", "spin.wat"]));
    assert!(shown.starts_with("TASK") && shown.contains(&failed) && shown.contains("wall_time"), "{shown}");
    palisade.run(["ls", "--plugin", "spim.wat"]).assert_error(125, &["did you mean `spin.wat`"]);
    palisade.run(["ls", "--state", "gone"]).assert_error(125, &["dead_lettered"]);
}

#[test]
fn what_an_agent_remembers_can_be_looked_at() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    palisade.file("remembers.wat", REMEMBERS);
    palisade.file("policy.toml", "[grants]\nhost_functions = [\"kv.set\"]");
    for entry in ["bvalue", "a"] {
        let ended = palisade.run(["submit", "./remembers.wat", "--policy", "policy.toml", "-i", entry, "--wait"]);
        ok(&ended);
    }
    let list = palisade.run(["agents", "memory", "remembers.wat", "--json"]).json();
    let entry = |key: &str, value_bytes: u32| json!({ "key": key, "value_bytes": value_bytes });
    assert_eq!(list, json!({ "entries": [entry("YQ==", 0), entry("Yg==", 5)], "next": null }));
    assert_eq!(ok(&palisade.run(["agents", "memory", "remembers.wat"])), "KEY  BYTES\na    0\nb    5");
    assert_eq!(palisade.run(["agents", "memory", "remembers.wat", "b"]).text(), "value");
    assert_eq!(palisade.run(["agents", "memory", "remembers.wat", "Yg==", "--base64"]).text(), "value");
    palisade.run(["agents", "memory", "remembers.wat", "c"]).assert_error(125, &["no such key"]);

    let page = |params: Value| call(&palisade, "agents.memory", params)["result"].clone();
    let first = page(json!({ "plugin": "remembers.wat", "entries_max": 1 }));
    assert_eq!(first, json!({ "entries": [entry("YQ==", 0)], "next": "YQ==" }));
    let second = page(json!({ "plugin": "remembers.wat", "entries_max": 1, "after": "YQ==" }));
    assert_eq!(second, json!({ "entries": [entry("Yg==", 5)], "next": null }));
    ok(&palisade.run(["agents", "terminate", "remembers.wat"]));
    palisade.run(["agents", "memory", "remembers.wat"]).assert_error(125, &["has no agent"]);
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &[]);
    let subscribe = |options: &[&str]| {
        let path = palisade.file("said", "");
        let said = std::fs::File::create(&path).unwrap();
        let running = Running::start_to(palisade.command().arg("events").args(options), Stdio::piped(), said.into());
        let started = Instant::now();
        while std::fs::read_to_string(&path).unwrap() != "palisade: subscribed\n" {
            assert!(started.elapsed() < PATIENCE, "it does not subscribe");
        }
        running
    };
    let json = subscribe(&["--json", "--tenant", "a", "--limit", "3"]);
    let text = subscribe(&["--limit", "6"]);
    let task = ok(&palisade.run(["submit", &plugin("hello/hello.wat"), "--tenant", "a"]));
    let json = ok(&json.finish());
    let events: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = events.iter().map(|event| (event["event"].clone(), event["task"].clone()));
    let expected = ["submitted", "started", "finished"].map(|event| (json!(event), json!(task)));
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert_eq!((&events[2]["state"], &events[2]["outcome"]["kind"]), (&json!("completed"), &json!("completed")));
    let text = ok(&text.finish());
    // The agent's states among those of the task, in an order that is not certain.
    for expected in
        ["agent hello.wat@", "state=spawned", "state=busy", "state=ready", "submitted", "finished", ": completed"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[test]
fn the_log_of_a_task_is_joined_to_the_trace_it_came_with() {
    let palisade = Palisade::new();
    palisade.file("remembers.wat", REMEMBERS);
    palisade.file("policy.toml", "[grants]\nhost_functions = [\"kv.set\"]");
    let mut daemon = Daemon::start(&palisade, &["--ephemeral", "--log", "json", "--log-level", "debug"]);
    assert!(serde_json::from_str::<Value>(&daemon.ready).is_ok(), "{}", daemon.ready);
    let mut next = || -> Value {
        let mut line = String::new();
        daemon.stderr.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    };
    ok(&palisade.run(["submit", "./remembers.wat", "--policy", "policy.toml", "-i", "avalue", "--wait"]));
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let submit = |header: &str| {
        let body =
            br#"{"jsonrpc":"2.0","id":1,"method":"tasks.submit","params":{"plugin":"remembers.wat","input":"Yg=="}}"#;
        let head = format!("POST /rpc HTTP/1.1\r\ntraceparent: {header}");
        let (status, answer) = exchange(&mut connect(&palisade), &head, body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["result"]["task"].as_str().unwrap().to_owned()
    };
    let mut attempt = |task: &str| loop {
        let line = next();
        if line["span"]["task_id"] == task && line["message"] == "the attempt ended" {
            break line["span"].clone();
        }
    };
    let task = submit(&format!("00-{trace}-{parent}-01"));
    let span = attempt(&task);
    assert_eq!(span["trace_id"], trace, "{span:#}");
    // Between the client's span and the attempt is that of the submission.
    assert!(span["parent_span_id"].as_str().is_some_and(|id| id.len() == 16 && id != parent), "{span:#}");
    assert_eq!((&span["outcome"], &span["attempt"], &span["name"]), (&json!("completed"), &json!(1), &json!("task")));
    // A malformed header counts as none.
    let task = submit(&format!("00-{trace}-{parent}-zz"));
    let span = attempt(&task);
    assert_eq!((&span["trace_id"], &span["parent_span_id"]), (&json!(task.replace('-', "")), &Value::Null), "{span:#}");
    let params = json!({ "plugin": "remembers.wat", "trace": { "traceparent": "00" } });
    let refused = call(&palisade, "tasks.submit", params);
    assert_eq!(refused["error"]["data"]["kind"], "invalid_input", "{refused:#}");
}

#[test]
fn what_the_daemon_does_is_shown_without_a_terminal_too() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let hello = plugin("hello/hello.wat");
    for _ in 0..3 {
        assert_eq!(palisade.run(["submit", &hello, "--wait"]).code, 0);
    }
    ok(&palisade.run(["submit", "hello.wat", "--delay", "1h"]));
    let look = palisade.run(["top", "--once", "--json"]).json();
    assert_eq!((&look["finished"]["completed"], &look["queued"]["normal"]), (&json!(3), &json!(0)), "{look:#}");
    assert_eq!((&look["daemon"]["tasks"]["delayed"], &look["finished_per_second"]), (&json!(1), &Value::Null));
    let agent = &look["agents"][0];
    assert_eq!((&agent["state"], &agent["outcomes"]["completed"]), (&json!("ready"), &json!(3)), "{look:#}");
    let shown = palisade.run(["top"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    for expected in ["completed        3", "delayed          1", "hello.wat@", "agents: 1 ready"] {
        assert!(shown.text().contains(expected), "{expected:?} is not in\n{}", shown.text());
    }
}
