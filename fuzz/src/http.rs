//! What clients of the daemon send: streams of bytes that may be HTTP.

use crate::daemon::{By, Daemon, TOKEN};

/// Where a stream is cut into pieces that are sent one by one. No byte of UTF-8.
const CUT: u8 = 0xff;

/// The first byte says on which socket the others go, and whether the client then says that nothing more comes. What comes
/// back, if anything, is HTTP; the daemon hangs up before long, and is still well afterwards.
pub fn http(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let daemon = Daemon::get();
    let by = if how & 1 == 0 { By::Unix } else { By::Tcp };
    let answer = daemon.exchange(by, rest.split(|byte| *byte == CUT), how & 2 == 0);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
    let sent: Vec<_> = rest.iter().copied().filter(|byte| *byte != CUT).collect();
    if by == By::Tcp && !sent.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()) {
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("\"result\""), "a stranger was served: {answer}");
    }
    daemon.check();
}

/// Requests of each kind on each socket: whole, in pieces, pipelined, with a body of either form.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"health"}"#;
    let len = call.len();
    let mut all = Vec::new();
    for (how, token) in [(0, ""), (2, ""), (3, "Authorization: Bearer 0123456789abcdef\r\n"), (3, "")] {
        let head = format!("HTTP/1.1\r\nhost: x\r\n{token}");
        for text in [
            format!("GET /metrics {head}\r\nGET /healthz HTTP/1.0\r\n\r\n"),
            format!("GET /events?task=x&tenant=a {head}Last-Event-ID: 7\r\n\r\n"),
            format!(
                "POST /rpc {head}content-length: {len}\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n{call}"
            ),
            format!(
                "POST /rpc {head}expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n{len:x}\r\n{call}\r\n0\r\n\r\n"
            ),
            format!("DELETE /nothing {head}connection: close\r\ncontent-length: 0\r\n\r\n"),
        ] {
            all.push([&[how], text.as_bytes()].concat());
            let (begin, end) = text.split_at(text.len() / 2);
            all.push([&[how], begin.as_bytes(), &[CUT], end.as_bytes()].concat());
            // Also in the middle of the token.
            if let Some(at) = text.find(TOKEN) {
                let (begin, end) = text.split_at(at + 1);
                all.push([&[how], begin.as_bytes(), &[CUT], end.as_bytes()].concat());
            }
        }
    }
    all
}
