//! The process backend of Palisade: native programs, scripts and shared libraries, each in a jail made of Linux
//! namespaces, a private root, resource limits, Landlock and a system call filter.
//!
//! Three processes work together. The *host* is the program that embeds Palisade. For each prepared module it starts a
//! *zygote*: a small program carried inside this crate, which builds the jail once and runs no guest code. The zygote
//! clones *instances*, whose parent is the host: so the kernel itself tells the host how a guest ended and what it used.
//!
//! Libraries talk to the host through the table of `include/palisade.h`, which also says how a program makes host calls.
//!
//! Nothing is silently weaker. The backend does not open on a machine where a layer is missing, and attacks a jail of its
//! own before it opens.
//!
//! ```no_run
//! use palisade_core::{Artifact, ArtifactKind, BackendOptions, Call, Clocks, HostFunctions, Policy, PreparedExt, Sandbox};
//! use palisade_process::ProcessSandbox;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let sandbox = ProcessSandbox::open(&BackendOptions::new())?;
//! let tool = Artifact::new(ArtifactKind::Executable, std::fs::read("tool")?);
//! let mut policy = Policy::default();
//! policy.grants.clocks = Clocks::Fine; // an executable cannot be kept from reading the processor's clock
//! let prepared = sandbox.load(tool).await?.prepare(policy, HostFunctions::new())?;
//! let execution = prepared.run(Call::new().input("hello")).await?;
//! println!("{}", execution.outcome);
//! # Ok(())
//! # }
//! ```
#![cfg(target_os = "linux")]

mod ask;
mod backend;
mod call;
mod capabilities;
mod control_groups;
mod conversation;
mod cpu_group;
mod elf;
mod instance;
mod interpreter;
mod jail;
mod kind;
mod landlock;
mod libraries;
mod memory_group;
mod module;
mod notices;
mod outcome;
mod plan;
mod pool;
mod prepared;
mod process;
mod reaper;
mod rest;
mod seccomp;
mod self_test;
mod shared;
mod special;
mod streams;
mod sys;
mod watched;
mod zygote;

pub use backend::ProcessSandbox;
