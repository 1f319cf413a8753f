//! A process in its jail, and the host's ends of its pipes.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{Error, ErrorKind, Result};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::cpu_group::{CpuGroup, CpuGroups};
use crate::jail::Jail;
use crate::memory_group::MemoryGroup;
use crate::notices::Notices;
use crate::reaper::{Later, reap_later};
use crate::rest::Rest;
use crate::sys;
use crate::watched::Watched;

/// Size asked of data pipes: what an ordinary user may have. Fewer wake-ups for large inputs and outputs.
const PIPE_BYTES: usize = 1 << 20;

/// What of a group's peak may be the kernel's cache of files before anybody looks.
const CACHED_BYTES_MIN: u64 = 2 << 20;

/// A process in its jail, and our ends of its pipes. Dropping it kills it.
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// `None` once it has been reaped.
    pub(crate) pidfd: Option<Watched>,
    /// Standard input of a program; nothing of a library.
    pub(crate) stdin: Option<Watched>,
    /// Standard output of a program; nothing of a library, whose standard output goes with its standard error.
    pub(crate) stdout: Option<Watched>,
    pub(crate) stderr: Option<Watched>,
    /// To the worker.
    pub(crate) request: Watched,
    /// From the worker, and once guest code runs from the guest.
    pub(crate) reply: Option<Watched>,
    /// To and from a program that may call host functions, until it runs and they take the place of the worker's.
    pub(crate) host: Option<(Watched, Watched)>,
    /// Where the kernel asks about its system calls, once the host has taken it.
    pub(crate) notices: Option<Notices>,
    /// The group that bounds its memory.
    pub(crate) group: Option<MemoryGroup>,
    /// The group that counts its CPU time, where its children count too.
    cpu_group: Option<CpuGroup>,
    /// What the kernel says about its memory, opened when it is first looked at.
    memory: Option<File>,
    /// For what is read from the pipes.
    pub(crate) buffer: Vec<u8>,
    /// CPU time of its earlier calls.
    pub(crate) cpu_time: Duration,
    /// A shared library is loaded in it.
    pub(crate) loaded: bool,
    /// It reported that it is locked in.
    pub(crate) parked: bool,
    /// It is a program that runs, and makes host calls.
    pub(crate) speaks: bool,
    /// A library that returned from a call and computes nothing until the next.
    rest: Option<Arc<Rest>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Process {
    /// Has the zygote make one.
    pub(crate) fn create(jail: &Jail) -> Result<Process> {
        let failed = |error: rustix::io::Errno| {
            Error::new(ErrorKind::Exhausted, "instantiate", "no pipe for a new instance")
                .with_source(io::Error::from(error))
        };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failed);
        let (request_theirs, request) = pipe()?;
        let (reply, reply_theirs) = pipe()?;
        let (stderr, stderr_theirs) = pipe()?;
        let null = || jail.null.as_fd();
        let (mut stdin, mut stdout, mut host) = (None, None, None);
        let created = if jail.is_library {
            let _ = (fcntl_setpipe_size(&request, PIPE_BYTES), fcntl_setpipe_size(&reply, PIPE_BYTES));
            let errors = stderr_theirs.as_fd();
            jail.create([null(), errors, errors, request_theirs.as_fd(), reply_theirs.as_fd(), null(), null()])?
        } else {
            let (stdin_theirs, ours) = pipe()?;
            stdin = Some(ours);
            let (ours, stdout_theirs) = pipe()?;
            stdout = Some(ours);
            let theirs = match jail.policy.grants.host_functions.is_empty() {
                true => None,
                false => {
                    let ((answers_theirs, answers), (calls, calls_theirs)) = (pipe()?, pipe()?);
                    host = Some((answers, calls));
                    Some((answers_theirs, calls_theirs))
                }
            };
            jail.create([
                stdin_theirs.as_fd(),
                stdout_theirs.as_fd(),
                stderr_theirs.as_fd(),
                request_theirs.as_fd(),
                reply_theirs.as_fd(),
                theirs.as_ref().map_or_else(null, |(answers, _)| answers.as_fd()),
                theirs.as_ref().map_or_else(null, |(_, calls)| calls.as_fd()),
            ])?
        };
        let watched = |fd: OwnedFd| {
            Watched::new(fd).map_err(|error| {
                Error::new(ErrorKind::Io, "instantiate", "a pipe of the new instance cannot be used").with_source(error)
            })
        };
        let mut process = Process {
            pid: created.pid,
            pidfd: Some(watched(created.pidfd)?),
            stdin: stdin.map(watched).transpose()?,
            stdout: stdout.map(watched).transpose()?,
            stderr: Some(watched(stderr)?),
            request: watched(request)?,
            reply: Some(watched(reply)?),
            host: match host {
                Some((answers, calls)) => Some((watched(answers)?, watched(calls)?)),
                None => None,
            },
            notices: None,
            group: None,
            cpu_group: None,
            memory: None,
            buffer: Vec::new(),
            cpu_time: Duration::ZERO,
            loaded: false,
            parked: false,
            speaks: false,
            rest: None,
        };
        if let (Some(groups), Some(bytes)) = (&jail.shared.memory_groups, jail.policy.quota.memory_bytes) {
            // It is parked and uses nothing yet. Without the group it must not go on.
            let group = groups.take(bytes).and_then(|group| group.attach(process.pid).map(|()| group));
            process.group = Some(group.map_err(|error| {
                Error::new(ErrorKind::Exhausted, "instantiate", "no control group for a new instance")
                    .with_source(error)
            })?);
        }
        if jail.policy.grants.child_processes {
            let of_memory = process.group.as_ref().and_then(MemoryGroup::cpu);
            let group = of_memory.or_else(|| jail.shared.cpu_groups.as_ref().map(CpuGroups::make)).transpose();
            let group = group.and_then(|group| {
                group.as_ref().map_or(Ok(()), |group| group.attach(process.pid))?;
                Ok(group)
            });
            process.cpu_group = group.map_err(|error| {
                Error::new(ErrorKind::Exhausted, "instantiate", "no control group for a new instance")
                    .with_source(error)
            })?;
        }
        Ok(process)
    }

    /// CPU time so far: of all its processes where a group counts it, else of the first one, while it lives.
    pub(crate) fn cpu_time_so_far(&self) -> Duration {
        match &self.cpu_group {
            Some(group) => group.used().unwrap_or(Duration::MAX),
            None => sys::cpu_time(self.pid).unwrap_or_default(),
        }
    }

    /// CPU time in the end, when the kernel counted `own` for the process that was waited for.
    pub(crate) fn cpu_time_in_all(&self, own: Duration) -> Duration {
        self.cpu_group.as_ref().and_then(|group| group.used().ok()).unwrap_or(own)
    }
}

impl Process {
    /// Its call has ended and it lives on: it is kept from computing.
    ///
    /// # Errors
    ///
    /// The system's, when it has no descriptor left; then it must not live on.
    pub(crate) fn begin_rest(&mut self) -> io::Result<()> {
        let rest = match (&self.rest, &self.pidfd) {
            (Some(rest), _) => rest,
            (None, Some(pidfd)) => self.rest.insert(Rest::new(pidfd.as_fd().try_clone_to_owned()?)),
            (None, None) => return Ok(()),
        };
        rest.begin();
        Ok(())
    }

    /// A call begins.
    pub(crate) fn end_rest(&self) {
        if let Some(rest) = &self.rest {
            rest.end();
        }
    }

    /// Memory it holds now: its group, or what of it is resident. Zero when the kernel does not say.
    pub(crate) fn memory_now_bytes(&self) -> u64 {
        match &self.group {
            Some(group) => group.now_bytes(),
            None => {
                let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
                let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
                pages.saturating_mul(rustix::param::page_size() as u64)
            }
        }
    }

    /// Most memory it held at once when it has ended, and the kernel says that its first process had `resident` bytes in its
    /// memory at once.
    ///
    /// A group's count includes what the kernel keeps of files that were read or written, for as long as nobody needs the room.
    /// That is the kernel's, not the guest's, and still in the group.
    pub(crate) fn memory_peak_in_the_end(&mut self, resident: u64) -> u64 {
        if self.group.is_none() {
            return resident;
        }
        let peak = self.memory_peak_bytes();
        // Looking costs more than a small difference matters.
        let Some(group) = self.group.as_ref().filter(|_| peak > resident.saturating_add(CACHED_BYTES_MIN)) else {
            return peak;
        };
        peak.saturating_sub(group.cached_bytes()).max(resident).min(peak)
    }

    /// Most memory its group held at once, or that it had resident at once; for the latter it must be alive.
    pub(crate) fn memory_peak_bytes(&mut self) -> u64 {
        let file = match (&mut self.memory, &self.group) {
            (Some(file), _) => file,
            (none, group) => {
                let status = || PathBuf::from(format!("/proc/{}/status", self.pid));
                match File::open(group.as_ref().map_or_else(status, MemoryGroup::peak_file)) {
                    Ok(file) => none.insert(file),
                    Err(_) => return 0,
                }
            }
        };
        let mut text = [0; 4096];
        let len = rustix::io::pread(&*file, &mut text, 0).unwrap_or(0);
        let Ok(text) = std::str::from_utf8(&text[..len]) else { return 0 };
        if self.group.is_some() {
            return text.trim().parse().unwrap_or(0);
        }
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            sys::kill(&pidfd);
            // Process 1 of its namespace: the kernel kills everything in it before this one is gone.
            if !matches!(sys::reap(pidfd.as_fd(), false), Ok(Some(_)) | Err(_)) {
                reap_later(Later::Instance(pidfd.into_inner(), self.group.take(), self.cpu_group.take()));
            }
        }
    }
}
