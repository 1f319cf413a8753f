//! What the kernel tells the host about system calls of a guest, and asks it to decide: calls that only an attack makes, and
//! signals by which a guest ends itself.
//!
//! The filter of system calls stays the wall: what it asks about is either never carried out, or is a signal that the kernel
//! would have ignored. A host that does not listen changes nothing but the call's error.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Timer;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::seccomp::{Asked, asked};
use crate::sys::protocol::FD_NOTICES;
use crate::sys::{self, Notice};
use crate::watched::Watched;

/// Answers a guest gets at once.
const AT_ONCE: u32 = 256;
/// How long each further one takes: what a guest can make its host compute stays small.
const PAUSE: Duration = Duration::from_micros(500);

/// What the host has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The guest made this call, which no guest may.
    Forbidden(i32),
    /// The guest sent its first process this signal, which ends it.
    Ended(i32),
}

/// Where the kernel asks about one instance.
#[derive(Debug)]
pub(crate) struct Notices {
    fd: Watched,
    answered: u32,
    pause: Option<Timer>,
}

impl Notices {
    /// Takes the descriptor from an instance in which no guest code has run. `None` where that is not allowed.
    pub(crate) fn take(instance: BorrowedFd<'_>) -> Option<Notices> {
        let fd = pidfd_getfd(instance, FD_NOTICES, PidfdGetfdFlags::empty()).ok()?;
        Some(Notices { fd: Watched::new(fd).ok()?, answered: 0, pause: None })
    }

    /// What the guest whose first process is `first` asked for that ends it. `Ready(None)`: nobody is left to ask.
    pub(crate) fn poll(&mut self, first: i32, context: &mut Context<'_>) -> Poll<Option<Verdict>> {
        loop {
            if let Some(pause) = &mut self.pause {
                if Pin::new(pause).poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.pause = None;
            }
            let mut ready = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let found = match rustix::event::poll(&mut ready, Some(&now)) {
                Ok(_) => ready[0].revents(),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Poll::Ready(None),
            };
            if found.contains(PollFlags::IN) {
                // One whose thread was interrupted meanwhile is gone, and asked anew.
                let Ok(notice) = sys::receive_notice(self.fd.as_fd()) else { continue };
                if let Some(verdict) = verdict(&notice, first) {
                    return Poll::Ready(Some(verdict));
                }
                sys::let_continue(self.fd.as_fd(), notice.id);
                self.answered = self.answered.saturating_add(1);
                if self.answered > AT_ONCE {
                    self.pause = Some(Timer::after(PAUSE));
                }
            } else if !found.is_empty() {
                return Poll::Ready(None);
            } else {
                match self.fd.poll(Some(context), false) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
    }
}

/// What `notice` means for a guest whose first process is `first`. `None`: the call is the guest's own business.
fn verdict(notice: &Notice, first: i32) -> Option<Verdict> {
    let (number, thread) = match asked(notice.number, notice.arguments) {
        Asked::Forbidden(number) => return Some(Verdict::Forbidden(number)),
        Asked::Signal { number, thread } => (number, thread),
    };
    let caller = Handling::of(notice.thread)?;
    let own = caller.process == first;
    // Within another process, where the kernel does what is expected.
    if !own && notice.number == i32::try_from(libc::SYS_tkill).unwrap_or(-1) {
        return None;
    }
    let target = if own { caller } else { Handling::of(first)? };
    let bit = 1u64 << (number - 1).clamp(0, 63);
    // It handles it, or does not care.
    if (target.caught | target.ignored) & bit != 0 {
        return None;
    }
    // It is held back, for one that waits for it; but by `raise` of some C libraries only until that returns.
    let raised = own && notice.number == i32::try_from(libc::SYS_tkill).unwrap_or(-1) && thread == Some(caller.number);
    if target.blocked & bit != 0 && !raised {
        return None;
    }
    Some(Verdict::Ended(number))
}

/// What a thread does about signals, as the kernel tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Handling {
    /// Its process, as the host numbers it.
    process: i32,
    /// Its own number, as the guest sees it.
    number: i32,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Handling {
    fn of(thread: i32) -> Option<Handling> {
        Handling::read(&fs::read_to_string(format!("/proc/{thread}/status")).ok()?)
    }

    fn read(status: &str) -> Option<Handling> {
        let value = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
        let mask = |name: &str| u64::from_str_radix(value(name)?, 16).ok();
        Some(Handling {
            process: value("Tgid:")?.parse().ok()?,
            number: value("NSpid:")?.split_whitespace().next_back()?.parse().ok()?,
            blocked: mask("SigBlk:")?,
            ignored: mask("SigIgn:")?,
            caught: mask("SigCgt:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_does_about_signals_is_read_from_its_status() {
        let status = "Name:\ta b\nTgid:\t812\nPid:\t813\nNSpid:\t813\t4\nSigQ:\t0/64\nSigPnd:\t0000000000000000\n\
                      SigBlk:\t0000000000000020\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180000440\n";
        let expected = Handling { process: 812, number: 4, blocked: 0x20, ignored: 0x1000, caught: 0x1_8000_0440 };
        assert_eq!(Handling::read(status), Some(expected));
        assert_eq!(Handling::read("Name:\tx\n"), None);
        // This test's own, which exists.
        let own = std::process::id().cast_signed();
        assert_eq!(Handling::of(own).map(|handling| handling.process), Some(own));
    }
}
