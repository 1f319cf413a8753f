//! The execution fabric of Palisade: what turns a sandbox into a service for many tasks.
//!
//! * [`LocalScheduler`] decides which task runs next, in memory or with a [`Journal`] on disk.
//! * [`Executor`] leases tasks and runs them by [agents](AgentTemplate), each with a memory of its own.
//! * [`PrometheusSink`] and its siblings hear the figures.
//!
//! Nothing here knows a backend.
#![forbid(unsafe_code)]

mod admission;
mod agent;
mod busy;
mod clock;
mod events;
mod executor;
mod fair;
mod figures;
mod histogram;
mod journal;
mod kpi;
mod latency;
mod limits;
mod loads;
mod machine;
mod mark;
mod memory;
mod modules;
mod narrow;
mod outcomes;
mod places;
mod prepared;
mod private;
mod prometheus;
mod retry;
mod scheduler;
mod sinks;
mod skipped;
mod sqlite;
mod suspects;
mod trace;
mod wheel;

pub use admission::{admit, check_tenant};
pub use agent::{AgentReport, AgentState, AgentTemplate, InstanceMode, RestartBudget};
pub use clock::Clock;
pub use events::{About, Event, EventFilter, Events, Subscription};
pub use executor::{AdmitTask, Drained, Executor, ExecutorOptions};
pub use fair::ClassOrder;
pub use journal::{Journal, JournalEntry, Restored};
pub use limits::{Rate, SchedulerLimits, TenantLimits, TenantReport};
pub use machine::Status;
pub use memory::{AgentMemory, Eviction, MemoryLimits};
pub use narrow::narrowed;
pub use prometheus::PrometheusSink;
pub use scheduler::{LocalScheduler, SchedulerOptions};
pub use sinks::{NullSink, RecordingSink};
pub use sqlite::SqliteJournal;
