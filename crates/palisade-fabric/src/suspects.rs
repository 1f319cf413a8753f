//! Tasks that ran when the process ended before. One of them may have ended it, and which one, nobody knows; so each is run
//! alone before it counts as the one that did.
//!
//! They take turns with all other tasks, so that nobody waits for long: while one of them runs alone for some time, nothing else
//! is started; then the others have as much time. One that is still well after [`ALONE`] may have company again.

use std::collections::VecDeque;

use palisade_core::Priority;

use crate::fair::class_number;
use crate::wheel::Millis;

/// How long one of them runs alone, in milliseconds: what ends a process, mostly does so at once.
const ALONE: Millis = 10_000;
/// How long nothing else is started, so that one of them comes to be alone. If others still run then, it is run beside them.
const PATIENCE: Millis = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Suspects {
    waiting: VecDeque<u32>,
    /// How many of each class wait.
    by_class: [usize; 4],
    /// The one that runs, and since when.
    running: Option<(u32, Millis)>,
    /// Until when the others have their turn.
    turn_until: Millis,
    /// Since when nothing else is started.
    clears_since: Option<Millis>,
}

/// Whose turn it is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Anybody's but theirs. Another's perhaps at this time.
    Others(Option<Millis>),
    /// Nobody's, until then.
    Nobody(Millis),
    /// One of theirs.
    Suspect,
}

impl Suspects {
    pub(crate) fn len(&self, class: Priority) -> usize {
        self.by_class[class_number(class)]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn push(&mut self, task: u32, class: Priority) {
        self.waiting.push_back(task);
        self.by_class[class_number(class)] += 1;
    }

    /// Before the others, because it was started already.
    pub(crate) fn give_back(&mut self, task: u32, class: Priority) {
        self.waiting.push_front(task);
        self.by_class[class_number(class)] += 1;
    }

    /// Takes one out that waits.
    pub(crate) fn remove(&mut self, task: u32, class: Priority) {
        if let Some(place) = self.waiting.iter().position(|other| *other == task) {
            self.waiting.remove(place);
            self.by_class[class_number(class)] -= 1;
        }
    }

    pub(crate) fn waiting(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().copied()
    }

    /// Whose turn it is. `running`: how many tasks run; `others`: whether others wait; `may_start`: whether one of them may be
    /// started where tasks are asked for.
    pub(crate) fn turn(&mut self, now: Millis, running: usize, others: bool, may_start: bool) -> Turn {
        if let Some((_, since)) = self.running {
            let until = since + ALONE;
            return if now < until { Turn::Nobody(until) } else { Turn::Others(None) };
        }
        if !may_start {
            // Nothing is held up for what nobody has room for.
            self.clears_since = None;
            return Turn::Others(None);
        }
        if now < self.turn_until && (others || running > 0) {
            return Turn::Others(Some(self.turn_until));
        }
        let until = *self.clears_since.get_or_insert(now) + PATIENCE;
        if running > 0 && now < until { Turn::Nobody(until) } else { Turn::Suspect }
    }

    /// One of them starts that waited. Beside others, there is nothing to wait for.
    pub(crate) fn start(&mut self, task: u32, class: Priority, now: Millis, alone: bool) {
        self.remove(task, class);
        self.clears_since = None;
        if alone {
            self.running = Some((task, now));
        } else {
            self.turn_until = now + PATIENCE;
        }
    }

    /// A task ended or was given back; if it is the one that ran, the others have their turn.
    pub(crate) fn end(&mut self, task: u32, now: Millis) {
        if let Some((_, since)) = self.running.filter(|(running, _)| *running == task) {
            self.running = None;
            self.turn_until = now + (now - since).min(ALONE);
        }
    }
}
