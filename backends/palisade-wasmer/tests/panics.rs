//! What the caller gave a call may panic on the guest's thread; the call still ends, and so does the next.

mod support;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use palisade_core::{Call, HostFunctions, Outcome, OutputSink, OutputStream, PreparedExt};
use support::{block_on, generous, prepare};

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
            let prepared = prepare(wat, generous(), HostFunctions::new()).await.unwrap();
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
