//! What a server allows.

use std::time::Duration;

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
    /// Connections at once, of each listener. Clients share them: one, which is a process of this machine or another machine,
    /// has a half at most while nobody else has any. Default 512.
    pub connections_max: usize,
    /// Connections besides them, of each listener: those that have not shown the token where one is asked for, and those of
    /// clients that have their share. One more closes the oldest. Default 64.
    pub strangers_max: usize,
    /// Time after which such a connection is closed. Default 2 s.
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
            connections_max: 512,
            strangers_max: 64,
            stranger_time: Duration::from_secs(2),
            read_time: Duration::from_secs(15),
            write_time: Duration::from_secs(15),
            call_time: Duration::from_secs(90),
        }
    }
}
