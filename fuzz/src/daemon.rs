//! A daemon of this process, on a Unix socket and on TCP, which serves until it ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use palisade::Sandbox;
use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
use palisade_fake::Fake;
use palisade_rpc::{ByKind, Limits, Listener, Plugins, Server, Service, ServiceOptions, Token};

/// What clients on TCP show.
pub(crate) const TOKEN: &str = "0123456789abcdef";

/// A daemon that neither answers nor hangs up within this time hangs.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the daemon waits for a client.
const READ_TIME: Duration = Duration::from_millis(100);

pub(crate) struct Daemon {
    place: tempfile::TempDir,
    tcp: SocketAddr,
    _runtime: tokio::runtime::Runtime,
    _server: Server,
}

/// How an input reaches the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Unix,
    Tcp,
}

impl Daemon {
    /// The one of this process.
    pub(crate) fn get() -> &'static Daemon {
        static DAEMON: OnceLock<Daemon> = OnceLock::new();
        DAEMON.get_or_init(|| Daemon::start().expect("a daemon on sockets of its own"))
    }

    fn start() -> palisade::Result<Daemon> {
        let failed = |error: std::io::Error| palisade::Error::new(palisade::ErrorKind::Io, "fuzz", error.to_string());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
        let place = tempfile::tempdir().map_err(failed)?;
        let path = place.path().join("socket");
        let (server, tcp) = runtime.block_on(async {
            let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default())?);
            let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>])?;
            let metrics = Arc::new(PrometheusSink::new());
            let options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), metrics);
            let mut limits = Limits::default();
            (limits.read_time, limits.write_time, limits.stranger_time) = (READ_TIME, READ_TIME, READ_TIME);
            limits.body_bytes_max = 1 << 20;
            let tcp = Listener::tcp(([127, 0, 0, 1], 0).into(), Token::new(TOKEN)?).await?;
            let address = tcp.name();
            let listeners = vec![Listener::unix(path).await?, tcp];
            Ok::<_, palisade::Error>((Server::start(Service::start(options).await?, listeners, limits), address))
        })?;
        let tcp = tcp.strip_prefix("http://").and_then(|address| address.parse().ok()).expect("an address");
        Ok(Daemon { place, tcp, _runtime: runtime, _server: server })
    }

    /// Sends the pieces one after the other, says that nothing more comes if need be, and takes everything that comes back,
    /// until the daemon hangs up or events begin. Whoever says that nothing more comes before the answer came gets none: the
    /// daemon takes it for hanging up.
    pub(crate) fn exchange<'a>(&self, by: By, pieces: impl IntoIterator<Item = &'a [u8]>, ends: bool) -> Vec<u8> {
        match by {
            By::Unix => {
                let stream = UnixStream::connect(self.place.path().join("socket")).expect("the daemon listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time");
                exchange(&stream, &stream, pieces, || ends.then(|| stream.shutdown(Shutdown::Write)))
            }
            By::Tcp => {
                let stream = TcpStream::connect(self.tcp).expect("the daemon listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time");
                stream.set_nodelay(true).expect("pieces of their own");
                exchange(&stream, &stream, pieces, || ends.then(|| stream.shutdown(Shutdown::Write)))
            }
        }
    }

    /// Whether it still answers.
    pub(crate) fn check(&self) {
        let request: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let healthy = self.exchange(By::Unix, [request], false);
        assert!(healthy.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&healthy));
    }
}

fn exchange<'a, T>(
    mut to: impl Write,
    mut from: impl Read,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    end: impl FnOnce() -> T,
) -> Vec<u8> {
    let begun = Instant::now();
    // It may hang up first.
    let _ = pieces.into_iter().try_for_each(|piece| to.write_all(piece));
    end();
    let (mut answer, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match from.read(&mut some) {
            Ok(0) => break,
            Ok(len) => answer.extend_from_slice(&some[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the daemon hangs"),
            Err(_) => break,
        }
        // Events come until somebody hangs up.
        if answer.windows(17).any(|window| window == b"text/event-stream") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the daemon answers for ever");
    }
    answer
}
