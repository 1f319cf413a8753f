//! What the host needs of the kernel and no library gives safely, and the worker's program.

pub(crate) mod protocol;
// A program of its own, compiled by the build script; the tests compile it too, so that it is formatted and linted.
#[cfg(test)]
#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the worker's entry point has no caller here; both sides share the protocol"
)]
#[path = "worker/main.rs"]
mod worker;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// The worker's program, compiled by the build script.
pub(crate) static WORKER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/worker"));

/// How a process ended, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) by: EndedBy,
    /// User and system time, of the process and of those of its children it waited for.
    pub(crate) cpu_time: Duration,
    /// Most memory resident at once.
    pub(crate) resident_peak_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndedBy {
    Exit(i32),
    Signal(i32),
}

/// Has `action` called when this process exits by itself: destructors of statics are not.
pub(crate) fn at_exit(action: extern "C" fn()) {
    // SAFETY: `action` takes nothing, gives nothing, and is there as long as this process is.
    let _ = unsafe { libc::atexit(action) };
}

/// Takes a process that has ended from the kernel's list. `Ok(None)`: it has not ended, and `wait` is false.
///
/// # Errors
///
/// The system's; `ECHILD` when something else in this process took it first.
pub(crate) fn reap(pidfd: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Ended>> {
    // SAFETY: both are plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        if wait {
            // Not by the call below: a pidfd that was watched is one on which that call does not wait.
            let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut ended, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // SAFETY: the C library's `waitid` has no room for the usage, the system call has. Both structures outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                &raw mut info,
                libc::WEXITED | libc::WNOHANG,
                &raw mut usage,
            )
        };
        if result != 0 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        // SAFETY: the kernel has filled in the fields of a child's end, or left zeroes.
        if unsafe { info.si_pid() } != 0 {
            break;
        }
        if !wait {
            return Ok(None);
        }
    }
    // SAFETY: the kernel has filled in the fields of a child's end.
    let status = unsafe { info.si_status() };
    let by = if info.si_code == libc::CLD_EXITED { EndedBy::Exit(status) } else { EndedBy::Signal(status) };
    let time = |t: libc::timeval| Duration::new(t.tv_sec.unsigned_abs(), t.tv_usec.unsigned_abs() as u32 * 1000);
    Ok(Some(Ended {
        by,
        cpu_time: time(usage.ru_utime) + time(usage.ru_stime),
        // In KiB on Linux.
        resident_peak_bytes: usage.ru_maxrss.unsigned_abs() << 10,
    }))
}

/// CPU time of all threads of the process `pid` so far. The caller has not reaped it, so the number is nobody else's.
pub(crate) fn cpu_time(pid: i32) -> io::Result<Duration> {
    // The clock of a process, as `clock_getcpuclockid` computes it: the inverted number, and 2 for scheduler time.
    let clock = (!pid << 3) | 2;
    // SAFETY: plain data, for which zero is a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` outlives the call.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes a socket takes before its other end reads them, if nobody asked for more. As much as there can be where the
/// kernel does not say.
pub(crate) fn socket_buffer_bytes() -> u64 {
    static BYTES: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap_or_default();
        text.trim().parse().unwrap_or(u64::MAX)
    })
}

/// How far the kernel's coarse clock moves at once: its tick.
pub(crate) fn clock_tick() -> Duration {
    static TICK: std::sync::OnceLock<Duration> = std::sync::OnceLock::new();
    *TICK.get_or_init(|| {
        // SAFETY: plain data, for which zero is a value.
        let mut step: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: `step` outlives the call.
        let _ = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut step) };
        // Where the kernel does not say, it stays zero, and no step is coarse enough.
        Duration::new(step.tv_sec.unsigned_abs(), step.tv_nsec.unsigned_abs() as u32)
    })
}

/// The version of Landlock's interface, or `None` where there is none.
pub(crate) fn landlock_abi() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no structure.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// A system call about which the kernel asks. The thread that made it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) id: u64,
    /// Who made it, as this process numbers threads.
    pub(crate) thread: i32,
    pub(crate) number: i32,
    pub(crate) arguments: [u64; 6],
}

/// Takes the next question. It is not waited for: there is one when the descriptor can be read.
///
/// # Errors
///
/// The system's; `ENOENT` when who made the call was interrupted.
pub(crate) fn receive_notice(listener: BorrowedFd<'_>) -> io::Result<Notice> {
    /// `SECCOMP_IOCTL_NOTIF_RECV` of `linux/seccomp.h`.
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    // `struct seccomp_notif`, as words: id; thread and flags; number and architecture; instruction; arguments.
    let mut words = [0u64; 10];
    // SAFETY: the structure has 80 bytes, which are zero, as the call demands, and outlive it.
    match unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, words.as_mut_ptr()) } {
        0 => {
            let [id, thread, number, _, arguments @ ..] = words;
            Ok(Notice { id, thread: thread as u32 as i32, number: number as u32 as i32, arguments })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a call that was asked about be carried out.
pub(crate) fn let_continue(listener: BorrowedFd<'_>, id: u64) {
    /// `SECCOMP_IOCTL_NOTIF_SEND` of `linux/seccomp.h`.
    const SEND: libc::c_ulong = 0xc018_2101;
    /// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, in the upper half of the last word.
    const CONTINUE: u64 = 1 << 32;
    // `struct seccomp_notif_resp`, as words: id; value; error and flags.
    let mut words = [id, 0, CONTINUE];
    // SAFETY: the structure has 24 bytes and outlives the call. The only error is that nobody waits for it any more.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, words.as_mut_ptr()) };
}

/// Kills the process.
pub(crate) fn kill(pidfd: &impl AsFd) {
    // The only error is that it has ended, which is as good.
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}
