//! What guests that wait cost their host: the CPU time of this process while many native guests sleep, as a share of a core,
//! beside as many sleeps of the same runtime.
//!
//! ```sh
//! cargo bench -p palisade-process --bench asleep
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, Call, Clocks, HostFunctions, Policy, Prepared, PreparedExt, Sandbox,
    block_on,
};
use palisade_process::ProcessSandbox;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

const GUESTS: usize = 1000;
/// While this passes, everybody sleeps.
const WATCHED: Duration = Duration::from_secs(5);
/// Longer than starting all of them and watching takes.
const SLEEP_SECS: u64 = 60;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let (guests, watched) = if std::env::args().any(|argument| argument == "--bench") {
        (GUESTS, WATCHED)
    } else {
        (2, Duration::from_millis(10))
    };
    let prepared = sleeper();
    let spawned = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let blocking = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, runtime) in [
        ("spawned tasks of a multi-threaded runtime", spawned),
        ("spawned tasks of a single-threaded runtime", blocking),
    ] {
        let cpu_share = |with_guests: bool| {
            runtime.block_on(async {
                let mut all = JoinSet::new();
                for _ in 0..guests {
                    let prepared = with_guests.then(|| Arc::clone(&prepared));
                    all.spawn(async move {
                        match prepared {
                            Some(prepared) => drop(prepared.run(Call::new()).await.unwrap()),
                            None => tokio::time::sleep(Duration::from_secs(SLEEP_SECS)).await,
                        }
                    });
                }
                // Until a whole second passes in which next to nothing happens, they are being started.
                let mut before = cpu_time();
                for _ in 0..30 {
                    tokio::time::sleep(Duration::from_secs(1).min(watched)).await;
                    let after = cpu_time();
                    if after - before < Duration::from_millis(50) {
                        break;
                    }
                    before = after;
                }
                let (begun, before) = (Instant::now(), cpu_time());
                tokio::time::sleep(watched).await;
                let share = (cpu_time() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
                assert_eq!(all.len(), guests);
                assert!(all.try_join_next().is_none(), "everybody still sleeps");
                share
            })
        };
        let (ours, baseline) = (cpu_share(true), cpu_share(false));
        println!(
            "{guests} guests asleep, {name}: {:.3} % of a core | as many sleeps of the runtime: {:.3} %; bound 1 %",
            ours * 100.0,
            baseline * 100.0
        );
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn sleeper() -> Arc<dyn Prepared> {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("sleeper.rs"), folder.path().join("sleeper"));
    let source = format!("fn main() {{ std::thread::sleep(std::time::Duration::from_secs({SLEEP_SECS})) }}");
    std::fs::write(&from, source).unwrap();
    let mut rustc = std::process::Command::new(option_env!("RUSTC").unwrap_or("rustc"));
    rustc.args(["--edition", "2024", "-O", "-C", "panic=abort"]);
    assert!(rustc.arg("-o").arg(&to).arg(&from).status().unwrap().success());
    let mut options = BackendOptions::new();
    options.instances_max = Some(2 * GUESTS as u32);
    let sandbox = ProcessSandbox::open(&options).unwrap_or_else(|error| panic!("{error}"));
    let mut policy = Policy::default();
    policy.quota.wall_time = Some(Duration::from_secs(600));
    policy.grants.clocks = Clocks::Fine;
    let artifact = Artifact::new(ArtifactKind::Executable, std::fs::read(&to).unwrap()).named("sleeper");
    block_on(sandbox.load(artifact)).and_then(|module| module.prepare(policy, HostFunctions::new())).unwrap()
}
