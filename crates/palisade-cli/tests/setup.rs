//! What the command makes for the shell and the manual.

mod support;

use std::process::Command;

use support::Palisade;

const COMMANDS: [&str; 6] = ["run", "inspect", "certify", "serve", "submit", "dlq"];

#[test]
fn shells_complete_every_command() {
    let palisade = Palisade::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = palisade.run(["completions", shell]);
        assert_eq!(script.code, 0, "{script:?}");
        for command in COMMANDS {
            assert!(String::from_utf8_lossy(&script.stdout).contains(command), "{shell}: {command}");
        }
    }
    // Read by the shell itself: it completes the only command that begins so.
    let script = String::from_utf8(palisade.run(["completions", "bash"]).stdout).unwrap();
    let test = format!(
        "{script}\nCOMP_WORDS=(palisade insp); COMP_CWORD=1; _palisade palisade insp palisade\necho ${{COMPREPLY[@]}}"
    );
    let completed = Command::new("bash").args(["--norc", "-c", &test]).output().expect("there is a bash");
    assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "inspect", "{completed:?}");
    palisade.run(["completions", "bosh"]).assert_error(125, &["bosh", "bash"]);
}

#[test]
fn every_command_has_its_page() {
    let palisade = Palisade::new();
    let written = palisade.run(["man", "pages", "--json"]);
    assert_eq!(written.code, 0, "{written:?}");
    let listed: serde_json::Value = serde_json::from_slice(&written.stdout).unwrap();
    let pages = palisade.folder().join("pages");
    let mut names: Vec<_> = std::fs::read_dir(&pages).unwrap().map(|one| one.unwrap().file_name()).collect();
    names.sort();
    let mut told: Vec<_> = listed["pages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(names, told);
    for command in COMMANDS {
        let page = std::fs::read_to_string(pages.join(format!("palisade-{command}.1"))).unwrap();
        assert!(page.contains(&format!(".TH palisade-{command} 1")), "{page:.200}");
        assert!(page.contains(".SH OPTIONS"), "{command}");
    }
    palisade.run(["man", "/proc/no"]).assert_error(125, &["/proc/no"]);
}
