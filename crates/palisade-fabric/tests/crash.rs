//! Killed with SIGKILL at random moments under load: every acknowledged submission ends in exactly one recorded
//! outcome, and none is lost.
//!
//! A program of its own, because it starts itself as the process to kill. The child says on its standard output what was
//! acknowledged to it, one line in one write each; what it said before it died, the pipe keeps.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use palisade_core::{Scheduler, TaskId, TaskState, block_on};
use support::load::{self, Told};
use uuid::Uuid;

const KILLS: usize = 60;
/// A child is killed after it said at most this many lines.
const LINES_MAX: u64 = 700;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => load::run(Path::new(&arguments[2])),
        Some("--list") => println!("killed_at_random_moments: test"),
        _ => {
            let begun = Instant::now();
            let told = parent();
            println!("test killed_at_random_moments ... ok ({told}, {:?})", begun.elapsed());
        }
    }
}

fn parent() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let mut told = Told::default();
    let program = std::env::current_exe().expect("this program");
    for kill in 0..KILLS {
        let mut child =
            Command::new(&program).arg("child").arg(&path).stdout(Stdio::piped()).spawn().expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        // The moment is random: the machine's timing adds to it.
        let until = getrandom::u64().expect("randomness") % LINES_MAX;
        let mut heard = 0;
        for line in lines.by_ref() {
            told.hear(&line.expect("text"));
            heard += 1;
            if heard > until {
                break;
            }
        }
        assert!(heard > until, "child {kill} ended by itself after {heard} lines");
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
        // What it had said and nobody had read.
        for line in lines {
            told.hear(&line.expect("text"));
        }
    }

    let scheduler = load::open(&path);
    let acknowledged = told.acknowledged.len();
    let counted = told.check_to_the_end(&scheduler);
    assert!(acknowledged > KILLS * 10, "only {acknowledged} submissions in all");
    assert!(counted.contains_key(&TaskState::Completed) && counted.contains_key(&TaskState::Cancelled), "{counted:?}");
    // A scheduler that forgot on restart would do so for what is checked here too.
    assert!(block_on(scheduler.get(TaskId(Uuid::nil()))).is_err());
    format!("{KILLS} kills, {acknowledged} acknowledged, {counted:?}")
}
