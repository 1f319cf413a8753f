//! Killed with SIGKILL at random moments under load: every acknowledged submission ends in exactly one recorded
//! outcome, and none is lost.
//!
//! A program of its own, because it starts itself as the process to kill. The child says on its standard output what was
//! acknowledged to it, one line in one write each; what it said before it died, the pipe keeps.

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{IdempotencyKey, Outcome, Priority, Scheduler, TaskId, TaskState, Tenant, block_on};
use palisade_fabric::{LocalScheduler, SchedulerOptions, SqliteJournal};
use support::{again, ended, request, success, task};
use uuid::Uuid;

const KILLS: usize = 60;
/// A child is killed after it said at most this many lines.
const LINES_MAX: u64 = 700;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&arguments[2])),
        Some("--list") => println!("killed_at_random_moments: test"),
        _ => {
            let begun = Instant::now();
            let told = parent();
            println!("test killed_at_random_moments ... ok ({told}, {:?})", begun.elapsed());
        }
    }
}

fn open(path: &Path) -> LocalScheduler {
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(path, 1 << 32).expect("the journal opens")));
    options.limits.results_max = 1 << 20;
    LocalScheduler::open(options).expect("the scheduler opens")
}

/// Says one line at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the parent is gone, and so shall we be.
    if out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn child(path: &Path) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let scheduler = Arc::new(open(path));
    runtime.block_on(async {
        let mut parts = Vec::new();
        for number in 0..64u32 {
            let scheduler = Arc::clone(&scheduler);
            parts.push(tokio::spawn(async move {
                for at in 0u32.. {
                    let mut one = task(vec![number as u8; 100]);
                    one.tenant = Tenant(format!("tenant {}", number % 5));
                    one.priority = Priority::ALL[at as usize % 4];
                    one.retry.backoff_initial = Duration::from_millis(5);
                    if at % 3 == 0 {
                        one.idempotency_key = Some(IdempotencyKey(one.id.to_string()));
                    }
                    if at % 7 == 0 {
                        one.not_before = Some(std::time::SystemTime::now() + Duration::from_millis(3));
                    }
                    let id = scheduler.submit(one).await.expect("it is taken").task;
                    say(&format!("S {id}"));
                    if at % 11 == 0 {
                        let state = scheduler.cancel(id).await.expect("it is cancelled or done");
                        say(&format!("C {id} {state:?}"));
                    } else if at % 2 == 0 {
                        let record = scheduler.wait(id).await.expect("it ends");
                        say(&format!("W {id} {:?}", record.state));
                    }
                }
            }));
        }
        for _ in 0..4 {
            let scheduler = Arc::clone(&scheduler);
            parts.push(tokio::spawn(async move {
                loop {
                    for lease in scheduler.lease(request(8)).await.expect("there are tasks") {
                        let id = lease.task.id;
                        let how = match id.0.as_u128() % 10 {
                            0 if lease.attempt == 1 => again(Duration::from_millis(2)),
                            1 => ended(Outcome::from_exit_code(1)),
                            2 => ended(Outcome::Crashed { message: "again and again".into() }),
                            _ => success(),
                        };
                        // It may have been cancelled meanwhile.
                        if let Ok(state) = scheduler.complete(id, lease.fence, how).await
                            && state.is_final()
                        {
                            say(&format!("D {id} {state:?}"));
                        }
                    }
                }
            }));
        }
        for part in parts {
            part.await.expect("no part ends");
        }
    });
}

fn parent() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let mut acknowledged: HashMap<TaskId, Option<String>> = HashMap::new();
    let mut done = HashMap::new();
    let program = std::env::current_exe().expect("this program");
    for kill in 0..KILLS {
        let mut child =
            Command::new(&program).arg("child").arg(&path).stdout(Stdio::piped()).spawn().expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        // The moment is random: the machine's timing adds to it.
        let until = getrandom::u64().expect("randomness") % LINES_MAX;
        let mut heard = 0;
        for line in lines.by_ref() {
            hear(&line.expect("text"), &mut acknowledged, &mut done);
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
            hear(&line.expect("text"), &mut acknowledged, &mut done);
        }
    }

    let scheduler = open(&path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut counted = HashMap::new();
    runtime.block_on(async {
        // Whatever is left is done now.
        loop {
            let stats = scheduler.stats();
            if stats.queued + stats.delayed + stats.running == 0 {
                break;
            }
            for lease in scheduler.lease(request(1000)).await.expect("there are tasks") {
                let state = scheduler.complete(lease.task.id, lease.fence, success()).await.expect("it is recorded");
                assert!(
                    done.insert(lease.task.id, format!("{state:?}")).is_none(),
                    "{} was done before",
                    lease.task.id
                );
            }
        }
        for (id, told) in &acknowledged {
            let record = scheduler.get(*id).await.unwrap_or_else(|error| panic!("task {id} is lost: {error}"));
            assert!(record.state.is_final(), "{id}");
            assert!(record.completion.is_some(), "{id} has no outcome");
            let state = format!("{:?}", record.state);
            for earlier in [told.as_ref(), done.get(id)].into_iter().flatten() {
                assert_eq!(*earlier, state, "the outcome of {id} changed");
            }
            *counted.entry(record.state).or_insert(0usize) += 1;
        }
    });
    assert!(acknowledged.len() > KILLS * 10, "only {} submissions in all", acknowledged.len());
    assert!(counted.contains_key(&TaskState::Completed) && counted.contains_key(&TaskState::Cancelled), "{counted:?}");
    // A scheduler that forgot on restart would do so for what is checked here too.
    assert!(block_on(scheduler.get(TaskId(Uuid::nil()))).is_err());
    format!("{KILLS} kills, {} acknowledged, {counted:?}", acknowledged.len())
}

/// Notes a line of a child: `S` submitted, `D` completed, `W` waited for, `C` cancelled.
fn hear(line: &str, acknowledged: &mut HashMap<TaskId, Option<String>>, done: &mut HashMap<TaskId, String>) {
    let mut words = line.split(' ');
    let (what, id) = (words.next().unwrap_or_default(), words.next().and_then(|id| id.parse().ok()));
    let id = TaskId(id.unwrap_or_else(|| panic!("a line no child says: {line}")));
    let state = words.next().map(str::to_owned);
    match what {
        "S" => assert!(acknowledged.insert(id, None).is_none(), "{id} was submitted twice"),
        "D" => {
            let before = done.insert(id, state.expect("a state"));
            assert!(before.is_none(), "{id} was completed twice");
        }
        "W" | "C" => {
            acknowledged.insert(id, state);
        }
        _ => panic!("a line no child says: {line}"),
    }
}
