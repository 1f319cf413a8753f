//! What the command itself says, on standard error, and guests' output on its way out.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use palisade::text::escaped;
use palisade::{CancelToken, Error, OutputSink, OutputStream};
use tokio::sync::oneshot;

use crate::exit::Exit;
use crate::table::printable;

/// Prints an error: one line for people, or one JSON object for programs.
pub(crate) fn error(error: &Error, exit: Exit, json: bool) {
    if json {
        print_json(&serde_json::json!({ "error": error, "exit_code": exit.code() }));
    } else {
        let source = std::error::Error::source(error).map(|source| format!(" ({source})")).unwrap_or_default();
        let help = error.help().map(|help| format!("; {help}")).unwrap_or_default();
        error_line(&format!("{}{source}{help}", error.message()));
    }
}

/// Prints `palisade: error: …` on one line.
pub(crate) fn error_line(message: &str) {
    line(&paint("31;1", "palisade: error:"), message);
}

/// Prints `palisade: note: …`.
pub(crate) fn note(message: &str) {
    line(&paint("33", "palisade: note:"), message);
}

/// One line on standard error, whatever the message quotes: messages name what guests chose. That nobody reads standard
/// error changes nothing for the command.
pub(crate) fn line(head: &str, message: &str) {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr(), "{head} {}", printable(&message));
}

/// Prints a JSON object on a line of its own. A closed pipe is not our concern.
pub(crate) fn print_json(value: &serde_json::Value) {
    let _ = writeln!(io::stdout(), "{}", escaped(&value.to_string()));
}

/// Prints text. A closed pipe is not our concern.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// `text` in a colour of the ANSI codes, when standard error is a terminal that wants it.
pub(crate) fn paint(code: &str, text: &str) -> String {
    let wanted = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// What a guest wrote, on its way to a stream.
type Piece = (OutputStream, Vec<u8>);

/// Passes a guest's output on as it comes. A thread does the writing, so that a slow reader holds up nothing but the
/// output; what is under way is bounded by the guest's own quotas.
#[derive(Debug)]
pub(crate) struct Forward {
    pieces: Mutex<Option<Sender<Piece>>>,
    written: Mutex<Option<oneshot::Receiver<io::Result<()>>>>,
}

impl Forward {
    /// Starts forwarding. When the output cannot be written any more, `cancel` is cancelled.
    pub(crate) fn start(cancel: CancelToken) -> io::Result<Forward> {
        let (sender, receiver) = channel();
        let (done, written) = oneshot::channel();
        std::thread::Builder::new().name("palisade-output".into()).spawn(move || {
            let result = write_all(receiver);
            if result.is_err() {
                cancel.cancel();
            }
            // Nobody waits any more when the command was interrupted.
            let _ = done.send(result);
        })?;
        Ok(Forward { pieces: Mutex::new(Some(sender)), written: Mutex::new(Some(written)) })
    }

    /// Waits until everything is written, or cannot be.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        drop(self.pieces.lock().unwrap_or_else(PoisonError::into_inner).take());
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).take();
        match written {
            Some(written) => written.await.unwrap_or_else(|_| Err(io::Error::other("the writer's thread ended"))),
            None => Ok(()),
        }
    }
}

impl OutputSink for Forward {
    fn write(&self, stream: OutputStream, bytes: &[u8]) {
        if let Some(pieces) = &*self.pieces.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails when the writer gave up, which the cancelled call learns in its own way.
            let _ = pieces.send((stream, bytes.to_vec()));
        }
    }
}

fn write_all(pieces: Receiver<Piece>) -> io::Result<()> {
    for (stream, bytes) in pieces {
        match stream {
            OutputStream::Output => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&bytes)?;
                stdout.flush()?;
            }
            OutputStream::Error => io::stderr().write_all(&bytes)?,
            OutputStream::Log(level) => {
                writeln!(io::stderr(), "[{}] {}", level.as_str(), String::from_utf8_lossy(&bytes))?;
            }
        }
    }
    Ok(())
}
