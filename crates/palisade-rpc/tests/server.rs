//! Limits in time and number, with a server whose limits are small, and the client against it.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{ArtifactHash, ArtifactKind, ErrorKind, Policy, Sandbox, Scheduler, Task, TaskId, TaskState};
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{
    Address, AgentSettings, Base64, ByKind, Client, Event, EventQuery, InstallPlugin, Limits, Listener, Nothing,
    Plugins, Server, Service, ServiceOptions, SubmitTask, TaskRef, Token,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Something that must happen, must within this time.
const PATIENCE: Duration = Duration::from_secs(60);

async fn service() -> Arc<Service> {
    service_over(Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap())).await
}

async fn service_over(scheduler: Arc<LocalScheduler>) -> Arc<Service> {
    let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
    let metrics = Arc::new(PrometheusSink::new());
    let events = scheduler.events();
    let mut options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics);
    options.events = events;
    // What may be given is tested elsewhere.
    options.ceiling = palisade_rpc::Ceiling::unlimited();
    Service::start(options).await.unwrap()
}

struct Daemon {
    place: tempfile::TempDir,
    server: Server,
}

impl Daemon {
    async fn start(limits: Limits) -> Daemon {
        Daemon::over(service().await, limits).await
    }

    async fn over(service: Arc<Service>, limits: Limits) -> Daemon {
        let place = tempfile::tempdir().unwrap();
        let listener = Listener::unix(place.path().join("socket")).await.unwrap();
        Daemon { server: Server::start(service, vec![listener], limits), place }
    }

    fn client(&self) -> Client {
        Client::new(Address::Unix(self.place.path().join("socket")))
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.place.path().join("socket")).await.unwrap()
    }
}

/// Everything that comes until the other end closes. It must.
async fn rest(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut text)).await;
    // One that is reset is closed too.
    let _ = read.expect("the connection is closed");
    String::from_utf8(text).unwrap()
}

fn brisk() -> Limits {
    let mut limits = Limits::default();
    limits.read_time = Duration::from_millis(100);
    limits.write_time = Duration::from_millis(100);
    limits
}

#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    let daemon = Daemon::start(brisk()).await;
    let mut head = daemon.connect().await;
    head.write_all(b"POST /rpc HT").await.unwrap();
    let silent = daemon.connect().await;
    let mut body = daemon.connect().await;
    body.write_all(b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    rest(head).await;
    rest(silent).await;
    let answer = rest(body).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("-32052"), "{answer}");
    daemon.client().health(&Nothing {}).await.unwrap();
    daemon.server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let daemon = Daemon::start(brisk()).await;
    let mut greedy = daemon.connect().await;
    // More answers than the socket's buffers hold, none of which is read.
    let requests = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20_000);
    let writing = tokio::time::timeout(Duration::from_secs(60), greedy.write_all(requests.as_bytes()));
    assert!(writing.await.expect("the connection is closed").is_err(), "all was taken");
    daemon.client().health(&Nothing {}).await.unwrap();
    // Its place is free again: the server waits for all of them.
    let stopped = tokio::time::timeout(Duration::from_secs(60), daemon.server.stop(Duration::ZERO)).await;
    stopped.expect("no place is held");
}

#[tokio::test]
async fn errors_reach_the_client_with_their_kind() {
    let daemon = Daemon::start(Limits::default()).await;
    let client = daemon.client();
    let error = client.tasks_get(&TaskRef { task: TaskId::new() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = client.tasks_submit(&SubmitTask::new("resize")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.help().is_some_and(|help| help.contains("palisade plugins")), "{error}");
    daemon.server.stop(Duration::ZERO).await;
    let error = client.health(&Nothing {}).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("palisade serve"), "{error}");
}

#[tokio::test]
async fn a_second_daemon_and_a_file_in_the_way_are_refused() {
    let daemon = Daemon::start(Limits::default()).await;
    let taken = Listener::unix(daemon.place.path().join("socket")).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exhausted);
    let path = daemon.place.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(Listener::unix(&path).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    // What a daemon left behind that was killed is replaced.
    let stale = daemon.place.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    Listener::unix(&stale).await.unwrap();
    daemon.server.stop(Duration::ZERO).await;
}

/// The kernel takes 107 bytes, whatever the parts they are made of.
#[tokio::test]
async fn a_socket_lies_at_every_path_that_the_kernel_takes() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path().to_str().unwrap().len();
    for name_len in [1, 2, 8, 16] {
        let folder = place.path().join("x".repeat(107 - here - 1 - 1 - name_len));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("s".repeat(name_len));
        assert_eq!(path.as_os_str().len(), 107);
        let listener = Listener::unix(&path).await.unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        let error = Listener::unix(folder.join("s".repeat(name_len + 1))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("--socket"), "{error}");
    }
}

#[tokio::test]
async fn a_client_on_tcp_shows_its_token() {
    let token = Token::new("0123456789abcdef").unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), token.clone()).await.unwrap();
    let address = listener.name().trim_start_matches("http://").parse().unwrap();
    let server = Server::start(service().await, vec![listener], Limits::default());
    Client::new(Address::Tcp(address, token)).health(&Nothing {}).await.unwrap();
    let wrong = Client::new(Address::Tcp(address, Token::new("0123456789abcdeF").unwrap()));
    assert_eq!(wrong.health(&Nothing {}).await.unwrap_err().kind(), ErrorKind::Denied);
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_daemon_that_ends_takes_no_tasks_answers_questions_and_waits_for_those_that_run() {
    let service = service().await;
    let daemon = Daemon::over(Arc::clone(&service), Limits::default()).await;
    let client = daemon.client();
    // A probe of the reference backend, by its name in a custom section, that sleeps for years.
    let bytes = Base64([&b"\0asm\x01\0\0\0"[..], &[0, 6, 5], b"sleep"].concat().into());
    let (name, kind, agent) = ("sleep".to_owned(), ArtifactKind::Wasm, AgentSettings::default());
    let mut policy = Policy::default();
    policy.quota.wall_time = None;
    client.plugins_install(&InstallPlugin { name, kind, bytes, policy, agent, tenant: None }).await.unwrap();
    let endless = SubmitTask { input: Base64((1u64 << 60).to_le_bytes().to_vec().into()), ..SubmitTask::new("sleep") };
    let task = TaskRef { task: client.tasks_submit(&endless).await.unwrap().task };
    let until = |wanted: TaskState| {
        let client = daemon.client();
        async move { while client.tasks_get(&task).await.unwrap().state != wanted {} }
    };
    tokio::time::timeout(PATIENCE, until(TaskState::Running)).await.expect("it runs");

    let closing = tokio::spawn(async move { service.close(PATIENCE).await });
    let draining = async { while !client.health(&Nothing {}).await.unwrap().draining {} };
    tokio::time::timeout(PATIENCE, draining).await.expect("it drains");
    let refused = client.tasks_submit(&endless).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Exhausted && refused.to_string().contains("drains"), "{refused}");
    assert_eq!(client.tasks_get(&task).await.unwrap().state, TaskState::Running, "it may go on");
    assert!(!closing.is_finished());

    assert_eq!(client.tasks_cancel(&task).await.unwrap().state, TaskState::Cancelled);
    let closed = tokio::time::timeout(PATIENCE, closing).await.expect("nothing runs any more").unwrap();
    assert!(closed.in_time && closed.unsaved.is_empty());
    assert_eq!(client.tasks_get(&task).await.unwrap().state, TaskState::Cancelled, "questions are answered to the end");
    daemon.server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn answers_that_are_being_written_are_bounded_together() {
    const INPUT: usize = 4 << 20;
    let service = service().await;
    let daemon = Daemon::over(Arc::clone(&service), Limits::default()).await;
    let client = daemon.client();
    let bytes = Base64([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo"].concat().into());
    let (name, kind, policy, agent) =
        ("echo".to_owned(), ArtifactKind::Wasm, Policy::default(), AgentSettings::default());
    client.plugins_install(&InstallPlugin { name, kind, bytes, policy, agent, tenant: None }).await.unwrap();
    let submit = SubmitTask { input: Base64(vec![7; INPUT].into()), ..SubmitTask::new("echo") };
    let task = TaskRef { task: client.tasks_submit(&submit).await.unwrap().task };
    client.outcome(task.task).await.unwrap();
    let ask = async |daemon: &Daemon| {
        let mut stream = daemon.connect().await;
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tasks.get","params":{{"task":"{}"}}}}"#, task.task);
        let head =
            format!("POST /rpc HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        stream
    };
    let answer = rest(ask(&daemon).await).await;
    let envelope = r#"{"jsonrpc":"2.0","id":1,"result":}"#;
    let result = answer.split_once("\r\n\r\n").expect("a body").1.len() - envelope.len();

    // The same service behind a door with room for exactly this.
    let limits = &mut Limits::default();
    (limits.answer_bytes_max, limits.answers_bytes_max) = (result, result);
    let door = Daemon::over(service, *limits).await;
    let client = door.client();
    // Somebody asks and reads the beginning only.
    let mut slow = ask(&door).await;
    slow.read_exact(&mut [0; 100]).await.unwrap();
    let refused = client.tasks_get(&task).await.unwrap_err();
    assert_eq!((refused.kind(), refused.retry_after().is_some()), (ErrorKind::Exhausted, true), "{refused}");
    assert!(refused.to_string().contains("too many large answers"), "{refused}");
    // What is small is told.
    assert!(client.tasks_submit(&SubmitTask::new("echo")).await.is_ok());
    assert!(rest(slow).await.len() > INPUT);
    let again = async { while client.tasks_get(&task).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("there is room again");
    door.server.stop(Duration::ZERO).await;
    daemon.server.stop(Duration::ZERO).await;
}

/// A task that does not start in this test.
fn later() -> Task {
    let mut task = Task::new(ArtifactHash::of(b"plugin"));
    task.not_before = Some(std::time::SystemTime::now() + Duration::from_secs(3600));
    task
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_slows_nobody_and_hears_how_much_it_missed() {
    let mut options = SchedulerOptions::default();
    // Of four, one client may have two.
    (options.events_kept, options.subscribers_max) = (16, 4);
    let scheduler = Arc::new(LocalScheduler::open(options).unwrap());
    let daemon = Daemon::over(service_over(Arc::clone(&scheduler)).await, Limits::default()).await;
    let mut slow = daemon.client().events(&EventQuery::default()).await.unwrap();
    let second = daemon.client().events(&EventQuery::default()).await.unwrap();
    let refused = daemon.client().events(&EventQuery::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused}");
    // More than the buffers of the connection hold.
    const TASKS: u64 = 20_000;
    for _ in 0..TASKS {
        scheduler.submit(later()).await.unwrap();
    }
    let last = scheduler.submit(later()).await.unwrap().task;
    let (mut told, mut missed) = (0, 0);
    loop {
        match slow.next().await.unwrap().unwrap() {
            Event::Missed { events } => missed += events,
            Event::Submitted { about, .. } if about.task == last => break,
            Event::Submitted { .. } => told += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((told + missed, missed > 0), (TASKS, true), "{told} told, {missed} missed");
    // The place of one that went away is free again, once the daemon noticed.
    drop(second);
    let mut third = loop {
        match daemon.client().events(&EventQuery::default()).await {
            Ok(third) => break third,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}"),
        }
    };
    daemon.server.stop(Duration::from_secs(60)).await;
    assert_eq!(third.next().await.unwrap(), None, "ends with the daemon, without waiting for the grace");
}

#[tokio::test]
async fn events_are_filtered_and_for_those_who_show_the_token() {
    let token = Token::new("0123456789abcdef").unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), token.clone()).await.unwrap();
    let address = listener.name().trim_start_matches("http://").parse().unwrap();
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let server = Server::start(service_over(Arc::clone(&scheduler)).await, vec![listener], Limits::default());
    let wrong = Client::new(Address::Tcp(address, Token::new("0123456789abcdeF").unwrap()));
    assert_eq!(wrong.events(&EventQuery::default()).await.unwrap_err().kind(), ErrorKind::Denied);
    let client = Client::new(Address::Tcp(address, token));
    let of = |plugin: &str| EventQuery { plugin: Some(plugin.to_owned()), ..EventQuery::default() };
    assert_eq!(client.events(&of("resize")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let tenant = "a b&c=d".to_owned();
    let mut heard = client.events(&EventQuery { tenant: Some(tenant.clone()), ..EventQuery::default() }).await.unwrap();
    let mut of_plugin = client.events(&of(&ArtifactHash::of(b"plugin").to_string())).await.unwrap();
    let other = scheduler.submit(later()).await.unwrap().task;
    let mut task = later();
    task.tenant.0 = tenant;
    let wanted = scheduler.submit(task).await.unwrap().task;
    scheduler.cancel(wanted).await.unwrap();
    let next = heard.next().await.unwrap().unwrap();
    assert!(matches!(next, Event::Submitted { .. }) && next.about().unwrap().task == wanted, "{next:?}");
    let next = heard.next().await.unwrap().unwrap();
    assert!(matches!(next, Event::Finished { .. }) && next.about().unwrap().task == wanted, "{next:?}");
    assert_eq!(of_plugin.next().await.unwrap().unwrap().about().unwrap().task, other);
    server.stop(Duration::ZERO).await;
}
