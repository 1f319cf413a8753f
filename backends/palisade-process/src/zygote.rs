//! The host's side of the zygote: starting it, and asking it for instances.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use palisade_core::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use crate::conversation::{Answer, exchange};
use crate::reaper::{Later, reap_later};
use crate::sys::WORKER;
use crate::sys::protocol::{CREATE, INSTANCE_FDS, Plan};

/// Longest plan, in bytes; the zygote's own bound.
const PLAN_BYTES_MAX: usize = 160 << 10;
/// Bit of a plan's `ablated` by which inherited descriptors stay open.
const KEEP_DESCRIPTORS: u32 = 1 << 11;
/// A zygote that says nothing for so long is broken.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// A jail, ready to make instances.
#[derive(Debug)]
pub(crate) struct Zygote(Mutex<Option<Running>>);

/// A zygote's process, and the socket to it.
#[derive(Debug)]
struct Running {
    socket: OwnedFd,
    child: Child,
}

/// A new instance, before anything ran in it.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl Zygote {
    /// Starts a zygote that builds the jail of `plan`. `program` is the program of the plan's mounts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] naming the step that failed.
    pub(crate) fn start(plan: &Plan, program: Option<&OwnedFd>) -> Result<Zygote> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "prepare", "the process that builds the jail cannot be started")
                .with_source(error)
        };
        let message = plan.encode();
        if message.len() > PLAN_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidPolicy, "prepare", "the policy has too many or too long grants"));
        }
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed(error.into()))?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(ANSWER_TIME_MAX))
            .and_then(|()| sockopt::set_socket_send_buffer_size(&ours, 2 * PLAN_BYTES_MAX))
            .map_err(|error| failed(error.into()))?;
        let child = spawn(theirs, plan.ablated & KEEP_DESCRIPTORS != 0).map_err(failed)?;
        let zygote = Zygote(Mutex::new(Some(Running { socket: ours, child })));
        let program = program.map(AsFd::as_fd);
        let (number, text, _) = zygote.ask(&message, program.as_slice()).map_err(failed)?;
        match number {
            0 => Ok(zygote),
            errno => Err(Error::new(ErrorKind::Io, "prepare", format!("the jail cannot be built: {text}"))
                .with_help("`palisade doctor` shows what this machine allows")
                .with_source(io::Error::from_raw_os_error(errno.max(0)))),
        }
    }

    /// Makes an instance with these descriptors.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when the system has no room for another process, else [`ErrorKind::Io`].
    pub(crate) fn create(&self, fds: [BorrowedFd<'_>; INSTANCE_FDS]) -> Result<Created> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "instantiate", "the jail's zygote does not answer")
                .with_help("prepare the module anew")
                .with_source(error)
        };
        match self.ask(&[CREATE], &fds).map_err(failed)? {
            (pid, _, Some(pidfd)) if pid > 0 => Ok(Created { pid, pidfd }),
            (number, text, useless) => {
                if let Some(pidfd) = useless {
                    crate::sys::kill(&pidfd);
                    reap_later(Later::Instance(pidfd, None, None));
                }
                let error = io::Error::from_raw_os_error(number.saturating_neg());
                let kind = match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOMEM | libc::ENOSPC) => ErrorKind::Exhausted,
                    _ => ErrorKind::Io,
                };
                Err(Error::new(kind, "instantiate", format!("no new process: {text}")).with_source(error))
            }
        }
    }

    /// Process id of the zygote.
    #[cfg(test)]
    pub(crate) fn pid(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, |running| running.child.id())
    }

    /// Sets how long it may take to answer.
    #[cfg(test)]
    pub(crate) fn answer_within(&self, time: Duration) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = &running.as_ref().unwrap().socket;
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(time)).unwrap();
    }

    /// One question, one answer: its number, its text, its descriptor.
    ///
    /// Answers have no numbers: after a question that was not answered in time, the next would get its answer. So a zygote
    /// that failed once is asked nothing any more.
    fn ask(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Running { socket, .. }) = &*running else {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it failed before"));
        };
        let answer = exchange(socket, message, fds);
        if answer.is_err() {
            running.take().into_iter().for_each(Running::end);
        }
        answer
    }
}

impl Running {
    /// Ends it, without waiting for its end.
    fn end(mut self) {
        let _ = self.child.kill();
        reap_later(Later::Zygote(self.child, self.socket));
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // Closing the socket would end it too; it is ended and waited for elsewhere, so that this does not block.
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take().into_iter().for_each(Running::end);
    }
}

/// Starts a worker with `socket` as its standard input.
///
/// A worker asks the kernel to end it together with the *thread* that started it, so one thread that never ends starts
/// all of them.
fn spawn(socket: OwnedFd, keep_descriptors: bool) -> io::Result<Child> {
    type Job = (OwnedFd, bool, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts workers is gone");
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let run = move || {
            for (socket, keep_descriptors, answer) in jobs {
                let _ = answer.send(spawn_here(socket, keep_descriptors));
            }
        };
        // Without a thread the channel is closed, which every caller notices.
        let _ = std::thread::Builder::new().name("palisade-spawner".to_owned()).spawn(run);
        Mutex::new(sender)
    });
    let (sender, answer) = channel();
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((socket, keep_descriptors, sender))
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

fn spawn_here(socket: OwnedFd, keep_descriptors: bool) -> io::Result<Child> {
    static PROGRAM: OnceLock<io::Result<OwnedFd>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| sealed("palisade-worker", WORKER));
    let program = program.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg(std::process::id().to_string())
        .args(keep_descriptors.then_some("keep"))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A file in memory that cannot change any more.
pub(crate) fn sealed(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(contents)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    // Readers begin where the file's position is.
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file.into())
}
