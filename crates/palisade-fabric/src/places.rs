//! Who holds the places of workers for long.
//!
//! A place that frees itself soon may be anybody's: the fair queue sees to the next task. One that a task may hold for ever is
//! another matter, so of those a tenant gets only as many as are left (a dynamic threshold, as Choudhury and Hahne have it for
//! buffers, 1998): one greedy tenant holds a half of the places, several hold less each, and some are always left.

use std::collections::HashMap;
use std::time::Duration;

use palisade_core::{Task, WorkerId};

/// A task that may take longer than this holds its place for long.
const LONG: Duration = Duration::from_secs(60);

/// Most workers remembered that run nothing.
const IDLE_MAX: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Places {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    id: WorkerId,
    /// How many tasks it runs at once.
    places: usize,
    /// How many it runs that may take long: all, and by tenant.
    long: usize,
    by_tenant: HashMap<u32, usize, foldhash::fast::RandomState>,
}

/// A place that is held for long, of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held(u32);

/// Whether a task may hold its place for long.
pub(crate) fn is_long(task: &Task) -> bool {
    task.policy.quota.wall_time.is_none_or(|time| time > LONG)
}

impl Places {
    /// The number of a worker with so many places; `None` for one that does not say.
    pub(crate) fn worker(&mut self, id: WorkerId, places: usize) -> Option<u32> {
        if places == 0 {
            return None;
        }
        if let Some(at) = self.workers.iter().position(|worker| worker.id == id) {
            self.workers[at].places = places;
            return Some(at as u32);
        }
        let worker = Worker { id, places, long: 0, by_tenant: HashMap::default() };
        // The numbers of those that hold something stay.
        let idle = self.workers.len() >= IDLE_MAX;
        match self.workers.iter().position(|worker| worker.long == 0).filter(|_| idle) {
            Some(at) => {
                self.workers[at] = worker;
                Some(at as u32)
            }
            None => {
                self.workers.push(worker);
                Some((self.workers.len() - 1) as u32)
            }
        }
    }

    /// Whether a tenant may start a task there that takes long.
    pub(crate) fn has_room(&self, worker: u32, tenant: u32) -> bool {
        let worker = &self.workers[worker as usize];
        if worker.long == 0 {
            return true;
        }
        let held = worker.by_tenant.get(&tenant).copied().unwrap_or_default();
        held < worker.places.saturating_sub(worker.long)
    }

    pub(crate) fn hold(&mut self, worker: u32, tenant: u32) -> Held {
        let of = &mut self.workers[worker as usize];
        of.long += 1;
        *of.by_tenant.entry(tenant).or_default() += 1;
        Held(worker)
    }

    pub(crate) fn give_back(&mut self, held: Held, tenant: u32) {
        let of = &mut self.workers[held.0 as usize];
        of.long -= 1;
        if let Some(count) = of.by_tenant.get_mut(&tenant) {
            *count -= 1;
            if *count == 0 {
                of.by_tenant.remove(&tenant);
            }
        }
    }
}
