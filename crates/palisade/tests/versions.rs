//! The engines that are resolved together are the ones meant: each Wasmer pins one Cranelift exactly, and most of them
//! would drag Wasmtime back to an older patch level.

use palisade::{BackendOptions, Sandbox};

fn resolved(name: &str) -> Vec<&'static str> {
    let lock = include_str!("../../../Cargo.lock");
    let entry = format!("name = \"{name}\"\nversion = \"");
    lock.split(&entry).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn the_engines_are_the_ones_meant() {
    assert_eq!(resolved("wasmtime"), ["48.0.8"]);
    assert_eq!(resolved("wasmer"), ["7.3.0"]);
    assert_eq!(resolved("wasmer-vm"), ["7.3.0"]);
    assert_eq!(resolved("wasmer-compiler-cranelift"), ["7.3.0"]);
    assert_eq!(resolved("cranelift-codegen"), ["0.134.3", "0.135.8"], "one for each engine");
    assert_eq!(resolved("wasmer-wasix"), [""; 0], "WASI is ours");
}

#[test]
fn the_engines_that_are_declared_are_the_ones_resolved() {
    for (backend, sandbox) in [
        ("wasmer", Box::new(palisade_wasmer::Wasmer::open(&options()).expect("it opens")) as Box<dyn Sandbox>),
        #[cfg(feature = "wasmtime")]
        ("wasmtime", Box::new(palisade::Wasmtime::open(&options()).expect("it opens"))),
    ] {
        assert_eq!(sandbox.capabilities().engine, format!("{backend} {}", resolved(backend)[0]));
    }
}

fn options() -> BackendOptions {
    BackendOptions::new().instances_max(1)
}
