//! Limits in time and number, with a server whose limits are small, and the client against it.

use std::sync::Arc;
use std::time::Duration;

use palisade_core::{ErrorKind, Sandbox, TaskId};
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{
    Address, ByKind, Client, Limits, Listener, Nothing, Plugins, Server, Service, ServiceOptions, SubmitTask, TaskRef,
    Token,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

async fn service() -> Arc<Service> {
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
    let metrics = Arc::new(PrometheusSink::new());
    Service::start(ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics)).await.unwrap()
}

struct Daemon {
    place: tempfile::TempDir,
    server: Server,
}

impl Daemon {
    async fn start(limits: Limits) -> Daemon {
        let place = tempfile::tempdir().unwrap();
        let listener = Listener::unix(place.path().join("socket")).await.unwrap();
        Daemon { server: Server::start(service().await, vec![listener], limits), place }
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
    let mut limits = brisk();
    limits.connections_max = 1;
    let daemon = Daemon::start(limits).await;
    let mut greedy = daemon.connect().await;
    // More answers than the socket's buffers hold, none of which is read.
    let requests = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20_000);
    let writing = tokio::time::timeout(Duration::from_secs(60), greedy.write_all(requests.as_bytes()));
    assert!(writing.await.expect("the connection is closed").is_err(), "all was taken");
    // The only place is free again.
    daemon.client().health(&Nothing {}).await.unwrap();
    daemon.server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn errors_reach_the_client_with_their_kind() {
    let daemon = Daemon::start(Limits::default()).await;
    let client = daemon.client();
    let error = client.tasks_get(&TaskRef { task: TaskId::new() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = client.tasks_submit(&SubmitTask::new("resize")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.help_text().is_some_and(|help| help.contains("palisade plugins")), "{error}");
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
