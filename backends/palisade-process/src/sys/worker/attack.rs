//! The self-test: attacks the jail from inside, the way a guest would, and names what worked.

use super::ffi;
use super::protocol::{FD_REPLY, OUTPUT, SELF_TEST_SCRATCH, frame_header};

/// Numbers of the calls that are tried.
#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const OPEN: i64 = 257;
    pub(super) const SOCKET: i64 = 41;
    pub(super) const KILL: i64 = 62;
    pub(super) const PTRACE: i64 = 101;
    pub(super) const MOUNT: i64 = 165;
    pub(super) const UNSHARE: i64 = 272;
    pub(super) const CLONE: i64 = 56;
    pub(super) const MMAP: i64 = 9;
    pub(super) const MEMFD_CREATE: i64 = 319;
    pub(super) const SETUID: i64 = 105;
    pub(super) const IO_URING_SETUP: i64 = 425;
    pub(super) const PRLIMIT: i64 = 302;
    pub(super) const EXECVE: i64 = 59;
    pub(super) const POLL: i64 = 7;
    pub(super) const FCHMODAT: i64 = 268;
    pub(super) const MKNODAT: i64 = 259;
    pub(super) const SETXATTR: i64 = 188;
}
#[cfg(not(target_arch = "x86_64"))]
mod number {
    pub(super) const OPEN: i64 = 56;
    pub(super) const SOCKET: i64 = 198;
    pub(super) const KILL: i64 = 129;
    pub(super) const PTRACE: i64 = 117;
    pub(super) const MOUNT: i64 = 40;
    pub(super) const UNSHARE: i64 = 97;
    pub(super) const CLONE: i64 = 220;
    pub(super) const MMAP: i64 = 222;
    pub(super) const MEMFD_CREATE: i64 = 279;
    pub(super) const SETUID: i64 = 146;
    pub(super) const IO_URING_SETUP: i64 = 425;
    pub(super) const PRLIMIT: i64 = 261;
    pub(super) const EXECVE: i64 = 221;
    /// There is none: descriptors are not looked at there.
    pub(super) const POLL: i64 = -1;
    pub(super) const FCHMODAT: i64 = 53;
    pub(super) const MKNODAT: i64 = 33;
    pub(super) const SETXATTR: i64 = 5;
}
/// The same everywhere.
const OPENAT2: i64 = 437;
const FCHMODAT2: i64 = 452;

/// Descriptors that are looked at together: as many as the limit on open files lets `poll` take.
const POLLED: usize = 16;
const AT_FDCWD: u64 = -100i64 as u64;

/// Those of [`POLLED`] descriptors from `first` on that are open. One call for all of them: a call for each would be most of
/// what the self-test takes.
fn open_among(first: u64) -> std::io::Result<impl Iterator<Item = u64>> {
    /// `POLLNVAL`, in the upper half of a `struct pollfd`'s second word.
    const NOT_OPEN: u64 = 32 << 16;
    // As words: the descriptor; what is asked (nothing), and the answer.
    let mut polled: [u64; POLLED] = std::array::from_fn(|place| first + place as u64);
    ffi::raw(number::POLL, [polled.as_mut_ptr() as u64, POLLED as u64, 0, 0, 0, 0])?;
    Ok((first..).zip(polled).filter(|(_, word)| word >> 32 & NOT_OPEN == 0).map(|(fd, _)| fd))
}

/// Tries everything; sends the names of what worked, separated by newlines, and ends.
///
/// The filter used for this test answers every forbidden call with an error instead of ending the process, so that all of
/// them can be tried.
pub(crate) fn run() -> ! {
    let mut worked: Vec<String> = Vec::new();
    // What may be left behind where a guest can write. Making a plain file there works, or the rest would show nothing.
    let scratch = |name: &str| ffi::c_string(&format!("{SELF_TEST_SCRATCH}/{name}")).unwrap_or_default();
    let (plain, program, device) = (scratch("plain"), scratch("program"), scratch("device"));
    if ffi::raw(number::OPEN, [AT_FDCWD, plain.as_ptr() as u64, 0o102, 0o600, 0, 0]).is_err() {
        worked.push("(no file can be made in a writable directory)".to_owned());
    }
    let mut attempt = |name: &str, number: i64, arguments: [u64; 6]| {
        if ffi::raw(number, arguments).is_ok() {
            worked.push(name.to_owned());
        }
    };
    for path in [c"/etc/passwd", c"/proc/self/environ", c"/sys", c"/", c"/tmp", c"/dev/mem"] {
        // Read-only, then to make a new file in it.
        attempt(
            &format!("open {}", path.to_string_lossy()),
            number::OPEN,
            [AT_FDCWD, path.as_ptr() as u64, 0, 0, 0, 0],
        );
    }
    let created = c"/palisade-self-test".as_ptr() as u64;
    attempt("create a file in the root", number::OPEN, [AT_FDCWD, created, 0o102, 0o600, 0, 0]);
    let (plain, program, device) = (plain.as_ptr() as u64, program.as_ptr() as u64, device.as_ptr() as u64);
    let how = [0o102u64, 0o4755, 0];
    attempt("make a set-id file", number::OPEN, [AT_FDCWD, program, 0o102, 0o4755, 0, 0]);
    attempt("make a set-id file by openat2", OPENAT2, [AT_FDCWD, program, how.as_ptr() as u64, 24, 0, 0]);
    attempt("set a set-id bit", number::FCHMODAT, [AT_FDCWD, plain, 0o2755, 0, 0, 0]);
    attempt("set a set-id bit by fchmodat2", FCHMODAT2, [AT_FDCWD, plain, 0o4755, 0, 0, 0]);
    attempt("make a device", number::MKNODAT, [AT_FDCWD, device, 0o020600, 0x103, 0, 0]);
    let capability = [1u32 | 2 << 24, u32::MAX, 0, 0, 0];
    let name = c"security.capability".as_ptr() as u64;
    attempt("give a file capabilities", number::SETXATTR, [plain, name, capability.as_ptr() as u64, 20, 0, 0]);
    attempt("signal its process group", number::KILL, [0, 0, 0, 0, 0, 0]);
    attempt("signal all processes", number::KILL, [u64::MAX, 0, 0, 0, 0, 0]);
    for (name, family) in [("unix", 1), ("inet", 2), ("inet6", 10), ("netlink", 16), ("packet", 17), ("vsock", 40)] {
        attempt(&format!("{name} socket"), number::SOCKET, [family, 1, 0, 0, 0, 0]);
    }
    // The host's process ids begin at 1 as well, but in this namespace there is nobody else.
    attempt("signal another process", number::KILL, [2, 0, 0, 0, 0, 0]);
    attempt("ptrace", number::PTRACE, [0, 0, 0, 0, 0, 0]);
    let nowhere = c"none".as_ptr() as u64;
    attempt("mount", number::MOUNT, [nowhere, c"/".as_ptr() as u64, c"tmpfs".as_ptr() as u64, 0, 0, 0]);
    attempt("unshare a user namespace", number::UNSHARE, [0x1000_0000, 0, 0, 0, 0, 0]);
    attempt("memory that is writable and executable", number::MMAP, [0, 4096, 7, 0x22, u64::MAX, 0]);
    attempt("memfd_create", number::MEMFD_CREATE, [nowhere, 0, 0, 0, 0, 0]);
    attempt("become root", number::SETUID, [0, 0, 0, 0, 0, 0]);
    attempt("io_uring", number::IO_URING_SETUP, [1, 0, 0, 0, 0, 0]);
    const RLIMIT_NOFILE: u64 = 7;
    let limit = [4096u64, 4096];
    attempt("raise a resource limit", number::PRLIMIT, [0, RLIMIT_NOFILE, limit.as_ptr() as u64, 0, 0, 0]);
    attempt("execute a program", number::EXECVE, [c"/bin/sh".as_ptr() as u64, 0, 0, 0, 0, 0]);
    // `fork` as the C library makes it: no flags but the exit signal. A child must not go on with this list.
    match ffi::raw(number::CLONE, [17, 0, 0, 0, 0, 0]) {
        Ok(0) => ffi::exit(0),
        Ok(_) => worked.push("fork".to_owned()),
        Err(_) => {}
    }
    for first in (7..4096u64).step_by(POLLED) {
        match open_among(first) {
            Ok(open) => worked.extend(open.map(|fd| format!("inherited descriptor {fd}"))),
            Err(_) => worked.push("(descriptors cannot be looked at)".to_owned()),
        }
    }
    let report = worked.join("\n");
    let _ = ffi::write_all(FD_REPLY, &frame_header(OUTPUT, report.len() as u32));
    let _ = ffi::write_all(FD_REPLY, report.as_bytes());
    ffi::exit(0)
}
