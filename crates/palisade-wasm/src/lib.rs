//! What the backends of all WebAssembly engines share.
//!
//! * [`capabilities`]: what they can all do.
//! * [`compilers`]: how many artifacts are compiled at once, and for how long.
//! * [`entries`]: what can be called, and what a call is refused for.
//! * [`imports`]: what the imports of a module tell, and what is wrong with them.
//! * [`process`]: compiling in a process of its own.
//! * [`slots`]: the bound on instances.
//! * [`start`]: the start function as an export, so that making an instance runs nothing.
//! * [`structure`]: the language they accept, and how much of it one artifact may hold.
//! * `testkit` (a feature): tests that each backend runs.
#![forbid(unsafe_code)]

mod capabilities;
pub mod compilers;
pub mod entries;
pub mod imports;
pub mod process;
pub mod slots;
pub mod start;
pub mod structure;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use capabilities::capabilities;
