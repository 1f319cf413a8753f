//! Cancelling by token gives a typed outcome; dropping a call's future stops the guest and releases everything.
#![allow(missing_docs, reason = "a test's name says what holds")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::{SLEEP, SPIN, block_on, generous, prepare};
use palisade_core::{
    Artifact, Bytes, Call, CancelToken, ErrorKind, HostFunctions, Input, Outcome, OutputSink, OutputStream, Phase,
    Policy, PreparedExt, Sandbox,
};

/// Calls the host function `f` until it is stopped.
const CALLS_HOST: &str = r#"(module (import "palisade" "host_call" (func $call (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1) (data (i32.const 0) "f")
  (func (export "_start") (drop (call $call (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))))"#;

/// Reads its standard input.
const READS: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\10\00\00\00\10\00\00\00")
  (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// Says that it is there, then spins.
const SAYS_AND_SPINS: &str = r#"(module (import "palisade" "output_write" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $write (i32.const 0) (i32.const 1)) (loop (br 0))))"#;

/// The same in its start function.
const SAYS_AND_SPINS_EARLY: &str = r#"(module (import "palisade" "output_write" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  (func $f (call $write (i32.const 0) (i32.const 1)) (loop (br 0))) (start $f) (func (export "_start")))"#;

/// Says that it is there, then sleeps for as long as a clock can say. Between the two, nothing looks for a cancellation.
const SAYS_AND_SLEEPS: &str = r#"(module
  (import "palisade" "output_write" (func $write (param i32 i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\01\00\00\00")
  (data (i32.const 24) "\ff\ff\ff\ff\ff\ff\ff\ff")
  (func (export "_start")
    (call $write (i32.const 0) (i32.const 1))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

/// Cancels when something happens.
#[derive(Debug)]
struct Cancels(CancelToken);

impl OutputSink for Cancels {
    fn write(&self, _: OutputStream, _: &[u8]) {
        self.0.cancel();
    }
}

/// An input of which nothing ever comes; cancels when it is waited for.
struct Never(Option<CancelToken>);

impl futures_core::Stream for Never {
    type Item = std::io::Result<Bytes>;
    fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(token) = &self.0 {
            token.cancel();
        }
        Poll::Pending
    }
}

fn never() -> Input {
    Input::Stream(Box::pin(Never(None)))
}

pub fn a_token_ends_a_call_wherever_it_is(sandbox: &dyn Sandbox) {
    let cancelled = |wat: &str| {
        let token = CancelToken::new();
        let theirs = token.clone();
        let functions = HostFunctions::new().add("f", move |_| {
            theirs.cancel();
            std::future::pending()
        });
        let call = Call::new()
            .cancel(token.clone())
            .sink(Arc::new(Cancels(token.clone())))
            .input(Input::Stream(Box::pin(Never(Some(token)))));
        block_on(async { prepare(sandbox, wat, generous(), functions).await.unwrap().run(call).await.unwrap().outcome })
    };
    assert_eq!(cancelled(SAYS_AND_SPINS), Outcome::Cancelled { phase: Phase::Running });
    assert_eq!(cancelled(SAYS_AND_SPINS_EARLY), Outcome::Cancelled { phase: Phase::Starting });
    assert_eq!(cancelled(SAYS_AND_SLEEPS), Outcome::Cancelled { phase: Phase::HostCall });
    assert_eq!(cancelled(CALLS_HOST), Outcome::Cancelled { phase: Phase::HostCall });
    assert_eq!(cancelled(READS), Outcome::Cancelled { phase: Phase::HostCall });
}

pub fn a_token_cancelled_before_the_call_lets_no_guest_code_run(sandbox: &dyn Sandbox) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let functions = HostFunctions::new().add("f", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    block_on(async {
        let token = CancelToken::new();
        token.cancel();
        let prepared = prepare(sandbox, CALLS_HOST, generous(), functions).await.unwrap();
        let execution = prepared.run(Call::new().cancel(token)).await.unwrap();
        assert_eq!(execution.outcome, Outcome::Cancelled { phase: Phase::Starting });
        assert_eq!((calls.load(Ordering::SeqCst), execution.usage.fuel), (0, 0));
        prepared.run(Call::new()).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1, "without a token the function is called");
    });
}

pub fn a_stale_token_does_not_hit_the_next_call(sandbox: &dyn Sandbox) {
    block_on(async {
        let prepared =
            prepare(sandbox, r#"(module (func (export "_start")))"#, generous(), HostFunctions::new()).await.unwrap();
        let mut instance = prepared.instantiate().await.unwrap();
        let token = CancelToken::new();
        let first = instance.call(Call::new().cancel(token.clone())).await.unwrap();
        token.cancel();
        let second = instance.call(Call::new()).await.unwrap();
        assert_eq!((first.outcome, second.outcome), (Outcome::Completed, Outcome::Completed));
    });
}

pub fn after_an_abnormal_end_an_instance_serves_no_more_calls(sandbox: &dyn Sandbox) {
    block_on(async {
        let prepared =
            prepare(sandbox, r#"(module (func (export "_start") unreachable))"#, generous(), HostFunctions::new());
        let prepared = prepared.await.unwrap();
        let mut instance = prepared.instantiate().await.unwrap();
        assert!(matches!(instance.call(Call::new()).await.unwrap().outcome, Outcome::Trapped { .. }));
        assert_eq!(instance.call(Call::new()).await.unwrap_err().kind(), ErrorKind::Stale);
    });
}

/// Says so when it is dropped.
struct Dropped(Arc<AtomicUsize>);
impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn dropping_a_call_releases_everything_whatever_the_guest_does(sandbox: &dyn Sandbox) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let theirs = Arc::clone(&dropped);
    let functions = HostFunctions::new().add("f", move |_| {
        let guard = Dropped(Arc::clone(&theirs));
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    let start = r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#;
    let bulk = r#"(module (memory 512)
      (func (export "_start") (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x2000000)) (br 0))))"#;
    for wat in [SPIN, start, bulk, SLEEP, CALLS_HOST, READS] {
        block_on(async {
            let mut policy = Policy { quota: generous(), ..Policy::default() };
            policy.grants.host_functions.insert("f".into());
            let module = sandbox.load(Artifact::wasm(wat::parse_str(wat).unwrap())).await.unwrap();
            let prepared = module.prepare(policy, functions.clone()).unwrap();
            let mut instance = prepared.instantiate().await.unwrap();
            {
                let mut call = instance.call(Call::new().input(never()));
                for _ in 0..3 {
                    let first = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
                    assert!(first.is_pending());
                }
            }
            assert_eq!(instance.call(Call::new()).await.unwrap_err().kind(), ErrorKind::Stale);
            assert_eq!(prepared.instantiate().await.unwrap_err().kind(), ErrorKind::Exhausted);
            drop(instance);
            assert!(prepared.instantiate().await.is_ok(), "the only slot is free again");
        });
    }
    assert_eq!(dropped.load(Ordering::SeqCst), 1, "the host function's future was dropped with its call");
}

pub fn a_spinning_guest_gives_its_executor_a_turn(sandbox: &dyn Sandbox) {
    // On one thread, the timeout can only fire when the guest yields.
    block_on(async {
        let prepared = prepare(sandbox, SPIN, generous(), HostFunctions::new()).await.unwrap();
        let timeout = tokio::time::timeout(std::time::Duration::from_millis(20), prepared.run(Call::new()));
        assert!(timeout.await.is_err());
    });
}
