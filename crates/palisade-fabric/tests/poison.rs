//! A task that ends the process each time it runs goes to the dead letters, and takes no healthy one along.
//!
//! A program of its own, because it starts itself as the process that ends.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{Scheduler, TaskId, TaskState, block_on};
use support::{load, request, success, task};

const KILLER: &[u8] = b"ends the process";
/// As often as the killer's own attempts, and once for whoever is healthy.
const CHILDREN_MAX: usize = 4;
/// How the child says that the killer ran.
const KILLED: i32 = 3;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&arguments[2])),
        Some("--list") => println!("healthy_tasks_outlive_their_neighbour: test"),
        _ => {
            let told = healthy_tasks_outlive_their_neighbour();
            println!("test healthy_tasks_outlive_their_neighbour ... ok ({told})");
        }
    }
}

/// Runs what there is, eight tasks at once, until there is nothing or the killer ends it.
fn child(path: &Path) {
    let scheduler = Arc::new(load::open(path));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        loop {
            let stats = scheduler.stats();
            if stats.queued + stats.running == 0 {
                return;
            }
            let mut wanted = request(8 - running.len());
            wanted.places = 8;
            let leased = async { scheduler.lease(wanted).await.expect("the journal is well") };
            let leases = match running.len() {
                8 => Vec::new(),
                0 => leased.await,
                // Perhaps there is nothing to lease before one has ended.
                _ => tokio::time::timeout(Duration::from_millis(5), leased).await.unwrap_or_default(),
            };
            for lease in leases {
                let scheduler = Arc::clone(&scheduler);
                running.spawn(async move {
                    // What a task takes; long enough that those of one lease are still there.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if lease.task.input == KILLER {
                        // Without a word to the journal.
                        std::process::exit(KILLED);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    scheduler.complete(lease.task.id, lease.fence, success()).await.expect("it is recorded");
                });
            }
            if running.len() == 8 {
                running.join_next().await.expect("one runs").expect("none panics");
            }
            while running.try_join_next().is_some() {}
        }
    });
}

fn healthy_tasks_outlive_their_neighbour() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let scheduler = load::open(&path);
    let mut states: HashMap<TaskId, TaskState> = HashMap::new();
    for number in 0..24 {
        let one = if number == 3 { task(KILLER) } else { task("healthy") };
        let state = if number == 3 { TaskState::DeadLettered } else { TaskState::Completed };
        states.insert(block_on(scheduler.submit(one)).expect("it is taken").task, state);
    }
    drop(scheduler);
    let mut crashes = 0;
    loop {
        assert!(crashes < CHILDREN_MAX, "the process is ended again and again");
        let program = std::env::current_exe().expect("this program");
        let status = Command::new(program).arg("child").arg(&path).status().expect("the child starts");
        if status.success() {
            break;
        }
        assert_eq!(status.code(), Some(KILLED), "by the killer");
        crashes += 1;
    }
    assert_eq!(crashes, 3, "its attempts");
    let scheduler = load::open(&path);
    let mut lost = 0;
    for (id, state) in states {
        let record = block_on(scheduler.get(id)).expect("it is there");
        assert_eq!(record.state, state, "{record:?}");
        lost += record.lost;
    }
    assert!(lost > 3, "some were lost with it: {lost}");
    format!("{crashes} crashes, {lost} attempts lost")
}
