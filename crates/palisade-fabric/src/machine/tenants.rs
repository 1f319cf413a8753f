//! What is known of each tenant, for as long as it need be.

use std::collections::{HashMap, VecDeque};

use palisade_core::Tenant;

use super::Timer;
use crate::clock::span;
use crate::fair::FairQueue;
use crate::limits::Bucket;
use crate::outcomes::Hint;
use crate::wheel::{Millis, TimerId, Wheel};
use crate::{Rate, TenantLimits, TenantReport};

#[derive(Debug)]
pub(super) struct Tenants {
    pub(super) max: usize,
    pub(super) all: Vec<TenantState>,
    pub(super) by_name: HashMap<Tenant, u32>,
    pub(super) free: Vec<u32>,
    /// Those with tasks or limits of their own, which are not forgotten.
    pub(super) needed: usize,
    /// Those that may be forgotten, and some that are needed again since.
    pub(super) idle: VecDeque<u32>,
}

/// Tenants looked at to find one that can be forgotten: a few microseconds.
const IDLE_LOOKED_AT_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct TenantState {
    pub(super) name: Tenant,
    /// Its own limits, and for the rest those of every tenant.
    pub(super) limits: TenantLimits,
    pub(super) own: Option<TenantLimits>,
    /// Tasks without an outcome.
    pub(super) tasks: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// It is among the idle.
    pub(super) in_idle: bool,
    /// Where its results and dead letters are.
    pub(super) hints: [Hint; 2],
    /// Those of them that wait for their time.
    pub(super) delayed: usize,
    pub(super) running: u32,
    pub(super) submitted: Option<Bucket>,
    pub(super) started: Option<Bucket>,
    pub(super) start_timer: Option<TimerId>,
}

impl TenantState {
    pub(super) fn new(name: Tenant, limits: TenantLimits) -> TenantState {
        TenantState {
            name,
            limits,
            own: None,
            tasks: 0,
            bytes: 0,
            in_idle: false,
            hints: [Hint::default(); 2],
            delayed: 0,
            running: 0,
            submitted: None,
            started: None,
            start_timer: None,
        }
    }

    pub(super) fn is_needed(&self) -> bool {
        self.own.is_some() || self.tasks > 0
    }

    /// Whether it may do as much as one that nobody knows.
    pub(super) fn has_its_rates(&mut self, now: Millis) -> bool {
        let is_full = |bucket: &mut Option<Bucket>, rate: Option<Rate>| match (bucket, rate) {
            (Some(bucket), Some(rate)) => bucket.is_full(rate, now),
            _ => true,
        };
        is_full(&mut self.submitted, self.limits.submit_rate) && is_full(&mut self.started, self.limits.start_rate)
    }

    pub(super) fn queued(&self) -> usize {
        self.tasks - self.delayed - self.running as usize
    }

    pub(super) fn report(&self) -> TenantReport {
        TenantReport {
            tenant: self.name.clone(),
            limits: self.limits,
            own_limits: self.own,
            queued: self.queued() as u64,
            delayed: self.delayed as u64,
            running: u64::from(self.running),
        }
    }

    /// Whether a task may start now; else something will bring the tenant back: the end of a task, or a timer.
    pub(super) fn may_start(&mut self, now: Millis, set_timer: impl FnOnce(Millis) -> TimerId) -> bool {
        if self.limits.running_max.is_some_and(|max| self.running >= max) {
            return false;
        }
        let Some(rate) = self.limits.start_rate else { return true };
        match self.started.get_or_insert_with(|| Bucket::full(rate, now)).ready(rate, now) {
            Ok(()) => true,
            Err(wait) => {
                if self.start_timer.is_none() {
                    self.start_timer = Some(set_timer(now + span(wait)));
                }
                false
            }
        }
    }
}

impl Tenants {
    pub(super) fn new(max: usize) -> Tenants {
        Tenants {
            max: max.max(1),
            all: Vec::new(),
            by_name: HashMap::new(),
            free: Vec::new(),
            needed: 0,
            idle: VecDeque::new(),
        }
    }

    pub(super) fn at(&mut self, tenant: u32) -> &mut TenantState {
        &mut self.all[tenant as usize]
    }

    pub(super) fn find(&self, name: &Tenant) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Makes room for a tenant, forgetting one that need not be remembered; `None` when there is none.
    pub(super) fn make(
        &mut self,
        name: &Tenant,
        limits: TenantLimits,
        now: Millis,
        queue: &mut FairQueue,
        timers: &mut Wheel<Timer>,
    ) -> Option<u32> {
        if self.by_name.len() >= self.max {
            let forgotten = self.forgettable(now, queue)?;
            let state = &mut self.all[forgotten as usize];
            if let Some(timer) = state.start_timer.take() {
                timers.cancel(timer);
            }
            self.by_name.remove(&state.name);
            queue.forget(forgotten);
            self.free.push(forgotten);
        }
        let state = TenantState::new(name.clone(), limits);
        let tenant = match self.free.pop() {
            Some(tenant) => {
                self.all[tenant as usize] = state;
                tenant
            }
            None => {
                self.all.push(state);
                (self.all.len() - 1) as u32
            }
        };
        self.by_name.insert(name.clone(), tenant);
        self.rest(tenant);
        Some(tenant)
    }

    /// Takes an idle tenant out that can be forgotten: who used up what it may do in a time cannot, or it could have that
    /// again by having others forgotten. Of several, one that had no more than its share; if all had more, one is forgiven.
    pub(super) fn forgettable(&mut self, now: Millis, queue: &FairQueue) -> Option<u32> {
        let mut forgiven = None;
        for _ in 0..self.idle.len().min(IDLE_LOOKED_AT_MAX) {
            let tenant = self.idle.pop_front()?;
            let state = &mut self.all[tenant as usize];
            if state.is_needed() {
                state.in_idle = false;
                continue;
            }
            if state.has_its_rates(now) {
                if queue.is_forgettable(tenant) {
                    // The one that was found before stays.
                    return Some(tenant);
                }
                forgiven = forgiven.or(Some(tenant));
            }
            self.idle.push_back(tenant);
        }
        self.idle.retain(|tenant| Some(*tenant) != forgiven);
        forgiven
    }

    /// Notes a tenant that is not needed now.
    pub(super) fn rest(&mut self, tenant: u32) {
        let state = &mut self.all[tenant as usize];
        if !state.is_needed() && !std::mem::replace(&mut state.in_idle, true) {
            self.idle.push_back(tenant);
        }
    }

    /// A task without an outcome more.
    pub(super) fn enter(&mut self, tenant: u32, bytes: usize) {
        let state = &mut self.all[tenant as usize];
        self.needed += usize::from(!state.is_needed());
        state.tasks += 1;
        state.bytes += bytes;
    }

    /// A task without an outcome less.
    pub(super) fn leave(&mut self, tenant: u32, bytes: usize) {
        let state = &mut self.all[tenant as usize];
        state.tasks -= 1;
        state.bytes -= bytes;
        self.needed -= usize::from(!state.is_needed());
        self.rest(tenant);
    }

    /// Sets a tenant's own limits, and gives what it may do with `others` for the rest.
    pub(super) fn set(&mut self, tenant: u32, own: Option<TenantLimits>, others: TenantLimits) -> TenantLimits {
        let state = &mut self.all[tenant as usize];
        self.needed -= usize::from(state.is_needed());
        state.own = own;
        self.needed += usize::from(state.is_needed());
        let limits = own.unwrap_or_default().or(others);
        let changed = |earlier: Option<Rate>, now: Option<Rate>| earlier != now;
        if changed(state.limits.submit_rate, limits.submit_rate) {
            state.submitted = None;
        }
        if changed(state.limits.start_rate, limits.start_rate) {
            state.started = None;
        }
        state.limits = limits;
        debug_assert_eq!(self.by_name.get(&state.name), Some(&tenant));
        self.rest(tenant);
        limits
    }

    pub(super) fn list(&self, after: Option<&Tenant>, max: usize) -> Vec<TenantReport> {
        let known = self.by_name.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        let known = known.map(|(_, tenant)| &self.all[*tenant as usize]);
        let mut listed: Vec<_> = known.filter(|state| state.is_needed()).collect();
        // Only what is shown is sorted: the scheduler waits meanwhile.
        if max < listed.len() {
            listed.select_nth_unstable_by(max, |one, other| one.name.cmp(&other.name));
            listed.truncate(max);
        }
        listed.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        listed.into_iter().map(TenantState::report).collect()
    }
}
