//! What the host keeps for one instance: the data of its store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{Call, CancelToken, HostFunctions, Policy, Resource};
use palisade_wasi::reactor::HostCalls;
use palisade_wasi::{Room, Stop, Streams, StreamsLimits, WasiConfig, WasiContext};
use palisade_wasm::structure::TABLES_MAX;
use wasmtime::{Memory, ResourceLimiter};

use crate::meter::Meter;

/// What one table entry costs the host.
const TABLE_ENTRY_BYTES: u64 = size_of::<usize>() as u64;

/// Data of a store.
pub(crate) struct Guest {
    pub(crate) wasi: WasiContext,
    pub(crate) streams: Streams,
    pub(crate) host: HostCalls,
    pub(crate) meter: Arc<Meter>,
    pub(crate) memory: Option<Memory>,
    /// When the current call started; `None` before the first.
    started: Option<Instant>,
    wall_limit: Option<Duration>,
    cpu_limit: Option<Duration>,
    cancel: Option<CancelToken>,
    memory_limit: u64,
    /// The linear memory.
    linear_bytes: u64,
    table_bytes: u64,
    memory_peak_bytes: u64,
    /// Why memory was refused, for when the engine reports it in words of its own.
    pub(crate) memory_refused: Option<Stop>,
}

impl Guest {
    pub(crate) fn new(
        wasi: Arc<WasiConfig>,
        functions: Arc<HostFunctions>,
        policy: &Policy,
        meter: Arc<Meter>,
    ) -> Self {
        let quota = &policy.quota;
        Guest {
            wasi: WasiContext::new(wasi),
            streams: Streams::new(Default::default(), None, StreamsLimits::from(quota)),
            host: HostCalls::new(functions, quota.host_calls.unwrap_or(u64::MAX)),
            meter,
            memory: None,
            started: None,
            wall_limit: quota.wall_time,
            cpu_limit: quota.cpu_time,
            cancel: None,
            memory_limit: quota.memory_bytes.unwrap_or(u64::MAX),
            linear_bytes: 0,
            table_bytes: 0,
            memory_peak_bytes: 0,
            memory_refused: None,
        }
    }

    /// Begins a call.
    pub(crate) fn begin_call(&mut self, call: Call, limits: StreamsLimits, started: Instant) {
        self.wasi.begin_call(call.arguments);
        self.streams = Streams::new(call.input, call.sink, limits);
        self.host.begin_call(call.trace);
        self.meter.reset();
        self.started = Some(started);
        self.cancel = call.cancel;
        self.memory_peak_bytes = 0;
        self.memory_refused = None;
    }

    /// Bytes of guest memory, with what the host holds for it.
    fn charged_bytes(&self) -> u64 {
        self.linear_bytes + self.table_bytes + self.streams.held_bytes() + self.host.held_bytes()
    }

    /// Checks the memory quota after the host took something for the guest.
    pub(crate) fn charge(&mut self) -> Result<(), Stop> {
        let charged = self.charged_bytes();
        self.memory_peak_bytes = self.memory_peak_bytes.max(charged.min(self.memory_limit));
        if charged > self.memory_limit {
            return Err(Stop::Exceeded { resource: Resource::Memory, limit: self.memory_limit, used: charged });
        }
        Ok(())
    }

    /// What the host may still take.
    pub(crate) fn room(&self) -> Room {
        Room { limit: self.memory_limit, left: self.memory_limit.saturating_sub(self.charged_bytes()) }
    }

    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        self.memory_peak_bytes
    }

    /// Checks cancellation and time; done at every time slice.
    pub(crate) fn check_slice(&self) -> Result<(), Stop> {
        self.check_cancelled()?;
        let Some(started) = self.started else { return Ok(()) };
        let wall_time = started.elapsed();
        exceeded(Resource::WallTime, self.wall_limit, wall_time)?;
        match self.cpu_limit {
            Some(_) => exceeded(Resource::CpuTime, self.cpu_limit, self.meter.cpu_time(wall_time)),
            None => Ok(()),
        }
    }

    /// Checks cancellation.
    pub(crate) fn check_cancelled(&self) -> Result<(), Stop> {
        match &self.cancel {
            Some(cancel) if cancel.is_cancelled() => Err(Stop::Cancelled),
            _ => Ok(()),
        }
    }

    /// Charges `grown` bytes, which the caller adds where they belong.
    fn grow(&mut self, grown: u64) -> wasmtime::Result<()> {
        let charged = self.charged_bytes().saturating_add(grown);
        if charged > self.memory_limit {
            let stop = Stop::Exceeded { resource: Resource::Memory, limit: self.memory_limit, used: charged };
            self.memory_refused = Some(stop.clone());
            return Err(Halt(stop).into());
        }
        self.memory_peak_bytes = self.memory_peak_bytes.max(charged);
        Ok(())
    }
}

/// `Err` when `used` is more than `limit`.
pub(crate) fn exceeded(resource: Resource, limit: Option<Duration>, used: Duration) -> Result<(), Stop> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    match limit {
        Some(limit) if used > limit => Err(Stop::Exceeded { resource, limit: nanos(limit), used: nanos(used) }),
        _ => Ok(()),
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Beyond the module's own maximum nothing is taken; the guest learns it by -1.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // What the engine has, not what it was allowed: it may have failed to get that. It says so afterwards, but also when
        // it never asked, so that its word is no measure.
        self.linear_bytes = current as u64;
        self.grow(desired as u64 - current as u64)?;
        self.linear_bytes = desired as u64;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let grown = (desired as u64 - current as u64).saturating_mul(TABLE_ENTRY_BYTES);
        self.grow(grown)?;
        self.table_bytes += grown;
        Ok(true)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        1
    }
}

/// A [`Stop`] on its way through the engine.
#[derive(Debug)]
pub(crate) struct Halt(pub(crate) Stop);

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest stopped: {:?}", self.0)
    }
}

impl std::error::Error for Halt {}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_wasi::Fuse;

    #[test]
    fn a_growth_that_failed_is_not_charged_to_the_next() {
        let mut policy = Policy::default();
        policy.quota.memory_bytes = Some(100);
        let wasi = Arc::new(WasiConfig::new("guest", &policy, Fuse::Refused).unwrap());
        let mut guest = Guest::new(wasi, Arc::default(), &policy, Arc::default());
        assert!(guest.memory_growing(0, 60, None).unwrap());
        // The system had no memory: it is as large as before.
        guest.memory_grow_failed(wasmtime::Error::msg("no memory")).unwrap();
        assert!(guest.memory_growing(0, 100, None).unwrap());
        // A failure that nobody was asked about gives nothing back.
        guest.memory_grow_failed(wasmtime::Error::msg("beyond the type's limits")).unwrap();
        assert!(guest.memory_growing(100, 101, None).is_err());
    }
}
