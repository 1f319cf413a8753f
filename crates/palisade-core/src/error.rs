//! Errors of the host side. How a *guest* ended is an [`Outcome`](crate::Outcome), never an error.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Result of a host-side operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The artifact is not what it claims to be, or breaks a structural limit.
    InvalidArtifact,
    /// The policy contradicts itself or names something malformed.
    InvalidPolicy,
    /// The call or task is malformed (for example an argument with a NUL byte).
    InvalidInput,
    /// The backend cannot enforce or provide what the policy asks for. Nothing ran.
    Unsupported,
    /// The artifact needs something the policy does not grant. Nothing ran.
    Denied,
    /// A named thing (entry point, backend, task, file) does not exist.
    NotFound,
    /// A bound of the host itself is reached (instance slots, queue length). Trying later may help.
    Exhausted,
    /// The thing was already used up: an instance after an abnormal end, a lease that expired.
    Stale,
    /// The host's operating system refused something.
    Io,
    /// Stored data is not what was once written. Nothing was changed.
    Corrupt,
    /// A defect in the sandbox or in this library.
    Internal,
}

impl ErrorKind {
    /// Whether the same request may succeed later without any change.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorKind::Exhausted | ErrorKind::Io)
    }
}

/// A host-side error: kind, operation, context and source.
///
/// `Display` is one line and ends with what to do next when that is known; it does not repeat the source.
///
/// ```
/// use palisade_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::NotFound, "call", "no export `strat`")
///     .with_context("entry", "strat")
///     .with_help("did you mean `start`?");
/// assert_eq!(error.to_string(), "no export `strat`; did you mean `start`?");
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: Cow<'static, str>,
    help: Option<Cow<'static, str>>,
    context: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` (a verb of the contract, such as `load`), described by `message`.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner {
            kind,
            operation,
            message: message.into(),
            help: None,
            context: Vec::new(),
            retry_after: None,
            source: None,
        }))
    }

    /// Adds what the person should do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Adds a named fact.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// Says when the same request may succeed.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The message without the help.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do next, when known.
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// How long to wait before the same request may succeed, when known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The named facts, in the order they were added.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever an engine's message holds: a message with line breaks would tear a log apart.
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, "{}", one_line(&self.0.message))?;
        match &self.0.help {
            Some(help) => write!(f, "; {}", one_line(help)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("message", &self.0.message)
            .field("help", &self.0.help)
            .field("context", &self.0.context)
            .field("retry_after", &self.0.retry_after)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl serde::Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Report<'a> {
            kind: ErrorKind,
            operation: &'a str,
            message: &'a str,
            help: Option<&'a str>,
            context: std::collections::BTreeMap<&'a str, &'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u128>,
            source: Option<String>,
        }
        Report {
            kind: self.0.kind,
            operation: self.0.operation,
            message: &self.0.message,
            help: self.0.help.as_deref(),
            context: self.0.context.iter().map(|(name, value)| (*name, value.as_str())).collect(),
            retry_after_ms: self.0.retry_after.map(|delay| delay.as_millis()),
            source: self.0.source.as_ref().map(ToString::to_string),
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_and_does_not_repeat_the_source() {
        let error = Error::new(ErrorKind::Io, "load", "cannot read\nthe file")
            .with_help("check\nit")
            .with_source(std::io::Error::other("disk on fire"));
        assert_eq!(error.to_string(), "cannot read the file; check it");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "disk on fire");
    }

    #[test]
    fn advice_reaches_programs() {
        let error = Error::new(ErrorKind::Exhausted, "submit", "full").with_retry_after(Duration::from_millis(250));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
        assert_eq!(serde_json::to_value(&error).unwrap()["retry_after_ms"], 250);
        let error = serde_json::to_value(Error::new(ErrorKind::Internal, "submit", "broken")).unwrap();
        assert!(error.get("retry_after_ms").is_none());
    }

    #[test]
    fn an_error_is_small_enough_to_return_everywhere() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
