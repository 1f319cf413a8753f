//! One instance: a store, and the calls made in it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use palisade_core::{
    BoxFuture, Call, Cancelled, Error, ErrorKind, Execution, Instance, Outcome, Phase, Resource, Result, Usage,
};
use palisade_wasi::{Stop, ablation::left_out};
use wasmer::{FunctionEnv, Store, TypedFunction};

use crate::backend::Slot;
use crate::control::Control;
use crate::engine::{Limits, STACK_BYTES_DEFAULT};
use crate::guest::{Guest, exceeded};
use crate::imports;
use crate::module::{EntryPoint, WasmerPrepared};
use crate::outcome::{self, Ended};
use crate::stack;

/// How long a call's first poll waits for its end: the slice of time for which the contract allows it. A short call then
/// costs no round trip through the caller's executor.
const TIME_SLICE: Duration = Duration::from_millis(1);
/// The part of it in which the caller's thread stays on its CPU, since waking it takes longer than a short call.
const SPIN: Duration = Duration::from_micros(50);
/// How long dropping a call waits until its guest has stopped: what the contract allows. A guest looks at every loop head and
/// function entry, and bulk operations are done in pieces, so it takes longer on a busy machine only; then the guest stops
/// by itself.
const STOP_TIME_MAX: Duration = TIME_SLICE;

/// An instance. After an abnormal end it holds nothing any more.
pub(crate) struct WasmerInstance {
    prepared: Arc<WasmerPrepared>,
    live: Option<Box<Live>>,
    _slot: Slot,
}

/// What comes back from the guest's thread.
pub(crate) struct Answer {
    /// `None` when the call ended abnormally.
    live: Option<Box<Live>>,
    execution: Execution,
}

/// What an instance holds while it can serve calls. Dropped from top to bottom: the engine's code, which the store holds,
/// must outlive what refers to it.
pub(crate) struct Live {
    /// The entry looked up last, by its index.
    entry: Option<(usize, Entry)>,
    /// `None` until the first call, which runs the start function.
    instance: Option<wasmer::Instance>,
    env: FunctionEnv<Guest>,
    store: Store,
}

#[derive(Clone)]
enum Entry {
    Unit(TypedFunction<(), ()>),
    Code(TypedFunction<(), i32>),
}

impl fmt::Debug for WasmerInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmerInstance").field("usable", &self.live.is_some()).finish_non_exhaustive()
    }
}

impl WasmerInstance {
    pub(crate) fn new(prepared: Arc<WasmerPrepared>, slot: Slot) -> Self {
        let live = Live::new(&prepared);
        WasmerInstance { prepared, live: Some(Box::new(live)), _slot: slot }
    }
}

impl Instance for WasmerInstance {
    fn call(&mut self, mut call: Call) -> BoxFuture<'_, Result<Execution>> {
        Box::pin(async move {
            let started = Instant::now();
            let (index, _) = self.prepared.entry(&call.entry)?;
            if let Some(argument) = call.arguments.iter().find(|argument| argument.contains('\0')) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "call",
                    format!("argument {argument:?} has a NUL byte"),
                ));
            }
            // Taken out for the time of the call: when the call is dropped, the instance is dropped with it.
            let Some(mut live) = self.live.take() else {
                return Err(Error::new(
                    ErrorKind::Stale,
                    "call",
                    "this instance ended abnormally, or its call was dropped, and serves no more calls",
                )
                .with_help("make a fresh instance"));
            };
            if left_out("cancel") {
                call.cancel = None;
            }
            let control = Control::<Answer>::new();
            let cancelled = call.cancel.as_ref().map(|token| {
                let mut cancelled = token.cancelled();
                let waker = Waker::from(Arc::clone(&control));
                // Ready when it is cancelled already, which the guest's side sees by itself.
                let _ = Pin::new(&mut cancelled).poll(&mut Context::from_waker(&waker));
                cancelled
            });
            let prepared = Arc::clone(&self.prepared);
            let theirs = Arc::clone(&control);
            let job = move |set_free: &dyn Fn()| {
                let control = Arc::clone(&theirs);
                let answer = catch_unwind(AssertUnwindSafe(move || {
                    let stack_bytes = prepared.policy.quota.stack_bytes.unwrap_or(STACK_BYTES_DEFAULT);
                    stack::prepare(stack_bytes);
                    let execution = live.run(&prepared, index, call, &control, started);
                    // What is not used any more is released before the caller hears of the end, sinks and functions of the
                    // caller's among it, which may panic.
                    let live = execution.outcome.leaves_instance_usable().then_some(live);
                    Answer { live, execution }
                }));
                let answer = answer.unwrap_or_else(|_| {
                    let outcome = Outcome::Crashed { message: "the sandbox panicked; please report this".into() };
                    Answer { live: None, execution: Execution::new(outcome, Usage::default()) }
                });
                set_free();
                theirs.end(answer);
            };
            self.prepared.threads().run(Box::new(job))?;
            let answer = Running { control, _cancelled: cancelled, first: true, ended: false }.await;
            self.live = answer.live;
            Ok(answer.execution)
        })
    }
}

/// The caller's side of a call. Dropping it stops the guest.
struct Running {
    control: Arc<Control<Answer>>,
    /// Interrupts the guest for as long as it is kept.
    _cancelled: Option<Cancelled>,
    first: bool,
    ended: bool,
}

impl Future for Running {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> std::task::Poll<Answer> {
        if std::mem::take(&mut self.first) {
            let started = Instant::now();
            while !self.control.has_ended() && started.elapsed() < SPIN {
                std::hint::spin_loop();
            }
            if !self.control.has_ended() {
                self.control.wait_a_moment(TIME_SLICE);
            }
        }
        let polled = self.control.poll(context);
        self.ended = polled.is_ready();
        polled
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.control.abandon(STOP_TIME_MAX);
        }
    }
}

impl Live {
    fn new(prepared: &WasmerPrepared) -> Live {
        let guest = Guest::new(
            Arc::clone(&prepared.wasi),
            Arc::clone(&prepared.functions),
            &prepared.policy,
            Arc::clone(prepared.watchdog()),
        );
        let engine = Limits::handle(
            prepared.engine(),
            prepared.base_tunables(),
            prepared.policy.quota.stack_bytes.unwrap_or(STACK_BYTES_DEFAULT),
            prepared.pool(),
            &guest.account,
            &guest.words,
        );
        let mut store = Store::new(engine);
        let env = FunctionEnv::new(&mut store, guest);
        Live { entry: None, instance: None, env, store }
    }

    fn guest(&mut self) -> &mut Guest {
        self.env.as_mut(&mut self.store)
    }

    /// Runs one call from begin to end, on the guest's thread.
    fn run(
        &mut self,
        prepared: &WasmerPrepared,
        index: usize,
        call: Call,
        control: &Arc<Control<Answer>>,
        started: Instant,
    ) -> Execution {
        let quota = &prepared.policy.quota;
        // Counted downwards in a signed word.
        let fuel = i64::try_from(quota.fuel.unwrap_or(u64::MAX)).unwrap_or(i64::MAX);
        let guest = self.guest();
        guest.begin_call(call, Arc::clone(control), started);
        let begun = guest.charge().and_then(|()| guest.check_wanted());
        let (ended, fuel_left) = match begun {
            Err(stop) => (Err(Ended::Stop(stop)), fuel),
            Ok(()) => self.execute(prepared, index, fuel, control),
        };

        let guest = self.guest();
        let wall_time = guest.meter.wall_time();
        let cpu_time = guest.meter.cpu_time();
        let phase = guest.meter.phase;
        let refused = guest.account.refused();
        guest.end_call();
        let outcome = match ended {
            Ok(code) => Outcome::from_exit_code(code),
            Err(ended) => outcome::from_ended(ended, refused.clone(), quota, phase, prepared.functions_count()),
        };
        // What was charged since the last check may be more than was left.
        let fuel_used = u64::try_from(i128::from(fuel) - i128::from(fuel_left)).unwrap_or(0);
        let within_fuel = match quota.fuel {
            Some(limit) if fuel_used > limit => {
                Err(Stop::Exceeded { resource: Resource::Fuel, limit, used: fuel_used })
            }
            _ => Ok(()),
        };
        let within = exceeded(Resource::WallTime, quota.wall_time, wall_time)
            .and(exceeded(Resource::CpuTime, quota.cpu_time, cpu_time))
            .and(within_fuel);
        let outcome = match within {
            Err(stop) if outcome.leaves_instance_usable() => outcome::from_stop(stop, phase),
            _ => outcome,
        };

        let guest = self.guest();
        let mut usage = Usage::default();
        usage.wall_time = wall_time;
        usage.cpu_time = cpu_time;
        usage.fuel = fuel_used.min(quota.fuel.unwrap_or(u64::MAX));
        usage.memory_peak_bytes = guest.account.peak();
        usage.input_bytes = guest.streams.input_bytes();
        usage.output_bytes = guest.streams.output_bytes();
        usage.log_bytes = guest.streams.log_bytes();
        usage.open_files_peak = guest.wasi.open_files_peak();
        usage.disk_bytes = guest.wasi.disk_bytes();
        usage.host_calls = guest.host.calls();
        let written = guest.streams.take_written();
        let mut execution = Execution::new(outcome, usage);
        execution.output = written.output.into();
        execution.error = written.error.into();
        execution.log = written.log;
        execution
    }

    /// Runs guest code: the start function if it has not run yet, then the entry. Gives the fuel that is left as well.
    fn execute(
        &mut self,
        prepared: &WasmerPrepared,
        index: usize,
        fuel: i64,
        control: &Control<Answer>,
    ) -> (std::result::Result<i32, Ended>, i64) {
        if prepared.reads_input_by_offset
            && let Err(stop) = self.guest().wait_for_whole_input()
        {
            return (Err(stop.into()), fuel);
        }
        let fresh = self.instance.is_none();
        if fresh && let Err(ended) = self.link(prepared) {
            return (Err(ended), fuel);
        }
        let words = Arc::clone(&self.guest().words);
        let (Some(fuel_word), Some(flag_word)) = (words.fuel(), words.flag()) else {
            let why = "the limits were not compiled in; please report this";
            return (Err(Stop::Crashed(why.into()).into()), fuel);
        };
        // SAFETY: the words are in the instance, which exists; no guest code runs yet.
        unsafe { fuel_word.write(fuel) };
        // SAFETY: the instance outlives the guard, which ends with this function; the guest only reads this word.
        let attached = unsafe { control.attach(flag_word) };
        let ended =
            Self::call(&mut self.store, &self.env, self.instance.as_ref(), &mut self.entry, prepared, index, fresh);
        drop(attached);
        // SAFETY: as above; no guest code runs any more.
        let fuel_left = unsafe { fuel_word.read() };
        (ended, fuel_left)
    }

    /// Makes the engine's instance, which runs no guest code: the start function has become an export.
    fn link(&mut self, prepared: &WasmerPrepared) -> std::result::Result<(), Ended> {
        let mut externs = Vec::with_capacity(prepared.makers.len() + 1);
        for make in &prepared.makers {
            externs.push(make(&mut self.store, &self.env).into());
        }
        externs.push(imports::check(&mut self.store, &self.env).into());
        let instance = wasmer::Instance::new_by_index(&mut self.store, prepared.module(), &externs)
            .map_err(|error| Ended::Instantiation(Box::new(error)))?;
        if prepared.has_memory {
            self.guest().memory = instance.exports.get_memory("memory").ok().cloned();
        }
        self.instance = Some(instance);
        Ok(())
    }

    fn call(
        store: &mut Store,
        env: &FunctionEnv<Guest>,
        instance: Option<&wasmer::Instance>,
        looked_up: &mut Option<(usize, Entry)>,
        prepared: &WasmerPrepared,
        index: usize,
        fresh: bool,
    ) -> std::result::Result<i32, Ended> {
        let missing = || Stop::Crashed("a function export is not a function".into());
        let instance = instance.ok_or_else(missing)?;
        let exports = &instance.exports;
        if fresh {
            let first = [prepared.start.as_deref(), prepared.initialize.as_deref()];
            for name in first.into_iter().flatten() {
                let function = exports.get_function(name).map_err(|_| missing())?;
                function.typed::<(), ()>(store)?.call_sys(store)?;
            }
        }
        let function = match looked_up {
            Some((known, function)) if *known == index => function.clone(),
            _ => {
                let EntryPoint { name, returns_code } = prepared.entry_at(index);
                let function = exports.get_function(name).map_err(|_| missing())?;
                let function = match returns_code {
                    true => Entry::Code(function.typed(store)?),
                    false => Entry::Unit(function.typed(store)?),
                };
                looked_up.insert((index, function)).1.clone()
            }
        };
        env.as_mut(store).meter.phase = Phase::Running;
        Ok(match function {
            Entry::Unit(function) => function.call_sys(store).map(|()| 0)?,
            Entry::Code(function) => function.call_sys(store)?,
        })
    }
}

// SAFETY: the engine does not mark its store as sendable, since a store may hold anything. This one holds the engine's own
// parts of one instance (pointers into each other, without ties to a thread; what the engine keeps by thread, it sets up
// and takes down within each call), a `Guest`, and host functions that capture nothing. All of them move together, and
// are used through `&mut Live` only. No host value is ever given to the guest as a reference.
unsafe impl Send for Live {}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Guest>();
    assert_send::<Entry>();
};
