//! The queue and the timers by themselves, against a binary heap in the same run.
//!
//! `cargo bench -p palisade-fabric --bench queue`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use palisade_core::{ArtifactHash, Priority};

// The modules themselves: they are no part of the crate's face, and nothing but a bench needs them from outside.
#[allow(dead_code, unused_imports, unreachable_pub, reason = "made for another crate; the bench uses a part")]
#[path = "../src/fair.rs"]
mod fair;
#[allow(dead_code, unused_imports, unreachable_pub, reason = "made for another crate; the bench uses a part")]
#[path = "../src/skipped.rs"]
mod skipped;
#[allow(dead_code, unused_imports, unreachable_pub, reason = "made for another crate; the bench uses a part")]
#[path = "../src/wheel.rs"]
mod wheel;

const QUEUED: u32 = 100_000;
const TENANTS: u32 = 1000;
const ROUNDS: u32 = 1_000_000;
const REPEATS: usize = 7;
/// Push and pop at 100 000 queued and 1000 tenants.
const TARGET: Duration = Duration::from_nanos(300);

/// A number that looks random, the same in each run.
fn scatter(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1).rotate_left(13).wrapping_mul(0x85eb_ca6b)
}

/// The least time per round of `REPEATS` times `ROUNDS`.
fn least(mut round: impl FnMut(u32)) -> Duration {
    let times = (0..REPEATS).map(|repeat| {
        let begun = Instant::now();
        for number in 0..ROUNDS {
            round(number.wrapping_add(repeat as u32 * 7919));
        }
        begun.elapsed() / ROUNDS
    });
    times.min().unwrap_or_default()
}

fn main() {
    let mut queue = fair::FairQueue::new(fair::ClassOrder::default());
    let plugin = ArtifactHash::of(b"plugin");
    let place = |number: u32| (Priority::ALL[scatter(number) as usize % 4], scatter(number ^ 77) % TENANTS);
    for task in 0..QUEUED {
        let (class, tenant) = place(task);
        queue.push_back(class, tenant, task);
    }
    let fair = least(|number| {
        // The place of the task that left is free for the one that comes.
        let task = queue.pop(|tenant| black_box(tenant) < TENANTS, black_box(None), |_| plugin).unwrap_or_default();
        let (class, tenant) = place(number);
        queue.push_back(class, tenant, task);
    });

    let mut heap: BinaryHeap<_> = (0..QUEUED).map(|number| Reverse((scatter(number) % 4, number))).collect();
    let mut seq = QUEUED;
    let plain = least(|number| {
        black_box(heap.pop());
        seq += 1;
        heap.push(Reverse((scatter(number) % 4, seq)));
    });

    let mut wheel = wheel::Wheel::new(1_800_000_000_000);
    let mut now = 1_800_000_000_000;
    let mut ids: Vec<_> =
        (0..QUEUED).map(|number| wheel.set(now + u64::from(scatter(number) % 600_000), number)).collect();
    let timers = least(|number| {
        let at = (number % QUEUED) as usize;
        wheel.cancel(ids[at]);
        ids[at] = wheel.set(now + u64::from(scatter(number) % 600_000), number);
        if number % 1000 == 0 {
            now += 1;
            while let Some(number) = wheel.pop(now) {
                black_box(number);
            }
        }
    });

    let verdict = if fair <= TARGET { "met" } else { "MISSED" };
    let ratio = fair.as_secs_f64() / plain.as_secs_f64();
    println!(
        "TIME queue push+pop, {QUEUED} queued, {TENANTS} tenants, 4 classes: {fair:?}; target {TARGET:?}: {verdict}"
    );
    println!("TIME a binary heap by priority and number, without tenants: {plain:?}; the queue takes {ratio:.2} of it");
    println!("TIME timer cancel+set at {QUEUED} set: {timers:?}");
}
