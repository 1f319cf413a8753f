//! Spans of tasks, and how they are joined.

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use palisade_core::{ErrorKind, Scheduler, Task, TraceContext};
use palisade_fabric::{LocalScheduler, SchedulerOptions};
use support::traced::{PARENT, TRACE, given, host_probe, run};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

type Fields = BTreeMap<&'static str, String>;

/// Keeps every span with its fields, by their ids in order.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<u64, (&'static str, Fields)>>>);

struct Taken<'a>(&'a mut Fields);

impl Visit for Taken<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Taken(&mut fields));
        self.0.lock().unwrap().insert(id.into_u64(), (attributes.metadata().name(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        values.record(&mut Taken(&mut spans.get_mut(&id.into_u64()).unwrap().1));
    }
}

impl Recorder {
    fn spans(&self, name: &str) -> Vec<Fields> {
        self.0.lock().unwrap().values().filter(|span| span.0 == name).map(|span| span.1.clone()).collect()
    }
}

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
