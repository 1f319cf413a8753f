//! Run code you don't trust, under limits you can prove.
//!
//! This crate re-exports the contract (see [`Sandbox`]) and links the backends chosen by Cargo features:
//!
//! | feature | backend | |
//! |---|---|---|
//! | `wasmtime` (default) | `wasmtime` | WebAssembly modules, compiled by Wasmtime |
//! | `process` | `process` | native programs, scripts and shared libraries in Linux processes |
//! | `wasmer` | `wasmer` | WebAssembly modules, compiled by Wasmer |
//!
//! # Example
//!
//! ```
//! # #[cfg(feature = "wasmtime")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> palisade::Result<()> {
//! use std::time::Duration;
//! use palisade::{Artifact, BackendOptions, Call, HostFunctions, Outcome, Policy, PreparedExt, Resource};
//!
//! let sandbox = palisade::open("wasmtime", &BackendOptions::new())?;
//! let wasm = wat::parse_str(r#"(module (func (export "_start") (loop (br 0))))"#).unwrap();
//! let module = sandbox.load(Artifact::wasm(wasm)).await?;
//!
//! let mut policy = Policy::default();
//! policy.quota.wall_time = Some(Duration::from_millis(50));
//! let prepared = module.prepare(policy, HostFunctions::new())?;
//!
//! let execution = prepared.run(Call::new()).await?;
//! assert!(matches!(execution.outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, .. }));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "wasmtime"))]
//! # fn main() {}
//! ```
#![forbid(unsafe_code)]

pub use palisade_core::*;
#[cfg(all(feature = "process", target_os = "linux"))]
pub use palisade_process::ProcessSandbox;
#[cfg(feature = "wasmer")]
pub use palisade_wasmer::Wasmer;
#[cfg(feature = "wasmtime")]
pub use palisade_wasmtime::Wasmtime;

/// The example in the README, compiled.
#[cfg(all(doctest, feature = "wasmtime"))]
#[doc = include_str!("../README.md")]
struct Readme;
