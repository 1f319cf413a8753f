//! What host and zygote say to each other, by messages that carry descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::sys::protocol::INSTANCE_FDS;

/// A number, text, and a descriptor.
pub(crate) type Answer = (i32, String, Option<OwnedFd>);

/// Sends `message` and receives an answer.
pub(crate) fn exchange(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(INSTANCE_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    retry(|| sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL))?;
    receive(socket, RecvFlags::CMSG_CLOEXEC)
}

/// Receives an answer.
pub(crate) fn receive(socket: &OwnedFd, flags: RecvFlags) -> io::Result<Answer> {
    let mut answer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut answer)], &mut control, flags))?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let (number, text) = answer[..received.bytes].split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((i32::from_le_bytes(*number), String::from_utf8_lossy(text).into_owned(), descriptor))
}

fn retry<T>(mut operation: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
