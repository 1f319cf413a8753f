//! The Wasmer backend of Palisade.
//!
//! Linking this crate registers it under the name `wasmer`. It can also be opened directly:
//!
//! ```
//! use palisade_core::{BackendOptions, Sandbox};
//! use palisade_wasmer::Wasmer;
//!
//! let sandbox = Wasmer::open(&BackendOptions::new())?;
//! assert_eq!(sandbox.capabilities().backend, "wasmer");
//! # Ok::<(), palisade_core::Error>(())
//! ```
//!
//! # How limits are kept
//!
//! | quota | by |
//! |---|---|
//! | wall time, CPU time | at a deadline the host sets a word that compiled-in code reads at loop heads and function entries; the guest then checks its clocks |
//! | fuel | instructions are counted by compiled-in code; bulk operations by their length |
//! | memory | the engine asks before it maps or grows; memories, tables and what the host holds are added up |
//! | stack | the guest's own stack has the quota's size and a guard page |
//! | output, log, files, disk, host calls | counted by the host functions themselves |
//!
//! A guest runs on a thread of a pool for as long as its call takes; what it waits for is polled where the caller's
//! future is.

mod backend;
mod compile;
mod control;
mod engine;
mod guest;
mod imports;
mod instance;
mod instrument;
mod memory;
mod meter;
mod module;
mod outcome;
mod stack;
mod threads;
mod validate;
mod watchdog;

pub use backend::Wasmer;
