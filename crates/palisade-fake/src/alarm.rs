//! A thread that wakes a task at a moment, so that whoever waits for a clock need not go round.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

/// Wakes somebody at a moment. Dropped, it wakes nobody and its thread has ended.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    thread: Option<std::thread::JoinHandle<()>>,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    waker: Option<Waker>,
}

// Every statement leaves the state whole.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Alarm {
    /// Wakes `waker`, in place of any earlier one, at `at`; the moment of the first call counts.
    pub(crate) fn set(&mut self, at: Option<Instant>, waker: &Waker) {
        let Some(at) = at else { return };
        lock(&self.state.0).waker = Some(waker.clone());
        if self.thread.is_some() {
            return;
        }
        let state = Arc::clone(&self.state);
        self.thread = Some(std::thread::spawn(move || {
            let (held, changed) = &*state;
            let mut held = lock(held);
            loop {
                let left = at.saturating_duration_since(Instant::now());
                if held.over {
                    return;
                }
                if left.is_zero() {
                    break;
                }
                held = changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            let waker = held.waker.take();
            drop(held);
            waker.into_iter().for_each(Waker::wake);
        }));
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        lock(&self.state.0).over = true;
        self.state.1.notify_all();
        // It neither waits nor panics any more.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}
