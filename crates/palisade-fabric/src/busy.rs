//! Agents that have no room for every task there is: what an executor asks its scheduler for, so that nothing it has a
//! place for waits behind them.
//!
//! Most agents have room for all that is leased to them, and nothing is counted beforehand. An agent that has none for a
//! task it was leased is busy from then on: its room is told to the scheduler, and taken when a task is leased. It stops
//! being busy when the scheduler offers it fewer tasks than it has room for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::{ArtifactHash, Lease, PluginLimit};
use tokio::sync::Notify;

use crate::agent::{Agent, AgentPermit};

type Table<V> = HashMap<ArtifactHash, V, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
pub(crate) struct BusyAgents {
    agents: Mutex<Table<Arc<Agent>>>,
    /// There is one more, or room with one of them.
    changed: Arc<Notify>,
}

/// What a request asks for.
#[derive(Debug, Default)]
pub(crate) struct LeaseWish {
    pub(crate) limits: Arc<[PluginLimit]>,
    /// The same limits, less what was leased, and the agents they are for.
    room: Table<(usize, Arc<Agent>)>,
    /// When one of the agents has rested.
    rested_at: Option<Instant>,
}

/// How long a request is left alone at least after one was cut short, and at most; doubles with each in a row. What is
/// cut short may have been about to give tasks, so this lets even the slowest scheduler come to an end.
const CALM: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

impl BusyAgents {
    /// Whom an agent tells of room.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// An agent had no room for a task.
    pub(crate) fn add(&self, agent: &Arc<Agent>) {
        self.lock().insert(agent.template.artifact.hash(), Arc::clone(agent));
        // Before it is told: whoever hears of it looks at the room, and what ends later tells again.
        agent.tell_of_room(true);
        self.changed.notify_one();
    }

    /// An agent is gone.
    pub(crate) fn remove(&self, plugin: ArtifactHash) {
        self.lock().remove(&plugin);
        self.changed.notify_one();
    }

    /// What to ask for with so many places.
    pub(crate) fn wish(&self, tasks_max: usize) -> LeaseWish {
        let agents = self.lock();
        if agents.is_empty() {
            return LeaseWish::default();
        }
        let now = Instant::now();
        let mut wish = LeaseWish::default();
        for (plugin, agent) in &*agents {
            let rest = agent.rests_until(now);
            wish.rested_at = [wish.rested_at, rest].into_iter().flatten().min();
            let room = if rest.is_some() { 0 } else { agent.room().min(tasks_max) };
            wish.room.insert(*plugin, (room, Arc::clone(agent)));
        }
        let limit =
            |(plugin, (room, _)): (&ArtifactHash, &(usize, _))| PluginLimit { plugin: *plugin, tasks_max: *room };
        wish.limits = wish.room.iter().map(limit).collect();
        wish
    }

    /// Waits until there is another wish. `cut_short`: how many requests in a row were, for that.
    pub(crate) async fn another_wish(&self, wish: &LeaseWish, cut_short: u32) {
        let calm = CALM.0.saturating_mul(1 << cut_short.min(16)).min(CALM.1);
        let not_before = (cut_short > 0).then(|| Instant::now() + calm);
        match wish.rested_at {
            Some(at) => tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(at.into()) => {}
            },
            None => self.changed.notified().await,
        }
        if let Some(at) = not_before {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// The scheduler has no more tasks of those the wish had room for: their agents are not busy.
    pub(crate) fn had_enough(&self, wish: LeaseWish) {
        let mut agents = self.lock();
        for (plugin, (room, agent)) in wish.room {
            if room > 0 && agents.get(&plugin).is_some_and(|known| Arc::ptr_eq(known, &agent)) {
                agent.tell_of_room(false);
                agents.remove(&plugin);
            }
        }
    }

    // Every statement leaves the state consistent, so a poisoned lock is safe to use again.
    fn lock(&self) -> MutexGuard<'_, Table<Arc<Agent>>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseWish {
    /// The room that was told to the scheduler, for a task it leased.
    pub(crate) fn turn(&mut self, lease: &Lease) -> Option<AgentPermit> {
        if self.room.is_empty() {
            return None;
        }
        let (room, agent) = self.room.get_mut(&lease.task.plugin)?;
        *room = room.saturating_sub(1);
        AgentPermit::take(Arc::clone(agent)).ok()
    }
}
