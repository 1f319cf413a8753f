//! What the host keeps for one instance: the data of its store.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::Timer;
use palisade_core::{
    Call, CancelToken, HostFunctions, Input, Invocation, Outcome, Phase, Policy, Quota, Resource, TrapKind, Usage,
};
use palisade_wasi::reactor::HostCalls;
use palisade_wasi::{Account, Stop, Streams, StreamsLimits, TABLE_ENTRY_BYTES, Wait, WasiConfig, WasiContext};
use rustix::time::{ClockId, clock_gettime};
use wasmi::errors::{MemoryError, TableError};
use wasmi::{Memory, ResourceLimiter, TrapCode};
use wasmi_core::LimiterError;

use crate::MEMORY_BYTES_MAX;
use crate::imports::Halt;

/// Data of a store.
pub(crate) struct Guest {
    pub(crate) wasi: WasiContext,
    pub(crate) streams: Streams,
    pub(crate) host: HostCalls,
    pub(crate) account: Account,
    pub(crate) memory: Option<Memory>,
    /// The host function that runs, and what it replied.
    pub(crate) invocation: Option<Invocation>,
    pub(crate) reply: Option<<Invocation as Future>::Output>,
    pub(crate) phase: Phase,
    pub(crate) fuel_used: u64,
    /// When it was last seen to that others had their turn.
    pub(crate) slice_began: Instant,
    started: Instant,
    cpu: Arc<CpuClock>,
    cancel: Option<CancelToken>,
    quota: Quota,
}

impl Guest {
    pub(crate) fn new(wasi: Arc<WasiConfig>, functions: Arc<HostFunctions>, policy: &Policy) -> Guest {
        let quota = policy.quota.clone();
        Guest {
            wasi: WasiContext::new(wasi),
            streams: Streams::new(Input::default(), None, StreamsLimits::from(&quota)),
            host: HostCalls::new(functions, quota.host_calls.unwrap_or(u64::MAX)),
            account: Account::new(quota.memory_bytes.unwrap_or(MEMORY_BYTES_MAX)),
            memory: None,
            invocation: None,
            reply: None,
            phase: Phase::Starting,
            fuel_used: 0,
            slice_began: Instant::now(),
            started: Instant::now(),
            cpu: Arc::default(),
            cancel: None,
            quota,
        }
    }

    pub(crate) fn begin_call(&mut self, call: Call, started: Instant, cpu: Arc<CpuClock>) {
        self.wasi.begin_call(call.arguments);
        self.streams = Streams::new(call.input, call.sink, StreamsLimits::from(&self.quota));
        self.host.begin_call(call.trace);
        self.account.begin_call();
        (self.invocation, self.reply) = (None, None);
        (self.phase, self.fuel_used) = (Phase::Starting, 0);
        (self.started, self.cpu, self.cancel) = (started, cpu, call.cancel);
    }

    /// Checks the memory quota after the host took something for the guest.
    pub(crate) fn charge(&self) -> Result<(), Stop> {
        self.account.hold(self.streams.held_bytes() + self.host.held_bytes())
    }

    /// Looks at everything that may end the call from outside.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Stop::Cancelled);
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let times = [
            (Resource::WallTime, self.quota.wall_time, self.started.elapsed()),
            (Resource::CpuTime, self.quota.cpu_time, self.cpu.used()),
        ];
        for (resource, limit, used) in times {
            if let Some(limit) = limit.filter(|limit| used > *limit) {
                return Err(Stop::Exceeded { resource, limit: nanos(limit), used: nanos(used) });
            }
        }
        Ok(())
    }

    /// Fuel that is left of the quota.
    pub(crate) fn fuel_left(&self) -> u64 {
        self.quota.fuel.unwrap_or(u64::MAX).saturating_sub(self.fuel_used)
    }

    /// Why a guest that needs `more` fuel than is left ends.
    pub(crate) fn out_of_fuel(&self, more: u64) -> Stop {
        let limit = self.quota.fuel.unwrap_or(u64::MAX);
        Stop::Exceeded { resource: Resource::Fuel, limit, used: self.fuel_used.saturating_add(more) }
    }

    /// Waits for what an import has to wait for, for as long as nothing ends the call. A guest that is stopped meanwhile stays
    /// in the phase it was stopped in.
    pub(crate) async fn wait(&mut self, wait: Wait) -> Result<(), Stop> {
        let phase = std::mem::replace(&mut self.phase, Phase::HostCall);
        let mut work = if wait.work { self.wasi.take_work().map(Box::pin) } else { None };
        self.until(wait.until, |guest, context| {
            if let Some(invocation) = &mut guest.invocation {
                let Poll::Ready(reply) = Pin::new(invocation).poll(context) else { return Poll::Pending };
                (guest.invocation, guest.reply) = (None, Some(reply));
                return Poll::Ready(());
            }
            if wait.input && guest.streams.poll_input(context).is_ready() {
                return Poll::Ready(());
            }
            work.as_mut().map_or(Poll::Pending, |work| work.as_mut().poll(context).map(drop))
        })
        .await?;
        self.phase = phase;
        Ok(())
    }

    /// Waits for the whole of a streamed input, so that it can be addressed by offset.
    pub(crate) async fn wait_for_whole_input(&mut self) -> Result<(), Stop> {
        let room = self.account.room();
        let phase = std::mem::replace(&mut self.phase, Phase::HostCall);
        let mut whole = Ok(());
        self.until(None, |guest, context| guest.streams.poll_whole_input(context, room).map(|done| whole = done))
            .await?;
        self.phase = phase;
        whole?;
        self.charge()
    }

    /// Waits until `ready`, `until`, or the end of the call.
    async fn until(
        &mut self,
        until: Option<Instant>,
        mut ready: impl FnMut(&mut Guest, &mut Context<'_>) -> Poll<()>,
    ) -> Result<(), Stop> {
        let deadline = self.quota.wall_time.and_then(|limit| self.started.checked_add(limit));
        let at = deadline.into_iter().chain(until).min();
        let mut timer = pin!(at.map_or_else(Timer::never, Timer::at));
        let mut cancelled = self.cancel.as_ref().map(|token| Box::pin(token.cancelled()));
        poll_fn(|context| {
            let cancelled = cancelled.as_mut().is_some_and(|cancelled| cancelled.as_mut().poll(context).is_ready());
            if cancelled || timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            ready(self, context)
        })
        .await;
        self.check()
    }

    /// What the call took.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        usage.wall_time = self.started.elapsed();
        usage.cpu_time = self.cpu.used();
        usage.fuel = self.fuel_used;
        usage.memory_peak_bytes = self.account.peak();
        usage.input_bytes = self.streams.input_bytes();
        usage.output_bytes = self.streams.output_bytes();
        usage.log_bytes = self.streams.log_bytes();
        usage.open_files_peak = self.wasi.open_files_peak();
        usage.disk_bytes = self.wasi.disk_bytes();
        usage.host_calls = self.host.calls();
        usage
    }

    /// The outcome of a call that `stop` ends.
    pub(crate) fn outcome(&self, stop: Stop) -> Outcome {
        let wait = || Outcome::Crashed { message: "a wait was taken for an end".to_owned() };
        stop.outcome(self.phase).unwrap_or_else(wait)
    }

    /// The outcome of a call that the engine ends.
    pub(crate) fn outcome_of(&self, error: &wasmi::Error) -> Outcome {
        if let Some(halt) = error.downcast_ref::<Halt>() {
            return self.outcome(halt.stop.clone());
        }
        if let Some(stop) = self.account.refused() {
            return self.outcome(stop);
        }
        let trap = match error.as_trap_code() {
            Some(TrapCode::StackOverflow) => {
                let limit = self.quota.stack_bytes.unwrap_or(crate::STACK_BYTES_DEFAULT);
                // The engine tells that the next frame did not fit, not how large it was.
                return self.outcome(Stop::Exceeded { resource: Resource::Stack, limit, used: limit + 1 });
            }
            Some(TrapCode::UnreachableCodeReached) => TrapKind::Unreachable,
            Some(TrapCode::MemoryOutOfBounds) => TrapKind::MemoryOutOfBounds,
            Some(TrapCode::TableOutOfBounds) => TrapKind::TableOutOfBounds,
            Some(TrapCode::IndirectCallToNull | TrapCode::BadSignature) => TrapKind::IndirectCall,
            Some(TrapCode::IntegerDivisionByZero) => TrapKind::DivisionByZero,
            Some(TrapCode::IntegerOverflow | TrapCode::BadConversionToInteger) => TrapKind::Arithmetic,
            _ => return Outcome::Crashed { message: error.to_string() },
        };
        Outcome::Trapped { trap, message: String::new() }
    }
}

/// The engine asks before it takes memory. What is refused ends the guest.
impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> Result<bool, LimiterError> {
        if most.is_some_and(|most| desired > most) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current) as u64)
    }

    fn table_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> Result<bool, LimiterError> {
        if most.is_some_and(|most| desired > most) {
            return Ok(false);
        }
        self.grow((desired.saturating_sub(current) as u64).saturating_mul(2 * TABLE_ENTRY_BYTES))
    }

    fn memory_grow_failed(&mut self, _: &MemoryError) -> Result<(), LimiterError> {
        Ok(())
    }

    fn table_grow_failed(&mut self, _: &TableError) -> Result<(), LimiterError> {
        Ok(())
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        palisade_wasm::structure::TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        1
    }
}

impl Guest {
    fn grow(&self, bytes: u64) -> Result<bool, LimiterError> {
        self.account.grow(bytes).map(|()| true).map_err(|_| LimiterError::ResourceLimiterDeniedAllocation)
    }
}

/// CPU time of a call: that of the threads which poll it, while they do.
#[derive(Debug, Default)]
pub(crate) struct CpuClock {
    /// Of the polls that have ended.
    nanos: AtomicU64,
    /// The thread's clock at the beginning of the running one.
    began: AtomicU64,
}

impl CpuClock {
    /// Polls the call's future.
    pub(crate) fn poll<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        self.began.store(thread_nanos(), Relaxed);
        let polled = poll();
        self.nanos.fetch_add(thread_nanos().saturating_sub(self.began.load(Relaxed)), Relaxed);
        polled
    }

    /// CPU time so far; to be asked within a poll.
    fn used(&self) -> Duration {
        let running = thread_nanos().saturating_sub(self.began.load(Relaxed));
        Duration::from_nanos(self.nanos.load(Relaxed).saturating_add(running))
    }
}

fn thread_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
