//! Limits of tenants, set while the daemon runs and kept by it.

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::daemon::{Daemon, PATIENCE, call, connect, exchange};
use support::{Ended, Palisade, repository};

fn spin() -> String {
    repository("plugins").join("spin/spin.wat").display().to_string()
}

#[track_caller]
fn ok(ended: &Ended) -> String {
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.text().trim().to_owned()
}

fn tenants(palisade: &Palisade) -> Value {
    palisade.run(["tenants", "--json"]).json()["tenants"].clone()
}

/// The first tenant's figures: queued, delayed and running.
fn figures(palisade: &Palisade) -> [Value; 3] {
    ["queued", "delayed", "running"].map(|figure| tenants(palisade)[0][figure].clone())
}

#[test]
fn a_tenants_limits_hold_and_survive_the_daemon() {
    let palisade = Palisade::new();
    let daemon = Daemon::start(&palisade, &["--tenant-tasks-max", "3", "--tenant-running-max", "2"]);
    assert_eq!(tenants(&palisade), json!([]));
    let set = ["tenants", "set", "a", "--weight", "5", "--running-max", "1", "--submit-rate", "1/h:9"];
    let shown = ok(&palisade.run(set));
    assert!(shown.starts_with("TENANT") && shown.contains("a ") && shown.contains(":9"), "{shown}");
    let submit = |options: &[&str]| {
        let arguments = [&["submit", "spin.wat", "--tenant", "a", "--wall-time", "1h"], options].concat();
        palisade.run(arguments)
    };
    ok(&palisade.run(["submit", &spin(), "--tenant", "other", "--wall-time", "1h", "--delay", "1h"]));
    let running = ok(&submit(&[]));
    ok(&submit(&["--delay", "1h"]));
    ok(&submit(&[]));
    submit(&[]).assert_error(125, &["as many tasks as it may"]);
    let listed = tenants(&palisade);
    let limits = json!({ "weight": 5, "running_max": 1, "tasks_max": 3,
        "submit_rate": { "per_second": 1.0 / 3600.0, "burst": 9 } });
    assert_eq!((&listed[0]["tenant"], &listed[0]["limits"]), (&json!("a"), &limits));
    assert_eq!(listed[0]["own_limits"]["tasks_max"], Value::Null, "those of every tenant are not its own");
    assert_eq!((&listed[1]["tenant"], &listed[1]["own_limits"]), (&json!("other"), &Value::Null));
    assert_eq!(listed[1]["limits"], json!({ "running_max": 2, "tasks_max": 3 }));
    // One runs, by its limit; the other one waits for it.
    let settled = call(&palisade, "tasks.list", json!({ "tenant": "a", "states": ["running"] }));
    assert!(settled["result"]["tasks"].as_array().unwrap().len() <= 1, "{settled:#}");
    assert_eq!(figures(&palisade), [1, 1, 1].map(|count| json!(count)));
    ok(&palisade.run(["cancel", &running]));
    daemon.kill();

    let _daemon = Daemon::start(&palisade, &["--tenant-tasks-max", "2"]);
    let listed = tenants(&palisade);
    assert_eq!(
        listed[0]["limits"],
        json!({ "weight": 5, "running_max": 1, "tasks_max": 2,
        "submit_rate": { "per_second": 1.0 / 3600.0, "burst": 9 } })
    );
    submit(&[]).assert_error(125, &["as many tasks as it may"]);
    ok(&palisade.run(["tenants", "set", "a", "--tasks-max", "9", "--submit-rate", "1/h"]));
    ok(&submit(&[]));
    submit(&[]).assert_error(125, &["more often than it may"]);
    let reset = palisade.run(["tenants", "reset", "a", "--json"]).json();
    assert_eq!(reset["tenants"][0]["limits"], json!({ "tasks_max": 2 }), "{reset:#}");
    palisade.run(["tenants", "reset", "a"]).assert_error(125, &["no such tenant has limits of its own"]);
}

#[test]
fn the_first_tenants_have_metrics_of_their_own() {
    let palisade = Palisade::new();
    let metrics = || exchange(&mut connect(&palisade), "GET /metrics HTTP/1.1", b"").1;
    let submit = |tenant: &str, option: &str| {
        ok(&palisade.run(["submit", &spin(), "--tenant", tenant, option, "1h"]));
    };
    {
        // One runs, and the rest waits for its place.
        let _daemon = Daemon::start(&palisade, &["--ephemeral", "--tasks", "1", "--tenant-labels", "1"]);
        for tenant in ["a", "b", "a", "b", "c"] {
            submit(tenant, "--wall-time");
        }
        let started = Instant::now();
        let shown = loop {
            let shown = metrics();
            if shown.contains("palisade_tenant_queue_wait_seconds_count{tenant=\"a\"} 1") {
                break shown;
            }
            assert!(started.elapsed() < PATIENCE, "nothing starts: {shown}");
        };
        for (tenant, queued) in [("a", 1), ("other", 3)] {
            let gauge = format!("palisade_tenant_queue_tasks{{tenant=\"{tenant}\"}} {queued}.0");
            assert!(shown.contains(&gauge), "{gauge} is not in {shown}");
        }
        assert!(!shown.contains("tenant=\"b\"") && !shown.contains("tenant=\"c\""), "{shown}");
    }
    {
        let _daemon = Daemon::start(&palisade, &["--ephemeral", "--tenant-labels", "0"]);
        submit("a", "--delay");
        let shown = metrics();
        assert!(shown.contains("palisade_tasks_submitted_total"), "{shown}");
        assert!(!shown.contains("palisade_tenant_") && !shown.contains("tenant="), "{shown}");
    }
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    (0..11).for_each(|number| submit(&format!("t{number}"), "--delay"));
    let shown = metrics();
    assert!(shown.contains("{tenant=\"t9\"}") && !shown.contains("{tenant=\"t10\"}"), "{shown}");
    palisade.run(["serve", "--tenant-labels", "1001"]).assert_error(125, &["--tenant-labels", "1000"]);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let palisade = Palisade::new();
    palisade.run(["serve", "--tenant-running-max", "0"]).assert_error(125, &["greater than zero"]);
    palisade.run(["serve", "--tenant-start-rate", "10"]).assert_error(125, &["--tenant-start-rate", "`10/s`"]);
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let set = |options: &[&str]| palisade.run([&["tenants", "set", "a"], options].concat());
    set(&["--weight", "0"]).assert_error(125, &["from 1 to 1000"]);
    set(&["--weight", "1001"]).assert_error(125, &["from 1 to 1000"]);
    set(&["--weight", "many"]).assert_error(125, &["--weight"]);
    set(&["--running-max", "0"]).assert_error(125, &["greater than zero"]);
    set(&["--submit-rate", "0/s"]).assert_error(125, &["--submit-rate", "from 1e-6 to 1e9"]);
    set(&["--start-rate", "1e99/s"]).assert_error(125, &["--start-rate", "from 1e-6 to 1e9"]);
    set(&["--start-rate", "ten"]).assert_error(125, &["--start-rate", "`10/s`"]);
    palisade.run(["tenants", "set", "", "--weight", "2"]).assert_error(125, &["1 to 256"]);
    palisade.run(["tenants", "set", &"x".repeat(257)]).assert_error(125, &["257 bytes"]);
    palisade.run(["tenants", "reset", "nobody"]).assert_error(125, &["no such tenant", "limits of its own"]);
    let refused = |method: &str, params: Value| call(&palisade, method, params)["error"].clone();
    let rate = |per_second: f64, burst: u32| json!({ "per_second": per_second, "burst": burst });
    for limits in [
        json!({ "weight": 0 }),
        json!({ "submit_rate": rate(0.0, 1) }),
        json!({ "start_rate": rate(1e300, 1) }),
        json!({ "start_rate": rate(1.0, 0) }),
    ] {
        let error = refused("tenants.set", json!({ "tenant": "a", "limits": limits }));
        assert_eq!(error["data"]["kind"], "invalid_input", "{limits}: {error:#}");
    }
    for params in [json!({ "tenant": "a" }), json!({ "tenant": "a", "limits": { "wieght": 1 } })] {
        assert_eq!(refused("tenants.set", params)["code"], -32602);
    }
    let error = refused("tenants.reset", json!({ "tenant": "nobody" }));
    assert_eq!(error["data"]["kind"], "not_found", "{error:#}");
    assert_eq!(tenants(&palisade), json!([]), "nothing was set");
    // A page at a time.
    for name in ["b", "a", "c"] {
        ok(&set_of(&palisade, name));
    }
    let page = |params: Value| call(&palisade, "tenants.list", params)["result"].clone();
    let first = page(json!({ "tenants_max": 2 }));
    assert_eq!((&first["tenants"][1]["tenant"], &first["next"]), (&json!("b"), &json!("b")), "{first:#}");
    let second = page(json!({ "tenants_max": 2, "after": "b" }));
    assert_eq!((&second["tenants"][0]["tenant"], &second["next"]), (&json!("c"), &Value::Null), "{second:#}");
}

fn set_of(palisade: &Palisade, name: &str) -> Ended {
    palisade.run(["tenants", "set", name, "--weight", "2"])
}
