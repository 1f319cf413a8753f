//! Spans of tasks, and how they are joined.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use palisade_core::{Artifact, Bytes, ErrorKind, HostFunctions, Policy, Scheduler, Task, TaskState, TraceContext};
use palisade_fabric::{AgentTemplate, Executor, ExecutorOptions, LocalScheduler, SchedulerOptions};
use palisade_fake::Fake;
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

/// A probe of the reference backend, by its name in a custom section: it calls host functions.
fn host_probe() -> Artifact {
    Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"host"].concat()).named("host")
}

/// Runs a guest that calls a host function, and gives the trace contexts which that saw.
async fn run(trace: Option<TraceContext>) -> (Task, Vec<Option<TraceContext>>) {
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let mut options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::new(Fake::new(None)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&seen);
    options.host = HostFunctions::new().add("out", move |call| {
        theirs.lock().unwrap().push(call.trace.as_deref().cloned());
        async { Ok(Bytes::new()) }
    });
    let executor = Executor::start(options).unwrap();
    let mut policy = Policy::default();
    policy.grants.host_functions.insert("out".into());
    let mut template = AgentTemplate::new("host", host_probe());
    template.policy = policy.clone();
    executor.spawn(template).unwrap();
    let mut task = Task::new(host_probe().hash());
    task.input = [&2u32.to_le_bytes()[..], b"out"].concat().into();
    (task.policy, task.trace) = (policy, trace);
    scheduler.submit(task.clone()).await.unwrap();
    let record = scheduler.wait(task.id).await.unwrap();
    assert_eq!(record.state, TaskState::Completed, "{record:?}");
    let seen = seen.lock().unwrap().clone();
    (task, seen)
}

/// One at a time: whether a span is made is asked once for the whole process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn given() -> TraceContext {
    TraceContext::new(format!("00-{TRACE}-{PARENT}-01"), "vendor=x").unwrap()
}

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
    // Nobody listens: what was given goes on all the same, and nothing is made up.
    let (_, seen) = run(Some(given())).await;
    let seen = seen[0].as_ref().unwrap();
    assert_eq!(seen.trace_id(), Some(TRACE));
    assert_ne!(seen.parent_span_id(), Some(PARENT), "the attempt is its parent");
    assert_eq!(run(None).await.1, [None, None]);
}

#[tokio::test]
async fn a_malformed_trace_is_refused() {
    let scheduler = LocalScheduler::open(SchedulerOptions::default()).unwrap();
    let mut task = Task::new(host_probe().hash());
    task.trace = Some(TraceContext { traceparent: format!("00-{TRACE}-{}-01", "0".repeat(16)), ..given() });
    let error = scheduler.submit(task).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("traceparent"), "{error}");
}
