//! The execution fabric of Palisade: what turns a sandbox into a service for many tasks.
//!
//! * [`LocalScheduler`] decides which task runs next, in memory or with a [`Journal`] on disk.
//! * [`PrometheusSink`] and its siblings hear the figures.
//!
//! Nothing here knows a backend.
#![forbid(unsafe_code)]

mod admission;
mod clock;
mod fair;
mod journal;
mod kpi;
mod limits;
mod machine;
mod prometheus;
mod retry;
mod scheduler;
mod sinks;
mod sqlite;
mod wheel;

pub use admission::admit;
pub use clock::Clock;
pub use fair::ClassOrder;
pub use journal::{Journal, JournalEntry, Kept};
pub use limits::{Rate, SchedulerLimits, TenantLimits};
pub use machine::Status;
pub use prometheus::PrometheusSink;
pub use scheduler::{LocalScheduler, SchedulerOptions};
pub use sinks::{NullSink, RecordingSink};
pub use sqlite::SqliteJournal;
