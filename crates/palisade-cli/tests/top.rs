//! `palisade top` in a terminal.

mod support;

use std::io::{BufRead, Read};

use support::daemon::Daemon;
use support::{Palisade, repository};

/// The words on the screen, in the order in which they were written: what moves the cursor or sets a colour parts them.
fn words(written: &str) -> Vec<&str> {
    let mut texts = written.split("\x1b[");
    let first = texts.next().unwrap_or_default();
    let texts = texts.map(|text| text.split_once(|c: char| ('@'..='~').contains(&c)).map_or("", |(_, rest)| rest));
    let parts = [first].into_iter().chain(texts).flat_map(|text| text.split(['│', ' ']));
    parts.filter(|word| !word.is_empty()).collect()
}

#[test]
fn it_draws_until_q_and_leaves_the_terminal_as_it_was() {
    let palisade = Palisade::new();
    let _daemon = Daemon::start(&palisade, &["--ephemeral"]);
    let hello = repository("plugins").join("hello/hello.wat").display().to_string();
    for _ in 0..3 {
        assert_eq!(palisade.run(["submit", &hello, "--wait"]).code, 0);
    }
    // The terminal's settings are compared, and its screen is looked at below.
    let mut top = palisade.terminal(
        r#"before=$(stty -g); "$PALISADE" top --interval 50ms; code=$?
        test "$(stty -g)" = "$before" || exit 99; exit $code"#,
    );
    let mut screen = top.take_stdout();
    let mut written = Vec::new();
    loop {
        let more = screen.fill_buf().unwrap();
        assert!(!more.is_empty(), "it ended: {}", String::from_utf8_lossy(&written));
        written.extend_from_slice(more);
        let more = more.len();
        screen.consume(more);
        let text = String::from_utf8_lossy(&written);
        let words = words(&text);
        if words.iter().any(|word| word.starts_with("hello.wat@"))
            && words.windows(2).any(|pair| pair == ["completed", "3"])
        {
            break;
        }
    }
    top.send(b"q");
    screen.read_to_end(&mut written).unwrap();
    let ended = top.finish_with_open_input();
    assert_eq!(ended.code, 0, "{ended:?}");
    let text = String::from_utf8_lossy(&written);
    for (set, reset, what) in [("?1049h", "?1049l", "other screen"), ("?25l", "?25h", "hidden cursor")] {
        assert!(text.contains(set), "{what} is never set: {text:?}");
        assert!(text.rfind(reset) > text.rfind(set), "{what} stays: {text:?}");
    }
}
