//! Which task comes next: priority classes, fair between tenants, first come first served.
//!
//! Both levels are start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each flow has a start tag, the smallest
//! is served, the flow's tag then grows by 1/weight, and a flow that comes back from idling starts at the tag served last,
//! so nobody saves up credit. A class with weight w of W in all is served at least once in every ⌈W/w⌉ tasks while it
//! has any, and two tenants that both wait get tasks in the ratio of their weights, to within one task each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use palisade_core::{ArtifactHash, Priority};
use serde::{Deserialize, Serialize};

use crate::skipped::{LeaseFilter, Skipped};

/// How the priority classes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassOrder {
    /// By weights, for critical, high, normal and low; each from 1 to [`ClassOrder::WEIGHT_MAX`]. No class starves.
    Weighted([u32; 4]),
    /// The most urgent class that has work. Lower classes starve while it has.
    Strict,
}

impl ClassOrder {
    /// Greatest weight of a class or tenant.
    pub const WEIGHT_MAX: u32 = 1000;
}

impl Default for ClassOrder {
    /// 64 : 16 : 4 : 1, so that `low` gets every 85th task at worst.
    fn default() -> Self {
        ClassOrder::Weighted([64, 16, 4, 1])
    }
}

/// How far a tag moves for one task at weight 1. Small enough that tags last for 2^44 tasks.
const SCALE: u64 = 1 << 20;
const NONE: u32 = u32::MAX;
/// Added to tickets of all but those that came back because they are wanted again.
const LATER: u64 = 1 << 63;

/// Tasks waiting for a worker, by the caller's small numbers for tasks and tenants.
#[derive(Debug)]
pub(crate) struct FairQueue {
    order: ClassOrder,
    classes: [Class; 4],
    /// Start tag of the class served last.
    virtual_time: u64,
    /// By task number: neighbours in the line of the same class and tenant.
    links: Vec<Link>,
    /// By tenant number.
    weights: Vec<u32>,
    /// Breaks ties between equal tags: who came first.
    ticket: u64,
    skipped: Skipped,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

#[derive(Debug, Default)]
struct Class {
    /// Start tag of its next task.
    tag: u64,
    /// Start tag of the tenant served last.
    virtual_time: u64,
    /// Tenants in line: (tag, ticket, tenant). One that lost its tasks meanwhile stays until it is reached.
    line: BinaryHeap<Reverse<(u64, u64, u32)>>,
    /// By tenant number.
    flows: Vec<Flow>,
    len: usize,
}

/// The tasks of one tenant in one class.
#[derive(Debug, Clone, Copy)]
struct Flow {
    head: u32,
    tail: u32,
    /// Tag for its next task.
    tag: u64,
    place: Place,
    /// It has tasks in [`Skipped`], which come before the head.
    has_skipped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Idle,
    InLine,
    /// Taken out of line because its tenant may not start tasks; [`FairQueue::unblock`] brings it back.
    Blocked,
    /// Taken out of line because no worker that asked wanted any of its tasks, which are all in [`Skipped`].
    Stopped,
}

impl FairQueue {
    pub(crate) fn new(order: ClassOrder) -> FairQueue {
        let order = match order {
            ClassOrder::Weighted(weights) => {
                ClassOrder::Weighted(weights.map(|weight| weight.clamp(1, ClassOrder::WEIGHT_MAX)))
            }
            ClassOrder::Strict => ClassOrder::Strict,
        };
        FairQueue {
            order,
            classes: Default::default(),
            virtual_time: 0,
            links: Vec::new(),
            weights: Vec::new(),
            ticket: 0,
            skipped: Skipped::default(),
        }
    }

    /// Sets the weight of a tenant for its coming tasks. Tenants that are not set have weight 1.
    pub(crate) fn set_weight(&mut self, tenant: u32, weight: u32) {
        let tenant = tenant as usize;
        if self.weights.len() <= tenant {
            self.weights.resize(tenant + 1, 1);
        }
        self.weights[tenant] = weight.clamp(1, ClassOrder::WEIGHT_MAX);
    }

    /// Tasks of a class.
    pub(crate) fn len(&self, class: Priority) -> usize {
        self.classes[class_number(class)].len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.len == 0)
    }

    /// Puts a task behind its tenant's others.
    pub(crate) fn push_back(&mut self, class: Priority, tenant: u32, task: u32) {
        let tail = self.enter(class, tenant, task).tail;
        self.links[task as usize] = Link { previous: tail, next: NONE };
        match tail {
            NONE => self.flow(class, tenant).head = task,
            _ => self.links[tail as usize].next = task,
        }
        self.flow(class, tenant).tail = task;
    }

    /// Puts a task in front of its tenant's others that was taken out first under `fence`, which grows from task to task:
    /// those given back stand in the order in which they were first taken.
    pub(crate) fn give_back(&mut self, class: Priority, tenant: u32, plugin: ArtifactHash, task: u32, fence: u64) {
        self.enter(class, tenant, task);
        self.skipped.give_back((class_number(class), tenant), plugin, task, fence);
        self.flow(class, tenant).has_skipped = true;
    }

    /// Takes a task out that is in the queue.
    pub(crate) fn remove(&mut self, class: Priority, tenant: u32, plugin: ArtifactHash, task: u32) {
        if self.skipped.contains(task) {
            return self.remove_skipped(class_number(class), tenant, plugin, task);
        }
        let Link { previous, next } = self.links[task as usize];
        match previous {
            NONE => self.flow(class, tenant).head = next,
            _ => self.links[previous as usize].next = next,
        }
        match next {
            NONE => self.flow(class, tenant).tail = previous,
            _ => self.links[next as usize].previous = previous,
        }
        self.classes[class_number(class)].len -= 1;
    }

    fn remove_skipped(&mut self, number: usize, tenant: u32, plugin: ArtifactHash, task: u32) {
        let class = &mut self.classes[number];
        let flow = &mut class.flows[tenant as usize];
        let stopped = flow.place == Place::Stopped;
        if stopped {
            self.skipped.resume((number, tenant), flow.tag);
        }
        self.skipped.remove((number, tenant), &plugin, task);
        flow.has_skipped = self.skipped.has((number, tenant));
        class.len -= 1;
        if !flow.has_skipped {
            self.skipped.served((number, tenant));
        }
        match (stopped, flow.has_skipped) {
            (true, true) => flow.tag = self.skipped.stop((number, tenant), flow.tag),
            (true, false) => flow.place = Place::Idle,
            (false, _) => {}
        }
    }

    /// Brings flows back of which nobody wanted anything, as many as a worker may now get `tasks_max` tasks from that wants
    /// these, or any. Says whether there were any.
    ///
    /// Returning flows earn no credit for waiting. Restarting all of them at the current virtual time would forget their
    /// relative order, so each keeps its distance from the earliest one, capped at one task of weight 1.
    pub(crate) fn recall(&mut self, wanted: Option<&LeaseFilter>, tasks_max: usize) -> bool {
        if !self.skipped.has_stopped() {
            return false;
        }
        let room = |plugin: &ArtifactHash| wanted.map_or(tasks_max, |wanted| wanted.room(plugin).min(tasks_max));
        let due = self.skipped.due(room);
        let apart = |tag: u64, least: u64, virtual_time: u64| tag.max(virtual_time + (tag - least).min(SCALE));
        let returns = |class: &Class, number| class.line.is_empty() && due.iter().any(|(other, _)| *other == number);
        let returning: Vec<_> = (0..4).filter(|number| returns(&self.classes[*number], *number)).collect();
        let least = returning.iter().map(|number| self.classes[*number].tag).min().unwrap_or_default();
        for number in returning {
            let class = &mut self.classes[number];
            class.tag = apart(class.tag, least, self.virtual_time);
        }
        let tag_of =
            |queue: &FairQueue, (number, tenant): (usize, u32)| queue.classes[number].flows[tenant as usize].tag;
        let mut least = [u64::MAX; 4];
        due.iter().for_each(|id| least[id.0] = least[id.0].min(tag_of(self, *id)));
        for (number, tenant) in &due {
            let class = &mut self.classes[*number];
            let flow = &mut class.flows[*tenant as usize];
            // One may be due for two plugins.
            if flow.place == Place::Stopped {
                self.skipped.resume((*number, *tenant), flow.tag);
                flow.tag = apart(flow.tag, least[*number], class.virtual_time);
                // At equal tags, it was there before those in line.
                self.line_up(*number, *tenant, 0);
            }
        }
        !due.is_empty()
    }

    /// Takes the next task out that is `wanted`, or any. Tenants for which `may_start` says no are set aside until they are
    /// unblocked. Gives `None` as well when it went past so many tasks that it is enough for once.
    pub(crate) fn pop(
        &mut self,
        mut may_start: impl FnMut(u32) -> bool,
        mut wanted: Option<&mut LeaseFilter>,
        plugin_of: impl Fn(u32) -> ArtifactHash,
    ) -> Option<u32> {
        let mut tried = [false; 4];
        loop {
            let waiting = (0..4).filter(|number| !tried[*number] && !self.classes[*number].line.is_empty());
            // Of equal tags, the more urgent class.
            let number = match self.order {
                ClassOrder::Weighted(_) => waiting.min_by_key(|number| (self.classes[*number].tag, *number)),
                ClassOrder::Strict => waiting.min(),
            };
            let Some(number) = number else {
                // Those that came back so far may not start tasks. Others may: each comes back once.
                if self.recall(wanted.as_deref(), 1) {
                    tried = [false; 4];
                    continue;
                }
                return None;
            };
            tried[number] = true;
            if let Some(task) = self.pop_of(number, &mut may_start, wanted.as_deref_mut(), &plugin_of) {
                return Some(task);
            }
            if wanted.as_ref().is_some_and(|wanted| wanted.budget_spent()) {
                return None;
            }
        }
    }

    fn pop_of(
        &mut self,
        number: usize,
        may_start: &mut impl FnMut(u32) -> bool,
        mut wanted: Option<&mut LeaseFilter>,
        plugin_of: &impl Fn(u32) -> ArtifactHash,
    ) -> Option<u32> {
        loop {
            let class = &mut self.classes[number];
            let mut first = class.line.peek_mut()?;
            let Reverse((tag, _, tenant)) = *first;
            let flow = &mut class.flows[tenant as usize];
            if flow.has_skipped || wanted.is_some() {
                drop(first);
                match self.pop_past(number, may_start, wanted.as_deref_mut(), plugin_of) {
                    None if wanted.as_ref().is_none_or(|wanted| !wanted.budget_spent()) => continue,
                    found => return found,
                }
            }
            if flow.head == NONE || !may_start(tenant) {
                flow.place = if flow.head == NONE { Place::Idle } else { Place::Blocked };
                PeekMut::pop(first);
                continue;
            }
            let task = flow.head;
            let next = self.links[task as usize].next;
            flow.head = next;
            flow.tag = tag + SCALE / u64::from(self.weights.get(tenant as usize).copied().unwrap_or(1));
            if next == NONE {
                (flow.tail, flow.place) = (NONE, Place::Idle);
                PeekMut::pop(first);
            } else {
                self.links[next as usize].previous = NONE;
                self.ticket += 1;
                *first = Reverse((flow.tag, LATER + self.ticket, tenant));
            }
            class.virtual_time = tag;
            class.len -= 1;
            self.virtual_time = class.tag;
            if let ClassOrder::Weighted(weights) = self.order {
                class.tag += SCALE / u64::from(weights[number]);
            }
            return Some(task);
        }
    }

    /// What [`FairQueue::pop_of`] does with the first in line when the head of its line may not be its next task.
    fn pop_past(
        &mut self,
        number: usize,
        may_start: &mut impl FnMut(u32) -> bool,
        mut wanted: Option<&mut LeaseFilter>,
        plugin_of: &impl Fn(u32) -> ArtifactHash,
    ) -> Option<u32> {
        let class = &mut self.classes[number];
        let Reverse((tag, _, tenant)) = *class.line.peek()?;
        let flow = &mut class.flows[tenant as usize];
        if flow.head == NONE && !flow.has_skipped || !may_start(tenant) {
            let is_idle = flow.head == NONE && !flow.has_skipped;
            flow.place = if is_idle { Place::Idle } else { Place::Blocked };
            class.line.pop();
            return None;
        }
        let id = (number, tenant);
        let wants = |plugin: &ArtifactHash| wanted.as_ref().is_none_or(|wanted| wanted.wants(plugin));
        let mut found = if flow.has_skipped { self.skipped.take(id, wants) } else { None };
        while found.is_none() && flow.head != NONE {
            let task = flow.head;
            if let Some(wanted) = wanted.as_deref_mut() {
                let plugin = plugin_of(task);
                if wanted.wants(&plugin) {
                    found = Some(task);
                } else if wanted.goes_past() {
                    self.skipped.pass(id, plugin, task);
                } else {
                    flow.has_skipped = self.skipped.has(id);
                    return None;
                }
            } else {
                found = Some(task);
            }
            flow.head = self.links[task as usize].next;
            match flow.head {
                NONE => flow.tail = NONE,
                next => self.links[next as usize].previous = NONE,
            }
        }
        flow.has_skipped = self.skipped.has(id);
        class.line.pop();
        if found.is_none() {
            flow.place = Place::Stopped;
            flow.tag = self.skipped.stop(id, flow.tag);
            return None;
        }
        self.skipped.served(id);
        flow.tag = tag + SCALE / u64::from(self.weights.get(tenant as usize).copied().unwrap_or(1));
        if flow.head == NONE && !flow.has_skipped {
            flow.place = Place::Idle;
        } else {
            self.ticket += 1;
            class.line.push(Reverse((flow.tag, LATER + self.ticket, tenant)));
        }
        class.virtual_time = tag;
        class.len -= 1;
        self.virtual_time = class.tag;
        if let ClassOrder::Weighted(weights) = self.order {
            class.tag += SCALE / u64::from(weights[number]);
        }
        found
    }

    /// Brings a tenant back that was set aside.
    pub(crate) fn unblock(&mut self, tenant: u32) {
        for number in 0..4 {
            let flow = self.classes[number].flows.get(tenant as usize);
            if flow.is_some_and(|flow| flow.place == Place::Blocked) {
                self.line_up(number, tenant, LATER);
            }
        }
    }

    /// Whether nothing of a tenant without tasks would be lost by forgetting it: it has had no more than its share.
    pub(crate) fn is_forgettable(&self, tenant: u32) -> bool {
        self.classes.iter().all(|class| {
            class.flows.get(tenant as usize).is_none_or(|flow| flow.head == NONE && flow.tag <= class.virtual_time)
        })
    }

    /// Lets another tenant have the number of one that has no tasks.
    pub(crate) fn forget(&mut self, tenant: u32) {
        for class in &mut self.classes {
            if let Some(flow) = class.flows.get_mut(tenant as usize) {
                // One that is still in line keeps its place there: it is no better than a newcomer's.
                flow.tag = 0;
                if flow.place == Place::Blocked {
                    flow.place = Place::Idle;
                }
            }
        }
        self.set_weight(tenant, 1);
    }

    /// Makes room for a task and its flow, and lines the flow up.
    fn enter(&mut self, class: Priority, tenant: u32, task: u32) -> Flow {
        if self.links.len() <= task as usize {
            self.links.resize(task as usize + 1, Link { previous: NONE, next: NONE });
        }
        let number = class_number(class);
        let flows = &mut self.classes[number].flows;
        if flows.len() <= tenant as usize {
            flows.resize(
                tenant as usize + 1,
                Flow { head: NONE, tail: NONE, tag: 0, place: Place::Idle, has_skipped: false },
            );
        }
        match flows[tenant as usize].place {
            Place::Idle => self.line_up(number, tenant, LATER),
            Place::Stopped => {
                self.skipped.resume((number, tenant), flows[tenant as usize].tag);
                self.line_up(number, tenant, LATER);
            }
            Place::InLine | Place::Blocked => {}
        }
        self.classes[number].len += 1;
        self.classes[number].flows[tenant as usize]
    }

    fn line_up(&mut self, number: usize, tenant: u32, when: u64) {
        let class = &mut self.classes[number];
        if class.line.is_empty() {
            class.tag = class.tag.max(self.virtual_time);
        }
        let flow = &mut class.flows[tenant as usize];
        flow.tag = flow.tag.max(class.virtual_time);
        flow.place = Place::InLine;
        self.ticket += 1;
        class.line.push(Reverse((flow.tag, when + self.ticket, tenant)));
    }

    fn flow(&mut self, class: Priority, tenant: u32) -> &mut Flow {
        &mut self.classes[class_number(class)].flows[tenant as usize]
    }
}

/// 0 for critical to 3 for low.
pub(crate) fn class_number(class: Priority) -> usize {
    3 - usize::from(class.rank())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use palisade_core::PluginLimit;
    use proptest::prelude::*;

    use super::*;
    use crate::skipped::PATIENCE;

    /// A queue whose tasks remember where they came from.
    struct Queue {
        fair: FairQueue,
        of: Vec<(Priority, u32)>,
    }

    impl FairQueue {
        /// The next task, whatever its plugin.
        fn pop_any(&mut self, may_start: impl FnMut(u32) -> bool) -> Option<u32> {
            self.pop(may_start, None, |_| unreachable!("nobody asks"))
        }
    }

    fn plugin(number: u32) -> ArtifactHash {
        ArtifactHash::of(&number.to_le_bytes())
    }

    /// Wants everything but some plugins.
    fn all_but(unwanted: impl IntoIterator<Item = u32>) -> LeaseFilter {
        let limit = |number| PluginLimit { plugin: plugin(number), tasks_max: 0 };
        LeaseFilter::new(&unwanted.into_iter().map(limit).collect::<Vec<_>>())
    }

    impl Queue {
        fn new(order: ClassOrder) -> Queue {
            Queue { fair: FairQueue::new(order), of: Vec::new() }
        }

        fn push(&mut self, class: Priority, tenant: u32) -> u32 {
            let task = self.of.len() as u32;
            self.of.push((class, tenant));
            self.fair.push_back(class, tenant, task);
            task
        }

        fn push_many(&mut self, count: usize, class: Priority, tenant: u32) {
            for _ in 0..count {
                self.push(class, tenant);
            }
        }

        fn served(&mut self, count: usize) -> Vec<(Priority, u32)> {
            (0..count).map_while(|_| self.fair.pop_any(|_| true)).map(|task| self.of[task as usize]).collect()
        }
    }

    #[test]
    fn classes_share_by_weight_and_none_starves() {
        let mut queue = Queue::new(ClassOrder::default());
        for class in Priority::ALL {
            queue.push_many(1000, class, 0);
        }
        let served = queue.served(850);
        for (class, share) in Priority::ALL.into_iter().zip([640usize, 160, 40, 10]) {
            let count = served.iter().filter(|(other, _)| *other == class).count();
            assert!(count.abs_diff(share) <= 1, "{class:?} got {count} of 850 in place of {share}");
        }
        let low: Vec<_> = (0..850).filter(|at| served[*at].0 == Priority::Low).collect();
        assert!(low[0] < 85 && low.windows(2).all(|pair| pair[1] - pair[0] <= 85 + 3), "{low:?}");
    }

    #[test]
    fn strict_serves_the_most_urgent_class_only() {
        let mut queue = Queue::new(ClassOrder::Strict);
        for class in [Priority::Low, Priority::High, Priority::Critical, Priority::Normal] {
            queue.push_many(100, class, 0);
        }
        let served: Vec<_> = queue.served(400).into_iter().map(|(class, _)| class).collect();
        assert!(served.is_sorted_by(|a, b| a >= b) && served.len() == 400);
    }

    #[test]
    fn tenants_share_by_weight_and_a_flood_delays_nobody() {
        let mut queue = Queue::new(ClassOrder::default());
        queue.fair.set_weight(1, 3);
        queue.push_many(10_000, Priority::Normal, 0);
        assert_eq!(queue.served(100).len(), 100);
        queue.push_many(300, Priority::Normal, 1);
        let served = queue.served(400);
        let of_the_second = served.iter().filter(|(_, tenant)| *tenant == 1).count();
        assert!(of_the_second.abs_diff(300) <= 1, "{of_the_second}");
        assert!(served[..2].contains(&(Priority::Normal, 1)), "the newcomer waits for one task at most");
    }

    #[test]
    fn idling_saves_up_nothing() {
        let mut queue = Queue::new(ClassOrder::default());
        queue.push(Priority::Normal, 0);
        queue.push_many(1000, Priority::Normal, 1);
        queue.served(501);
        queue.push_many(100, Priority::Normal, 0);
        let served = queue.served(100);
        let returned = served.iter().filter(|(_, tenant)| *tenant == 0).count();
        assert!(returned.abs_diff(50) <= 1, "{returned}");
    }

    #[test]
    fn a_blocked_tenant_is_set_aside_and_comes_back_in_order() {
        let mut queue = Queue::new(ClassOrder::default());
        let first = queue.push(Priority::High, 0);
        let second = queue.push(Priority::High, 0);
        let other = queue.push(Priority::Low, 1);
        assert_eq!(queue.fair.pop_any(|tenant| tenant != 0), Some(other));
        assert_eq!(queue.fair.pop_any(|_| true), None, "it stays aside until it is unblocked");
        queue.push(Priority::High, 0);
        assert_eq!(queue.fair.pop_any(|_| true), None);
        queue.fair.unblock(0);
        assert_eq!((queue.fair.pop_any(|_| true), queue.fair.pop_any(|_| true)), (Some(first), Some(second)));
    }

    #[test]
    fn what_is_not_wanted_is_gone_past_in_bounded_steps_and_comes_first_again() {
        let mut queue = Queue::new(ClassOrder::default());
        let unwanted = 10 * PATIENCE as u32;
        queue.push_many(unwanted as usize, Priority::Normal, 0);
        let wanted = queue.push(Priority::Normal, 0);
        let plugin_of = |task: u32| plugin(u32::from(task == wanted));
        let mut tries = 1;
        loop {
            let mut all_but_0 = all_but([0]);
            match queue.fair.pop(|_| true, Some(&mut all_but_0), plugin_of) {
                Some(task) => break assert_eq!(task, wanted),
                None => assert!(all_but_0.budget_spent(), "there is more"),
            }
            tries += 1;
        }
        assert_eq!(tries, 10, "each went past as many as one may");
        let mut all_but_0 = all_but([0]);
        assert_eq!(queue.fair.pop(|_| true, Some(&mut all_but_0), plugin_of), None);
        assert!(!all_but_0.budget_spent() && queue.fair.len(Priority::Normal) == unwanted as usize);
        let late = queue.push(Priority::Normal, 0);
        queue.fair.recall(None, 1);
        let rest: Vec<_> = std::iter::from_fn(|| queue.fair.pop_any(|_| true)).collect();
        assert_eq!(rest, (0..unwanted).chain([late]).collect::<Vec<_>>());
    }

    #[test]
    fn few_of_many_tenants_come_back_for_a_little_room() {
        let mut queue = Queue::new(ClassOrder::default());
        for tenant in 0..1000 {
            queue.push_many(2, Priority::Normal, tenant);
        }
        let mut none = all_but([0]);
        while queue.fair.pop(|_| true, Some(&mut none), |_| plugin(0)).is_none() && none.budget_spent() {
            none = all_but([0]);
        }
        assert_eq!(queue.fair.classes[1].line.len() + queue.fair.classes[2].line.len(), 0, "all are set aside");
        let mut served = Vec::new();
        for _ in 0..1000 {
            let mut one = LeaseFilter::new(&[PluginLimit { plugin: plugin(0), tasks_max: 1 }]);
            queue.fair.recall(Some(&one), 64);
            let lined_up: usize = queue.fair.classes.iter().map(|class| class.line.len()).sum();
            assert!(lined_up <= 2, "{lined_up} tenants for one place");
            let task = queue.fair.pop(|_| true, Some(&mut one), |_| plugin(0)).unwrap();
            served.push(queue.of[task as usize].1);
            one.took(&plugin(0));
            assert_eq!(queue.fair.pop(|_| true, Some(&mut one), |_| plugin(0)), None);
        }
        served.sort_unstable();
        assert_eq!(served, (0..1000).collect::<Vec<_>>(), "each tenant once before any comes twice");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { class: usize, tenant: u32, plugin: u32 },
        GiveBack(usize),
        Pop { blocked: u32, unwanted: u32 },
        Remove(usize),
        Unblock(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let unwanted = prop_oneof![Just(0), 0..8u32];
        prop_oneof![
            4 => (0..4usize, 0..5u32, 0..3u32)
                .prop_map(|(class, tenant, plugin)| Step::Push { class, tenant, plugin }),
            1 => any::<usize>().prop_map(Step::GiveBack),
            3 => (0..32u32, unwanted).prop_map(|(blocked, unwanted)| Step::Pop { blocked, unwanted }),
            1 => any::<usize>().prop_map(Step::Remove),
            1 => (0..5u32).prop_map(Step::Unblock),
        ]
    }

    proptest! {
        /// Against plain lines: nothing is lost, nothing comes twice, and each line keeps its order.
        #[test]
        fn behaves_like_plain_lines(steps in prop::collection::vec(step(), 1..300)) {
            let mut fair = FairQueue::new(ClassOrder::default());
            let mut lines: BTreeMap<(usize, u32), VecDeque<u32>> = BTreeMap::new();
            // By task number, and under which fence it was taken out; 0 for never.
            let (mut plugins, mut fences) = (Vec::new(), Vec::new());
            let mut out = Vec::new();
            let mut fence = 0;
            for step in steps {
                match step {
                    Step::Push { class, tenant, plugin } => {
                        let task = plugins.len() as u32;
                        plugins.push(plugin);
                        fences.push(0);
                        fair.push_back(Priority::ALL[class], tenant, task);
                        lines.entry((class, tenant)).or_default().push_back(task);
                    }
                    Step::GiveBack(which) if !out.is_empty() => {
                        let ((class, tenant), task): ((usize, u32), u32) = out.swap_remove(which % out.len());
                        let fence = fences[task as usize];
                        fair.give_back(Priority::ALL[class], tenant, plugin(plugins[task as usize]), task, fence);
                        let line = lines.entry((class, tenant)).or_default();
                        let earlier = |other: &&u32| (1..fence).contains(&fences[**other as usize]);
                        let at = line.iter().take_while(earlier).count();
                        line.insert(at, task);
                    }
                    Step::GiveBack(_) => {}
                    Step::Pop { blocked, unwanted } => {
                        // In the model nobody stays aside: everybody who may is brought back first.
                        (0..5).filter(|tenant| blocked & (1 << tenant) == 0).for_each(|tenant| fair.unblock(tenant));
                        let mut wanted =
                            (unwanted > 0).then(|| all_but((0..3).filter(|plugin| unwanted & (1 << plugin) != 0)));
                        let is_wanted = |task: &u32| unwanted & (1 << plugins[*task as usize]) == 0;
                        fair.recall(wanted.as_ref(), 1);
                        let may_start = |tenant: u32| blocked & (1 << tenant) == 0;
                        match fair.pop(may_start, wanted.as_mut(), |task| plugin(plugins[task as usize])) {
                            Some(task) => {
                                prop_assert!(is_wanted(&task));
                                let first = |line: &VecDeque<u32>| line.iter().find(|task| is_wanted(task)) == Some(&task);
                                let line = lines.iter_mut().find(|(_, line)| first(line));
                                let Some((at, line)) = line else {
                                    return Err(TestCaseError::fail(format!("{task} was not first in its line")));
                                };
                                prop_assert!(may_start(at.1));
                                line.retain(|other| *other != task);
                                fence += 1;
                                if fences[task as usize] == 0 {
                                    fences[task as usize] = fence;
                                }
                                out.push((*at, task));
                            }
                            None => prop_assert!(
                                lines.iter().all(|((_, tenant), line)| !line.iter().any(is_wanted) || !may_start(*tenant)),
                                "somebody who may start was left waiting"
                            ),
                        }
                    }
                    Step::Remove(which) => {
                        let all: Vec<_> = lines.iter().flat_map(|(at, line)| line.iter().map(|task| (*at, *task))).collect();
                        if let Some(((class, tenant), task)) = all.get(which % all.len().max(1)).copied() {
                            fair.remove(Priority::ALL[class], tenant, plugin(plugins[task as usize]), task);
                            if let Some(line) = lines.get_mut(&(class, tenant)) {
                                line.retain(|other| *other != task);
                            }
                        }
                    }
                    Step::Unblock(tenant) => fair.unblock(tenant),
                }
                for (number, class) in Priority::ALL.into_iter().enumerate() {
                    let expected: usize =
                        lines.iter().filter(|((at, _), _)| *at == number).map(|(_, line)| line.len()).sum();
                    prop_assert_eq!(fair.len(class), expected);
                }
            }
        }

        /// While two tenants both wait, what they get differs from the ratio of their weights by one task each.
        #[test]
        fn fair_within_one_task_each(
            weights in prop::collection::vec(1..20u32, 2..6),
            joins in prop::collection::vec(0..200usize, 6),
            window in (0..300usize, 1..300usize),
        ) {
            let mut queue = Queue::new(ClassOrder::default());
            for (tenant, weight) in weights.iter().enumerate() {
                queue.fair.set_weight(tenant as u32, *weight);
            }
            let mut served = Vec::new();
            for step in 0..600 {
                for (tenant, join) in joins.iter().enumerate().take(weights.len()) {
                    if *join == step || (tenant == 0 && step == 0) {
                        queue.push_many(600, Priority::Normal, tenant as u32);
                    }
                }
                served.extend(queue.served(1).into_iter().map(|(_, tenant)| tenant as usize));
            }
            let from = window.0.max(*joins.iter().max().unwrap_or(&0));
            let to = (from + window.1).min(600);
            let got = |tenant: usize| served[from..to].iter().filter(|other| **other == tenant).count() as f64;
            for one in 0..weights.len() {
                for other in 0..one {
                    let (w1, w2) = (f64::from(weights[one]), f64::from(weights[other]));
                    let difference = (got(one) / w1 - got(other) / w2).abs();
                    // The theorem's bound, and the rounding of tags.
                    prop_assert!(difference <= 1.0 / w1 + 1.0 / w2 + 0.01, "{difference}: {weights:?} {from}..{to}");
                }
            }
        }

        /// A plugin that is wanted now and then, a few tasks at once, while others are always wanted: of the tenants that wait
        /// for it only, none gets less than half of what another gets, and nothing else waits for it.
        #[test]
        fn tenants_share_a_plugin_that_is_seldom_wanted(
            rounds in prop::collection::vec((0..4usize, 0..3usize), 1..8),
            tenants in 2..6u32,
        ) {
            let mut queue = Queue::new(ClassOrder::default());
            for tenant in 0..tenants {
                // Each task of tenant 0 is followed by one of a plugin that everybody wants.
                queue.push_many(1000, Priority::Normal, tenant);
            }
            let other = queue.of.len() as u32;
            queue.push_many(1000, Priority::Normal, 0);
            let plugin_of = |task: u32| plugin(u32::from(task >= other));
            let mut got = vec![0i64; tenants as usize];
            // The same again and again finds who is always the last.
            for (room, others) in rounds.into_iter().cycle().take(500) {
                let mut wanted = LeaseFilter::new(&[PluginLimit { plugin: plugin(0), tasks_max: room }]);
                queue.fair.recall(Some(&wanted), room + others);
                let mut of_the_plugin = 0;
                for served in 0..room + others {
                    // Only going past much is a reason to stop.
                    let Some(task) = queue.fair.pop(|_| true, Some(&mut wanted), plugin_of) else {
                        prop_assert!(wanted.budget_spent(), "{served} of {room} + {others}");
                        break;
                    };
                    wanted.took(&plugin_of(task));
                    if task < other {
                        of_the_plugin += 1;
                        got[queue.of[task as usize].1 as usize] += 1;
                    }
                }
                prop_assert!(of_the_plugin <= room);
            }
            let of_the_rest = &got[1..];
            let (least, most) = (of_the_rest.iter().min().unwrap(), of_the_rest.iter().max().unwrap());
            prop_assert!(*most <= 2 * least + 4, "{got:?}");
        }

        /// The same between classes: a class gets its share of a plugin that is seldom wanted, however much is done besides.
        #[test]
        fn no_class_starves_for_a_plugin_that_is_seldom_wanted(others in prop::collection::vec(0..100usize, 85..250)) {
            let mut queue = Queue::new(ClassOrder::default());
            for class in [Priority::High, Priority::Low] {
                queue.push_many(300, class, 0);
            }
            let other = queue.of.len() as u32;
            queue.push_many(others.iter().sum::<usize>() + 1, Priority::Normal, 1);
            let plugin_of = |task: u32| plugin(u32::from(task >= other));
            let mut got = BTreeMap::new();
            for others in &others {
                let mut wanted = LeaseFilter::new(&[PluginLimit { plugin: plugin(0), tasks_max: 1 }]);
                queue.fair.recall(Some(&wanted), others + 1);
                for _ in 0..others + 1 {
                    let Some(task) = queue.fair.pop(|_| true, Some(&mut wanted), plugin_of) else { break };
                    wanted.took(&plugin_of(task));
                    if task < other {
                        *got.entry(queue.of[task as usize].0).or_insert(0usize) += 1;
                    }
                }
            }
            let (high, low) = (got.get(&Priority::High), got.get(&Priority::Low));
            let (high, low) = (high.copied().unwrap_or_default(), low.copied().unwrap_or_default());
            // 16 : 1, and a task each.
            prop_assert!(low + 1 >= (high + low) / 17 && low <= (high + low) / 8 + 2, "{high} {low}");
        }

        /// Whoever else comes and goes, the first task of a class that has work waits for a bounded number of others.
        #[test]
        fn no_class_starves(pushes in prop::collection::vec((0..4usize, 0..8u32, 1..40usize), 1..60)) {
            let mut queue = Queue::new(ClassOrder::default());
            let mut waited = [0usize; 4];
            for (class, tenant, count) in pushes {
                queue.push_many(count, Priority::ALL[class], tenant);
                for (served, _) in queue.served(20) {
                    for (number, other) in Priority::ALL.into_iter().enumerate() {
                        if other == served || queue.fair.len(other) == 0 {
                            waited[number] = 0;
                        } else {
                            waited[number] += 1;
                            let weight = [64usize, 16, 4, 1][number];
                            prop_assert!(waited[number] <= 85usize.div_ceil(weight) + 3, "{other:?} {waited:?}");
                        }
                    }
                }
            }
        }
    }
}
