//! How `palisade run` ends: outcomes and exit codes.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::guests::{self, command, exits_with, reactor};
use support::{Palisade, assert_exceeded, control_characters};

/// A deadline long enough for a guest to get going, short enough for a test.
const DEADLINE: &str = "300ms";
const DEADLINE_NS: u64 = 300_000_000;
/// How late an end may be on a machine that is busy with other tests. A guest that is not stopped is far later.
const LATE: Duration = Duration::from_secs(5);

/// Runs a guest with `--json` and these options, and gives back its report.
#[track_caller]
fn report(guest: &str, options: &[&str], code: i32) -> Value {
    Palisade::new().guest(guest, &[&["--json"], options].concat()).report(code)
}

/// Checks that the report's call was stopped at the deadline, not before and not much later.
#[track_caller]
fn assert_stopped_at_deadline(report: &Value, phase: &str) {
    assert_exceeded(report, "wall_time", DEADLINE_NS, phase);
    let used = Duration::from_nanos(report["usage"]["wall_time_ns"].as_u64().expect("the wall time"));
    let deadline = Duration::from_nanos(DEADLINE_NS);
    assert!(used > deadline && used < deadline + LATE, "{report:#}");
}

#[track_caller]
fn assert_trapped(guest: &str, trap: &str) {
    let report = report(guest, &[], 123);
    assert_eq!(report["outcome"]["kind"], "trapped", "{report:#}");
    assert_eq!(report["outcome"]["trap"], trap, "{report:#}");
}

#[test]
fn a_guest_that_ends_well_gives_0() {
    let report = report(guests::NOTHING, &[], 0);
    assert_eq!(report["outcome"], json!({ "kind": "completed" }));
}

#[test]
fn a_guests_own_exit_code_is_the_commands() {
    let report = report(&exits_with(3), &[], 3);
    assert_eq!(report["outcome"], json!({ "kind": "failed", "exit_code": 3, "retry_requested": false }));
    assert_eq!(Palisade::new().guest(&exits_with(0), &[]).code, 0);
}

#[test]
fn an_exit_code_whose_low_byte_is_zero_is_still_a_failure() {
    let report = report(&exits_with(256), &[], 1);
    assert_eq!(report["outcome"]["exit_code"], 256);
}

#[test]
fn a_guest_can_ask_for_a_retry() {
    assert_eq!(report(&exits_with(75), &[], 75)["outcome"]["retry_requested"], true);
}

#[test]
fn an_entry_that_returns_a_code_ends_with_it() {
    let guest = r#"(module (func (export "check") (result i32) (i32.const 7)))"#;
    let report = report(guest, &["--entry", "check"], 7);
    assert_eq!(report["outcome"]["exit_code"], 7);
}

#[test]
fn the_deadline_stops_a_loop() {
    assert_stopped_at_deadline(&report(guests::SPIN, &["--wall-time", DEADLINE], 124), "running");
}

#[test]
fn the_deadline_stops_a_start_function() {
    assert_stopped_at_deadline(&report(guests::SPIN_AT_START, &["--wall-time", DEADLINE], 124), "starting");
}

#[test]
fn the_deadline_stops_a_sleep() {
    let century = command(r#"(func (export "_start") (call $sleep (i64.const 3153600000000000000)))"#);
    assert_stopped_at_deadline(&report(&century, &["--wall-time", DEADLINE], 124), "host_call");
}

#[test]
fn the_deadline_stops_a_wait_for_input_that_never_comes() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", guests::echoes());
    let running = palisade.start(["run", "guest.wat", "--json", "--wall-time", DEADLINE]);
    assert_stopped_at_deadline(&running.finish_with_open_input().report(124), "host_call");
}

#[test]
fn the_deadline_stops_a_reactor_whose_input_never_ends() {
    let palisade = Palisade::new();
    let guest = r#"(module (import "palisade" "input_len" (func (result i32))) (func (export "_start")))"#;
    palisade.file("guest.wat", guest);
    let mut running = palisade.start(["run", "guest.wat", "--json", "--wall-time", DEADLINE]);
    running.send(b"a beginning");
    assert_stopped_at_deadline(&running.finish_with_open_input().report(124), "host_call");
}

#[test]
fn the_command_itself_ends_soon_after_the_deadline() {
    let palisade = Palisade::new();
    palisade.guest(guests::SPIN, &["--fuel", "1"]);
    let ended = palisade.guest(guests::SPIN, &["--wall-time", DEADLINE]);
    assert_eq!(ended.code, 124);
    assert!(ended.took < Duration::from_nanos(DEADLINE_NS) + LATE, "{ended:?}");
    assert!(ended.stderr.contains("exceeded wall_time"), "{ended:?}");
}

#[test]
fn cpu_time_stops_a_loop() {
    let report = report(guests::SPIN, &["--cpu-time", "100ms"], 124);
    assert_exceeded(&report, "cpu_time", 100_000_000, "running");
    assert!(report["usage"]["cpu_time_ns"].as_u64() > Some(100_000_000), "{report:#}");
}

#[test]
fn sleeping_takes_no_cpu_time() {
    let sleep = command(r#"(func (export "_start") (call $sleep (i64.const 300000000)))"#);
    let report = report(&sleep, &["--cpu-time", "200ms"], 0);
    assert!(report["usage"]["wall_time_ns"].as_u64() >= Some(300_000_000), "{report:#}");
}

#[test]
fn fuel_stops_a_loop_at_the_same_instruction_every_time() {
    let reports = [(), ()].map(|()| report(guests::SPIN, &["--fuel", "10k"], 124));
    assert_exceeded(&reports[0], "fuel", 10_000, "running");
    assert_eq!(reports[0]["usage"]["fuel"], reports[1]["usage"]["fuel"]);
    assert!(reports[0]["usage"]["fuel"].as_u64() <= Some(10_000), "{:#}", reports[0]);
}

#[test]
fn fuel_that_just_suffices_is_allowed() {
    let guest = r#"(module (func (export "_start") (local $n i32)
        (loop (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))))"#;
    let needed = report(guest, &[], 0)["usage"]["fuel"].as_u64().expect("the fuel used");
    assert!(needed > 1000, "{needed}");
    report(guest, &["--fuel", &needed.to_string()], 0);
    assert_exceeded(&report(guest, &["--fuel", &(needed - 1).to_string()], 124), "fuel", needed - 1, "running");
}

#[test]
fn an_initial_memory_beyond_the_quota_is_refused() {
    let guest = r#"(module (memory 17) (func (export "_start")))"#;
    let report = report(guest, &["--memory", "1MiB"], 137);
    assert_exceeded(&report, "memory_bytes", 1 << 20, "starting");
    assert_eq!(report["outcome"]["used"], 17 * 65536);
}

#[test]
fn memory_up_to_the_quota_is_allowed_and_not_a_page_more() {
    let grows_by = |pages: u32| {
        format!(
            r#"(module (memory 1) (func (export "_start") (if (i32.ne (memory.grow (i32.const {pages})) (i32.const 1)) (then unreachable))))"#
        )
    };
    let all = report(&grows_by(15), &["--memory", "1MiB"], 0);
    assert_eq!(all["usage"]["memory_peak_bytes"], 1 << 20);
    let more = report(&grows_by(16), &["--memory", "1MiB"], 137);
    assert_exceeded(&more, "memory_bytes", 1 << 20, "running");
}

#[test]
fn endless_recursion_runs_out_of_stack() {
    let guest = r#"(module (func $f (call $f) (call $f)) (func (export "_start") (call $f)))"#;
    assert_exceeded(&report(guest, &[], 122), "stack_bytes", 512 << 10, "running");
    assert_exceeded(&report(guest, &["--stack", "64KiB"], 122), "stack_bytes", 64 << 10, "running");
}

#[test]
fn a_flood_of_output_is_stopped() {
    let report = report(&guests::floods(1), &["--output-limit", "5000"], 122);
    assert_exceeded(&report, "output_bytes", 5000, "running");
    assert_eq!(report["usage"]["output_bytes"], 5000);
}

#[test]
fn a_flood_of_error_text_is_stopped() {
    let report = report(&guests::floods(2), &["--log-limit", "5000"], 122);
    assert_exceeded(&report, "log_bytes", 5000, "running");
    assert_eq!(report["error"].as_str().map(str::len), Some(5000));
}

#[test]
fn a_flood_of_empty_log_records_is_stopped() {
    let guest =
        reactor(r#"(func (export "_start") (loop (call $log (i32.const 2) (i32.const 0) (i32.const 0)) (br 0)))"#);
    let report = report(&guest, &["--log-limit", "5000"], 122);
    assert_exceeded(&report, "log_bytes", 5000, "running");
}

#[test]
fn traps_are_told_apart() {
    let entry = |body: &str| format!(r#"(module (memory 1) (table 1 funcref) (func (export "_start") {body}))"#);
    assert_trapped(&entry("unreachable"), "unreachable");
    assert_trapped(&entry("(drop (i32.load (i32.const 65536)))"), "memory_out_of_bounds");
    assert_trapped(&entry("(drop (table.get 0 (i32.const 1)))"), "table_out_of_bounds");
    assert_trapped(&entry("(drop (i32.div_u (i32.const 1) (i32.const 0)))"), "division_by_zero");
    assert_trapped(&entry("(drop (i32.div_s (i32.const -2147483648) (i32.const -1)))"), "arithmetic");
    assert_trapped(&entry("(call_indirect (i32.const 0))"), "indirect_call");
}

#[test]
fn a_range_outside_the_guests_memory_is_a_trap() {
    let guest = reactor(r#"(func (export "_start") (call $output_write (i32.const 65535) (i32.const 2)))"#);
    assert_trapped(&guest, "memory_out_of_bounds");
}

#[test]
fn a_trap_names_the_function_without_control_characters() {
    let name = r"evil\1b[2J\07name";
    let guest = format!(r#"(module (func $f (@name "{name}") unreachable) (func (export "_start") (call $f)))"#);
    let ended = Palisade::new().guest(&guest, &[]);
    assert_eq!(ended.code, 123);
    assert!(ended.stderr.contains("unreachable code reached") && ended.stderr.contains("evil"), "{ended:?}");
    assert_eq!(control_characters(&ended.stderr), "\n", "{ended:?}");
}

#[test]
fn a_host_function_that_is_not_granted_is_denied_by_its_name() {
    let guest = reactor(
        r#"(data (i32.const 0) "kv.get")
        (func (export "_start")
            (drop (call $host_call (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 0)))
            unreachable)"#,
    );
    let report = report(&guest, &[], 126);
    assert_eq!(report["outcome"], json!({ "kind": "denied", "grant": "host_functions: kv.get" }));
    let ended = Palisade::new().guest(&guest, &[]);
    assert_eq!(ended.code, 126);
    assert!(ended.stderr.contains("does not grant host_functions: kv.get"), "{ended:?}");
}

#[test]
fn the_name_of_a_denied_host_function_moves_no_cursor() {
    let guest = reactor(
        r#"(data (i32.const 0) "\1b[2J\r\n")
        (func (export "_start") (drop (call $host_call (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 0))))"#,
    );
    let ended = Palisade::new().guest(&guest, &[]);
    assert_eq!(ended.code, 126);
    assert_eq!((control_characters(&ended.stderr).as_str(), ended.stderr.lines().count()), ("\n", 1), "{ended:?}");
}

#[test]
fn the_report_tells_quota_and_usage_of_every_call() {
    let report = report(guests::SPIN, &["--fuel", "1000", "--wall-time", "7s", "--memory", "unlimited"], 124);
    let quota = &report["quota"];
    assert_eq!(
        (&quota["fuel"], &quota["wall_time"], &quota["memory_bytes"]),
        (&json!("1000"), &json!("7s"), &json!("unlimited"))
    );
    assert_eq!(quota.as_object().map(|quota| quota.len()), Some(12), "{report:#}");
    assert_eq!(report["usage"].as_object().map(|usage| usage.len()), Some(12), "{report:#}");
    assert!(report["usage"]["wall_time_ns"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["module"]["name"], "guest.wat");
    assert_eq!(report["module"]["cached"], false);
}
