//! Spans of tasks, and how they are joined.

mod support;

use palisade_core::{ErrorKind, Scheduler, Task, TraceContext};
use palisade_fabric::{LocalScheduler, SchedulerOptions};
use support::spans::Recorder;
use support::traced::{PARENT, TRACE, given, host_probe, run};
use tracing_subscriber::layer::SubscriberExt;

/// One at a time: whether a span is made is asked once for the whole process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_trace_goes_from_the_submission_through_the_attempt_to_what_goes_out() {
    let _alone = ALONE.lock().await;
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
    let (task, seen) = run(Some(given())).await;
    let attempts = recorder.spans("task");
    let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
    let of_task = [task.id.to_string(), task.plugin.to_string(), "default".into(), "1".into(), "completed".into()];
    assert_eq!(["task_id", "plugin", "tenant", "attempt", "outcome"].map(|name| attempt[name].clone()), of_task);
    assert_eq!((&*attempt["trace_id"], &*attempt["parent_span_id"]), (TRACE, PARENT));
    let calls = recorder.spans("host_call");
    assert_eq!((calls.len(), seen.len()), (2, 2));
    assert_ne!(calls[0]["span_id"], calls[1]["span_id"], "each call is a span of its own");
    for (call, seen) in calls.iter().zip(&seen) {
        assert_eq!((&*call["name"], &*call["trace_id"]), ("out", TRACE));
        assert_eq!(call["parent_span_id"], attempt["span_id"]);
        let seen = seen.as_ref().unwrap();
        assert_eq!((seen.trace_id(), seen.parent_span_id()), (Some(TRACE), Some(&*call["span_id"])));
        assert_eq!(seen.tracestate, "vendor=x");
        seen.validate().unwrap();
    }
}

#[tokio::test]
async fn a_task_without_a_trace_begins_one_when_somebody_listens() {
    let _alone = ALONE.lock().await;
    {
        let recorder = Recorder::default();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
        let (task, seen) = run(None).await;
        let own = task.id.0.simple().to_string();
        let attempt = &recorder.spans("task")[0];
        assert_eq!((&attempt["trace_id"], attempt.get("parent_span_id")), (&own, None));
        assert_eq!(seen[0].as_ref().unwrap().trace_id(), Some(&*own));
    }
}

#[tokio::test]
async fn a_malformed_trace_is_refused() {
    let scheduler = LocalScheduler::open(SchedulerOptions::default()).unwrap();
    let mut task = Task::new(host_probe().hash());
    task.trace = Some(TraceContext { traceparent: format!("00-{TRACE}-{}-01", "0".repeat(16)), ..given() });
    let error = scheduler.submit(task).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("traceparent"), "{error}");
}
