//! Plugins that many bring at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use palisade_core::{Artifact, ArtifactKind, BoxFuture, Capabilities, Module, Policy, Result, Sandbox, TaskState};
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{
    Address, AgentSettings, Base64, ByKind, Client, InstallPlugin, Limits, Listener, Plugins, Server, Service,
    ServiceOptions, SubmitTask, WaitTask,
};

/// Counts loads.
#[derive(Debug)]
struct Counting(Fake, Arc<AtomicUsize>);

impl Sandbox for Counting {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Box::pin(async {
            // As long as the others need to come.
            tokio::task::yield_now().await;
            self.0.load(artifact).await
        })
    }
}

#[tokio::test]
async fn a_plugin_that_many_bring_at_once_is_loaded_once_and_all_succeed() {
    let place = tempfile::tempdir().unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let backend = Arc::new(Counting(Fake::new(None), Arc::clone(&loads)));
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let backends = ByKind::new([backend as Arc<dyn Sandbox>]).unwrap();
    let metrics = Arc::new(PrometheusSink::new());
    let options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics);
    let listener = Listener::unix(place.path().join("socket")).await.unwrap();
    let server = Server::start(Service::start(options).await.unwrap(), vec![listener], Limits::default());
    let client = Arc::new(Client::new(Address::Unix(place.path().join("socket"))));

    let plugin = InstallPlugin {
        name: "echo".to_owned(),
        kind: ArtifactKind::Wasm,
        bytes: Base64([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo"].concat().into()),
        policy: Policy::default(),
        agent: AgentSettings::default(),
        tenant: None,
    };
    let installs: Vec<_> = (0..16)
        .map(|number| {
            let (client, mut plugin) = (Arc::clone(&client), plugin.clone());
            plugin.tenant = Some(format!("tenant {number}"));
            tokio::spawn(async move { client.plugins_install(&plugin).await })
        })
        .collect();
    let mut installed = 0;
    for install in installs {
        installed += usize::from(install.await.unwrap().unwrap().installed);
    }
    let task = client.tasks_submit(&SubmitTask::new("echo")).await.unwrap().task;
    let ended = client.tasks_wait(&WaitTask { task, timeout_ms: WaitTask::TIMEOUT_MS_MAX }).await.unwrap();
    assert_eq!(ended.state, TaskState::Completed, "{ended:?}");
    assert_eq!((installed, loads.load(Ordering::SeqCst)), (1, 1), "also the task's own load");
    server.stop(Duration::ZERO).await;
}
