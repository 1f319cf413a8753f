//! Timers: a hierarchical timing wheel.
//!
//! Varghese and Lauck, *Hashed and Hierarchical Timing Wheels* (SOSP 1987): setting and cancelling take constant time,
//! and a timer moves down at most one level at a time as its moment comes nearer.

/// Milliseconds since the Unix epoch, the fabric's unit of time.
pub(crate) type Millis = u64;

/// Slots of a level: as many as a word has bits, so that finding the next used one is one instruction.
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
/// Levels; the last one turns once in 2^36 ms, about two years. What lies further away goes round more than once.
const LEVELS: usize = 6;
/// The list of timers that are due and not yet taken.
const DUE: usize = LEVELS * SLOTS;
const NONE: u32 = u32::MAX;

/// Timers that carry an item each.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    /// Everything up to here has come.
    elapsed: Millis,
    /// One bit for each slot that has timers.
    used: [u64; LEVELS],
    lists: Vec<List>,
    nodes: Vec<Node<T>>,
    free: u32,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

const EMPTY: List = List { head: NONE, tail: NONE };

#[derive(Debug)]
struct Node<T> {
    when: Millis,
    item: Option<T>,
    list: usize,
    previous: u32,
    next: u32,
    generation: u32,
}

/// A timer that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerId {
    node: u32,
    generation: u32,
}

impl<T: Copy> Wheel<T> {
    pub(crate) fn new(now: Millis) -> Wheel<T> {
        Wheel { elapsed: now, used: [0; LEVELS], lists: vec![EMPTY; DUE + 1], nodes: Vec::new(), free: NONE, len: 0 }
    }

    /// Sets a timer. One in the past comes with the next millisecond.
    pub(crate) fn set(&mut self, when: Millis, item: T) -> TimerId {
        let when = when.max(self.elapsed + 1);
        let node = if self.free == NONE {
            self.nodes.push(Node { when, item: Some(item), list: 0, previous: NONE, next: NONE, generation: 0 });
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.free;
            let node = &mut self.nodes[index as usize];
            self.free = node.next;
            (node.when, node.item) = (when, Some(item));
            index
        };
        self.len += 1;
        self.link(node, self.list_for(when));
        TimerId { node, generation: self.nodes[node as usize].generation }
    }

    /// Cancels a timer. One that came already, or was cancelled, is left alone.
    pub(crate) fn cancel(&mut self, id: TimerId) {
        let Some(node) = self.nodes.get(id.node as usize) else { return };
        if node.generation == id.generation && node.item.is_some() {
            self.unlink(id.node);
            self.release(id.node);
        }
    }

    /// The next item that is due at `now`, the earlier ones first.
    pub(crate) fn pop(&mut self, now: Millis) -> Option<T> {
        loop {
            let due = self.lists[DUE].head;
            if due != NONE {
                self.unlink(due);
                return self.release(due);
            }
            match self.next_slot() {
                Some((at, list)) if at <= now => {
                    self.elapsed = at;
                    self.spread(list);
                }
                _ => {
                    self.elapsed = self.elapsed.max(now);
                    return None;
                }
            }
        }
    }

    /// When to look again: no timer comes before, and the wheel has something to do then.
    pub(crate) fn next(&self) -> Option<Millis> {
        if self.lists[DUE].head != NONE {
            return Some(self.elapsed);
        }
        self.next_slot().map(|(at, _)| at)
    }

    /// Timers that are set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Moves the timers of a slot that was reached: to the due ones, or down.
    fn spread(&mut self, list: usize) {
        let mut node = self.lists[list].head;
        self.lists[list] = EMPTY;
        self.used[list / SLOTS] &= !(1 << (list % SLOTS));
        while node != NONE {
            let Node { when, next, .. } = self.nodes[node as usize];
            self.link(node, if when <= self.elapsed { DUE } else { self.list_for(when) });
            node = next;
        }
    }

    /// The first slot with timers and the moment it starts. Lower levels always come first.
    fn next_slot(&self) -> Option<(Millis, usize)> {
        let level = self.used.iter().position(|used| *used != 0)?;
        let shift = SLOT_BITS * level as u32;
        let current = (self.elapsed >> shift) % SLOTS as u64;
        // The current slot comes last: only in the last level it has timers, and they wait for another turn.
        let ahead = u64::from(self.used[level].rotate_right(current as u32 + 1).trailing_zeros()) + 1;
        let slot = (current + ahead) % SLOTS as u64;
        let turn = 1u64 << (shift + SLOT_BITS);
        let mut at = (self.elapsed & !(turn - 1)) + (slot << shift);
        if at <= self.elapsed {
            at += turn;
        }
        Some((at, level * SLOTS + slot as usize))
    }

    fn list_for(&self, when: Millis) -> usize {
        let differing = (self.elapsed ^ when) | (SLOTS as u64 - 1);
        let level = ((63 - differing.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        let slot = (when >> (SLOT_BITS * level)) % SLOTS as u64;
        level as usize * SLOTS + slot as usize
    }

    fn link(&mut self, index: u32, list: usize) {
        let tail = self.lists[list].tail;
        let node = &mut self.nodes[index as usize];
        (node.list, node.previous, node.next) = (list, tail, NONE);
        match tail {
            NONE => self.lists[list].head = index,
            _ => self.nodes[tail as usize].next = index,
        }
        self.lists[list].tail = index;
        if list != DUE {
            self.used[list / SLOTS] |= 1 << (list % SLOTS);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Node { list, previous, next, .. } = self.nodes[index as usize];
        match previous {
            NONE => self.lists[list].head = next,
            _ => self.nodes[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[list].tail = previous,
            _ => self.nodes[next as usize].previous = previous,
        }
        if list != DUE && self.lists[list].head == NONE {
            self.used[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    fn release(&mut self, index: u32) -> Option<T> {
        let free = self.free;
        let node = &mut self.nodes[index as usize];
        node.generation = node.generation.wrapping_add(1);
        node.next = free;
        self.free = index;
        self.len -= 1;
        node.item.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all_due(wheel: &mut Wheel<u32>, now: Millis) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop(now)).collect()
    }

    #[test]
    fn timers_come_at_their_time_and_not_before() {
        let mut wheel = Wheel::new(1_000_000);
        for (item, delay) in [(1, 1), (2, 63), (3, 64), (4, 5000), (5, 1 << 20), (6, 1 << 37)] {
            wheel.set(1_000_000 + delay, item);
        }
        assert!(all_due(&mut wheel, 1_000_000).is_empty());
        assert_eq!(all_due(&mut wheel, 1_000_063), [1, 2]);
        assert_eq!(all_due(&mut wheel, 1_004_999), [3]);
        assert_eq!(all_due(&mut wheel, 1_005_000), [4]);
        assert!(all_due(&mut wheel, 1_000_000 + (1 << 20) - 1).is_empty());
        assert_eq!(all_due(&mut wheel, 1_000_000 + (1 << 37) - 1), [5]);
        assert_eq!(all_due(&mut wheel, 1_000_000 + (1 << 37)), [6]);
        assert_eq!((wheel.len(), wheel.next()), (0, None));
    }

    #[test]
    fn a_cancelled_timer_does_not_come_and_its_id_does_not_hit_another() {
        let mut wheel = Wheel::new(0);
        let first = wheel.set(10, 1);
        wheel.cancel(first);
        let second = wheel.set(10, 2);
        wheel.cancel(first);
        assert_eq!(all_due(&mut wheel, 100), [2]);
        wheel.cancel(second);
        wheel.set(5, 3);
        assert_eq!(all_due(&mut wheel, 101), [3], "a timer in the past comes with the next millisecond");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u64),
        Cancel(usize),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let spans = || prop_oneof![0..130u64, 0..10_000u64, 0..(1u64 << 38)];
        prop_oneof![
            3 => spans().prop_map(Step::Set),
            1 => any::<usize>().prop_map(Step::Cancel),
            2 => spans().prop_map(Step::Advance),
        ]
    }

    proptest! {
        /// Against a sorted map: the same timers come, at the same steps, in the order of their times.
        #[test]
        fn behaves_like_a_sorted_map(start in 0..(1u64 << 41), steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new(start);
            let mut model = BTreeMap::new();
            let mut ids = Vec::new();
            let mut now = start;
            for (item, step) in (0u32..).zip(steps) {
                match step {
                    Step::Set(delay) => {
                        ids.push((item, wheel.set(now + delay, item)));
                        model.insert(item, (now + delay).max(now + 1));
                    }
                    Step::Cancel(which) => if let Some((item, id)) = ids.get(which % ids.len().max(1)) {
                        wheel.cancel(*id);
                        model.remove(item);
                    },
                    Step::Advance(span) => {
                        now += span;
                        let came = all_due(&mut wheel, now);
                        let times: Vec<_> = came.iter().map(|item| model.get(item).copied()).collect();
                        prop_assert!(times.is_sorted(), "{times:?}");
                        let mut came = came;
                        came.sort_unstable();
                        let expected: Vec<_> =
                            model.iter().filter(|(_, when)| **when <= now).map(|(item, _)| *item).collect();
                        prop_assert_eq!(&came, &expected);
                        model.retain(|_, when| *when > now);
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                let first = model.values().min().copied();
                prop_assert!(wheel.next() <= first || first.is_none(), "never looks too late");
                prop_assert_eq!(wheel.next().is_none(), first.is_none());
            }
        }
    }
}
