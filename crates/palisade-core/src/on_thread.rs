//! Blocking work on a thread of its own, awaited from async code without any runtime.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Runs `work` on a new thread called `name`. The future gives its result, or the payload of its panic.
///
/// Dropping the future does not stop the thread; nothing can. Callers bound what they start.
///
/// # Errors
///
/// The system's, when it gives no thread.
pub fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<OnThread<T>> {
    let answer = Arc::new(Mutex::new(Answer { result: None, waker: None }));
    let theirs = Arc::clone(&answer);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(work));
        let waker = {
            let mut answer = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            answer.result = Some(result);
            answer.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    })?;
    Ok(OnThread(answer))
}

struct Answer<T> {
    result: Option<std::thread::Result<T>>,
    waker: Option<Waker>,
}

/// Future of [`on_thread`].
pub struct OnThread<T>(Arc<Mutex<Answer<T>>>);

impl<T> fmt::Debug for OnThread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnThread")
    }
}

impl<T> Future for OnThread<T> {
    type Output = std::thread::Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
