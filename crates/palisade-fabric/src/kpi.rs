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
    /// `None` when there are to be no figures by tenant.
    tenants: Option<TenantKpis>,
    /// What was waited and is not told yet, by class.
    waited: [Vec<f64>; 4],
    /// Each with the value it has, in the order of [`Machine::gauges`].
    gauges: [(MetricId, usize); 7],
}

/// How many tasks wait and how long they did, for the first few tenants by name and for the rest together.
#[derive(Debug)]
struct TenantKpis {
    /// Places among `named`; `None` for one the sink had no room for, which belongs to the rest.
    places: HashMap<Tenant, Option<usize>, foldhash::fast::RandomState>,
    named: Vec<TenantFigures>,
    named_max: usize,
    rest: TenantFigures,
    /// Tasks of all that are named, as their gauges show.
    named_queued: usize,
    /// Places of those whose queue may have changed since the gauges were set.
    touched: Vec<usize>,
}

/// Figures of one tenant, or of several together.
#[derive(Debug)]
struct TenantFigures {
    tenant: Tenant,
    wait: MetricId,
    queue: MetricId,
    /// What the gauge shows.
    queued: usize,
    touched: bool,
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

/// The label of tenants without a figure of their own. One of this name is among them.
const REST: &str = "other";

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
            tenants: match tenant_labels_max {
                0 => None,
                named_max => Some(TenantKpis::new(&sink, named_max)?),
            },
            waited: Default::default(),
            gauges: [critical, high, normal, low, delayed, running, dead].map(|id| (id, 0)),
            sink,
        })
    }

    pub(crate) fn count(&mut self, change: &Change) {
        let class = class_number(change.class);
        let tenant = self.tenants.as_mut().map(|tenants| tenants.touch(&change.task.tenant, &self.sink));
        match &change.what {
            What::Submitted => self.sink.add(self.submitted[class], 1),
            What::Leased { waited, .. } => {
                let seconds = waited.as_secs_f64();
                self.waited[class].push(seconds);
                if let Some(tenant) = tenant {
                    self.sink.observe(tenant.wait, seconds);
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

    /// Sets the gauges that changed, and tells what was waited. Tenants with these numbers have more tasks in line, without
    /// a change that was counted.
    pub(crate) fn tell(&mut self, machine: &Machine, lined_up: &[u32]) {
        if let Some(tenants) = &mut self.tenants {
            for tenant in lined_up {
                tenants.touch(machine.tenant_name(*tenant), &self.sink);
            }
            tenants.tell(machine, &self.sink);
        }
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

impl TenantKpis {
    fn new(sink: &Arc<dyn MetricsSink>, named_max: usize) -> Result<TenantKpis> {
        Ok(TenantKpis {
            places: HashMap::default(),
            named: Vec::new(),
            named_max,
            rest: TenantFigures::new(sink, Tenant(REST.to_owned()))?,
            named_queued: 0,
            touched: Vec::new(),
        })
    }

    /// The figures for a tenant, whose gauge is to be set.
    fn touch(&mut self, tenant: &Tenant, sink: &Arc<dyn MetricsSink>) -> &TenantFigures {
        let Some(place) = self.place(tenant, sink) else { return &self.rest };
        let figures = &mut self.named[place];
        if !std::mem::replace(&mut figures.touched, true) {
            self.touched.push(place);
        }
        figures
    }

    fn place(&mut self, tenant: &Tenant, sink: &Arc<dyn MetricsSink>) -> Option<usize> {
        if let Some(place) = self.places.get(tenant) {
            return *place;
        }
        if self.places.len() >= self.named_max || *tenant == self.rest.tenant {
            return None;
        }
        let figures = TenantFigures::new(sink, tenant.clone()).ok();
        let place = figures.map(|figures| {
            self.named.push(figures);
            self.named.len() - 1
        });
        self.places.insert(tenant.clone(), place);
        place
    }

    fn tell(&mut self, machine: &Machine, sink: &Arc<dyn MetricsSink>) {
        for place in self.touched.drain(..) {
            let figures = &mut self.named[place];
            figures.touched = false;
            let queued = machine.tenant_queued(&figures.tenant);
            self.named_queued = self.named_queued - figures.queued + queued;
            figures.show(queued, sink);
        }
        let all = machine.gauges()[..4].iter().sum::<usize>();
        // A wrong figure would be better than no scheduler.
        debug_assert!(self.named_queued <= all);
        self.rest.show(all.saturating_sub(self.named_queued), sink);
    }
}

impl TenantFigures {
    fn new(sink: &Arc<dyn MetricsSink>, tenant: Tenant) -> Result<TenantFigures> {
        let labels = [("tenant", tenant.0.as_str())];
        let help = "Time tasks of a tenant waited for a worker once they could start";
        let wait = register(sink, MetricKind::Histogram, "palisade_tenant_queue_wait_seconds", help, &labels)?;
        let help = "Tasks of a tenant waiting for a worker";
        let queue = register(sink, MetricKind::Gauge, "palisade_tenant_queue_tasks", help, &labels)?;
        Ok(TenantFigures { tenant, wait, queue, queued: 0, touched: false })
    }

    fn show(&mut self, queued: usize, sink: &Arc<dyn MetricsSink>) {
        if self.queued != queued {
            self.queued = queued;
            sink.set(self.queue, queued as f64);
        }
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
