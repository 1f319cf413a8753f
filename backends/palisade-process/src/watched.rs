//! A descriptor that is read, written and waited for, and costs nothing to wait for until somebody does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use async_io::Async;

/// Our end of a pipe, or a pidfd. It never blocks.
#[derive(Debug)]
pub(crate) struct Watched {
    fd: OwnedFd,
    /// Made when it is first waited for, and kept: most short calls never wait.
    watch: Option<Async<OwnedFd>>,
}

impl Watched {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Watched> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Watched { fd, watch: None })
    }

    /// Waits until it can be read, or written. `None` as context: does not wait, and is pending.
    pub(crate) fn poll(&mut self, context: Option<&mut Context<'_>>, write: bool) -> Poll<io::Result<()>> {
        let Some(context) = context else { return Poll::Pending };
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => match self.fd.try_clone().and_then(Async::new_nonblocking) {
                Ok(watch) => none.insert(watch),
                Err(error) => return Poll::Ready(Err(error)),
            },
        };
        if write { watch.poll_writable(context) } else { watch.poll_readable(context) }
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
