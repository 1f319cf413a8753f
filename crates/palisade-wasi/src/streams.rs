//! Bounded input and output of one call.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use palisade_core::{Input, LogLevel, LogRecord, OutputSink, OutputStream, Quota, Resource};

use crate::{Room, Stop, Wait};

/// Bounds on what a call may write.
#[derive(Debug, Clone, Copy)]
pub struct StreamsLimits {
    /// Output; `u64::MAX` when not bounded.
    pub output_bytes: u64,
    /// Error text and log records together; `u64::MAX` when not bounded.
    pub log_bytes: u64,
}

impl From<&Quota> for StreamsLimits {
    fn from(quota: &Quota) -> Self {
        StreamsLimits {
            output_bytes: quota.output_bytes.unwrap_or(u64::MAX),
            log_bytes: quota.log_bytes.unwrap_or(u64::MAX),
        }
    }
}

/// What a call wrote.
#[derive(Debug, Default)]
pub struct Written {
    /// Output.
    pub output: Vec<u8>,
    /// Error text.
    pub error: Vec<u8>,
    /// Log records.
    pub log: Vec<LogRecord>,
}

/// The input and output of one call, both bounded.
///
/// A write beyond the bound keeps what fits and then stops the guest.
#[derive(Debug)]
pub struct Streams {
    input: Input,
    /// The piece of a streamed input that is being read.
    piece: Bytes,
    input_ended: bool,
    /// The stream ended in an error.
    input_failed: bool,
    input_bytes: u64,
    limits: StreamsLimits,
    output_bytes: u64,
    log_bytes: u64,
    written: Written,
    sink: Option<Arc<dyn OutputSink>>,
}

impl Streams {
    /// Streams that read `input` and write to `sink`, or into buffers when there is none.
    pub fn new(input: Input, sink: Option<Arc<dyn OutputSink>>, limits: StreamsLimits) -> Self {
        Streams {
            input,
            piece: Bytes::new(),
            input_ended: false,
            input_failed: false,
            input_bytes: 0,
            limits,
            output_bytes: 0,
            log_bytes: 0,
            written: Written::default(),
            sink,
        }
    }

    /// Bytes of input the guest took so far.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Bytes of output so far.
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// Bytes of error text and log records so far.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Bytes the host holds for the guest in these streams.
    pub fn held_bytes(&self) -> u64 {
        let input = match &self.input {
            Input::Bytes(bytes) => bytes.len(),
            Input::Stream(_) => self.piece.len(),
        };
        let written = if self.sink.is_some() { 0 } else { self.output_bytes + self.log_bytes };
        input as u64 + written
    }

    /// Takes what was written.
    pub fn take_written(&mut self) -> Written {
        std::mem::take(&mut self.written)
    }

    /// The next bytes of input, without taking them; empty at the end.
    ///
    /// # Errors
    ///
    /// [`Stop::Wait`] when a streamed input has nothing yet.
    pub fn peek_input(&mut self) -> Result<&[u8], Stop> {
        match &self.input {
            Input::Bytes(bytes) => Ok(bytes),
            Input::Stream(_) if !self.piece.is_empty() || self.input_ended => Ok(&self.piece),
            Input::Stream(_) => Err(Stop::Wait(Wait { input: true, ..Wait::default() })),
        }
    }

    /// Whether the input ended in an error rather than at its end.
    pub fn input_failed(&self) -> bool {
        self.input_failed
    }

    /// Takes `len` bytes of what [`Streams::peek_input`] gave.
    ///
    /// # Panics
    ///
    /// When `len` is more than that.
    pub fn take_input(&mut self, len: usize) {
        let bytes = match &mut self.input {
            Input::Bytes(bytes) => bytes,
            Input::Stream(_) => &mut self.piece,
        };
        drop(bytes.split_to(len));
        self.input_bytes += len as u64;
    }

    /// Waits for the next piece of a streamed input, or its end. Ready at once when there is something to read.
    pub fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Input::Stream(stream) = &mut self.input else { return Poll::Ready(()) };
        while self.piece.is_empty() && !self.input_ended {
            match Pin::as_mut(stream).poll_next(context) {
                Poll::Ready(Some(Ok(piece))) => self.piece = piece,
                Poll::Ready(ended) => {
                    self.input_ended = true;
                    self.input_failed = ended.is_some();
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    /// Waits until the whole input is there, so that it can be addressed by offset.
    ///
    /// # Errors
    ///
    /// [`Stop::Exceeded`] (memory) when it does not fit into `room`, [`Stop::Crashed`] when it cannot be read.
    pub fn poll_whole_input(&mut self, context: &mut Context<'_>, room: Room) -> Poll<Result<(), Stop>> {
        let Input::Stream(stream) = &mut self.input else { return Poll::Ready(Ok(())) };
        let mut whole = Vec::from(std::mem::take(&mut self.piece));
        while !self.input_ended {
            match Pin::as_mut(stream).poll_next(context) {
                Poll::Ready(Some(Ok(piece))) => whole.extend_from_slice(&piece),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(Stop::Crashed(format!("the input cannot be read: {error}"))));
                }
                Poll::Ready(None) => self.input_ended = true,
                Poll::Pending => {
                    self.piece = whole.into();
                    return Poll::Pending;
                }
            }
            if let Err(stop) = room.check(whole.len() as u64) {
                return Poll::Ready(Err(stop));
            }
        }
        self.input = Input::Bytes(whole.into());
        Poll::Ready(Ok(()))
    }

    /// The whole input, for reading by offset; what is not there yet is missing (see [`Streams::poll_whole_input`]).
    pub fn whole_input(&self) -> &[u8] {
        match &self.input {
            Input::Bytes(bytes) => bytes,
            Input::Stream(_) => &self.piece,
        }
    }

    /// Counts input that a guest read by offset.
    pub fn count_input(&mut self, len: usize) {
        self.input_bytes += len as u64;
    }

    /// Writes output.
    ///
    /// # Errors
    ///
    /// [`Stop::Exceeded`] when it goes beyond the bound; what fits is kept.
    pub fn write_output(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let (fits, result) = fit(bytes, &mut self.output_bytes, self.limits.output_bytes, Resource::Output);
        match &self.sink {
            Some(sink) => sink.write(OutputStream::Output, fits),
            None => self.written.output.extend_from_slice(fits),
        }
        result
    }

    /// Writes error text.
    ///
    /// # Errors
    ///
    /// As [`Streams::write_output`].
    pub fn write_error(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let (fits, result) = fit(bytes, &mut self.log_bytes, self.limits.log_bytes, Resource::Log);
        match &self.sink {
            Some(sink) => sink.write(OutputStream::Error, fits),
            None => self.written.error.extend_from_slice(fits),
        }
        result
    }

    /// Writes a log record. Each record counts as its text and a few bytes more, so that empty ones are bounded too.
    ///
    /// # Errors
    ///
    /// As [`Streams::write_output`].
    pub fn write_log(&mut self, level: LogLevel, bytes: &[u8]) -> Result<(), Stop> {
        const RECORD_BYTES: u64 = size_of::<LogRecord>() as u64;
        let used = self.log_bytes.saturating_add(RECORD_BYTES);
        if used > self.limits.log_bytes {
            return Err(Stop::Exceeded { resource: Resource::Log, limit: self.limits.log_bytes, used });
        }
        self.log_bytes = used;
        let (fits, result) = fit(bytes, &mut self.log_bytes, self.limits.log_bytes, Resource::Log);
        match &self.sink {
            Some(sink) => sink.write(OutputStream::Log(level), fits),
            None => self.written.log.push(LogRecord { level, message: String::from_utf8_lossy(fits).into_owned() }),
        }
        result
    }
}

/// The part of `bytes` that fits within `limit` after `used`, which grows by it.
fn fit<'a>(bytes: &'a [u8], used: &mut u64, limit: u64, resource: Resource) -> (&'a [u8], Result<(), Stop>) {
    let room = usize::try_from(limit - *used).unwrap_or(usize::MAX);
    if bytes.len() <= room {
        *used += bytes.len() as u64;
        return (bytes, Ok(()));
    }
    let asked = used.saturating_add(bytes.len() as u64);
    *used = limit;
    (&bytes[..room], Err(Stop::Exceeded { resource, limit, used: asked }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_core::Stream;
    use std::collections::VecDeque;
    use std::task::Waker;

    fn streams(output_bytes: u64, log_bytes: u64) -> Streams {
        Streams::new(Input::default(), None, StreamsLimits { output_bytes, log_bytes })
    }

    #[test]
    fn exactly_the_limit_is_kept_and_one_more_byte_stops() {
        let mut streams = streams(4, 0);
        assert_eq!(streams.write_output(b"1234"), Ok(()));
        assert_eq!(streams.write_output(b""), Ok(()));
        let stop = streams.write_output(b"5");
        assert_eq!(stop, Err(Stop::Exceeded { resource: Resource::Output, limit: 4, used: 5 }));
        assert_eq!(streams.take_written().output, b"1234");
    }

    #[test]
    fn what_fits_of_a_long_write_is_kept() {
        let mut streams = streams(4, 4);
        assert!(streams.write_output(b"123456").is_err());
        assert!(streams.write_error(b"abcdef").is_err());
        let written = streams.take_written();
        assert_eq!((written.output.as_slice(), written.error.as_slice()), (&b"1234"[..], &b"abcd"[..]));
        assert_eq!((streams.output_bytes(), streams.log_bytes()), (4, 4));
    }

    #[test]
    fn a_flood_of_empty_log_records_is_bounded() {
        let mut streams = streams(0, 1000);
        let stopped = (0..1000).find(|_| streams.write_log(LogLevel::Info, b"").is_err());
        assert!(stopped.is_some_and(|records| records < 100));
    }

    fn room(left: u64) -> Room {
        Room { limit: 1000 + left, left }
    }

    struct Pieces(VecDeque<Poll<Option<std::io::Result<Bytes>>>>);
    impl Stream for Pieces {
        type Item = std::io::Result<Bytes>;
        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0.pop_front().unwrap_or(Poll::Ready(None))
        }
    }

    fn pieces() -> Input {
        let piece = |text: &'static str| Poll::Ready(Some(Ok(Bytes::from_static(text.as_bytes()))));
        Input::Stream(Box::pin(Pieces([Poll::Pending, piece("ab"), piece(""), piece("cd")].into())))
    }

    #[test]
    fn streamed_input_is_waited_for() {
        let mut context = Context::from_waker(Waker::noop());
        let mut streams = Streams::new(pieces(), None, StreamsLimits { output_bytes: 0, log_bytes: 0 });
        assert_eq!(streams.peek_input(), Err(Stop::Wait(Wait { input: true, ..Wait::default() })));
        assert!(streams.poll_input(&mut context).is_pending());
        assert!(streams.poll_input(&mut context).is_ready());
        assert_eq!(streams.peek_input(), Ok(&b"ab"[..]));
        streams.take_input(2);
        assert!(streams.peek_input().is_err());
        assert!(streams.poll_input(&mut context).is_ready());
        assert_eq!(streams.peek_input(), Ok(&b"cd"[..]));
        streams.take_input(2);
        assert!(streams.poll_input(&mut context).is_ready());
        assert_eq!(streams.peek_input(), Ok(&b""[..]));
        assert_eq!(streams.input_bytes(), 4);
    }

    #[test]
    fn an_input_that_cannot_be_read_is_no_empty_input() {
        let broken = || Input::Stream(Box::pin(Pieces([Poll::Ready(Some(Err(std::io::Error::other("torn"))))].into())));
        let mut context = Context::from_waker(Waker::noop());
        let mut streams = Streams::new(broken(), None, StreamsLimits { output_bytes: 0, log_bytes: 0 });
        assert!(!streams.input_failed());
        assert!(streams.poll_input(&mut context).is_ready());
        assert_eq!(streams.peek_input(), Ok(&b""[..]));
        assert!(streams.input_failed());
        let mut streams = Streams::new(broken(), None, StreamsLimits { output_bytes: 0, log_bytes: 0 });
        let whole = streams.poll_whole_input(&mut context, room(9));
        assert!(matches!(whole, Poll::Ready(Err(Stop::Crashed(message))) if message.contains("torn")));
    }

    #[test]
    fn a_whole_streamed_input_is_bounded() {
        let mut context = Context::from_waker(Waker::noop());
        let mut streams = Streams::new(pieces(), None, StreamsLimits { output_bytes: 0, log_bytes: 0 });
        assert!(streams.poll_whole_input(&mut context, room(4)).is_pending());
        assert_eq!(streams.poll_whole_input(&mut context, room(4)), Poll::Ready(Ok(())));
        assert_eq!(streams.whole_input(), b"abcd");
        let mut streams = Streams::new(pieces(), None, StreamsLimits { output_bytes: 0, log_bytes: 0 });
        assert!(streams.poll_whole_input(&mut context, room(3)).is_pending());
        let exceeded = Stop::Exceeded { resource: Resource::Memory, limit: 1003, used: 1004 };
        assert_eq!(streams.poll_whole_input(&mut context, room(3)), Poll::Ready(Err(exceeded)));
    }
}
