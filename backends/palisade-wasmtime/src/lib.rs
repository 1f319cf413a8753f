//! The Wasmtime backend of Palisade.
//!
//! Linking this crate registers it under the name `wasmtime`. It can also be opened directly:
//!
//! ```
//! use palisade_core::{BackendOptions, Sandbox};
//! use palisade_wasmtime::Wasmtime;
//!
//! let sandbox = Wasmtime::open(&BackendOptions::new())?;
//! assert_eq!(sandbox.capabilities().backend, "wasmtime");
//! # Ok::<(), palisade_core::Error>(())
//! ```
//!
//! # How limits are kept
//!
//! | quota | by |
//! |---|---|
//! | wall time, CPU time | the guest checks its clocks once per time slice (1 ms), because its epoch is bumped; a waiting guest is woken by a timer |
//! | fuel | instructions are counted by compiled-in code; bulk operations by their length |
//! | memory | the engine asks before it maps or grows; memories, tables and what the host holds are added up |
//! | stack | compiled-in checks against the engine's bound; each size has its own engine |
//! | output, log, files, disk, host calls | counted by the host functions themselves |
//!
//! A guest in a host call is suspended on a stack of its own and needs no thread.
//!
//! # Compiling hostile artifacts
//!
//! The bounds of `palisade_wasm::structure` keep what a compiler takes small, but a compiler in this process cannot be ended.
//! A host that loads artifacts it does not trust names a program in [`BackendOptions::compiler`] whose `main` calls
//! [`Wasmtime::compile_if_asked`] first, such as itself (`/proc/self/exe`) or the `palisade` command.
//!
//! [`BackendOptions::compiler`]: palisade_core::BackendOptions::compiler

mod backend;
mod cache;
mod compile;
mod engine;
mod guest;
mod imports;
mod instance;
mod meter;
mod module;
mod outcome;
mod validate;
mod watchdog;

pub use backend::Wasmtime;
