//! Waiting for clocks and streams.

use std::time::Instant;

use crate::clock::{Clock, after, realtime};
use crate::context::Pending;
use crate::descriptors::Descriptor;
use crate::errno::{Fail, settle};
use crate::layout::{Snapshot, element};
use crate::{Errno, GuestMemory, Stop, Streams, Wait, WasiContext};

/// Most subscriptions in one call: the host asks for the size of each file, which together takes half a millisecond.
const SUBSCRIPTIONS_MAX: u32 = 1024;
/// The size of an `event`.
const EVENT_BYTES: u32 = 32;
/// Kinds of event.
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;
/// The flag of a clock subscription whose timeout is a time rather than a duration.
const ABSOLUTE: u16 = 1;
/// The flag of an event about a stream at its end.
const HANGUP: u16 = 1;

/// A poll the guest is waiting in. Its timeouts count from its first time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poll {
    arguments: [u32; 4],
    began: Instant,
}

/// What a subscription came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready {
        bytes: u64,
        flags: u16,
    },
    Failed(Errno),
    /// To wait until then, or for ever.
    At(Option<Instant>),
    Input,
}

const READY: State = State::Ready { bytes: 0, flags: 0 };

impl WasiContext {
    /// Waits until something subscribed to happens.
    ///
    /// # Errors
    ///
    /// [`Stop::Wait`] when nothing has happened yet.
    pub fn poll_oneoff(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        subscriptions: i32,
        events: i32,
        count: i32,
        ready: i32,
    ) -> Result<Errno, Stop> {
        let arguments = [subscriptions, events, count, ready].map(|argument| argument as u32);
        self.poll(memory, streams, arguments, Snapshot::One)
    }

    /// [`WasiContext::poll_oneoff`] of snapshot 0.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unstable_poll_oneoff(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        subscriptions: i32,
        events: i32,
        count: i32,
        ready: i32,
    ) -> Result<Errno, Stop> {
        let arguments = [subscriptions, events, count, ready].map(|argument| argument as u32);
        self.poll(memory, streams, arguments, Snapshot::Zero)
    }

    fn poll(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        arguments: [u32; 4],
        snapshot: Snapshot,
    ) -> Result<Errno, Stop> {
        // Before anything reads the time, so that the clock's zero is never in the future of what is compared with it.
        self.monotonic_origin();
        let poll = match self.pending.take() {
            Some(Pending::Poll(poll)) if poll.arguments == arguments => poll,
            _ => Poll { arguments, began: Instant::now() },
        };
        let result = settle(|| self.poll_once(memory, streams, poll, snapshot));
        if let Err(Stop::Wait(_)) = result {
            self.pending = Some(Pending::Poll(poll));
        }
        result
    }

    fn poll_once(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        Poll { arguments: [subscriptions, events, count, ready], began }: Poll,
        snapshot: Snapshot,
    ) -> Result<(), Fail> {
        if count == 0 || count > SUBSCRIPTIONS_MAX {
            return Err(Errno::Inval.into());
        }
        memory.slice(subscriptions, element(0, count, Subscription::bytes(snapshot))?)?;
        memory.slice(events, element(0, count, EVENT_BYTES)?)?;
        memory.slice(ready, 4)?;

        let now = Instant::now();
        let mut states = Vec::with_capacity(count as usize);
        let mut wait = Wait::default();
        for index in 0..count {
            let subscription = Subscription::read(memory, subscriptions, index, snapshot)?;
            let state = match self.state(&subscription, streams, began, now)? {
                State::At(Some(time)) if time <= now => READY,
                state => state,
            };
            match state {
                State::At(Some(time)) => wait.until = Some(wait.until.map_or(time, |until| until.min(time))),
                State::Input => wait.input = true,
                State::At(None) | State::Ready { .. } | State::Failed(_) => {}
            }
            states.push((subscription, state));
        }

        let mut written = 0;
        for (subscription, state) in states {
            let (errno, bytes, flags) = match state {
                State::Ready { bytes, flags } => (Errno::Success, bytes, flags),
                State::Failed(errno) => (errno, 0, 0),
                State::At(_) | State::Input => continue,
            };
            let mut event = [0; EVENT_BYTES as usize];
            event[0..8].copy_from_slice(&subscription.userdata);
            event[8..10].copy_from_slice(&(errno as u16).to_le_bytes());
            event[10] = subscription.kind;
            event[16..24].copy_from_slice(&bytes.to_le_bytes());
            event[24..26].copy_from_slice(&flags.to_le_bytes());
            memory.write(element(events, written, EVENT_BYTES)?, &event)?;
            written += 1;
        }
        if written == 0 {
            return Err(Stop::Wait(wait).into());
        }
        Ok(memory.write_u32(ready, written)?)
    }

    fn state(
        &mut self,
        subscription: &Subscription,
        streams: &mut Streams,
        began: Instant,
        now: Instant,
    ) -> Result<State, Fail> {
        match subscription.what {
            What::Clock { id, timeout, absolute } => Ok(match (Clock::from_id(id), absolute) {
                (Err(errno), _) => State::Failed(errno),
                (Ok(_), false) => State::At(after(began, timeout)),
                (Ok(Clock::Monotonic), true) => State::At(after(self.monotonic_origin(), self.visible(timeout))),
                (Ok(Clock::Realtime), true) => State::At(after(now, self.visible(timeout).saturating_sub(realtime()?))),
            }),
            What::Descriptor { fd } => {
                let reads = subscription.kind == FD_READ;
                let descriptor = match self.descriptors().get(fd) {
                    Ok(descriptor) => descriptor,
                    Err(_) => return Ok(State::Failed(Errno::BadF)),
                };
                Ok(match descriptor {
                    Descriptor::Stdin if reads => match streams.peek_input() {
                        Ok([]) => State::Ready { bytes: 0, flags: HANGUP },
                        Ok(input) => State::Ready { bytes: input.len() as u64, flags: 0 },
                        Err(Stop::Wait(_)) => State::Input,
                        Err(stop) => return Err(stop.into()),
                    },
                    Descriptor::File(file) if reads => match file.size()?.saturating_sub(file.position) {
                        0 => State::Ready { bytes: 0, flags: HANGUP },
                        bytes => State::Ready { bytes, flags: 0 },
                    },
                    Descriptor::Stdout | Descriptor::Stderr | Descriptor::File(_) if !reads => READY,
                    _ => State::Failed(Errno::BadF),
                })
            }
        }
    }

    /// When a clock in steps shows at least `time`: a guest woken up before that would only wait again.
    fn visible(&self, time: u64) -> u64 {
        time.div_ceil(self.config.clocks.resolution()).saturating_mul(self.config.clocks.resolution())
    }
}

/// A `subscription`, decoded.
#[derive(Debug)]
struct Subscription {
    userdata: [u8; 8],
    kind: u8,
    what: What,
}

#[derive(Debug)]
enum What {
    Clock { id: u32, timeout: u64, absolute: bool },
    Descriptor { fd: u32 },
}

impl Subscription {
    fn bytes(snapshot: Snapshot) -> u32 {
        match snapshot {
            Snapshot::One => 48,
            Snapshot::Zero => 56,
        }
    }

    fn read(memory: &GuestMemory<'_>, base: u32, index: u32, snapshot: Snapshot) -> Result<Subscription, Fail> {
        let base = element(base, index, Self::bytes(snapshot))?;
        let at = |offset| element(base, offset, 1);
        // Snapshot 0 has an identifier in front of the clock, which nothing uses.
        let clock = match snapshot {
            Snapshot::One => 16,
            Snapshot::Zero => 24,
        };
        let [kind] = memory.read(at(8)?)?;
        let what = match kind {
            CLOCK => What::Clock {
                id: memory.read_u32(at(clock)?)?,
                timeout: u64::from_le_bytes(memory.read(at(clock + 8)?)?),
                absolute: match u16::from_le_bytes(memory.read(at(clock + 24)?)?) {
                    0 => false,
                    ABSOLUTE => true,
                    _ => return Err(Errno::Inval.into()),
                },
            },
            FD_READ | FD_WRITE => What::Descriptor { fd: memory.read_u32(at(16)?)? },
            _ => return Err(Errno::Inval.into()),
        };
        Ok(Subscription { userdata: memory.read(base)?, kind, what })
    }
}
