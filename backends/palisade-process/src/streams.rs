//! What a guest wrote, within its quotas.

use std::sync::Arc;

use palisade_core::{Execution, LogLevel, LogRecord, OutputSink, OutputStream, Quota, Resource};

/// A quota that ran out: which, its limit, and what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) resource: Resource,
    pub(crate) limit: u64,
    pub(crate) used: u64,
}

/// What one log record is charged besides its text.
const RECORD_BYTES: u64 = size_of::<LogRecord>() as u64;

/// Output, error text and log of one call.
#[derive(Debug)]
pub(crate) struct Streams {
    sink: Option<Arc<dyn OutputSink>>,
    output_limit: u64,
    log_limit: u64,
    output: Vec<u8>,
    error: Vec<u8>,
    log: Vec<LogRecord>,
    /// Bytes kept so far.
    pub(crate) output_bytes: u64,
    pub(crate) log_bytes: u64,
}

impl Streams {
    pub(crate) fn new(quota: &Quota, sink: Option<Arc<dyn OutputSink>>) -> Self {
        Streams {
            sink,
            output_limit: quota.output_bytes.unwrap_or(u64::MAX),
            log_limit: quota.log_bytes.unwrap_or(u64::MAX),
            output: Vec::new(),
            error: Vec::new(),
            log: Vec::new(),
            output_bytes: 0,
            log_bytes: 0,
        }
    }

    /// Takes what the guest wrote. What fits the quota is kept, also when the rest does not.
    pub(crate) fn write(&mut self, stream: OutputStream, bytes: &[u8]) -> Result<(), Exceeded> {
        let (resource, limit, count) = match stream {
            OutputStream::Output => (Resource::Output, self.output_limit, &mut self.output_bytes),
            OutputStream::Error | OutputStream::Log(_) => (Resource::Log, self.log_limit, &mut self.log_bytes),
        };
        if let OutputStream::Log(_) = stream {
            // A record costs the host something, even an empty one.
            let used = count.saturating_add(RECORD_BYTES);
            if used > limit {
                return Err(Exceeded { resource, limit, used });
            }
            *count = used;
        }
        let fits = usize::try_from(limit - *count).unwrap_or(usize::MAX).min(bytes.len());
        let kept = &bytes[..fits];
        let used = count.saturating_add(bytes.len() as u64);
        *count += fits as u64;
        if !kept.is_empty() || matches!(stream, OutputStream::Log(_)) {
            match (&self.sink, stream) {
                (Some(sink), _) => sink.write(stream, kept),
                (None, OutputStream::Output) => self.output.extend(kept),
                (None, OutputStream::Error) => self.error.extend(kept),
                (None, OutputStream::Log(level)) => self.log.push(record(level, kept)),
            }
        }
        if fits < bytes.len() { Err(Exceeded { resource, limit, used }) } else { Ok(()) }
    }

    /// How much more may be read of a pipe at once: one byte more than the quota tells an excess from an end.
    pub(crate) fn room(&self, stream: OutputStream) -> usize {
        let left = match stream {
            OutputStream::Output => self.output_limit - self.output_bytes,
            OutputStream::Error | OutputStream::Log(_) => self.log_limit - self.log_bytes,
        };
        usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX)
    }

    /// Hands everything over.
    pub(crate) fn finish(self, execution: &mut Execution) {
        execution.usage.output_bytes = self.output_bytes;
        execution.usage.log_bytes = self.log_bytes;
        execution.output = self.output.into();
        execution.error = self.error.into();
        execution.log = self.log;
    }
}

fn record(level: LogLevel, bytes: &[u8]) -> LogRecord {
    LogRecord { level, message: String::from_utf8_lossy(bytes).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{Outcome, Usage};

    #[test]
    fn exactly_the_limit_fits() {
        let mut quota = Quota::default();
        (quota.output_bytes, quota.log_bytes) = (Some(4), Some(RECORD_BYTES + 3));
        let mut streams = Streams::new(&quota, None);
        assert_eq!(streams.write(OutputStream::Output, b"abcd"), Ok(()));
        assert_eq!(streams.room(OutputStream::Output), 1);
        let exceeded = Exceeded { resource: Resource::Output, limit: 4, used: 5 };
        assert_eq!(streams.write(OutputStream::Output, b"e"), Err(exceeded));
        assert_eq!(streams.write(OutputStream::Error, b"x"), Ok(()));
        let limit = RECORD_BYTES + 3;
        let exceeded = Exceeded { resource: Resource::Log, limit, used: limit + 1 };
        assert_eq!(streams.write(OutputStream::Log(LogLevel::Warn), b"abc"), Err(exceeded));
        let exceeded = Exceeded { resource: Resource::Log, limit, used: limit + RECORD_BYTES };
        assert_eq!(streams.write(OutputStream::Log(LogLevel::Warn), b""), Err(exceeded));
        let mut execution = Execution::new(Outcome::Completed, Usage::default());
        streams.finish(&mut execution);
        assert_eq!((&execution.output[..], &execution.error[..]), (&b"abcd"[..], &b"x"[..]));
        assert_eq!(execution.log[0].message, "ab");
        assert_eq!((execution.usage.output_bytes, execution.usage.log_bytes), (4, RECORD_BYTES + 3));
    }
}
