//! What a kept instance does between its calls: nothing.

mod common;

use std::time::{Duration, Instant};

use common::*;
use palisade_core::*;

/// The processes of this host that are stopped, each with its CPU time in ticks.
fn stopped() -> Vec<(u32, String)> {
    let look = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: state, ..., user and system time.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (fields[0] == "T").then(|| (pid, format!("{} {}", fields[11], fields[12])))
    };
    children(std::process::id()).into_iter().filter_map(look).collect()
}

/// Waits until an instance is stopped.
fn wait_for_stop() -> Vec<(u32, String)> {
    let begun = Instant::now();
    loop {
        let found = stopped();
        if !found.is_empty() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "a library computes between its calls");
        std::thread::yield_now();
    }
}

fn main() {
    let prepared = prepare(&plugin(), &Policy::default()).unwrap();
    let call = |entry: &'static str| Call::new().entry(entry);
    let mut instance = block_on(prepared.instantiate()).unwrap();
    // One that behaves goes on where it was, whether it was stopped meanwhile or not.
    assert_eq!(output(&block_on(instance.call(call("count"))).unwrap()), "1");
    wait_for_stop();
    for count in ["2", "3", "4"] {
        assert_eq!(output(&block_on(instance.call(call("count"))).unwrap()), count);
    }
    drop(instance);
    // One that only said that it returned is stopped all the same, and uses nothing from then on.
    let mut instance = block_on(prepared.instantiate()).unwrap();
    assert_eq!(block_on(instance.call(call("return_and_spin"))).unwrap().outcome, Outcome::Completed);
    let before = wait_for_stop();
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!(stopped(), before);
    // What it used in between counts for its next call, which has its deadline.
    let mut policy = Policy::default();
    policy.quota.wall_time = Some(Duration::from_millis(100));
    let prepared = prepare(&plugin(), &policy).unwrap();
    let mut instance = block_on(prepared.instantiate()).unwrap();
    assert_eq!(block_on(instance.call(call("return_and_spin"))).unwrap().outcome, Outcome::Completed);
    let outcome = block_on(instance.call(call("count"))).unwrap().outcome;
    assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, .. }), "{outcome:?}");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
