//! The native probe: one program, one verb each, performing one bounded action. Compiled by the build script.
//!
//! The verb is the first argument; without arguments it is the program's own name. An attack prints `worked`, with what it
//! got, or `refused` and the error. The suite also runs it outside any sandbox, where every attack must work: one that
//! fails everywhere proves nothing.
#![allow(unsafe_op_in_unsafe_fn)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

unsafe extern "C" {
    // Numbers in, numbers out: nothing that a caller could get wrong for this program's memory.
    fn syscall(number: i64, ...) -> i64;
    safe fn fork() -> i32;
    safe fn _exit(code: i32) -> !;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    safe fn getppid() -> i32;
    safe fn getpid() -> i32;
    safe fn getpgrp() -> i32;
    safe fn raise(signal: i32) -> i32;
    safe fn abort() -> !;
}

/// Numbers of system calls. Those from 424 on are the same everywhere.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const MMAP: i64 = 9;
    pub const MPROTECT: i64 = 10;
    pub const IOCTL: i64 = 16;
    pub const SHMGET: i64 = 29;
    pub const SHMCTL: i64 = 31;
    pub const SOCKET: i64 = 41;
    pub const SOCKETPAIR: i64 = 53;
    pub const KILL: i64 = 62;
    pub const FCNTL: i64 = 72;
    pub const FLOCK: i64 = 73;
    pub const SYSINFO: i64 = 99;
    pub const GETUID: i64 = 102;
    pub const PTRACE: i64 = 101;
    pub const PERSONALITY: i64 = 135;
    pub const PRCTL: i64 = 157;
    pub const CLOCK_GETTIME: i64 = 228;
    pub const MQ_OPEN: i64 = 240;
    pub const MQ_UNLINK: i64 = 241;
    pub const KEYCTL: i64 = 250;
    pub const UNSHARE: i64 = 272;
    pub const TIMERFD_CREATE: i64 = 283;
    pub const EVENTFD2: i64 = 290;
    pub const EPOLL_CREATE1: i64 = 291;
    pub const PIPE2: i64 = 293;
    pub const INOTIFY_INIT1: i64 = 294;
    pub const PRLIMIT64: i64 = 302;
    pub const PROCESS_VM_READV: i64 = 310;
    pub const SETRESUID: i64 = 117;
    pub const SECCOMP: i64 = 317;
    pub const MEMFD_CREATE: i64 = 319;
    pub const USERFAULTFD: i64 = 323;
    pub const GETPID: i64 = 39;
    pub const SCHED_SETAFFINITY: i64 = 203;
    pub const NAME_TO_HANDLE_AT: i64 = 303;
    pub const VMSPLICE: i64 = 278;
    pub const OPEN: i64 = 2;
    pub const CREAT: i64 = 85;
    pub const CHMOD: i64 = 90;
    pub const FCHMOD: i64 = 91;
    pub const OPENAT: i64 = 257;
    pub const MKNODAT: i64 = 259;
    pub const FCHOWNAT: i64 = 260;
    pub const FCHMODAT: i64 = 268;
    pub const TIMER_CREATE: i64 = 222;
    pub const SIGNALFD4: i64 = 289;
    pub const MSGGET: i64 = 68;
    pub const MSGCTL: i64 = 71;
    pub const SEMGET: i64 = 64;
    pub const SEMCTL: i64 = 66;
    pub const SETPRIORITY: i64 = 141;
    pub const SCHED_SETSCHEDULER: i64 = 144;
    pub const IOPRIO_SET: i64 = 251;
    pub const PROCESS_VM_WRITEV: i64 = 311;
    pub const SETRESGID: i64 = 119;
    pub const SETSID: i64 = 112;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const MMAP: i64 = 222;
    pub const MPROTECT: i64 = 226;
    pub const IOCTL: i64 = 29;
    pub const SHMGET: i64 = 194;
    pub const SHMCTL: i64 = 195;
    pub const SOCKET: i64 = 198;
    pub const SOCKETPAIR: i64 = 199;
    pub const KILL: i64 = 129;
    pub const FCNTL: i64 = 25;
    pub const FLOCK: i64 = 32;
    pub const SYSINFO: i64 = 179;
    pub const GETUID: i64 = 174;
    pub const PTRACE: i64 = 117;
    pub const PERSONALITY: i64 = 92;
    pub const PRCTL: i64 = 167;
    pub const CLOCK_GETTIME: i64 = 113;
    pub const MQ_OPEN: i64 = 180;
    pub const MQ_UNLINK: i64 = 181;
    pub const KEYCTL: i64 = 219;
    pub const UNSHARE: i64 = 97;
    pub const TIMERFD_CREATE: i64 = 85;
    pub const EVENTFD2: i64 = 19;
    pub const EPOLL_CREATE1: i64 = 20;
    pub const PIPE2: i64 = 59;
    pub const INOTIFY_INIT1: i64 = 26;
    pub const PRLIMIT64: i64 = 261;
    pub const PROCESS_VM_READV: i64 = 270;
    pub const SETRESUID: i64 = 147;
    pub const SECCOMP: i64 = 277;
    pub const MEMFD_CREATE: i64 = 279;
    pub const USERFAULTFD: i64 = 282;
    pub const GETPID: i64 = 172;
    pub const SCHED_SETAFFINITY: i64 = 122;
    pub const NAME_TO_HANDLE_AT: i64 = 264;
    pub const VMSPLICE: i64 = 75;
    pub const OPENAT: i64 = 56;
    pub const MKNODAT: i64 = 33;
    pub const FCHOWNAT: i64 = 54;
    pub const FCHMODAT: i64 = 53;
    pub const FCHMOD: i64 = 52;
    pub const TIMER_CREATE: i64 = 107;
    pub const SIGNALFD4: i64 = 74;
    pub const MSGGET: i64 = 186;
    pub const MSGCTL: i64 = 187;
    pub const SEMGET: i64 = 190;
    pub const SEMCTL: i64 = 191;
    pub const SETPRIORITY: i64 = 140;
    pub const SCHED_SETSCHEDULER: i64 = 119;
    pub const IOPRIO_SET: i64 = 30;
    pub const PROCESS_VM_WRITEV: i64 = 271;
    pub const SETRESGID: i64 = 149;
    pub const SETSID: i64 = 157;
}
const IO_URING_SETUP: i64 = 425;
const PIDFD_OPEN: i64 = 434;
const OPENAT2: i64 = 437;
const FCHMODAT2: i64 = 452;

type Attack = Result<String, std::io::Error>;

/// Waits for a child.
fn wait_for(pid: i32) {
    // SAFETY: where the status is not wanted the pointer is null, which is allowed.
    unsafe { waitpid(pid, std::ptr::null_mut(), 0) };
}

/// One raw system call.
fn call(number: i64, arguments: [u64; 6]) -> Result<i64, std::io::Error> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what arguments point to outlives the call, or the call is meant to fail: this is the hostile side, and harms itself.
    match unsafe { syscall(number, a, b, c, d, e, f) } {
        -1 => Err(std::io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn done(number: i64, arguments: [u64; 6]) -> Attack {
    call(number, arguments).map(|result| result.to_string())
}

fn refused(why: &str) -> std::io::Error {
    std::io::Error::other(why.to_owned())
}

fn attack(name: &str, argument: &str) -> Attack {
    let page = || call(number::MMAP, [0, 4096, 3, 0x22, u64::MAX, 0]);
    match name {
        // Files.
        "read-file" | "read-file-upwards" => std::fs::read_to_string(match name {
            "read-file" => argument.to_owned(),
            _ => format!("{}{}", "../".repeat(64), argument.trim_start_matches('/')),
        }),
        "stat-file" => std::fs::metadata(argument).map(|found| found.len().to_string()),
        "list-root" => {
            let names: Vec<_> = std::fs::read_dir("/")?.flatten().map(|entry| entry.file_name()).collect();
            if names.iter().any(|name| name == "etc") { Ok("etc".into()) } else { Err(refused("nothing of the host")) }
        }
        "read-proc" => std::fs::read_to_string("/proc/self/status").map(|text| text.len().to_string()),
        "read-own-memory-file" => std::fs::File::open("/proc/self/mem").map(|_| "opened".into()),
        "write-file" => std::fs::write(argument, "written").map(|()| "written".into()),
        "make-directory" => std::fs::create_dir(argument).map(|()| "made".into()),
        "remove-file" => std::fs::remove_file(argument).map(|()| "removed".into()),
        "truncate-file" => std::fs::File::options().write(true).truncate(true).open(argument).map(|_| "truncated".into()),
        "change-mode" => {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(argument, std::fs::Permissions::from_mode(0o777)).map(|()| "changed".into())
        }
        "file-handle" => {
            let path = std::ffi::CString::new(argument)?;
            let mut handle = [0u32; 64];
            handle[0] = 128;
            let mut mount = 0i32;
            let at_cwd = -100i64 as u64;
            done(number::NAME_TO_HANDLE_AT, [at_cwd, path.as_ptr() as u64, handle.as_mut_ptr() as u64, &raw mut mount as u64, 0, 0])
        }
        "rename-file" => std::fs::rename(argument, format!("{argument}-renamed")).map(|()| "renamed".into()),
        "link-file" => std::fs::hard_link(argument, format!("{argument}-linked")).map(|()| "linked".into()),
        "make-link" => std::os::unix::fs::symlink("anywhere", argument).map(|()| "made".into()),
        "make-pipe" => {
            let path = std::ffi::CString::new(argument)?;
            done(number::MKNODAT, [AT_CWD, path.as_ptr() as u64, 0o010644, 0, 0, 0])
        }
        "set-times" => {
            let file = std::fs::File::open(argument)?;
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).map(|()| "set".into())
        }
        "lock-record" => {
            // F_SETLK of the whole file, for reading. 64-bit systems lay this out alike.
            let lock = [0u64; 4];
            let file = std::fs::File::open(argument)?;
            done(number::FCNTL, [file.as_raw_fd() as u64, 6, lock.as_ptr() as u64, 0, 0, 0])
        }
        name if name.starts_with("set-id-") || name == "set-group-id" || name == "change-owner" => {
            leave_a_right(name, argument)
        }
        "lock-file" => {
            let file = std::fs::File::open(argument)?;
            done(number::FLOCK, [file.as_raw_fd() as u64, 2, 0, 0, 0, 0])
        }
        "lease-file" => {
            const F_GETLEASE: u64 = 1025;
            let file = std::fs::File::open(argument)?;
            done(number::FCNTL, [file.as_raw_fd() as u64, F_GETLEASE, 0, 0, 0, 0])
        }
        "execute-file" => {
            let status = std::process::Command::new(argument).arg("worked").output()?;
            if status.stdout.starts_with(b"worked") { Ok("executed".into()) } else { Err(refused("it did not run")) }
        }
        // Descriptors and environment.
        "inherited-descriptors" => {
            let open: Vec<_> =
                (3..4096u64).filter(|fd| call(number::FCNTL, [*fd, 1, 0, 0, 0, 0]).is_ok()).map(|fd| fd.to_string()).collect();
            if open.is_empty() { Err(refused("none")) } else { Ok(open.join(",")) }
        }
        "environment" => {
            let names: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            if names.is_empty() { Err(refused("none")) } else { Ok(names.join(",")) }
        }
        "host-name" => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| {
                let mut names = [0u8; 6 * 65];
                #[cfg(target_arch = "x86_64")]
                const UNAME: i64 = 63;
                #[cfg(not(target_arch = "x86_64"))]
                const UNAME: i64 = 160;
                call(UNAME, [names.as_mut_ptr() as u64, 0, 0, 0, 0, 0]).ok()?;
                let node = &names[65..130];
                Some(String::from_utf8_lossy(&node[..node.iter().position(|byte| *byte == 0)?]).into_owned())
            });
            match name {
                Some(name) if name.trim() == argument => Ok(name),
                _ => Err(refused("another name")),
            }
        }
        // System calls.
        "ptrace" => done(number::PTRACE, [0; 6]),
        "read-process-memory" => {
            let (secret, mut copy) = ([7u8; 8], [0u8; 8]);
            let from = [secret.as_ptr() as u64, 8];
            let to = [copy.as_mut_ptr() as u64, 8];
            let pid = call(number::GETPID, [0; 6])? as u64;
            done(number::PROCESS_VM_READV, [pid, to.as_ptr() as u64, 1, from.as_ptr() as u64, 1, 0])
        }
        "user-namespace" => done(number::UNSHARE, [0x1000_0000, 0, 0, 0, 0, 0]),
        "memfd" => done(number::MEMFD_CREATE, [c"x".as_ptr() as u64, 0, 0, 0, 0, 0]),
        "io-uring" => {
            let parameters = [0u64; 15];
            done(IO_URING_SETUP, [1, parameters.as_ptr() as u64, 0, 0, 0, 0])
        }
        "personality" => done(number::PERSONALITY, [0x0004_0000, 0, 0, 0, 0, 0]),
        "keyring" => done(number::KEYCTL, [0, -3i64 as u64, 1, 0, 0, 0]),
        "userfaultfd" => done(number::USERFAULTFD, [1, 0, 0, 0, 0, 0]),
        "change-user" => {
            let uid = call(number::GETUID, [0; 6])? as u64;
            done(number::SETRESUID, [uid, uid, uid, 0, 0, 0])
        }
        "own-filter" => {
            call(number::PRCTL, [38, 1, 0, 0, 0, 0])?;
            // One instruction: allow.
            let allow = [0x0006u16, 0, 0x0000, 0x7fff];
            let program = [1u64, allow.as_ptr() as u64];
            done(number::SECCOMP, [1, 0, program.as_ptr() as u64, 0, 0, 0])
        }
        "other-architecture" => other_architecture(),
        "device-control" => {
            // What attacks a terminal needs one; asking a pipe for its fill goes the same way.
            let mut fill = 0i32;
            done(number::IOCTL, [1, 0x541b, &raw mut fill as u64, 0, 0, 0])
        }
        "system-information" => done(number::SYSINFO, [[0u64; 64].as_mut_ptr() as u64, 0, 0, 0, 0, 0]),
        "outlive-host" => done(number::PRCTL, [1, 0, 0, 0, 0, 0]),
        "become-dumpable" => done(number::PRCTL, [4, 1, 0, 0, 0, 0]),
        // The right to change the owner of files: nobody asks whether it is used, only whether it could ever be.
        "capability" => match call(number::PRCTL, [23, 0, 0, 0, 0, 0])? {
            1 => Ok("kept".into()),
            _ => Err(refused("dropped")),
        },
        "set-limit" => raise_limit(),
        "choose-processor" => {
            let mask = [1u64; 16];
            done(number::SCHED_SETAFFINITY, [0, 128, mask.as_ptr() as u64, 0, 0, 0])
        }
        "write-process-memory" => {
            let (text, mut copy) = ([7u8; 8], [0u8; 8]);
            let from = [text.as_ptr() as u64, 8];
            let to = [copy.as_mut_ptr() as u64, 8];
            let pid = call(number::GETPID, [0; 6])? as u64;
            done(number::PROCESS_VM_WRITEV, [pid, from.as_ptr() as u64, 1, to.as_ptr() as u64, 1, 0])
        }
        "change-group" => done(number::SETRESGID, [u64::MAX, u64::MAX, u64::MAX, 0, 0, 0]),
        "new-session" => done(number::SETSID, [0; 6]),
        "set-priority" => done(number::SETPRIORITY, [0, 0, 19, 0, 0, 0]),
        "set-disk-priority" => done(number::IOPRIO_SET, [1, 0, (2 << 13) | 7, 0, 0, 0]),
        "set-scheduler" => {
            const SCHED_BATCH: u64 = 3;
            done(number::SCHED_SETSCHEDULER, [0, SCHED_BATCH, [0u64; 2].as_ptr() as u64, 0, 0, 0])
        }
        // Code.
        "writable-code" => done(number::MMAP, [0, 4096, 7, 0x22, u64::MAX, 0]),
        "make-executable" => page().and_then(|page| done(number::MPROTECT, [page as u64, 4096, 5, 0, 0, 0])),
        "replace-program" => replace_program(),
        // Objects of the kernel, more of them than the argument says: bytes held in them, or their number.
        "pipe" | "socket-pair" | "eventfd" | "epoll" => hold(name, argument.parse().unwrap_or(0)),
        // Objects of the kernel that no quota of a process counts.
        "inotify" => done(number::INOTIFY_INIT1, [0; 6]),
        "timerfd" => done(number::TIMERFD_CREATE, [1, 0, 0, 0, 0, 0]),
        "shared-memory" => {
            let id = call(number::SHMGET, [0, 4096, 0o600, 0, 0, 0])?;
            // Removed at once: it would outlive this process.
            done(number::SHMCTL, [id as u64, 0, 0, 0, 0, 0])
        }
        "find-shared-memory" => done(number::SHMGET, [argument.parse().unwrap_or(0), 0, 0, 0, 0, 0]),
        "signalfd" => done(number::SIGNALFD4, [u64::MAX, [0u64; 1].as_ptr() as u64, 8, 0, 0, 0]),
        "timer" => done(number::TIMER_CREATE, [1, 0, [0u64; 1].as_mut_ptr() as u64, 0, 0, 0]),
        // Removed at once: they would outlive this process.
        "old-message-queue" => {
            let id = call(number::MSGGET, [0, 0o1600, 0, 0, 0, 0])?;
            done(number::MSGCTL, [id as u64, 0, 0, 0, 0, 0])
        }
        "semaphore" => {
            let id = call(number::SEMGET, [0, 1, 0o1600, 0, 0, 0])?;
            done(number::SEMCTL, [id as u64, 0, 0, 0, 0, 0])
        }
        "message-queue" => {
            let name = std::ffi::CString::new(argument)?;
            let opened = done(number::MQ_OPEN, [name.as_ptr() as u64, 0o102, 0o600, 0, 0, 0]);
            let _ = call(number::MQ_UNLINK, [name.as_ptr() as u64, 0, 0, 0, 0, 0]);
            opened
        }
        // Other processes.
        "fork" => {
            let pid = fork();
            match pid {
                0 => _exit(0),
                1.. => {
                    wait_for(pid);
                    Ok("forked".into())
                }
                _ => Err(std::io::Error::last_os_error()),
            }
        }
        "fork-bomb" => {
            let mut children = Vec::new();
            for _ in 0..50 {
                match fork() {
                    0 => _exit(0),
                    pid @ 1.. => children.push(pid),
                    _ => break,
                }
            }
            children.iter().for_each(|pid| wait_for(*pid));
            if children.is_empty() { Err(std::io::Error::last_os_error()) } else { Ok(children.len().to_string()) }
        }
        "thread" => std::thread::Builder::new().spawn(|| {}).map(|thread| drop(thread.join())).map(|()| "made".into()),
        "signal-host" => match getppid() {
            0 => Err(refused("the parent is not visible")),
            pid => done(number::KILL, [pid as u64, 0, 0, 0, 0, 0]),
        },
        // A group of its own reaches nobody else.
        "signal-group" => match getpgrp() == getpid() {
            true => Err(refused("it is alone in its group")),
            false => done(number::KILL, [0; 6]),
        },
        "signal-all" => done(number::KILL, [u64::MAX, 0, 0, 0, 0, 0]),
        "descriptor-of-process" => done(PIDFD_OPEN, [argument.parse().unwrap_or(0), 0, 0, 0, 0, 0]),
        "signal-process" => done(number::KILL, [argument.parse().unwrap_or(0), 0, 0, 0, 0, 0]),
        "limits-of-process" => {
            let limit = [0u64; 2];
            done(number::PRLIMIT64, [argument.parse().unwrap_or(0), 7, 0, limit.as_ptr() as u64, 0, 0])
        }
        "clock-of-process" => {
            let pid: i64 = argument.parse().unwrap_or(1);
            let clock = (!pid << 3) | 2;
            done(number::CLOCK_GETTIME, [clock as u64, [0u64; 2].as_mut_ptr() as u64, 0, 0, 0, 0])
        }
        "splice-memory" => {
            let memory = [0u8; 16];
            let vector = [memory.as_ptr() as u64, 16];
            done(number::VMSPLICE, [1, vector.as_ptr() as u64, 0, 0, 0, 0])
        }
        // The network.
        "tcp" => {
            let address = argument.parse().map_err(|_| refused("no address"))?;
            std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(|_| "connected".into())
        }
        "listen" => std::net::TcpListener::bind("127.0.0.1:0").map(|_| "bound".into()),
        "udp" => {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            socket.send_to(b"datagram", argument).map(|_| "sent".into())
        }
        "unix-socket" => std::os::unix::net::UnixStream::connect(argument).map(|_| "connected".into()),
        "abstract-socket" => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(argument)?;
            std::os::unix::net::UnixStream::connect_addr(&address).map(|_| "connected".into())
        }
        "netlink" => done(number::SOCKET, [16, 3, 0, 0, 0, 0]),
        "vsock" => done(number::SOCKET, [40, 1, 0, 0, 0, 0]),
        _ => {
            eprintln!("no attack {name}");
            std::process::exit(64)
        }
    }
}

const AT_CWD: u64 = -100i64 as u64;

/// Resource limits that bounds of memory, time and files are made of: CPU time, file size, data, stack, files, address space.
const LIMITS: [u64; 6] = [0, 1, 2, 3, 7, 9];

/// Raises one of its limits. Whoever may raise no hard limit raises a soft one.
fn raise_limit() -> Attack {
    let mut last = refused("all are without bound already");
    for resource in LIMITS {
        let mut limit = [0u64; 2];
        call(number::PRLIMIT64, [0, resource, 0, limit.as_mut_ptr() as u64, 0, 0])?;
        let [soft, hard] = limit;
        if soft == u64::MAX {
            continue;
        }
        let raised = [soft + 1, hard.max(soft + 1)];
        match done(number::PRLIMIT64, [0, resource, raised.as_ptr() as u64, 0, 0, 0]) {
            Ok(_) => return Ok(format!("limit {resource}")),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Makes objects of one kind, and fills those that hold bytes, until there are more than `limit`.
fn hold(name: &str, limit: u64) -> Attack {
    // As many open files as it may have.
    let mut files = [0u64; 2];
    call(number::PRLIMIT64, [0, 7, 0, files.as_mut_ptr() as u64, 0, 0])?;
    files[0] = files[1];
    let _ = call(number::PRLIMIT64, [0, 7, files.as_ptr() as u64, 0, 0, 0]);
    const NONBLOCK: u64 = 0o4000;
    #[cfg(target_arch = "x86_64")]
    const WRITE: i64 = 1;
    #[cfg(not(target_arch = "x86_64"))]
    const WRITE: i64 = 64;
    let piece = [1u8; 1 << 12];
    let mut held = 0;
    loop {
        let mut ends = [0i32; 2];
        match name {
            "pipe" => call(number::PIPE2, [ends.as_mut_ptr() as u64, NONBLOCK, 0, 0, 0, 0]),
            "socket-pair" => call(number::SOCKETPAIR, [1, 1 | NONBLOCK, 0, ends.as_mut_ptr() as u64, 0, 0]),
            "eventfd" => call(number::EVENTFD2, [0; 6]),
            _ => call(number::EPOLL_CREATE1, [0; 6]),
        }
        .map_err(|error| refused(&format!("{error}, holding {held}")))?;
        let writable: &[i32] = match name {
            "pipe" => &ends[1..],
            "socket-pair" => &ends,
            _ => {
                held += 1;
                &[]
            }
        };
        for end in writable {
            while let Ok(len) = call(WRITE, [*end as u64, piece.as_ptr() as u64, piece.len() as u64, 0, 0, 0]) {
                held += len as u64;
            }
        }
        if held > limit {
            return Ok(held.to_string());
        }
    }
}

/// Tries to leave a file in `directory` that gives whoever runs it the rights of its owner, or that is somebody else's.
/// `plain` is there, and the caller's own.
fn leave_a_right(name: &str, directory: &str) -> Attack {
    const CREATE: u64 = 0o101;
    const MODE: u64 = 0o4755;
    let plain = std::ffi::CString::new(format!("{directory}/plain"))?;
    let fresh = std::ffi::CString::new(format!("{directory}/fresh"))?;
    let (plain, fresh) = (plain.as_ptr() as u64, fresh.as_ptr() as u64);
    let chmod = |mode: u64| {
        #[cfg(target_arch = "x86_64")]
        return done(number::CHMOD, [plain, mode, 0, 0, 0, 0]);
        #[cfg(not(target_arch = "x86_64"))]
        return done(number::FCHMODAT, [AT_CWD, plain, mode, 0, 0, 0]);
    };
    let openat = || done(number::OPENAT, [AT_CWD, fresh, CREATE, MODE, 0, 0]);
    // What this kernel is too old for is tried by the call it replaces.
    let or_older = |tried: Attack, older: &dyn Fn() -> Attack| match tried {
        Err(error) if error.raw_os_error() == Some(38) => older(),
        tried => tried,
    };
    let fchmodat = || done(number::FCHMODAT, [AT_CWD, plain, MODE, 0, 0, 0]);
    match name {
        "set-id-chmod" => chmod(MODE),
        "set-group-id" => chmod(0o2755),
        "set-id-fchmod" => {
            let file = std::fs::File::open(format!("{directory}/plain"))?;
            done(number::FCHMOD, [file.as_raw_fd() as u64, MODE, 0, 0, 0, 0])
        }
        "set-id-fchmodat" => fchmodat(),
        "set-id-fchmodat2" => or_older(done(FCHMODAT2, [AT_CWD, plain, MODE, 0, 0, 0]), &fchmodat),
        #[cfg(target_arch = "x86_64")]
        "set-id-open" => done(number::OPEN, [fresh, CREATE, MODE, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        "set-id-creat" => done(number::CREAT, [fresh, MODE, 0, 0, 0, 0]),
        "set-id-open" | "set-id-creat" | "set-id-openat" => openat(),
        "set-id-openat2" => {
            let how = [CREATE, MODE, 0];
            or_older(done(OPENAT2, [AT_CWD, fresh, how.as_ptr() as u64, 24, 0, 0]), &openat)
        }
        "set-id-mknodat" => done(number::MKNODAT, [AT_CWD, fresh, 0o100000 | MODE, 0, 0, 0]),
        // To whom it belongs already: nobody asks whether it is changed, only whether it could ever be.
        _ => done(number::FCHOWNAT, [AT_CWD, plain, u64::MAX, u64::MAX, 0, 0]),
    }
}

/// Asks for the process id by way of the 32-bit entry of x86-64 kernels, which has numbers of its own.
#[cfg(target_arch = "x86_64")]
fn other_architecture() -> Attack {
    let result: i64;
    // SAFETY: GETPID is 20 there; it takes nothing and changes no register but the one that is named.
    unsafe { std::arch::asm!("int 0x80", inout("rax") 20i64 => result) };
    if result > 0 { Ok(result.to_string()) } else { Err(refused("no answer")) }
}

#[cfg(not(target_arch = "x86_64"))]
fn other_architecture() -> Attack {
    Err(refused("there is no other entry"))
}

/// Becomes another program, which is this one with the verb `worked`.
fn replace_program() -> Attack {
    use std::os::unix::process::CommandExt;
    let own = std::env::current_exe().unwrap_or_else(|_| std::env::args_os().next().unwrap_or_default().into());
    Err(std::process::Command::new(own).arg("worked").exec())
}

fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + frame[7] }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().collect();
    if arguments.len() == 1 {
        let own = arguments[0].rsplit('/').next().unwrap_or_default().to_owned();
        arguments.push(own);
    }
    let text = |index: usize| arguments.get(index).map_or("", String::as_str);
    let count = |index: usize| text(index).parse::<u64>().unwrap_or(0);
    let mut out = std::io::stdout();
    match text(1) {
        "worked" => print!("worked"),
        // For the suite itself: a segment that others may find by its key, and its end.
        "make-shared-memory" => match call(number::SHMGET, [count(2), 4096, 0o1666, 0, 0, 0]) {
            Ok(id) => print!("{id}"),
            Err(error) => eprintln!("{error}"),
        },
        "remove-shared-memory" => drop(call(number::SHMCTL, [count(2), 0, 0, 0, 0, 0])),
        "attack" => match attack(text(2), text(3)) {
            Ok(got) => print!("worked {got}"),
            Err(error) => print!("refused {error}"),
        },
        "echo" => drop(std::io::copy(&mut std::io::stdin(), &mut out)),
        "arguments" => print!("{}", arguments[2..].join("\n")),
        "exit" => std::process::exit(count(2) as i32),
        "raise" => drop(raise(count(2) as i32)),
        "abort" => abort(),
        // SAFETY: none, on purpose; nothing is mapped there, so the kernel ends this process.
        "fault" => unsafe { *(8 as *mut u8) = 1 },
        "spin" => loop {
            std::hint::black_box(0);
        },
        // Burns system time.
        "spin-in-kernel" => loop {
            let _ = call(number::GETPID, [0; 6]);
        },
        // Burns about this many milliseconds, by its own clock of CPU time.
        "burn" => {
            let used = || {
                let mut time = [0u64; 2];
                let _ = call(number::CLOCK_GETTIME, [2, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
                Duration::new(time[0], time[1] as u32)
            };
            while used() < Duration::from_millis(count(2)) {}
            print!("{}", used().as_nanos());
        }
        "sleep" => std::thread::sleep(Duration::from_secs(3600)),
        "read" => drop(std::io::stdin().read_to_end(&mut Vec::new())),
        "write" => drop(out.write_all(&vec![b'x'; count(2) as usize])),
        "write-error" => drop(std::io::stderr().write_all(&vec![b'x'; count(2) as usize])),
        "flood" => while out.write_all(&[b'x'; 1 << 16]).is_ok() {},
        "touch" => {
            let mut memory: Vec<u8> = Vec::new();
            if memory.try_reserve_exact(count(2) as usize).is_err() {
                print!("refused");
                return;
            }
            memory.resize(count(2) as usize, 1);
            print!("{}", std::hint::black_box(&memory).len());
        }
        // Memory shared with nobody, which some limits forget.
        "touch-shared" => match call(number::MMAP, [0, count(2), 3, 0x21, u64::MAX, 0]) {
            Ok(address) => {
                for page in (0..count(2)).step_by(4096) {
                    // SAFETY: so many bytes were just mapped there, writable.
                    unsafe { *((address as u64 + page) as *mut u8) = 1 };
                }
                print!("{}", count(2));
            }
            Err(_) => print!("refused"),
        },
        "recurse" => print!("{}", recurse(0)),
        "open" => {
            let mut open = Vec::new();
            while let Ok(file) = std::fs::File::open(text(2)) {
                open.push(file);
            }
            print!("{}", open.len());
        }
        "fill" => {
            // Whole pages and then what still fits; no longer than a broken backend's host can bear.
            const BYTES_MAX: usize = 16 << 20;
            let mut written = 0;
            if let Ok(mut file) = std::fs::File::create(text(2)) {
                for piece in [&[1; 1 << 16][..], &[1]] {
                    while let Ok(len @ 1..) = file.write(piece) {
                        written += len;
                        if written >= BYTES_MAX {
                            break;
                        }
                    }
                }
            }
            print!("{written}");
        }
        "close-streams" => {
            for fd in 0..64u64 {
                #[cfg(target_arch = "x86_64")]
                const CLOSE: i64 = 3;
                #[cfg(not(target_arch = "x86_64"))]
                const CLOSE: i64 = 57;
                let _ = call(CLOSE, [fd, 0, 0, 0, 0, 0]);
            }
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(3600) {}
        }
        other => {
            eprintln!("no verb {other}");
            std::process::exit(64)
        }
    }
}
