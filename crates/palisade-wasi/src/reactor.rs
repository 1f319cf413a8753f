//! The imports of module `palisade`: how a reactor talks to its host.
//!
//! All copies are bulk copies into or out of ranges the guest names; the host never calls an allocator of the guest.
//!
//! | import | type | meaning |
//! |---|---|---|
//! | `input_len` | `() -> i32` | bytes of input |
//! | `input_read` | `(offset, ptr, len) -> i32` | copies input from `offset` on; returns the bytes copied |
//! | `output_write` | `(ptr, len)` | appends to the output |
//! | `error_write` | `(ptr, len)` | appends to the error text |
//! | `log` | `(level, ptr, len)` | one log record; 0 trace, 1 debug, 2 info, 3 warn, 4 error |
//! | `host_call` | `(name_ptr, name_len, ptr, len) -> i64` | calls a host function; low half: length of its result, high half: 0 = result, 1 = error text |
//! | `host_result_read` | `(offset, ptr, len) -> i32` | copies the last result from `offset` on; returns the bytes copied |
//!
//! All parameters are `i32`, read as unsigned. A range outside the guest's memory traps.

use std::sync::Arc;

use bytes::Bytes;
use palisade_core::{HostFunctionError, HostFunctions, Invocation, LogLevel, Resource, TraceContext};

use crate::{GuestMemory, Room, Stop, Streams};

/// Import module name.
pub const MODULE: &str = "palisade";

/// Longest name of a host function a guest may pass, in bytes.
const NAME_BYTES_MAX: u32 = 4096;

/// `input_len`.
pub fn input_len(streams: &Streams) -> u32 {
    u32::try_from(streams.whole_input().len()).unwrap_or(u32::MAX)
}

/// `input_read`.
///
/// # Errors
///
/// [`Stop::OutOfBounds`].
pub fn input_read(
    memory: &mut GuestMemory<'_>,
    streams: &mut Streams,
    offset: u32,
    ptr: u32,
    len: u32,
) -> Result<u32, Stop> {
    let copied = copy_out(memory, streams.whole_input(), offset, ptr, len)?;
    streams.count_input(copied as usize);
    Ok(copied)
}

/// `output_write`.
///
/// # Errors
///
/// [`Stop::OutOfBounds`], or [`Stop::Exceeded`] beyond the quota.
pub fn output_write(memory: &GuestMemory<'_>, streams: &mut Streams, ptr: u32, len: u32) -> Result<(), Stop> {
    streams.write_output(memory.slice(ptr, len)?)
}

/// `error_write`.
///
/// # Errors
///
/// As [`output_write`].
pub fn error_write(memory: &GuestMemory<'_>, streams: &mut Streams, ptr: u32, len: u32) -> Result<(), Stop> {
    streams.write_error(memory.slice(ptr, len)?)
}

/// `log`.
///
/// # Errors
///
/// As [`output_write`].
pub fn log(memory: &GuestMemory<'_>, streams: &mut Streams, level: u32, ptr: u32, len: u32) -> Result<(), Stop> {
    streams.write_log(LogLevel::from_guest(level), memory.slice(ptr, len)?)
}

/// The host functions granted to an instance, and the result of the last one it called.
#[derive(Debug)]
pub struct HostCalls {
    functions: Arc<HostFunctions>,
    limit: u64,
    calls: u64,
    result: Bytes,
    /// Of the function that runs.
    input_bytes: u64,
    trace: Option<Arc<TraceContext>>,
}

impl HostCalls {
    /// The granted `functions`, with at most `limit` calls (`u64::MAX` when not bounded).
    pub fn new(functions: Arc<HostFunctions>, limit: u64) -> Self {
        HostCalls { functions, limit, calls: 0, result: Bytes::new(), input_bytes: 0, trace: None }
    }

    /// Starts counting anew and forgets the last result. From now on functions are called for `trace`.
    pub fn begin_call(&mut self, trace: Option<Arc<TraceContext>>) {
        self.trace = trace;
        self.calls = 0;
        self.result = Bytes::new();
        self.input_bytes = 0;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Bytes the host holds for the guest here: the input of a running function, or the result of the last one.
    pub fn held_bytes(&self) -> u64 {
        self.result.len() as u64 + self.input_bytes
    }

    /// `host_call`, first half: starts the function. The caller awaits it and goes on with [`HostCalls::finish`]. `room` is
    /// what the memory quota leaves for the input, beside [`HostCalls::held_bytes`].
    ///
    /// # Errors
    ///
    /// [`Stop::OutOfBounds`]; [`Stop::Exceeded`] beyond a quota; [`Stop::Denied`] when the function is not granted.
    pub fn start(
        &mut self,
        memory: &GuestMemory<'_>,
        room: Room,
        name_ptr: u32,
        name_len: u32,
        ptr: u32,
        len: u32,
    ) -> Result<Invocation, Stop> {
        let name = String::from_utf8_lossy(memory.slice(name_ptr, name_len.min(NAME_BYTES_MAX))?);
        let input = memory.slice(ptr, len)?;
        if self.calls >= self.limit {
            return Err(Stop::Exceeded {
                resource: Resource::HostCalls,
                limit: self.limit,
                used: self.calls.saturating_add(1),
            });
        }
        // The last result goes before the input comes.
        let left = room.left.saturating_add(self.held_bytes());
        Room { left, ..room }.check(u64::from(len))?;
        // Copied before the function sees it: the guest may not change it under the function's eyes.
        let invocation = self.functions.invoke(&name, Bytes::copy_from_slice(input), self.trace.as_ref());
        let invocation = invocation.ok_or_else(|| Stop::Denied(format!("host_functions: {name}")))?;
        self.calls += 1;
        self.result = Bytes::new();
        self.input_bytes = u64::from(len);
        Ok(invocation)
    }

    /// `host_call`, second half: keeps the result for `host_result_read` and gives what the guest gets.
    ///
    /// # Errors
    ///
    /// [`Stop::Crashed`] when the function panicked.
    pub fn finish(&mut self, reply: Result<Result<Bytes, HostFunctionError>, String>) -> Result<u64, Stop> {
        self.input_bytes = 0;
        let (status, result) = match reply {
            Ok(Ok(result)) => (0u64, result),
            Ok(Err(HostFunctionError(message))) => (1, Bytes::from(message)),
            Err(panic) => return Err(Stop::Crashed(format!("a host function panicked: {panic}"))),
        };
        let len = u32::try_from(result.len())
            .map_err(|_| Stop::Crashed("a host function gave back more than 4 GiB".to_owned()))?;
        self.result = result;
        Ok(status << 32 | u64::from(len))
    }

    /// `host_result_read`.
    ///
    /// # Errors
    ///
    /// [`Stop::OutOfBounds`].
    pub fn result_read(&self, memory: &mut GuestMemory<'_>, offset: u32, ptr: u32, len: u32) -> Result<u32, Stop> {
        copy_out(memory, &self.result, offset, ptr, len)
    }
}

/// Copies at most `len` bytes of `from`, beginning at `offset`, to `ptr`. Returns how many.
fn copy_out(memory: &mut GuestMemory<'_>, from: &[u8], offset: u32, ptr: u32, len: u32) -> Result<u32, Stop> {
    let target = memory.slice_mut(ptr, len)?;
    let from = from.get(offset as usize..).unwrap_or_default();
    let copied = from.len().min(target.len());
    target[..copied].copy_from_slice(&from[..copied]);
    // At most `len`, which is a u32.
    Ok(copied as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamsLimits;
    use palisade_core::Input;
    use std::task::{Context, Poll, Waker};

    fn streams(input: &'static str) -> Streams {
        Streams::new(Input::from(input), None, StreamsLimits { output_bytes: 8, log_bytes: 1000 })
    }

    fn calls(limit: u64) -> HostCalls {
        let functions = HostFunctions::new()
            .add("shout", |call| async move { Ok(call.input.to_ascii_uppercase().into()) })
            .add("fail", |_| async { Err("no".into()) });
        HostCalls::new(Arc::new(functions), limit)
    }

    const ROOM: Room = Room { limit: 100, left: 100 };

    #[test]
    fn the_input_of_a_running_function_is_held_and_fits_exactly() {
        let mut bytes = *b"shout12345......";
        let memory = GuestMemory::new(&mut bytes);
        let mut calls = calls(9);
        let room = |left| Room { limit: 100, left };
        let refused = calls.start(&memory, room(4), 0, 5, 5, 5).map(|_| ());
        assert_eq!(refused, Err(Stop::Exceeded { resource: Resource::Memory, limit: 100, used: 101 }));
        assert_eq!((calls.calls(), calls.held_bytes()), (0, 0));
        let invocation = calls.start(&memory, room(5), 0, 5, 5, 5).unwrap();
        assert_eq!(calls.held_bytes(), 5);
        assert_eq!(finish(&mut calls, invocation), Ok(5));
        // Now it is the result that is held, and it makes room for the next input.
        assert_eq!(calls.held_bytes(), 5);
        assert!(calls.start(&memory, room(0), 0, 5, 5, 5).is_ok());
        calls.begin_call(None);
        assert_eq!(calls.held_bytes(), 0);
    }

    fn finish(calls: &mut HostCalls, mut invocation: Invocation) -> Result<u64, Stop> {
        let mut context = Context::from_waker(Waker::noop());
        match std::pin::Pin::new(&mut invocation).poll(&mut context) {
            Poll::Ready(reply) => calls.finish(reply),
            Poll::Pending => panic!("the test functions never wait"),
        }
    }

    #[test]
    fn input_is_copied_in_pieces() {
        let mut bytes = [0u8; 8];
        let mut memory = GuestMemory::new(&mut bytes);
        let mut streams = streams("hello");
        assert_eq!(input_len(&streams), 5);
        assert_eq!(input_read(&mut memory, &mut streams, 0, 0, 3), Ok(3));
        assert_eq!(input_read(&mut memory, &mut streams, 3, 3, 5), Ok(2));
        assert_eq!(input_read(&mut memory, &mut streams, 9, 0, 8), Ok(0));
        assert_eq!(input_read(&mut memory, &mut streams, 0, 4, 5), Err(Stop::OutOfBounds));
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!(streams.input_bytes(), 5);
    }

    #[test]
    fn output_error_and_log_go_to_their_streams() {
        let mut bytes = *b"out,err,";
        let memory = GuestMemory::new(&mut bytes);
        let mut streams = streams("");
        output_write(&memory, &mut streams, 0, 3).unwrap();
        error_write(&memory, &mut streams, 4, 3).unwrap();
        log(&memory, &mut streams, 3, 0, 7).unwrap();
        assert_eq!(output_write(&memory, &mut streams, 5, 4), Err(Stop::OutOfBounds));
        let written = streams.take_written();
        assert_eq!((&written.output[..], &written.error[..]), (&b"out"[..], &b"err"[..]));
        assert_eq!((written.log[0].level, written.log[0].message.as_str()), (LogLevel::Warn, "out,err"));
    }

    #[test]
    fn host_functions_answer_or_fail_and_are_counted() {
        let mut bytes = *b"shoutfailxyz....";
        let mut memory = GuestMemory::new(&mut bytes);
        let mut calls = calls(2);
        let invocation = calls.start(&memory, ROOM, 0, 5, 9, 3).unwrap();
        assert_eq!(calls.held_bytes(), 3);
        assert_eq!(finish(&mut calls, invocation), Ok(3));
        assert_eq!(calls.result_read(&mut memory, 1, 12, 4), Ok(2));
        let invocation = calls.start(&memory, ROOM, 5, 4, 0, 0).unwrap();
        assert_eq!(finish(&mut calls, invocation), Ok(1 << 32 | 2));
        let third = calls.start(&memory, ROOM, 0, 5, 0, 0).map(|_| ());
        assert_eq!(third, Err(Stop::Exceeded { resource: Resource::HostCalls, limit: 2, used: 3 }));
        assert_eq!(&bytes[12..14], b"YZ");
    }

    #[test]
    fn what_is_not_granted_is_denied() {
        let mut bytes = *b"open";
        let memory = GuestMemory::new(&mut bytes);
        let denied = calls(9).start(&memory, ROOM, 0, 4, 0, 0).map(|_| ());
        assert_eq!(denied, Err(Stop::Denied("host_functions: open".into())));
    }
}
