//! What an agent has prepared: its module for the policies of its tasks, and the kept instances of each that wait.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::{Instance, Policy, Prepared, Task, Tenant};

/// Policies of tasks that are kept prepared, of one agent.
const LINES_MAX: usize = 16;
/// Kept instances that wait for a task, of one policy.
const IDLE_MAX: usize = 64;
/// How long a line without kept instances stays that nobody uses.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// What a line weighs besides its artifact, of which a backend may hold a copy for each.
const WEIGHT_BYTES: usize = 32 << 10;
/// What the lines of all agents may weigh together: ten thousand small ones, or a dozen of 40 MiB.
pub(crate) const WEIGHTS_BYTES_MAX: usize = 512 << 20;

/// A module prepared for one policy, and the kept instances of it that wait.
pub(crate) struct PreparedLine {
    pub(crate) prepared: Arc<dyn Prepared>,
    idle: Mutex<Vec<Box<dyn Instance>>>,
    weight: usize,
    /// Of all lines of the executor.
    weights: Arc<AtomicUsize>,
}

impl fmt::Debug for PreparedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedLine").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

impl PreparedLine {
    pub(crate) fn new(
        prepared: Arc<dyn Prepared>,
        artifact_bytes: usize,
        weights: &Arc<AtomicUsize>,
    ) -> Arc<PreparedLine> {
        let weight = WEIGHT_BYTES + artifact_bytes;
        weights.fetch_add(weight, Ordering::Relaxed);
        Arc::new(PreparedLine { prepared, idle: Mutex::default(), weight, weights: Arc::clone(weights) })
    }

    pub(crate) fn take(&self) -> Option<Box<dyn Instance>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn give_back(&self, instance: Box<dyn Instance>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(instance);
        }
    }

    fn keeps_instances(&self) -> bool {
        !self.idle.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Drop for PreparedLine {
    fn drop(&mut self) {
        self.weights.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// The lines of one agent, by the policy of the tasks.
#[derive(Debug, Default)]
pub(crate) struct PreparedLines {
    all: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    /// Whose task it was prepared for first.
    tenant: Tenant,
    policy: Policy,
    line: Arc<PreparedLine>,
    used_at: Instant,
}

impl Known {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.line) > 1
    }
}

impl PreparedLines {
    /// What is prepared already for tasks with `policy`.
    pub(crate) fn find(&mut self, policy: &Policy, now: Instant) -> Option<Arc<PreparedLine>> {
        let known = self.all.iter_mut().rev().find(|known| known.policy == *policy)?;
        known.used_at = known.used_at.max(now);
        Some(Arc::clone(&known.line))
    }

    /// Takes a line for tasks like `task`, unless another was faster, which is given instead. Gives what had to go for it as
    /// well: of the tenant with most lines, what was used longest ago.
    pub(crate) fn insert(
        &mut self,
        task: &Task,
        line: Arc<PreparedLine>,
        now: Instant,
    ) -> (Arc<PreparedLine>, Option<Arc<PreparedLine>>) {
        if let Some(faster) = self.find(&task.policy, now) {
            return (faster, Some(line));
        }
        let mut gone = None;
        if self.all.len() >= LINES_MAX {
            let count = |tenant: &Tenant| self.all.iter().filter(|known| known.tenant == *tenant).count();
            let surplus = self.all.iter().enumerate();
            let surplus = surplus.min_by_key(|(_, known)| (Reverse(count(&known.tenant)), known.used_at));
            gone = surplus.map(|(at, _)| at).map(|at| self.all.remove(at).line);
        }
        let (tenant, policy) = (task.tenant.clone(), task.policy.clone());
        self.all.push(Known { tenant, policy, line: Arc::clone(&line), used_at: now });
        (line, gone)
    }

    /// Takes out what nobody used for a while and nothing is kept in.
    pub(crate) fn take_idle(&mut self, now: Instant) -> Vec<Arc<PreparedLine>> {
        self.take(|known| now.duration_since(known.used_at) >= IDLE_TIME && !known.line.keeps_instances())
    }

    /// Takes out, of each tenant in `until`, what was not used after that, with whatever is kept in it.
    pub(crate) fn take_until(&mut self, until: &HashMap<Tenant, Instant>) -> Vec<Arc<PreparedLine>> {
        self.take(|known| until.get(&known.tenant).is_some_and(|until| known.used_at <= *until))
    }

    /// What nobody uses now.
    pub(crate) fn unused(&self) -> Vec<Unused> {
        let unused = self.all.iter().filter(|known| !known.is_used());
        let unused = unused.map(|known| Unused {
            tenant: known.tenant.clone(),
            used_at: known.used_at,
            weight: known.line.weight,
        });
        unused.collect()
    }

    fn take(&mut self, which: impl Fn(&Known) -> bool) -> Vec<Arc<PreparedLine>> {
        self.all.extract_if(.., |known| !known.is_used() && which(known)).map(|known| known.line).collect()
    }
}

/// A line that nobody uses now.
#[derive(Debug, Clone)]
pub(crate) struct Unused {
    tenant: Tenant,
    used_at: Instant,
    weight: usize,
}

/// Until when lines must go, by tenant, so that what is left weighs no more than three quarters of what may be: not each new one
/// shall go through all. Those go that were used longest ago, of whoever has most.
pub(crate) fn cut(mut unused: Vec<Unused>, weights: usize) -> HashMap<Tenant, Instant> {
    let mut surplus = weights.saturating_sub(WEIGHTS_BYTES_MAX / 4 * 3);
    // The oldest last.
    unused.sort_unstable_by_key(|one| Reverse(one.used_at));
    let mut of: HashMap<Tenant, Vec<Unused>> = HashMap::new();
    unused.into_iter().for_each(|one| of.entry(one.tenant.clone()).or_default().push(one));
    let weight = |lines: &[Unused]| lines.iter().map(|one| one.weight).sum::<usize>();
    let mut most: BinaryHeap<_> = of.iter().map(|(tenant, lines)| (weight(lines), tenant.clone())).collect();
    let mut until = HashMap::new();
    while surplus > 0
        && let Some((weight, tenant)) = most.pop()
        && let Some(oldest) = of.get_mut(&tenant).and_then(Vec::pop)
    {
        surplus = surplus.saturating_sub(oldest.weight);
        most.push((weight - oldest.weight, tenant));
        until.insert(oldest.tenant, oldest.used_at);
    }
    until
}

#[cfg(test)]
mod tests {
    use palisade_core::{Artifact, ArtifactHash, HostFunctions, Sandbox, block_on};
    use palisade_fake::Fake;

    use super::*;

    fn policy(fuel: u64) -> Policy {
        let mut policy = Policy::default();
        policy.quota.fuel = Some(fuel);
        policy
    }

    fn task(tenant: &str, fuel: u64) -> Task {
        let mut task = Task::new(ArtifactHash::of(b"plugin"));
        (task.tenant, task.policy) = (Tenant(tenant.to_owned()), policy(fuel));
        task
    }

    fn line(weights: &Arc<AtomicUsize>, artifact_bytes: usize) -> Arc<PreparedLine> {
        let artifact = Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo"].concat());
        let module = block_on(Fake::new(None).load(artifact)).unwrap();
        PreparedLine::new(module.prepare(Policy::default(), HostFunctions::new()).unwrap(), artifact_bytes, weights)
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_what_is_hot_stays() {
        let (weights, begun) = (Arc::default(), Instant::now());
        let at = |millis| begun + Duration::from_millis(millis);
        let mut lines = PreparedLines::default();
        for number in 0..16 {
            assert!(lines.insert(&task("a", number), line(&weights, 0), at(number)).1.is_none());
        }
        // Two hot ones, again and again, while others come.
        for number in 16..100 {
            for hot in [0, 1] {
                assert!(lines.find(&policy(hot), at(number * 10 + hot)).is_some());
            }
            assert!(lines.insert(&task("a", number), line(&weights, 0), at(number * 10 + 5)).1.is_some());
        }
        let left: Vec<_> = (0..100).filter(|number| lines.find(&policy(*number), begun).is_some()).collect();
        assert_eq!(left, [0, 1].into_iter().chain(86..100).collect::<Vec<_>>());
        // Who prepared the same meanwhile gets what is there.
        let (known, slower) = (lines.find(&policy(0), begun).unwrap(), line(&weights, 0));
        let (same, gone) = lines.insert(&task("a", 0), Arc::clone(&slower), at(5000));
        assert!(Arc::ptr_eq(&same, &known) && Arc::ptr_eq(&gone.unwrap(), &slower));
        drop((same, known, slower));
        assert_eq!(weights.load(Ordering::Relaxed), 16 * WEIGHT_BYTES);
        drop(lines);
        assert_eq!(weights.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_idle_goes_after_a_minute_but_for_what_is_used_or_keeps_something() {
        let (weights, begun) = (Arc::default(), Instant::now());
        let mut lines = PreparedLines::default();
        let used = lines.insert(&task("a", 0), line(&weights, 0), begun).0;
        drop(lines.insert(&task("a", 1), line(&weights, 0), begun));
        let keeps = lines.insert(&task("a", 2), line(&weights, 0), begun).0;
        keeps.give_back(block_on(keeps.prepared.instantiate()).unwrap());
        drop(keeps);
        assert!(lines.take_idle(begun + IDLE_TIME - Duration::from_millis(1)).is_empty());
        assert_eq!(lines.take_idle(begun + IDLE_TIME).len(), 1);
        assert!(lines.find(&policy(1), begun).is_none() && lines.find(&policy(2), begun).is_some());
        drop(used);
        assert_eq!(lines.take_idle(begun + IDLE_TIME).len(), 1);
        assert_eq!(
            lines.take_until(&HashMap::from([(Tenant("a".into()), begun)])).len(),
            1,
            "where others need room, what is kept goes as well"
        );
        assert!(lines.all.is_empty());
    }

    #[test]
    fn a_tenant_with_many_policies_pushes_out_its_own() {
        let (weights, begun) = (Arc::default(), Instant::now());
        let at = |millis| begun + Duration::from_millis(millis);
        let mut lines = PreparedLines::default();
        drop(lines.insert(&task("modest", 0), line(&weights, 0), at(0)));
        for number in 1..100 {
            drop(lines.insert(&task("greedy", number), line(&weights, 0), at(number)));
        }
        let left: Vec<_> = (0..100).filter(|number| lines.find(&policy(*number), begun).is_some()).collect();
        assert_eq!(left, [0].into_iter().chain(85..100).collect::<Vec<_>>());
        // For whom all are idle, they go all the same when they are due.
        assert_eq!(lines.take_idle(at(200) + IDLE_TIME).len(), 16);
    }

    #[test]
    fn what_is_too_much_for_all_goes_by_age_of_whoever_has_most() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let large = WEIGHTS_BYTES_MAX / 8;
        let [greedy, modest] = ["greedy", "modest"].map(|name| Tenant(name.to_owned()));
        let of = |tenant: &Tenant, second| Unused { tenant: tenant.clone(), used_at: at(second), weight: large };
        let mut unused: Vec<_> = (0..9).rev().map(|second| of(&greedy, second)).collect();
        assert_eq!(cut(unused.clone(), 9 * large), HashMap::from([(greedy.clone(), at(2))]), "six are left");
        assert_eq!(cut(unused.clone(), 6 * large), HashMap::new());
        assert_eq!(cut(Vec::new(), 9 * large), HashMap::new(), "what is used stays");
        // The oldest of all, of somebody who has little.
        unused.push(Unused { used_at: begun, ..of(&modest, 0) });
        assert_eq!(cut(unused.clone(), 10 * large), HashMap::from([(greedy.clone(), at(3))]));
        unused.extend((1..9).map(|second| of(&modest, second)));
        let both = HashMap::from([(greedy, at(5)), (modest, at(5))]);
        assert_eq!(cut(unused, 18 * large), both, "who has as much has to give as much");
    }
}
