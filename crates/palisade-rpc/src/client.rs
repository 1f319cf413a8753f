//! Calls a daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::{request, response};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use palisade_core::{Error, ErrorKind, Result, TaskId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::methods::for_each_method;
use crate::wire::*;
use crate::{EventQuery, EventStream, RpcError, Token};

/// Bytes of an answer: more than a server gives with its default limits.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where a daemon listens.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Address {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On TCP, for those who show the token.
    Tcp(SocketAddr, Token),
}

/// A client of a daemon, with a method for each of [`METHODS`](crate::METHODS).
///
/// Each call has a connection of its own. Needs a Tokio runtime with its timer and its input and output enabled.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    time: Duration,
}

impl Client {
    /// A client of the daemon at `address`. Nothing is connected yet.
    pub fn new(address: Address) -> Client {
        Client { address, time: Duration::from_secs(120) }
    }

    /// Sets how long one call may take. Default 2 min, more than a daemon takes with its default limits.
    #[must_use]
    pub fn call_time(mut self, time: Duration) -> Client {
        self.time = time;
        self
    }

    /// Waits for a task's outcome as long as it takes. Also over a restart of the daemon, ask again when this fails: the
    /// id stays.
    ///
    /// # Errors
    ///
    /// As [`Client::tasks_wait`].
    pub async fn outcome(&self, task: TaskId) -> Result<TaskInfo> {
        loop {
            let info = self.tasks_wait(&WaitTask { task, timeout_ms: WaitTask::TIMEOUT_MS_MAX }).await?;
            if info.state.is_final() {
                return Ok(info);
            }
            // A daemon that ends answers at once.
            if self.health(&Nothing {}).await?.draining {
                return Err(Error::new(ErrorKind::Exhausted, "wait", "the daemon ends; the task has no outcome yet")
                    .with_context("task", task)
                    .with_help(format!("go on with `palisade wait {task}` when it is back")));
            }
        }
    }

    async fn call<P: Serialize + Sync, R: DeserializeOwned>(&self, method: &'static str, params: &P) -> Result<R> {
        let body = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = timeout(self.time, self.exchange(body.to_string()))
            .await
            .map_err(|_| failed(format!("{method} was not answered within {:?}", self.time)))??;
        #[derive(Deserialize)]
        #[serde(bound(deserialize = "R: DeserializeOwned"))]
        struct Envelope<R> {
            result: Option<R>,
            error: Option<RpcError>,
        }
        let answer: Envelope<R> = serde_json::from_slice(&answer)
            .map_err(|error| failed(format!("the answer to {method} is not understood")).with_source(error))?;
        match answer {
            Envelope { error: Some(error), .. } => Err(error.into_error()),
            Envelope { result: Some(result), .. } => Ok(result),
            _ => Err(failed(format!("the answer to {method} holds neither a result nor an error"))),
        }
    }

    /// Subscribes to what happens to tasks and agents from now on.
    ///
    /// # Errors
    ///
    /// The daemon's: [`ErrorKind::Exhausted`] when there are too many subscribers, [`ErrorKind::NotFound`] for an unknown
    /// plugin; [`ErrorKind::Io`] when it cannot be reached.
    pub async fn events(&self, query: &EventQuery) -> Result<EventStream> {
        let request = Request::get(format!("/events?{}", query.write()));
        let late = || failed(format!("the subscription was not answered within {:?}", self.time));
        let (response, sender) = timeout(self.time, self.send(request, String::new())).await.map_err(|_| late())??;
        if response.status() == StatusCode::OK {
            return Ok(EventStream::new(response.into_body(), Arc::new(sender)));
        }
        let answer = timeout(self.time, collect(response)).await.map_err(|_| late())??;
        let refused: Refused = serde_json::from_slice(&answer)
            .map_err(|error| failed("the daemon's refusal is not understood".to_owned()).with_source(error))?;
        Err(refused.error.into_error())
    }

    async fn exchange(&self, body: String) -> Result<Bytes> {
        let request = Request::post("/rpc").header(CONTENT_TYPE, "application/json");
        let (response, _sender) = self.send(request, body).await?;
        collect(response).await
    }

    async fn send(&self, request: request::Builder, body: String) -> Result<(Response<Incoming>, Sender)> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| unreachable(path.display().to_string(), error))?;
                send(stream, request, body).await
            }
            Address::Tcp(address, token) => {
                let stream = TcpStream::connect(address).await;
                let stream = stream.map_err(|error| unreachable(address.to_string(), error))?;
                send(stream, request.header(AUTHORIZATION, token.header()), body).await
            }
        }
    }
}

/// Sends requests over a connection.
type Sender = http1::SendRequest<Full<Bytes>>;

/// An answer that says no.
#[derive(Deserialize)]
struct Refused {
    error: RpcError,
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: request::Builder,
    body: String,
) -> Result<(Response<Incoming>, Sender)> {
    let broken = |error: hyper::Error| failed("the connection to the daemon broke".to_owned()).with_source(error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = request
        .header(HOST, "palisade")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Error::new(ErrorKind::Internal, "call", "a request that is none").with_source(error))?;
    // Ends when the sender and the answer are dropped.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, sender))
}

async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| failed("the daemon's answer breaks off or is too large".to_owned()).with_source(error))?;
    if head.status == StatusCode::NOT_FOUND && !is_json(&head) {
        return Err(failed("who answers there is no daemon of Palisade".to_owned()));
    }
    Ok(body.to_bytes())
}

/// Whether a daemon answers, whatever it says.
fn is_json(head: &response::Parts) -> bool {
    head.headers.get(CONTENT_TYPE).is_some_and(|content| content == "application/json")
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Io, "call", message)
}

fn unreachable(address: String, error: std::io::Error) -> Error {
    failed(format!("no daemon answers at {address}")).with_source(error).with_help("start one with `palisade serve`")
}

macro_rules! methods {
    ($(#[doc = $doc:literal] $function:ident = $name:literal: $params:ident => $result:ident;)*) => {
        impl Client {
            $(
                #[doc = $doc]
                ///
                /// # Errors
                ///
                /// The daemon's, with their kind; [`ErrorKind::Io`] when it cannot be reached.
                pub async fn $function(&self, params: &$params) -> Result<$result> {
                    self.call($name, params).await
                }
            )*
        }
    };
}
for_each_method!(methods);
