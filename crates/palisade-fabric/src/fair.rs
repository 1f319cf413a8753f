//! Which task comes next: priority classes, fair between tenants, first come first served.
//!
//! Both levels are start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each flow has a start tag, the smallest
//! is served, the flow's tag then grows by 1/weight, and a flow that comes back from idling starts at the tag served last,
//! so nobody saves up credit. A class with weight w of W in all is served at least once in every ⌈W/w⌉ tasks while it
//! has any, and two tenants that both wait get tasks in the ratio of their weights, to within one task each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use palisade_core::Priority;
use serde::{Deserialize, Serialize};

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
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Idle,
    InLine,
    /// Taken out of line because its tenant may not start tasks; [`FairQueue::unblock`] brings it back.
    Blocked,
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

    /// Puts a task in front of its tenant's others.
    pub(crate) fn push_front(&mut self, class: Priority, tenant: u32, task: u32) {
        let head = self.enter(class, tenant, task).head;
        self.links[task as usize] = Link { previous: NONE, next: head };
        match head {
            NONE => self.flow(class, tenant).tail = task,
            _ => self.links[head as usize].previous = task,
        }
        self.flow(class, tenant).head = task;
    }

    /// Takes a task out that is in the queue.
    pub(crate) fn remove(&mut self, class: Priority, tenant: u32, task: u32) {
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

    /// Takes the next task out. Tenants for which `may_start` says no are set aside until they are unblocked.
    pub(crate) fn pop(&mut self, mut may_start: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut tried = [false; 4];
        loop {
            let waiting = (0..4).filter(|number| !tried[*number] && !self.classes[*number].line.is_empty());
            // Of equal tags, the more urgent class.
            let number = match self.order {
                ClassOrder::Weighted(_) => waiting.min_by_key(|number| (self.classes[*number].tag, *number)),
                ClassOrder::Strict => waiting.min(),
            }?;
            tried[number] = true;
            if let Some(task) = self.pop_of(number, &mut may_start) {
                return Some(task);
            }
        }
    }

    fn pop_of(&mut self, number: usize, may_start: &mut impl FnMut(u32) -> bool) -> Option<u32> {
        let class = &mut self.classes[number];
        while let Some(mut first) = class.line.peek_mut() {
            let Reverse((tag, _, tenant)) = *first;
            let flow = &mut class.flows[tenant as usize];
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
                *first = Reverse((flow.tag, self.ticket, tenant));
            }
            class.virtual_time = tag;
            class.len -= 1;
            self.virtual_time = class.tag;
            if let ClassOrder::Weighted(weights) = self.order {
                class.tag += SCALE / u64::from(weights[number]);
            }
            return Some(task);
        }
        None
    }

    /// Brings a tenant back that was set aside.
    pub(crate) fn unblock(&mut self, tenant: u32) {
        for number in 0..4 {
            let flow = self.classes[number].flows.get(tenant as usize);
            if flow.is_some_and(|flow| flow.place == Place::Blocked) {
                self.line_up(number, tenant);
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
            flows.resize(tenant as usize + 1, Flow { head: NONE, tail: NONE, tag: 0, place: Place::Idle });
        }
        if flows[tenant as usize].place == Place::Idle {
            self.line_up(number, tenant);
        }
        self.classes[number].len += 1;
        self.classes[number].flows[tenant as usize]
    }

    fn line_up(&mut self, number: usize, tenant: u32) {
        let class = &mut self.classes[number];
        if class.line.is_empty() {
            class.tag = class.tag.max(self.virtual_time);
        }
        let flow = &mut class.flows[tenant as usize];
        flow.tag = flow.tag.max(class.virtual_time);
        flow.place = Place::InLine;
        self.ticket += 1;
        class.line.push(Reverse((flow.tag, self.ticket, tenant)));
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

    use proptest::prelude::*;

    use super::*;

    /// A queue whose tasks remember where they came from.
    struct Queue {
        fair: FairQueue,
        of: Vec<(Priority, u32)>,
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
            (0..count).map_while(|_| self.fair.pop(|_| true)).map(|task| self.of[task as usize]).collect()
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
        assert_eq!(queue.fair.pop(|tenant| tenant != 0), Some(other));
        assert_eq!(queue.fair.pop(|_| true), None, "it stays aside until it is unblocked");
        queue.push(Priority::High, 0);
        assert_eq!(queue.fair.pop(|_| true), None);
        queue.fair.unblock(0);
        assert_eq!((queue.fair.pop(|_| true), queue.fair.pop(|_| true)), (Some(first), Some(second)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { class: usize, tenant: u32, front: bool },
        Pop { blocked: u32 },
        Remove(usize),
        Unblock(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4usize, 0..5u32, prop::bool::weighted(0.2))
                .prop_map(|(class, tenant, front)| Step::Push { class, tenant, front }),
            3 => (0..32u32).prop_map(|blocked| Step::Pop { blocked }),
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
            let mut next = 0u32;
            for step in steps {
                match step {
                    Step::Push { class, tenant, front } => {
                        let line = lines.entry((class, tenant)).or_default();
                        if front {
                            fair.push_front(Priority::ALL[class], tenant, next);
                            line.push_front(next);
                        } else {
                            fair.push_back(Priority::ALL[class], tenant, next);
                            line.push_back(next);
                        }
                        next += 1;
                    }
                    Step::Pop { blocked } => {
                        // In the model nobody stays aside: everybody who may is unblocked first.
                        (0..5).filter(|tenant| blocked & (1 << tenant) == 0).for_each(|tenant| fair.unblock(tenant));
                        match fair.pop(|tenant| blocked & (1 << tenant) == 0) {
                            Some(task) => {
                                let line = lines.iter_mut().find(|(_, line)| line.front() == Some(&task));
                                let Some(((_, tenant), line)) = line else {
                                    return Err(TestCaseError::fail(format!("{task} was not first in its line")));
                                };
                                prop_assert!(blocked & (1 << tenant) == 0);
                                line.pop_front();
                            }
                            None => prop_assert!(
                                lines.iter().all(|((_, tenant), line)| line.is_empty() || blocked & (1 << tenant) != 0),
                                "somebody who may start was left waiting"
                            ),
                        }
                    }
                    Step::Remove(which) => {
                        let all: Vec<_> = lines.iter().flat_map(|(at, line)| line.iter().map(|task| (*at, *task))).collect();
                        if let Some(((class, tenant), task)) = all.get(which % all.len().max(1)).copied() {
                            fair.remove(Priority::ALL[class], tenant, task);
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
