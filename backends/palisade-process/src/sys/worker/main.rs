//! The worker: the small program that becomes the zygote, and whose clones become the instances.
//!
//! It is compiled by the backend's build script, without any crate but the standard library, and carried inside the
//! backend; so an embedding program has nothing to install. It runs single-threaded and, up to the moment an instance
//! runs guest code, does nothing but follow the host's plan.
#![cfg_attr(palisade_worker, no_main)]

mod attack;
mod ffi;
mod instance;
mod jail;
mod library;
#[path = "../protocol.rs"]
mod protocol;
mod zygote;

/// Entry point. Argument 1 is the process id of the host; a second one keeps inherited descriptors open.
// SAFETY: this program has no other `main`: it is compiled with `no_main`.
#[cfg_attr(palisade_worker, unsafe(no_mangle))]
extern "C" fn main(argc: i32, argv: *const *const std::ffi::c_char) -> i32 {
    let host = (argc > 1).then(|| ffi::argument(argv, 1)).flatten();
    zygote::run(host.and_then(|text| text.parse().ok()).unwrap_or(0), argc > 2)
}
