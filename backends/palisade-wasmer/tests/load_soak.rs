//! Ten thousand modules loaded and unloaded leave nothing behind. The only test of its process, so that what it sees is
//! its own.

use palisade_core::{Artifact, BackendOptions, Call, HostFunctions, Outcome, Policy, Sandbox};
use palisade_wasmer::Wasmer;

fn statm(field: usize) -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: u64 = statm.split_whitespace().nth(field).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("Linux has /proc").lines().count()
}

#[test]
fn ten_thousand_modules_leave_nothing() {
    let wasm = wat::parse_str(
        r#"(module (memory 1) (table 4 funcref) (func $f) (elem (i32.const 0) $f)
          (func (export "_start") (call_indirect (i32.const 0)) (i32.store (i32.const 0) (i32.const 1))))"#,
    )
    .unwrap();
    let sandbox = Wasmer::open(&BackendOptions::new()).expect("the backend opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cycle = |modules: usize| {
        for _ in 0..modules {
            runtime.block_on(async {
                let module = sandbox.load(Artifact::wasm(wasm.clone())).await.unwrap();
                let prepared = module.prepare(Policy::default(), HostFunctions::new()).unwrap();
                drop(module);
                let mut instance = prepared.instantiate().await.unwrap();
                // The module goes before its instance: the instance keeps the code it runs.
                drop(prepared);
                assert_eq!(instance.call(Call::new()).await.unwrap().outcome, Outcome::Completed);
            });
        }
    };
    cycle(500);
    let (virtual_bytes, resident, mapped) = (statm(0), statm(1), mappings());
    cycle(10_000);
    let grown = statm(1).saturating_sub(resident);
    // The code of one module is a few pages: a leak of a page per module would be 40 MB.
    assert!(grown < 4 << 20, "resident memory grew by {grown} bytes");
    let grown = statm(0).saturating_sub(virtual_bytes);
    assert!(grown < 256 << 20, "address space grew by {grown} bytes");
    let grown = mappings().saturating_sub(mapped);
    assert!(grown < 64, "{grown} mappings were left behind");
}
