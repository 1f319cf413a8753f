//! Keeps a library from computing between calls.
//!
//! A kept instance that returned has nothing to do until its next call, but its code may think otherwise: a thread of its own,
//! or a return that was only written and not made. Stopping it right after each call would cost every warm call two signals,
//! so it is stopped when it has rested for a moment. What it uses in that moment counts for its next call.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

/// How long an instance may rest before it is stopped; at most twice this, for the thread that looks wakes this often.
const MOMENT: Duration = Duration::from_millis(1);

/// One instance: the number of its rest, even while a call runs.
#[derive(Debug)]
pub(crate) struct Rest {
    pidfd: OwnedFd,
    number: AtomicU64,
    /// Whether it was stopped. Locked while a signal is sent, so that stopping and going on do not cross.
    stopped: Mutex<bool>,
}

impl Rest {
    /// A call of its first begins.
    pub(crate) fn new(pidfd: OwnedFd) -> Arc<Rest> {
        Arc::new(Rest { pidfd, number: AtomicU64::new(0), stopped: Mutex::new(false) })
    }

    /// Its call has ended: it is stopped soon, unless the next begins.
    pub(crate) fn begin(self: &Arc<Self>) {
        self.number.fetch_add(1, Ordering::SeqCst);
        Watch::get().add(self);
    }

    /// A call begins.
    pub(crate) fn end(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *stopped) {
            // The only error is that it has ended, which its call will find out.
            let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::CONT);
        }
    }

    fn is_in(&self, number: u64) -> bool {
        self.number.load(Ordering::SeqCst) == number
    }

    /// Stops it, if it still rests.
    fn stop(&self, number: u64) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_in(number) {
            *stopped = pidfd_send_signal(self.pidfd.as_fd(), Signal::STOP).is_ok();
        }
    }
}

/// Those that rest and are not stopped yet, and the thread that looks after them.
struct Watch {
    resting: Mutex<Vec<(Arc<Rest>, u64)>>,
    some: Condvar,
    is_served: AtomicBool,
}

impl Watch {
    fn get() -> &'static Watch {
        static WATCH: OnceLock<&'static Watch> = OnceLock::new();
        WATCH.get_or_init(|| {
            let watch: &'static Watch = Box::leak(Box::new(Watch {
                resting: Mutex::default(),
                some: Condvar::new(),
                is_served: AtomicBool::new(false),
            }));
            let thread = std::thread::Builder::new().name("palisade-rest".to_owned()).spawn(move || watch.serve());
            watch.is_served.store(thread.is_ok(), Ordering::SeqCst);
            watch
        })
    }

    fn add(&self, rest: &Arc<Rest>) {
        let number = rest.number.load(Ordering::SeqCst);
        if !self.is_served.load(Ordering::SeqCst) {
            // The system gave no thread: it is stopped at once.
            return rest.stop(number);
        }
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match resting.iter_mut().find(|(known, _)| Arc::ptr_eq(known, rest)) {
            // It rested a moment ago as well, and the thread has not looked since.
            Some((_, known)) => *known = number,
            None => {
                resting.push((Arc::clone(rest), number));
                if resting.len() == 1 {
                    self.some.notify_one();
                }
            }
        }
    }

    fn serve(&self) {
        let mut before: Vec<(Arc<Rest>, u64)> = Vec::new();
        loop {
            let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
            while before.is_empty() && resting.is_empty() {
                resting = self.some.wait(resting).unwrap_or_else(PoisonError::into_inner);
            }
            let fresh = std::mem::take(&mut *resting);
            drop(resting);
            // Those that were here a moment ago have rested for as long.
            before.drain(..).for_each(|(rest, number)| rest.stop(number));
            before = fresh;
            // The moment itself; nobody rings while it lasts.
            std::thread::park_timeout(MOMENT);
        }
    }
}
