//! The guest interfaces of Palisade's Wasm backends, independent of the engine.
//!
//! * [`WasiContext`]: WASI preview 1, over `cap-std`.
//! * [`reactor`]: the bulk-copy imports of module `palisade`.
//! * [`Streams`]: the bounded input and output both share.
//! * [`Account`]: what an instance holds of memory.
//!
//! # How a backend uses it
//!
//! Nothing here waits, and nothing here knows an engine. A backend hands each call of an import to the function of the
//! same name, with the guest's memory as a slice. Where the guest has to wait (a sleep, an input that is still to come),
//! the function returns [`Stop::Wait`]; the backend waits in its own way, within the call's deadline, and then calls the
//! same function with the same arguments again. What takes longer than a moment is done in parts, between which a function
//! returns [`Stop::Yield`].
#![forbid(unsafe_code)]

pub mod ablation;
mod account;
mod args;
mod clock;
mod config;
mod context;
mod descriptors;
mod directory;
mod disk;
mod errno;
mod files;
mod functions;
mod layout;
mod memory;
mod paths;
mod poll;
mod process;
mod random;
pub mod reactor;
mod room;
mod stop;
mod streams;
mod sync;
#[cfg(test)]
mod tests;
mod times;

pub use palisade_filesystems::Fuse;

pub use account::{Account, TABLE_ENTRY_BYTES};
pub use config::WasiConfig;
pub use context::WasiContext;
pub use errno::Errno;
pub use memory::{GuestMemory, OutOfBounds};
pub use room::Room;
pub use stop::{Stop, Wait};
pub use streams::{Streams, StreamsLimits, Written};
pub use sync::Work;
