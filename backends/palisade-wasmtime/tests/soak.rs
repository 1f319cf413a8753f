//! Ten thousand runs leave nothing behind. The only test of its process, so that what it sees is its own.

use palisade_wasm::testkit;
use palisade_wasmtime::Wasmtime;

#[test]
fn ten_thousand_fresh_runs_leave_nothing() {
    let sandbox = Wasmtime::open(&testkit::options(None)).expect("the backend opens");
    testkit::soak::ten_thousand_fresh_runs_leave_nothing(&sandbox);
}
