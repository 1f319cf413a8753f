//! How late a runaway guest is killed after its deadline, and what two threads can start per second.
//!
//! `cargo bench -p palisade-benches --bench kill`

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use palisade::{Artifact, BackendOptions, Call, HostFunctions, Outcome, Policy, Prepared, PreparedExt, Resource};

const KILLS: usize = 500;
const DEADLINE: Duration = Duration::from_millis(5);
const LATE_MAX: Duration = Duration::from_millis(10);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let sandbox = palisade::open("wasmtime", &BackendOptions::new()).expect("the backend opens");
    let prepare = |wat: &str, policy: Policy| {
        let wasm = wat::parse_str(wat).expect("the module is well-formed");
        let module = runtime.block_on(sandbox.load(Artifact::wasm(wasm))).expect("the module loads");
        module.prepare(policy, HostFunctions::new()).expect("the policy is admitted")
    };

    let mut policy = Policy::default();
    policy.quota.wall_time = Some(DEADLINE);
    let spin = prepare(r#"(module (func (export "_start") (loop (br 0))))"#, policy);
    let mut late: Vec<_> = (0..KILLS)
        .map(|_| {
            let started = Instant::now();
            let execution = runtime.block_on(spin.run(Call::new())).expect("the call is made");
            let in_time = matches!(execution.outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, .. });
            assert!(in_time, "{}", execution.outcome);
            started.elapsed().saturating_sub(DEADLINE)
        })
        .collect();
    late.sort();
    let at = |share: f64| late[((KILLS - 1) as f64 * share) as usize];
    let verdict = if at(0.99) <= LATE_MAX { "met" } else { "MISSED" };
    println!(
        "TIME kill after the deadline: p50 {:?}, p99 {:?} late; target p99 at most {LATE_MAX:?}: {verdict}",
        at(0.5),
        at(0.99)
    );

    let quick = prepare(
        r#"(module (memory 2) (func (export "_start") (i32.store (i32.const 0) (i32.const 1))))"#,
        Policy::default(),
    );
    for threads in [1, 2] {
        println!("RATE fresh instances on {threads} threads: {:.0}/s", rate(&*quick, threads));
    }
}

/// Fresh instances per second on `threads` threads, over about two seconds.
fn rate(prepared: &dyn Prepared, threads: usize) -> f64 {
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    runtime.block_on(prepared.run(Call::new())).expect("the call is made");
                    done += 1;
                }
                count.fetch_add(done, Ordering::Relaxed);
            });
        }
        #[expect(clippy::disallowed_methods, reason = "the time over which the rate is taken")]
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
    });
    count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}
