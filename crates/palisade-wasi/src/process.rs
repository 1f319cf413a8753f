//! The end of the guest, signals, the scheduler and sockets: what needs no state or is not offered.

use crate::errno::settle;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

impl WasiContext {
    /// Ends the guest.
    ///
    /// # Errors
    ///
    /// Always [`Stop::Exit`].
    pub fn proc_exit(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        code: i32,
    ) -> Result<Errno, Stop> {
        Err(Stop::Exit(code))
    }

    /// Would raise a signal: there are none.
    pub fn proc_raise(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        _signal: i32,
    ) -> Result<Errno, Stop> {
        Ok(Errno::NotSup)
    }

    /// Does nothing: a guest has one thread, and the backend decides when it runs.
    pub fn sched_yield(&mut self, _memory: &mut GuestMemory<'_>, _streams: &mut Streams) -> Result<Errno, Stop> {
        Ok(Errno::Success)
    }

    /// Would accept a connection: no descriptor is a socket.
    pub fn sock_accept(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _flags: i32,
        _accepted: i32,
    ) -> Result<Errno, Stop> {
        self.not_a_socket(fd)
    }

    /// Would receive: no descriptor is a socket.
    #[expect(clippy::too_many_arguments, reason = "WASI's parameters")]
    pub fn sock_recv(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _iovs: i32,
        _iovs_len: i32,
        _flags: i32,
        _nread: i32,
        _out_flags: i32,
    ) -> Result<Errno, Stop> {
        self.not_a_socket(fd)
    }

    /// Would send: no descriptor is a socket.
    #[expect(clippy::too_many_arguments, reason = "WASI's parameters")]
    pub fn sock_send(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _iovs: i32,
        _iovs_len: i32,
        _flags: i32,
        _nwritten: i32,
    ) -> Result<Errno, Stop> {
        self.not_a_socket(fd)
    }

    /// Would shut a connection down: no descriptor is a socket.
    pub fn sock_shutdown(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _how: i32,
    ) -> Result<Errno, Stop> {
        self.not_a_socket(fd)
    }

    fn not_a_socket(&mut self, fd: i32) -> Result<Errno, Stop> {
        settle(|| {
            self.descriptors().get(fd as u32)?;
            Err(Errno::NotSock.into())
        })
    }
}
