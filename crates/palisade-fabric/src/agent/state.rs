//! The life of an agent.

use serde::{Deserialize, Serialize};

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Made, and has run nothing yet.
    Spawned,
    /// Can run tasks and runs none.
    Ready,
    /// Runs tasks.
    Busy,
    /// Takes no more tasks and ends those it has.
    Draining,
    /// Runs nothing any more.
    Terminated,
}

/// What moves an agent from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A task begins.
    Begin,
    /// A task ended; so many still run.
    End { left: usize },
    /// Its executor wants it to end; so many tasks run.
    Drain { running: usize },
    /// Its budget of restarts is used up.
    GiveUp,
}

impl AgentState {
    /// The next state, or `None` when the event cannot happen in this one.
    pub(crate) fn after(self, event: Event) -> Option<AgentState> {
        use AgentState::{Busy, Draining, Ready, Spawned, Terminated};
        match (self, event) {
            (Spawned | Ready | Busy, Event::Begin) => Some(Busy),
            (Busy, Event::End { left: 0 }) => Some(Ready),
            (Busy, Event::End { .. }) => Some(Busy),
            (Draining, Event::End { left: 0 }) => Some(Terminated),
            (Draining, Event::End { .. }) => Some(Draining),
            (Terminated, Event::End { .. }) => Some(Terminated),
            (Spawned | Ready | Busy | Draining, Event::Drain { running: 0 }) => Some(Terminated),
            (Spawned | Ready | Busy | Draining, Event::Drain { .. }) => Some(Draining),
            (Terminated, Event::Drain { .. }) => Some(Terminated),
            (_, Event::GiveUp) => Some(Terminated),
            (Draining | Terminated, Event::Begin) | (Spawned | Ready, Event::End { .. }) => None,
        }
    }
}
