//! Tasks that stand before their lines: those that were given back, and those that a worker did not want and others went
//! past. Kept by plugin, so that the next request for the plugin finds the first of them at once, and nobody goes past the
//! same task twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use palisade_core::{ArtifactHash, PluginLimit};

type Table<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What a worker wants that does not take every task.
#[derive(Debug)]
pub(crate) struct LeaseFilter {
    /// How many more tasks of these plugins.
    room: Table<ArtifactHash, usize>,
    /// How many more tasks are gone past for it.
    patience: usize,
}

/// Tasks gone past for one request: some tens of microseconds. The next request goes on from there.
pub(crate) const PATIENCE: usize = 256;

impl LeaseFilter {
    pub(crate) fn new(limits: &[PluginLimit]) -> LeaseFilter {
        let mut room = Table::with_capacity_and_hasher(limits.len(), Default::default());
        for limit in limits {
            let known = room.entry(limit.plugin).or_insert(limit.tasks_max);
            *known = limit.tasks_max.min(*known);
        }
        LeaseFilter { room, patience: PATIENCE }
    }

    pub(crate) fn room(&self, plugin: &ArtifactHash) -> usize {
        self.room.get(plugin).copied().unwrap_or(usize::MAX)
    }

    pub(crate) fn wants(&self, plugin: &ArtifactHash) -> bool {
        self.room(plugin) > 0
    }

    /// It got a task.
    pub(crate) fn took(&mut self, plugin: &ArtifactHash) {
        if let Some(room) = self.room.get_mut(plugin) {
            *room = room.saturating_sub(1);
        }
    }

    /// Goes past a task, unless it went past enough of them.
    pub(crate) fn goes_past(&mut self) -> bool {
        let goes = self.patience > 0;
        self.patience = self.patience.saturating_sub(1);
        goes
    }

    /// Whether there may be more for it than it got.
    pub(crate) fn budget_spent(&self) -> bool {
        self.patience == 0
    }
}

/// By number of the class and tenant.
type FlowId = (usize, u32);

#[derive(Debug, Default)]
pub(crate) struct Skipped {
    /// The tasks of each flow, by plugin, in order. Nothing in here is empty.
    flows: Table<FlowId, BTreeMap<ArtifactHash, BTreeMap<u64, u32>>>,
    /// By task number: its place in the order. 0 for a task that is not here.
    orders: Vec<u64>,
    /// Tasks gone past so far.
    passed: u64,
    /// Flows of which nobody wants anything now, by each plugin they have tasks of, and class: start tag and tenant.
    stopped: BTreeMap<ArtifactHash, [BTreeSet<(u64, u32)>; 4]>,
    /// Tags of flows from when they were stopped, until they had a task: if others were faster, they are stopped with the
    /// same tag again.
    returned: Table<FlowId, u64>,
}

/// Orders of tasks gone past begin here; those of tasks given back, which are their first fences, are smaller.
const PASSED: u64 = 1 << 63;

impl Skipped {
    /// Takes a task that was given back. Such tasks stand in the order of these fences, before all others of their flow.
    pub(crate) fn give_back(&mut self, flow: FlowId, plugin: ArtifactHash, task: u32, fence: u64) {
        debug_assert!((1..PASSED).contains(&fence));
        self.insert(flow, plugin, task, fence);
    }

    /// Takes the first task of its line, which others go past.
    pub(crate) fn pass(&mut self, flow: FlowId, plugin: ArtifactHash, task: u32) {
        self.passed += 1;
        self.insert(flow, plugin, task, PASSED | self.passed);
    }

    pub(crate) fn contains(&self, task: u32) -> bool {
        self.orders.get(task as usize).is_some_and(|order| *order != 0)
    }

    /// Whether a task of this flow is here.
    pub(crate) fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    /// Takes the first task of a flow out whose plugin is wanted.
    pub(crate) fn take(&mut self, flow: FlowId, wants: impl Fn(&ArtifactHash) -> bool) -> Option<u32> {
        let lines = self.flows.get(&flow)?;
        let firsts = lines.iter().filter(|(plugin, _)| wants(plugin));
        let firsts = firsts.filter_map(|(plugin, line)| Some((line.first_key_value()?, plugin)));
        let ((_, task), plugin) = firsts.min()?;
        let (task, plugin) = (*task, *plugin);
        self.remove(flow, &plugin, task);
        Some(task)
    }

    pub(crate) fn remove(&mut self, flow: FlowId, plugin: &ArtifactHash, task: u32) {
        let order = std::mem::take(&mut self.orders[task as usize]);
        let Some(lines) = self.flows.get_mut(&flow) else { return };
        if let Some(line) = lines.get_mut(plugin) {
            line.remove(&order);
            if line.is_empty() {
                lines.remove(plugin);
            }
        }
        if lines.is_empty() {
            self.flows.remove(&flow);
        }
    }

    /// Notes that nobody wants anything of a flow. Gives its tag, which stays as it is until [`Skipped::resume`].
    pub(crate) fn stop(&mut self, flow: FlowId, tag: u64) -> u64 {
        let (class, tenant) = flow;
        let tag = self.returned.remove(&flow).unwrap_or(tag);
        for plugin in self.flows.get(&flow).into_iter().flat_map(BTreeMap::keys) {
            self.stopped.entry(*plugin).or_default()[class].insert((tag, tenant));
        }
        tag
    }

    /// Takes a stopped flow out.
    pub(crate) fn resume(&mut self, flow: FlowId, tag: u64) {
        let (class, tenant) = flow;
        self.returned.insert(flow, tag);
        for plugin in self.flows.get(&flow).into_iter().flat_map(BTreeMap::keys) {
            if let Some(classes) = self.stopped.get_mut(plugin) {
                classes[class].remove(&(tag, tenant));
                if classes.iter().all(BTreeSet::is_empty) {
                    self.stopped.remove(plugin);
                }
            }
        }
    }

    pub(crate) fn has_stopped(&self) -> bool {
        !self.stopped.is_empty()
    }

    /// Stopped flows that may have a task for a worker with so much room for each plugin: no more than there is room for,
    /// and of each class those that wait longest. One may come twice.
    pub(crate) fn due(&self, room: impl Fn(&ArtifactHash) -> usize) -> Vec<FlowId> {
        let mut due = Vec::new();
        for (plugin, classes) in &self.stopped {
            let room = room(plugin);
            for (class, flows) in classes.iter().enumerate() {
                due.extend(flows.iter().take(room).map(|(_, tenant)| (class, *tenant)));
            }
        }
        due
    }

    /// A flow had a task, or has none.
    pub(crate) fn served(&mut self, flow: FlowId) {
        self.returned.remove(&flow);
    }

    fn insert(&mut self, flow: FlowId, plugin: ArtifactHash, task: u32, order: u64) {
        if self.orders.len() <= task as usize {
            self.orders.resize(task as usize + 1, 0);
        }
        self.orders[task as usize] = order;
        self.flows.entry(flow).or_default().entry(plugin).or_default().insert(order, task);
    }
}
