//! One call: interprets a probe and enforces the policy while doing so.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::thread::ThreadId;
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    Bytes, Call, CancelToken, Clocks, Execution, HostFunctions, Input, Invocation, LogLevel, LogRecord, Outcome,
    OutputStream, Phase, Policy, Randomness, Resource, TrapKind, Usage,
};

use crate::alarm::Alarm;
use crate::{Fault, Shared, State, files};

/// Rounds of a loop in a nanosecond, as this machine pretends.
const ROUNDS_PER_NANO: u64 = 8;
/// How long a loop runs before the machine looks around.
const SLICE: Duration = Duration::from_micros(100);
/// Fuel of everything that is not a loop.
const FUEL_BASE: u64 = 10;
const PAGE: u64 = 1 << 16;
/// Stack one level of recursion takes.
const FRAME_BYTES: u64 = 64;
const TABLE_ELEMENT_BYTES: u64 = 8;

/// What the guest is doing while somebody may want to end it.
#[derive(Clone, Copy, PartialEq)]
enum Doing {
    Starting,
    Running,
    Sleeping,
    HostCall,
    Input,
    LongImport,
    ManyImports,
}

impl Doing {
    fn phase(self) -> Phase {
        match self {
            Doing::Starting => Phase::Starting,
            Doing::Running | Doing::LongImport | Doing::ManyImports => Phase::Running,
            Doing::Sleeping | Doing::HostCall | Doing::Input => Phase::HostCall,
        }
    }
}

pub(crate) struct Machine<'a> {
    shared: &'a Shared,
    policy: &'a Policy,
    functions: &'a HostFunctions,
    state: &'a mut State,
    call: Call,
    begun: Instant,
    usage: Usage,
    host_result_bytes: u64,
    output: Vec<u8>,
    error: Vec<u8>,
    log: Vec<LogRecord>,
    /// What a sink gets at the end, when the fault asks for it.
    held_back: Vec<(OutputStream, Vec<u8>)>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        policy: &'a Policy,
        functions: &'a HostFunctions,
        state: &'a mut State,
        call: Call,
    ) -> Machine<'a> {
        let mut usage = Usage::default();
        if shared.has(Fault::NeverResets) {
            usage.fuel = state.previous.fuel;
            usage.output_bytes = state.previous.output_bytes;
            usage.log_bytes = state.previous.log_bytes;
            usage.disk_bytes = state.previous.disk_bytes;
            usage.host_calls = state.previous.host_calls;
        }
        if shared.has(Fault::NeverResetsHostCalls) {
            usage.host_calls = state.previous.host_calls;
        }
        Machine {
            shared,
            policy,
            functions,
            state,
            call,
            begun: Instant::now(),
            usage,
            host_result_bytes: 0,
            output: Vec::new(),
            error: Vec::new(),
            log: Vec::new(),
            held_back: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self, verb: &str) -> Execution {
        let end = match self.begin(verb) {
            Ok(()) => self.interpret(verb).await,
            Err(outcome) => Err(outcome),
        };
        let mut outcome = end.map_or_else(|outcome| outcome, Outcome::from_exit_code);
        match &mut outcome {
            Outcome::Failed { .. } if self.shared.has(Fault::LosesExitCode) => outcome = Outcome::Completed,
            Outcome::Trapped { trap, .. } if self.shared.has(Fault::UntypedTrap) => *trap = TrapKind::Other,
            Outcome::QuotaExceeded { .. } if self.shared.has(Fault::SpreadsExhaustion) => {
                self.shared.leaks().exhausted.get_or_insert(outcome.clone());
            }
            _ => {}
        }
        self.disturb(&mut outcome);
        if let Some(sink) = &self.call.sink {
            self.held_back.iter().rev().for_each(|(stream, bytes)| sink.write(*stream, bytes));
        }
        self.usage.wall_time = self.begun.elapsed();
        if self.shared.has(Fault::NoCpuTime) {
            self.usage.cpu_time = Duration::ZERO;
        }
        if self.shared.has(Fault::UnderstatesMemory) {
            self.usage.memory_peak_bytes /= 2;
        }
        if self.shared.has(Fault::CorruptsOutput) {
            self.output.pop();
        }
        let figures = [
            (Fault::NoInputUsage, &mut self.usage.input_bytes),
            (Fault::NoOutputUsage, &mut self.usage.output_bytes),
            (Fault::NoLogUsage, &mut self.usage.log_bytes),
            (Fault::NoOpenFilesUsage, &mut self.usage.open_files_peak),
            (Fault::NoDiskUsage, &mut self.usage.disk_bytes),
            (Fault::NoHostCallsUsage, &mut self.usage.host_calls),
        ];
        for (fault, figure) in figures {
            if self.shared.has(fault) {
                *figure = 0;
            }
        }
        let mut execution = Execution::new(outcome, self.usage);
        (execution.output, execution.error, execution.log) = (self.output.into(), self.error.into(), self.log);
        execution
    }

    /// The call ended; what it exhausted may end others.
    fn disturb(&self, outcome: &mut Outcome) {
        let mut leaks = self.shared.leaks();
        leaks.running = leaks.running.saturating_sub(1);
        if !self.shared.has(Fault::DisturbsNeighbours) {
            return;
        }
        match outcome {
            Outcome::QuotaExceeded { .. } => leaks.disturbed = leaks.running,
            _ if leaks.disturbed > 0 => {
                leaks.disturbed -= 1;
                *outcome = Outcome::Crashed { message: "somebody else took it all".to_owned() };
            }
            _ => {}
        }
    }

    /// What happens before the guest's first instruction.
    fn begin(&mut self, verb: &str) -> Result<(), Outcome> {
        let mut leaks = self.shared.leaks();
        leaks.calls += 1;
        leaks.running += 1;
        if self.shared.has(Fault::LeaksFiles) && leaks.calls.is_multiple_of(100) {
            leaks.files.extend(File::open("/dev/null"));
        }
        if let Some(outcome) = &leaks.exhausted {
            return Err(outcome.clone());
        }
        if self.shared.has(Fault::StaleCancel) {
            if leaks.tokens.iter().any(CancelToken::is_cancelled) {
                return Err(Outcome::Cancelled { phase: Phase::Starting });
            }
            leaks.tokens.extend(self.call.cancel.clone());
        }
        if self.shared.has(Fault::LeaksArguments) {
            let earlier = leaks.arguments.clone();
            leaks.arguments.extend(self.call.arguments.iter().cloned());
            self.call.arguments.extend(earlier);
        }
        drop(leaks);
        if !self.shared.has(Fault::IgnoresCancelBefore) {
            self.check_cancel(Phase::Starting)?;
        } else if self.call.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            self.call.cancel = None;
        }
        self.spend(FUEL_BASE, Doing::Starting)?;
        let initial = initial_bytes(verb);
        if !self.state.started && !self.shared.has(Fault::IgnoresInitialMemory) {
            self.admit_memory(initial + self.held(), Phase::Starting)?;
        }
        self.usage.memory_peak_bytes = self.memory(verb);
        Ok(())
    }

    async fn interpret(&mut self, verb: &str) -> Result<i32, Outcome> {
        let first = !std::mem::replace(&mut self.state.started, true);
        let input = match &self.call.input {
            Input::Bytes(bytes) => bytes.clone(),
            Input::Stream(_) => Bytes::new(),
        };
        self.usage.input_bytes = input.len() as u64;
        let number = |index: usize| {
            input
                .get(4 * index..4 * index + 4)
                .map_or(0, |bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
        };
        let long = u64::from(number(0)) | u64::from(number(1)) << 32;
        match verb {
            "echo" => self.write(verb, OutputStream::Output, &input)?,
            "exit" => return Ok(number(0).cast_signed()),
            "bomb" => return trap(1),
            "trap" => return trap(number(0)),
            "count" => {
                self.write(verb, OutputStream::Error, b"started")?;
                self.count(long, Doing::Running).await?;
            }
            "start" if first => {
                self.write(verb, OutputStream::Error, b"started")?;
                self.count(long, Doing::Starting).await?;
            }
            "sleep" => {
                let until = Instant::now() + Duration::from_nanos(long);
                let mut alarm = Alarm::default();
                let sleep = poll_fn(|context| {
                    alarm.set(Some(until), context.waker());
                    if Instant::now() < until { Poll::Pending } else { Poll::Ready(()) }
                });
                self.wait(Doing::Sleeping, pin!(sleep)).await?;
            }
            "stdin" => self.copy_input(verb).await?,
            "randoms" => self.random_calls(verb, number(0), number(1)).await?,
            "argument" => return self.call_host(verb, 1, b"\0\0\0\0f", u64::from(number(0))).await,
            "list" => self.list(verb, long)?,
            "reactor" => {
                let times = u32::from(!self.shared.has(Fault::SkipsInitialize));
                self.write(verb, OutputStream::Output, &times.to_le_bytes())?;
            }
            "host" if number(0) == 0 => {
                let last = self.state.last_result.clone();
                self.write(verb, OutputStream::Output, &last)?;
            }
            "host" => return self.call_host(verb, number(0), &input, 8).await,
            "grow" => self.grow(verb, u64::from(number(0)) * PAGE, Fault::IgnoresGrownMemory)?,
            "table" => self.grow(verb, u64::from(number(0)) * TABLE_ELEMENT_BYTES, Fault::IgnoresTables)?,
            "write" => {
                let stream = match number(0) {
                    0 => OutputStream::Output,
                    1 => OutputStream::Error,
                    _ => OutputStream::Log(LogLevel::Info),
                };
                for _ in 0..number(2) {
                    self.write(verb, stream, &vec![b'x'; number(1) as usize])?;
                }
            }
            "recurse" => {
                let (limit, used) = (self.limit(Resource::Stack), u64::from(number(0)) * FRAME_BYTES);
                if used > limit && !self.shared.has(Fault::IgnoresStack) {
                    return Err(exceeded(Resource::Stack, limit, used, Phase::Running));
                }
            }
            "file" => self.file(verb, &input)?,
            "open" => self.open(verb, number(0), &input)?,
            "environ" => self.environ(verb)?,
            "args" => {
                let arguments = std::iter::once(verb).chain(self.call.arguments.iter().map(String::as_str));
                let text: String = arguments.map(|argument| format!("{argument}\0")).collect();
                self.write(verb, OutputStream::Output, text.as_bytes())?;
            }
            "traces" => self.traces(verb, &input)?,
            "clock" => self.clock(verb, number(0), number(1))?,
            "random" => {
                let bytes = self.random();
                self.write(verb, OutputStream::Output, &bytes)?;
            }
            "socket" => {
                let works = self.policy.grants.network || self.shared.has(Fault::OpensSockets);
                let counts = [32u32.to_le_bytes(), u32::from(works).to_le_bytes()].concat();
                self.write(verb, OutputStream::Output, &counts)?;
            }
            // `start` again, `large`, `unknown`: nothing to do.
            _ => {}
        }
        Ok(0)
    }

    /// The bound on `resource`; `u64::MAX` when there is none.
    fn limit(&self, resource: Resource) -> u64 {
        let limit = self.policy.quota.get(resource);
        let one_too_few = limit.is_some() && self.shared.has(Fault::OneTooFew);
        limit.unwrap_or(u64::MAX).saturating_sub(u64::from(one_too_few))
    }

    fn check_cancel(&self, phase: Phase) -> Result<(), Outcome> {
        match &self.call.cancel {
            Some(token) if token.is_cancelled() => Err(Outcome::Cancelled { phase }),
            _ => Ok(()),
        }
    }

    /// Ends the call when it is cancelled or its time is over.
    fn check(&self, doing: Doing) -> Result<(), Outcome> {
        let (cancel_fault, deadline_fault) = match doing {
            Doing::Starting => (Some(Fault::IgnoresCancelStart), Fault::NoDeadlineStart),
            Doing::Running => (Some(Fault::IgnoresCancelRunning), Fault::NoDeadlineRunning),
            Doing::Sleeping => (None, Fault::NoDeadlineSleep),
            Doing::HostCall => (Some(Fault::IgnoresCancelHostCall), Fault::NoDeadlineHostCall),
            Doing::Input => (Some(Fault::IgnoresCancelInput), Fault::NoDeadlineInput),
            Doing::LongImport => (None, Fault::NoDeadlineInLongCalls),
            Doing::ManyImports => (None, Fault::NoDeadlineBetweenCalls),
        };
        if !cancel_fault.is_some_and(|fault| self.shared.has(fault)) {
            self.check_cancel(doing.phase())?;
        }
        let times = [
            (Resource::WallTime, self.begun.elapsed(), deadline_fault),
            (Resource::CpuTime, self.usage.cpu_time, Fault::IgnoresCpuTime),
        ];
        for (resource, used, fault) in times {
            let used = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
            let limit = self.policy.quota.get(resource).unwrap_or(u64::MAX);
            if used > limit && !self.shared.has(fault) {
                return Err(exceeded(resource, limit, used, doing.phase()));
            }
        }
        Ok(())
    }

    /// Drives `future` until it is ready or the call must end, and waits for nothing else.
    async fn wait<F: Future>(&mut self, doing: Doing, mut future: Pin<&mut F>) -> Result<F::Output, Outcome> {
        let busy = match doing {
            Doing::Sleeping => self.shared.has(Fault::BusySleep),
            Doing::HostCall => self.shared.has(Fault::BusyHostCall),
            Doing::Input => self.shared.has(Fault::BusyInput),
            _ => false,
        };
        let until = self.policy.quota.wall_time.map(|limit| self.begun + limit + Duration::from_nanos(1));
        let mut alarm = Alarm::default();
        let cancel = self.call.cancel.clone();
        let mut cancelled = pin!(cancel.as_ref().map(CancelToken::cancelled));
        // By value: a machine may be sent to another thread, but not shared with one.
        let machine = &mut *self;
        poll_fn(move |context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            if let Some(cancelled) = cancelled.as_mut().as_pin_mut() {
                // Asked below, where faults are.
                let _ = cancelled.poll(context);
            }
            machine.check(doing)?;
            alarm.set(until, context.waker());
            if busy {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// Takes fuel for `rounds`.
    fn spend(&mut self, rounds: u64, doing: Doing) -> Result<(), Outcome> {
        let rounds = if self.shared.has(Fault::RandomFuel) { rounds + chance() % 1000 } else { rounds };
        let used = self.usage.fuel.saturating_add(rounds);
        let limit = self.limit(Resource::Fuel);
        let forgotten = doing == Doing::Starting && rounds > FUEL_BASE && self.shared.has(Fault::IgnoresFuelStart);
        if used > limit && !forgotten && !self.shared.has(Fault::IgnoresFuel) {
            self.usage.fuel = limit;
            return Err(exceeded(Resource::Fuel, limit, used, doing.phase()));
        }
        self.usage.fuel = used;
        Ok(())
    }

    /// A loop of `rounds`.
    async fn count(&mut self, rounds: u64, doing: Doing) -> Result<(), Outcome> {
        let mut left = rounds;
        let mut earlier = on_cpu();
        // Dropped with this at `true`: nobody polls on.
        let mut spinning = Spinning { shared: self.shared, in_the_loop: false };
        while left > 0 {
            let slice = Instant::now();
            let rounds_max = (SLICE.as_nanos() as u64) * ROUNDS_PER_NANO;
            let now = left.min(rounds_max);
            self.spend(now, doing)?;
            while slice.elapsed().as_nanos() < u128::from(now / ROUNDS_PER_NANO) {
                std::hint::spin_loop();
            }
            left -= now;
            let now = on_cpu();
            self.usage.cpu_time += match earlier.zip(now) {
                Some(((thread, earlier), (same, now))) if thread == same => now.saturating_sub(earlier),
                _ => slice.elapsed(),
            };
            earlier = now;
            self.check(doing)?;
            spinning.in_the_loop = true;
            yield_now().await;
            spinning.in_the_loop = false;
        }
        Ok(())
    }

    /// Bytes the host holds for the guest.
    fn held(&self) -> u64 {
        let input = match &self.call.input {
            Input::Bytes(bytes) => bytes.len() as u64,
            Input::Stream(_) => 0,
        };
        let log: usize = self.log.iter().map(|record| record.message.len()).sum();
        input + (self.output.len() + self.error.len() + log) as u64 + self.host_result_bytes
    }

    fn memory(&self, verb: &str) -> u64 {
        initial_bytes(verb) + self.state.grown_bytes + self.held()
    }

    fn admit_memory(&self, used: u64, phase: Phase) -> Result<(), Outcome> {
        let limit = self.limit(Resource::Memory);
        if used > limit { Err(exceeded(Resource::Memory, limit, used, phase)) } else { Ok(()) }
    }

    fn grow(&mut self, verb: &str, bytes: u64, fault: Fault) -> Result<(), Outcome> {
        let used = self.memory(verb).saturating_add(bytes);
        if !self.shared.has(fault) {
            self.admit_memory(used, Phase::Running)?;
        }
        self.state.grown_bytes += bytes;
        self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(used);
        Ok(())
    }

    fn write(&mut self, verb: &str, stream: OutputStream, bytes: &[u8]) -> Result<(), Outcome> {
        let (resource, used, fault) = match stream {
            OutputStream::Output => (Resource::Output, self.usage.output_bytes, Fault::IgnoresOutput),
            OutputStream::Error => (Resource::Log, self.usage.log_bytes, Fault::IgnoresErrorText),
            OutputStream::Log(_) => (Resource::Log, self.usage.log_bytes, Fault::IgnoresLog),
        };
        let len = bytes.len() as u64;
        let limit = self.limit(resource);
        let of_sinks = match resource {
            Resource::Output => Fault::IgnoresOutputOfSinks,
            _ => Fault::IgnoresLogOfSinks,
        };
        let unbounded = self.shared.has(fault) || (self.call.sink.is_some() && self.shared.has(of_sinks));
        let fits = if unbounded { len } else { len.min(limit.saturating_sub(used)) };
        if !self.shared.has(Fault::IgnoresHostBuffers) && self.call.sink.is_none() {
            self.admit_memory(self.memory(verb) + fits, Phase::Running)?;
        }
        let kept = &bytes[..fits as usize];
        match (&self.call.sink, stream) {
            (Some(_), _) if self.shared.has(Fault::MixesUpSinks) => self.held_back.push((stream, kept.to_vec())),
            (Some(sink), _) => sink.write(stream, kept),
            (None, OutputStream::Output) => self.output.extend_from_slice(kept),
            (None, OutputStream::Error) => self.error.extend_from_slice(kept),
            (None, OutputStream::Log(level)) => {
                self.log.push(LogRecord { level, message: String::from_utf8_lossy(kept).into_owned() });
            }
        }
        match stream {
            OutputStream::Output => self.usage.output_bytes += fits,
            OutputStream::Error | OutputStream::Log(_) => self.usage.log_bytes += fits,
        }
        self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(self.memory(verb));
        if fits < len { Err(exceeded(resource, limit, used + len, Phase::Running)) } else { Ok(()) }
    }

    async fn copy_input(&mut self, verb: &str) -> Result<(), Outcome> {
        let mut stream = match std::mem::take(&mut self.call.input) {
            Input::Bytes(bytes) => return self.write(verb, OutputStream::Output, &bytes),
            Input::Stream(stream) => stream,
        };
        loop {
            let next = poll_fn(|context| stream.as_mut().poll_next(context));
            match self.wait(Doing::Input, pin!(next)).await? {
                Some(Ok(piece)) => {
                    self.usage.input_bytes += piece.len() as u64;
                    self.write(verb, OutputStream::Output, &piece)?;
                }
                Some(Err(_)) | None => return Ok(()),
            }
        }
    }

    /// `times` calls of the host function named behind the first number of `input`, each with `passed` bytes.
    async fn call_host(&mut self, verb: &str, times: u32, input: &[u8], passed: u64) -> Result<i32, Outcome> {
        let name = String::from_utf8_lossy(input.get(4..).unwrap_or_default()).into_owned();
        let mut last = Ok(Bytes::new());
        for _ in 0..times {
            let limit = self.limit(Resource::HostCalls);
            if self.usage.host_calls >= limit && !self.shared.has(Fault::IgnoresHostCalls) {
                return Err(exceeded(Resource::HostCalls, limit, self.usage.host_calls + 1, Phase::Running));
            }
            let held = self.memory(verb).saturating_add(passed);
            if !self.shared.has(Fault::IgnoresHostInput) {
                self.admit_memory(held, Phase::Running)?;
                self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(held);
            }
            let argument = b"argument".iter().copied().cycle().take(usize::try_from(passed).unwrap_or(0)).collect();
            let invocation = self.functions.invoke(&name, argument, self.call.trace.as_ref());
            let invocation = invocation.ok_or_else(|| Outcome::Denied { grant: format!("host_functions: {name}") })?;
            self.usage.host_calls += 1;
            let mut kept = Kept { shared: self.shared, invocation: Some(invocation) };
            let reply = poll_fn(|context| match &mut kept.invocation {
                Some(invocation) => Pin::new(invocation).poll(context),
                None => Poll::Pending,
            });
            let reply = self.wait(Doing::HostCall, pin!(reply)).await?;
            kept.invocation = None;
            last = match reply {
                Ok(Err(error)) if self.shared.has(Fault::HidesHostErrors) => Ok(Bytes::from(error.0)),
                Err(_) if self.shared.has(Fault::HidesHostPanics) => Ok(Bytes::new()),
                Ok(reply) => reply,
                Err(panic) => return Err(Outcome::Crashed { message: format!("a host function panicked: {panic}") }),
            };
        }
        if self.shared.has(Fault::KeepsHostResults) {
            self.state.last_result = last.clone().unwrap_or_default();
        }
        match last {
            Ok(result) => self.write(verb, OutputStream::Output, &result).map(|()| 0),
            Err(error) => self.write(verb, OutputStream::Error, error.0.as_bytes()).map(|()| 1),
        }
    }

    fn file(&mut self, verb: &str, input: &[u8]) -> Result<(), Outcome> {
        let request = files::Request::parse(input).ok_or_else(|| trapped(TrapKind::MemoryOutOfBounds))?;
        let limit = self.limit(Resource::Disk);
        let room =
            if self.shared.has(Fault::IgnoresDisk) { u64::MAX } else { limit.saturating_sub(self.usage.disk_bytes) };
        let writes = request.operation == 1;
        let makes = request.makes_an_entry(self.shared, self.policy) && !self.shared.has(Fault::MakesEntriesForNothing);
        let done = if room == 0 && (makes || (writes && !request.data.is_empty())) {
            Err(files::QUOTA)
        } else {
            files::perform(self.shared, self.policy, &request, usize::try_from(room).unwrap_or(usize::MAX))
        };
        let answer = match done {
            Ok(_) if writes => {
                let written = room.min(request.data.len() as u64);
                self.usage.disk_bytes += written;
                [files::SUCCESS.to_le_bytes(), (written as u32).to_le_bytes()].concat()
            }
            Ok(read) => [&files::SUCCESS.to_le_bytes()[..], &read].concat(),
            Err(errno) => errno.to_le_bytes().to_vec(),
        };
        self.write(verb, OutputStream::Output, &answer)
    }

    fn open(&mut self, verb: &str, times: u32, input: &[u8]) -> Result<(), Outcome> {
        let path = String::from_utf8_lossy(input.get(4..).unwrap_or_default()).into_owned();
        let (mut opened, mut errno) = (0u32, files::SUCCESS);
        while opened < times && errno == files::SUCCESS {
            let full = self.state.open.len() as u64 >= self.limit(Resource::OpenFiles);
            if full && !self.shared.has(Fault::IgnoresOpenFiles) {
                errno = files::TOO_MANY;
                break;
            }
            match files::resolve(self.shared, self.policy, 3, &path).map(|(path, _)| File::open(path)) {
                Ok(Ok(file)) => {
                    self.state.open.push(file);
                    opened += 1;
                }
                Ok(Err(_)) => errno = files::TOO_MANY,
                Err(found) => errno = found,
            }
        }
        self.usage.open_files_peak = self.state.open.len() as u64;
        self.write(verb, OutputStream::Output, &[opened.to_le_bytes(), errno.to_le_bytes()].concat())
    }

    /// Fills `pages` with random bytes, `times` times.
    async fn random_calls(&mut self, verb: &str, pages: u32, times: u32) -> Result<(), Outcome> {
        /// Rounds of a loop that a random byte costs.
        const ROUNDS: u64 = 32;
        self.grow(verb, u64::from(pages) * PAGE, Fault::IgnoresGrownMemory)?;
        let doing = if times == 1 { Doing::LongImport } else { Doing::ManyImports };
        self.count(u64::from(pages) * PAGE * u64::from(times) * ROUNDS, doing).await
    }

    /// Entries of the first granted directory behind `cookie`.
    fn list(&mut self, verb: &str, cookie: u64) -> Result<(), Outcome> {
        let names = self.policy.grants.directories.first().and_then(|directory| directory.host.read_dir().ok());
        let names: Vec<_> = names.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        let beyond = cookie >= names.len() as u64;
        let from = if beyond && self.shared.has(Fault::WrapsCookies) { 0 } else { cookie };
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(names.len());
        let text: Vec<u8> = names[from..].iter().flat_map(|name| name.as_encoded_bytes().iter().copied()).collect();
        let answer = [&files::SUCCESS.to_le_bytes()[..], &(text.len() as u32).to_le_bytes(), &text].concat();
        self.write(verb, OutputStream::Output, &answer)
    }

    fn environ(&mut self, verb: &str) -> Result<(), Outcome> {
        let mut text: String =
            self.policy.grants.environment.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
        if self.shared.has(Fault::LeaksEnvironment) {
            text.extend(std::env::vars().map(|(name, value)| format!("{name}={value}\0")));
        }
        self.write(verb, OutputStream::Output, text.as_bytes())
    }

    fn traces(&mut self, verb: &str, input: &[u8]) -> Result<(), Outcome> {
        let traces = &self.state.traces;
        let found = traces.memory.iter().any(|byte| *byte != 0);
        let flags = u32::from(found) | u32::from(traces.global) << 1 | u32::from(traces.table) << 2;
        let mut answer = flags.to_le_bytes().to_vec();
        answer.extend_from_slice(&traces.memory);
        answer.resize(36, 0);
        self.state.traces = crate::Traces { memory: input.to_vec(), global: true, table: true };
        self.shared.leaks().traces = self.state.traces.clone();
        self.write(verb, OutputStream::Output, &answer)
    }

    fn clock(&mut self, verb: &str, id: u32, count: u32) -> Result<(), Outcome> {
        let mut readings = Vec::new();
        for _ in 0..count {
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let now = if id == 0 { since_1970 } else { self.begun.elapsed() };
            let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
            let fine = self.shared.has(Fault::FineClocks);
            let clocks = match self.policy.grants.clocks {
                Clocks::Coarse { step } if self.shared.has(Fault::ShortensLongSteps) => {
                    Clocks::Coarse { step: step.min(Duration::from_secs(1)) }
                }
                clocks => clocks,
            };
            let seen = if fine { nanos } else { clocks.quantize(nanos) };
            readings.extend_from_slice(&seen.to_le_bytes());
        }
        self.write(verb, OutputStream::Output, &readings)
    }

    fn random(&self) -> [u8; 32] {
        let mut state = match self.policy.grants.randomness {
            Randomness::Seeded(seed) if !self.shared.has(Fault::IgnoresSeed) => seed,
            _ if self.shared.has(Fault::PredictableRandomness) => 4,
            _ => chance(),
        };
        let mut bytes = [0; 32];
        for part in bytes.chunks_mut(8) {
            // A counter through an invertible mixer: spread out, and no more is needed here.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
            part.copy_from_slice(&(mixed ^ mixed >> 32).to_le_bytes());
        }
        bytes
    }
}

/// Keeps the invocation of a call that is dropped, when the fault asks for it.
struct Kept<'a> {
    shared: &'a Shared,
    invocation: Option<Invocation>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.shared.has(Fault::KeepsDroppedCalls) {
            self.shared.leaks().invocations.extend(self.invocation.take());
        }
    }
}

/// Goes on spinning for a while when a call is dropped in the middle of a loop, when the fault asks for it.
struct Spinning<'a> {
    shared: &'a Shared,
    in_the_loop: bool,
}

impl Drop for Spinning<'_> {
    fn drop(&mut self) {
        if self.in_the_loop && self.shared.has(Fault::SpinsAfterDrop) {
            let until = Instant::now() + Duration::from_secs(3);
            std::thread::spawn(move || while Instant::now() < until {});
        }
    }
}

fn exceeded(resource: Resource, limit: u64, used: u64, phase: Phase) -> Outcome {
    Outcome::QuotaExceeded { resource, limit, used, phase }
}

fn trapped(trap: TrapKind) -> Outcome {
    Outcome::Trapped { trap, message: trap.to_string() }
}

fn trap(kind: u32) -> Result<i32, Outcome> {
    match kind {
        1 => Err(trapped(TrapKind::Unreachable)),
        2 | 5 => Err(trapped(TrapKind::MemoryOutOfBounds)),
        3 => Err(trapped(TrapKind::DivisionByZero)),
        4 => Err(trapped(TrapKind::TableOutOfBounds)),
        _ => Ok(0),
    }
}

/// Memory the probe declares to start with.
fn initial_bytes(verb: &str) -> u64 {
    PAGE * match verb {
        "large" => 32,
        "argument" => 17,
        "traces" => 4,
        "echo" | "file" | "environ" | "args" | "clock" => 2,
        _ => 1,
    }
}

/// This thread, and its time on a CPU; `None` where the kernel does not say.
fn on_cpu() -> Option<(ThreadId, Duration)> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos = text.split_whitespace().next()?.parse().ok().filter(|nanos| *nanos > 0)?;
    Some((std::thread::current().id(), Duration::from_nanos(nanos)))
}

/// A number nobody can guess.
fn chance() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Lets the executor do something else.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Machines are driven by any executor, on any thread.
const _: fn() = || {
    fn is_send<T: Send>(_: T) {}
    fn of(machine: Machine<'_>, _: Arc<()>) {
        is_send(machine.run(""));
    }
    let _ = of;
};
