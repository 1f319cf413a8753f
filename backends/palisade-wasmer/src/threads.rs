//! The threads guests run on: made when needed, kept for a while, never more than a bound.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use palisade_core::{Error, ErrorKind, Result};

/// How long an idle thread is kept.
const IDLE: Duration = Duration::from_secs(5);
/// How long an idle thread looks for work before it sleeps: waking it costs more than a short call takes.
const SPIN: Duration = Duration::from_micros(20);

/// Work for a thread. It calls its argument when it is all but done: from then on the thread can be given more, so that
/// whoever hears of the end first finds a thread that is free.
type Job = Box<dyn FnOnce(&dyn Fn()) + Send>;

/// Runs jobs, each on a thread of its own for as long as it takes.
pub(crate) struct Threads {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").field("alive", &self.shared.alive).finish_non_exhaustive()
    }
}

struct Shared {
    idle: Mutex<Vec<Arc<Worker>>>,
    alive: AtomicUsize,
    max: usize,
    stop: AtomicBool,
    spin: bool,
}

struct Worker {
    job: Mutex<Option<Job>>,
    given: AtomicBool,
    asleep: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Threads {
    pub(crate) fn new(max: usize) -> Self {
        // On one core, looking for work keeps others from making it.
        let spin = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        Threads {
            shared: Arc::new(Shared {
                idle: Mutex::default(),
                alive: AtomicUsize::new(0),
                max,
                stop: AtomicBool::new(false),
                spin,
            }),
        }
    }

    /// Threads there are.
    #[cfg(test)]
    fn alive(&self) -> usize {
        self.shared.alive.load(Ordering::SeqCst)
    }

    /// Runs `job`.
    pub(crate) fn run(&self, job: Job) -> Result<()> {
        let idle = self.shared.lock().pop();
        if let Some(worker) = idle {
            worker.give(job);
            return Ok(());
        }
        if self.shared.alive.fetch_add(1, Ordering::SeqCst) >= self.shared.max {
            self.shared.alive.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::new(
                ErrorKind::Exhausted,
                "call",
                format!("all {} threads of this sandbox are in use", self.shared.max),
            )
            .with_help("let calls end, or open the backend with a larger `instances_max`"));
        }
        let worker = Arc::new(Worker {
            job: Mutex::new(Some(job)),
            given: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name("palisade-guest".into()).spawn(move || shared.work(&worker));
        spawned.map(drop).map_err(|error| {
            self.shared.alive.fetch_sub(1, Ordering::SeqCst);
            Error::new(ErrorKind::Exhausted, "call", "no thread for the guest").with_source(error)
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let idle = std::mem::take(&mut *self.shared.lock());
        idle.iter().for_each(|worker| worker.wake());
    }
}

impl Worker {
    fn give(&self, job: Job) {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.given.store(true, Ordering::SeqCst);
        // Either this sees that the thread sleeps, or the thread sees the job.
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Worker>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does all its life.
    fn work(self: Arc<Self>, worker: &Arc<Worker>) {
        let _ = worker.thread.set(std::thread::current());
        loop {
            if worker.given.swap(false, Ordering::SeqCst) {
                let job = worker.job.lock().unwrap_or_else(PoisonError::into_inner).take();
                let free = std::cell::Cell::new(false);
                let set_free = || {
                    if !free.replace(true) {
                        self.lock().push(Arc::clone(worker));
                    }
                };
                // A panic ends the job, not the thread: it may be on the list by now, with the next job.
                let ended = job.map(|job| catch_unwind(AssertUnwindSafe(|| job(&set_free))));
                set_free();
                drop(ended);
            }
            if !self.wait_for_job(worker) {
                break;
            }
        }
        // The engine keeps this thread's last stack for other threads, however large; they would get a larger one than
        // their quota says.
        crate::stack::forget();
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until there is a job; `false` when the thread is to end.
    fn wait_for_job(&self, worker: &Arc<Worker>) -> bool {
        let idle_since = Instant::now();
        if self.spin {
            while idle_since.elapsed() < SPIN {
                if worker.given.load(Ordering::SeqCst) {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        loop {
            worker.asleep.store(true, Ordering::SeqCst);
            let left = IDLE.saturating_sub(idle_since.elapsed());
            let stop = self.stop.load(Ordering::SeqCst);
            if !worker.given.load(Ordering::SeqCst) && !left.is_zero() && !stop {
                std::thread::park_timeout(left);
            }
            worker.asleep.store(false, Ordering::SeqCst);
            if worker.given.load(Ordering::SeqCst) {
                return true;
            }
            if left.is_zero() || self.stop.load(Ordering::SeqCst) {
                // Whoever took this worker off the list is about to give it a job.
                let mut idle = self.lock();
                match idle.iter().position(|other| Arc::ptr_eq(other, worker)) {
                    Some(index) => {
                        idle.swap_remove(index);
                        return false;
                    }
                    None if self.stop.load(Ordering::SeqCst) && !worker.given.load(Ordering::SeqCst) => return false,
                    None => {
                        drop(idle);
                        std::thread::yield_now();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn threads_are_reused_and_bounded() {
        let threads = Threads::new(2);
        let (done, ended) = channel();
        for _ in 0..1000 {
            let done = done.clone();
            let job = move |set_free: &dyn Fn()| {
                set_free();
                done.send(()).unwrap();
            };
            threads.run(Box::new(job)).unwrap();
            ended.recv().unwrap();
        }
        assert_eq!(threads.alive(), 1);
        let gates: Vec<_> = (0..2)
            .map(|_| {
                let (open, closed) = channel::<()>();
                threads.run(Box::new(move |_| assert!(closed.recv().is_err()))).unwrap();
                open
            })
            .collect();
        let refused = threads.run(Box::new(|_| ())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted);
        drop(gates);
    }

    #[test]
    fn a_panic_ends_the_job_and_not_the_thread() {
        let threads = Threads::new(1);
        let (done, ended) = channel();
        for set_free_first in [true, false, true] {
            threads
                .run(Box::new(move |set_free| {
                    if set_free_first {
                        set_free();
                    }
                    panic!("told to");
                }))
                .unwrap();
            while threads.shared.lock().is_empty() {
                std::thread::yield_now();
            }
            let done = done.clone();
            threads.run(Box::new(move |_| done.send(()).unwrap())).unwrap();
            ended.recv_timeout(Duration::from_secs(60)).expect("the next job runs");
            while threads.shared.lock().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(threads.alive(), 1);
        }
    }

    #[test]
    fn dropping_the_owner_ends_idle_threads() {
        let threads = Threads::new(4);
        let shared = Arc::clone(&threads.shared);
        threads.run(Box::new(|_| ())).unwrap();
        while threads.shared.lock().is_empty() {
            std::thread::yield_now();
        }
        drop(threads);
        // Bounded by the test runner's own limit.
        while shared.alive.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}
