//! What goes in and out of `palisade run`: standard streams, signals, closed pipes.

mod support;

use std::process::Stdio;

use rustix::process::Signal;
use support::guests::{self, command, reactor};
use support::{Palisade, Running};

/// Reads one byte and ends.
fn takes_one_byte() -> String {
    command(r#"(func (export "_start") (drop (call $read (i32.const 0) (i32.const 1024) (i32.const 1))))"#)
}

/// Writes a line and then does this.
fn ready_then(body: &str) -> String {
    command(&format!(
        r#"(data (i32.const 1024) "ready\n")
        (func (export "_start") (call $write (i32.const 1) (i32.const 1024) (i32.const 6)) {body})"#
    ))
}

#[test]
fn standard_input_reaches_the_guest_to_its_end() {
    let text = "a line\nand \0 bytes \u{1f3f0}".repeat(1000);
    let ended = Palisade::new().guest_with(&guests::echoes(), &[], text.as_bytes());
    assert_eq!((ended.code, ended.text()), (0, text.as_str()), "{ended:?}");
}

#[test]
fn input_comes_from_a_text_a_file_or_standard_input() {
    let palisade = Palisade::new();
    palisade.file("input.txt", "from the file");
    let echo = |input: &str| palisade.guest_with(&guests::echoes(), &["-i", input], b"from the pipe").text().to_owned();
    assert_eq!(echo("from the option"), "from the option");
    assert_eq!(echo("@input.txt"), "from the file");
    assert_eq!(echo("-"), "from the pipe");
    assert_eq!(echo("-x starts like an option"), "-x starts like an option");
    assert_eq!(echo(""), "");
}

#[test]
fn a_reactor_gets_the_same_input() {
    let guest = r#"(module
        (import "palisade" "input_len" (func $len (result i32)))
        (import "palisade" "input_read" (func $read (param i32 i32 i32) (result i32)))
        (import "palisade" "output_write" (func $write (param i32 i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $write (i32.const 0) (call $read (i32.const 0) (i32.const 0) (call $len)))))"#;
    let palisade = Palisade::new();
    assert_eq!(palisade.guest_with(guest, &[], b"from the pipe").text(), "from the pipe");
    assert_eq!(palisade.guest(guest, &["-i", "from the option"]).text(), "from the option");
}

#[test]
fn input_beyond_the_memory_quota_stops_a_reactor_that_needs_it_whole() {
    let guest = r#"(module (import "palisade" "input_len" (func (result i32))) (func (export "_start")))"#;
    let report = Palisade::new().guest_with(guest, &["--json", "--memory", "10000"], &[b'x'; 10_001]).report(137);
    support::assert_exceeded(&report, "memory_bytes", 10_000, "host_call");
}

#[test]
fn a_guest_that_reads_nothing_leaves_standard_input_to_the_next_program() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", guests::NOTHING);
    let ended = palisade.shell(r#""$PALISADE" run --quiet guest.wat; cat"#, b"for the next");
    assert_eq!((ended.code, ended.text()), (0, "for the next"), "{ended:?}");
}

#[test]
fn a_guest_that_read_enough_ends_while_the_pipe_stays_open() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", takes_one_byte());
    let mut running = palisade.start(["run", "guest.wat", "--json"]);
    running.send(b"xyz");
    let report = running.finish_with_open_input().report(0);
    assert_eq!(report["usage"]["input_bytes"], 1, "{report:#}");
}

#[test]
fn each_stream_of_the_guest_goes_to_the_commands_own() {
    let palisade = Palisade::new();
    let output = palisade.guest(&guests::writes(1, "to output"), &["--quiet"]);
    assert_eq!((output.text(), output.stderr.as_str()), ("to output", ""));
    let error = palisade.guest(&guests::writes(2, "to error"), &["--quiet"]);
    assert_eq!((error.text(), error.stderr.as_str()), ("", "to error"));
}

#[test]
fn a_reactors_streams_go_there_too() {
    let guest = reactor(
        r#"(data (i32.const 0) "output") (data (i32.const 16) "error") (data (i32.const 32) "record")
        (func (export "_start")
            (call $output_write (i32.const 0) (i32.const 6))
            (call $error_write (i32.const 16) (i32.const 5))
            (call $log (i32.const 3) (i32.const 32) (i32.const 6)))"#,
    );
    let palisade = Palisade::new();
    let ended = palisade.guest(&guest, &["--quiet"]);
    assert_eq!((ended.text(), ended.stderr.as_str()), ("output", "error[warn] record\n"));
    let report = palisade.guest(&guest, &["--json"]).report(0);
    assert_eq!((&report["output"], &report["error"]), (&"output".into(), &"error".into()), "{report:#}");
    assert_eq!(report["log"], serde_json::json!([{ "level": "warn", "message": "record" }]));
}

#[test]
fn the_usage_is_one_line_on_standard_error_that_quiet_silences() {
    let palisade = Palisade::new();
    let ended = palisade.guest(&guests::writes(1, "text"), &["--fuel", "1M"]);
    assert_eq!(ended.text(), "text");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    for part in [
        "palisade: completed | wall time ",
        " of 30 s",
        "fuel ",
        " of 1 M",
        "memory 128 KiB of 128 MiB",
        "output 4 B of 16 MiB",
    ] {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {ended:?}");
    }
    let quiet = palisade.guest(guests::SPIN, &["--fuel", "1M", "--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (124, ""));
    assert_eq!(palisade.guest(guests::NOTHING, &["--json"]).stderr, "");
}

#[test]
fn output_is_seen_as_it_comes() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", ready_then("(drop (call $read (i32.const 0) (i32.const 1024) (i32.const 1)))"));
    let mut running = palisade.start(["run", "guest.wat"]);
    // The guest ends only when it gets its input, which is sent when its line was seen.
    assert_eq!(running.read_line(), "ready\n");
    running.send(b"x");
    assert_eq!(running.finish_with_open_input().code, 0);
}

#[test]
fn output_up_to_the_limit_is_allowed_and_not_a_byte_more() {
    let palisade = Palisade::new();
    let exactly = palisade.guest(&guests::writes(1, "exactly 10"), &["--output-limit", "10"]);
    assert_eq!((exactly.code, exactly.text()), (0, "exactly 10"));
    let more = palisade.guest(&guests::writes(1, "eleven it is"), &["--output-limit", "11"]);
    assert_eq!((more.code, more.text()), (122, "eleven it i"));
    let flood = palisade.guest(&guests::floods(1), &["--output-limit", "123456"]);
    assert_eq!((flood.code, flood.stdout.len()), (122, 123_456));
    assert_eq!(palisade.guest(guests::NOTHING, &["--output-limit", "0"]).code, 0);
}

#[test]
fn error_text_up_to_the_limit_is_allowed_and_not_a_byte_more() {
    let palisade = Palisade::new();
    let exactly = palisade.guest(&guests::writes(2, "exactly 10"), &["--log-limit", "10", "-q"]);
    assert_eq!((exactly.code, exactly.stderr.as_str()), (0, "exactly 10"));
    let more = palisade.guest(&guests::writes(2, "eleven it is"), &["--log-limit", "11", "-q"]);
    assert_eq!((more.code, more.stderr.as_str()), (122, "eleven it i"));
}

#[test]
fn output_that_is_no_text_is_encoded_in_json() {
    let report = Palisade::new().guest(&guests::writes(1, r"\ff"), &["--json"]);
    // The text in the module is an escape of one byte, three characters long: the two behind it are zero.
    assert_eq!(report.report(0)["output_base64"], "/wAA");
}

#[test]
fn an_interrupt_ends_a_loop() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", ready_then("(loop (br 0))"));
    let mut running = palisade.start(["run", "guest.wat"]);
    assert_eq!(running.read_line(), "ready\n");
    running.signal(Signal::INT);
    let ended = running.finish();
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.starts_with("palisade: cancelled while running | "), "{ended:?}");
}

#[test]
fn an_interrupt_ends_a_sleep_and_a_wait_for_input() {
    let palisade = Palisade::new();
    for wait in
        ["(call $sleep (i64.const 3600000000000))", "(drop (call $read (i32.const 0) (i32.const 1024) (i32.const 1)))"]
    {
        palisade.file("guest.wat", ready_then(wait));
        let mut running = palisade.start(["run", "guest.wat"]);
        assert_eq!(running.read_line(), "ready\n");
        running.signal(Signal::INT);
        let ended = running.finish_with_open_input();
        assert_eq!(ended.code, 130, "{ended:?}");
        assert!(ended.stderr.starts_with("palisade: cancelled while "), "{ended:?}");
    }
}

#[test]
fn an_interrupted_call_is_reported_as_cancelled() {
    let palisade = Palisade::new();
    let body = "(loop (drop (call $read (i32.const 0) (i32.const 1024) (i32.const 4096))) (br 0))";
    palisade.file("guest.wat", command(&format!(r#"(func (export "_start") {body})"#)));
    let mut running = palisade.start(["run", "guest.wat", "--json"]);
    // In JSON mode nothing is heard of the guest until it ends; but nobody else takes so much off the pipe.
    running.send(&[0; 1 << 20]);
    running.signal(Signal::INT);
    let report = running.finish_with_open_input().report(130);
    assert_eq!(report["outcome"]["kind"], "cancelled", "{report:#}");
}

#[test]
fn an_interrupt_does_not_wait_for_a_reader_that_does_not_read() {
    let palisade = Palisade::new();
    // More than any pipe holds, then a loop.
    let flood = "(local $n i32) (call $write (i32.const 1) (i32.const 1024) (i32.const 6))
        (loop $more
            (call $write (i32.const 1) (i32.const 2048) (i32.const 65536))
            (br_if $more (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100))))
        (call $write (i32.const 2) (i32.const 1024) (i32.const 6))
        (loop (br 0))";
    let guest = command(&format!(r#"(data (i32.const 1024) "ready\n") (func (export "_start") {flood})"#));
    palisade.file("guest.wat", guest);
    let mut running = palisade.start(["run", "guest.wat"]);
    assert_eq!(running.read_line(), "ready\n");
    let unread = running.take_stdout();
    running.signal(Signal::INT);
    assert_eq!(running.finish().code, 130);
    drop(unread);
}

#[test]
fn a_flood_that_nobody_reads_any_more_ends() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", guests::floods(1));
    let mut running = palisade.start(["run", "guest.wat", "--output-limit", "unlimited"]);
    running.close_stdout();
    let ended = running.finish();
    assert_eq!(ended.code, 141, "{ended:?}");
}

#[test]
fn a_guest_that_ends_well_into_a_closed_pipe_did_not_end_well() {
    let palisade = Palisade::new();
    palisade.file(
        "guest.wat",
        command(
            r#"(func (export "_start")
            (drop (call $read (i32.const 0) (i32.const 1024) (i32.const 1)))
            (call $write (i32.const 1) (i32.const 1024) (i32.const 1)))"#,
        ),
    );
    let mut running = palisade.start(["run", "guest.wat"]);
    running.close_stdout();
    running.send(b"x");
    assert_eq!(running.finish().code, 141);
}

#[test]
fn a_full_disk_under_the_output_is_an_error() {
    let palisade = Palisade::new();
    palisade.file("guest.wat", guests::writes(1, "text"));
    for option in ["--quiet", "--json"] {
        let ended = palisade.shell(&format!(r#"exec "$PALISADE" run guest.wat {option} >/dev/full"#), b"");
        assert_eq!(ended.code, 125, "{ended:?}");
        assert!(ended.stderr.starts_with("palisade: error: cannot write the output: "), "{ended:?}");
    }
}

#[test]
fn that_nobody_reads_standard_error_changes_nothing() {
    let palisade = Palisade::new();
    palisade.file("good.wat", guests::writes(1, "text"));
    for (arguments, code, output) in [(["run", "good.wat"], 0, "text"), (["run", "missing.wat"], 125, "")] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let running = Running::start_to(palisade.command().args(arguments), Stdio::piped(), writer.into());
        let ended = running.finish();
        assert_eq!((ended.code, ended.text()), (code, output), "{ended:?}");
    }
}
