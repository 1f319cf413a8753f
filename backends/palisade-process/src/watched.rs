//! A descriptor that is read, written and waited for, and costs nothing to wait for until somebody does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_io::{Async, ReadableOwned, WritableOwned};

/// Our end of a pipe, or a pidfd. It never blocks.
pub(crate) struct Watched {
    fd: OwnedFd,
    /// Made when it is first waited for, and kept: most short calls never wait.
    watch: Option<Arc<Async<OwnedFd>>>,
    /// The waits that are under way. Not by `Async::poll_readable`: that wakes the task itself whenever it does not
    /// recognise the task's waker, and the clone of a waker need not be recognised (`Waker::will_wake` compares addresses of
    /// tables that a compiler may have made twice). A task that wakes itself each time it waits uses a whole processor.
    readable: Option<ReadableOwned<OwnedFd>>,
    writable: Option<WritableOwned<OwnedFd>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.fd).finish()
    }
}

impl Watched {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Watched> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Watched { fd, watch: None, readable: None, writable: None })
    }

    /// Waits until it can be read, or written. `None` as context: does not wait, and is pending.
    pub(crate) fn poll(&mut self, context: Option<&mut Context<'_>>, write: bool) -> Poll<io::Result<()>> {
        let Some(context) = context else { return Poll::Pending };
        let watch = match &self.watch {
            Some(watch) => watch,
            None => match self.fd.try_clone().and_then(Async::new_nonblocking) {
                Ok(watch) => &*self.watch.insert(Arc::new(watch)),
                Err(error) => return Poll::Ready(Err(error)),
            },
        };
        if write {
            let wait = self.writable.get_or_insert_with(|| Arc::clone(watch).writable_owned());
            let ready = Pin::new(wait).poll(context);
            if ready.is_ready() {
                self.writable = None;
            }
            ready
        } else {
            let wait = self.readable.get_or_insert_with(|| Arc::clone(watch).readable_owned());
            let ready = Pin::new(wait).poll(context);
            if ready.is_ready() {
                self.readable = None;
            }
            ready
        }
    }

    /// The descriptor, not watched any more.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Wake, Waker};

    /// A waker that no other recognises, as those of a runtime may not recognise their own clones.
    struct Stranger(Arc<AtomicU32>);

    impl Wake for Stranger {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waiting_wakes_nobody_whatever_the_waker() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut read = Watched::new(read).unwrap();
        let woken = Arc::new(AtomicU32::new(0));
        let mut poll = || {
            let waker = Waker::from(Arc::new(Stranger(Arc::clone(&woken))));
            read.poll(Some(&mut Context::from_waker(&waker)), false)
        };
        for _ in 0..100 {
            assert!(poll().is_pending());
        }
        assert_eq!(woken.load(Ordering::SeqCst), 0, "a wait woke its own task");
        // What comes wakes all the same.
        rustix::io::write(&write, b"x").unwrap();
        while poll().is_pending() {
            std::thread::yield_now();
        }
    }
}
