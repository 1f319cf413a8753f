//! What clients of the daemon send: requests in HTTP, and bodies in JSON-RPC.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use palisade::Sandbox;
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{ByKind, Limits, Listener, METHODS, Plugins, Server, Service, ServiceOptions};

/// A daemon that does not answer within this time hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon of this process, which serves until it ends.
struct Daemon {
    place: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    _server: Server,
}

impl Daemon {
    fn start() -> palisade::Result<Daemon> {
        let failed = |error: std::io::Error| palisade::Error::new(palisade::ErrorKind::Io, "fuzz", error.to_string());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
        let place = tempfile::tempdir().map_err(failed)?;
        let path = place.path().join("socket");
        let server = runtime.block_on(async {
            let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default())?);
            let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>])?;
            let metrics = Arc::new(PrometheusSink::new());
            let options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics);
            let mut limits = Limits::default();
            limits.read_time = Duration::from_millis(500);
            Ok(Server::start(Service::start(options).await?, vec![Listener::unix(path).await?], limits))
        })?;
        Ok(Daemon { place, _runtime: runtime, _server: server })
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("socket")
    }
}

/// The first byte says how the others are sent: as they are, or as the body of a request. The daemon answers or hangs up,
/// and is still well afterwards.
pub fn socket(data: &[u8]) {
    static DAEMON: OnceLock<Daemon> = OnceLock::new();
    let daemon = DAEMON.get_or_init(|| Daemon::start().expect("a daemon on a socket of its own"));
    let Some((kind, rest)) = data.split_first() else { return };
    let whole = kind % 2 == 0;
    let answer = exchange(daemon, &if whole { request(rest) } else { rest.to_vec() }, !whole);
    if whole {
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a body");
        assert!(body.is_empty() || serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
    }
    let healthy = exchange(daemon, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", false);
    assert!(healthy.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&healthy));
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /rpc HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Sends, says that nothing more comes if need be, and takes everything that comes back. Whoever says so before the answer
/// came gets none: the daemon takes it for hanging up.
fn exchange(daemon: &Daemon, bytes: &[u8], ends: bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    // It may hang up first.
    let _ = stream.write_all(bytes).and_then(|()| if ends { stream.shutdown(Shutdown::Write) } else { Ok(()) });
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            // Events come until somebody hangs up.
            assert!(answer.windows(17).any(|window| window == b"text/event-stream"), "the daemon hangs");
        }
        _ => {}
    }
    answer
}

/// Each method without and with wrong parameters, a batch, and requests that are not well.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let call = |method: &str, params: &str| {
        format!("\0{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}").into_bytes()
    };
    let mut all: Vec<_> = METHODS.iter().map(|(method, _)| call(method, "{}")).collect();
    let task = r#"{"plugin":"echo","input":"aGVsbG8=","priority":"high","retry":{"attempts_max":2}}"#;
    all.push(call("tasks.submit", task));
    all.push(
        b"\0[{\"jsonrpc\":\"2.0\",\"method\":\"health\"},{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"x\"},1]"
            .to_vec(),
    );
    all.push(b"\x01GET /metrics HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.0\r\n\r\n".to_vec());
    all.push(
        b"\x01POST /rpc HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
    );
    all
}
