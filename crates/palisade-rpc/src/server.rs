//! HTTP in front of a service: connections, limits, the token.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use palisade_core::{Error, ErrorKind, Result, TraceContext};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot, watch};
use tokio::time::timeout;

use crate::events::{EventBody, EventQuery};
use crate::patience::Patient;
use crate::protocol::{Answer, Limits, ParsedCall, RpcError, codes, parse};
use crate::{Service, Token};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long to wait when the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The unit in which bytes of bodies are counted.
const BODY_UNIT: usize = 1 << 10;
/// Results up to this need no room: what changed something is told, however much is being written.
const SMALL_RESULT_BYTES: usize = 4 << 10;
/// When to ask again for what had no room.
const ANSWER_PAUSE: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const EVENT_STREAM: &str = "text/event-stream";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where requests come in.
pub struct Listener(Kind);

enum Kind {
    Unix { listener: UnixListener, place: Place },
    Tcp { listener: TcpListener, token: Token },
}

/// A socket of ours at a path, and the lock that keeps other daemons from replacing it. Both are gone with it.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Device and inode of the socket.
    id: Option<(u64, u64)>,
    _lock: fs::File,
}

impl Place {
    fn id(path: &Path) -> Option<(u64, u64)> {
        fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already when somebody tidied up; another's when somebody replaced it all the same.
        if self.id.is_some() && Place::id(&self.path) == self.id {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Listener {
    /// Listens on a Unix socket that only its owner can use. What a daemon left there that ended is replaced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when another daemon listens there, [`ErrorKind::InvalidInput`] when something else lies
    /// there, else [`ErrorKind::Io`].
    pub async fn unix(path: impl Into<PathBuf>) -> Result<Listener> {
        let path = path.into();
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "listen", format!("cannot listen on {}", path.display())).with_source(error)
        };
        let in_use = || {
            let message = format!("another daemon listens on {}", path.display());
            Error::new(ErrorKind::Exhausted, "listen", message).with_help("stop it, or choose another path")
        };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let len = path.as_os_str().len();
            let message = format!("the path of the socket has {len} bytes; the kernel takes {SOCKET_PATH_BYTES_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, "listen", message)
                .with_context("path", path.display())
                .with_help("name a shorter one (`--socket /run/user/1000/palisade`)"));
        }
        // Between looking and taking the place another daemon could do the same: one at a time.
        let mut name = path.clone().into_os_string();
        name.push(".lock");
        let lock =
            fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&name).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(in_use()),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        match fs::symlink_metadata(&path) {
            Ok(there) if !there.file_type().is_socket() => {
                let message = format!("{} exists and is no socket", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, "listen", message).with_help("choose another path"));
            }
            Ok(_) if UnixStream::connect(&path).await.is_ok() => return Err(in_use()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = bind_private(&path).map_err(failed)?;
        let place = Place { id: Place::id(&path), path, _lock: lock };
        Ok(Listener(Kind::Unix { listener, place }))
    }

    /// Listens on TCP, for clients that show `token`. Nothing is encrypted: beyond this machine that is for a trusted
    /// network only, or for a proxy that encrypts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub async fn tcp(address: SocketAddr, token: Token) -> Result<Listener> {
        let failed =
            |error| Error::new(ErrorKind::Io, "listen", format!("cannot listen on {address}")).with_source(error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Listener(Kind::Tcp { listener, token }))
    }

    /// Where it listens, for people: a path, or an address with the port that was given.
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::Unix { place, .. } => place.path.display().to_string(),
            Kind::Tcp { listener, .. } => {
                listener.local_addr().map_or_else(|_| "a TCP port".to_owned(), |address| format!("http://{address}"))
            }
        }
    }
}

/// Longest path of a socket, in bytes: `sun_path` without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Binds where nobody else can reach, and moves the socket to its place when its rights are set: at no time may others
/// connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let private = parent.join(format!(".{}", std::process::id()));
    let made = private.join("s");
    // Left by a daemon that was killed right here; in a container the same number comes again.
    let _ = fs::remove_file(&made);
    let _ = fs::remove_dir(&private);
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    // Its own path may be longer than the one it is moved to; then it is named from the directory, which is open.
    let directory = fs::File::open(&private)?;
    let named = match made.as_os_str().len() {
        0..=SOCKET_PATH_BYTES_MAX => made.clone(),
        _ => PathBuf::from(format!("/proc/self/fd/{}/s", directory.as_raw_fd())),
    };
    let bound = UnixListener::bind(&named).and_then(|listener| {
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        fs::rename(&made, path)?;
        Ok(listener)
    });
    let _ = fs::remove_file(&made);
    let _ = fs::remove_dir(&private);
    bound
}

struct Shared {
    service: Arc<Service>,
    limits: Limits,
    /// Bytes of bodies, in [`BODY_UNIT`].
    bodies: Semaphore,
    /// Bytes of results, in [`BODY_UNIT`].
    answers: Arc<Semaphore>,
    stop: watch::Sender<Option<Duration>>,
}

/// Serves a [`Service`] until it is stopped.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(tokio::task::JoinHandle<()>, Arc<Semaphore>)>,
    places: Vec<Place>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Server {
    /// Starts serving on the current Tokio runtime.
    pub fn start(service: Arc<Service>, listeners: Vec<Listener>, limits: Limits) -> Server {
        let bodies = Semaphore::new(limits.bodies_bytes_max.max(limits.body_bytes_max) / BODY_UNIT + 1);
        let answers = Semaphore::new(limits.answers_bytes_max.max(limits.answer_bytes_max) / BODY_UNIT + 1);
        let (answers, stop) = (Arc::new(answers), watch::Sender::new(None));
        let shared = Arc::new(Shared { service, limits, bodies, answers, stop });
        let mut places_taken = Vec::new();
        let start = |Listener(kind): Listener| {
            let connections = Arc::new(Semaphore::new(limits.connections_max));
            let (shared, places) = (Arc::clone(&shared), Arc::clone(&connections));
            let task = match kind {
                Kind::Unix { listener, place } => {
                    places_taken.push(place);
                    tokio::spawn(async move {
                        accept(&shared, &places, None, |context| {
                            listener.poll_accept(context).map_ok(|(stream, _)| stream)
                        })
                        .await;
                    })
                }
                Kind::Tcp { listener, token } => tokio::spawn(async move {
                    accept(&shared, &places, Some(Arc::new(token)), |context| {
                        listener.poll_accept(context).map_ok(|(stream, _)| stream)
                    })
                    .await;
                }),
            };
            (task, connections)
        };
        let listeners = listeners.into_iter().map(start).collect();
        Server { shared, listeners, places: places_taken }
    }

    /// Takes no more requests, lets those under way be answered within `grace`, then closes all connections.
    pub async fn stop(self, grace: Duration) {
        self.shared.stop.send_replace(Some(grace));
        drop(self.places);
        let all = u32::try_from(self.shared.limits.connections_max).unwrap_or(u32::MAX);
        for (task, connections) in self.listeners {
            let _ = task.await;
            // Each connection ends within the grace.
            let _ = connections.acquire_many(all).await;
        }
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    shared: &Arc<Shared>,
    connections: &Arc<Semaphore>,
    token: Option<Arc<Token>>,
    next: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>> + Send + Sync,
) {
    let mut stop = shared.stop.subscribe();
    let strangers = Strangers::default();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(Option::is_some) => return,
            accepted = async {
                // Whoever has shown no token has no place yet. Never closed.
                let place = if token.is_none() { Arc::clone(connections).acquire_owned().await.ok() } else { None };
                (poll_fn(&next).await, place)
            } => accepted,
        };
        match accepted {
            (Ok(stream), place) => {
                let shared = Arc::clone(shared);
                let stranger = token.clone().map(|token| Stranger {
                    token,
                    places: Arc::clone(connections),
                    closed: strangers.let_in(shared.limits.strangers_max),
                });
                tokio::spawn(async move { connection(&shared, stream, place, stranger).await });
            }
            // Too many open files, or a client that was gone at once.
            (Err(_), _) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Connections that have not shown the token, the oldest first, each with what closes it.
#[derive(Default)]
struct Strangers(Mutex<VecDeque<oneshot::Sender<()>>>);

impl Strangers {
    /// Lets one more in, and closes the oldest when there are more than `max`.
    fn let_in(&self, max: usize) -> oneshot::Receiver<()> {
        let (close, closed) = oneshot::channel();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are gone, or known by now, do not listen any more.
        all.retain(|stranger| !stranger.is_closed());
        all.push_back(close);
        while all.len() > max.max(1) {
            // Dropping it is what the connection hears.
            all.pop_front();
        }
        closed
    }
}

/// What a connection needs that has to show a token.
struct Stranger {
    token: Arc<Token>,
    /// Where it gets a place once it has.
    places: Arc<Semaphore>,
    /// Hears that it is closed for a newer one.
    closed: oneshot::Receiver<()>,
}

/// Serves a connection that has a `place`, or gets one when it shows the token.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    shared: &Arc<Shared>,
    stream: S,
    place: Option<OwnedSemaphorePermit>,
    stranger: Option<Stranger>,
) {
    let mut stop = shared.stop.subscribe();
    let stream = TokioIo::new(Patient::new(stream, shared.limits.write_time));
    let (token, places, closed) = match stranger {
        Some(Stranger { token, places, closed }) => (Some(token), Some(places), Some(closed)),
        None => (None, None, None),
    };
    // Held as long as the connection lives.
    let place = Arc::new(Mutex::new(place));
    let (known, is_known) = watch::channel(token.is_none());
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, token) = (Arc::clone(shared), token.clone());
        // By value: what is borrowed from the channel would keep it from being changed below.
        let known_before = *is_known.borrow();
        if let (Some(token), Some(places), false) = (&token, &places, known_before)
            && token.admits(request.headers().get(AUTHORIZATION).map(|value| value.as_bytes()))
        {
            // With all places taken it stays a stranger, and is closed as one.
            if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
                known.send_replace(true);
            }
        }
        async move { Ok::<_, Infallible>(respond(&shared, token.as_deref(), request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.read_time)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(stream, service);
    let mut serving = pin!(serving);
    let mut hears = is_known.clone();
    // Ends when a stranger has had its time, or a newer one needs its place; never for who is known.
    let shown_out = async {
        let Some(closed) = closed else { return std::future::pending().await };
        tokio::select! {
            biased;
            () = async { drop(hears.wait_for(|known| *known).await) } => std::future::pending().await,
            _ = closed => {}
            () = tokio::time::sleep(shared.limits.stranger_time) => {}
        }
    };
    // An error means that the client is gone, or speaks no HTTP: nobody is left to hear of it.
    let grace = tokio::select! {
        biased;
        _ = &mut serving => return,
        () = shown_out => return,
        grace = async { stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace) } => grace,
    };
    serving.as_mut().graceful_shutdown();
    let _ = timeout(grace.unwrap_or_default(), serving).await;
}

type Answered = Response<Either<Full<Bytes>, EventBody>>;

fn reply(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Answered {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content));
    response
}

/// A JSON-RPC error to a request whose calls were not read.
fn refuse(status: StatusCode, error: RpcError) -> Answered {
    let mut body = Vec::new();
    Answer { id: None, result: Err(error) }.write(&mut body);
    reply(status, JSON, body)
}

async fn respond(shared: &Arc<Shared>, token: Option<&Token>, request: Request<Incoming>) -> Answered {
    let path = request.uri().path();
    if path == "/healthz" && request.method() == Method::GET {
        return match (shared.service.is_open(), shared.service.check()) {
            (true, Ok(())) => reply(StatusCode::OK, TEXT, "ok\n"),
            (false, _) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            // Not why: the token is not asked for here.
            (true, Err(_)) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the journal fails\n"),
        };
    }
    let shown = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    if token.is_some_and(|token| !token.admits(shown)) {
        let error = RpcError::new(codes::UNAUTHORIZED, "the token is missing or wrong");
        let mut refused = refuse(StatusCode::UNAUTHORIZED, error);
        refused.headers_mut().insert(WWW_AUTHENTICATE, hyper::header::HeaderValue::from_static("Bearer"));
        return refused;
    }
    let allowed = match path {
        "/rpc" | "/" => "POST",
        "/metrics" | "/healthz" | "/events" => "GET",
        _ => return reply(StatusCode::NOT_FOUND, TEXT, "there are /rpc, /events, /metrics and /healthz\n"),
    };
    if request.method().as_str() != allowed {
        let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("this is for {allowed}\n"));
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allowed));
        return refused;
    }
    if path == "/metrics" {
        return match shared.service.metrics_text() {
            Ok(text) => reply(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        };
    }
    if path == "/events" {
        return events(shared, request.uri().query().unwrap_or_default());
    }
    let trace = trace(request.headers());
    rpc(shared, request.into_body(), trace).await
}

fn events(shared: &Shared, query: &str) -> Answered {
    match EventQuery::parse(query).and_then(|query| shared.service.subscribe(query)) {
        Ok(subscription) => {
            let body = EventBody::new(subscription, shared.stop.subscribe());
            let mut response = Response::new(Either::Right(body));
            for (name, value) in [(CONTENT_TYPE, EVENT_STREAM), (CACHE_CONTROL, "no-store")] {
                response.headers_mut().insert(name, hyper::header::HeaderValue::from_static(value));
            }
            response
        }
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::NotFound => StatusCode::NOT_FOUND,
                ErrorKind::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            };
            refuse(status, error.into())
        }
    }
}

/// The trace context of a request. One that is malformed counts as none: so W3C wants it.
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().ok()).collect::<Option<Vec<_>>>();
    let [traceparent] = texts("traceparent")?[..] else { return None };
    let tracestate = texts("tracestate").map(|states| states.join(",")).unwrap_or_default();
    TraceContext::new(traceparent, tracestate).or_else(|_| TraceContext::new(traceparent, "")).ok()
}

async fn rpc(shared: &Arc<Shared>, body: Incoming, trace: Option<TraceContext>) -> Answered {
    let limits = &shared.limits;
    let too_large = || {
        let message = format!("the body is larger than {} bytes", limits.body_bytes_max);
        let data = serde_json::json!({ "limit": limits.body_bytes_max });
        refuse(StatusCode::PAYLOAD_TOO_LARGE, RpcError::new(codes::TOO_LARGE, message).data(data))
    };
    if body.size_hint().lower() > limits.body_bytes_max as u64 {
        return too_large();
    }
    let (body, _room) = match timeout(limits.read_time, read_body(shared, body)).await {
        Ok(Ok(read)) => read,
        Ok(Err(Unread::TooLarge)) => return too_large(),
        Ok(Err(Unread::BreaksOff)) => {
            return refuse(StatusCode::BAD_REQUEST, RpcError::new(codes::PARSE, "the body breaks off"));
        }
        Ok(Err(Unread::NoRoom)) => {
            let error = Error::new(ErrorKind::Exhausted, "read", "too many large requests are being read and answered")
                .with_context("limit", limits.bodies_bytes_max)
                .with_help("send it again")
                .with_retry_after(ANSWER_PAUSE);
            return refuse(StatusCode::SERVICE_UNAVAILABLE, error.into());
        }
        Err(_) => {
            let message = format!("the body did not come within {:?}", limits.read_time);
            return refuse(StatusCode::REQUEST_TIMEOUT, RpcError::new(codes::TIMED_OUT, message));
        }
    };
    let parsed = match parse(&body, limits) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(StatusCode::OK, error),
    };
    let left = AtomicUsize::new(limits.answer_bytes_max);
    let answers = join(parsed.calls.into_iter().map(|call| answer(shared, call, trace.as_ref(), &left))).await;
    let mut out = Vec::new();
    let mut rooms = Vec::new();
    for (answer, room) in answers.into_iter().flatten() {
        out.push(if out.is_empty() { b'[' } else { b',' });
        answer.write(&mut out);
        rooms.extend(room);
    }
    if out.is_empty() {
        // Notifications only.
        return reply(StatusCode::NO_CONTENT, JSON, "");
    }
    if parsed.is_batch {
        out.push(b']');
    }
    let out = Bytes::from_owner(Written { out, _rooms: rooms });
    reply(StatusCode::OK, JSON, if parsed.is_batch { out } else { out.slice(1..) })
}

/// Why a body was not read.
enum Unread {
    TooLarge,
    BreaksOff,
    NoRoom,
}

/// A body, and its room among all of them until it is answered. Room is taken as bytes come, whatever was announced, and
/// nobody waits for it: whoever waited with a part of a body would keep that from those who wait for the rest of theirs.
async fn read_body(
    shared: &Shared,
    body: Incoming,
) -> std::result::Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Unread> {
    let limits = &shared.limits;
    let mut body = pin!(body);
    let (mut bytes, mut room) = (Vec::new(), None::<SemaphorePermit<'_>>);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::BreaksOff)?.into_data() else { continue };
        let len = bytes.len() + data.len();
        if len > limits.body_bytes_max {
            return Err(Unread::TooLarge);
        }
        let wanted = len.saturating_sub(limits.small_body_bytes).div_ceil(BODY_UNIT);
        let more = wanted.saturating_sub(room.as_ref().map_or(0, SemaphorePermit::num_permits));
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            let more = shared.bodies.try_acquire_many(more).map_err(|_| Unread::NoRoom)?;
            match &mut room {
                Some(room) => room.merge(more),
                none => *none = Some(more),
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

/// An answer that is being written, and its room among all of them.
struct Written {
    out: Vec<u8>,
    _rooms: Vec<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        &self.out
    }
}

/// The answer to a call, if it wants one, with room for it until it is written.
async fn answer(
    shared: &Arc<Shared>,
    call: Result<ParsedCall<'_>, RpcError>,
    trace: Option<&TraceContext>,
    left: &AtomicUsize,
) -> Option<(Answer, Option<OwnedSemaphorePermit>)> {
    let call = match call {
        Ok(call) => call,
        Err(error) => return Some((Answer { id: None, result: Err(error) }, None)),
    };
    let result = match call.params {
        Err(error) => Err(error),
        Ok(params) => {
            let time = shared.limits.call_time;
            timeout(time, shared.service.call(&call.method, params, trace)).await.unwrap_or_else(|_| {
                let message =
                    format!("{:.100} took longer than {time:?}; whether it happened is not known", call.method);
                Err(RpcError::new(codes::TIMED_OUT, message))
            })
        }
    };
    let result = result.and_then(|result| {
        let len = result.get().len();
        let take = |left: usize| left.checked_sub(len);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(|_| result).map_err(|_| {
            let message = "the results of this request are too large together; ask for fewer at once";
            RpcError::new(codes::of(ErrorKind::Exhausted), message)
        })
    });
    let id = Some(call.id?.to_owned());
    // Nobody waits between making a result and this: what is made and has no room is at most one result for each thread.
    let with_room = result.and_then(|result| {
        if result.get().len() <= SMALL_RESULT_BYTES {
            return Ok((result, None));
        }
        let units = u32::try_from(result.get().len() / BODY_UNIT + 1).unwrap_or(u32::MAX);
        match Arc::clone(&shared.answers).try_acquire_many_owned(units) {
            Ok(room) => Ok((result, Some(room))),
            Err(_) => Err(RpcError::from(
                Error::new(ErrorKind::Exhausted, "answer", "too many large answers are being written")
                    .with_context("limit", shared.limits.answers_bytes_max)
                    .with_retry_after(ANSWER_PAUSE),
            )),
        }
    });
    Some(match with_room {
        Ok((result, room)) => (Answer { id, result: Ok(result) }, room),
        Err(error) => (Answer { id, result: Err(error) }, None),
    })
}

/// All results, in order. The futures are driven at the same time, by one task.
async fn join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut under_way: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = under_way.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, result) in under_way.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}
