//! A whole fabric on a backend, with clients that submit tasks and wait for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::{ArtifactHash, Completion, Scheduler, Task, TaskRecord, Tenant};
use palisade_fabric::{AgentTemplate, Executor, ExecutorOptions, LocalScheduler, SchedulerOptions};
use tokio::runtime::Runtime;

use crate::guests::{Backend, host};

/// Tenants among whom clients are spread.
const TENANTS: usize = 16;

/// Scheduler, executor and the threads they run on.
#[derive(Debug)]
pub struct Fabric {
    /// The threads.
    pub runtime: Runtime,
    /// Where tasks wait.
    pub scheduler: Arc<LocalScheduler>,
    /// What runs them.
    pub executor: Executor,
}

impl Fabric {
    /// Starts one with two worker threads. A guest that waits in the host waits for `wait`.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(
        backend: &Backend,
        scheduler: SchedulerOptions,
        wait: Duration,
        change: impl FnOnce(&mut ExecutorOptions),
    ) -> Fabric {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let scheduler = Arc::new(LocalScheduler::open(scheduler).expect("the scheduler opens"));
        let mut options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::clone(&backend.sandbox));
        options.host = host(wait);
        change(&mut options);
        let executor = runtime.block_on(async { Executor::start(options) }).expect("the executor starts");
        Fabric { runtime, scheduler, executor }
    }

    /// Makes an agent, and gives the artifact by which its tasks name it.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn spawn(&self, template: AgentTemplate) -> ArtifactHash {
        let plugin = template.artifact.hash();
        self.executor.spawn(template).expect("the agent is made");
        plugin
    }

    /// Ends it.
    ///
    /// # Panics
    ///
    /// When tasks are left that do not end.
    pub fn end(self) {
        let drained = self.runtime.block_on(self.executor.drain(Duration::from_secs(60)));
        assert!(drained.in_time, "tasks were left");
    }

    /// Runs one task to its outcome.
    ///
    /// # Panics
    ///
    /// As [`outcome`].
    pub fn one(&self, task: Task) -> TaskRecord {
        self.runtime.block_on(outcome(&*self.scheduler, task))
    }

    /// Runs `tasks` tasks with `in_flight` clients of which each waits for its own, and gives tasks per second from
    /// submission to known outcome. `make` gives the task of a client, by the client's number.
    ///
    /// # Panics
    ///
    /// When a task does not complete.
    pub fn throughput(
        &self,
        in_flight: usize,
        tasks: usize,
        make: impl Fn(usize) -> Task + Send + Sync + 'static,
    ) -> f64 {
        let make = Arc::new(make);
        let rounds = (tasks / in_flight).max(1);
        let begun = Instant::now();
        self.runtime.block_on(async {
            let client = |number: usize| {
                let (scheduler, make) = (Arc::clone(&self.scheduler), Arc::clone(&make));
                tokio::spawn(async move {
                    for _ in 0..rounds {
                        let mut task = make(number);
                        task.tenant = Tenant(format!("tenant {}", number % TENANTS));
                        let record = outcome(&*scheduler, task).await;
                        assert!(succeeded(&record), "{record:?}");
                    }
                })
            };
            let clients: Vec<_> = (0..in_flight).map(client).collect();
            for client in clients {
                client.await.expect("the client ends");
            }
        });
        (rounds * in_flight) as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Submits a task and waits for its outcome.
///
/// # Panics
///
/// When it is refused or lost.
pub async fn outcome(scheduler: &dyn Scheduler, task: Task) -> TaskRecord {
    let id = scheduler.submit(task).await.expect("it is taken").task;
    scheduler.wait(id).await.expect("it ends")
}

/// Whether a task's guest ended with success.
pub fn succeeded(record: &TaskRecord) -> bool {
    matches!(record.completion.as_deref(), Some(Completion::Executed(execution)) if execution.outcome.is_success())
}
