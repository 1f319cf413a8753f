//! The one thread that makes guests yield and wakes those that wait.
//!
//! While a guest is on a CPU, the thread bumps the engines' epochs once per [`TIME_SLICE`]; each running guest then checks
//! its limits and gives its executor a turn. While none is, the thread sleeps until the next timer, or for good.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use wasmtime::{Engine, EngineWeak};

/// How long a guest runs before it checks its limits and yields.
pub(crate) const TIME_SLICE: Duration = Duration::from_millis(1);

/// Slices without any running guest before the thread stops ticking. Starting it again costs a system call, which a
/// host that runs short calls one after the other should not pay each time.
const IDLE_SLICES: u32 = 50;

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Guests on a CPU right now, counted by each thread in a place of its own: a count that all write to moves from one
    /// core's cache to the other's with each guest.
    running: [CachePadded<AtomicUsize>; COUNTS],
    /// The thread does not tick; whoever starts a guest must wake it.
    parked: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// Places to count in. Threads beyond share them.
const COUNTS: usize = 16;

/// Where this thread counts.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % COUNTS;
    }
    PLACE.with(|place| *place)
}

#[derive(Default)]
struct State {
    engines: Vec<EngineWeak>,
    timers: BTreeMap<(Instant, u64), Waker>,
    next_timer: u64,
    stop: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("timers", &self.timers.len()).field("stop", &self.stop).finish()
    }
}

impl Watchdog {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Watchdog> {
        let shared = Arc::new(Shared {
            running: Default::default(),
            parked: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("palisade-watchdog".into()).spawn(move || theirs.run())?;
        Ok(Watchdog { shared, thread: Some(thread) })
    }

    /// Lets the guests of `engine` be interrupted.
    pub(crate) fn watch(&self, engine: &Engine) {
        let mut state = self.shared.lock();
        state.engines.retain(|engine| engine.upgrade().is_some());
        state.engines.push(engine.weak());
    }

    /// To be held while a guest is on a CPU.
    pub(crate) fn running(&self) -> Running<'_> {
        let count = &*self.shared.running[place()];
        count.fetch_add(1, Ordering::SeqCst);
        // Either this sees `parked`, or the thread sees the count: both are sequentially consistent.
        if self.shared.parked.load(Ordering::SeqCst) {
            let _state = self.shared.lock();
            self.shared.changed.notify_one();
        }
        Running(count)
    }

    /// Waits until `at`.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep<'_> {
        Sleep { shared: &self.shared, at, timer: None }
    }

    /// Whether the thread has stopped ticking.
    #[cfg(test)]
    fn is_parked(&self) -> bool {
        self.shared.parked.load(Ordering::SeqCst)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        let Some(thread) = self.thread.take() else { return };
        // A waker run by the thread may hold the last reference to its owner; a thread cannot join itself.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    // State is consistent after every statement; a waker's panic happens outside the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guest is on a CPU.
    fn runs(&self) -> bool {
        self.running.iter().any(|count| count.load(Ordering::SeqCst) > 0)
    }

    fn run(&self) {
        let mut idle_slices = 0;
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            let later = state.timers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.timers, later);
            if !due.is_empty() {
                drop(state);
                due.into_values().for_each(Waker::wake);
                state = self.lock();
                continue;
            }
            if self.runs() {
                idle_slices = 0;
                state.engines.iter().filter_map(EngineWeak::upgrade).for_each(|engine| engine.increment_epoch());
            } else {
                idle_slices += 1;
            }
            let mut until = state.timers.first_key_value().map(|((at, _), _)| *at);
            if idle_slices <= IDLE_SLICES {
                let tick = now + TIME_SLICE;
                until = Some(until.map_or(tick, |at| at.min(tick)));
            } else {
                self.parked.store(true, Ordering::SeqCst);
                if self.runs() {
                    self.parked.store(false, Ordering::SeqCst);
                    continue;
                }
            }
            state = match until {
                Some(at) => {
                    let timeout = at.saturating_duration_since(now);
                    self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            self.parked.store(false, Ordering::SeqCst);
        }
    }
}

/// A guest is on a CPU.
pub(crate) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Future of [`Watchdog::sleep_until`].
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    shared: &'a Shared,
    at: Instant,
    timer: Option<u64>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        let shared = self.shared;
        let mut state = shared.lock();
        let timer = *self.timer.get_or_insert_with(|| {
            state.next_timer += 1;
            state.next_timer
        });
        let key = (self.at, timer);
        let replaced = state.timers.insert(key, context.waker().clone());
        if state.timers.first_key_value().is_some_and(|(first, _)| *first == key) {
            shared.changed.notify_one();
        }
        drop(state);
        // Outside the lock: a waker may hold the last reference to something that drops timers of its own.
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let removed = self.shared.lock().timers.remove(&(self.at, timer));
            // Outside the lock, as in `poll`.
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::block_on;

    #[test]
    fn sleepers_wake_in_order_and_not_early() {
        let watchdog = Watchdog::start().unwrap();
        let start = Instant::now();
        let late = watchdog.sleep_until(start + Duration::from_millis(20));
        let early = watchdog.sleep_until(start + Duration::from_millis(5));
        block_on(early);
        assert!(start.elapsed() >= Duration::from_millis(5));
        block_on(late);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_dropped_sleeper_leaves_no_timer() {
        let watchdog = Watchdog::start().unwrap();
        let mut sleep = Box::pin(watchdog.sleep_until(Instant::now() + Duration::from_secs(3600)));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(watchdog.shared.lock().timers.len(), 1);
        drop(sleep);
        assert_eq!(watchdog.shared.lock().timers.len(), 0);
    }

    /// A waker that drops a timer of its own when it is dropped.
    struct Owner {
        _owned: Mutex<Sleep<'static>>,
    }

    impl std::task::Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_waker_that_drops_timers_is_dropped_outside_the_lock() {
        let (done, finished) = std::sync::mpsc::channel();
        // On a thread of its own, which a deadlock would keep.
        std::thread::spawn(move || {
            // Leaked, for its timers to be owned by wakers.
            let watchdog: &'static Watchdog = Box::leak(Box::new(Watchdog::start().unwrap()));
            let at = Instant::now() + Duration::from_secs(3600);
            let owner = || {
                let mut owned = watchdog.sleep_until(at);
                assert!(Pin::new(&mut owned).poll(&mut Context::from_waker(Waker::noop())).is_pending());
                Waker::from(Arc::new(Owner { _owned: Mutex::new(owned) }))
            };
            let mut sleep = watchdog.sleep_until(at);
            for _ in 0..2 {
                // The second replaces the first.
                assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&owner())).is_pending());
            }
            drop(sleep);
            done.send(watchdog.shared.lock().timers.len()).unwrap();
        });
        assert_eq!(finished.recv_timeout(Duration::from_secs(60)), Ok(0));
    }

    #[test]
    fn ticks_only_while_a_guest_runs() {
        let watchdog = Watchdog::start().unwrap();
        // Bounded by the test runner's own limit: both loops end when the thread does its work.
        while !watchdog.is_parked() {
            std::thread::yield_now();
        }
        let running = watchdog.running();
        while watchdog.is_parked() {
            std::thread::yield_now();
        }
        drop(running);
        while !watchdog.is_parked() {
            std::thread::yield_now();
        }
    }
}
