//! Outcomes that are kept for a time, in a bounded room that tenants share: when it is full, the oldest goes, or, when that is
//! of somebody who has less than its part, the oldest of whoever has most. So a tenant that fills it loses its own, and no other
//! loses any while it has less than its part.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

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
    /// Owners by what they have, or somewhat more. An entry counts while its owner says the same.
    by_weight: BinaryHeap<(usize, u32)>,
    /// When the first of each owner is due, or earlier. An entry counts while its owner says the same.
    due: BinaryHeap<Reverse<(Due, u32)>>,
    /// Outcomes there ever were.
    inserted: u64,
    /// Owners there ever were.
    made: u64,
}

/// Until when one is kept, and its number in the order in which they came: many end in one millisecond.
type Due = (Millis, u64);

/// What is due when nothing is.
const NEVER: Due = (Millis::MAX, u64::MAX);

/// Where a tenant's outcomes are, as far as somebody remembers: saves looking for them by name.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hint {
    owner: u32,
    /// 0: nowhere.
    key: u64,
}

#[derive(Debug)]
struct Owner {
    /// No two have the same.
    key: u64,
    tenant: Tenant,
    /// Until when, and the caller's number, oldest first.
    line: VecDeque<(Due, u32)>,
    bytes: usize,
    /// As in [`Outcomes::by_weight`]. Most outcomes come and go without a word to it.
    weight: usize,
    /// As in [`Outcomes::due`].
    due: Due,
}

/// Where an outcome is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptAt {
    owner: u32,
    until: Due,
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
            by_weight: BinaryHeap::new(),
            due: BinaryHeap::new(),
            inserted: 0,
            made: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tasks
    }

    /// Keeps an outcome, at first whether there is room or not.
    pub(crate) fn insert(
        &mut self,
        tenant: &Tenant,
        hint: &mut Hint,
        number: u32,
        bytes: usize,
        until: Millis,
    ) -> KeptAt {
        self.inserted += 1;
        let until = (until, self.inserted);
        let is_right = self.owners.get(hint.owner as usize).is_some_and(|of| of.key == hint.key);
        let known = if is_right { Some(hint.owner) } else { self.by_tenant.get(tenant).copied() };
        let owner = match known {
            Some(owner) => owner,
            None => self.make(tenant),
        };
        let of = &mut self.owners[owner as usize];
        *hint = Hint { owner, key: of.key };
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
        if of.line.front().is_some_and(|(_, first)| *first == number) {
            of.line.pop_front();
        } else {
            let from = of.line.partition_point(|(until, _)| *until < at.until);
            let place = of.line.range(from..).position(|(_, other)| *other == number);
            let Some(place) = place else { return };
            of.line.remove(from + place);
        }
        of.bytes -= at.bytes;
        (self.tasks, self.bytes) = (self.tasks - 1, self.bytes - at.bytes);
        if of.line.is_empty() {
            (of.due, of.weight, of.key) = (NEVER, 0, u64::MAX);
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

    /// The one that has to go next because there are too many, but not `latest`, for whose sake there are, unless there is no
    /// other. Who has how much counts to within an eighth.
    pub(crate) fn surplus(&mut self, latest: u32) -> Option<u32> {
        if self.tasks <= self.tasks_max && self.bytes <= self.bytes_max {
            return None;
        }
        // Where all have about the same, as is most often so, they go in the order in which they came.
        let part = (self.bytes + self.tasks * self.task_weight) / self.by_tenant.len().max(1);
        if let Some(oldest) = self.overdue(Millis::MAX).filter(|oldest| *oldest != latest)
            && let Some(Reverse((_, owner))) = self.due.peek()
            && self.weight(*owner) >= part - part / 8
        {
            return Some(oldest);
        }
        let mut aside = None;
        let mut oldest = None;
        while let Some((claimed, owner)) = self.by_weight.peek().copied() {
            let weight = self.weight(owner);
            let of = &mut self.owners[owner as usize];
            if of.weight != claimed || weight < claimed - claimed / 8 {
                self.by_weight.pop();
                if of.weight == claimed {
                    of.weight = weight;
                    self.by_weight.push((weight, owner));
                }
                continue;
            }
            oldest = of.line.front().map(|(_, number)| *number).filter(|number| *number != latest);
            if oldest.is_some() {
                break;
            }
            aside = self.by_weight.pop();
        }
        self.by_weight.extend(aside);
        oldest.or(Some(latest))
    }

    /// When the first is due.
    pub(crate) fn next_due(&mut self) -> Option<Millis> {
        while let Some(Reverse((at, owner))) = self.due.peek().copied() {
            let of = &mut self.owners[owner as usize];
            match of.line.front() {
                Some((until, _)) if of.due == at && *until == at => return Some(at.0),
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
        self.made += 1;
        let of =
            Owner { key: self.made, tenant: tenant.clone(), line: VecDeque::new(), bytes: 0, weight: 0, due: NEVER };
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

    fn weight(&self, owner: u32) -> usize {
        let of = &self.owners[owner as usize];
        of.bytes + of.line.len() * self.task_weight
    }

    /// Notes that an owner has more, when that is more than was noted.
    fn weigh(&mut self, owner: u32) {
        let weight = self.weight(owner);
        let of = &mut self.owners[owner as usize];
        if weight <= of.weight {
            return;
        }
        of.weight = weight + weight / 8;
        self.by_weight.push((of.weight, owner));
        if self.by_weight.len() > 2 * self.by_tenant.len() + 64 {
            let owners = self.owners.iter().enumerate().filter(|(_, of)| of.weight > 0);
            self.by_weight = owners.map(|(owner, of)| (of.weight, owner as u32)).collect();
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
            kept.insert(number, outcomes.insert(&tenant(of), &mut Hint::default(), number, bytes, u64::from(number)));
            let mut gone = Vec::new();
            while let Some(surplus) = outcomes.surplus(number) {
                outcomes.remove(surplus, kept.remove(&surplus).unwrap());
                gone.push(surplus);
            }
            gone
        };
        assert_eq!((insert(1, 0, 1), insert(1, 1, 1)), (vec![], vec![]));
        for number in 2..10 {
            assert_eq!(insert(0, number, 1), Vec::<u32>::new());
        }
        for number in 10..100 {
            assert_eq!(insert(0, number, 1), [number - 8], "by number: the greedy one's own");
        }
        assert_eq!(insert(2, 100, 900), [92], "small ones are outweighed by none");
        assert_eq!(insert(3, 101, 95), [100], "by bytes: whoever has most of them");
        let mut gone = insert(3, 102, 1000);
        gone.sort_unstable();
        assert_eq!(gone, [0, 1, 93, 94, 95, 96, 97, 98, 99, 101], "as many as must, the latest is kept");
        assert_eq!(insert(3, 103, 2000), [102, 103], "what is too large for all");
    }

    proptest! {
        /// Against a plain list.
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0..4u32, 0..50usize, 0..20u64, 0..4u8), 1..200)) {
            let mut outcomes = Outcomes::new(12, 300);
            let mut list: Vec<(u32, u32, usize, Millis, KeptAt)> = Vec::new();
            let (mut now, mut hints) = (0, [Hint::default(); 4]);
            for (number, (of, bytes, time, what)) in steps.into_iter().enumerate() {
                let number = number as u32;
                match what {
                    0..=1 => {
                        let at = outcomes.insert(&tenant(of), &mut hints[of as usize], number, bytes, now + time);
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
                            let tenants = (0..4).filter(|other| weight(*other) > 0).count();
                            let part = (0..4).map(weight).sum::<usize>() / tenants;
                            let has_part = weight(of) * 8 >= part * 7 && list.iter().all(|one| one.3 >= list[place].3);
                            prop_assert!(
                                weight(of) * 8 >= most * 7 || has_part || oldest_is_latest,
                                "{} of {most} and {part}",
                                weight(of)
                            );
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
