//! System calls and functions of the C library, each with the least wrapping that makes it safe to call.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::ptr;

/// Numbers that are the same on x86-64 and AArch64 (Linux uses one table since number 424), and those that differ.
mod number {
    use std::ffi::c_long;
    pub(super) const CLONE3: c_long = 435;
    pub(super) const CLOSE_RANGE: c_long = 436;
    pub(super) const OPEN_TREE: c_long = 428;
    pub(super) const MOVE_MOUNT: c_long = 429;
    pub(super) const MOUNT_SETATTR: c_long = 442;
    pub(super) const LANDLOCK_CREATE_RULESET: c_long = 444;
    pub(super) const LANDLOCK_ADD_RULE: c_long = 445;
    pub(super) const LANDLOCK_RESTRICT_SELF: c_long = 446;
    #[cfg(target_arch = "x86_64")]
    pub(super) const PIVOT_ROOT: c_long = 155;
    #[cfg(target_arch = "x86_64")]
    pub(super) const CAPSET: c_long = 126;
    #[cfg(target_arch = "x86_64")]
    pub(super) const SECCOMP: c_long = 317;
    #[cfg(target_arch = "x86_64")]
    pub(super) const EXECVEAT: c_long = 322;
    #[cfg(target_arch = "aarch64")]
    pub(super) const PIVOT_ROOT: c_long = 41;
    #[cfg(target_arch = "aarch64")]
    pub(super) const CAPSET: c_long = 91;
    #[cfg(target_arch = "aarch64")]
    pub(super) const SECCOMP: c_long = 277;
    #[cfg(target_arch = "aarch64")]
    pub(super) const EXECVEAT: c_long = 281;
}

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: *mut c_void,
    name_len: u32,
    iov: *mut IoVec,
    iov_len: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

#[repr(C)]
struct RLimit {
    current: c_ulong,
    maximum: c_ulong,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `statvfs`; number 9 is the flags.
#[repr(C)]
struct StatVfs {
    numbers: [u64; 11],
    spare: [c_int; 6],
}

/// A `sigaction` of the C library.
#[repr(C)]
struct SigAction {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

#[repr(C)]
struct SigStack {
    base: *mut c_void,
    flags: c_int,
    size: usize,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn prctl(option: c_int, ...) -> c_int;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn sethostname(name: *const c_char, len: usize) -> c_int;
    fn setgroups(size: usize, list: *const c_uint) -> c_int;
    fn setresuid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn setresgid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn setrlimit(resource: c_int, limit: *const RLimit) -> c_int;
    fn recvmsg(fd: c_int, message: *mut MsgHdr, flags: c_int) -> isize;
    fn sendmsg(fd: c_int, message: *const MsgHdr, flags: c_int) -> isize;
    fn read(fd: c_int, to: *mut c_void, len: usize) -> isize;
    fn write(fd: c_int, from: *const c_void, len: usize) -> isize;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(directory: c_int, path: *const c_char, flags: c_int, ...) -> c_int;
    fn pipe2(ends: *mut c_int, flags: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn statvfs(path: *const c_char, found: *mut StatVfs) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int;
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn sigaction(signal: c_int, action: *const SigAction, old: *mut SigAction) -> c_int;
    fn sigaltstack(stack: *const SigStack, old: *mut SigStack) -> c_int;
    fn mallopt(option: c_int, value: c_int) -> c_int;
    fn setsid() -> c_int;
    fn umask(mask: c_uint) -> c_uint;
    fn getppid() -> c_int;
    fn _exit(code: c_int) -> !;
    static mut environ: *const *const c_char;
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(EINVAL))
}

pub(crate) const EINVAL: i32 = 22;
pub(crate) const EINTR: i32 = 4;
const EBUSY: i32 = 16;

/// Argument `index` of `main`.
pub(crate) fn argument(argv: *const *const c_char, index: usize) -> Option<String> {
    // SAFETY: `main` was called with more than `index` arguments.
    let place = unsafe { argv.add(index) };
    // SAFETY: as above.
    let argument = unsafe { place.read() };
    // SAFETY: arguments are C strings that live as long as the program.
    let text = unsafe { CStr::from_ptr(argument) };
    text.to_str().ok().map(str::to_owned)
}

pub(crate) fn parent() -> i32 {
    // SAFETY: has no preconditions.
    unsafe { getppid() }
}

/// Starts a session of its own, with no terminal, and files private to their owner.
pub(crate) fn leave_session() {
    // SAFETY: has no preconditions; failing because this is a session's leader already is as good.
    unsafe { setsid() };
    // SAFETY: has no preconditions.
    unsafe { umask(0o077) };
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: has no preconditions. Runs no destructors, which is wanted: clones share nothing that needs them.
    unsafe { _exit(code) }
}

pub(crate) fn set_process_attribute(option: i32, value: u64, third: u64) -> io::Result<()> {
    // SAFETY: the options used here take integers; unused arguments must be zero.
    check(unsafe { prctl(option, value as c_ulong, third as c_ulong, 0 as c_ulong, 0 as c_ulong) }.into()).map(drop)
}

/// Mounts. Empty `source` and `kind` stand for none.
pub(crate) fn mount_at(source: &str, target: &str, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    // SAFETY: all four are C strings that live until after the call.
    check(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) }.into())
        .map(drop)
}

pub(crate) fn unmount(target: &str, flags: i32) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: a C string that lives until after the call.
    check(unsafe { umount2(target.as_ptr(), flags) }.into()).map(drop)
}

pub(crate) fn pivot_root_here() -> io::Result<()> {
    // SAFETY: both paths are C string literals.
    check(unsafe { syscall(number::PIVOT_ROOT, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

pub(crate) fn unshare_namespaces(flags: u64) -> io::Result<()> {
    // SAFETY: the caller is single-threaded, so no other thread is surprised by changed namespaces.
    check(unsafe { unshare(flags as c_int) }.into()).map(drop)
}

pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one string.
    check(unsafe { sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Becomes user and group `id`, without supplementary groups.
pub(crate) fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: no list is passed.
    check(unsafe { setgroups(0, ptr::null()) }.into())?;
    // SAFETY: has no preconditions.
    check(unsafe { setresgid(id, id, id) }.into())?;
    // SAFETY: has no preconditions.
    check(unsafe { setresuid(id, id, id) }.into()).map(drop)
}

pub(crate) fn limit(resource: u32, value: u64) -> io::Result<()> {
    let limit = RLimit { current: value as c_ulong, maximum: value as c_ulong };
    // SAFETY: `limit` is valid for the call.
    check(unsafe { setrlimit(resource as c_int, &limit) }.into()).map(drop)
}

/// Gives up all capabilities.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    // Version 3 of the interface: two words each of effective, permitted and inheritable.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0u32; 6];
    // SAFETY: header and data have the sizes that version 3 asks for.
    check(unsafe { syscall(number::CAPSET, header.as_ptr(), none.as_ptr()) }).map(drop)
}

/// Clones this process: `Ok(None)` in the clone, `Ok(Some((pid, pidfd)))` here. The host becomes the clone's parent.
pub(crate) fn clone_for_host(flags: u64) -> io::Result<Option<(i32, i32)>> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_PARENT: u64 = 0x8000;
    let mut pidfd: c_int = -1;
    // With `CLONE_PARENT` the exit signal is this process's own and must not be given.
    let arguments =
        CloneArgs { flags: flags | CLONE_PIDFD | CLONE_PARENT, pidfd: &raw mut pidfd as u64, ..CloneArgs::default() };
    // SAFETY: like `fork`: no memory is shared with the clone, and this process has one thread. `pidfd` lives in this
    // frame and is only written by the kernel.
    let pid = check(unsafe { syscall(number::CLONE3, &raw const arguments, size_of::<CloneArgs>()) })?;
    Ok((pid != 0).then_some((pid as i32, pidfd)))
}

/// Clones this process as an ordinary child: `Ok(0)` in the clone.
pub(crate) fn clone_child(flags: u64) -> io::Result<i32> {
    let arguments = CloneArgs { flags, exit_signal: 17, ..CloneArgs::default() };
    // SAFETY: as in `clone_for_host`.
    check(unsafe { syscall(number::CLONE3, &raw const arguments, size_of::<CloneArgs>()) }).map(|pid| pid as i32)
}

pub(crate) fn close_from(first: i32) -> io::Result<()> {
    // SAFETY: the caller owns all descriptors from `first` on.
    check(unsafe { syscall(number::CLOSE_RANGE, first as c_uint, c_uint::MAX, 0 as c_uint) }).map(drop)
}

pub(crate) fn close_fd(fd: i32) {
    // SAFETY: the caller owns `fd`.
    unsafe { close(fd) };
}

pub(crate) fn open_path(path: &str, flags: i32, mode: u32) -> io::Result<i32> {
    let path = c_string(path)?;
    // SAFETY: a C string that lives until after the call.
    check(unsafe { open(path.as_ptr(), flags | O_CLOEXEC, mode) }.into()).map(|fd| fd as i32)
}

pub(crate) const O_RDWR: i32 = 2;
pub(crate) const O_PATH: i32 = 0o10000000;
pub(crate) const O_CLOEXEC: i32 = 0o2000000;

/// Opens `path` in the directory `directory`, with `flags`.
pub(crate) fn open_at(directory: i32, path: &CStr, flags: i32) -> io::Result<i32> {
    // SAFETY: a C string that lives until after the call.
    check(unsafe { openat(directory, path.as_ptr(), flags | O_CLOEXEC) }.into()).map(|fd| fd as i32)
}

/// A pipe: the end to read from, the end to write to.
pub(crate) fn pipe() -> io::Result<(i32, i32)> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { pipe2(ends.as_mut_ptr(), O_CLOEXEC) }.into()).map(|_| (ends[0], ends[1]))
}

/// Waits for the end of a child.
pub(crate) fn reap(pid: i32) {
    // SAFETY: no status is asked for.
    unsafe { waitpid(pid, ptr::null_mut(), 0) };
}

/// Flags of the mount that shows `path`, as `mount` names them.
pub(crate) fn mount_flags(path: &str) -> io::Result<u64> {
    const ST_RELATIME: u64 = 4096;
    const MS_RELATIME: u64 = 1 << 21;
    let path = c_string(path)?;
    let mut found = StatVfs { numbers: [0; 11], spare: [0; 6] };
    // SAFETY: `found` has the layout of the C library's structure on 64-bit systems.
    check(unsafe { statvfs(path.as_ptr(), &mut found) }.into())?;
    let flags = found.numbers[9];
    Ok(flags & !ST_RELATIME | if flags & ST_RELATIME != 0 { MS_RELATIME } else { 0 })
}

/// Makes `to` a copy of `from`.
pub(crate) fn duplicate(from: i32, to: i32, close_on_exec: bool) -> io::Result<()> {
    // SAFETY: the caller owns both numbers.
    check(unsafe { dup3(from, to, if close_on_exec { O_CLOEXEC } else { 0 }) }.into()).map(drop)
}

/// Reads until `to` is full. `Ok(false)`: the end came before the first byte.
pub(crate) fn read_exact(fd: i32, to: &mut [u8]) -> io::Result<bool> {
    let mut done = 0;
    while done < to.len() {
        let rest = &mut to[done..];
        // SAFETY: pointer and length are of one slice.
        match check(unsafe { read(fd, rest.as_mut_ptr().cast(), rest.len()) } as c_long) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n as usize,
            Err(error) if error.raw_os_error() == Some(EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Reads what is there, or waits for something to be there. Zero bytes: the other end is closed.
pub(crate) fn read_once(fd: i32, to: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: pointer and length are of one slice.
        match check(unsafe { read(fd, to.as_mut_ptr().cast(), to.len()) } as c_long) {
            Err(error) if error.raw_os_error() == Some(EINTR) => {}
            read => return read.map(|len| len as usize),
        }
    }
}

/// Writes all of `from`. Async-signal-safe.
pub(crate) fn write_all(fd: i32, mut from: &[u8]) -> io::Result<()> {
    while !from.is_empty() {
        // SAFETY: pointer and length are of one slice.
        match check(unsafe { write(fd, from.as_ptr().cast(), from.len()) } as c_long) {
            Ok(n) => from = &from[n as usize..],
            Err(error) if error.raw_os_error() == Some(EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Most descriptors that come with one message.
const FDS_MAX: usize = 16;
/// `SOL_SOCKET` and `SCM_RIGHTS` in a control message's header.
const RIGHTS: [u32; 2] = [1, 1];
/// A control message's header: length (64 bits), level, type.
const CONTROL_HEADER: usize = 16;

/// Receives one message and the descriptors that come with it. An empty message is the end.
pub(crate) fn receive(fd: i32, buffer: &mut [u8]) -> io::Result<(usize, Vec<i32>)> {
    const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
    const MSG_TRUNC: c_int = 0x20;
    const MSG_CTRUNC: c_int = 8;
    let mut control = [0u64; (CONTROL_HEADER + 4 * FDS_MAX) / 8];
    let mut iov = IoVec { base: buffer.as_mut_ptr().cast(), len: buffer.len() };
    let mut message = MsgHdr {
        name: ptr::null_mut(),
        name_len: 0,
        iov: &mut iov,
        iov_len: 1,
        control: control.as_mut_ptr().cast(),
        control_len: size_of_val(&control),
        flags: 0,
    };
    let len = loop {
        // SAFETY: `message` points to one buffer and one control buffer, with their lengths; all outlive the call.
        match check(unsafe { recvmsg(fd, &mut message, MSG_CMSG_CLOEXEC) } as c_long) {
            Ok(len) => break len as usize,
            Err(error) if error.raw_os_error() == Some(EINTR) => {}
            Err(error) => return Err(error),
        }
    };
    if message.flags & (MSG_TRUNC | MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(EINVAL));
    }
    let mut fds = Vec::new();
    if message.control_len >= CONTROL_HEADER {
        // The header's length covers the header itself.
        let words = (control[0] as usize).min(message.control_len).saturating_sub(CONTROL_HEADER) / 4;
        let level_and_type = [control[1] as u32, (control[1] >> 32) as u32];
        if level_and_type == RIGHTS {
            let fd_at = |index: usize| (control[2 + index / 2] >> (32 * (index % 2))) as i32;
            fds.extend((0..words).map(fd_at));
        }
    }
    Ok((len, fds))
}

/// Sends one message, with one descriptor if there is one.
pub(crate) fn send(fd: i32, bytes: &[u8], descriptor: Option<i32>) -> io::Result<()> {
    let header = (CONTROL_HEADER + 4) as u64;
    let control = [header, u64::from(RIGHTS[0]) | u64::from(RIGHTS[1]) << 32, descriptor.unwrap_or(0) as u32 as u64];
    let mut iov = IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() };
    let message = MsgHdr {
        name: ptr::null_mut(),
        name_len: 0,
        iov: &mut iov,
        iov_len: 1,
        control: if descriptor.is_some() { control.as_ptr().cast_mut().cast() } else { ptr::null_mut() },
        control_len: if descriptor.is_some() { size_of_val(&control) } else { 0 },
        flags: 0,
    };
    // SAFETY: as in `receive`; the kernel only reads.
    check(unsafe { sendmsg(fd, &message, 0) } as c_long).map(drop)
}

/// A detached copy of the mount that shows the open `directory`, beginning there.
pub(crate) fn clone_mount(directory: i32) -> io::Result<i32> {
    const OPEN_TREE_CLONE: c_uint = 1;
    const AT_EMPTY_PATH: c_uint = 0x1000;
    let flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | O_CLOEXEC as c_uint;
    // SAFETY: a C string literal.
    check(unsafe { syscall(number::OPEN_TREE, directory, c"".as_ptr(), flags) }).map(|fd| fd as i32)
}

/// Translates owners on the detached mount `tree` as the user namespace `namespace` does.
pub(crate) fn map_owners(tree: i32, namespace: i32) -> io::Result<()> {
    const AT_EMPTY_PATH: c_uint = 0x1000;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attributes = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns_fd: namespace as u64 };
    // SAFETY: `attributes` is valid for the call and passed with its size.
    check(unsafe {
        syscall(number::MOUNT_SETATTR, tree, c"".as_ptr(), AT_EMPTY_PATH, &raw const attributes, size_of::<MountAttr>())
    })
    .map(drop)
}

/// Attaches the detached mount `tree` at `target`.
pub(crate) fn attach_mount(tree: i32, target: &str) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
    const AT_FDCWD: c_int = -100;
    let target = c_string(target)?;
    // SAFETY: C strings that live until after the call.
    check(unsafe {
        syscall(number::MOVE_MOUNT, tree, c"".as_ptr(), AT_FDCWD, target.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    })
    .map(drop)
}

/// Makes a set of Landlock rules.
pub(crate) fn landlock_rules(handled: &[u64; 3]) -> io::Result<i32> {
    // Kernels before ABI 4 and 6 know shorter structures and accept longer ones only when the rest is zero.
    // SAFETY: the structure is three 64-bit words, passed with its size.
    check(unsafe { syscall(number::LANDLOCK_CREATE_RULESET, handled.as_ptr(), size_of_val(handled), 0 as c_uint) })
        .map(|fd| fd as i32)
}

/// Allows `rights` beneath the file or directory `path`.
pub(crate) fn landlock_allow(rules: i32, path: i32, rights: u64) -> io::Result<()> {
    const RULE_PATH_BENEATH: c_int = 1;
    #[repr(C, packed)]
    struct PathBeneath {
        allowed: u64,
        parent: i32,
    }
    let rule = PathBeneath { allowed: rights, parent: path };
    // SAFETY: the structure is the one of this rule type.
    check(unsafe { syscall(number::LANDLOCK_ADD_RULE, rules, RULE_PATH_BENEATH, &raw const rule, 0 as c_uint) })
        .map(drop)
}

pub(crate) fn landlock_restrict(rules: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { syscall(number::LANDLOCK_RESTRICT_SELF, rules, 0 as c_uint) }).map(drop)
}

/// Installs a system call filter (an array of `sock_filter`) in all threads.
pub(crate) fn install_filter(filter: &[u8]) -> io::Result<()> {
    const FLAG_TSYNC: c_uint = 1;
    add_filter(filter, FLAG_TSYNC).map(drop)
}

/// Installs a system call filter in this thread. The descriptor on which the kernel asks where the filter says so; `None`
/// where somebody outside is asked about this process already, and the kernel asks nobody else.
pub(crate) fn install_asking_filter(filter: &[u8]) -> io::Result<Option<i32>> {
    const FLAG_NEW_LISTENER: c_uint = 8;
    match add_filter(filter, FLAG_NEW_LISTENER) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.raw_os_error() == Some(EBUSY) => install_filter(filter).map(|()| None),
        Err(error) => Err(error),
    }
}

fn add_filter(filter: &[u8], flags: c_uint) -> io::Result<i32> {
    const SET_MODE_FILTER: c_uint = 1;
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    let len = u16::try_from(filter.len() / 8).map_err(|_| io::Error::from_raw_os_error(EINVAL))?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: `program` points to `len` instructions of 8 bytes; the kernel copies and checks them.
    check(unsafe { syscall(number::SECCOMP, SET_MODE_FILTER, flags, &raw const program) })
        .map(|listener| listener as i32)
}

/// Executes the open file `fd`. Returns only when that fails.
pub(crate) fn execute(fd: i32, arguments: &[CString], environment: &[CString]) -> io::Error {
    const AT_EMPTY_PATH: c_int = 0x1000;
    let pointers = |texts: &[CString]| {
        texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists are of C strings that outlive the call, and end with a null pointer.
    unsafe { syscall(number::EXECVEAT, fd, c"".as_ptr(), arguments.as_ptr(), environment.as_ptr(), AT_EMPTY_PATH) };
    io::Error::last_os_error()
}

/// Makes `variables` the environment of this process, for libraries loaded into it.
pub(crate) fn set_environment(variables: &[CString]) {
    let mut pointers: Vec<*const c_char> = variables.iter().map(|variable| variable.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: this process has one thread; the list is leaked, and the caller keeps the strings.
    unsafe { environ = pointers.leak().as_ptr() };
}

/// Keeps the allocator from reserving an arena of 64 MiB for each thread.
pub(crate) fn single_arena() {
    const M_ARENA_MAX: c_int = -8;
    // SAFETY: has no preconditions.
    unsafe { mallopt(M_ARENA_MAX, 1) };
}

/// A library that is loaded and stays so.
#[derive(Clone, Copy)]
pub(crate) struct Library(*mut c_void);

/// Loads a library with everything it needs. Its constructors run.
pub(crate) fn load_library(path: &str) -> Result<Library, String> {
    const RTLD_NOW: c_int = 2;
    let path = c_string(path).map_err(|error| error.to_string())?;
    // SAFETY: a C string. What the constructors do is confined by the jail, not by this program.
    let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW) };
    if !library.is_null() {
        return Ok(Library(library));
    }
    // SAFETY: has no preconditions.
    let error = unsafe { dlerror() };
    if error.is_null() {
        return Err("unknown error".to_owned());
    }
    // SAFETY: not null, so a C string that lives until the next call of this family.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
}

impl Library {
    /// The address of a symbol.
    pub(crate) fn symbol(self, name: &str) -> Option<*mut c_void> {
        let name = c_string(name).ok()?;
        // SAFETY: the library is loaded, and the name is a C string.
        let address = unsafe { dlsym(self.0, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }
}

/// Has `handler` called for `signal`, on a stack of its own.
pub(crate) fn handle_signal(
    signal: i32,
    handler: extern "C" fn(c_int, *mut SignalInfo, *mut c_void),
) -> io::Result<()> {
    const SA_SIGINFO: c_int = 4;
    const SA_ONSTACK: c_int = 0x0800_0000;
    const SA_NODEFER: c_int = 0x4000_0000;
    let action = SigAction {
        handler: handler as *const () as usize,
        mask: [0; 16],
        flags: SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
        restorer: 0,
    };
    // SAFETY: the handler has the signature that `SA_SIGINFO` asks for, and does only what handlers may.
    check(unsafe { sigaction(signal, &action, ptr::null_mut()) }.into()).map(drop)
}

/// Gives `signal` its default action again.
pub(crate) fn default_signal(signal: i32) {
    let action = SigAction { handler: 0, mask: [0; 16], flags: 0, restorer: 0 };
    // SAFETY: the default action needs no handler.
    unsafe { sigaction(signal, &action, ptr::null_mut()) };
}

/// The first fields of a `siginfo_t`, as they are for faults.
#[repr(C)]
pub(crate) struct SignalInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    pub(crate) address: usize,
}

/// If the signal's cause is an attempt to read the time stamp counter, answers it with the coarse clock in nanoseconds and
/// steps over the instruction. Async-signal-safe.
#[cfg(target_arch = "x86_64")]
pub(crate) fn answer_counter(context: *mut c_void) -> bool {
    const CLOCK_MONOTONIC_COARSE: c_long = 6;
    const CLOCK_GETTIME: c_long = 228;
    /// Of `ucontext_t`: where the registers begin, in words, and the numbers of those that matter.
    const REGISTERS: usize = 5;
    const RDX: usize = 12;
    const RAX: usize = 13;
    const RCX: usize = 14;
    const RIP: usize = 16;
    // SAFETY: the kernel passes a valid context, which is longer than this.
    let registers = unsafe { context.cast::<u64>().add(REGISTERS) };
    // SAFETY: 23 registers lie here, and nobody else uses the context while this handler runs.
    let registers = unsafe { &mut *registers.cast::<[u64; 23]>() };
    // SAFETY: for bytes of the instruction that the processor has just tried; the caller reads no more than it has.
    let byte = |index: u64| unsafe { ((registers[RIP] + index) as *const u8).read() };
    let length = match byte(0) {
        0x0f => match byte(1) {
            // RDTSC.
            0x31 => 2,
            // RDTSCP.
            0x01 if byte(2) == 0xf9 => 3,
            _ => return false,
        },
        _ => return false,
    };
    let mut time = [0i64; 2];
    // SAFETY: room for seconds and nanoseconds.
    if unsafe { syscall(CLOCK_GETTIME, CLOCK_MONOTONIC_COARSE, time.as_mut_ptr()) } != 0 {
        return false;
    }
    let count = (time[0] as u64).wrapping_mul(1_000_000_000).wrapping_add(time[1] as u64);
    registers[RAX] = count & 0xffff_ffff;
    registers[RDX] = count >> 32;
    if length == 3 {
        registers[RCX] = 0;
    }
    registers[RIP] += length;
    true
}

/// This processor's counter is not trapped.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn answer_counter(_context: *mut c_void) -> bool {
    false
}

/// Makes a stack for signal handlers, so that they also run when the stack ran over.
pub(crate) fn alternate_stack() -> io::Result<()> {
    const SIZE: usize = 64 << 10;
    let memory = vec![0u8; SIZE].leak();
    let stack = SigStack { base: memory.as_mut_ptr().cast(), flags: 0, size: SIZE };
    // SAFETY: the memory is leaked, so it stays for as long as this process lives.
    check(unsafe { sigaltstack(&stack, ptr::null_mut()) }.into()).map(drop)
}

/// One raw system call, for attacking the jail from inside.
pub(crate) fn raw(number: i64, arguments: [u64; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: only called by the self-test, with arguments that at worst make the call fail: pointers are null or to
    // strings and buffers of the caller.
    check(unsafe { syscall(number as c_long, a, b, c, d, e, f) })
}
