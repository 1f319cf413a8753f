//! Cancelling by token gives a typed outcome; dropping a call's future stops the guest and releases everything.

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use palisade_core::{
    Artifact, BackendOptions, Bytes, Call, CancelToken, ErrorKind, Execution, HostFunctions, Input, Outcome, Phase,
    Policy, PreparedExt, Sandbox,
};
use palisade_wasmer::Wasmer;
use support::{SLEEP, SPIN, block_on, generous, prepare};

/// Calls the host function `f` until it is stopped.
const CALLS_HOST: &str = r#"(module (import "palisade" "host_call" (func $call (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1) (data (i32.const 0) "f")
  (func (export "_start") (drop (call $call (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))))"#;

/// Reads its standard input.
const READS: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\10\00\00\00\10\00\00\00")
  (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn never() -> Input {
    struct Never;
    impl futures_core::Stream for Never {
        type Item = std::io::Result<Bytes>;
        fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Pending
        }
    }
    Input::Stream(Box::pin(Never))
}

/// Runs a guest and cancels it after its future was polled `polls` times.
fn cancelled_after(wat: &str, functions: HostFunctions, input: Input, polls: usize) -> Execution {
    block_on(async {
        let token = CancelToken::new();
        let prepared = prepare(wat, generous(), functions).await.unwrap();
        let mut run = pin!(prepared.run(Call::new().cancel(token.clone()).input(input)));
        let mut polled = 0;
        poll_fn(|context| {
            polled += 1;
            let poll = run.as_mut().poll(context);
            if polled == polls {
                token.cancel();
            }
            poll
        })
        .await
        .unwrap()
    })
}

fn waits_forever() -> HostFunctions {
    HostFunctions::new().add("f", |_| std::future::pending())
}

#[test]
fn a_token_ends_a_call_wherever_it_is() {
    let cancelled = |wat, input, polls| cancelled_after(wat, waits_forever_if(wat), input, polls).outcome;
    assert_eq!(cancelled(SPIN, Input::default(), 3), Outcome::Cancelled { phase: Phase::Running });
    assert_eq!(cancelled(SLEEP, Input::default(), 1), Outcome::Cancelled { phase: Phase::HostCall });
    assert_eq!(cancelled(CALLS_HOST, Input::default(), 1), Outcome::Cancelled { phase: Phase::HostCall });
    assert_eq!(cancelled(READS, never(), 1), Outcome::Cancelled { phase: Phase::HostCall });
    let start = r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#;
    assert_eq!(cancelled(start, Input::default(), 2), Outcome::Cancelled { phase: Phase::Starting });
}

fn waits_forever_if(wat: &str) -> HostFunctions {
    if wat == CALLS_HOST { waits_forever() } else { HostFunctions::new() }
}

#[test]
fn a_token_cancelled_before_the_call_lets_no_guest_code_run() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let functions = HostFunctions::new().add("f", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    block_on(async {
        let token = CancelToken::new();
        token.cancel();
        let prepared = prepare(CALLS_HOST, generous(), functions).await.unwrap();
        let execution = prepared.run(Call::new().cancel(token)).await.unwrap();
        assert_eq!(execution.outcome, Outcome::Cancelled { phase: Phase::Starting });
        assert_eq!((calls.load(Ordering::SeqCst), execution.usage.fuel), (0, 0));
        prepared.run(Call::new()).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1, "without a token the function is called");
    });
}

#[test]
fn a_stale_token_does_not_hit_the_next_call() {
    block_on(async {
        let prepared = prepare(r#"(module (func (export "_start")))"#, generous(), HostFunctions::new()).await.unwrap();
        let mut instance = prepared.instantiate().await.unwrap();
        let token = CancelToken::new();
        let first = instance.call(Call::new().cancel(token.clone())).await.unwrap();
        token.cancel();
        let second = instance.call(Call::new()).await.unwrap();
        assert_eq!((first.outcome, second.outcome), (Outcome::Completed, Outcome::Completed));
    });
}

#[test]
fn after_an_abnormal_end_an_instance_serves_no_more_calls() {
    block_on(async {
        let prepared = prepare(r#"(module (func (export "_start") unreachable))"#, generous(), HostFunctions::new());
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

#[test]
fn dropping_a_call_releases_everything_whatever_the_guest_does() {
    let sandbox = Wasmer::open(&BackendOptions::new().instances_max(1)).unwrap();
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

#[test]
fn a_spinning_guest_gives_its_executor_a_turn() {
    // On one thread, the timeout can only fire when the guest yields.
    block_on(async {
        let prepared = prepare(SPIN, generous(), HostFunctions::new()).await.unwrap();
        let timeout = tokio::time::timeout(std::time::Duration::from_millis(20), prepared.run(Call::new()));
        assert!(timeout.await.is_err());
    });
}
