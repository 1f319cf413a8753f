//! What the two sides of a running call share: the future the caller polls, and the thread the guest runs on.
//!
//! The guest's side does all the deciding: it looks at its limits when it is *interrupted*, and an interruption is all
//! that a deadline, a cancelled token or a dropped future amount to. What has to be polled (a host function, a streamed
//! input) is handed to the caller's side, so that it runs where the caller's runtime is.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use palisade_core::BoxFuture;

/// See the module.
pub(crate) struct Control<T> {
    state: Mutex<State<T>>,
    /// For the guest's thread, while the guest waits.
    guest: Condvar,
    /// For the caller's thread, while it waits a moment for the guest.
    caller: Condvar,
    ended: AtomicBool,
}

struct State<T> {
    answer: Option<T>,
    caller: Option<Waker>,
    /// Somebody wants the guest to look at its limits.
    interrupted: bool,
    /// The caller's future is gone.
    dropped: bool,
    /// The word in the guest that makes it look.
    flag: Option<Flag>,
    /// The guest waits.
    waiting: bool,
    request: Option<BoxFuture<'static, ()>>,
    /// Tells one request from the next.
    request_number: u64,
    request_done: bool,
}

/// The word that the compiled-in code reads.
struct Flag(NonNull<i64>);

// SAFETY: the word is read and written as a whole, by `AtomicI64` here and by aligned loads of compiled code.
unsafe impl Send for Flag {}

impl Flag {
    fn set(&self, value: i64) {
        // SAFETY: `Control::attach` has its caller promise that the word is valid until it is detached; all of the host's
        // accesses in between are atomic, and the guest only reads, with one aligned load.
        let word = unsafe { AtomicI64::from_ptr(self.0.as_ptr()) };
        word.store(value, Ordering::Relaxed);
    }
}

impl<T> Control<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Control {
            state: Mutex::new(State {
                answer: None,
                caller: None,
                interrupted: false,
                dropped: false,
                flag: None,
                waiting: false,
                request: None,
                request_number: 0,
                request_done: false,
            }),
            guest: Condvar::new(),
            caller: Condvar::new(),
            ended: AtomicBool::new(false),
        })
    }

    // State is consistent after every statement; foreign code (wakers, requests) runs outside the lock.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the guest look at its limits, soon. From any thread.
    pub(crate) fn interrupt(&self) {
        let mut state = self.lock();
        state.interrupted = true;
        if let Some(flag) = &state.flag {
            flag.set(i64::MIN);
        }
        if state.waiting {
            self.guest.notify_one();
        }
    }

    // ---- the guest's side ----

    /// Lets interruptions reach compiled code, until the guard is dropped.
    ///
    /// # Safety
    ///
    /// `flag` must be valid until then, and written by nobody else.
    pub(crate) unsafe fn attach(&self, flag: NonNull<i64>) -> Attached<'_, T> {
        let mut state = self.lock();
        let flag = Flag(flag);
        flag.set(if state.interrupted { i64::MIN } else { 0 });
        state.flag = Some(flag);
        Attached(self)
    }

    /// Takes note of an interruption: what is to be looked at from now on includes its reason.
    pub(crate) fn acknowledge(&self) {
        let mut state = self.lock();
        state.interrupted = false;
        if let Some(flag) = &state.flag {
            flag.set(0);
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn is_dropped(&self) -> bool {
        self.lock().dropped
    }

    /// Waits until `until` (then it gives `false`), or until the caller's side has driven `request` to its end. Whenever
    /// somebody interrupts, `look` decides whether to wait on.
    ///
    /// # Errors
    ///
    /// Those of `look`; the request is then dropped.
    pub(crate) fn wait<E>(
        &self,
        request: Option<BoxFuture<'static, ()>>,
        until: Option<Instant>,
        mut look: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        state.waiting = true;
        state.request_done = false;
        state.request_number += 1;
        let polled = request.is_some();
        state.request = request;
        self.caller.notify_one();
        if polled && let Some(waker) = state.caller.clone() {
            drop(state);
            waker.wake();
            state = self.lock();
        }
        let waited = loop {
            if state.request_done {
                break Ok(true);
            }
            if state.interrupted {
                drop(state);
                let looked = look();
                state = self.lock();
                if let Err(error) = looked {
                    break Err(error);
                }
                continue;
            }
            state = match until {
                None => self.guest.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break Ok(false);
                    }
                    self.guest.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        };
        state.waiting = false;
        state.request_number += 1;
        let abandoned = state.request.take();
        drop(state);
        drop(abandoned);
        waited
    }

    /// The call is over.
    pub(crate) fn end(&self, answer: T) {
        let mut state = self.lock();
        state.answer = Some(answer);
        let caller = state.caller.take();
        self.ended.store(true, Ordering::Release);
        self.caller.notify_one();
        drop(state);
        if let Some(caller) = caller {
            caller.wake();
        }
    }

    // ---- the caller's side ----

    /// Whether the call is over, without waiting for a lock.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits for the end of the call, or until the guest waits for something, but no longer than `time`.
    pub(crate) fn wait_a_moment(&self, time: Duration) {
        let state = self.lock();
        let busy = |state: &mut State<T>| state.answer.is_none() && !state.waiting;
        let _ = self.caller.wait_timeout_while(state, time, busy).unwrap_or_else(PoisonError::into_inner);
    }

    /// Polls what the guest waits for. Ready when the call is over.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<T> {
        loop {
            let mut state = self.lock();
            if let Some(answer) = state.answer.take() {
                return Poll::Ready(answer);
            }
            match &mut state.caller {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            let Some(mut request) = state.request.take() else { return Poll::Pending };
            let number = state.request_number;
            drop(state);
            let polled = request.as_mut().poll(context);
            let mut state = self.lock();
            // The guest may have stopped waiting in the meantime.
            if state.request_number != number {
                drop(state);
                continue;
            }
            match polled {
                Poll::Ready(()) => {
                    state.request_done = true;
                    self.guest.notify_one();
                }
                Poll::Pending => state.request = Some(request),
            }
            if state.answer.is_none() {
                return Poll::Pending;
            }
        }
    }

    /// The caller's future goes away: stops the guest and waits for that, but no longer than `time`.
    pub(crate) fn abandon(&self, time: Duration) {
        let mut state = self.lock();
        state.dropped = true;
        let request = state.request.take();
        state.caller = None;
        drop(state);
        drop(request);
        self.interrupt();
        let state = self.lock();
        let running = |state: &mut State<T>| state.answer.is_none();
        let (mut state, _) =
            self.caller.wait_timeout_while(state, time, running).unwrap_or_else(PoisonError::into_inner);
        let answer = state.answer.take();
        drop(state);
        drop(answer);
    }
}

impl<T: Send> Wake for Control<T> {
    fn wake(self: Arc<Self>) {
        self.interrupt();
    }
}

/// Interruptions reach compiled code.
pub(crate) struct Attached<'a, T>(&'a Control<T>);

impl<T> Drop for Attached<'_, T> {
    fn drop(&mut self) {
        self.0.lock().flag = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_reaches_the_word_until_it_is_acknowledged() {
        let control = Control::<()>::new();
        let mut word = 7i64;
        let flag = NonNull::from(&mut word);
        control.interrupt();
        {
            // SAFETY: the word outlives the guard, and is read only afterwards.
            let _attached = unsafe { control.attach(flag) };
            // SAFETY: points to `word`, which lives.
            assert_eq!(unsafe { flag.read_volatile() }, i64::MIN);
            control.acknowledge();
            // SAFETY: as above.
            assert_eq!(unsafe { flag.read_volatile() }, 0);
        }
        control.interrupt();
        assert_eq!(word, 0, "a detached word is left alone");
    }

    #[test]
    fn a_request_is_polled_by_the_caller_and_dropped_when_the_guest_stops_waiting() {
        let control = Control::<u8>::new();
        let theirs = Arc::clone(&control);
        let guard = Arc::new(());
        let held = Arc::clone(&guard);
        let polled = Arc::new(AtomicBool::new(false));
        let theirs_polled = Arc::clone(&polled);
        let guest = std::thread::spawn(move || {
            let look = || Err(());
            assert_eq!(theirs.wait(Some(Box::pin(async {})), None, look), Ok(true));
            let forever = async move {
                let _held = held;
                theirs_polled.store(true, Ordering::SeqCst);
                std::future::pending().await
            };
            assert_eq!(theirs.wait(Some(Box::pin(forever)), None, look), Err(()));
            theirs.acknowledge();
            assert_eq!(theirs.wait(None, Some(Instant::now()), look), Ok(false));
            theirs.end(9);
        });
        let answer = palisade_core::block_on(std::future::poll_fn(|context| {
            let poll = control.poll(context);
            if polled.swap(false, Ordering::SeqCst) {
                control.interrupt();
            }
            poll
        }));
        guest.join().unwrap();
        assert_eq!((answer, Arc::strong_count(&guard)), (9, 1));
    }
}
