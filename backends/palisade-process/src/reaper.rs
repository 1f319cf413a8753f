//! Waits for processes that were killed, on a thread of its own: all of them at once, so that one that takes long to end (it
//! may sit in a file system that does not answer) keeps none of the others.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::conversation::receive;
use crate::cpu_group::CpuGroup;
use crate::memory_group::MemoryGroup;
use crate::sys;

/// Something that was killed and must be waited for, but not by the thread that killed it.
pub(crate) enum Later {
    /// With the socket to it, in which may lie an answer that nobody received.
    Zygote(Child, OwnedFd),
    /// With the groups it is in, which are free only when they are empty.
    Instance(OwnedFd, Option<MemoryGroup>, Option<CpuGroup>),
}

/// A process whose end is awaited.
struct Awaited {
    /// Readable when it has ended; none where the system has no more descriptors.
    pidfd: Option<OwnedFd>,
    what: Later,
}

impl Awaited {
    fn new(what: Later) -> Awaited {
        let pidfd = match &what {
            Later::Zygote(child, _) => {
                Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            }
            Later::Instance(pidfd, ..) => pidfd.try_clone().ok(),
        };
        Awaited { pidfd, what }
    }

    /// Takes it from the kernel's list, if it has ended.
    fn has_ended(&mut self) -> bool {
        match &mut self.what {
            Later::Zygote(child, socket) => match child.try_wait() {
                Ok(None) => false,
                Ok(Some(_)) | Err(_) => {
                    end_unclaimed(socket);
                    true
                }
            },
            // An error means that somebody else took it.
            Later::Instance(pidfd, _memory, _cpu) => !matches!(sys::reap(pidfd.as_fd(), false), Ok(None)),
        }
    }
}

/// Ends an instance whose making was answered too late for anybody to receive it. The zygote has ended.
fn end_unclaimed(socket: &OwnedFd) {
    while let Ok((.., pidfd)) = receive(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
        if let Some(pidfd) = pidfd {
            sys::kill(&pidfd);
            reap_later(Later::Instance(pidfd, None, None));
        }
    }
}

struct Reaper {
    all: Sender<Later>,
    /// Readable when something was sent.
    news: OwnedFd,
}

/// Waits for what was killed.
pub(crate) fn reap_later(what: Later) {
    static REAPER: OnceLock<Option<Mutex<Reaper>>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let news = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let theirs = news.try_clone().ok()?;
        let (all, awaited) = channel::<Later>();
        std::thread::Builder::new().name("palisade-reaper".to_owned()).spawn(move || serve(&awaited, &theirs)).ok()?;
        Some(Mutex::new(Reaper { all, news }))
    });
    match reaper {
        Some(reaper) => {
            let reaper = reaper.lock().unwrap_or_else(PoisonError::into_inner);
            // It never ends, so that it takes everything.
            let _ = reaper.all.send(what);
            let _ = rustix::io::write(&reaper.news, &1u64.to_ne_bytes());
        }
        // Without the thread, here and now.
        None => {
            let mut awaited = Awaited::new(what);
            while !awaited.has_ended() {
                wait(&[&awaited], None);
            }
        }
    }
}

fn serve(news: &Receiver<Later>, bell: &OwnedFd) {
    let mut awaited: Vec<Awaited> = Vec::new();
    loop {
        awaited.extend(news.try_iter().map(Awaited::new));
        awaited.retain_mut(|each| !each.has_ended());
        wait(&awaited.iter().collect::<Vec<_>>(), Some(bell));
        let _ = rustix::io::read(bell, &mut [0u8; 8]);
    }
}

/// Waits until one of `awaited` ends or `bell` rings.
fn wait(awaited: &[&Awaited], bell: Option<&OwnedFd>) {
    let fds = awaited.iter().filter_map(|each| each.pidfd.as_ref()).chain(bell);
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    // Those without a descriptor are looked at now and then.
    let blind = awaited.iter().any(|each| each.pidfd.is_none());
    let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let _ = poll(&mut fds, blind.then_some(&soon));
}
