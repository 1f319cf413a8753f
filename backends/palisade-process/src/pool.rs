//! Instances made ahead of need: parked in their jails, each for a single use.
//!
//! They ran no guest code: making them ahead is nothing a guest or its policy could notice. A thread makes them for every
//! module that was used before: one that is used once pays for none.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::jail::Jail;
use crate::process::Process;

/// Parked instances of one prepared module.
const PARKED_MAX: usize = 2;
/// Parked instances of one sandbox: each is a process of about 1 MiB.
const PARKED_ALL_MAX: usize = 32;

/// The parked instances of one prepared module. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Pool {
    parked: Mutex<Vec<Process>>,
    used: AtomicBool,
    jail: Arc<Jail>,
    /// Those of the whole sandbox.
    all: Arc<AtomicUsize>,
}

impl Pool {
    pub(crate) fn new(jail: Arc<Jail>) -> Pool {
        let all = Arc::clone(&jail.shared.parked);
        Pool { parked: Mutex::default(), used: AtomicBool::new(false), jail, all }
    }

    /// Takes note of a use, and says whether it is not the first.
    pub(crate) fn used_before(&self) -> bool {
        self.used.swap(true, Ordering::Relaxed)
    }

    /// A parked instance, if there is one that is alive.
    pub(crate) fn take(&self) -> Option<Process> {
        loop {
            let process = self.parked.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            self.all.fetch_sub(1, Ordering::Relaxed);
            // Somebody else may have killed it: what is dead is dropped, and not used.
            let Some(pidfd) = &process.pidfd else { continue };
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], Some(&at_once)) == Ok(0) {
                return Some(process);
            }
        }
    }

    /// Process ids, those that are taken last first.
    #[cfg(test)]
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|process| process.pid).collect()
    }

    /// Parks instances as long as there is room.
    pub(crate) fn fill(&self) {
        let room = |n: usize| (n < PARKED_ALL_MAX).then_some(n + 1);
        while self.parked.lock().unwrap_or_else(PoisonError::into_inner).len() < PARKED_MAX
            && self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
        {
            match Process::create(&self.jail) {
                Ok(process) => self.parked.lock().unwrap_or_else(PoisonError::into_inner).push(process),
                // Whoever needs one next makes it, and hears why that fails.
                Err(_) => {
                    self.all.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let parked = std::mem::take(self.parked.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.all.fetch_sub(parked.len(), Ordering::Relaxed);
    }
}

/// Has instances parked in `pool`, soon.
pub(crate) fn fill_later(pool: Weak<Pool>) {
    static FILLER: OnceLock<Mutex<Sender<Weak<Pool>>>> = OnceLock::new();
    let filler = FILLER.get_or_init(|| {
        let (sender, all) = channel::<Weak<Pool>>();
        let fill = |pool: Weak<Pool>| {
            if let Some(pool) = pool.upgrade() {
                pool.fill();
            }
        };
        let _ =
            std::thread::Builder::new().name("palisade-pool".to_owned()).spawn(move || all.into_iter().for_each(fill));
        Mutex::new(sender)
    });
    // Without the thread nothing is parked, and instances are made when they are needed.
    let _ = filler.lock().unwrap_or_else(PoisonError::into_inner).send(pool);
}
