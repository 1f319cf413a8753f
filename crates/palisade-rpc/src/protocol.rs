//! JSON-RPC 2.0: from a body to calls, and from answers to a body. Bodies are hostile.

use std::fmt;
use std::time::Duration;

use palisade_core::Error;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// What bounds requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a request's body. Default 64 MiB: a plugin of 47 MiB.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are being read or answered, as they come and beyond what is small. One for which there is no
    /// room is refused, to be sent again. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Bytes of the results in one answer. Default 192 MiB: the largest completion that is kept, in base64.
    pub answer_bytes_max: usize,
    /// Bytes of the results over 4 KiB in all answers that are being made or written. Default 512 MiB. One that would be
    /// more is refused, to be asked for again.
    pub answers_bytes_max: usize,
    /// Objects and arrays within each other. Default 32.
    pub depth_max: usize,
    /// Calls in a batch. Default 100.
    pub batch_max: usize,
    /// Bytes of a body that need no room among all bodies. Default 64 KiB.
    pub small_body_bytes: usize,
    /// Connections at once; more wait to be accepted. Default 256.
    pub connections_max: usize,
    /// Of a listener that asks for a token: connections at once that have not shown it. One more closes the oldest of them.
    /// Default 64.
    pub strangers_max: usize,
    /// Time in which a connection shows the token. Default 2 s.
    pub stranger_time: Duration,
    /// Time for a request's head and, again, for its body; an idle connection is closed after it. Default 15 s.
    pub read_time: Duration,
    /// Time without any progress after which an answer that nobody reads is given up. Default 15 s.
    pub write_time: Duration,
    /// Time for one call. Default 90 s.
    pub call_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes_max: 64 << 20,
            bodies_bytes_max: 256 << 20,
            answer_bytes_max: 192 << 20,
            answers_bytes_max: 512 << 20,
            depth_max: 32,
            batch_max: 100,
            small_body_bytes: 64 << 10,
            connections_max: 256,
            strangers_max: 64,
            stranger_time: Duration::from_secs(2),
            read_time: Duration::from_secs(15),
            write_time: Duration::from_secs(15),
            call_time: Duration::from_secs(90),
        }
    }
}

/// The numbers of errors.
pub mod codes {
    use palisade_core::ErrorKind;

    /// The body is not JSON.
    pub const PARSE: i64 = -32700;
    /// The JSON is no request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are not those of the method.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The token is missing or wrong.
    pub const UNAUTHORIZED: i64 = -32050;
    /// The body is too large.
    pub const TOO_LARGE: i64 = -32051;
    /// The request did not come, or was not answered, in time.
    pub const TIMED_OUT: i64 = -32052;
    /// The number of each kind of error of the daemon itself.
    pub const KINDS: [(ErrorKind, i64); 11] = [
        (ErrorKind::InvalidArtifact, -32001),
        (ErrorKind::InvalidPolicy, -32002),
        (ErrorKind::InvalidInput, -32003),
        (ErrorKind::Unsupported, -32004),
        (ErrorKind::Denied, -32005),
        (ErrorKind::NotFound, -32006),
        (ErrorKind::Exhausted, -32007),
        (ErrorKind::Stale, -32008),
        (ErrorKind::Io, -32009),
        (ErrorKind::Corrupt, -32010),
        (ErrorKind::Internal, -32011),
    ];

    /// The number of a kind.
    pub fn of(kind: ErrorKind) -> i64 {
        KINDS.iter().find(|(known, _)| *known == kind).map_or(-32011, |(_, code)| *code)
    }

    /// The kind nearest to a number.
    pub fn kind(code: i64) -> ErrorKind {
        match code {
            PARSE | INVALID_REQUEST | INVALID_PARAMS | TOO_LARGE => ErrorKind::InvalidInput,
            METHOD_NOT_FOUND => ErrorKind::Unsupported,
            UNAUTHORIZED => ErrorKind::Denied,
            TIMED_OUT => ErrorKind::Exhausted,
            _ => KINDS.iter().find(|(_, known)| *known == code).map_or(ErrorKind::Internal, |(kind, _)| *kind),
        }
    }
}

/// An error as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RpcError {
    /// One of [`codes`].
    pub code: i64,
    /// One line.
    pub message: String,
    /// Facts for programs. For the daemon's own errors: kind, operation, help, context, `retry_after_ms`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl RpcError {
    /// An error without facts.
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: Value::Null }
    }

    /// Adds facts.
    #[must_use]
    pub fn data(mut self, data: Value) -> RpcError {
        self.data = data;
        self
    }

    /// As an error of the contract. The facts that a person needs are kept: the help, and when to try again.
    pub fn into_error(self) -> Error {
        let mut error = Error::new(codes::kind(self.code), "call", self.message);
        if let Some(help) = self.data["help"].as_str() {
            error = error.with_help(help.to_owned());
        }
        if let Some(delay) = self.data["retry_after_ms"].as_u64() {
            error = error.with_retry_after(Duration::from_millis(delay));
        }
        error
    }
}

impl From<Error> for RpcError {
    fn from(error: Error) -> RpcError {
        // The help is among the facts; a client puts both together again.
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        let data = serde_json::to_value(&error).unwrap_or_default();
        RpcError { code: codes::of(error.kind()), message, data }
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

/// What a body holds.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    /// The answer is an array.
    pub(crate) is_batch: bool,
    /// Calls in their order, each with what is wrong with it.
    pub(crate) calls: Vec<Result<ParsedCall<'a>, RpcError>>,
}

/// One call.
#[derive(Debug)]
pub(crate) struct ParsedCall<'a> {
    /// As it was written. Without one nobody wants an answer.
    pub(crate) id: Option<&'a RawValue>,
    pub(crate) method: String,
    /// An object, as it was written.
    pub(crate) params: Result<&'a str, RpcError>,
}

/// Finds the calls in a body. Nothing here grows faster than the body itself.
pub(crate) fn parse<'a>(body: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, RpcError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        RpcError::new(codes::PARSE, format!("the body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    if deeper_than(body, limits.depth_max) {
        let message = format!("the body nests deeper than {} levels", limits.depth_max);
        return Err(RpcError::new(codes::PARSE, message).data(serde_json::json!({ "limit": limits.depth_max })));
    }
    let malformed = |error: serde_json::Error| {
        let data = serde_json::json!({ "line": error.line(), "column": error.column() });
        RpcError::new(codes::PARSE, format!("the body is not JSON: {error}")).data(data)
    };
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('[') {
        let one = serde_json::from_str::<&RawValue>(text).map_err(malformed)?;
        return Ok(Parsed { is_batch: false, calls: vec![call(one)] });
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let batch = deserializer.deserialize_seq(BatchVisitor { max: limits.batch_max }).map_err(malformed)?;
    deserializer.end().map_err(malformed)?;
    match batch {
        Some(elements) if elements.is_empty() => {
            Err(RpcError::new(codes::INVALID_REQUEST, "the batch is empty; send one call or more"))
        }
        Some(elements) => Ok(Parsed { is_batch: true, calls: elements.into_iter().map(call).collect() }),
        None => {
            let message = format!("a batch has at most {} calls; send several", limits.batch_max);
            Err(RpcError::new(codes::INVALID_REQUEST, message).data(serde_json::json!({ "limit": limits.batch_max })))
        }
    }
}

/// Collects the elements of an array as they are written. `None`: there were too many.
struct BatchVisitor {
    max: usize,
}

impl<'de> Visitor<'de> for BatchVisitor {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of calls")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < self.max {
            match elements.next_element()? {
                Some(element) => kept.push(element),
                None => return Ok(Some(kept)),
            }
        }
        let mut more = false;
        while elements.next_element::<IgnoredAny>()?.is_some() {
            more = true;
        }
        Ok((!more).then_some(kept))
    }
}

/// Whether objects and arrays of `json` lie deeper than `max` within each other. Brackets in strings do not count.
fn deeper_than(json: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            return true;
        }
    }
    false
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// A member that is there, be it null: whether an id is null or missing is a difference.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn call(raw: &RawValue) -> Result<ParsedCall<'_>, RpcError> {
    let invalid = |message: String| RpcError::new(codes::INVALID_REQUEST, message);
    if !raw.get().starts_with('{') {
        return Err(invalid("a call is an object".to_owned()));
    }
    let envelope: Envelope<'_> =
        serde_json::from_str(raw.get()).map_err(|error| invalid(format!("the object is no call: {error}")))?;
    if envelope.jsonrpc.map(RawValue::get) != Some("\"2.0\"") {
        return Err(invalid("a call has `\"jsonrpc\": \"2.0\"`".to_owned()));
    }
    let id = envelope.id.map(RawValue::get);
    if id.is_some_and(|id| !(id == "null" || id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit()))) {
        return Err(invalid("an id is a string, a number or null".to_owned()));
    }
    let method = envelope.method.and_then(|method| serde_json::from_str(method.get()).ok());
    let method = method.ok_or_else(|| invalid("a call has a `method`, which is a string".to_owned()))?;
    let params = match envelope.params.map(RawValue::get) {
        None => Ok("{}"),
        Some(params) if params.starts_with('{') => Ok(params),
        Some(_) => Err(RpcError::new(codes::INVALID_PARAMS, "parameters are an object: they are given by name")),
    };
    Ok(ParsedCall { id: envelope.id, method, params })
}

/// The answer to one call.
pub(crate) struct Answer {
    /// `None`: the call could not be read as far as its id.
    pub(crate) id: Option<Box<RawValue>>,
    pub(crate) result: Result<Box<RawValue>, RpcError>,
}

impl Answer {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        out.extend_from_slice(self.id.as_ref().map_or("null", |id| id.get()).as_bytes());
        match &self.result {
            Ok(result) => {
                out.extend_from_slice(b",\"result\":");
                out.extend_from_slice(result.get().as_bytes());
            }
            Err(error) => {
                out.extend_from_slice(b",\"error\":");
                // Of plain numbers, strings and maps with string keys: it can be written.
                out.extend_from_slice(&serde_json::to_vec(error).unwrap_or_default());
            }
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::ErrorKind;
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits { batch_max: 3, depth_max: 8, ..Limits::default() }
    }

    /// The codes of what is wrong with a body, one for each call; 0 for one that is well.
    fn verdicts(body: &[u8]) -> Vec<i64> {
        match parse(body, &limits()) {
            Err(error) => vec![error.code],
            Ok(parsed) => {
                let code = |call: Result<ParsedCall<'_>, RpcError>| match call {
                    Err(error) => error.code,
                    Ok(call) => call.params.map_or_else(|error| error.code, |_| 0),
                };
                parsed.calls.into_iter().map(code).collect()
            }
        }
    }

    #[test]
    fn hostile_bodies_get_the_standard_error() {
        let (parse, request, params) = (codes::PARSE, codes::INVALID_REQUEST, codes::INVALID_PARAMS);
        let deep = "[".repeat(1_000_000);
        let deep_params =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"a":{}1{}}}}}"#, "[".repeat(7), "]".repeat(7));
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
        let many = |count: usize| format!("[{}]", vec![call; count].join(","));
        for (body, expected) in [
            (call, vec![0]),
            (&format!(" \n{call}\t"), vec![0]),
            (r#"{"jsonrpc":"2.0","id":null,"method":"m","params":{}}"#, vec![0]),
            (r#"{"jsonrpc":"2.0","id":"[[[[[[[[[[[","method":"m","params":{"a":"\"[[[[[[[["}}"#, vec![0]),
            (&many(3), vec![0; 3]),
            (&many(4), vec![request]),
            (&format!("[{call},1,{call}]"), vec![0, request, 0]),
            ("", vec![parse]),
            (" ", vec![parse]),
            ("{", vec![parse]),
            ("nul", vec![parse]),
            (&format!("{call}{call}"), vec![parse]),
            (&format!("[{call}]x"), vec![parse]),
            (&format!("[{call},"), vec![parse]),
            (&deep, vec![parse]),
            (&deep_params, vec![parse]),
            ("[]", vec![request]),
            ("1", vec![request]),
            ("null", vec![request]),
            ("\"x\"", vec![request]),
            ("[1]", vec![request]),
            ("[[1]]", vec![request]),
            ("{}", vec![request]),
            (r#"{"id":1,"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":2.0,"id":1,"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":1}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":1,"method":1}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, vec![request]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#, vec![params]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":null}"#, vec![params]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":7}"#, vec![params]),
        ] {
            assert_eq!(verdicts(body.as_bytes()), expected, "{:.100}", body);
        }
        assert_eq!(verdicts(b"\xff\xfe"), [parse]);
        assert_eq!(verdicts(b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\"}"), [parse]);
    }

    #[test]
    fn an_id_that_is_null_is_not_a_missing_one() {
        let id = |body: &str| {
            parse(body.as_bytes(), &limits()).unwrap().calls.remove(0).unwrap().id.map(RawValue::get).map(str::to_owned)
        };
        assert_eq!(id(r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#).as_deref(), Some("null"));
        assert_eq!(
            id(r#"{"jsonrpc":"2.0","id":1e400,"method":"m"}"#).as_deref(),
            Some("1e400"),
            "given back as it came"
        );
        assert_eq!(id(r#"{"jsonrpc":"2.0","method":"m"}"#), None);
    }

    #[test]
    fn errors_come_back_as_they_went() {
        for (kind, code) in codes::KINDS.iter().copied() {
            let error =
                Error::new(kind, "submit", "it\nbroke").with_help("mend it").with_retry_after(Duration::from_millis(7));
            let wire = RpcError::from(error);
            assert_eq!((wire.code, wire.message.as_str()), (code, "it broke"));
            let text = serde_json::to_string(&wire).unwrap();
            let back = serde_json::from_str::<RpcError>(&text).unwrap().into_error();
            assert_eq!((back.kind(), back.to_string().as_str()), (kind, "it broke; mend it"));
            assert_eq!(back.retry_after(), Some(Duration::from_millis(7)));
        }
        assert_eq!(RpcError::new(1, "?").into_error().kind(), ErrorKind::Internal);
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_parser(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = verdicts(&body);
        }

        #[test]
        fn no_text_of_brackets_breaks_the_parser(body in r#"[\[\]{}",:\\ 0-9a-z]{0,120}"#) {
            let _ = verdicts(body.as_bytes());
        }

        #[test]
        fn every_answer_is_json(id in "[a-z\"\\\\\u{0}-\u{20}]{0,8}", message in ".{0,20}") {
            let id = serde_json::value::to_raw_value(&id).unwrap();
            let mut out = Vec::new();
            Answer { id: Some(id), result: Err(RpcError::new(1, message.clone())) }.write(&mut out);
            let value: Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(&value["error"]["message"], &Value::from(message));
        }
    }
}
