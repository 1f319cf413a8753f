//! What clients of the daemon send: bodies in JSON-RPC.

use palisade_rpc::METHODS;
use serde_json::value::RawValue;

use crate::daemon::{By, Daemon};

/// The bytes are the body of a request. The daemon answers in JSON, and is still well afterwards.
pub fn rpc(data: &[u8]) {
    let daemon = Daemon::get();
    let len = data.len();
    let head = format!("POST /rpc HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
    let answer = daemon.exchange(By::Unix, [head.as_bytes(), data], false);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a body");
    // Well-formed is enough: an id comes back as it went, and need not be a number that a float holds.
    assert!(body.is_empty() || serde_json::from_str::<&RawValue>(body).is_ok(), "{body}");
    daemon.check();
}

/// Each method without and with wrong parameters, a batch, and requests that are not well.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let call = |method: &str, params: &str| {
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}").into_bytes()
    };
    let mut all: Vec<_> = METHODS.iter().map(|(method, _)| call(method, "{}")).collect();
    let task = r#"{"plugin":"echo","input":"aGVsbG8=","priority":"high","retry":{"attempts_max":2}}"#;
    all.push(call("tasks.submit", task));
    all.push(br#"{"jsonrpc":"2.0","id":1e400,"method":"health"}"#.to_vec());
    all.push(
        b"[{\"jsonrpc\":\"2.0\",\"method\":\"health\"},{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"x\"},1]".to_vec(),
    );
    all
}
