//! Cancelling a call from elsewhere, with a typed outcome.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Cancels calls: the call ends with [`Outcome::Cancelled`](crate::Outcome::Cancelled) and its usage.
///
/// Clones share one state; cancelling is final. Dropping a call's future also stops the guest, but then nobody is left
/// to receive an outcome.
///
/// ```
/// use palisade_core::CancelToken;
///
/// let token = CancelToken::new();
/// let of_the_call = token.clone();
/// token.cancel();
/// assert!(of_the_call.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    wakers: Vec<(u64, Waker)>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels. Calling it again changes nothing.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut self.0.lock().wakers);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Whether somebody cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Waits until somebody cancels.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled { state: Arc::clone(&self.0), id: None }
    }
}

impl State {
    // The list of wakers is consistent after every statement, so a panicking waker poisons nothing that matters.
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Future of [`CancelToken::cancelled`].
#[derive(Debug)]
pub struct Cancelled {
    state: Arc<State>,
    id: Option<u64>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let state = Arc::clone(&self.state);
        let mut waiting = state.lock();
        // Read under the lock: `cancel` sets the flag before it takes the list.
        if state.cancelled.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        match self.id.and_then(|id| waiting.wakers.iter_mut().find(|(other, _)| *other == id)) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => {
                let id = waiting.next_id;
                waiting.next_id += 1;
                waiting.wakers.push((id, context.waker().clone()));
                self.id = Some(id);
            }
        }
        Poll::Pending
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.state.lock().wakers.retain(|(other, _)| *other != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waiters_are_woken_once_and_forgotten_when_dropped() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let token = CancelToken::new();
        let mut kept = token.cancelled();
        let mut dropped = token.cancelled();
        assert!(Pin::new(&mut kept).poll(&mut context).is_pending());
        assert!(Pin::new(&mut kept).poll(&mut context).is_pending());
        assert!(Pin::new(&mut dropped).poll(&mut context).is_pending());
        drop(dropped);
        token.cancel();
        token.cancel();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(Pin::new(&mut kept).poll(&mut context).is_ready());
        assert!(Pin::new(&mut token.cancelled()).poll(&mut context).is_ready());
    }
}
