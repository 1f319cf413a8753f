//! The contract of Palisade: the vocabulary and the three traits every other crate agrees on.
//!
//! * [`Sandbox`] loads an [`Artifact`] and makes isolated instances of it, under a [`Policy`].
//! * [`Scheduler`] decides which [`Task`] runs next, and records exactly one outcome for each.
//! * [`MetricsSink`] hears what happened.
//!
//! The crate knows no engine, no operating system and no async runtime; futures are plain boxed futures that any
//! executor can drive. Every type that crosses a boundary implements serde's traits.
//!
//! # Words
//!
//! An *artifact* is the bytes of a plugin. A *sandbox* loads it into a *module*; a module *prepared* for one policy
//! makes *instances*; an instance runs *calls*. A *policy* is a *quota* (upper bounds) and *grants* (what the guest may
//! reach, by default nothing). How a call ended is its *outcome*, what it took is its *usage*.
//!
//! # Example
//!
//! Running a plugin is the same four steps on every backend:
//!
//! ```
//! use palisade_core::{Artifact, Call, Execution, HostFunctions, Policy, Result, Sandbox};
//!
//! async fn run_once(sandbox: &dyn Sandbox, wasm: Vec<u8>) -> Result<Execution> {
//!     let module = sandbox.load(Artifact::wasm(wasm)).await?;
//!     let prepared = module.prepare(Policy::default(), HostFunctions::new())?;
//!     let mut instance = prepared.instantiate().await?;
//!     instance.call(Call::new().input("hello")).await
//! }
//! ```
#![forbid(unsafe_code)]

mod artifact;
mod block_on;
pub mod bounded;
mod cancel;
mod capabilities;
mod error;
mod host_function;
mod metrics;
mod on_thread;
mod outcome;
mod policy;
mod registry;
mod sandbox;
mod scheduler;
#[cfg(feature = "schema")]
mod schema;
mod task;
pub mod text;
mod trace;
pub mod units;
mod usage;
mod within;

pub use bytes::Bytes;
pub use uuid;

pub use artifact::{Abi, Artifact, ArtifactHash, ArtifactKind, Entry, ExportInfo, ImportInfo, ModuleInfo};
pub use block_on::block_on;
pub use cancel::{CancelToken, Cancelled};
pub use capabilities::{Capabilities, Enforcement, GrantKind};
pub use error::{Error, ErrorKind, Result};
pub use host_function::{HostCall, HostFunction, HostFunctionError, HostFunctions, Invocation};
pub use metrics::{MetricDescriptor, MetricId, MetricKind, MetricsSink};
pub use on_thread::{OnThread, on_thread};
pub use outcome::{Execution, Layer, LayerStatus, LogLevel, LogRecord, Outcome, Phase, TrapKind};
pub use policy::{Access, Clocks, DirectoryGrant, Grants, Policy, Quota, Randomness, Resource, Unit};
pub use registry::{
    BackendOptions, BackendRegistration, CacheOptions, Finding, FindingStatus, backend, backends, open,
};
pub use sandbox::{Call, Input, Instance, Module, OutputSink, OutputStream, Prepared, PreparedExt, Sandbox};
pub use scheduler::{
    Completion, Fence, Lease, LeaseRequest, PluginLimit, Report, Scheduler, SchedulerMode, SchedulerStats, Submission,
    TaskPage, TaskQuery, TaskRecord, TaskState, WorkerId,
};
pub use task::{IdempotencyKey, Priority, RetryPolicy, Task, TaskId, Tenant};
pub use trace::TraceContext;
pub use usage::Usage;

/// Used by [`inventory::submit!`] in backend crates, so that they need not depend on `inventory` themselves.
#[doc(hidden)]
pub use inventory;

/// A boxed, sendable future: what the object-safe traits return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
