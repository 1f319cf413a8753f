//! The examples in `plugins/` do what their comments promise.

mod support;

use support::{Palisade, assert_exceeded, repository};

/// Runs an example with this input.
fn run(plugin: &str, options: &[&str], input: &[u8]) -> support::Ended {
    let path = repository("plugins").join(plugin);
    let path = path.to_str().expect("a path in UTF-8");
    let mut running = Palisade::new().start(["run", path].iter().chain(options));
    running.send(input);
    running.finish()
}

#[test]
fn hello_greets_its_input() {
    for (input, greeting) in [("Ada\n", "Hello, Ada!\n"), ("Grace", "Hello, Grace!\n"), ("", "Hello, stranger!\n")] {
        let ended = run("hello/hello.wat", &["--quiet"], input.as_bytes());
        assert_eq!((ended.code, ended.text()), (0, greeting), "{ended:?}");
    }
}

#[test]
fn hello_greets_a_long_name_by_its_beginning() {
    let ended = run("hello/hello.wat", &[], &[b'x'; 5000]);
    assert_eq!(ended.text(), format!("Hello, {}!\n", "x".repeat(1000)));
}

#[test]
fn spin_is_stopped_at_its_deadline() {
    let report = run("spin/spin.wat", &["--wall-time", "200ms", "--json"], b"").report(124);
    assert_exceeded(&report, "wall_time", 200_000_000, "running");
}

#[test]
fn upper_answers_in_upper_case_whatever_the_length() {
    let ended = run("reactor/upper.wat", &["--entry", "upper", "--quiet"], "Ahoy, [`{z}] \u{e9}!".as_bytes());
    assert_eq!((ended.code, ended.text()), (0, "AHOY, [`{Z}] \u{e9}!"), "{ended:?}");
    // More than it holds at once.
    let long = run("reactor/upper.wat", &["--entry", "upper", "-i", &"ab".repeat(50_000)], b"");
    assert_eq!(long.text(), "AB".repeat(50_000));
    assert_eq!(run("reactor/upper.wat", &["--entry", "upper"], b"").text(), "");
}
