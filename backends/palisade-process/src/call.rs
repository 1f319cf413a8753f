//! One call: drives the instance's pipes, clocks and host functions until it has ended.
//!
//! Everything the instance says is untrusted once guest code runs in it. What counts is what the kernel says: how the
//! process ended, and what it used.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::Timer;
use palisade_core::{
    Bytes, Call, CancelToken, Cancelled, Error, ErrorKind, Execution, HostFunctionError, Input, Invocation, LogLevel,
    Outcome, OutputStream, Phase, Quota, Resource, Result, TraceContext, TrapKind, Usage,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::kind::Kind;
use crate::memory_group::MemoryGroup;
use crate::notices::{Notices, Verdict};
use crate::outcome;
use crate::prepared::ProcessPrepared;
use crate::process::Process;
use crate::seccomp;
use crate::streams::{Exceeded, Streams};
use crate::sys::{self, Ended, EndedBy, protocol as wire};

/// Longest arguments of a call, in bytes; the worker's own bound is a little larger.
pub(crate) const ARGUMENT_BYTES_MAX: usize = 1 << 20;
/// Longest host call, in bytes.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Longest frame of another kind, in bytes: the worker's pieces, and what goes before them.
const PIECE_BYTES_MAX: usize = (1 << 20) + 64;
/// Longest name of a host function, in bytes.
const NAME_BYTES_MAX: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Input that is sent together with its call: copying it costs less than another system call.
const AT_ONCE_BYTES: usize = 2048;
/// Bytes held for a host call for which nobody asks how much memory the guest has left: asking costs a system call or two.
const HELD_FREE_BYTES: usize = 64 << 10;
/// How long a call may block its thread before it leaves waiting to others.
const HURRY: Duration = Duration::from_micros(100);
/// Shortest time between two looks at a guest's CPU clock.
const CPU_LOOK_MIN: Duration = Duration::from_micros(300);
/// Shortest time between two looks at the CPU clock of a guest that rests: one that has used nearly all and then sleeps
/// costs its host a look this often, not every [`CPU_LOOK_MIN`].
const CPU_LOOK_RESTING_MIN: Duration = Duration::from_millis(8);

/// Runs `call` in `process`.
///
/// # Errors
///
/// No guest code ran: the instance could not lock itself in, or the program cannot be executed.
pub(crate) async fn run(prepared: &ProcessPrepared, process: &mut Process, call: Call) -> Result<Execution> {
    let mut running = Running::start(prepared, process, call)?;
    poll_fn(|context| running.poll(context)).await
}

/// Why a call is being ended before the guest ended by itself.
#[derive(Debug)]
enum Stop {
    Exceeded(Exceeded),
    Cancelled,
    Denied(String),
    Crashed(String),
    /// The library broke the protocol, or closed its pipe.
    Forged(&'static str),
    /// The library returned from the entry; the instance lives on.
    Returned(i32),
    /// The library cannot be loaded.
    LoadFailed(String),
    /// The guest made a system call that only an attack makes.
    Forbidden(i32),
    /// The guest ended itself by a signal.
    Raised(i32),
    /// No guest code ran.
    Refused(Error),
}

struct Running<'a> {
    prepared: &'a ProcessPrepared,
    process: &'a mut Process,
    quota: &'a Quota,
    started: Instant,
    streams: Streams,
    input: Option<Input>,
    /// Input on its way to standard input.
    input_now: Bytes,
    input_bytes: u64,
    /// The whole input of a library, gathered before its call.
    gathered: Option<Vec<u8>>,
    to_worker: VecDeque<Bytes>,
    from_worker: Vec<u8>,
    invocation: Option<Invocation>,
    host_calls: u64,
    entry: String,
    arguments: Vec<String>,
    asked_to_load: bool,
    call_sent: bool,
    phase: Phase,
    deadline: Option<(Timer, Instant)>,
    cpu_look: Option<Timer>,
    /// CPU time at the last look, and how long it was until the next.
    cpu_seen: (Duration, Duration),
    trace: Option<Arc<TraceContext>>,
    cancel: Option<(CancelToken, Cancelled)>,
    /// The signal a library reported, and whether its stack ran over.
    reported_signal: Option<(i32, bool)>,
    stop: Option<Stop>,
    killed: bool,
    hurried: bool,
    ended: Option<Ended>,
}

impl<'a> Running<'a> {
    fn start(prepared: &'a ProcessPrepared, process: &'a mut Process, call: Call) -> Result<Self> {
        let started = Instant::now();
        let quota = &prepared.jail.policy.quota;
        let stale =
            || Error::new(ErrorKind::Stale, "call", "the instance has ended").with_help("make a fresh instance");
        let deadline = quota.wall_time.and_then(|limit| started.checked_add(limit));
        if process.pidfd.is_none() {
            return Err(stale());
        }
        let is_library = matches!(prepared.kind, Kind::Library);
        Ok(Running {
            quota,
            started,
            streams: Streams::new(quota, call.sink),
            input: Some(call.input),
            input_now: Bytes::new(),
            input_bytes: 0,
            gathered: is_library.then(Vec::new),
            to_worker: VecDeque::new(),
            from_worker: Vec::new(),
            invocation: None,
            host_calls: 0,
            entry: call.entry.into_owned(),
            arguments: call.arguments,
            asked_to_load: process.loaded,
            call_sent: false,
            phase: Phase::Starting,
            deadline: deadline.map(|deadline| (Timer::at(deadline), deadline)),
            cpu_look: quota.cpu_time.map(Timer::after),
            cpu_seen: (Duration::ZERO, Duration::ZERO),
            trace: call.trace,
            cancel: call.cancel.map(|token| (token.clone(), token.cancelled())),
            reported_signal: None,
            stop: None,
            killed: false,
            hurried: false,
            ended: None,
            prepared,
            process,
        })
    }

    fn is_library(&self) -> bool {
        matches!(self.prepared.kind, Kind::Library)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Execution>> {
        loop {
            if self.ended.is_none() && self.stop.is_none() {
                self.stop = self.hurry().and_then(|()| self.advance(Some(context))).err();
            }
            match &self.stop {
                // Whatever else came in with it was handled first.
                Some(Stop::Returned(code)) => {
                    let code = *code;
                    return Poll::Ready(Ok(self.returned(code)));
                }
                Some(_) if !self.killed => {
                    self.killed = true;
                    if let Some(pidfd) = &self.process.pidfd {
                        sys::kill(pidfd);
                    }
                }
                _ => {}
            }
            if self.ended.is_none() {
                match self.poll_end(context) {
                    Poll::Ready(Ok(ended)) => {
                        self.ended = Some(ended);
                        self.process.pidfd = None;
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        self.process.pidfd = None;
                        return Poll::Ready(Err(Error::new(
                            ErrorKind::Internal,
                            "call",
                            "the end of the instance was taken by another part of this program",
                        )
                        .with_help("do not wait for children you did not start, and do not ignore SIGCHLD")
                        .with_source(error)));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            return Poll::Ready(self.finish());
        }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Ended>> {
        loop {
            let Some(pidfd) = &mut self.process.pidfd else { return Poll::Ready(Err(io::ErrorKind::NotFound.into())) };
            match sys::reap(pidfd.as_fd(), false) {
                Ok(Some(ended)) => return Poll::Ready(Ok(ended)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match pidfd.poll(Some(context), false) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Runs the beginning of a call without any executor: waking one through the thread that watches descriptors costs more
    /// than most calls of a warm library. Blocks its thread for [`HURRY`] at most.
    fn hurry(&mut self) -> Result<(), Stop> {
        if std::mem::replace(&mut self.hurried, true) || !self.process.loaded {
            return Ok(());
        }
        if self.cancel.as_ref().is_some_and(|(token, _)| token.is_cancelled()) {
            return Err(Stop::Cancelled);
        }
        self.feed(None)?;
        self.write_worker(None)?;
        let begun = Instant::now();
        while let Some(reply) = &self.process.reply {
            let left = HURRY.saturating_sub(begun.elapsed());
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let mut ready = [PollFd::new(reply, PollFlags::IN)];
            match rustix::event::poll(&mut ready, Some(&timeout)) {
                Ok(1..) => self.read_worker(None)?,
                // Long enough; or a signal for somebody else.
                Ok(_) | Err(_) => break,
            }
            if self.invocation.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Does everything that can be done now. Without a context it does not ask to be woken.
    fn advance(&mut self, mut context: Option<&mut Context<'_>>) -> Result<(), Stop> {
        if let Some((token, cancelled)) = &mut self.cancel {
            let woken = context.as_deref_mut().is_some_and(|context| Pin::new(cancelled).poll(context).is_ready());
            if woken || token.is_cancelled() {
                return Err(Stop::Cancelled);
            }
        }
        if let Some(context) = context.as_deref_mut() {
            self.check_times(context)?;
        }
        loop {
            let before = self.progress();
            self.read_stream(context.as_deref_mut(), OutputStream::Output)?;
            self.read_stream(context.as_deref_mut(), OutputStream::Error)?;
            self.read_worker(context.as_deref_mut())?;
            if let Some(context) = context.as_deref_mut()
                && self.poll_host_function(context)?
            {
                // What came behind the call has waited in the pipe.
                continue;
            }
            self.feed(context.as_deref_mut())?;
            self.write_worker(context.as_deref_mut())?;
            if before == self.progress() {
                // Last: only now is it known whether there is something to listen to.
                return context.map_or(Ok(()), |context| self.poll_notices(context));
            }
        }
    }

    /// Changes whenever one source may have made work for another.
    fn progress(&self) -> (bool, bool, bool, u64, bool) {
        let answered = self.invocation.is_none();
        (self.process.parked, self.process.loaded, self.call_sent, self.host_calls, answered)
    }

    fn check_times(&mut self, context: &mut Context<'_>) -> Result<(), Stop> {
        if let Some((timer, deadline)) = &mut self.deadline {
            let now = Instant::now();
            if now >= *deadline || Pin::new(timer).poll(context).is_ready() {
                return Err(self.over_wall_time());
            }
        }
        if let (Some(limit), Some(timer)) = (self.quota.cpu_time, &mut self.cpu_look) {
            while Pin::new(&mut *timer).poll(context).is_ready() {
                let used = self.process.cpu_time_so_far().saturating_sub(self.process.cpu_time);
                if used > limit {
                    return Err(Stop::Exceeded(Exceeded {
                        resource: Resource::CpuTime,
                        limit: nanos(limit),
                        used: nanos(used),
                    }));
                }
                // Several threads use the rest up faster than the clock on the wall goes.
                let others =
                    self.quota.threads.unwrap_or(64).saturating_add(self.quota.processes.unwrap_or(64)).min(64);
                let threads = u32::try_from(others).unwrap_or(64) + 1;
                let (before, waited) = self.cpu_seen;
                // Within the time between two looks it cannot use up more than is left, unless it just woke up.
                let least = if used == before { (2 * waited).min(CPU_LOOK_RESTING_MIN) } else { CPU_LOOK_MIN };
                let wait = ((limit - used) / threads).max(least.max(CPU_LOOK_MIN));
                self.cpu_seen = (used, wait);
                timer.set_after(wait);
            }
        }
        Ok(())
    }

    /// Answers what the kernel asks about the guest's system calls.
    fn poll_notices(&mut self, context: &mut Context<'_>) -> Result<(), Stop> {
        let Some(notices) = &mut self.process.notices else { return Ok(()) };
        match notices.poll(self.process.pid, context) {
            Poll::Pending => Ok(()),
            Poll::Ready(Some(Verdict::Forbidden(number))) => Err(Stop::Forbidden(number)),
            Poll::Ready(Some(Verdict::Ended(signal))) => Err(Stop::Raised(signal)),
            Poll::Ready(None) => {
                self.process.notices = None;
                Ok(())
            }
        }
    }

    fn over_wall_time(&self) -> Stop {
        let limit = self.quota.get(Resource::WallTime).unwrap_or(0);
        let used = nanos(self.started.elapsed()).max(limit.saturating_add(1));
        Stop::Exceeded(Exceeded { resource: Resource::WallTime, limit, used })
    }

    fn read_stream(&mut self, mut context: Option<&mut Context<'_>>, stream: OutputStream) -> Result<(), Stop> {
        let pipe = match stream {
            OutputStream::Output => &mut self.process.stdout,
            _ => &mut self.process.stderr,
        };
        let Some(source) = pipe else { return Ok(()) };
        let buffer = &mut self.process.buffer;
        buffer.reserve_exact(CHUNK);
        loop {
            let room = self.streams.room(stream).min(CHUNK);
            buffer.clear();
            let (read, _) = match rustix::io::read(&*source, &mut buffer.spare_capacity_mut()[..room]) {
                Ok((read, rest)) => (Ok(&*read), rest),
                Err(error) => (Err(error), &mut [][..]),
            };
            match read {
                Ok([]) => {
                    *pipe = None;
                    return Ok(());
                }
                Ok(bytes) => self.streams.write(stream, bytes).map_err(Stop::Exceeded)?,
                Err(rustix::io::Errno::AGAIN) => match source.poll(context.as_deref_mut(), false) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Err(Stop::Crashed(format!("a pipe cannot be watched: {error}"))),
                    Poll::Pending => return Ok(()),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Stop::Crashed(format!("a pipe cannot be read: {error}"))),
            }
            if let Some((_, deadline)) = &self.deadline
                && Instant::now() >= *deadline
            {
                // A guest that writes without end keeps this loop busy.
                return Err(self.over_wall_time());
            }
        }
    }

    /// Reads frames and acts on them.
    fn read_worker(&mut self, mut context: Option<&mut Context<'_>>) -> Result<(), Stop> {
        loop {
            while let Some((kind, message)) = self.take_frame()? {
                self.on_frame(kind, message)?;
            }
            // One host call at a time: what comes behind it waits in the pipe.
            if self.invocation.is_some() {
                return Ok(());
            }
            let Some(source) = &mut self.process.reply else { return Ok(()) };
            self.from_worker.reserve(CHUNK);
            match rustix::io::read(&*source, rustix::buffer::spare_capacity(&mut self.from_worker)) {
                Ok(0) => {
                    self.process.reply = None;
                    return match (self.is_library(), self.phase) {
                        // Closed by being executed. From now on it is the program that speaks, if it may.
                        (false, _) => {
                            self.phase = Phase::Running;
                            if let Some((answers, calls)) = self.process.host.take() {
                                (self.process.request, self.process.reply) = (answers, Some(calls));
                                self.process.speaks = true;
                                continue;
                            }
                            Ok(())
                        }
                        // It is ending, or closed its pipe to be left alone; the kernel will tell which.
                        (true, _) => Ok(()),
                    };
                }
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => match source.poll(context.as_deref_mut(), false) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Err(Stop::Crashed(format!("a pipe cannot be watched: {error}"))),
                    Poll::Pending => return Ok(()),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Stop::Crashed(format!("a pipe cannot be read: {error}"))),
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, Stop> {
        if self.invocation.is_some() {
            return Ok(None);
        }
        let Some((header, rest)) = self.from_worker.split_first_chunk::<{ wire::FRAME_HEADER }>() else {
            return Ok(None);
        };
        let [kind, len @ ..] = *header;
        let len = u32::from_le_bytes(len) as usize;
        // Only a host call may be long; the rest comes in pieces.
        let longest = match kind {
            wire::HOST_CALL => usize::try_from(self.quota.memory_bytes.unwrap_or(u64::MAX)).unwrap_or(usize::MAX),
            _ => PIECE_BYTES_MAX,
        };
        if len > longest.min(FRAME_BYTES_MAX) {
            return Err(Stop::Forged("a message of the plugin is too long"));
        }
        if rest.len() < len {
            // What it announces is held for it until it has come, and while the host function runs.
            return if kind == wire::HOST_CALL { self.charge(len).map(|()| None) } else { Ok(None) };
        }
        let message = rest[..len].to_vec();
        if kind == wire::HOST_CALL {
            self.charge(len)?;
        }
        self.from_worker.drain(..wire::FRAME_HEADER + len);
        if self.from_worker.capacity() > PIECE_BYTES_MAX {
            self.from_worker.shrink_to(CHUNK);
        }
        Ok(Some((kind, message)))
    }

    /// Counts `held` bytes, which this process holds for a host call of the guest, into the guest's memory.
    fn charge(&self, held: usize) -> Result<(), Stop> {
        let Some(limit) = self.quota.memory_bytes.filter(|_| held > HELD_FREE_BYTES) else { return Ok(()) };
        let used = self.process.memory_now_bytes().saturating_add(held as u64);
        match used > limit {
            true => Err(Stop::Exceeded(Exceeded { resource: Resource::Memory, limit, used })),
            false => Ok(()),
        }
    }

    fn on_frame(&mut self, kind: u8, message: Vec<u8>) -> Result<(), Stop> {
        if !self.process.parked {
            // No guest code ran yet: this is the worker's own word.
            return match kind {
                wire::PARKED => {
                    self.process.parked = true;
                    self.process.notices = self.process.pidfd.as_ref().and_then(|pidfd| Notices::take(pidfd.as_fd()));
                    self.go();
                    Ok(())
                }
                _ => Err(Stop::Refused(setup_failed(&message))),
            };
        }
        if !self.is_library() {
            return match kind {
                wire::HOST_CALL if self.process.speaks => self.host_call(message),
                wire::SETUP_FAILED if !self.process.speaks => Err(Stop::Refused(setup_failed(&message))),
                _ => Err(Stop::Forged("the program does not keep to the form of host calls")),
            };
        }
        let forged = Stop::Forged("the plugin says what nobody asked for");
        match kind {
            wire::SETUP_FAILED if !self.process.loaded => Err(Stop::LoadFailed(setup_failed(&message).to_string())),
            wire::LOADED if self.asked_to_load && !self.process.loaded => {
                self.process.loaded = true;
                Ok(())
            }
            wire::LOAD_FAILED if !self.process.loaded => Err(Stop::LoadFailed(printable(&message))),
            wire::OUTPUT => self.streams.write(OutputStream::Output, &message).map_err(Stop::Exceeded),
            wire::ERROR => self.streams.write(OutputStream::Error, &message).map_err(Stop::Exceeded),
            wire::LOG => {
                let Some((level, text)) = message.split_first_chunk::<4>() else { return Err(forged) };
                let level = LogLevel::from_guest(u32::from_le_bytes(*level));
                self.streams.write(OutputStream::Log(level), text).map_err(Stop::Exceeded)
            }
            wire::HOST_CALL if self.call_sent => self.host_call(message),
            wire::SIGNAL => {
                let [signal, overran] = message[..] else { return Err(forged) };
                self.reported_signal = Some((signal.into(), overran != 0));
                Ok(())
            }
            wire::RETURN if self.call_sent && self.process.loaded => {
                let Some((code, read)) = message.split_first_chunk::<4>() else { return Err(forged) };
                let Ok(read) = <[u8; 8]>::try_from(read) else { return Err(forged) };
                // All of it was sent; the guest says how much it looked at.
                self.input_bytes = u64::from_le_bytes(read).min(self.input_bytes);
                Err(Stop::Returned(i32::from_le_bytes(*code)))
            }
            _ => Err(forged),
        }
    }

    fn host_call(&mut self, message: Vec<u8>) -> Result<(), Stop> {
        let mut reader = wire::Reader(&message);
        let (Some(name), Some(input)) = (reader.bytes(), reader.bytes()) else {
            return Err(Stop::Forged("a host call is malformed"));
        };
        let input_at = message.len() - reader.0.len() - input.len();
        let input_end = input_at + input.len();
        let name = String::from_utf8_lossy(&name[..name.len().min(NAME_BYTES_MAX)]).into_owned();
        let limit = self.quota.host_calls.unwrap_or(u64::MAX);
        if self.host_calls >= limit {
            let used = self.host_calls.saturating_add(1);
            return Err(Stop::Exceeded(Exceeded { resource: Resource::HostCalls, limit, used }));
        }
        let input = Bytes::from(message).slice(input_at..input_end);
        let invocation = self.prepared.functions.invoke(&name, input, self.trace.as_ref());
        let invocation = invocation.ok_or_else(|| Stop::Denied(format!("host_functions: {name}")))?;
        self.host_calls += 1;
        self.invocation = Some(invocation);
        self.phase = Phase::HostCall;
        Ok(())
    }

    /// Whether the guest got its answer.
    fn poll_host_function(&mut self, context: &mut Context<'_>) -> Result<bool, Stop> {
        let Some(invocation) = &mut self.invocation else { return Ok(false) };
        let Poll::Ready(answer) = Pin::new(invocation).poll(context) else { return Ok(false) };
        self.invocation = None;
        self.phase = Phase::Running;
        let (status, result) = match answer {
            Ok(Ok(result)) => (0u8, result),
            Ok(Err(HostFunctionError(message))) => (1, Bytes::from(message)),
            Err(panic) => return Err(Stop::Crashed(format!("a host function panicked: {panic}"))),
        };
        self.charge(result.len())?;
        let len = u32::try_from(result.len() + 1)
            .map_err(|_| Stop::Crashed("a host function gave back more than 4 GiB".to_owned()))?;
        let mut frame = wire::frame_header(wire::HOST_RESULT, len).to_vec();
        frame.push(status);
        self.to_worker.extend([frame.into(), result]);
        Ok(true)
    }

    /// Lets the parked worker go on.
    fn go(&mut self) {
        let mut message = wire::Writer::default();
        if !self.is_library() {
            message.texts(&std::mem::take(&mut self.arguments));
        }
        self.asked_to_load = true;
        let len = u32::try_from(message.0.len()).unwrap_or(u32::MAX);
        self.to_worker.push_back([&wire::frame_header(wire::GO, len), &message.0[..]].concat().into());
    }

    /// Moves input on: into the pipe of a program, or together for a library.
    fn feed(&mut self, mut context: Option<&mut Context<'_>>) -> Result<(), Stop> {
        loop {
            if self.input_now.is_empty() {
                match &mut self.input {
                    None => break,
                    Some(Input::Bytes(bytes)) => {
                        self.input_now = std::mem::take(bytes);
                        self.input = None;
                    }
                    Some(Input::Stream(_)) if context.is_none() => break,
                    Some(Input::Stream(stream)) => {
                        match context.as_deref_mut().map_or(Poll::Pending, |context| stream.as_mut().poll_next(context))
                        {
                            Poll::Ready(Some(Ok(bytes))) => self.input_now = bytes,
                            Poll::Ready(Some(Err(_)) | None) => self.input = None,
                            Poll::Pending => break,
                        }
                    }
                }
            }
            if let Some(gathered) = &mut self.gathered {
                let limit = self.quota.memory_bytes.unwrap_or(u64::MAX).min(FRAME_BYTES_MAX as u64);
                let used = (gathered.len() + self.input_now.len()) as u64;
                if used > limit {
                    return Err(Stop::Exceeded(Exceeded { resource: Resource::Memory, limit, used }));
                }
                gathered.extend(std::mem::take(&mut self.input_now));
                continue;
            }
            let Some(stdin) = &mut self.process.stdin else {
                (self.input, self.input_now) = (None, Bytes::new());
                break;
            };
            while !self.input_now.is_empty() {
                match rustix::io::write(&*stdin, &self.input_now) {
                    Ok(len) => {
                        self.input_bytes += len as u64;
                        let _ = self.input_now.split_to(len);
                    }
                    Err(rustix::io::Errno::AGAIN) => match stdin.poll(context.as_deref_mut(), true) {
                        Poll::Ready(_) => {}
                        Poll::Pending => return Ok(()),
                    },
                    Err(rustix::io::Errno::INTR) => {}
                    // The guest closed its end; it wants no more.
                    Err(_) => (self.input, self.input_now) = (None, Bytes::new()),
                }
            }
        }
        if self.input.is_none() && self.input_now.is_empty() {
            self.process.stdin = None;
            if self.process.loaded
                && !self.call_sent
                && let Some(input) = &mut self.gathered
            {
                let mut message = wire::Writer::default();
                message.text(&self.entry).number(input.len() as u64);
                let len = u32::try_from(message.0.len() + input.len()).unwrap_or(u32::MAX);
                self.input_bytes = input.len() as u64;
                let mut frame = [&wire::frame_header(wire::CALL, len), &message.0[..]].concat();
                let input = std::mem::take(input);
                if input.len() <= AT_ONCE_BYTES {
                    frame.extend(input);
                    self.to_worker.push_back(frame.into());
                } else {
                    self.to_worker.extend([frame.into(), input.into()]);
                }
                self.call_sent = true;
                self.phase = Phase::Running;
            }
        } else if self.phase == Phase::Starting && self.process.loaded {
            // Waiting for input that has not come yet.
            self.phase = Phase::HostCall;
        }
        Ok(())
    }

    fn write_worker(&mut self, mut context: Option<&mut Context<'_>>) -> Result<(), Stop> {
        while let Some(next) = self.to_worker.front_mut() {
            if next.is_empty() {
                self.to_worker.pop_front();
                continue;
            }
            match rustix::io::write(&self.process.request, next) {
                Ok(len) => drop(next.split_to(len)),
                Err(rustix::io::Errno::AGAIN) => match self.process.request.poll(context.as_deref_mut(), true) {
                    Poll::Ready(_) => {}
                    Poll::Pending => return Ok(()),
                },
                Err(rustix::io::Errno::INTR) => {}
                // It is ending; the kernel will tell how.
                Err(_) => self.to_worker.clear(),
            }
        }
        Ok(())
    }

    /// The execution of a library that returned and lives on.
    fn returned(&mut self, code: i32) -> Execution {
        let cpu_now = self.process.cpu_time_so_far();
        let cpu_time = cpu_now.saturating_sub(self.process.cpu_time);
        self.process.cpu_time = cpu_now;
        let mut outcome = Outcome::from_exit_code(code);
        // What it wrote before it returned is in the pipe.
        if let Err(Stop::Exceeded(Exceeded { resource, limit, used })) = self.read_stream(None, OutputStream::Error) {
            outcome = Outcome::QuotaExceeded { resource, limit, used, phase: Phase::Running };
        }
        let wall_time = self.started.elapsed();
        for (resource, limit, used) in
            [(Resource::WallTime, self.quota.wall_time, wall_time), (Resource::CpuTime, self.quota.cpu_time, cpu_time)]
        {
            if let Some(limit) = limit.filter(|limit| used > *limit) {
                let (limit, used) = (nanos(limit), nanos(used));
                outcome = Outcome::QuotaExceeded { resource, limit, used, phase: Phase::Running };
            }
        }
        let peak = self.process.memory_peak_bytes();
        self.execution(outcome, wall_time, cpu_time, peak)
    }

    /// The execution of a process that is gone.
    fn finish(&mut self) -> Result<Execution> {
        let Some(ended) = self.ended else {
            return Err(Error::new(ErrorKind::Internal, "call", "the call ended before its process"));
        };
        // Nobody writes any more: what is in the pipes is all there is.
        if matches!(self.stop, None | Some(Stop::Raised(_) | Stop::Forbidden(_))) {
            let rest = self
                .read_stream(None, OutputStream::Output)
                .and_then(|()| self.read_stream(None, OutputStream::Error))
                .and_then(|()| self.read_worker(None));
            self.stop = rest.err().or(self.stop.take());
        }
        let cpu_time = self.process.cpu_time_in_all(ended.cpu_time).saturating_sub(self.process.cpu_time);
        let wall_time = self.started.elapsed();
        let phase = self.phase;
        let natural = || outcome::from_end(ended.by, self.quota, phase, nanos(cpu_time));
        let outcome = match self.stop.take() {
            Some(Stop::Refused(error)) => return Err(error),
            Some(Stop::Exceeded(Exceeded { resource, limit, used })) => {
                Outcome::QuotaExceeded { resource, limit, used, phase }
            }
            Some(Stop::Cancelled) => Outcome::Cancelled { phase },
            Some(Stop::Denied(grant)) => Outcome::Denied { grant },
            Some(Stop::Crashed(message)) => Outcome::Crashed { message },
            // Also when it was a child process that the kernel chose to end, and the first went on without it.
            None | Some(Stop::Raised(_)) if self.process.group.as_ref().is_some_and(MemoryGroup::overran) => {
                let limit = self.quota.memory_bytes.unwrap_or(0);
                Outcome::QuotaExceeded { resource: Resource::Memory, limit, used: limit.saturating_add(1), phase }
            }
            // The kernel ends what it has begun to execute and cannot give the memory its file asks for.
            None if self.cannot_begin() && matches!(ended.by, EndedBy::Signal(libc::SIGSEGV | libc::SIGKILL)) => {
                let (limit, used) = (self.quota.memory_bytes.unwrap_or(0), self.file_memory_bytes());
                Outcome::QuotaExceeded { resource: Resource::Memory, limit, used, phase }
            }
            Some(Stop::Forbidden(number)) => {
                Outcome::Denied { grant: format!("the system call {}", seccomp::name(number)) }
            }
            Some(Stop::Raised(signal)) => {
                outcome::from_end(EndedBy::Signal(signal), self.quota, phase, nanos(cpu_time))
            }
            Some(Stop::Forged(message)) => Outcome::Trapped { trap: TrapKind::Other, message: message.to_owned() },
            Some(Stop::LoadFailed(message)) => {
                Outcome::Trapped { trap: TrapKind::Other, message: format!("cannot be loaded: {message}") }
            }
            // It said that it returned and ended all the same.
            Some(Stop::Returned(_)) | None if self.is_library() => match (self.reported_signal, ended.by) {
                (Some((_, true)), EndedBy::Signal(libc::SIGSEGV)) => {
                    let limit = self.quota.stack_bytes.unwrap_or(0);
                    Outcome::QuotaExceeded { resource: Resource::Stack, limit, used: limit.saturating_add(1), phase }
                }
                (Some((libc::SIGABRT, _)), EndedBy::Exit(_)) => {
                    outcome::from_end(EndedBy::Signal(libc::SIGABRT), self.quota, phase, nanos(cpu_time))
                }
                (_, EndedBy::Exit(code)) => Outcome::Trapped {
                    trap: TrapKind::Other,
                    message: format!("the plugin ended its process with code {code}"),
                },
                _ => natural(),
            },
            Some(Stop::Returned(_)) | None => natural(),
        };
        let outcome = match (self.quota.cpu_time, self.quota.wall_time) {
            (Some(limit), _) if outcome.leaves_instance_usable() && cpu_time > limit => Outcome::QuotaExceeded {
                resource: Resource::CpuTime,
                limit: nanos(limit),
                used: nanos(cpu_time),
                phase,
            },
            (_, Some(limit)) if outcome.leaves_instance_usable() && wall_time > limit => Outcome::QuotaExceeded {
                resource: Resource::WallTime,
                limit: nanos(limit),
                used: nanos(wall_time),
                phase,
            },
            _ => outcome,
        };
        let peak = self.process.memory_peak_in_the_end(ended.resident_peak_bytes);
        Ok(self.execution(outcome, wall_time, cpu_time, peak))
    }

    /// Memory that the program's own file asks for, before anything of it runs.
    fn file_memory_bytes(&self) -> u64 {
        match &self.prepared.kind {
            Kind::Executable(elf) => elf.memory_bytes,
            Kind::Script | Kind::Library => 0,
        }
    }

    /// Whether the program asks for more than it may have before anything of it runs, and no group counts what it has.
    fn cannot_begin(&self) -> bool {
        let limit = self.quota.memory_bytes.unwrap_or(u64::MAX);
        self.process.group.is_none() && self.file_memory_bytes() > limit
    }

    fn execution(&mut self, outcome: Outcome, wall_time: Duration, cpu_time: Duration, peak: u64) -> Execution {
        let mut usage = Usage::default();
        usage.wall_time = wall_time;
        usage.cpu_time = cpu_time;
        usage.memory_peak_bytes = peak;
        usage.input_bytes = self.input_bytes;
        usage.host_calls = self.host_calls;
        let mut execution = Execution::new(outcome, usage);
        let streams = std::mem::replace(&mut self.streams, Streams::new(self.quota, None));
        streams.finish(&mut execution);
        execution.isolation = self.prepared.isolation.clone();
        execution
    }
}

/// The error of a worker that could not lock itself in, or not execute the program.
fn setup_failed(message: &[u8]) -> Error {
    let (errno, text) =
        message.split_first_chunk::<4>().map_or((-1, message), |(e, text)| (i32::from_le_bytes(*e), text));
    let text = printable(text);
    let (kind, help) = match errno {
        libc::ENOEXEC | libc::ELIBBAD => (ErrorKind::InvalidArtifact, "build it for this machine"),
        libc::ENOMEM | libc::EAGAIN => (ErrorKind::Unsupported, "the program does not fit its memory quota"),
        libc::E2BIG => (
            ErrorKind::InvalidInput,
            "arguments and environment may take a quarter of the stack, and each argument 128 KiB: raise `stack_bytes` \
             (`--stack 8MiB`), pass fewer, or pass data as input",
        ),
        _ => (ErrorKind::Internal, "`palisade doctor` shows what this machine allows"),
    };
    Error::new(kind, "call", format!("the instance did not start: {text}")).with_help(help)
}

/// A guest's text as it may be shown: no control characters, not too long.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(2000)]);
    palisade_core::text::printable(&text).chars().take(500).collect()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
