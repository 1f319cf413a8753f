//! The scheduler's figures: which exist, and how changes feed them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{
    Completion, ErrorKind, MetricDescriptor, MetricId, MetricKind, MetricsSink, Outcome, Priority, Result, TaskState,
    Tenant,
};

use crate::fair::class_number;
use crate::machine::{Change, Machine, What};

/// How tasks end, as a label.
const OUTCOMES: [&str; 8] =
    ["completed", "failed", "trapped", "quota_exceeded", "denied", "cancelled", "crashed", "host_error"];
/// Why submissions are refused, as a label.
const REFUSALS: [&str; 2] = ["exhausted", "invalid"];

/// Figures with their handles, registered once.
#[derive(Debug)]
pub(crate) struct Kpis {
    sink: Arc<dyn MetricsSink>,
    submitted: [MetricId; 4],
    refused: [MetricId; 2],
    finished: [[MetricId; OUTCOMES.len()]; 4],
    retried: [MetricId; 4],
    lost: [MetricId; 4],
    dead_lettered: [MetricId; 4],
    stale: MetricId,
    renewed: MetricId,
    wait: [MetricId; 4],
    tenants: TenantWaits,
    /// What was waited and is not told yet, by class.
    waited: [Vec<f64>; 4],
    /// Each with the value it has, in the order of [`Machine::gauges`].
    gauges: [(MetricId, usize); 7],
}

/// How long tasks wait, for the first few tenants by name and for the rest together; nothing when there are to be no names.
#[derive(Debug)]
struct TenantWaits {
    named: HashMap<Tenant, MetricId>,
    named_max: usize,
    other: Option<MetricId>,
}

fn register(
    sink: &Arc<dyn MetricsSink>,
    kind: MetricKind,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
) -> Result<MetricId> {
    sink.register(&MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        kind,
        labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    })
}

const TENANT_WAIT: (&str, &str) =
    ("palisade_tenant_queue_wait_seconds", "Time tasks of a tenant waited for a worker once they could start");

impl Kpis {
    pub(crate) fn new(sink: Arc<dyn MetricsSink>, tenant_labels_max: usize) -> Result<Kpis> {
        use MetricKind::{Counter, Gauge, Histogram};
        let by_class = |kind, name: &str, help: &str| -> Result<[MetricId; 4]> {
            let mut ids = [MetricId(0); 4];
            for class in Priority::ALL {
                ids[class_number(class)] = register(&sink, kind, name, help, &[("class", class.as_str())])?;
            }
            Ok(ids)
        };
        let mut finished = [[MetricId(0); OUTCOMES.len()]; 4];
        for class in Priority::ALL {
            for (at, outcome) in OUTCOMES.iter().enumerate() {
                let labels = [("class", class.as_str()), ("outcome", outcome)];
                let (name, help) = ("palisade_tasks_finished_total", "Tasks that got their outcome");
                finished[class_number(class)][at] = register(&sink, Counter, name, help, &labels)?;
            }
        }
        let mut refused = [MetricId(0); 2];
        for (at, reason) in REFUSALS.iter().enumerate() {
            let (name, help) = ("palisade_submissions_refused_total", "Submissions that were refused");
            refused[at] = register(&sink, Counter, name, help, &[("reason", reason)])?;
        }
        let gauge = |name: &str, help: &str| register(&sink, Gauge, name, help, &[]);
        let [critical, high, normal, low] = by_class(Gauge, "palisade_queue_tasks", "Tasks waiting for a worker")?;
        let delayed = gauge("palisade_delayed_tasks", "Tasks waiting for their time")?;
        let running = gauge("palisade_running_tasks", "Tasks that are leased")?;
        let dead = gauge("palisade_dead_letter_tasks", "Tasks in the dead-letter queue")?;
        Ok(Kpis {
            submitted: by_class(Counter, "palisade_tasks_submitted_total", "Tasks that were taken")?,
            refused,
            finished,
            retried: by_class(Counter, "palisade_task_retries_total", "Attempts that failed and are tried again")?,
            lost: by_class(Counter, "palisade_task_leases_lost_total", "Leases that ended without a word")?,
            dead_lettered: by_class(
                Counter,
                "palisade_tasks_dead_lettered_total",
                "Tasks that went to the dead-letter queue",
            )?,
            stale: register(
                &sink,
                Counter,
                "palisade_stale_completions_total",
                "Completions refused because the lease had ended",
                &[],
            )?,
            renewed: register(&sink, Counter, "palisade_task_leases_renewed_total", "Leases prolonged", &[])?,
            wait: by_class(
                Histogram,
                "palisade_queue_wait_seconds",
                "Time tasks waited for a worker once they could start",
            )?,
            tenants: TenantWaits {
                named: HashMap::new(),
                named_max: tenant_labels_max,
                other: match tenant_labels_max {
                    0 => None,
                    _ => Some(register(&sink, Histogram, TENANT_WAIT.0, TENANT_WAIT.1, &[("tenant", "other")])?),
                },
            },
            waited: Default::default(),
            gauges: [critical, high, normal, low, delayed, running, dead].map(|id| (id, 0)),
            sink,
        })
    }

    pub(crate) fn count(&mut self, change: &Change) {
        let class = class_number(change.class);
        match &change.what {
            What::Submitted => self.sink.add(self.submitted[class], 1),
            What::Leased { waited, .. } => {
                let seconds = waited.as_secs_f64();
                self.waited[class].push(seconds);
                if let Some(other) = self.tenants.other {
                    let id = self.tenants.of(&change.task.tenant, other, &self.sink);
                    self.sink.observe(id, seconds);
                }
            }
            What::Retried { .. } => self.sink.add(self.retried[class], 1),
            What::Lost => self.sink.add(self.lost[class], 1),
            What::Finished { state, completion } => {
                self.sink.add(self.finished[class][outcome_number(completion)], 1);
                if *state == TaskState::DeadLettered {
                    self.sink.add(self.dead_lettered[class], 1);
                }
            }
            What::Released | What::Requeued => {}
        }
    }

    /// Sets the gauges that changed, and tells what was waited.
    pub(crate) fn tell(&mut self, machine: &Machine) {
        for (waited, id) in self.waited.iter_mut().zip(self.wait) {
            if !waited.is_empty() {
                self.sink.observe_all(id, waited);
                waited.clear();
            }
        }
        for ((id, shown), value) in self.gauges.iter_mut().zip(machine.gauges()) {
            if *shown != value {
                *shown = value;
                self.sink.set(*id, value as f64);
            }
        }
    }

    pub(crate) fn refused(&self, kind: ErrorKind) {
        self.sink.add(self.refused[usize::from(kind != ErrorKind::Exhausted)], 1);
    }

    pub(crate) fn renewed(&self) {
        self.sink.add(self.renewed, 1);
    }

    pub(crate) fn stale(&self) {
        self.sink.add(self.stale, 1);
    }
}

impl TenantWaits {
    fn of(&mut self, tenant: &Tenant, other: MetricId, sink: &Arc<dyn MetricsSink>) -> MetricId {
        if let Some(id) = self.named.get(tenant) {
            return *id;
        }
        if self.named.len() >= self.named_max {
            return other;
        }
        let named = register(sink, MetricKind::Histogram, TENANT_WAIT.0, TENANT_WAIT.1, &[("tenant", &tenant.0)]);
        // A sink that has no room for one more keeps the rest together.
        let id = named.unwrap_or(other);
        self.named.insert(tenant.clone(), id);
        id
    }
}

fn outcome_number(completion: &Completion) -> usize {
    let name = match completion {
        Completion::Executed(execution) => match &execution.outcome {
            Outcome::Completed => 0,
            Outcome::Failed { .. } => 1,
            Outcome::Trapped { .. } => 2,
            Outcome::QuotaExceeded { .. } => 3,
            Outcome::Denied { .. } => 4,
            Outcome::Cancelled { .. } => 5,
            // Outcomes this version does not know are no guest's doing either.
            _ => 6,
        },
        Completion::HostError { .. } => 7,
    };
    debug_assert!(name < OUTCOMES.len());
    name
}

/// Figures of a journal.
#[derive(Debug)]
pub(crate) struct JournalKpis {
    sink: Arc<dyn MetricsSink>,
    commit: MetricId,
    batch: MetricId,
    failures: MetricId,
    failing: MetricId,
}

impl JournalKpis {
    pub(crate) fn new(sink: Arc<dyn MetricsSink>) -> Result<JournalKpis> {
        let histogram = |name, help| register(&sink, MetricKind::Histogram, name, help, &[]);
        Ok(JournalKpis {
            commit: histogram("palisade_journal_commit_seconds", "Time one commit of the journal took")?,
            batch: histogram("palisade_journal_commit_entries", "Changes in one commit of the journal")?,
            failures: register(
                &sink,
                MetricKind::Counter,
                "palisade_journal_failures_total",
                "Commits of the journal that failed, those tried again among them",
                &[],
            )?,
            failing: register(
                &sink,
                MetricKind::Gauge,
                "palisade_journal_failing",
                "1 while the journal can keep nothing, else 0",
                &[],
            )?,
            sink,
        })
    }

    pub(crate) fn committed(&self, time: Duration, entries: usize) {
        self.sink.observe(self.commit, time.as_secs_f64());
        self.sink.observe(self.batch, entries as f64);
    }

    pub(crate) fn failed(&self) {
        self.sink.add(self.failures, 1);
    }

    pub(crate) fn failing(&self, failing: bool) {
        self.sink.set(self.failing, f64::from(u8::from(failing)));
    }
}
