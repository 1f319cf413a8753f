//! The thread that wakes at deadlines.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Instant;

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    timers: BTreeMap<(Instant, u64), Waker>,
    next_timer: u64,
    /// When the thread wakes by itself; `None` while it is awake or sleeps for good.
    wakes_at: Option<Instant>,
    asleep: bool,
    stop: bool,
}

impl Watchdog {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Watchdog> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("palisade-watchdog".into()).spawn(move || theirs.run())?;
        Ok(Watchdog { shared, thread: Some(thread) })
    }

    /// Wakes `waker` at `at`, unless the timer is dropped before.
    pub(crate) fn wake_at(&self, at: Instant, waker: Waker) -> Timer {
        let mut state = self.shared.lock();
        state.next_timer += 1;
        let key = (at, state.next_timer);
        state.timers.insert(key, waker);
        // Most deadlines are never reached, and each is later than the one before: then the thread is left asleep.
        let too_late = state.asleep && state.wakes_at.is_none_or(|wakes_at| at < wakes_at);
        drop(state);
        if too_late {
            self.shared.changed.notify_one();
        }
        Timer { shared: Arc::clone(&self.shared), key }
    }

    /// Waits until `at`.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep<'_> {
        Sleep { watchdog: self, at, timer: None }
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

    fn run(&self) {
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
            state.wakes_at = state.timers.first_key_value().map(|((at, _), _)| *at);
            state.asleep = true;
            state = match state.wakes_at {
                Some(at) => {
                    let timeout = at.saturating_duration_since(now);
                    self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.asleep = false;
        }
    }
}

/// A deadline. Dropping it forgets it.
#[derive(Debug)]
pub(crate) struct Timer {
    shared: Arc<Shared>,
    key: (Instant, u64),
}

impl Drop for Timer {
    fn drop(&mut self) {
        let removed = self.shared.lock().timers.remove(&self.key);
        // Outside the lock: a waker may hold the last reference to something that drops timers of its own.
        drop(removed);
    }
}

/// Future of [`Watchdog::sleep_until`].
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    watchdog: &'a Watchdog,
    at: Instant,
    timer: Option<Timer>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        self.timer = Some(self.watchdog.wake_at(self.at, context.waker().clone()));
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::block_on;
    use std::time::Duration;

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
    fn an_earlier_deadline_than_the_one_slept_for_is_kept() {
        let watchdog = Watchdog::start().unwrap();
        let start = Instant::now();
        let _late = watchdog.wake_at(start + Duration::from_secs(3600), Waker::noop().clone());
        // Bounded by the test runner's own limit.
        while !watchdog.shared.lock().asleep {
            std::thread::yield_now();
        }
        block_on(watchdog.sleep_until(start + Duration::from_millis(5)));
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_dropped_timer_is_forgotten() {
        let watchdog = Watchdog::start().unwrap();
        let timer = watchdog.wake_at(Instant::now() + Duration::from_secs(3600), Waker::noop().clone());
        assert_eq!(watchdog.shared.lock().timers.len(), 1);
        drop(timer);
        assert_eq!(watchdog.shared.lock().timers.len(), 0);
    }
}
