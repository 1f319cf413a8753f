//! The span of a submission, between that of the client and that of the attempt.

#[path = "../../palisade-fabric/tests/support/spans.rs"]
mod spans;

use std::sync::Arc;

use palisade_core::{ArtifactKind, Policy, Sandbox, TaskState, TraceContext};
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{
    Address, AgentSettings, Base64, ByKind, Client, InstallPlugin, Limits, Listener, Plugins, Server, Service,
    ServiceOptions, SubmitTask, WaitTask,
};
use spans::{Fields, Recorder};
use tracing_subscriber::layer::SubscriberExt;

/// The fields of the only span of this name.
fn the(recorder: &Recorder, name: &str) -> Fields {
    let spans = recorder.spans(name);
    let [fields] = &spans[..] else { panic!("{} spans `{name}`", spans.len()) };
    fields.clone()
}

#[tokio::test]
async fn the_submission_is_a_part_of_the_clients_trace_and_the_attempt_a_part_of_the_submission() {
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
    let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), Arc::new(PrometheusSink::new()));
    let place = tempfile::tempdir().unwrap();
    let listener = Listener::unix(place.path().join("socket")).await.unwrap();
    let server = Server::start(Service::start(options).await.unwrap(), vec![listener], Limits::default());
    let client = Client::new(Address::Unix(place.path().join("socket")));
    // A probe of the reference backend, by its name in a custom section.
    let bytes = Base64([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo"].concat().into());
    let (name, kind, policy, agent) =
        ("echo".to_owned(), ArtifactKind::Wasm, Policy::default(), AgentSettings::default());
    let plugin =
        client.plugins_install(&InstallPlugin { name, kind, bytes, policy, agent, tenant: None }).await.unwrap().plugin;
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let given = TraceContext::new(format!("00-{trace}-{parent}-01"), "vendor=x").unwrap();
    for given in [Some(given), None] {
        recorder.clear();
        let submit =
            SubmitTask { tenant: Some("somebody".to_owned()), trace: given.clone(), ..SubmitTask::new("echo") };
        let task = client.tasks_submit(&submit).await.unwrap().task;
        let ended = client.tasks_wait(&WaitTask { task, timeout_ms: 30_000 }).await.unwrap();
        assert_eq!(ended.state, TaskState::Completed, "{ended:?}");
        let (submission, attempt) = (the(&recorder, "submit"), the(&recorder, "task"));
        for (name, expected) in
            [("task_id", task.to_string()), ("plugin", plugin.to_string()), ("tenant", "somebody".to_owned())]
        {
            assert_eq!((&submission[name], &attempt[name]), (&expected, &expected));
        }
        if given.is_some() {
            assert_eq!((&*submission["trace_id"], &*submission["parent_span_id"]), (trace, parent));
            assert_eq!((&*attempt["trace_id"], &attempt["parent_span_id"]), (trace, &submission["span_id"]));
            assert!(submission["span_id"] != parent && attempt["span_id"] != submission["span_id"]);
        } else {
            // The attempt begins a trace of its own, and both know the task.
            assert_eq!((submission.get("trace_id"), attempt.get("parent_span_id")), (None, None));
        }
    }
    server.stop(std::time::Duration::from_secs(60)).await;
}
