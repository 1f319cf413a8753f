//! What the host keeps for one instance: the data of its store.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use palisade_core::{Call, CancelToken, HostFunctions, Input, Invocation, Phase, Policy, Quota, Resource, TrapKind};
use palisade_wasi::reactor::HostCalls;
use palisade_wasi::{Account, Stop, Streams, StreamsLimits, Wait, WasiConfig, WasiContext};
use wasmer::Memory;

use crate::control::Control;
use crate::engine::{MEMORY_BYTES_MAX, Words};
use crate::instance::Answer;
use crate::meter::Meter;
use crate::watchdog::{Timer, Watchdog};

/// Least time until the guest looks at its clocks again: a clock may stand still at the limit itself.
const TICK_MIN: Duration = Duration::from_micros(10);

/// Data of a store.
pub(crate) struct Guest {
    pub(crate) wasi: WasiContext,
    pub(crate) streams: Streams,
    pub(crate) host: HostCalls,
    pub(crate) meter: Meter,
    pub(crate) account: Arc<Account>,
    pub(crate) words: Arc<Words>,
    pub(crate) memory: Option<Memory>,
    /// The current call.
    control: Option<Arc<Control<Answer>>>,
    watchdog: Arc<Watchdog>,
    timer: Option<Timer>,
    quota: Quota,
    cancel: Option<CancelToken>,
    input_streamed: bool,
}

impl Guest {
    pub(crate) fn new(
        wasi: Arc<WasiConfig>,
        functions: Arc<HostFunctions>,
        policy: &Policy,
        watchdog: Arc<Watchdog>,
    ) -> Self {
        let quota = policy.quota.clone();
        Guest {
            wasi: WasiContext::new(wasi),
            streams: Streams::new(Input::default(), None, StreamsLimits::from(&quota)),
            host: HostCalls::new(functions, quota.host_calls.unwrap_or(u64::MAX)),
            meter: Meter::new(Instant::now()),
            account: Arc::new(Account::new(quota.memory_bytes.unwrap_or(MEMORY_BYTES_MAX))),
            words: Arc::default(),
            memory: None,
            control: None,
            watchdog,
            timer: None,
            quota,
            cancel: None,
            input_streamed: false,
        }
    }

    /// Begins a call that was asked for at `started`, on the thread it runs on.
    pub(crate) fn begin_call(&mut self, call: Call, control: Arc<Control<Answer>>, started: Instant) {
        self.wasi.begin_call(call.arguments);
        self.input_streamed = matches!(call.input, Input::Stream(_));
        self.streams = Streams::new(call.input, call.sink, StreamsLimits::from(&self.quota));
        self.host.begin_call(call.trace);
        self.meter = Meter::new(started);
        self.account.begin_call();
        self.cancel = call.cancel;
        self.control = Some(control);
    }

    /// Ends a call: nothing reaches into it any more.
    pub(crate) fn end_call(&mut self) {
        self.timer = None;
        self.control = None;
        self.cancel = None;
    }

    /// Checks the memory quota after the host took something for the guest.
    pub(crate) fn charge(&mut self) -> Result<(), Stop> {
        self.account.hold(self.streams.held_bytes() + self.host.held_bytes())
    }

    /// Looks whether somebody wants the call to end, and sees to it that its time is looked at when it may be up.
    pub(crate) fn check_wanted(&mut self) -> Result<(), Stop> {
        let Some(control) = &self.control else { return Ok(()) };
        // Before looking: what comes afterwards interrupts again.
        control.acknowledge();
        if control.is_dropped() || self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Stop::Cancelled);
        }
        let wall = self.quota.wall_time.and_then(|limit| self.meter.started().checked_add(limit));
        let cpu = self.quota.cpu_time.and_then(|limit| {
            // Not before that it can be used up.
            Instant::now().checked_add(limit.saturating_sub(self.meter.cpu_time()))
        });
        self.timer = [wall, cpu].into_iter().flatten().min().map(|at| {
            let at = at.max(Instant::now() + TICK_MIN);
            self.watchdog.wake_at(at, Waker::from(Arc::clone(control)))
        });
        Ok(())
    }

    /// Looks at everything that may end the call.
    pub(crate) fn check(&mut self) -> Result<(), Stop> {
        self.check_wanted()?;
        exceeded(Resource::WallTime, self.quota.wall_time, self.meter.wall_time())?;
        match self.quota.cpu_time {
            Some(_) => exceeded(Resource::CpuTime, self.quota.cpu_time, self.meter.cpu_time()),
            None => Ok(()),
        }
    }

    /// What the compiled-in code asks when fuel is used up or the host wants it to stop.
    pub(crate) fn check_compiled(&mut self, fuel_left: i64) -> Result<(), Stop> {
        if let Some(stop) = self.account.refused() {
            return Err(stop);
        }
        if fuel_left < 0 {
            let limit = self.quota.fuel.unwrap_or(u64::MAX);
            let used = limit.saturating_add(fuel_left.unsigned_abs());
            return Err(Stop::Exceeded { resource: Resource::Fuel, limit, used });
        }
        self.check()
    }

    /// Waits for what a WASI function has to wait for.
    pub(crate) fn wait(&mut self, wait: Wait) -> Result<(), Stop> {
        if wait.work
            && let Some(work) = self.wasi.take_work()
        {
            return self.wait_for(Some(Box::pin(work)), wait.until);
        }
        if !wait.input {
            return self.wait_for(None, wait.until);
        }
        let lent = self.lend_streams();
        let theirs = Arc::clone(&lent);
        let request = poll_fn(move |context| lock(&theirs).poll_input(context));
        let waited = self.wait_for(Some(Box::pin(request)), wait.until);
        self.take_back(&lent);
        waited
    }

    /// Waits for the whole of a streamed input, so that it can be addressed by offset.
    pub(crate) fn wait_for_whole_input(&mut self) -> Result<(), Stop> {
        if !self.input_streamed {
            return Ok(());
        }
        let room = self.account.room();
        let lent = self.lend_streams();
        let theirs = Arc::clone(&lent);
        let result = Arc::new(Mutex::new(Ok(())));
        let answer = Arc::clone(&result);
        let request = async move {
            let whole = poll_fn(|context| lock(&theirs).poll_whole_input(context, room)).await;
            *lock(&answer) = whole;
        };
        let waited = self.wait_for(Some(Box::pin(request)), None);
        self.take_back(&lent);
        waited?;
        lock(&result).clone()?;
        self.charge()
    }

    /// Waits for a host function.
    pub(crate) fn wait_for_host(&mut self, invocation: Invocation) -> Result<<Invocation as Future>::Output, Stop> {
        let reply = Arc::new(Mutex::new(None));
        let answer = Arc::clone(&reply);
        let request = async move {
            let reply = invocation.await;
            *lock(&answer) = Some(reply);
        };
        self.wait_for(Some(Box::pin(request)), None)?;
        let reply = lock(&reply).take();
        reply.ok_or_else(|| Stop::Crashed("a host function ended without a reply; please report this".into()))
    }

    /// Waits for `request`, or until `until`. A guest that is stopped meanwhile stays in the phase it was stopped in.
    fn wait_for(
        &mut self,
        request: Option<palisade_core::BoxFuture<'static, ()>>,
        until: Option<Instant>,
    ) -> Result<(), Stop> {
        let Some(control) = self.control.clone() else { return Ok(()) };
        let phase = std::mem::replace(&mut self.meter.phase, Phase::HostCall);
        control.wait(request, until, || self.check())?;
        self.meter.phase = phase;
        Ok(())
    }

    fn lend_streams(&mut self) -> Arc<Mutex<Streams>> {
        let none = Streams::new(Input::default(), None, StreamsLimits::from(&self.quota));
        Arc::new(Mutex::new(std::mem::replace(&mut self.streams, none)))
    }

    fn take_back(&mut self, lent: &Mutex<Streams>) {
        std::mem::swap(&mut self.streams, &mut *lock(lent));
    }
}

// A poisoned lock is one whose stream or function panicked; that call is about to end.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `Err` when `used` is more than `limit`.
pub(crate) fn exceeded(resource: Resource, limit: Option<Duration>, used: Duration) -> Result<(), Stop> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    match limit {
        Some(limit) if used > limit => Err(Stop::Exceeded { resource, limit: nanos(limit), used: nanos(used) }),
        _ => Ok(()),
    }
}

/// Why a host function ends the call, on its way through the engine.
#[derive(Debug, Clone)]
pub(crate) enum Halt {
    Stop(Stop),
    /// What the compiled-in code checks in the engine's place.
    Trap(TrapKind),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Halt::Stop(stop)
    }
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest stopped: {self:?}")
    }
}

impl std::error::Error for Halt {}
