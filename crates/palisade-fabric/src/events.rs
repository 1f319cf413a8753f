//! What happens to tasks and agents, told to those who want to hear of it.

use std::fmt;
use std::sync::Arc;

use palisade_core::{ArtifactHash, Completion, Error, ErrorKind, Outcome, Priority, Result, Task, TaskId, TaskState};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use crate::AgentState;
use crate::machine::{Change, What};
use crate::wheel::Millis;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A task was taken.
    Submitted {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
        /// Its urgency.
        priority: Priority,
    },
    /// A worker got a task and starts an attempt.
    Started {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
        /// Which attempt this is, from 1; lost ones count.
        attempt: u32,
        /// How long the task waited for a worker once it could start, in milliseconds.
        waited_ms: u64,
    },
    /// An attempt failed and there will be another.
    Retried {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
        /// Attempts that failed so far.
        failures: u32,
    },
    /// A task's lease ended without a word from its worker.
    LeaseLost {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
    },
    /// A worker gave a task back without an attempt.
    Released {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
    },
    /// A task left the dead-letter queue and is tried again from the beginning.
    Requeued {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
    },
    /// A task got its outcome. In the state `dead_lettered` it was given up.
    Finished {
        /// Which task, and when.
        #[serde(flatten)]
        about: About,
        /// Where it is now.
        state: TaskState,
        /// How its guest ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        /// Why the host could not run it, in place of an outcome.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_error: Option<String>,
    },
    /// An agent came into another state.
    Agent {
        /// When, in milliseconds since 1970.
        unix_ms: u64,
        /// Its name.
        name: String,
        /// What it runs.
        plugin: ArtifactHash,
        /// Where it is now.
        state: AgentState,
    },
    /// The subscriber was too slow, and events were dropped in its place. Those that its filter would have left out are
    /// counted too.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Which task an event is about, and when it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct About {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The task.
    pub task: TaskId,
    /// On whose behalf.
    pub tenant: String,
    /// The plugin.
    pub plugin: ArtifactHash,
}

impl Event {
    /// The event of a change.
    fn of(change: &Change, now: Millis) -> Event {
        let Task { id, tenant, plugin, priority, .. } = &*change.task;
        let about = About { unix_ms: now, task: *id, tenant: tenant.0.clone(), plugin: *plugin };
        match &change.what {
            What::Submitted => Event::Submitted { about, priority: *priority },
            What::Leased { waited, attempt } => {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                Event::Started { about, attempt: *attempt, waited_ms }
            }
            What::Retried { failures } => Event::Retried { about, failures: *failures },
            What::Lost => Event::LeaseLost { about },
            What::Released => Event::Released { about },
            What::Requeued => Event::Requeued { about },
            What::Finished { state, completion } => {
                let (outcome, host_error) = match &**completion {
                    Completion::Executed(execution) => (Some(execution.outcome.clone()), None),
                    Completion::HostError { message, .. } => (None, Some(message.clone())),
                };
                Event::Finished { about, state: *state, outcome, host_error }
            }
        }
    }

    /// The task it is about.
    pub fn about(&self) -> Option<&About> {
        match self {
            Event::Submitted { about, .. }
            | Event::Started { about, .. }
            | Event::Retried { about, .. }
            | Event::LeaseLost { about }
            | Event::Released { about }
            | Event::Requeued { about }
            | Event::Finished { about, .. } => Some(about),
            Event::Agent { .. } | Event::Missed { .. } => None,
        }
    }
}

/// Which events a subscriber wants. By default all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Only those of this task.
    pub task: Option<TaskId>,
    /// Only those of this tenant's tasks.
    pub tenant: Option<String>,
    /// Only those of this plugin's tasks, and of its agent unless a task or a tenant is named.
    pub plugin: Option<ArtifactHash>,
}

impl EventFilter {
    fn admits(&self, event: &Event) -> bool {
        match (event.about(), event) {
            (Some(about), _) => {
                self.task.is_none_or(|task| task == about.task)
                    && self.tenant.as_ref().is_none_or(|tenant| *tenant == about.tenant)
                    && self.plugin.is_none_or(|plugin| plugin == about.plugin)
            }
            (None, Event::Agent { plugin, .. }) => {
                self.task.is_none() && self.tenant.is_none() && self.plugin.is_none_or(|wanted| wanted == *plugin)
            }
            (None, _) => true,
        }
    }
}

/// Where events are told. Clones are the same place.
///
/// The latest events are kept once for all subscribers; one that is slower than these last is told how many it
/// [missed](Event::Missed). Nobody waits for a subscriber, and without one nothing is made.
#[derive(Clone)]
pub struct Events {
    sender: broadcast::Sender<Told>,
    places: Arc<Semaphore>,
    places_max: usize,
    /// Up to which position the journal is safe, where there is one.
    safe: Option<watch::Receiver<u64>>,
}

#[derive(Clone)]
struct Told {
    /// The journal position that makes it true for ever.
    position: u64,
    event: Arc<Event>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("subscribers", &self.sender.receiver_count()).finish_non_exhaustive()
    }
}

impl Events {
    /// Keeps the latest `kept` events, for at most `subscribers_max` subscribers.
    pub fn new(kept: usize, subscribers_max: usize) -> Events {
        // The bounds of what is underneath.
        let sender = broadcast::Sender::new(kept.clamp(1, usize::MAX / 2));
        let places_max = subscribers_max.min(Semaphore::MAX_PERMITS);
        Events { sender, places: Arc::new(Semaphore::new(places_max)), places_max, safe: None }
    }

    /// Keeps each event back until what it tells of is safe.
    pub(crate) fn once_safe(mut self, safe: watch::Receiver<u64>) -> Events {
        self.safe = Some(safe);
        self
    }

    /// Hears of everything from now on that `filter` admits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when there are as many subscribers as there may be.
    pub fn subscribe(&self, filter: EventFilter) -> Result<Subscription> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Exhausted, "subscribe", "there are as many subscribers as there may be")
                .with_help("end one, or share a subscription")
        })?;
        Ok(Subscription {
            receiver: self.sender.subscribe(),
            filter,
            safe: self.safe.clone(),
            held: None,
            _place: place,
        })
    }

    /// Whether anybody hears. By the places taken, because the channel counts its receivers behind a lock.
    pub(crate) fn are_heard(&self) -> bool {
        self.places.available_permits() < self.places_max
    }

    /// Tells of changes, whose journal position is `position`. The caller keeps their order.
    pub(crate) fn tell_changes<'a>(&self, changes: impl IntoIterator<Item = &'a Change>, now: Millis, position: u64) {
        if self.are_heard() {
            for change in changes {
                self.send(Event::of(change, now), position);
            }
        }
    }

    /// Tells of something that no journal keeps.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.are_heard() {
            self.send(event(), 0);
        }
    }

    fn send(&self, event: Event, position: u64) {
        // That nobody hears it any more is no error.
        let _ = self.sender.send(Told { position, event: Arc::new(event) });
    }
}

impl Default for Events {
    /// 4096 events, 64 subscribers.
    fn default() -> Self {
        Events::new(4096, 64)
    }
}

/// Somebody who hears of events. Dropping it makes room for another.
pub struct Subscription {
    receiver: broadcast::Receiver<Told>,
    filter: EventFilter,
    safe: Option<watch::Receiver<u64>>,
    /// What came and is not safe yet.
    held: Option<Told>,
    _place: OwnedSemaphorePermit,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Subscription {
    /// Waits for the next event. `None`: there will be no more, because everything that tells of events is gone or the
    /// journal failed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        let position = loop {
            if let Some(told) = &self.held {
                break told.position;
            }
            match self.receiver.recv().await {
                Ok(told) if self.filter.admits(&told.event) => self.held = Some(told),
                Ok(_) => {}
                Err(RecvError::Lagged(events)) => return Some(Arc::new(Event::Missed { events })),
                Err(RecvError::Closed) => return None,
            }
        };
        if let Some(safe) = &mut self.safe
            && safe.wait_for(|safe| *safe >= position).await.is_err()
        {
            return None;
        }
        self.held.take().map(|told| told.event)
    }
}
