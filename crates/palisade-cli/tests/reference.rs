//! The reference of the command's options is what the command itself says.

mod support;

use std::path::PathBuf;

use support::Palisade;

fn file() -> PathBuf {
    support::repository("docs/reference.md")
}

/// What `palisade` with these arguments prints.
fn help(palisade: &Palisade, arguments: &[&str]) -> String {
    // The width follows the terminal where there is one.
    let mut command = palisade.command();
    let output = command.args(arguments).env("COLUMNS", "100").env("NO_COLOR", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Adds a command and those below it.
fn describe(palisade: &Palisade, command: &[&str], text: &mut String) {
    let help = help(palisade, &[command, &["--help"]].concat());
    let title = [&["palisade"], command].concat().join(" ");
    *text += &format!("\n## {title}\n\n```text\n{help}```\n");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that goes on in the next line is indented further.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        describe(palisade, &[command, &[name]].concat(), text);
    }
}

/// All of it, as Markdown.
fn reference() -> String {
    let mut text =
        "# Reference of the command\n\nMade from the command itself; after a change of its options, make it \
                    anew:\n\n```sh\nPALISADE_WRITE_REFERENCE=1 cargo test -p palisade-cli --test reference\n```\n"
            .to_owned();
    describe(&Palisade::new(), &[], &mut text);
    for title in ["## palisade run\n", "## palisade serve\n", "## palisade dlq requeue\n"] {
        assert!(text.contains(title), "{title} is missing in {text}");
    }
    text
}

#[test]
fn the_reference_is_up_to_date() {
    let reference = reference();
    if std::env::var_os("PALISADE_WRITE_REFERENCE").is_some() {
        return std::fs::write(file(), reference).unwrap();
    }
    let kept = std::fs::read_to_string(file()).unwrap();
    assert!(
        kept == reference,
        "docs/reference.md is out of date; run `PALISADE_WRITE_REFERENCE=1 cargo test -p palisade-cli --test reference`"
    );
}
