//! Events as server-sent events: a stream of lines over HTTP that stays open.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use palisade_core::{Error, ErrorKind, Result, TaskId};
use palisade_fabric::{Event, Subscription};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long a stream is silent at most: then a comment shows that the other end is there.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a client waits for a sign of life.
const PATIENCE: Duration = Duration::from_secs(45);
/// Bytes of one event, as a client reads it.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Which events to hear of. By default all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventQuery {
    /// Only those of this task.
    pub task: Option<TaskId>,
    /// Only those of this tenant's tasks.
    pub tenant: Option<String>,
    /// Only those of this plugin: as in [`PluginRef`](crate::PluginRef), or the whole hash of one that was removed.
    pub plugin: Option<String>,
}

impl EventQuery {
    /// Reads the query of a URL.
    pub(crate) fn parse(query: &str) -> Result<EventQuery> {
        let invalid = |message: String| {
            Error::new(ErrorKind::InvalidInput, "subscribe", message)
                .with_help("filters are `task`, `tenant` and `plugin`")
        };
        let mut parsed = EventQuery::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let twice = match &*name {
                "task" => {
                    let task = serde_json::from_value(value.into());
                    parsed.task.replace(task.map_err(|_| invalid("`task` is no id of a task".to_owned()))?).is_some()
                }
                "tenant" => parsed.tenant.replace(value.into_owned()).is_some(),
                "plugin" => parsed.plugin.replace(value.into_owned()).is_some(),
                _ => return Err(invalid(format!("there is no filter `{name:.100}`"))),
            };
            if twice {
                return Err(invalid(format!("the filter `{name}` is given twice")));
            }
        }
        Ok(parsed)
    }

    /// As the query of a URL.
    pub(crate) fn write(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let task = self.task.map(|task| task.to_string());
        for (name, value) in [("task", &task), ("tenant", &self.tenant), ("plugin", &self.plugin)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }
}

type Piece = Pin<Box<dyn Future<Output = Option<(Bytes, Box<Source>)>> + Send>>;

/// Where the pieces of a body come from.
struct Source {
    subscription: Subscription,
    stop: watch::Receiver<Option<Duration>>,
}

/// The body of an answer that ends with the server.
pub(crate) struct EventBody(Piece);

impl EventBody {
    pub(crate) fn new(subscription: Subscription, stop: watch::Receiver<Option<Duration>>) -> EventBody {
        let source = Box::new(Source { subscription, stop });
        // So that the client knows at once that it is subscribed.
        EventBody(Box::pin(async { Some((Bytes::from_static(b": subscribed\n\n"), source)) }))
    }
}

impl Source {
    async fn next(mut self: Box<Self>) -> Option<(Bytes, Box<Source>)> {
        let next = timeout(SILENCE_MAX, self.subscription.next());
        let piece = tokio::select! {
            biased;
            _ = self.stop.wait_for(Option::is_some) => return None,
            next = next => match next {
                Err(_) => Bytes::from_static(b": silence\n\n"),
                Ok(event) => piece(&*event?),
            },
        };
        Some((piece, self))
    }
}

fn piece(event: &Event) -> Bytes {
    // Of plain numbers, strings and lists: it can be written, and no line of it is broken.
    let json = serde_json::to_string(event).unwrap_or_default();
    Bytes::from(format!("data: {json}\n\n"))
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = ready!(self.0.as_mut().poll(context));
        Poll::Ready(match piece {
            Some((bytes, source)) => {
                self.0 = Box::pin(source.next());
                Some(Ok(Frame::data(bytes)))
            }
            None => {
                self.0 = Box::pin(async { None });
                None
            }
        })
    }
}

/// What a daemon tells a subscriber, until the one or the other ends. See
/// [`Client::events`](crate::Client::events).
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    /// What came and was not given out yet.
    read: Vec<u8>,
    /// Where to look for the end of an event.
    searched: usize,
    /// Keeps the connection.
    _connection: Arc<dyn Send + Sync + std::fmt::Debug>,
}

impl EventStream {
    pub(crate) fn new(body: Incoming, connection: Arc<dyn Send + Sync + std::fmt::Debug>) -> EventStream {
        EventStream { body, read: Vec::new(), searched: 0, _connection: connection }
    }

    /// Waits for the next event. `None`: the daemon ended. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the connection breaks or the daemon gives no sign of life for 45 s.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        self.next_with(|| sleep(PATIENCE)).await
    }

    /// As [`EventStream::next`], as patient as the futures that `patience` makes.
    async fn next_with<P: Future<Output = ()>>(&mut self, patience: impl Fn() -> P) -> Result<Option<Event>> {
        loop {
            while let Some(event) = self.take() {
                let mut data = event.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
                if let Some(data) = data.next() {
                    let event = serde_json::from_slice(data)
                        .map_err(|error| failed("an event is not understood").with_source(error))?;
                    return Ok(Some(event));
                }
            }
            if self.read.len() > EVENT_BYTES_MAX {
                return Err(failed("an event is too large"));
            }
            // Anew for each piece: whatever comes is a sign of life, be it a comment.
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = patience() => return Err(failed("the daemon gives no sign of life")),
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(failed("the connection to the daemon broke").with_source(error)),
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
            }
        }
    }

    /// Takes an event that is there as a whole.
    fn take(&mut self) -> Option<Vec<u8>> {
        let end = self.read[self.searched..].windows(2).position(|pair| pair == b"\n\n");
        match end {
            Some(end) => {
                let rest = self.read.split_off(self.searched + end + 2);
                self.searched = 0;
                Some(std::mem::replace(&mut self.read, rest))
            }
            None => {
                self.searched = self.read.len().saturating_sub(1);
                None
            }
        }
    }
}

fn failed(message: &'static str) -> Error {
    Error::new(ErrorKind::Io, "hear events", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::{Address, Client};

    /// A test that waits longer hangs.
    const TEST_TIME: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_daemon_that_gives_signs_of_life_is_waited_for_and_no_other() {
        let place = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(place.path().join("socket")).unwrap();
        let client = Client::new(Address::Unix(place.path().join("socket")));
        let subscribed = tokio::spawn(async move { client.events(&EventQuery::default()).await });
        let (mut daemon, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(daemon.read_u8().await.unwrap());
        }
        daemon.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut heard = subscribed.await.unwrap().unwrap();

        // Patience ends when the test says so.
        let (waits, mut waiting) = mpsc::unbounded_channel();
        let patience = move || {
            let (end, ended) = oneshot::channel::<()>();
            waits.send(end).unwrap();
            async { ended.await.unwrap() }
        };
        let hears = tokio::spawn(async move {
            let first = heard.next_with(&patience).await.unwrap();
            (first, heard.next_with(&patience).await.unwrap_err())
        });
        let mut next = async || timeout(TEST_TIME, waiting.recv()).await.expect("it is patient anew").unwrap();
        let missed = Event::Missed { events: 7 };
        for sign in [b": silence\n\n", &b":"[..], b"\n", b"\n", &piece(&missed)] {
            let mut patience = next().await;
            daemon.write_all(sign).await.unwrap();
            timeout(TEST_TIME, patience.closed()).await.expect("a sign of life ends the wait");
        }
        next().await.send(()).unwrap();
        let (first, error) = hears.await.unwrap();
        assert_eq!(first, Some(missed));
        assert_eq!((error.kind(), error.message()), (ErrorKind::Io, "the daemon gives no sign of life"));
    }

    #[test]
    fn only_known_filters_are_taken_and_each_once() {
        let parsed = EventQuery::parse("tenant=a%20b%26&plugin=hello.wat").unwrap();
        assert_eq!((parsed.tenant.as_deref(), parsed.plugin.as_deref()), (Some("a b&"), Some("hello.wat")));
        assert_eq!(EventQuery::parse("").unwrap(), EventQuery::default());
        for wrong in ["task=7", "tenat=a", "tenant=a&tenant=a", "task="] {
            assert_eq!(EventQuery::parse(wrong).unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn filters_come_back_as_they_went(tenant in proptest::option::of(".*"), plugin in proptest::option::of(".*")) {
            let query = EventQuery { task: Some(TaskId::new()), tenant, plugin };
            prop_assert_eq!(EventQuery::parse(&query.write()).unwrap(), query);
        }
    }
}
