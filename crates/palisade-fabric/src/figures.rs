//! The executor's figures: which exist, and how attempts feed them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use palisade_core::{
    Completion, MetricDescriptor, MetricId, MetricKind, MetricsSink, Outcome, Quota, Resource, Result, Usage,
};

use crate::AgentState;

/// Figures with their handles, registered once.
#[derive(Debug)]
pub(crate) struct Figures {
    sink: Arc<dyn MetricsSink>,
    run: MetricId,
    start: MetricId,
    kill: MetricId,
    memory: MetricId,
    cpu: MetricId,
    /// In the order of [`Resource::ALL`].
    quota_used: Vec<MetricId>,
    new_instances: MetricId,
    kept_instances: MetricId,
    /// In the order of [`STATES`].
    agents: [MetricId; STATES.len()],
}

const STATES: [(AgentState, &str); 5] = [
    (AgentState::Spawned, "spawned"),
    (AgentState::Ready, "ready"),
    (AgentState::Busy, "busy"),
    (AgentState::Draining, "draining"),
    (AgentState::Terminated, "terminated"),
];

/// What is noted while an attempt is made.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// What it took until guest code ran, and whether a kept instance did.
    pub(crate) started: OnceLock<(Duration, bool)>,
    /// What part of a quota the guest used: the largest.
    pub(crate) quota_used: OnceLock<(Resource, f64)>,
}

/// What there is to tell about an attempt that ended.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    pub(crate) completion: &'a Completion,
    pub(crate) time: Duration,
    pub(crate) notes: &'a Notes,
}

impl Figures {
    pub(crate) fn new(sink: Arc<dyn MetricsSink>) -> Result<Figures> {
        let register = |kind, name: &str, help: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            sink.register(&MetricDescriptor { name: name.to_owned(), help: help.to_owned(), kind, labels })
        };
        let histogram = |name, help| register(MetricKind::Histogram, name, help, &[]);
        let instances = |from| {
            let (name, help) = ("palisade_task_instances_total", "Instances that tasks ran in, new or kept");
            register(MetricKind::Counter, name, help, &[("from", from)])
        };
        let quota_used = |resource: Resource| {
            let (name, help) = ("palisade_task_quota_used_ratio", "Part of its quota that a task used most of");
            register(MetricKind::Histogram, name, help, &[("resource", &resource.to_string())])
        };
        let mut agents = [MetricId(0); STATES.len()];
        for (id, (_, state)) in agents.iter_mut().zip(STATES) {
            *id = register(MetricKind::Gauge, "palisade_agents", "Agents, by what they do", &[("state", state)])?;
        }
        Ok(Figures {
            run: histogram("palisade_task_run_seconds", "Time from a task's lease to its completion")?,
            start: histogram("palisade_task_start_seconds", "Time from a task's lease until guest code ran")?,
            kill: histogram(
                "palisade_task_kill_seconds",
                "Time by which a guest outlived its limit or its cancellation",
            )?,
            memory: histogram("palisade_task_memory_peak_bytes", "Most memory a task had")?,
            cpu: histogram("palisade_task_cpu_seconds", "CPU time of a task")?,
            quota_used: Resource::ALL.iter().copied().map(quota_used).collect::<Result<_>>()?,
            new_instances: instances("new")?,
            kept_instances: instances("kept")?,
            agents,
            sink,
        })
    }

    /// Tells of attempts that ended.
    pub(crate) fn tell<'a>(&self, ended: impl Iterator<Item = Told<'a>> + Clone) {
        let mut values: Vec<f64> = Vec::new();
        let mut tell = |id, numbers: &mut dyn Iterator<Item = f64>| {
            values.clear();
            values.extend(numbers);
            if !values.is_empty() {
                self.sink.observe_all(id, &values);
            }
        };
        let usages = || ended.clone().filter_map(|ended| Some(executed(ended.completion)?.1));
        tell(self.run, &mut ended.clone().map(|ended| ended.time.as_secs_f64()));
        tell(self.memory, &mut usages().map(|usage| usage.memory_peak_bytes as f64));
        tell(self.cpu, &mut usages().map(|usage| usage.cpu_time.as_secs_f64()));
        tell(self.kill, &mut ended.clone().filter_map(|ended| Some(late(ended.completion)?.as_secs_f64())));
        let started = || ended.clone().filter_map(|ended| ended.notes.started.get());
        tell(self.start, &mut started().map(|(time, _)| time.as_secs_f64()));
        let (all, kept) = started().fold((0, 0), |(all, kept), (_, is_kept)| (all + 1, kept + u64::from(*is_kept)));
        for (id, count) in [(self.new_instances, all - kept), (self.kept_instances, kept)] {
            if count > 0 {
                self.sink.add(id, count);
            }
        }
        // Tasks of a kind use most of the same quota, so mostly this is one.
        let used = || ended.clone().filter_map(|ended| ended.notes.quota_used.get());
        let mut told = [false; Resource::ALL.len()];
        for (resource, _) in used() {
            let Some(number) = Resource::ALL.iter().position(|known| known == resource) else { continue };
            if !std::mem::replace(&mut told[number], true) {
                let of_it = |(other, part): &(Resource, f64)| (other == resource).then_some(*part);
                tell(self.quota_used[number], &mut used().filter_map(of_it));
            }
        }
    }

    /// Tells that a guest ended so long after it was told to.
    pub(crate) fn killed(&self, after: Duration) {
        self.sink.observe(self.kill, after.as_secs_f64());
    }

    /// Tells how many agents there are in each state.
    pub(crate) fn agents(&self, states: impl Iterator<Item = AgentState>) {
        let mut counts = [0_u32; STATES.len()];
        for state in states {
            if let Some(number) = STATES.iter().position(|(known, _)| *known == state) {
                counts[number] += 1;
            }
        }
        for (id, count) in self.agents.into_iter().zip(counts) {
            self.sink.set(id, f64::from(count));
        }
    }
}

fn executed(completion: &Completion) -> Option<(&Outcome, &Usage)> {
    match completion {
        Completion::Executed(execution) => Some((&execution.outcome, &execution.usage)),
        Completion::HostError { .. } => None,
    }
}

/// By how much a guest outlived a limit of time: until it was stopped, which is after it was found to be late.
fn late(completion: &Completion) -> Option<Duration> {
    let (outcome, usage) = executed(completion)?;
    let Outcome::QuotaExceeded { resource, limit, used: found, .. } = outcome else { return None };
    match resource {
        Resource::WallTime | Resource::CpuTime => {
            Some(Duration::from_nanos(used(usage, *resource)?.max(*found).saturating_sub(*limit)))
        }
        _ => None,
    }
}

/// The quota of which the largest part was used, and that part.
pub(crate) fn quota_used(quota: &Quota, usage: &Usage) -> Option<(Resource, f64)> {
    let parts = Resource::ALL.iter().copied().filter_map(|resource| {
        let (limit, used) = (quota.get(resource)?, used(usage, resource)?);
        Some((resource, if limit == 0 { f64::from(u8::from(used > 0)) } else { used as f64 / limit as f64 }))
    });
    parts.max_by(|one, other| one.1.total_cmp(&other.1))
}

fn used(usage: &Usage, resource: Resource) -> Option<u64> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Some(match resource {
        Resource::WallTime => nanos(usage.wall_time),
        Resource::CpuTime => nanos(usage.cpu_time),
        Resource::Fuel => usage.fuel,
        Resource::Memory => usage.memory_peak_bytes,
        Resource::Output => usage.output_bytes,
        Resource::Log => usage.log_bytes,
        Resource::OpenFiles => usage.open_files_peak,
        Resource::Disk => usage.disk_bytes,
        Resource::HostCalls => usage.host_calls,
        Resource::Processes => usage.processes_peak,
        Resource::Threads => usage.threads_peak,
        // Nobody says how much of others was used.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use palisade_core::{Execution, Phase};

    use super::*;

    #[test]
    fn a_guest_is_late_until_it_is_stopped() {
        let outcome = |resource| Outcome::QuotaExceeded { resource, limit: 1000, used: 1100, phase: Phase::Running };
        let late_by = |outcome, nanos| {
            let mut usage = Usage::default();
            usage.cpu_time = Duration::from_nanos(nanos);
            late(&Completion::Executed(Box::new(Execution::new(outcome, usage)))).map(|late| late.as_nanos())
        };
        assert_eq!(late_by(outcome(Resource::CpuTime), 1500), Some(500));
        assert_eq!(late_by(outcome(Resource::CpuTime), 0), Some(100), "a deadline counts from elsewhere");
        assert_eq!(late_by(outcome(Resource::Memory), 1500), None);
        assert_eq!(late_by(Outcome::Completed, 1500), None);
    }

    #[test]
    fn the_tightest_quota_is_found() {
        let mut quota = Quota::unlimited();
        let mut usage = Usage::default();
        assert_eq!(quota_used(&quota, &usage), None);
        (quota.fuel, quota.memory_bytes, quota.stack_bytes) = (Some(1000), Some(100), Some(1));
        (usage.fuel, usage.memory_peak_bytes) = (500, 25);
        assert_eq!(quota_used(&quota, &usage), Some((Resource::Fuel, 0.5)));
        quota.cpu_time = Some(Duration::from_millis(2));
        usage.cpu_time = Duration::from_millis(3);
        assert_eq!(quota_used(&quota, &usage), Some((Resource::CpuTime, 1.5)));
        (quota.cpu_time, quota.fuel, quota.host_calls) = (None, None, Some(0));
        assert_eq!(quota_used(&quota, &usage), Some((Resource::Memory, 0.25)));
    }
}
