//! A process that uses a scheduler hard until it is killed, and what it says meanwhile: one line in one write each.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{IdempotencyKey, Outcome, Priority, Scheduler, TaskId, Tenant};
use palisade_fabric::{LocalScheduler, SchedulerOptions, SqliteJournal, TenantLimits};

use super::{again, ended, request, success, task};

pub(crate) fn open(path: &Path) -> LocalScheduler {
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

/// Submits, runs, cancels and waits, and says what was acknowledged. Does not end.
pub(crate) fn run(path: &Path) {
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
        parts.push(tokio::spawn(async move {
            let tenant = Tenant(LIMITED.to_owned());
            for tasks_max in limit_of(&scheduler) + 1.. {
                let limits = TenantLimits { tasks_max: Some(tasks_max), ..TenantLimits::default() };
                scheduler.set_tenant_limits(&tenant, Some(limits)).await.expect("they are set");
                say(&format!("L {tasks_max}"));
                // The others have more to say.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }));
        for part in parts {
            part.await.expect("no part ends");
        }
    });
}

/// A tenant without tasks, whose limit on them is raised again and again.
const LIMITED: &str = "limited";

/// Its limit now; 0 when it has none.
fn limit_of(scheduler: &LocalScheduler) -> usize {
    let report = scheduler.tenant(&Tenant(LIMITED.to_owned()));
    report.ok().and_then(|report| report.own_limits?.tasks_max).unwrap_or_default()
}

/// What such processes said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Submissions, with the outcome where one was waited for.
    pub(crate) acknowledged: HashMap<TaskId, Option<String>>,
    /// Completions that were recorded.
    pub(crate) done: HashMap<TaskId, String>,
    /// The latest limit that was set.
    pub(crate) limit: usize,
}

impl Told {
    /// Notes a line: `S` submitted, `D` completed, `W` waited for, `C` cancelled, `L` limited.
    pub(crate) fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        if let Some(limit) = line.strip_prefix("L ") {
            let limit = limit.parse().expect("a number");
            assert!(limit > self.limit, "the limit was {}, then {limit}", self.limit);
            self.limit = limit;
            return;
        }
        let (what, id) = (words.next().unwrap_or_default(), words.next().and_then(|id| id.parse().ok()));
        let id = TaskId(id.unwrap_or_else(|| panic!("a line no child says: {line}")));
        let state = words.next().map(str::to_owned);
        match what {
            "S" => assert!(self.acknowledged.insert(id, None).is_none(), "{id} was submitted twice"),
            "D" => {
                let before = self.done.insert(id, state.expect("a state"));
                assert!(before.is_none(), "{id} was completed twice");
            }
            "W" | "C" => {
                self.acknowledged.insert(id, state);
            }
            _ => panic!("a line no child says: {line}"),
        }
    }

    /// Checks that the latest limit that was set is there, or one that was set after it and not acknowledged.
    pub(crate) fn has_limit(&self, scheduler: &LocalScheduler) -> bool {
        limit_of(scheduler) >= self.limit
    }

    /// Does whatever is left, and checks that everything acknowledged has the one outcome that was told. Says how many
    /// have which.
    pub(crate) fn check_to_the_end(mut self, scheduler: &LocalScheduler) -> HashMap<palisade_core::TaskState, usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut counted = HashMap::new();
        assert!(self.limit > 0 && self.has_limit(scheduler), "{} and not {}", limit_of(scheduler), self.limit);
        runtime.block_on(async {
            loop {
                let stats = scheduler.stats();
                if stats.queued + stats.delayed + stats.running == 0 {
                    break;
                }
                for lease in scheduler.lease(request(1000)).await.expect("there are tasks") {
                    let state =
                        scheduler.complete(lease.task.id, lease.fence, success()).await.expect("it is recorded");
                    assert!(
                        self.done.insert(lease.task.id, format!("{state:?}")).is_none(),
                        "{} was done before",
                        lease.task.id
                    );
                }
            }
            for (id, told) in &self.acknowledged {
                let record = scheduler.get(*id).await.unwrap_or_else(|error| panic!("task {id} is lost: {error}"));
                assert!(record.state.is_final(), "{id}");
                assert!(record.completion.is_some(), "{id} has no outcome");
                let state = format!("{:?}", record.state);
                for earlier in [told.as_ref(), self.done.get(id)].into_iter().flatten() {
                    assert_eq!(*earlier, state, "the outcome of {id} changed");
                }
                *counted.entry(record.state).or_insert(0usize) += 1;
            }
        });
        counted
    }
}
