//! A daemon, and requests to it as they are written.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::Palisade;

/// A test that waits longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that is ready. Killed when the test is over, whatever happens.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) stderr: BufReader<ChildStderr>,
    pub(crate) ready: String,
}

impl Daemon {
    pub(crate) fn start(palisade: &Palisade, options: &[&str]) -> Daemon {
        let mut command: Command = palisade.command();
        command.args(["serve", "--workers", "2"]).args(options);
        Daemon::spawn(&mut command)
    }

    /// Runs a command that becomes a daemon, and waits until it is ready.
    pub(crate) fn spawn(command: &mut Command) -> Daemon {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let ready = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the daemon ended: {said}");
            if line.starts_with("palisade: ready on ") || line.contains("\"ready on ") {
                break line;
            }
            said += &line;
        };
        Daemon { child, stderr, ready }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end. The exit code and what was said since the start.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn socket(palisade: &Palisade) -> std::path::PathBuf {
    palisade.data().join("daemon/socket")
}

/// Sends a request as it is written and gives the status and the body of the answer.
pub(crate) fn exchange(stream: &mut (impl Read + Write), head: &str, body: &[u8]) -> (u16, String) {
    let request = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    // A server that refuses a body without reading it may close first.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(crate) fn connect(palisade: &Palisade) -> UnixStream {
    let stream = UnixStream::connect(socket(palisade)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) fn post(palisade: &Palisade, body: &[u8]) -> (u16, Value) {
    let (status, body) = exchange(&mut connect(palisade), "POST /rpc HTTP/1.1", body);
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() })
}

pub(crate) fn call(palisade: &Palisade, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params }).to_string();
    let (status, answer) = post(palisade, body.as_bytes());
    assert_eq!((status, &answer["id"]), (200, &json!(7)), "{answer:#}");
    answer
}
