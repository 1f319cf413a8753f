//! Bringing files to the disk, which takes as long as the disk does.

use std::fmt;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use palisade_core::on_thread;

use crate::context::Pending;
use crate::errno::{Fail, settle};
use crate::{Errno, GuestMemory, Stop, Streams, Wait, WasiContext};

/// Threads that wait for disks, of all guests together. A guest that is stopped leaves its thread behind until the disk has
/// answered.
const THREADS_MAX: usize = 64;
/// How long a guest waits for one of them to be free before it looks again.
const RETRY: Duration = Duration::from_millis(5);

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Work that is done on another thread; ready when it is done.
pub struct Work(Pin<Box<dyn Future<Output = ()> + Send>>);

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl Future for Work {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

/// A file that is being brought to the disk, and what came of it.
#[derive(Debug)]
pub(crate) struct Syncing {
    fd: i32,
    kind: Kind,
    done: Arc<Mutex<Option<Errno>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    All,
}

/// Counts a thread for as long as it runs.
struct Counted;

impl Counted {
    fn new() -> Option<Counted> {
        let counted = THREADS.fetch_add(1, Ordering::Relaxed);
        let thread = Counted;
        (counted < THREADS_MAX).then_some(thread)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WasiContext {
    /// Writes a file's data to the disk.
    ///
    /// # Errors
    ///
    /// [`Stop::Wait`] until it is there.
    pub fn fd_datasync(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.sync(fd, Kind::Data))
    }

    /// Writes a file's data and metadata to the disk.
    ///
    /// # Errors
    ///
    /// As [`WasiContext::fd_datasync`].
    pub fn fd_sync(&mut self, _memory: &mut GuestMemory<'_>, _streams: &mut Streams, fd: i32) -> Result<Errno, Stop> {
        settle(|| self.sync(fd, Kind::All))
    }

    fn sync(&mut self, fd: i32, kind: Kind) -> Result<(), Fail> {
        if let Some(Pending::Syncing(syncing)) = self.pending.take()
            && (syncing.fd, syncing.kind) == (fd, kind)
        {
            let done = *lock(&syncing.done);
            match done {
                Some(Errno::Success) => return Ok(()),
                Some(errno) => return Err(errno.into()),
                None => {}
            }
        }
        let file = self.descriptors().file(fd as u32)?;
        // Who cannot write has nothing to bring to the disk, and must not make the host do it for others.
        if !file.host_writable {
            return Ok(());
        }
        let Some(counted) = Counted::new() else {
            return Err(Stop::Wait(Wait { until: Some(Instant::now() + RETRY), ..Wait::default() }).into());
        };
        let file = file.file.try_clone()?;
        let synced = on_thread("palisade-sync", move || {
            let _counted = counted;
            sync(&file, kind)
        })?;
        let done = Arc::new(Mutex::new(None));
        let answer = Arc::clone(&done);
        self.work = Some(Work(Box::pin(async move {
            let errno = match synced.await {
                Ok(Ok(())) => Errno::Success,
                Ok(Err(error)) => Errno::from(error),
                Err(_) => Errno::Io,
            };
            *lock(&answer) = Some(errno);
        })));
        self.pending = Some(Pending::Syncing(Syncing { fd, kind, done }));
        Err(Stop::Wait(Wait { work: true, ..Wait::default() }).into())
    }
}

fn sync(file: &File, kind: Kind) -> io::Result<()> {
    match kind {
        Kind::Data => file.sync_data(),
        Kind::All => file.sync_all(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::oflags::CREATE;
    use crate::layout::rights::{FD_READ, FD_WRITE};
    use crate::tests::{Guest, read_write};
    use palisade_core::block_on;

    type Sync = fn(&mut WasiContext, &mut GuestMemory<'_>, &mut Streams, i32) -> Result<Errno, Stop>;

    #[test]
    fn the_disk_is_waited_for_elsewhere() {
        let scratch = tempfile::tempdir().unwrap();
        let mut guest = Guest::new(&read_write(scratch.path()));
        let fd = guest.open(3, "file", CREATE, FD_READ | FD_WRITE, 0).unwrap();
        for sync in [WasiContext::fd_sync as Sync, WasiContext::fd_datasync] {
            let call = |guest: &mut Guest| guest.run(|context, memory, streams| sync(context, memory, streams, fd));
            assert_eq!(call(&mut guest), Err(Stop::Wait(Wait { work: true, ..Wait::default() })));
            block_on(guest.context.take_work().unwrap());
            assert_eq!(call(&mut guest), Ok(Errno::Success));
            assert!(guest.context.take_work().is_none());
        }
    }

    #[test]
    fn there_is_nothing_to_wait_for_without_a_writable_file() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "text").unwrap();
        let mut guest = Guest::new(&read_write(scratch.path()));
        let fd = guest.open(3, "file", 0, FD_READ, 0).unwrap();
        let call = |guest: &mut Guest, fd| guest.run(|context, memory, streams| context.fd_sync(memory, streams, fd));
        assert_eq!(call(&mut guest, fd), Ok(Errno::Success));
        assert_eq!(call(&mut guest, 3), Ok(Errno::BadF));
    }

    #[test]
    fn what_cannot_be_brought_to_the_disk_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let mut guest = Guest::new(&read_write(scratch.path()));
        let fd = guest.open(3, "file", CREATE, FD_READ | FD_WRITE, 0).unwrap();
        // A pipe has no disk.
        let (_reader, writer) = io::pipe().unwrap();
        guest.context.descriptors().file(fd as u32).unwrap().file = File::from(std::os::fd::OwnedFd::from(writer));
        let call = |guest: &mut Guest| guest.run(|context, memory, streams| context.fd_sync(memory, streams, fd));
        assert!(call(&mut guest).is_err());
        block_on(guest.context.take_work().unwrap());
        assert_eq!(call(&mut guest), Ok(Errno::Inval));
    }
}
