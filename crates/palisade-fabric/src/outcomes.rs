//! Outcomes that are kept for a time, in a bounded room that tenants share: when it is full, the oldest goes of whoever has most.
//! So a tenant that fills it loses its own, and no other loses any while it has less than its part.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

use palisade_core::Tenant;

use crate::wheel::Millis;

#[derive(Debug)]
pub(crate) struct Outcomes {
    tasks_max: usize,
    bytes_max: usize,
    /// What an outcome counts for besides its bytes, so that a room full of small ones is as full as one of large ones.
    task_weight: usize,
    tasks: usize,
    bytes: usize,
    owners: Vec<Owner>,
    by_tenant: HashMap<Tenant, u32, foldhash::fast::RandomState>,
    free: Vec<u32>,
    /// Owners by what they have.
    by_weight: BTreeSet<(usize, u32)>,
    /// When the first of each owner is due, or earlier. An entry counts while its owner says the same.
    due: BinaryHeap<Reverse<(Millis, u32)>>,
}

#[derive(Debug)]
struct Owner {
    tenant: Tenant,
    /// Until when, and the caller's number, oldest first.
    line: VecDeque<(Millis, u32)>,
    bytes: usize,
    weight: usize,
    /// As in [`Outcomes::due`].
    due: Millis,
}

/// Where an outcome is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptAt {
    owner: u32,
    until: Millis,
    bytes: usize,
}

impl Outcomes {
    pub(crate) fn new(tasks_max: usize, bytes_max: usize) -> Outcomes {
        Outcomes {
            tasks_max,
            bytes_max,
            task_weight: (bytes_max / tasks_max.max(1)).max(1),
            tasks: 0,
            bytes: 0,
            owners: Vec::new(),
            by_tenant: HashMap::default(),
            free: Vec::new(),
            by_weight: BTreeSet::new(),
            due: BinaryHeap::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tasks
    }

    /// Keeps an outcome, at first whether there is room or not.
    pub(crate) fn insert(&mut self, tenant: &Tenant, number: u32, bytes: usize, until: Millis) -> KeptAt {
        let owner = match self.by_tenant.get(tenant) {
            Some(owner) => *owner,
            None => self.make(tenant),
        };
        let of = &mut self.owners[owner as usize];
        match of.line.back() {
            // Those of a journal come in the order of their submission.
            Some((last, _)) if *last > until => {
                let place = of.line.partition_point(|(other, _)| *other <= until);
                of.line.insert(place, (until, number));
            }
            _ => of.line.push_back((until, number)),
        }
        if until < of.due {
            of.due = until;
            self.due.push(Reverse((until, owner)));
        }
        of.bytes += bytes;
        (self.tasks, self.bytes) = (self.tasks + 1, self.bytes + bytes);
        self.weigh(owner);
        KeptAt { owner, until, bytes }
    }

    /// Keeps one no longer.
    pub(crate) fn remove(&mut self, number: u32, at: KeptAt) {
        let of = &mut self.owners[at.owner as usize];
        let from = of.line.partition_point(|(until, _)| *until < at.until);
        let place = of.line.range(from..).position(|(_, other)| *other == number);
        let Some(place) = place else { return };
        of.line.remove(from + place);
        of.bytes -= at.bytes;
        (self.tasks, self.bytes) = (self.tasks - 1, self.bytes - at.bytes);
        self.weigh(at.owner);
        let of = &mut self.owners[at.owner as usize];
        if of.line.is_empty() {
            of.due = Millis::MAX;
            let tenant = std::mem::replace(&mut of.tenant, Tenant(String::new()));
            self.by_tenant.remove(&tenant);
            self.free.push(at.owner);
        }
        // What tells of owners that are gone must not pile up.
        if self.due.len() > 2 * self.by_tenant.len() + 64 {
            let owners = self.owners.iter().enumerate().filter(|(_, of)| !of.line.is_empty());
            self.due = owners.map(|(owner, of)| Reverse((of.due, owner as u32))).collect();
        }
    }

    /// The one that has to go next because there are too many: the oldest of whoever has most, but not `latest`, for whose
    /// sake there are, unless there is no other.
    pub(crate) fn surplus(&self, latest: u32) -> Option<u32> {
        if self.tasks <= self.tasks_max && self.bytes <= self.bytes_max {
            return None;
        }
        let oldest = self.by_weight.iter().rev().filter_map(|(_, owner)| self.owners[*owner as usize].line.front());
        let mut oldest = oldest.map(|(_, number)| *number);
        oldest.find(|number| *number != latest).or(Some(latest))
    }

    /// When the first is due.
    pub(crate) fn next_due(&mut self) -> Option<Millis> {
        while let Some(Reverse((at, owner))) = self.due.peek().copied() {
            let of = &mut self.owners[owner as usize];
            match of.line.front() {
                Some((until, _)) if of.due == at && *until == at => return Some(at),
                Some((until, _)) if of.due == at => {
                    of.due = *until;
                    let next = Reverse((*until, owner));
                    self.due.pop();
                    self.due.push(next);
                }
                _ => drop(self.due.pop()),
            }
        }
        None
    }

    /// One whose time is over by `now`.
    pub(crate) fn overdue(&mut self, now: Millis) -> Option<u32> {
        self.next_due().filter(|at| *at <= now)?;
        let Reverse((_, owner)) = *self.due.peek()?;
        self.owners[owner as usize].line.front().map(|(_, number)| *number)
    }

    fn make(&mut self, tenant: &Tenant) -> u32 {
        let of = Owner { tenant: tenant.clone(), line: VecDeque::new(), bytes: 0, weight: 0, due: Millis::MAX };
        let owner = match self.free.pop() {
            Some(owner) => {
                self.owners[owner as usize] = of;
                owner
            }
            None => {
                self.owners.push(of);
                (self.owners.len() - 1) as u32
            }
        };
        self.by_tenant.insert(tenant.clone(), owner);
        owner
    }

    fn weigh(&mut self, owner: u32) {
        let of = &mut self.owners[owner as usize];
        let weight = of.bytes + of.line.len() * self.task_weight;
        let earlier = std::mem::replace(&mut of.weight, weight);
        if earlier > 0 {
            self.by_weight.remove(&(earlier, owner));
        }
        if weight > 0 {
            self.by_weight.insert((weight, owner));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tenant(number: u32) -> Tenant {
        Tenant(format!("tenant {number}"))
    }

    #[test]
    fn whoever_has_most_loses_its_oldest() {
        let mut outcomes = Outcomes::new(10, 1000);
        let mut kept = BTreeMap::new();
        let mut insert = |of: u32, number: u32, bytes: usize| {
            kept.insert(number, outcomes.insert(&tenant(of), number, bytes, u64::from(number)));
            let mut gone = Vec::new();
            while let Some(surplus) = outcomes.surplus(number) {
                outcomes.remove(surplus, kept.remove(&surplus).unwrap());
                gone.push(surplus);
            }
            gone
        };
        assert_eq!((insert(1, 0, 1), insert(1, 1, 1)), (vec![], vec![]));
        for number in 2..10 {
            assert_eq!(insert(0, number, 1), []);
        }
        for number in 10..100 {
            assert_eq!(insert(0, number, 1), [number - 8], "by number: the greedy one's own");
        }
        assert_eq!(insert(2, 100, 900), [92], "small ones are outweighed by none");
        assert_eq!(insert(3, 101, 95), [100], "by bytes: whoever has most of them");
        assert_eq!(
            insert(3, 102, 1000),
            [101, 93, 94, 95, 96, 97, 98, 0, 99, 1],
            "as many as must, the latest is kept"
        );
        assert_eq!(insert(3, 103, 2000), [102, 103], "what is too large for all");
    }

    proptest! {
        /// Against a plain list.
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0..4u32, 0..50usize, 0..20u64, 0..4u8), 1..200)) {
            let mut outcomes = Outcomes::new(12, 300);
            let mut list: Vec<(u32, u32, usize, Millis, KeptAt)> = Vec::new();
            let mut now = 0;
            for (number, (of, bytes, time, what)) in steps.into_iter().enumerate() {
                let number = number as u32;
                match what {
                    0..=1 => {
                        let at = outcomes.insert(&tenant(of), number, bytes, now + time);
                        list.push((of, number, bytes, now + time, at));
                        while let Some(surplus) = outcomes.surplus(number) {
                            let too_many = list.len() > 12 || list.iter().map(|one| one.2).sum::<usize>() > 300;
                            prop_assert!(too_many);
                            let weight = |tenant: u32| -> usize {
                                list.iter().filter(|one| one.0 == tenant).map(|one| one.2 + 25).sum()
                            };
                            let place = list.iter().position(|one| one.1 == surplus).unwrap();
                            let of = list[place].0;
                            let is_front = |one: &(u32, u32, usize, Millis, KeptAt)| {
                                one.0 != of || one.3 >= list[place].3
                            };
                            prop_assert!(list.iter().all(is_front), "the oldest of its tenant");
                            let alone = |other: u32| list.iter().all(|one| one.0 != other || one.1 == number);
                            let most = (0..4).filter(|other| !alone(*other)).map(weight).max().unwrap_or_default();
                            // The latest of the one with most may be its oldest, when it was given back by a journal.
                            let oldest_is_latest = (0..4).any(|other| {
                                let line = list.iter().filter(|one| one.0 == other);
                                line.min_by_key(|one| one.3).is_some_and(|one| one.1 == number)
                            });
                            prop_assert!(weight(of) >= most || oldest_is_latest);
                            outcomes.remove(surplus, list.remove(place).4);
                        }
                        let too_many = list.len() > 12 || list.iter().map(|one| one.2).sum::<usize>() > 300;
                        prop_assert!(!too_many);
                    }
                    2 => {
                        now += time;
                        while let Some(due) = outcomes.overdue(now) {
                            let place = list.iter().position(|one| one.1 == due).unwrap();
                            prop_assert!(list[place].3 <= now);
                            outcomes.remove(due, list.remove(place).4);
                        }
                        prop_assert!(list.iter().all(|one| one.3 > now));
                    }
                    _ => {
                        if !list.is_empty() {
                            let one = list.remove(bytes % list.len());
                            outcomes.remove(one.1, one.4);
                        }
                    }
                }
                prop_assert_eq!(outcomes.len(), list.len());
                prop_assert_eq!(outcomes.bytes, list.iter().map(|one| one.2).sum::<usize>());
                prop_assert_eq!(outcomes.next_due(), list.iter().map(|one| one.3).min());
            }
        }
    }
}
