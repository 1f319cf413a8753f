//! The error numbers of WASI preview 1.

use std::io;

use crate::{OutOfBounds, Stop};

macro_rules! errnos {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal,)*) => {
        /// An error number of WASI preview 1, or [`Errno::Success`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Errno {
            $($(#[doc = $doc])+ $name = $number,)*
        }

        impl Errno {
            /// Every error number, in order.
            pub const ALL: [Errno; 77] = [$(Errno::$name),*];
        }
    };
}

errnos! {
    /// No error.
    Success = 0,
    /// Argument list too long.
    TooBig = 1,
    /// Permission denied.
    Acces = 2,
    /// Address in use.
    AddrInUse = 3,
    /// Address not available.
    AddrNotAvail = 4,
    /// Address family not supported.
    AfNoSupport = 5,
    /// Resource unavailable, or the operation would block.
    Again = 6,
    /// Connection already in progress.
    Already = 7,
    /// Bad file descriptor.
    BadF = 8,
    /// Bad message.
    BadMsg = 9,
    /// Device or resource busy.
    Busy = 10,
    /// Operation cancelled.
    Canceled = 11,
    /// No child processes.
    Child = 12,
    /// Connection aborted.
    ConnAborted = 13,
    /// Connection refused.
    ConnRefused = 14,
    /// Connection reset.
    ConnReset = 15,
    /// Resource deadlock would occur.
    DeadLk = 16,
    /// Destination address required.
    DestAddrReq = 17,
    /// Argument outside the domain of a function.
    Dom = 18,
    /// Disk quota exceeded.
    DQuot = 19,
    /// File exists.
    Exist = 20,
    /// Bad address.
    Fault = 21,
    /// File too large.
    FBig = 22,
    /// Host is unreachable.
    HostUnreach = 23,
    /// Identifier removed.
    IdRm = 24,
    /// Illegal byte sequence.
    IlSeq = 25,
    /// Operation in progress.
    InProgress = 26,
    /// Interrupted function.
    Intr = 27,
    /// Invalid argument.
    Inval = 28,
    /// Input or output error.
    Io = 29,
    /// Socket is connected.
    IsConn = 30,
    /// Is a directory.
    IsDir = 31,
    /// Too many levels of symbolic links.
    Loop = 32,
    /// Too many descriptors open.
    MFile = 33,
    /// Too many links.
    MLink = 34,
    /// Message too large.
    MsgSize = 35,
    /// Reserved.
    MultiHop = 36,
    /// File name too long.
    NameTooLong = 37,
    /// Network is down.
    NetDown = 38,
    /// Connection aborted by the network.
    NetReset = 39,
    /// Network unreachable.
    NetUnreach = 40,
    /// Too many files open in the system.
    NFile = 41,
    /// No buffer space available.
    NoBufs = 42,
    /// No such device.
    NoDev = 43,
    /// No such file or directory.
    NoEnt = 44,
    /// Executable file format error.
    NoExec = 45,
    /// No locks available.
    NoLck = 46,
    /// Reserved.
    NoLink = 47,
    /// Not enough space.
    NoMem = 48,
    /// No message of the desired type.
    NoMsg = 49,
    /// Protocol not available.
    NoProtoOpt = 50,
    /// No space left on the device.
    NoSpc = 51,
    /// Function not supported.
    NoSys = 52,
    /// The socket is not connected.
    NotConn = 53,
    /// Not a directory.
    NotDir = 54,
    /// Directory not empty.
    NotEmpty = 55,
    /// State not recoverable.
    NotRecoverable = 56,
    /// Not a socket.
    NotSock = 57,
    /// Not supported.
    NotSup = 58,
    /// Inappropriate control operation.
    NoTty = 59,
    /// No such device or address.
    NxIo = 60,
    /// Value too large.
    Overflow = 61,
    /// Previous owner died.
    OwnerDead = 62,
    /// Operation not permitted.
    Perm = 63,
    /// Broken pipe.
    Pipe = 64,
    /// Protocol error.
    Proto = 65,
    /// Protocol not supported.
    ProtoNoSupport = 66,
    /// Wrong protocol type for the socket.
    ProtoType = 67,
    /// Result too large.
    Range = 68,
    /// Read-only file system.
    RoFs = 69,
    /// Invalid seek.
    SPipe = 70,
    /// No such process.
    Srch = 71,
    /// Reserved.
    Stale = 72,
    /// Connection timed out.
    TimedOut = 73,
    /// Text file busy.
    TxtBsy = 74,
    /// Link across devices.
    XDev = 75,
    /// Capabilities insufficient.
    NotCapable = 76,
}

impl From<Errno> for i32 {
    fn from(errno: Errno) -> i32 {
        i32::from(errno as u16)
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        match rustix::io::Errno::from_io_error(&error) {
            Some(errno) => Errno::from(errno),
            // Errors of cap-std's own, such as an attempt to leave the directory, have no number.
            None => match error.kind() {
                io::ErrorKind::NotFound => Errno::NoEnt,
                io::ErrorKind::PermissionDenied => Errno::Perm,
                io::ErrorKind::AlreadyExists => Errno::Exist,
                io::ErrorKind::WouldBlock => Errno::Again,
                io::ErrorKind::InvalidInput => Errno::Inval,
                io::ErrorKind::InvalidData => Errno::IlSeq,
                io::ErrorKind::TimedOut => Errno::TimedOut,
                io::ErrorKind::Interrupted => Errno::Intr,
                io::ErrorKind::Unsupported => Errno::NotSup,
                io::ErrorKind::OutOfMemory => Errno::NoMem,
                io::ErrorKind::NotADirectory => Errno::NotDir,
                io::ErrorKind::IsADirectory => Errno::IsDir,
                io::ErrorKind::DirectoryNotEmpty => Errno::NotEmpty,
                io::ErrorKind::ReadOnlyFilesystem => Errno::RoFs,
                _ => Errno::Io,
            },
        }
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Errno {
        use rustix::io::Errno as Host;
        match errno {
            Host::TOOBIG => Errno::TooBig,
            Host::ACCESS => Errno::Acces,
            Host::ADDRINUSE => Errno::AddrInUse,
            Host::ADDRNOTAVAIL => Errno::AddrNotAvail,
            Host::AFNOSUPPORT => Errno::AfNoSupport,
            Host::AGAIN => Errno::Again,
            Host::ALREADY => Errno::Already,
            Host::BADF => Errno::BadF,
            Host::BADMSG => Errno::BadMsg,
            Host::BUSY => Errno::Busy,
            Host::CANCELED => Errno::Canceled,
            Host::CHILD => Errno::Child,
            Host::CONNABORTED => Errno::ConnAborted,
            Host::CONNREFUSED => Errno::ConnRefused,
            Host::CONNRESET => Errno::ConnReset,
            Host::DEADLK => Errno::DeadLk,
            Host::DESTADDRREQ => Errno::DestAddrReq,
            Host::DOM => Errno::Dom,
            Host::DQUOT => Errno::DQuot,
            Host::EXIST => Errno::Exist,
            Host::FAULT => Errno::Fault,
            Host::FBIG => Errno::FBig,
            Host::HOSTUNREACH => Errno::HostUnreach,
            Host::IDRM => Errno::IdRm,
            Host::ILSEQ => Errno::IlSeq,
            Host::INPROGRESS => Errno::InProgress,
            Host::INTR => Errno::Intr,
            Host::INVAL => Errno::Inval,
            Host::ISCONN => Errno::IsConn,
            Host::ISDIR => Errno::IsDir,
            Host::LOOP => Errno::Loop,
            Host::MFILE => Errno::MFile,
            Host::MLINK => Errno::MLink,
            Host::MSGSIZE => Errno::MsgSize,
            Host::MULTIHOP => Errno::MultiHop,
            Host::NAMETOOLONG => Errno::NameTooLong,
            Host::NETDOWN => Errno::NetDown,
            Host::NETRESET => Errno::NetReset,
            Host::NETUNREACH => Errno::NetUnreach,
            Host::NFILE => Errno::NFile,
            Host::NOBUFS => Errno::NoBufs,
            Host::NODEV => Errno::NoDev,
            Host::NOENT => Errno::NoEnt,
            Host::NOEXEC => Errno::NoExec,
            Host::NOLCK => Errno::NoLck,
            Host::NOLINK => Errno::NoLink,
            Host::NOMEM => Errno::NoMem,
            Host::NOMSG => Errno::NoMsg,
            Host::NOPROTOOPT => Errno::NoProtoOpt,
            Host::NOSPC => Errno::NoSpc,
            Host::NOSYS => Errno::NoSys,
            Host::NOTCONN => Errno::NotConn,
            Host::NOTDIR => Errno::NotDir,
            Host::NOTEMPTY => Errno::NotEmpty,
            Host::NOTRECOVERABLE => Errno::NotRecoverable,
            Host::NOTSOCK => Errno::NotSock,
            Host::NOTSUP => Errno::NotSup,
            Host::NOTTY => Errno::NoTty,
            Host::NXIO => Errno::NxIo,
            Host::OVERFLOW => Errno::Overflow,
            Host::OWNERDEAD => Errno::OwnerDead,
            Host::PERM => Errno::Perm,
            Host::PIPE => Errno::Pipe,
            Host::PROTO => Errno::Proto,
            Host::PROTONOSUPPORT => Errno::ProtoNoSupport,
            Host::PROTOTYPE => Errno::ProtoType,
            Host::RANGE => Errno::Range,
            Host::ROFS => Errno::RoFs,
            Host::SPIPE => Errno::SPipe,
            Host::SRCH => Errno::Srch,
            Host::STALE => Errno::Stale,
            Host::TIMEDOUT => Errno::TimedOut,
            Host::TXTBSY => Errno::TxtBsy,
            Host::XDEV => Errno::XDev,
            _ => Errno::Io,
        }
    }
}

/// How a function fails inside this crate: with a number for the guest, or by not returning to it.
#[derive(Debug)]
pub(crate) enum Fail {
    Errno(Errno),
    Stop(Stop),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        Fail::Errno(errno)
    }
}

impl From<Stop> for Fail {
    fn from(stop: Stop) -> Self {
        Fail::Stop(stop)
    }
}

impl From<OutOfBounds> for Fail {
    fn from(_: OutOfBounds) -> Self {
        Fail::Errno(Errno::Fault)
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        Fail::Errno(error.into())
    }
}

impl From<rustix::io::Errno> for Fail {
    fn from(errno: rustix::io::Errno) -> Self {
        Fail::Errno(errno.into())
    }
}

/// Runs a function's body and gives its result the shape the backends expect.
pub(crate) fn settle(body: impl FnOnce() -> Result<(), Fail>) -> Result<Errno, Stop> {
    match body() {
        Ok(()) => Ok(Errno::Success),
        Err(Fail::Errno(errno)) => Ok(errno),
        Err(Fail::Stop(stop)) => Err(stop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense() {
        for (number, errno) in Errno::ALL.into_iter().enumerate() {
            assert_eq!(i32::from(errno), number as i32);
        }
    }

    #[test]
    fn io_errors_keep_their_number_before_their_kind() {
        let error = |errno: rustix::io::Errno| Errno::from(io::Error::from(errno));
        assert_eq!(error(rustix::io::Errno::PERM), Errno::Perm);
        assert_eq!(error(rustix::io::Errno::ACCESS), Errno::Acces);
        assert_eq!(error(rustix::io::Errno::NOTEMPTY), Errno::NotEmpty);
        assert_eq!(Errno::from(io::Error::other("x")), Errno::Io);
        assert_eq!(Errno::from(io::Error::from(io::ErrorKind::PermissionDenied)), Errno::Perm);
    }
}
