//! A guest that calls a host function, with a trace or without.

use std::sync::{Arc, Mutex};

use palisade_core::{Artifact, Bytes, HostFunctions, Policy, Scheduler, Task, TaskState, TraceContext};
use palisade_fabric::{AgentTemplate, Executor, ExecutorOptions, LocalScheduler, SchedulerOptions};
use palisade_fake::Fake;

pub(crate) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub(crate) const PARENT: &str = "b7ad6b7169203331";

pub(crate) fn given() -> TraceContext {
    TraceContext::new(format!("00-{TRACE}-{PARENT}-01"), "vendor=x").unwrap()
}

/// A probe of the reference backend, by its name in a custom section: it calls host functions.
pub(crate) fn host_probe() -> Artifact {
    Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"host"].concat()).named("host")
}

/// Runs a guest that calls a host function, and gives the trace contexts which that saw.
pub(crate) async fn run(trace: Option<TraceContext>) -> (Task, Vec<Option<TraceContext>>) {
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
