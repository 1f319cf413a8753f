//! One greedy client beside a modest one: the modest one is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{ErrorKind, Sandbox};
use palisade_fabric::{Events, LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{
    Address, ByKind, Client, Limits, Listener, Nothing, Plugins, Server, Service, ServiceOptions, SubmitTask, Token,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

/// Something that must happen, must within this time; what must not, is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "0123456789abcdef";

async fn service() -> Arc<Service> {
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
    let metrics = Arc::new(PrometheusSink::new());
    Service::start(ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics)).await.unwrap()
}

/// A server with a Unix socket in `place`.
async fn unix(place: &tempfile::TempDir, limits: Limits) -> Server {
    let listener = Listener::unix(place.path().join("socket")).await.unwrap();
    Server::start(service().await, vec![listener], limits)
}

async fn tcp(limits: Limits) -> (Server, SocketAddr) {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Token::new(TOKEN).unwrap()).await.unwrap();
    let address = listener.name().trim_start_matches("http://").parse().unwrap();
    (Server::start(service().await, vec![listener], limits), address)
}

/// A limit on time that no honest client meets in a test, and no test waits for.
fn patient() -> Limits {
    let mut limits = Limits::default();
    (limits.read_time, limits.stranger_time) = (PATIENCE * 10, PATIENCE * 10);
    limits
}

const CHUNKED: &[u8] = b"POST /rpc HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn bodies_of_unknown_length_take_the_room_of_what_came() {
    let place = tempfile::tempdir().unwrap();
    let server = unix(&place, patient()).await;
    let client = Client::new(Address::Unix(place.path().join("socket")));
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let mut stream = UnixStream::connect(place.path().join("socket")).await.unwrap();
        stream.write_all(CHUNKED).await.unwrap();
        // A byte has come, more may.
        stream.write_all(b"1\r\n{\r\n").await.unwrap();
        waiting.push(stream);
    }
    timeout(PATIENCE, client.health(&Nothing {})).await.expect("others are answered meanwhile").unwrap();
    drop(waiting);
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn room_is_given_back_and_who_finds_none_is_told_at_once() {
    const MIB: usize = 1 << 20;
    let mut limits = patient();
    (limits.body_bytes_max, limits.bodies_bytes_max) = (2 * MIB, 2 * MIB);
    let place = tempfile::tempdir().unwrap();
    let server = unix(&place, limits).await;
    let client = Client::new(Address::Unix(place.path().join("socket")));
    // Most of it is here, and held.
    let mut greedy = UnixStream::connect(place.path().join("socket")).await.unwrap();
    greedy.write_all(CHUNKED).await.unwrap();
    let piece = [format!("{:x}\r\n", MIB + MIB / 2).as_bytes(), &vec![b' '; MIB + MIB / 2], b"\r\n"].concat();
    greedy.write_all(&piece).await.unwrap();
    let large = SubmitTask { input: palisade_rpc::Base64(vec![7; MIB].into()), ..SubmitTask::new("echo") };
    let refused = async {
        loop {
            // Until all of the piece has arrived there is room.
            let error = client.tasks_submit(&large).await.unwrap_err();
            if error.kind() == ErrorKind::Exhausted {
                return error;
            }
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
    };
    let error = timeout(PATIENCE, refused).await.expect("it is told, and does not wait");
    assert!(error.retry_after().is_some(), "{error}");
    // What is small needs none.
    client.health(&Nothing {}).await.unwrap();
    drop(greedy);
    let again = async { while client.tasks_submit(&large).await.unwrap_err().kind() == ErrorKind::Exhausted {} };
    timeout(PATIENCE, again).await.expect("the room comes back");
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn strangers_keep_no_places_from_who_has_the_token() {
    let mut limits = patient();
    (limits.strangers_max, limits.connections_max) = (4, 4);
    let (server, address) = tcp(limits).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let client = Client::new(Address::Tcp(address, Token::new(TOKEN).unwrap()));
    timeout(PATIENCE, client.health(&Nothing {})).await.expect("strangers wait for nobody").unwrap();
    // The oldest were closed for the newest.
    let closed = timeout(PATIENCE, silent[0].read(&mut [0; 1])).await.expect("the oldest stranger is closed");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_stranger_has_little_time_and_who_is_known_has_more() {
    let mut limits = patient();
    limits.stranger_time = Duration::from_secs(1);
    let (server, address) = tcp(limits).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut wrong = TcpStream::connect(address).await.unwrap();
    let ask = |token: &str| format!("GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    wrong.write_all(ask("not-the-token-1234").as_bytes()).await.unwrap();
    let mut known = TcpStream::connect(address).await.unwrap();
    known.write_all(ask(TOKEN).as_bytes()).await.unwrap();
    let mut head = [0; 15];
    known.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    for stream in [&mut silent, &mut wrong] {
        let mut rest = Vec::new();
        // One that is reset is closed too.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("a stranger is closed");
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    }
    // By now the time of strangers is over; who is known goes on.
    known.write_all(ask(TOKEN).as_bytes()).await.unwrap();
    let mut more = [0; 1];
    timeout(PATIENCE, known.read_exact(&mut more)).await.expect("it is answered").unwrap();
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn lists_are_bounded_before_they_are_read() {
    let place = tempfile::tempdir().unwrap();
    let server = unix(&place, Limits::default()).await;
    let client = Client::new(Address::Unix(place.path().join("socket")));
    let submit = |count: usize| SubmitTask { arguments: vec![String::new(); count], ..SubmitTask::new("nothing") };
    let error = client.tasks_submit(&submit(1024)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = client.tasks_submit(&submit(1025)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("at most 1024"), "{error}");
    let mut policy = palisade_core::Policy::default();
    policy.grants.environment = (0..1025).map(|n| (format!("V{n}"), String::new())).collect();
    let error = client.tasks_submit(&SubmitTask { policy: Some(policy), ..submit(0) }).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("at most 1024"), "{error}");
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_place_is_taken_once_and_only_its_own_socket_is_removed() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    // Many at once: exactly one gets it.
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let path = path.clone();
        tries.spawn(async move { Listener::unix(path).await });
    }
    let mut got = Vec::new();
    while let Some(listener) = tries.join_next().await {
        match listener.unwrap() {
            Ok(listener) => got.push(listener),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}"),
        }
    }
    assert_eq!(got.len(), 1);
    let server = Server::start(service().await, got, Limits::default());
    // Somebody put another socket there: it stays.
    std::fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    server.stop(Duration::ZERO).await;
    assert!(path.exists(), "another's socket was removed");
}

/// A connection from another machine's address, as far as the server can tell.
async fn from_machine(address: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(server).await.unwrap()
}

/// The status of the answer to a request that shows the token; `None` when the connection is closed.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // The head, and of the body what has come: it is small, or has no end.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        match timeout(PATIENCE, stream.read(&mut piece)).await.expect("there is an answer, or an end") {
            Ok(0) | Err(_) => return None,
            Ok(read) => answer.extend_from_slice(&piece[..read]),
        }
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn a_client_with_many_connections_leaves_places_for_another() {
    let mut limits = patient();
    (limits.strangers_max, limits.connections_max) = (2, 8);
    let (server, address) = tcp(limits).await;
    let (greedy, modest) = ([127, 0, 0, 2], [127, 0, 0, 1]);
    let mut many = Vec::new();
    for _ in 0..40 {
        let mut stream = from_machine(greedy, address).await;
        assert_eq!(ask(&mut stream, "/healthz").await, Some(200), "beyond its share it is answered, and soon closed");
        many.push(stream);
    }
    let mut one = from_machine(modest, address).await;
    assert_eq!(ask(&mut one, "/healthz").await, Some(200));
    for _ in 0..10 {
        let mut stream = from_machine(greedy, address).await;
        assert_eq!(ask(&mut stream, "/healthz").await, Some(200));
        many.push(stream);
    }
    assert_eq!(ask(&mut one, "/healthz").await, Some(200), "who has a place is not closed for others");
    let mut open = 0;
    for stream in &mut many {
        open += usize::from(ask(stream, "/healthz").await.is_some());
    }
    assert_eq!(open, 4 + 2, "a half, and those that are soon closed");
    drop((many, one));
    server.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_client_with_many_subscriptions_leaves_some_for_another() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Token::new(TOKEN).unwrap()).await.unwrap();
    let address = listener.name().trim_start_matches("http://").parse().unwrap();
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
    let mut options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), Arc::new(PrometheusSink::new()));
    options.events = Events::new(16, 8);
    let server = Server::start(Service::start(options).await.unwrap(), vec![listener], patient());
    let mut subscriptions = Vec::new();
    for number in 0..20 {
        let mut stream = from_machine([127, 0, 0, 2], address).await;
        let status = ask(&mut stream, "/events").await;
        assert_eq!(status, Some(if number < 4 { 200 } else { 503 }), "number {number}");
        subscriptions.push(stream);
    }
    let mut modest = from_machine([127, 0, 0, 1], address).await;
    assert_eq!(ask(&mut modest, "/events").await, Some(200));
    // What is ended is given back.
    drop(subscriptions);
    let again = async {
        loop {
            let mut stream = from_machine([127, 0, 0, 2], address).await;
            if ask(&mut stream, "/events").await == Some(200) {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("its places come back");
    server.stop(Duration::ZERO).await;
}
