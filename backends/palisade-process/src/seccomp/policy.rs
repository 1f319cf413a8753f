//! Which system calls guests may make: data, one screen per group.
//!
//! A profile is a list of groups; a later group overrides an earlier one. What no group names fails with `ENOSYS`, so
//! that C libraries fall back to older calls, and calls newer than this table fail closed.

use libc::*;

use super::program::Action::{Allow, Ask, Errno, Kill};
use super::program::{Case, Condition, Decision};
use crate::sys::protocol::FD_PROGRAM;

/// System calls that share a decision.
pub(crate) struct Group(pub(crate) &'static [(&'static [c_long], Decision)]);

const fn always(action: super::program::Action) -> Decision {
    Decision::always(action)
}

/// The bits of `mask` in 32-bit argument `argument` are `value`.
const fn bits(argument: u8, mask: u32, value: u32) -> Condition {
    Condition { argument, mask, value, wide: false }
}

/// 32-bit argument `argument` is `value`.
const fn is(argument: u8, value: i32) -> Condition {
    bits(argument, u32::MAX, value as u32)
}

/// Pointer `argument` is null.
const fn null(argument: u8) -> Condition {
    Condition { argument, mask: u32::MAX, value: 0, wide: true }
}

const fn only(cases: &'static [Case], otherwise: super::program::Action) -> Decision {
    Decision { cases, otherwise }
}

const EXEC: u32 = libc::PROT_EXEC as u32;
const WRITE: u32 = libc::PROT_WRITE as u32;
const GROWS: u32 = (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP) as u32;
/// Flags of `mmap` that no program needs, or whose memory no quota counts: huge pages above all (`MAP_HUGETLB` and the size
/// of its pages), and every flag that is newer than this table. Not `MAP_LOCKED`: a resource limit refuses that.
const MAP_REFUSED: u32 = !((libc::MAP_SHARED
    | libc::MAP_PRIVATE
    | libc::MAP_FIXED
    | libc::MAP_ANONYMOUS
    | libc::MAP_32BIT
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_LOCKED
    | libc::MAP_NORESERVE
    | libc::MAP_POPULATE
    | libc::MAP_NONBLOCK
    | libc::MAP_STACK
    | libc::MAP_FIXED_NOREPLACE) as u32);
const HUGE: u32 = libc::MAP_HUGETLB as u32;
/// Bits of a mode by which a program runs with the rights of its owner, for whoever starts it.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
/// `O_CREAT` and the bit of `O_TMPFILE` that `O_DIRECTORY` lacks: an open without either has no mode.
const CREATES: u32 = libc::O_CREAT as u32;
const TEMPORARY: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
/// Upper bit of a process id: a group of processes, or all of them.
const NEGATIVE: u32 = 1 << 31;
/// `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME` are left out.
const FUTEX_OPERATION: u32 = 127;
/// What makes a thread: memory, file system, files, signal handlers, thread group.
const CLONE_THREAD: u32 = 0x0001_0f00;
/// What C libraries and runtimes pass besides, each another choice: semaphores, TLS, thread ids, and the flag for detached
/// threads, which has had no meaning since Linux 2.6.
const CLONE_THREAD_FREE: u32 = 0x017c_0000;
/// What `fork`, `vfork` and `posix_spawn` may pass: the exit signal, `VM`, `VFORK`, and the thread id in the child.
const CLONE_PROCESS_FLAGS: u32 = 0x0120_41ff;
const AT_EMPTY_PATH: i32 = 0x1000;
const CORE: i32 = libc::RLIMIT_CORE as i32;
/// What `fcntl` does too: not to block, and to close when another program is executed.
const FIONBIO: i32 = 0x5421;
const FIOCLEX: i32 = 0x5451;
const FIONCLEX: i32 = 0x5450;

/// The only case of a call whose argument `$mode` is a mode: it holds no set-id bit. Otherwise it fails.
macro_rules! sets_id {
    ($mode:literal) => {
        only(&[(&[bits($mode, SET_ID, 0)], Allow)], Errno(EPERM))
    };
}

/// The only cases of a call that opens with `$flags`, and where those make a file, gives it `$mode`: it makes none, or one
/// without a set-id bit. Otherwise it fails.
macro_rules! opens {
    ($flags:literal, $mode:literal) => {
        only(&[(&[bits($flags, CREATES | TEMPORARY, 0)], Allow), (&[bits($mode, SET_ID, 0)], Allow)], Errno(EPERM))
    };
}

/// A signal, by a call that names it in argument `$signal`. The kernel keeps the first process of a namespace from ending by
/// what it is sent from within, as if it had asked for that; so where such a signal ends a process, the host is asked, and does
/// it ([`crate::notices`]). `$first` are cases that come before; the last says who is sent to.
macro_rules! signals {
    ($signal:literal, [$($first:expr),*], $whom:ident) => {
        only(
            &[
                $($first,)*
                // None; what ends nobody: of a child, to go on, to stop in four ways, urgent data, another size of the window.
                (&[is($signal, 0)], Allow),
                (&[is($signal, libc::SIGCHLD)], Allow),
                (&[is($signal, libc::SIGCONT)], Allow),
                (&[is($signal, libc::SIGSTOP)], Allow),
                (&[is($signal, libc::SIGTSTP)], Allow),
                (&[is($signal, libc::SIGTTIN)], Allow),
                (&[is($signal, libc::SIGTTOU)], Allow),
                (&[is($signal, libc::SIGURG)], Allow),
                (&[is($signal, libc::SIGWINCH)], Allow),
                // Those of C libraries, which handle them, and numbers that are none.
                (&[bits($signal, 32, 32)], Allow),
                (&[bits($signal, 64, 64)], Allow),
                ($whom, Ask),
            ],
            Allow,
        )
    };
}
/// To the first process.
const FIRST: &[Condition] = &[is(0, 1)];
/// To a thread of anybody.
const ANY: &[Condition] = &[];

/// Computing, own memory (never executable), own open files, signals, waiting.
pub(crate) const COMPUTE: Group = Group(&[
    (&[SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev], always(Allow)),
    (&[SYS_close, SYS_close_range, SYS_lseek, SYS_fstat, SYS_dup, SYS_dup2, SYS_dup3], always(Allow)),
    (&[SYS_brk, SYS_munmap, SYS_mremap], always(Allow)),
    (
        &[SYS_mmap],
        only(
            &[
                (&[bits(3, HUGE, HUGE)], Errno(ENOMEM)),
                (&[bits(2, EXEC, 0), bits(3, MAP_REFUSED, 0), is(4, -1)], Allow),
            ],
            Errno(EACCES),
        ),
    ),
    (&[SYS_mprotect], only(&[(&[bits(2, EXEC | GROWS, 0)], Allow)], Errno(EACCES))),
    (
        &[SYS_madvise],
        only(
            &[
                (&[is(2, libc::MADV_NORMAL)], Allow),
                (&[is(2, libc::MADV_RANDOM)], Allow),
                (&[is(2, libc::MADV_SEQUENTIAL)], Allow),
                (&[is(2, libc::MADV_WILLNEED)], Allow),
                (&[is(2, libc::MADV_DONTNEED)], Allow),
                (&[is(2, libc::MADV_FREE)], Allow),
                (&[is(2, libc::MADV_DONTDUMP)], Allow),
            ],
            Errno(EPERM),
        ),
    ),
    (
        &[SYS_futex],
        only(
            &[
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_WAIT as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_WAKE as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_REQUEUE as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_CMP_REQUEUE as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_WAKE_OP as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_WAIT_BITSET as u32)], Allow),
                (&[bits(1, FUTEX_OPERATION, libc::FUTEX_WAKE_BITSET as u32)], Allow),
            ],
            Errno(ENOSYS),
        ),
    ),
    (&[SYS_exit, SYS_exit_group, SYS_restart_syscall], always(Allow)),
    (&[SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_sigaltstack], always(Allow)),
    (&[SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_pause], always(Allow)),
    // One process by its number. A group, or all that may be reached, would be others than the guest itself.
    (&[SYS_kill], signals!(1, [(&[bits(0, NEGATIVE, NEGATIVE)], Errno(EPERM)), (&[is(0, 0)], Errno(EPERM))], FIRST)),
    (&[SYS_tgkill], signals!(2, [], FIRST)),
    (&[SYS_tkill], signals!(1, [], ANY)),
    (&[SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6], always(Allow)),
    (&[SYS_sched_yield, SYS_sched_getaffinity, SYS_getcpu], always(Allow)),
    (
        &[SYS_sched_getparam, SYS_sched_getscheduler, SYS_sched_get_priority_max, SYS_sched_get_priority_min],
        always(Allow),
    ),
    (&[SYS_getpid, SYS_getppid, SYS_gettid, SYS_getpgrp, SYS_getpgid, SYS_getsid, SYS_getpriority], always(Allow)),
    (&[SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups], always(Allow)),
    (&[SYS_set_tid_address, SYS_set_robust_list, SYS_get_robust_list, SYS_rseq, SYS_membarrier], always(Allow)),
    (&[SYS_getrandom, SYS_uname, SYS_getrlimit, SYS_getrusage, SYS_times], always(Allow)),
    // Its own limits it may lower; what a quota set, hard limits hold.
    // Not that on core dumps: with 1 the kernel starts no program of the host's for them, with 0 it would. There are none, so
    // whoever wants none has what it wants.
    (
        &[SYS_prlimit64],
        only(&[(&[null(2)], Allow), (&[is(0, 0), is(1, CORE)], Errno(0)), (&[is(0, 0)], Allow)], Errno(EPERM)),
    ),
    (&[SYS_setrlimit], only(&[(&[is(0, CORE)], Errno(0))], Allow)),
    (
        &[SYS_prctl],
        only(
            &[
                (&[is(0, libc::PR_SET_NAME)], Allow),
                (&[is(0, libc::PR_GET_NAME)], Allow),
                (&[is(0, libc::PR_GET_DUMPABLE)], Allow),
                (&[is(0, libc::PR_SET_DUMPABLE), is(1, 0)], Allow),
                // Set already, for good.
                (&[is(0, libc::PR_SET_NO_NEW_PRIVS)], Allow),
                (&[is(0, libc::PR_GET_NO_NEW_PRIVS)], Allow),
            ],
            Errno(EPERM),
        ),
    ),
    (
        &[SYS_fcntl],
        only(
            &[
                (&[is(1, libc::F_DUPFD)], Allow),
                (&[is(1, libc::F_DUPFD_CLOEXEC)], Allow),
                (&[is(1, libc::F_GETFD)], Allow),
                (&[is(1, libc::F_SETFD)], Allow),
                (&[is(1, libc::F_GETFL)], Allow),
                (&[is(1, libc::F_SETFL)], Allow),
                (&[is(1, libc::F_GETPIPE_SZ)], Allow),
                // Locks on files that are shared are a channel between guests. Not `ENOLCK`, nor an error by which others
                // hold the lock: programs try these again for a long time.
                (&[is(1, libc::F_GETLK)], Errno(EPERM)),
                (&[is(1, libc::F_SETLK)], Errno(EPERM)),
                (&[is(1, libc::F_SETLKW)], Errno(EPERM)),
                (&[is(1, libc::F_SETPIPE_SZ)], Errno(EPERM)),
            ],
            // As a kernel that does not know the command: locks of open files, leases, seals.
            Errno(EINVAL),
        ),
    ),
    // As a file system that has no locks.
    (&[SYS_flock], always(Errno(EOPNOTSUPP))),
    (
        &[SYS_ioctl],
        only(&[(&[is(1, FIONBIO)], Allow), (&[is(1, FIOCLEX)], Allow), (&[is(1, FIONCLEX)], Allow)], Errno(ENOTTY)),
    ),
    (&[SYS_clone, SYS_fork, SYS_vfork], always(Errno(EAGAIN))),
    (&[SYS_execve, SYS_execveat], always(Errno(EPERM))),
    (
        &[SYS_socket, SYS_socketpair, SYS_connect, SYS_bind, SYS_sendto, SYS_sendmsg, SYS_sendmmsg],
        always(Errno(EACCES)),
    ),
    (&[SYS_setsockopt, SYS_getsockopt], always(Errno(ENOPROTOOPT))),
    (
        &[SYS_open, SYS_openat, SYS_creat, SYS_stat, SYS_lstat, SYS_newfstatat, SYS_access, SYS_faccessat],
        always(Errno(EACCES)),
    ),
    (&[SYS_readlink, SYS_readlinkat, SYS_getcwd, SYS_chdir], always(Errno(EACCES))),
    // C libraries fall back to calls whose arguments a filter can see.
    (&[SYS_clone3, SYS_openat2, SYS_statx], always(Errno(ENOSYS))),
    // Says more about the machine and its other users than a guest needs.
    (&[SYS_sysinfo], always(Errno(ENOSYS))),
    (&[SYS_sched_setaffinity, SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_setattr], always(Errno(EPERM))),
    (&[SYS_setpriority, SYS_ioprio_set], always(Errno(EPERM))),
    // Who it is it knows; which personality it has is no secret.
    (&[SYS_personality], only(&[(&[is(0, -1)], Allow), (&[is(0, 0)], Allow)], Errno(EPERM))),
]);

/// Clocks of full resolution, and timers.
pub(crate) const CLOCKS_FINE: Group = Group(&[
    (
        &[SYS_clock_gettime, SYS_clock_getres],
        only(
            &[
                (&[is(0, libc::CLOCK_REALTIME)], Allow),
                (&[is(0, libc::CLOCK_MONOTONIC)], Allow),
                (&[is(0, libc::CLOCK_PROCESS_CPUTIME_ID)], Allow),
                (&[is(0, libc::CLOCK_THREAD_CPUTIME_ID)], Allow),
                (&[is(0, libc::CLOCK_MONOTONIC_RAW)], Allow),
                (&[is(0, libc::CLOCK_REALTIME_COARSE)], Allow),
                (&[is(0, libc::CLOCK_MONOTONIC_COARSE)], Allow),
                (&[is(0, libc::CLOCK_BOOTTIME)], Allow),
            ],
            Errno(libc::EINVAL),
        ),
    ),
    (&[SYS_gettimeofday, SYS_time, SYS_nanosleep, SYS_clock_nanosleep], always(Allow)),
    (&[SYS_setitimer, SYS_getitimer, SYS_alarm], always(Allow)),
]);

/// Clocks that advance with the kernel's tick only; no timers. With the time stamp counter trapped, nothing finer is left.
pub(crate) const CLOCKS_COARSE: Group = Group(&[
    (
        &[SYS_clock_gettime, SYS_clock_getres],
        only(
            &[(&[is(0, libc::CLOCK_REALTIME_COARSE)], Allow), (&[is(0, libc::CLOCK_MONOTONIC_COARSE)], Allow)],
            Errno(libc::EINVAL),
        ),
    ),
    (&[SYS_time], always(Allow)),
    // These give or measure time of full resolution.
    (&[SYS_gettimeofday, SYS_nanosleep, SYS_clock_nanosleep, SYS_getrusage, SYS_times], always(Errno(EPERM))),
    (&[SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6, SYS_rt_sigtimedwait], always(Errno(EPERM))),
    (&[SYS_setitimer, SYS_getitimer, SYS_alarm], always(Errno(EPERM))),
]);

/// Files by path. What exists is decided by the private root, what may be done with it by its mounts and Landlock.
pub(crate) const FILES: Group = Group(&[
    (&[SYS_stat, SYS_lstat, SYS_newfstatat, SYS_access, SYS_faccessat], always(Allow)),
    // Whatever makes a file or changes its mode, each by the argument that holds the mode. Also what cannot see such a bit
    // (`openat2`, `fchmodat2`, calls that are newer) fails: it is in no group.
    (&[SYS_open], opens!(1, 2)),
    (&[SYS_openat], opens!(2, 3)),
    (&[SYS_creat, SYS_mkdir, SYS_chmod, SYS_fchmod], sets_id!(1)),
    (&[SYS_mkdirat, SYS_fchmodat], sets_id!(2)),
    (&[SYS_faccessat2, SYS_readlink, SYS_readlinkat, SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_getdents64], always(Allow)),
    (&[SYS_statfs, SYS_fstatfs, SYS_umask, SYS_fadvise64, SYS_sendfile, SYS_copy_file_range], always(Allow)),
    (&[SYS_rmdir, SYS_unlink, SYS_unlinkat, SYS_rename, SYS_renameat, SYS_renameat2], always(Allow)),
    (&[SYS_link, SYS_linkat, SYS_symlink, SYS_symlinkat, SYS_utimensat], always(Allow)),
    (&[SYS_truncate, SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_sync_file_range], always(Allow)),
    (&[SYS_chown, SYS_fchown, SYS_lchown, SYS_fchownat, SYS_mknod, SYS_mknodat, SYS_sync], always(Errno(EPERM))),
    // As a file system that has none.
    (
        &[SYS_getxattr, SYS_lgetxattr, SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr],
        always(Errno(EOPNOTSUPP)),
    ),
    (
        &[SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr],
        always(Errno(EOPNOTSUPP)),
    ),
    // Mappings of files, but none that can be executed.
    (
        &[SYS_mmap],
        only(
            &[(&[bits(3, HUGE, HUGE)], Errno(ENOMEM)), (&[bits(2, EXEC, 0), bits(3, MAP_REFUSED, 0)], Allow)],
            Errno(EACCES),
        ),
    ),
]);

/// Loading code: files mapped executable, but never memory that was or can be written.
pub(crate) const LOAD_CODE: Group = Group(&[(
    &[SYS_mmap],
    only(
        &[
            (&[bits(3, HUGE, HUGE)], Errno(ENOMEM)),
            (&[bits(2, EXEC, 0), bits(3, MAP_REFUSED, 0)], Allow),
            (&[is(4, -1)], Errno(EACCES)),
            (&[bits(2, WRITE, WRITE)], Errno(EACCES)),
            (&[bits(3, MAP_REFUSED, 0)], Allow),
        ],
        Errno(EACCES),
    ),
)]);

/// Making code: any protection of its own memory. Comes after [`LOAD_CODE`].
pub(crate) const MAKE_CODE: Group = Group(&[
    (&[SYS_mmap], only(&[(&[bits(3, HUGE, HUGE)], Errno(ENOMEM)), (&[bits(3, MAP_REFUSED, 0)], Allow)], Errno(EACCES))),
    (&[SYS_mprotect], only(&[(&[bits(2, GROWS, 0)], Allow)], Errno(EACCES))),
]);

/// What a C library does when a program starts.
pub(crate) const START: Group = Group(&[
    // The program itself, by its descriptor.
    (&[SYS_execveat], only(&[(&[is(0, FD_PROGRAM), is(4, AT_EMPTY_PATH)], Allow)], Errno(EPERM))),
    #[cfg(target_arch = "x86_64")]
    // ARCH_SET_FS, ARCH_GET_FS, and the shadow stack's ARCH_CET_STATUS, which fails harmlessly.
    (&[SYS_arch_prctl], only(&[(&[is(0, 0x1002)], Allow), (&[is(0, 0x1003)], Allow)], Errno(libc::EINVAL))),
]);

/// Adding a filter, which can only take rights away. Comes after [`FORBIDDEN`].
///
/// A hostile constructor can keep the worker's second filter away, and stays with the rights it had: those of loading.
pub(crate) const LOCK: Group = Group(&[(&[SYS_seccomp], only(&[(&[is(0, 1), is(1, 1)], Allow)], Kill))]);

/// Threads, as any C library and Go make them.
pub(crate) const THREADS: Group =
    Group(&[(&[SYS_clone], only(&[(&[bits(0, !CLONE_THREAD_FREE, CLONE_THREAD)], Allow)], Errno(EAGAIN)))]);

/// Child processes.
pub(crate) const PROCESSES: Group = Group(&[
    (&[SYS_clone], only(&[(&[bits(0, !CLONE_PROCESS_FLAGS, 0)], Allow)], Errno(EPERM))),
    (&[SYS_fork, SYS_vfork, SYS_execve, SYS_execveat, SYS_wait4, SYS_waitid], always(Allow)),
    // Processes of its own namespace, which is all that it can name.
    (&[SYS_pidfd_open, SYS_pidfd_send_signal], always(Allow)),
    // Its groups are its own: an instance begins a session, and its process namespace ends with it.
    (&[SYS_pipe, SYS_pipe2, SYS_setpgid, SYS_setsid], always(Allow)),
    (&[SYS_kill], signals!(1, [], FIRST)),
]);

/// Child processes and threads. Comes after both.
pub(crate) const PROCESSES_AND_THREADS: Group = Group(&[(
    &[SYS_clone],
    only(
        &[(&[bits(0, !CLONE_THREAD_FREE, CLONE_THREAD)], Allow), (&[bits(0, !CLONE_PROCESS_FLAGS, 0)], Allow)],
        Errno(EAGAIN),
    ),
)]);

/// Objects of the kernel within a process, where its memory quota counts them: pipes and pairs of sockets, which nobody else
/// holds the other end of, and what waits for them.
pub(crate) const OBJECTS: Group = Group(&[
    (&[SYS_pipe, SYS_pipe2, SYS_eventfd, SYS_eventfd2], always(Allow)),
    (&[SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait], always(Allow)),
    (&[SYS_epoll_pwait2], always(Allow)),
    (&[SYS_socketpair], only(&[(&[is(0, libc::AF_UNIX)], Allow)], Errno(EACCES))),
    // Only to the other end: with an address it could be a socket that lies in a granted directory. Nor by `sendmsg`, whose
    // address no filter can see, and by which descriptors travel that nobody counts.
    (&[SYS_sendto], only(&[(&[null(4)], Allow)], Errno(EACCES))),
    (&[SYS_recvfrom, SYS_recvmsg, SYS_shutdown, SYS_getsockname, SYS_getpeername], always(Allow)),
    (
        &[SYS_getsockopt],
        only(
            &[
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_TYPE)], Allow),
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_ERROR)], Allow),
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_DOMAIN)], Allow),
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_PROTOCOL)], Allow),
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_SNDBUF)], Allow),
                (&[is(1, libc::SOL_SOCKET), is(2, libc::SO_RCVBUF)], Allow),
            ],
            Errno(ENOPROTOOPT),
        ),
    ),
]);

/// Record locks of a guest that is one process and was given no directory of the host: what it can write to, nobody else can
/// reach, and a lock that nobody can hold against it is granted without asking the kernel. (A lock that the kernel holds could
/// be seen by others, on files that all guests share, such as devices.) Whether a lock would be granted the kernel may say:
/// nobody among the guests holds any.
pub(crate) const OWN_LOCKS: Group = Group(&[(
    &[SYS_fcntl],
    only(
        &[
            (&[is(1, libc::F_DUPFD)], Allow),
            (&[is(1, libc::F_DUPFD_CLOEXEC)], Allow),
            (&[is(1, libc::F_GETFD)], Allow),
            (&[is(1, libc::F_SETFD)], Allow),
            (&[is(1, libc::F_GETFL)], Allow),
            (&[is(1, libc::F_SETFL)], Allow),
            (&[is(1, libc::F_GETPIPE_SZ)], Allow),
            (&[is(1, libc::F_SETLK)], Errno(0)),
            (&[is(1, libc::F_SETLKW)], Errno(0)),
            (&[is(1, libc::F_GETLK)], Allow),
        ],
        Errno(EINVAL),
    ),
)]);

/// What no guest is given. What only an attack asks for ends it, and is named; what programs and libraries try as they start,
/// or by which they would confine themselves, fails as where the kernel does not have it or does not allow it.
pub(crate) const FORBIDDEN: Group = Group(&[
    (&[SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise, SYS_kcmp], always(Kill)),
    (&[SYS_pidfd_getfd, SYS_bpf, SYS_open_by_handle_at], always(Kill)),
    (&[SYS_mount, SYS_umount2, SYS_fsopen, SYS_fsmount, SYS_fsconfig, SYS_open_tree, SYS_move_mount], always(Kill)),
    (&[SYS_mount_setattr, SYS_pivot_root, SYS_setns, SYS_unshare], always(Kill)),
    (&[SYS_kexec_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_reboot, SYS_acct], always(Kill)),
    (&[SYS_swapon, SYS_swapoff], always(Kill)),
    (&[SYS_perf_event_open, SYS_userfaultfd, SYS_chroot, SYS_quotactl, SYS_syslog], always(Errno(EPERM))),
    (&[SYS_sethostname, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex], always(Errno(EPERM))),
    (&[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register], always(Errno(ENOSYS))),
    (&[SYS_keyctl, SYS_add_key, SYS_request_key], always(Errno(ENOSYS))),
    (&[SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self], always(Errno(ENOSYS))),
    (&[SYS_seccomp], always(Errno(EINVAL))),
    (&[SYS_memfd_create, SYS_memfd_secret, SYS_vmsplice], always(Errno(ENOSYS))),
    (&[SYS_shmget, SYS_shmat, SYS_shmctl, SYS_semget, SYS_msgget], always(Errno(ENOSYS))),
    (&[SYS_name_to_handle_at], always(Errno(EOPNOTSUPP))),
    (&[SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid], always(Errno(EPERM))),
    (&[SYS_setgroups, SYS_setfsuid, SYS_setfsgid, SYS_capset], always(Errno(EPERM))),
    (&[SYS_mlock, SYS_mlockall, SYS_munlock, SYS_set_mempolicy], always(Errno(EPERM))),
    #[cfg(target_arch = "x86_64")]
    (&[SYS_modify_ldt], always(Errno(ENOSYS))),
    #[cfg(target_arch = "x86_64")]
    (&[SYS_iopl, SYS_ioperm], always(Errno(EPERM))),
]);

/// Names of what only an attack asks for.
pub(crate) const NAMES: &[(c_long, &str)] = &[
    (SYS_ptrace, "ptrace"),
    (SYS_process_vm_readv, "process_vm_readv"),
    (SYS_process_vm_writev, "process_vm_writev"),
    (SYS_process_madvise, "process_madvise"),
    (SYS_kcmp, "kcmp"),
    (SYS_pidfd_getfd, "pidfd_getfd"),
    (SYS_bpf, "bpf"),
    (SYS_open_by_handle_at, "open_by_handle_at"),
    (SYS_mount, "mount"),
    (SYS_umount2, "umount2"),
    (SYS_fsopen, "fsopen"),
    (SYS_fsmount, "fsmount"),
    (SYS_fsconfig, "fsconfig"),
    (SYS_open_tree, "open_tree"),
    (SYS_move_mount, "move_mount"),
    (SYS_mount_setattr, "mount_setattr"),
    (SYS_pivot_root, "pivot_root"),
    (SYS_setns, "setns"),
    (SYS_unshare, "unshare"),
    (SYS_kexec_load, "kexec_load"),
    (SYS_init_module, "init_module"),
    (SYS_finit_module, "finit_module"),
    (SYS_delete_module, "delete_module"),
    (SYS_reboot, "reboot"),
    (SYS_acct, "acct"),
    (SYS_swapon, "swapon"),
    (SYS_swapoff, "swapoff"),
    (SYS_seccomp, "seccomp"),
];
