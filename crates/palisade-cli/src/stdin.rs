//! Standard input as a guest's input, read only when the guest wants it.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use palisade::Input;
use tokio::sync::mpsc::{Receiver, channel};

/// Pieces read ahead of the guest.
const PIECES_AHEAD: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// The command's own standard input.
pub(crate) fn input() -> Input {
    Input::Stream(Box::pin(Stdin(None)))
}

/// The reader's thread starts with the first look: what the guest does not read stays for the next program.
struct Stdin(Option<Receiver<io::Result<Bytes>>>);

impl Stream for Stdin {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.get_or_insert_with(start).poll_recv(context)
    }
}

fn start() -> Receiver<io::Result<Bytes>> {
    let (sender, receiver) = channel(PIECES_AHEAD);
    let failed = sender.clone();
    let reader = std::thread::Builder::new().name("palisade-stdin".into()).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let piece = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => Ok(Bytes::copy_from_slice(&buffer[..len])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let ended = piece.is_err();
            if sender.blocking_send(piece).is_err() || ended {
                return;
            }
        }
    });
    if let Err(error) = reader {
        // There is room: nothing was sent yet.
        let _ = failed.try_send(Err(error));
    }
    receiver
}
