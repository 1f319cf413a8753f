//! One instance, and how a call of it is driven.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use palisade_core::{BoxFuture, Call, Execution, Instance, Outcome, Phase, Result};
use palisade_wasi::Stop;
use palisade_wasm::entries;
use palisade_wasm::slots::Slot;
use wasmi::{Func, ResumableCall, Store, Val};

use crate::guest::{CpuClock, Guest};
use crate::imports::Halt;
use crate::module::WasmiPrepared;

/// Fuel after which a guest's limits are looked at and others get their turn: less than a millisecond.
const SLICE: u64 = 20_000;

/// An instance. After an abnormal end it holds nothing any more.
pub(crate) struct WasmiInstance {
    prepared: Arc<WasmiPrepared>,
    live: Option<Live>,
    _slot: Slot,
}

impl fmt::Debug for WasmiInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmiInstance").field("usable", &self.live.is_some()).finish_non_exhaustive()
    }
}

impl WasmiInstance {
    pub(crate) fn new(prepared: Arc<WasmiPrepared>, slot: Slot) -> WasmiInstance {
        let mut store = Store::new(&prepared.code.engine, prepared.guest());
        store.limiter(|guest| guest);
        WasmiInstance { prepared, live: Some(Live { store, instance: None }), _slot: slot }
    }
}

impl Instance for WasmiInstance {
    fn call(&mut self, call: Call) -> BoxFuture<'_, Result<Execution>> {
        Box::pin(async move {
            let started = Instant::now();
            let entry = self.prepared.entry(&call.entry)?.name.clone();
            entries::check_arguments(&call)?;
            // Taken out for the time of the call: when the call is dropped, the instance is dropped with it.
            let mut live = self.live.take().ok_or_else(entries::stale)?;
            let cpu = Arc::new(CpuClock::default());
            live.store.data_mut().begin_call(call, started, Arc::clone(&cpu));
            let execution = {
                let mut running = pin!(live.run(&self.prepared, &entry));
                poll_fn(|context| cpu.poll(|| running.as_mut().poll(context))).await
            };
            if execution.outcome.leaves_instance_usable() {
                self.live = Some(live);
            }
            Ok(execution)
        })
    }
}

/// Why guest code did not come to its end.
enum Ended {
    Stop(Stop),
    Error(wasmi::Error),
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        Ended::Stop(stop)
    }
}

impl From<wasmi::Error> for Ended {
    fn from(error: wasmi::Error) -> Self {
        Ended::Error(error)
    }
}

/// What an instance holds while it can serve calls.
struct Live {
    store: Store<Guest>,
    /// `None` until the first call.
    instance: Option<wasmi::Instance>,
}

impl Live {
    /// Runs one call from begin to end.
    async fn run(&mut self, prepared: &WasmiPrepared, entry: &str) -> Execution {
        let ended = self.execute(prepared, entry).await;
        let guest = self.store.data_mut();
        let outcome = match ended {
            Ok(code) => Outcome::from_exit_code(code),
            Err(Ended::Stop(stop)) => guest.outcome(stop),
            Err(Ended::Error(error)) => guest.outcome_of(&error),
        };
        // What came to its end after its time was up is over its time.
        let outcome = match guest.check() {
            Err(stop) if outcome.leaves_instance_usable() && stop != Stop::Cancelled => guest.outcome(stop),
            _ => outcome,
        };
        let written = guest.streams.take_written();
        let mut execution = Execution::new(outcome, guest.usage());
        execution.output = written.output.into();
        execution.error = written.error.into();
        execution.log = written.log;
        execution
    }

    async fn execute(&mut self, prepared: &WasmiPrepared, entry: &str) -> std::result::Result<i32, Ended> {
        self.store.data().charge()?;
        self.store.data().check()?;
        if palisade_wasm::imports::reads_input_by_offset(&prepared.info.imports) {
            self.store.data_mut().wait_for_whole_input().await?;
        }
        let instance = match self.instance {
            Some(instance) => instance,
            None => {
                // Runs no guest code: the start function has become an export.
                let made = prepared.code.linker.instantiate_and_start(&mut self.store, &prepared.code.module)?;
                self.store.data_mut().memory = made.get_memory(&self.store, "memory");
                self.instance = Some(made);
                for name in &prepared.first {
                    self.call(made, name).await?;
                }
                made
            }
        };
        self.store.data_mut().phase = Phase::Running;
        self.call(instance, entry).await
    }

    /// Calls an export, slice by slice.
    async fn call(&mut self, instance: wasmi::Instance, name: &str) -> std::result::Result<i32, Ended> {
        let function = instance.get_func(&self.store, name);
        let function: Func = function.ok_or_else(|| Stop::Crashed(format!("there is no function `{name}`")))?;
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        let mut granted = self.refuel(0)?;
        let mut state = function.call_resumable(&mut self.store, &[], &mut results);
        loop {
            let left = self.store.get_fuel().unwrap_or_default();
            self.store.data_mut().fuel_used += granted.saturating_sub(left);
            state = match state? {
                ResumableCall::Finished => {
                    return Ok(results.first().and_then(Val::i32).unwrap_or_default());
                }
                ResumableCall::OutOfFuel(paused) => {
                    self.give_way().await?;
                    granted = self.refuel(paused.required_fuel())?;
                    paused.resume(&mut self.store, &mut results)
                }
                ResumableCall::HostTrap(paused) => {
                    let Some(Halt { stop, again }) = paused.host_error().downcast_ref::<Halt>() else {
                        return Err(paused.into_host_error().into());
                    };
                    let (mut stop, again) = (stop.clone(), again.clone());
                    let result = loop {
                        match stop {
                            Stop::Wait(wait) => self.store.data_mut().wait(wait).await?,
                            Stop::Yield => self.give_way().await?,
                            stop => return Err(stop.into()),
                        }
                        match again.call(&mut self.store) {
                            Ok(result) => break result,
                            Err(next) => stop = next,
                        }
                    };
                    granted = self.refuel(0)?;
                    paused.resume(&mut self.store, result.as_slice(), &mut results)
                }
            };
        }
    }

    /// Gives the guest fuel for its next slice, at least `needed`.
    fn refuel(&mut self, needed: u64) -> std::result::Result<u64, Ended> {
        let left = self.store.data().fuel_left();
        if needed > left {
            return Err(self.store.data().out_of_fuel(needed).into());
        }
        let slice = SLICE.max(needed).min(left);
        self.store.set_fuel(slice)?;
        self.store.data_mut().slice_began = Instant::now();
        Ok(slice)
    }

    /// Looks at the guest's limits and lets others have their turn.
    async fn give_way(&mut self) -> std::result::Result<(), Stop> {
        self.store.data().check()?;
        let mut gave = false;
        poll_fn(|context| {
            if std::mem::replace(&mut gave, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        Ok(())
    }
}
