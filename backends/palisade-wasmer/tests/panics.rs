//! What the caller gave a call may panic on the guest's thread; the call still ends, and so does the next.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use palisade_core::{
    Artifact, BackendOptions, Call, HostFunctions, Outcome, OutputSink, OutputStream, Policy, PreparedExt, Sandbox,
    block_on,
};
use palisade_wasmer::Wasmer;

#[derive(Debug)]
struct PanicsWhenDropped;

impl OutputSink for PanicsWhenDropped {
    fn write(&self, _: OutputStream, _: &[u8]) {}
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("told to");
    }
}

#[test]
fn a_sink_that_panics_when_it_is_dropped_hangs_no_call() {
    let (done, ended) = channel();
    // On a thread of its own, which a call that never ends would keep.
    std::thread::spawn(move || {
        let outcomes = block_on(async {
            let wat = r#"(module (func (export "_start") unreachable) (func (export "fine")))"#;
            let sandbox = Wasmer::open(&BackendOptions::new()).expect("the backend opens");
            let module = sandbox.load(Artifact::wasm(wat::parse_str(wat).unwrap())).await.unwrap();
            let prepared = module.prepare(Policy::default(), HostFunctions::new()).unwrap();
            let trapped = prepared.run(Call::new().sink(Arc::new(PanicsWhenDropped))).await.unwrap().outcome;
            let fine = prepared.run(Call::new().entry("fine")).await.unwrap().outcome;
            (trapped, fine)
        });
        done.send(outcomes).unwrap();
    });
    let (trapped, fine) = ended.recv_timeout(Duration::from_secs(60)).expect("both calls end");
    assert!(matches!(trapped, Outcome::Crashed { .. }), "{trapped}");
    assert_eq!(fine, Outcome::Completed);
}
