//! What an agent has prepared: its module for the policies of its tasks, and the kept instances of each that wait.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::{Instance, Policy, Prepared};

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
pub(crate) struct Line {
    pub(crate) prepared: Arc<dyn Prepared>,
    idle: Mutex<Vec<Box<dyn Instance>>>,
    weight: usize,
    /// Of all lines of the executor.
    weights: Arc<AtomicUsize>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

impl Line {
    pub(crate) fn new(prepared: Arc<dyn Prepared>, artifact_bytes: usize, weights: &Arc<AtomicUsize>) -> Arc<Line> {
        let weight = WEIGHT_BYTES + artifact_bytes;
        weights.fetch_add(weight, Ordering::Relaxed);
        Arc::new(Line { prepared, idle: Mutex::default(), weight, weights: Arc::clone(weights) })
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

impl Drop for Line {
    fn drop(&mut self) {
        self.weights.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// The lines of one agent, by the policy of the tasks.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    all: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    policy: Policy,
    line: Arc<Line>,
    used_at: Instant,
}

impl Known {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.line) > 1
    }
}

impl Lines {
    /// What is prepared already for tasks with `policy`.
    pub(crate) fn find(&mut self, policy: &Policy, now: Instant) -> Option<Arc<Line>> {
        let known = self.all.iter_mut().rev().find(|known| known.policy == *policy)?;
        known.used_at = known.used_at.max(now);
        Some(Arc::clone(&known.line))
    }

    /// Takes a line, unless another was faster, which is given instead. Gives what had to go for it as well.
    pub(crate) fn insert(&mut self, policy: &Policy, line: Arc<Line>, now: Instant) -> (Arc<Line>, Option<Arc<Line>>) {
        if let Some(faster) = self.find(policy, now) {
            return (faster, Some(line));
        }
        let mut gone = None;
        if self.all.len() >= LINES_MAX {
            let oldest = self.all.iter().enumerate().min_by_key(|(_, known)| known.used_at).map(|(at, _)| at);
            gone = oldest.map(|at| self.all.remove(at).line);
        }
        self.all.push(Known { policy: policy.clone(), line: Arc::clone(&line), used_at: now });
        (line, gone)
    }

    /// Takes out what nobody used for a while and nothing is kept in.
    pub(crate) fn take_idle(&mut self, now: Instant) -> Vec<Arc<Line>> {
        self.take(|known| now.duration_since(known.used_at) >= IDLE_TIME && !known.line.keeps_instances())
    }

    /// Takes out what was not used after `until`, with whatever is kept in it.
    pub(crate) fn take_until(&mut self, until: Instant) -> Vec<Arc<Line>> {
        self.take(|known| known.used_at <= until)
    }

    /// When each was used last that nobody uses now, and what it weighs.
    pub(crate) fn unused(&self) -> Vec<(Instant, usize)> {
        let unused = self.all.iter().filter(|known| !known.is_used());
        unused.map(|known| (known.used_at, known.line.weight)).collect()
    }

    fn take(&mut self, which: impl Fn(&Known) -> bool) -> Vec<Arc<Line>> {
        self.all.extract_if(.., |known| !known.is_used() && which(known)).map(|known| known.line).collect()
    }
}

/// Until when lines must go so that what is left weighs no more than three quarters of what may be: not each new one shall go
/// through all.
pub(crate) fn cut(mut unused: Vec<(Instant, usize)>, weights: usize) -> Option<Instant> {
    let mut surplus = weights.saturating_sub(WEIGHTS_BYTES_MAX / 4 * 3);
    unused.sort_unstable();
    let mut until = None;
    for (used_at, weight) in unused {
        if surplus == 0 {
            break;
        }
        until = Some(used_at);
        surplus = surplus.saturating_sub(weight);
    }
    until
}

#[cfg(test)]
mod tests {
    use palisade_core::{Artifact, HostFunctions, Sandbox, block_on};
    use palisade_fake::Fake;

    use super::*;

    fn policy(fuel: u64) -> Policy {
        let mut policy = Policy::default();
        policy.quota.fuel = Some(fuel);
        policy
    }

    fn line(weights: &Arc<AtomicUsize>, artifact_bytes: usize) -> Arc<Line> {
        let artifact = Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo"].concat());
        let module = block_on(Fake::new(None).load(artifact)).unwrap();
        Line::new(module.prepare(Policy::default(), HostFunctions::new()).unwrap(), artifact_bytes, weights)
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_what_is_hot_stays() {
        let (weights, begun) = (Arc::default(), Instant::now());
        let at = |millis| begun + Duration::from_millis(millis);
        let mut lines = Lines::default();
        for number in 0..16 {
            assert!(lines.insert(&policy(number), line(&weights, 0), at(number)).1.is_none());
        }
        // Two hot ones, again and again, while others come.
        for number in 16..100 {
            for hot in [0, 1] {
                assert!(lines.find(&policy(hot), at(number * 10 + hot)).is_some());
            }
            assert!(lines.insert(&policy(number), line(&weights, 0), at(number * 10 + 5)).1.is_some());
        }
        let left: Vec<_> = (0..100).filter(|number| lines.find(&policy(*number), begun).is_some()).collect();
        assert_eq!(left, [0, 1].into_iter().chain(86..100).collect::<Vec<_>>());
        // Who prepared the same meanwhile gets what is there.
        let (known, slower) = (lines.find(&policy(0), begun).unwrap(), line(&weights, 0));
        let (same, gone) = lines.insert(&policy(0), Arc::clone(&slower), at(5000));
        assert!(Arc::ptr_eq(&same, &known) && Arc::ptr_eq(&gone.unwrap(), &slower));
        drop((same, known, slower));
        assert_eq!(weights.load(Ordering::Relaxed), 16 * WEIGHT_BYTES);
        drop(lines);
        assert_eq!(weights.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_idle_goes_after_a_minute_but_for_what_is_used_or_keeps_something() {
        let (weights, begun) = (Arc::default(), Instant::now());
        let mut lines = Lines::default();
        let used = lines.insert(&policy(0), line(&weights, 0), begun).0;
        drop(lines.insert(&policy(1), line(&weights, 0), begun));
        let keeps = lines.insert(&policy(2), line(&weights, 0), begun).0;
        keeps.give_back(block_on(keeps.prepared.instantiate()).unwrap());
        drop(keeps);
        assert!(lines.take_idle(begun + IDLE_TIME - Duration::from_millis(1)).is_empty());
        assert_eq!(lines.take_idle(begun + IDLE_TIME).len(), 1);
        assert!(lines.find(&policy(1), begun).is_none() && lines.find(&policy(2), begun).is_some());
        drop(used);
        assert_eq!(lines.take_idle(begun + IDLE_TIME).len(), 1);
        assert_eq!(lines.take_until(begun).len(), 1, "where others need room, what is kept goes as well");
        assert!(lines.all.is_empty());
    }

    #[test]
    fn what_is_too_much_for_all_goes_by_age() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let large = WEIGHTS_BYTES_MAX / 8;
        let unused: Vec<_> = (0..9).rev().map(|second| (at(second), large)).collect();
        assert_eq!(cut(unused.clone(), 9 * large), Some(at(2)), "six are left");
        assert_eq!(cut(unused.clone(), 6 * large), None);
        assert_eq!(cut(Vec::new(), 9 * large), None, "what is used stays");
    }
}
