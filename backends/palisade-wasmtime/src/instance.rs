//! One instance: a store, and the calls made in it.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use palisade_core::{BoxFuture, Call, Error, ErrorKind, Execution, Instance, Outcome, Phase, Resource, Result, Usage};
use palisade_wasi::ablation::left_out;
use palisade_wasi::{Stop, StreamsLimits};
use wasmtime::{Func, Store, TypedFunc};

use crate::guest::{Guest, Halt, exceeded};
use crate::meter::Meter;
use crate::module::{EntryPoint, Slot, WasmtimePrepared};
use crate::outcome;

/// Fuel is given out in portions of this size. Compiled code keeps its count in a register and loses it when the guest
/// is stopped, so this bounds by how much a stopped guest's usage is too small.
const FUEL_PORTION: u64 = 1_000_000;

/// An instance. After an abnormal end it holds nothing any more.
pub(crate) struct WasmtimeInstance {
    live: Option<Live>,
    /// Behind what lives, so that it is dropped after it.
    prepared: Slot,
}

/// What an instance holds while it can serve calls.
struct Live {
    store: Store<Guest>,
    /// `None` until the first call, which runs the start function.
    instance: Option<wasmtime::Instance>,
    /// The entry looked up last, by its index.
    entry: Option<(usize, Entry)>,
    meter: Arc<Meter>,
}

enum Entry {
    Unit(TypedFunc<(), ()>),
    Code(TypedFunc<(), i32>),
}

impl Entry {
    /// `function` is the export of `entry`, in an instance of the module that was prepared. Its type is not looked up once
    /// more: what it costs, a reference to the engine's table of types, which all threads write, is paid for each instance.
    fn new(store: &Store<Guest>, function: Func, entry: &EntryPoint) -> Entry {
        // `EntryPoint`s are made in `module.rs` only, of exports whose type `entries` read from the module itself. The index
        // `entry.export` names that same export in each instance of that module.
        match entry.returns_code {
            // SAFETY: of those, this one has no parameters and one result, of type `i32`.
            true => Entry::Code(unsafe { TypedFunc::new_unchecked(store, function) }),
            // SAFETY: of those, this one has no parameters and no results.
            false => Entry::Unit(unsafe { TypedFunc::new_unchecked(store, function) }),
        }
    }
}

impl fmt::Debug for WasmtimeInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmtimeInstance").field("usable", &self.live.is_some()).finish_non_exhaustive()
    }
}

impl WasmtimeInstance {
    pub(crate) fn new(prepared: Slot) -> Self {
        let meter = Arc::new(Meter::default());
        let guest = Guest::new(
            Arc::clone(&prepared.wasi),
            Arc::clone(&prepared.functions),
            &prepared.policy,
            Arc::clone(&meter),
        );
        let mut store = Store::new(prepared.engine(), guest);
        store.limiter(|guest| guest);
        store.epoch_deadline_callback(|context| {
            context.data().check_slice().map_err(Halt)?;
            // One slice is over; let the executor look after others, and notice if this call was dropped.
            Ok(wasmtime::UpdateDeadline::Yield(1))
        });
        WasmtimeInstance { live: Some(Live { store, instance: None, entry: None, meter }), prepared }
    }
}

impl Instance for WasmtimeInstance {
    fn call(&mut self, call: Call) -> BoxFuture<'_, Result<Execution>> {
        Box::pin(async move {
            let (index, entry) = self.prepared.entry(&call.entry)?;
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
            let execution = live.run(&self.prepared, index, entry, call).await;
            if execution.outcome.leaves_instance_usable() {
                self.live = Some(live);
            }
            Ok(execution)
        })
    }
}

impl Live {
    async fn run(
        &mut self,
        prepared: &WasmtimePrepared,
        index: usize,
        entry: &EntryPoint,
        mut call: Call,
    ) -> Execution {
        let started = Instant::now();
        if left_out("cancel") {
            call.cancel = None;
        }
        let quota = &prepared.policy.quota;
        // The engine looks at fuel at loop heads and function entries, so a guest may end by itself beyond its limit. One
        // unit more than the limit tells the two apart: it is left exactly when the limit was kept.
        let fuel = quota.fuel.unwrap_or(u64::MAX).saturating_add(1);
        let cancel = call.cancel.clone();
        self.store.data_mut().begin_call(call, StreamsLimits::from(quota), started);
        self.store.set_epoch_deadline(1);
        let counted = self.store.set_fuel(fuel).and_then(|()| self.store.fuel_async_yield_interval(Some(FUEL_PORTION)));

        let meter = Arc::clone(&self.meter);
        let begun = self.store.data_mut().charge().and_then(|()| self.store.data().check_cancelled());
        let mut wall_time = Duration::ZERO;
        let ended = match (counted, begun) {
            // An engine that does not count fuel would run the guest without its limit.
            (Err(error), _) => Err(error),
            (_, Err(stop)) => Err(Halt(stop).into()),
            (Ok(()), Ok(())) => {
                let watchdog = prepared.watchdog();
                let deadline = quota.wall_time.and_then(|limit| started.checked_add(limit));
                let mut guest =
                    pin!(execute(&mut self.store, &mut self.instance, &mut self.entry, prepared, index, entry));
                let mut timer = pin!(deadline.map(|deadline| watchdog.sleep_until(deadline)));
                let mut cancelled = pin!(cancel.as_ref().map(|cancel| cancel.cancelled()));
                let mut first = true;
                poll_fn(|context| {
                    let polled = {
                        let _running = watchdog.running();
                        if !first {
                            wall_time = started.elapsed();
                        }
                        meter.poll_started(wall_time, first);
                        let polled = guest.as_mut().poll(context);
                        wall_time = started.elapsed();
                        meter.poll_ended(wall_time);
                        polled
                    };
                    first = false;
                    if polled.is_pending() && meter.phase() == Phase::HostCall {
                        // A waiting guest passes no time slice, so its limits are kept here. A guest that only yielded
                        // checks them itself.
                        if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(context).is_ready()) {
                            wall_time = started.elapsed();
                            let late = exceeded(Resource::WallTime, quota.wall_time, wall_time);
                            // The timer never fires early, but the clock may stand still at the limit itself.
                            return match late {
                                Err(stop) => Poll::Ready(Err(Halt(stop).into())),
                                Ok(()) => {
                                    context.waker().wake_by_ref();
                                    Poll::Pending
                                }
                            };
                        }
                        if cancelled.as_mut().as_pin_mut().is_some_and(|cancelled| cancelled.poll(context).is_ready()) {
                            return Poll::Ready(Err(Halt(Stop::Cancelled).into()));
                        }
                    }
                    polled
                })
                .await
            }
        };

        let phase = meter.phase();
        let cpu_time = meter.cpu_time_of_polls();
        let outcome = match ended {
            Ok(code) => Outcome::from_exit_code(code),
            Err(error) => {
                let refused = self.store.data_mut().memory_refused.take();
                outcome::from_error(&error, refused, quota, phase)
            }
        };
        let fuel_used = fuel - self.store.get_fuel().unwrap_or(0).min(fuel);
        // A guest that came to its end between two checks may have come too far.
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

        let guest = self.store.data_mut();
        let mut usage = Usage::default();
        usage.wall_time = wall_time;
        usage.cpu_time = cpu_time;
        usage.fuel = fuel_used.min(quota.fuel.unwrap_or(u64::MAX));
        usage.memory_peak_bytes = guest.memory_peak_bytes();
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
}

/// Runs guest code: the start function if it has not run yet, then the entry.
async fn execute(
    store: &mut Store<Guest>,
    instance: &mut Option<wasmtime::Instance>,
    looked_up: &mut Option<(usize, Entry)>,
    prepared: &WasmtimePrepared,
    index: usize,
    entry: &EntryPoint,
) -> wasmtime::Result<i32> {
    if prepared.reads_input_by_offset {
        let room = store.data().room();
        store.data().meter.set_phase(Phase::HostCall);
        poll_fn(|context| store.data_mut().streams.poll_whole_input(context, room)).await.map_err(Halt)?;
        store.data_mut().charge().map_err(Halt)?;
        store.data().meter.set_phase(Phase::Starting);
    }
    let instance = match *instance {
        Some(instance) => instance,
        None => {
            let made = prepared.pre.instantiate_async(&mut *store).await?;
            if let Some(memory) = &prepared.memory {
                let memory = made.get_module_export(&mut *store, memory).and_then(|export| export.into_memory());
                store.data_mut().memory = memory;
            }
            if let Some(initialize) = &prepared.initialize {
                let function = made.get_module_export(&mut *store, initialize).and_then(|export| export.into_func());
                if let Some(function) = function {
                    function.typed::<(), ()>(&*store)?.call_async(&mut *store, ()).await?;
                }
            }
            *instance.insert(made)
        }
    };
    let function = match looked_up {
        Some((known, function)) if *known == index => function,
        _ => {
            let function = instance.get_module_export(&mut *store, &entry.export).and_then(|export| export.into_func());
            let function = function.ok_or_else(|| wasmtime::Error::msg("a function export is not a function"))?;
            &mut looked_up.insert((index, Entry::new(&*store, function, entry))).1
        }
    };
    store.data().meter.set_phase(Phase::Running);
    match function {
        Entry::Unit(function) => function.call_async(store, ()).await.map(|()| 0),
        Entry::Code(function) => function.call_async(store, ()).await,
    }
}
