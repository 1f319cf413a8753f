//! Profile `process`: native programs, in jails made of the operating system's own means.
//!
//! Every attack is first made outside any sandbox, where it must work: what fails there proves nothing, and the check is
//! blocked on this machine.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactKind, Call, CancelToken, DirectoryGrant, ErrorKind, Execution, GrantKind, HostFunctions,
    LayerStatus, Outcome, Policy, PreparedExt, Resource, TrapKind,
};

use super::must;
use crate::{Check, Context, Failure, Need, Requirement, clock};

pub(super) const REQUIREMENTS: &[Requirement] = &[
    must(
        "process.call.streams",
        "A native program MUST get its input and arguments as they were given, and its output, error text and exit code MUST arrive.",
        "results that are not the guest's",
    ),
    must(
        "process.call.typed-end",
        "A program that ends by a fault, a signal or a forbidden system call MUST be reported as such.",
        "a crash taken for a result",
    ),
    must(
        "process.files.filesystem-isolation",
        "A native program MUST NOT reach, see or make files other than those it was granted.",
        "theft or destruction of the host's files",
    ),
    must(
        "process.grants.read-only",
        "A native program MUST NOT change anything in a directory granted for reading.",
        "tampering with what others rely on",
    ),
    must(
        "process.rights.none-left",
        "Where a native program may write, it MUST NOT leave a set-id bit or somebody else's file behind, whatever call makes it.",
        "a program of the host that anybody runs with another's rights",
    ),
    must(
        "process.grants.no-special",
        "File systems that are the kernel's own, as procfs, MUST NOT be granted, nor be reached where they lie below a grant.",
        "the host's memory, processes and devices as files",
    ),
    must(
        "process.wait.costs-nothing",
        "While a native program waits, its host MUST NOT use a processor for it.",
        "guests that starve behind their own host",
    ),
    must(
        "process.interpreter.listed-only",
        "A program that a policy names as interpreter MUST be refused, and MUST NOT run, unless the host listed it.",
        "a policy that has anything executed outside of any jail",
    ),
    must(
        "process.descriptors.none-inherited",
        "A native program MUST NOT inherit a descriptor of the host.",
        "a file or socket of the host, open already",
    ),
    must(
        "process.environment.granted-only",
        "A native program MUST NOT see the host's environment, its name, or how busy it is.",
        "secrets of the host, and channels between guests",
    ),
    must(
        "process.syscalls.syscall-restriction",
        "System calls that no policy grants MUST fail or end the program, on every entry into the kernel.",
        "defects of the kernel, and ways out of the jail",
    ),
    must(
        "process.code.no-new-code",
        "A native program MUST NOT make memory executable, nor become another program.",
        "code that nobody validated",
    ),
    must(
        "process.objects.counted-objects",
        "A native program MUST NOT make objects of the kernel that its memory quota does not count.",
        "exhausting the host's memory beside the quota",
    ),
    must(
        "process.processes.fork-bomb-protection",
        "Without the grant a native program MUST NOT make processes or threads.",
        "a fork bomb",
    ),
    must(
        "process.agents.agent-to-agent-isolation",
        "A native program MUST NOT see, signal, limit or measure other processes, nor lock files they share.",
        "one agent stopping or spying on another",
    ),
    must(
        "process.network.network-isolation",
        "Without the grant a native program MUST NOT use any socket.",
        "a guest that reaches the inner network, or the host by a side door",
    ),
    must(
        "process.quota.times",
        "Wall time and CPU time MUST end a native program, whatever it does, not before the quota and not much later.",
        "a guest that hangs its host or burns its processors",
    ),
    must(
        "process.quota.memory",
        "Memory beyond the quota MUST be refused or end the program, by any way of getting memory.",
        "exhausting the host's memory",
    ),
    must(
        "process.quota.counts",
        "Output, error text and open files MUST be allowed up to the quota, and refused or ended beyond it.",
        "floods",
    ),
    must(
        "process.scratch.own",
        "A scratch directory MUST be empty at first, seen by its own instance only, and hold what the quota allows and no \
         more.",
        "a full disk, or traces of another tenant",
    ),
    must(
        "process.usage.truthful",
        "CPU time and peak memory MUST be those the kernel counted.",
        "usage that cannot be billed",
    ),
    must(
        "process.cleanup.resource-cleanup-on-termination",
        "After its end, however it came, nothing of a native program MUST be left: no process, no descriptor, no file.",
        "leaks that end the host",
    ),
    must(
        "process.report.layers",
        "Every result MUST name the layers of isolation that were in force.",
        "isolation that is silently weaker than believed",
    ),
];

const CALLS: &[&str] = &["process.call.streams"];
const TYPED: &[&str] = &["process.call.typed-end"];
const FILES: &[&str] = &["process.files.filesystem-isolation"];
const READ_ONLY: &[&str] = &["process.grants.read-only"];
const RIGHTS: &[&str] = &["process.rights.none-left"];
const SPECIAL: &[&str] = &["process.grants.no-special"];
const WAITS: &[&str] = &["process.wait.costs-nothing"];
const DESCRIPTORS: &[&str] = &["process.descriptors.none-inherited"];
const ENVIRONMENT: &[&str] = &["process.environment.granted-only"];
const SYSCALLS: &[&str] = &["process.syscalls.syscall-restriction"];
const CODE: &[&str] = &["process.code.no-new-code"];
const OBJECTS: &[&str] = &["process.objects.counted-objects"];
const FORKS: &[&str] = &["process.processes.fork-bomb-protection"];
const AGENTS: &[&str] = &["process.agents.agent-to-agent-isolation"];
const NETWORK: &[&str] = &["process.network.network-isolation"];
const TIMES: &[&str] = &["process.quota.times"];
const MEMORY: &[&str] = &["process.quota.memory"];
const COUNTS: &[&str] = &["process.quota.counts"];
const SCRATCH: &[&str] = &["process.scratch.own"];
const USAGE: &[&str] = &["process.usage.truthful"];
const CLEANUP: &[&str] = &["process.cleanup.resource-cleanup-on-termination"];
const LAYERS: &[&str] = &["process.report.layers"];

/// What an attack is aimed at.
#[derive(Debug, Clone, Copy)]
enum Argument {
    /// Nothing in particular.
    None,
    /// A file of the host with random contents.
    Secret,
    /// The same, made anew for each attempt.
    SecretEach,
    /// A path of the host where nothing is.
    Fresh,
    /// The probe itself, as a file of the host.
    Probe,
    /// Nothing, but a descriptor lies open in this process for whoever inherits it.
    Bait,
    /// The host's name.
    HostName,
    /// A random name of a message queue.
    Queue,
    /// The process of this check.
    OwnPid,
    /// The key of a segment of shared memory that every user of the host may find.
    SharedMemory,
    /// A listener of this process on the loopback interface.
    Tcp,
    /// A datagram socket of this process on the loopback interface.
    Udp,
    /// A socket of this process in a directory.
    Unix,
    /// A socket of this process in the abstract namespace.
    Abstract,
}

macro_rules! attack {
    ($id:literal, $requires:expr, $control:literal, $name:literal, $argument:expr) => {
        Check {
            id: $id,
            requires: $requires,
            needs: &[],
            control: $control,
            run: |context| attack(context, $name, $argument),
        }
    };
}

macro_rules! granted {
    ($id:literal, $requires:expr, $control:literal, $name:literal, $file:literal) => {
        Check {
            id: $id,
            requires: $requires,
            needs: &[Need::Grant(GrantKind::DirectoriesReadOnly)],
            control: $control,
            run: |context| granted(context, $name, $file),
        }
    };
}

macro_rules! right {
    ($id:literal, $control:literal, $name:literal) => {
        Check {
            id: $id,
            requires: RIGHTS,
            needs: &[Need::Grant(GrantKind::DirectoriesReadWrite)],
            control: $control,
            run: |context| right(context, $name),
        }
    };
}

macro_rules! check {
    ($id:literal, $requires:expr, $control:literal, $run:expr) => {
        Check { id: $id, requires: $requires, needs: &[], control: $control, run: $run }
    };
}

pub(super) const CHECKS: &[Check] = &[
    check!("process.call.echo", CALLS, "native-corrupts-output", echo),
    check!("process.call.arguments", CALLS, "native-loses-arguments", arguments),
    check!("process.call.exit-code", CALLS, "native-loses-exit-code", exit_code),
    check!("process.call.fault", TYPED, "native-untyped-fault", fault),
    check!("process.call.forbidden-call", TYPED, "native-untyped-denial", forbidden_call),
    attack!("process.files.read", FILES, "native-read-file", "read-file", Argument::Secret),
    attack!("process.files.read-upwards", FILES, "native-read-file-upwards", "read-file-upwards", Argument::Secret),
    attack!("process.files.stat", FILES, "native-stat-file", "stat-file", Argument::Secret),
    attack!("process.files.list-root", FILES, "native-list-root", "list-root", Argument::None),
    attack!("process.files.proc", FILES, "native-read-proc", "read-proc", Argument::None),
    attack!(
        "process.files.own-memory-file",
        FILES,
        "native-read-own-memory-file",
        "read-own-memory-file",
        Argument::None
    ),
    attack!("process.files.create", FILES, "native-write-file", "write-file", Argument::Fresh),
    attack!("process.files.make-directory", FILES, "native-make-directory", "make-directory", Argument::Fresh),
    attack!("process.files.remove", FILES, "native-remove-file", "remove-file", Argument::SecretEach),
    attack!("process.files.change-mode", FILES, "native-change-mode", "change-mode", Argument::Secret),
    attack!("process.files.handle", FILES, "native-file-handle", "file-handle", Argument::Secret),
    attack!("process.files.execute", FILES, "native-execute-file", "execute-file", Argument::Probe),
    attack!(
        "process.descriptors.inherited",
        DESCRIPTORS,
        "native-inherited-descriptors",
        "inherited-descriptors",
        Argument::Bait
    ),
    attack!("process.environment.of-the-host", ENVIRONMENT, "native-environment", "environment", Argument::None),
    attack!("process.environment.host-name", ENVIRONMENT, "native-host-name", "host-name", Argument::HostName),
    attack!(
        "process.environment.system-information",
        ENVIRONMENT,
        "native-system-information",
        "system-information",
        Argument::None
    ),
    attack!("process.syscalls.ptrace", SYSCALLS, "native-ptrace", "ptrace", Argument::None),
    attack!(
        "process.syscalls.process-memory",
        SYSCALLS,
        "native-read-process-memory",
        "read-process-memory",
        Argument::None
    ),
    attack!("process.syscalls.user-namespace", SYSCALLS, "native-user-namespace", "user-namespace", Argument::None),
    attack!("process.syscalls.io-uring", SYSCALLS, "native-io-uring", "io-uring", Argument::None),
    attack!("process.syscalls.personality", SYSCALLS, "native-personality", "personality", Argument::None),
    attack!("process.syscalls.keyring", SYSCALLS, "native-keyring", "keyring", Argument::None),
    attack!("process.syscalls.userfaultfd", SYSCALLS, "native-userfaultfd", "userfaultfd", Argument::None),
    attack!("process.syscalls.change-user", SYSCALLS, "native-change-user", "change-user", Argument::None),
    attack!("process.syscalls.own-filter", SYSCALLS, "native-own-filter", "own-filter", Argument::None),
    attack!(
        "process.syscalls.other-architecture",
        SYSCALLS,
        "native-other-architecture",
        "other-architecture",
        Argument::None
    ),
    attack!("process.syscalls.device-control", SYSCALLS, "native-device-control", "device-control", Argument::None),
    attack!("process.syscalls.outlive-host", SYSCALLS, "native-outlive-host", "outlive-host", Argument::None),
    attack!("process.syscalls.become-dumpable", SYSCALLS, "native-become-dumpable", "become-dumpable", Argument::None),
    attack!("process.syscalls.capability", SYSCALLS, "native-capability", "capability", Argument::None),
    attack!("process.syscalls.set-limit", SYSCALLS, "native-set-limit", "set-limit", Argument::None),
    attack!(
        "process.syscalls.choose-processor",
        SYSCALLS,
        "native-choose-processor",
        "choose-processor",
        Argument::None
    ),
    attack!(
        "process.syscalls.write-process-memory",
        SYSCALLS,
        "native-write-process-memory",
        "write-process-memory",
        Argument::None
    ),
    attack!("process.syscalls.change-group", SYSCALLS, "native-change-group", "change-group", Argument::None),
    attack!("process.syscalls.new-session", SYSCALLS, "native-new-session", "new-session", Argument::None),
    attack!("process.syscalls.priority", SYSCALLS, "native-set-priority", "set-priority", Argument::None),
    attack!(
        "process.syscalls.disk-priority",
        SYSCALLS,
        "native-set-disk-priority",
        "set-disk-priority",
        Argument::None
    ),
    attack!("process.syscalls.scheduler", SYSCALLS, "native-set-scheduler", "set-scheduler", Argument::None),
    attack!("process.code.writable-code", CODE, "native-writable-code", "writable-code", Argument::None),
    attack!("process.code.make-executable", CODE, "native-make-executable", "make-executable", Argument::None),
    attack!("process.code.replace-program", CODE, "native-replace-program", "replace-program", Argument::None),
    attack!("process.objects.memfd", OBJECTS, "native-memfd", "memfd", Argument::None),
    check!("process.objects.pipe", OBJECTS, "native-pipe", |context| counted(context, "pipe")),
    check!("process.objects.eventfd", OBJECTS, "native-eventfd", |context| counted(context, "eventfd")),
    check!("process.objects.epoll", OBJECTS, "native-epoll", |context| counted(context, "epoll")),
    attack!("process.objects.inotify", OBJECTS, "native-inotify", "inotify", Argument::None),
    attack!("process.objects.timerfd", OBJECTS, "native-timerfd", "timerfd", Argument::None),
    check!("process.objects.socket-pair", OBJECTS, "native-socket-pair", |context| counted(context, "socket-pair")),
    attack!("process.objects.shared-memory", OBJECTS, "native-shared-memory", "shared-memory", Argument::None),
    attack!("process.objects.message-queue", OBJECTS, "native-message-queue", "message-queue", Argument::Queue),
    attack!("process.objects.splice-memory", OBJECTS, "native-splice-memory", "splice-memory", Argument::None),
    attack!("process.objects.signalfd", OBJECTS, "native-signalfd", "signalfd", Argument::None),
    attack!("process.objects.timer", OBJECTS, "native-timer", "timer", Argument::None),
    attack!(
        "process.objects.old-message-queue",
        OBJECTS,
        "native-old-message-queue",
        "old-message-queue",
        Argument::None
    ),
    attack!("process.objects.semaphore", OBJECTS, "native-semaphore", "semaphore", Argument::None),
    attack!("process.processes.fork", FORKS, "native-fork", "fork", Argument::None),
    attack!("process.processes.fork-bomb", FORKS, "native-fork-bomb", "fork-bomb", Argument::None),
    attack!("process.processes.thread", FORKS, "native-thread", "thread", Argument::None),
    attack!(
        "process.agents.shared-memory",
        AGENTS,
        "native-find-shared-memory",
        "find-shared-memory",
        Argument::SharedMemory
    ),
    attack!("process.agents.signal-host", AGENTS, "native-signal-host", "signal-host", Argument::None),
    attack!("process.agents.signal-process", AGENTS, "native-signal-process", "signal-process", Argument::OwnPid),
    attack!(
        "process.agents.limits-of-process",
        AGENTS,
        "native-limits-of-process",
        "limits-of-process",
        Argument::OwnPid
    ),
    attack!("process.agents.clock-of-process", AGENTS, "native-clock-of-process", "clock-of-process", Argument::OwnPid),
    attack!("process.agents.signal-group", AGENTS, "native-signal-group", "signal-group", Argument::None),
    attack!("process.agents.signal-all", AGENTS, "native-signal-all", "signal-all", Argument::None),
    attack!(
        "process.agents.descriptor-of-process",
        AGENTS,
        "native-descriptor-of-process",
        "descriptor-of-process",
        Argument::OwnPid
    ),
    attack!("process.network.listen", NETWORK, "native-listen", "listen", Argument::None),
    attack!("process.network.netlink", NETWORK, "native-netlink", "netlink", Argument::None),
    attack!("process.network.vsock", NETWORK, "native-vsock", "vsock", Argument::None),
    attack!("process.network.tcp", NETWORK, "native-tcp", "tcp", Argument::Tcp),
    attack!("process.network.udp", NETWORK, "native-udp", "udp", Argument::Udp),
    attack!("process.network.unix-socket", NETWORK, "native-unix-socket", "unix-socket", Argument::Unix),
    attack!(
        "process.network.abstract-socket",
        NETWORK,
        "native-abstract-socket",
        "abstract-socket",
        Argument::Abstract
    ),
    granted!("process.grants.write-read-only", READ_ONLY, "native-granted-write-file", "write-file", "new"),
    granted!(
        "process.grants.make-directory-read-only",
        READ_ONLY,
        "native-granted-make-directory",
        "make-directory",
        "new-directory"
    ),
    granted!("process.grants.remove-read-only", READ_ONLY, "native-granted-remove-file", "remove-file", "file"),
    granted!("process.grants.truncate-read-only", READ_ONLY, "native-granted-truncate-file", "truncate-file", "file"),
    granted!("process.grants.change-mode-read-only", READ_ONLY, "native-granted-change-mode", "change-mode", "file"),
    granted!("process.grants.lock", AGENTS, "native-granted-lock-file", "lock-file", "file"),
    granted!("process.grants.lease", AGENTS, "native-granted-lease-file", "lease-file", "file"),
    granted!("process.grants.rename-read-only", READ_ONLY, "native-granted-rename-file", "rename-file", "file"),
    granted!("process.grants.link-read-only", READ_ONLY, "native-granted-link-file", "link-file", "file"),
    granted!("process.grants.make-link-read-only", READ_ONLY, "native-granted-make-link", "make-link", "new-link"),
    granted!("process.grants.make-pipe-read-only", READ_ONLY, "native-granted-make-pipe", "make-pipe", "new-pipe"),
    granted!("process.grants.set-times-read-only", READ_ONLY, "native-granted-set-times", "set-times", "file"),
    granted!("process.grants.lock-record", AGENTS, "native-granted-lock-record", "lock-record", "file"),
    right!("process.rights.set-id-chmod", "native-granted-set-id-chmod", "set-id-chmod"),
    right!("process.rights.set-id-fchmod", "native-granted-set-id-fchmod", "set-id-fchmod"),
    right!("process.rights.set-id-fchmodat", "native-granted-set-id-fchmodat", "set-id-fchmodat"),
    right!("process.rights.set-id-fchmodat2", "native-granted-set-id-fchmodat2", "set-id-fchmodat2"),
    right!("process.rights.set-id-open", "native-granted-set-id-open", "set-id-open"),
    right!("process.rights.set-id-openat", "native-granted-set-id-openat", "set-id-openat"),
    right!("process.rights.set-id-openat2", "native-granted-set-id-openat2", "set-id-openat2"),
    right!("process.rights.set-id-creat", "native-granted-set-id-creat", "set-id-creat"),
    right!("process.rights.set-id-mknodat", "native-granted-set-id-mknodat", "set-id-mknodat"),
    right!("process.rights.set-group-id", "native-granted-set-group-id", "set-group-id"),
    right!("process.rights.change-owner", "native-granted-change-owner", "change-owner"),
    Check {
        id: "process.grants.special",
        requires: SPECIAL,
        needs: &[Need::Grant(GrantKind::DirectoriesReadOnly)],
        control: "native-grants-special-directories",
        run: special_grant,
    },
    Check {
        id: "process.grants.special-below",
        requires: SPECIAL,
        needs: &[Need::Grant(GrantKind::DirectoriesReadOnly)],
        control: "native-follows-into-special-directories",
        run: special_below,
    },
    check!("process.wait.sleep", WAITS, "native-busy-sleep", |context| waits(context, "sleep")),
    check!("process.wait.input", WAITS, "native-busy-input", |context| waits(context, "read")),
    Check {
        id: "process.interpreter.by-path",
        requires: &["process.interpreter.listed-only"],
        needs: &[Need::Grant(GrantKind::Interpreter), Need::Artifact(ArtifactKind::Script)],
        control: "native-runs-named-interpreter",
        run: interpreter,
    },
    check!("process.quota.wall-time-spin", TIMES, "native-ignores-wall-time", |context| wall_time(context, "spin")),
    check!("process.quota.wall-time-sleep", TIMES, "native-ignores-wall-time-sleep", |context| wall_time(
        context, "sleep"
    )),
    check!("process.quota.wall-time-closed-streams", TIMES, "native-ignores-wall-time-closed", |context| {
        wall_time(context, "close-streams")
    }),
    check!("process.quota.wall-time-input", TIMES, "native-ignores-wall-time-input", wall_time_input),
    check!("process.quota.cpu-time", TIMES, "native-ignores-cpu-time", |context| cpu_time(context, "spin")),
    check!("process.quota.cpu-time-in-kernel", TIMES, "native-ignores-system-time", |context| {
        cpu_time(context, "spin-in-kernel")
    }),
    check!("process.quota.memory", MEMORY, "native-ignores-memory", |context| memory(context, "touch")),
    check!("process.quota.memory-shared", MEMORY, "native-ignores-shared-memory", |context| {
        memory(context, "touch-shared")
    }),
    check!("process.quota.stack", MEMORY, "native-ignores-stack", stack),
    check!("process.quota.output", COUNTS, "native-ignores-output", |context| written(
        context,
        "write",
        Resource::Output
    )),
    check!("process.quota.error-text", COUNTS, "native-ignores-log", |context| {
        written(context, "write-error", Resource::Log)
    }),
    check!("process.quota.open-files", COUNTS, "native-ignores-open-files", open_files),
    Check {
        id: "process.quota.disk-bytes",
        requires: SCRATCH,
        needs: &[Need::Grant(GrantKind::Scratch), Need::Quota(Resource::Disk)],
        control: "native-ignores-disk",
        run: disk_bytes,
    },
    Check {
        id: "process.agents.scratch",
        requires: SCRATCH,
        needs: &[Need::Grant(GrantKind::Scratch), Need::Quota(Resource::Disk)],
        control: "native-shares-scratch",
        run: scratch_is_own,
    },
    check!("process.usage.cpu-time", USAGE, "native-no-cpu-time", usage_cpu),
    check!("process.usage.memory-peak", USAGE, "native-understates-memory", usage_memory),
    check!("process.cleanup.cancel", CLEANUP, "native-ignores-cancel", cancel),
    check!("process.cleanup.drop", CLEANUP, "native-keeps-dropped", dropped),
    check!("process.cleanup.many-starts", CLEANUP, "native-leaks-files", many_starts),
    check!("process.report.layers", LAYERS, "native-no-layers", layers),
];

/// Something an attack is aimed at, alive while it is attacked.
#[derive(Debug, Default)]
struct Target {
    argument: String,
    _held: Option<OwnedFd>,
    /// A segment of shared memory, to be removed.
    shared_memory: Option<String>,
    /// A file that must be as it was.
    untouched: Option<(PathBuf, Vec<u8>)>,
    /// A path where nothing may be.
    absent: Option<PathBuf>,
}

fn target(context: &mut Context, argument: Argument) -> Result<Target, Failure> {
    let failed = |context: &Context, error: std::io::Error| context.failure(format!("no target: {error}"));
    let nonce = context.nonce();
    let path = context.scratch().join(format!("target-{}", &nonce[..8]));
    let text = path.to_string_lossy().into_owned();
    Ok(match argument {
        Argument::None => Target::default(),
        Argument::Secret | Argument::SecretEach => {
            std::fs::write(&path, &nonce).map_err(|error| failed(context, error))?;
            Target { argument: text, untouched: Some((path, nonce.into_bytes())), ..Target::default() }
        }
        Argument::Fresh => Target { argument: text, absent: Some(path), ..Target::default() },
        Argument::Probe => {
            context.outside(&["worked"])?;
            let probe = context.scratch().join("native-probe");
            Target { argument: probe.to_string_lossy().into_owned(), ..Target::default() }
        }
        Argument::Bait => {
            let file = std::fs::File::open("/dev/null").map_err(|error| failed(context, error))?;
            // A high number, and inherited unless somebody closes it.
            let bait = rustix::io::fcntl_dupfd_cloexec(&file, 300)
                .and_then(|bait| rustix::io::fcntl_setfd(&bait, rustix::io::FdFlags::empty()).map(|()| bait))
                .map_err(|error| failed(context, error.into()))?;
            Target { argument: bait.as_raw_fd().to_string(), _held: Some(bait), ..Target::default() }
        }
        Argument::HostName => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            Target { argument: name, ..Target::default() }
        }
        Argument::Queue => Target { argument: format!("palisade-{nonce}"), ..Target::default() },
        Argument::OwnPid => Target { argument: std::process::id().to_string(), ..Target::default() },
        Argument::SharedMemory => {
            // Positive, and not the key that stands for none.
            let key = u32::from_str_radix(&nonce[..7], 16).unwrap_or(1).max(1).to_string();
            let id = context.outside(&["make-shared-memory", &key])?;
            if id.is_empty() {
                return Err(context.blocked("this machine makes no shared memory"));
            }
            Target { argument: key, shared_memory: Some(id), ..Target::default() }
        }
        Argument::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| failed(context, error))?;
            let address = listener.local_addr().map_err(|error| failed(context, error))?;
            Target { argument: address.to_string(), _held: Some(listener.into()), ..Target::default() }
        }
        Argument::Udp => {
            let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| failed(context, error))?;
            let address = socket.local_addr().map_err(|error| failed(context, error))?;
            Target { argument: address.to_string(), _held: Some(socket.into()), ..Target::default() }
        }
        Argument::Unix => {
            let listener = UnixListener::bind(&path).map_err(|error| failed(context, error))?;
            Target { argument: text, _held: Some(listener.into()), ..Target::default() }
        }
        Argument::Abstract => {
            let listener = SocketAddr::from_abstract_name(&nonce).and_then(|address| UnixListener::bind_addr(&address));
            let listener = listener.map_err(|error| failed(context, error))?;
            Target { argument: nonce, _held: Some(listener.into()), ..Target::default() }
        }
    })
}

/// Makes the attack outside any sandbox, where it must work.
fn outside(context: &mut Context, name: &str, argument: &str) -> Result<(), Failure> {
    let said = context.outside(&["attack", name, argument])?;
    if !said.starts_with("worked") {
        return Err(context.blocked(format!("outside any sandbox the attack does not work either: {said}")));
    }
    context.expect("outside any sandbox", short(&said), true)
}

/// Requires that the guest was refused, or ended for it.
fn expect_stopped(context: &mut Context, execution: &Execution) -> Result<(), Failure> {
    let said = String::from_utf8_lossy(&execution.output).into_owned();
    let stopped = match &execution.outcome {
        Outcome::Completed => said.starts_with("refused"),
        Outcome::Denied { .. } | Outcome::Trapped { .. } => said.is_empty(),
        _ => false,
    };
    context.expect("in the jail", format!("{}: {}", execution.outcome, short(&said)), stopped)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn attack(context: &mut Context, name: &str, argument: Argument) -> Result<(), Failure> {
    context.baseline(|context| {
        let target = target(context, argument)?;
        let worked = outside(context, name, &target.argument);
        release(context, &target)?;
        worked
    })?;
    context.enforced(|context| {
        let target = target(context, argument)?;
        let policy = context.native_policy();
        let execution = context.native(&["attack", name, &target.argument], &policy);
        release(context, &target)?;
        expect_stopped(context, &execution?)?;
        if let Some((path, contents)) = &target.untouched {
            let found = std::fs::read(path).ok();
            context.expect("the host's file", "read again", found.as_ref() == Some(contents))?;
        }
        if let Some(path) = &target.absent {
            context.expect("the host's directory", "looked at", !path.exists())?;
        }
        Ok(())
    })?;
    context.recovery()
}

/// Holds more in objects of the kernel than a quota allows: bytes, than its memory; descriptors, than its open files. That
/// some can be made is no fault, if something counts them.
fn counted(context: &mut Context, name: &str) -> Result<(), Failure> {
    const HELD_BYTES: u64 = 24 << 20;
    const FEW_FILES: u64 = 10;
    // Few enough for every host to allow them, and enough to hold that much.
    const MANY_FILES: u64 = 1000;
    let bytes = matches!(name, "pipe" | "socket-pair");
    let limit = if bytes { HELD_BYTES } else { FEW_FILES };
    context.baseline(|context| outside(context, name, &limit.to_string()))?;
    context.enforced(|context| {
        for files in
            if bytes { vec![context.native_policy().quota.open_files, Some(MANY_FILES)] } else { vec![Some(FEW_FILES)] }
        {
            let mut policy = context.native_policy();
            policy.quota.open_files = files;
            if bytes {
                policy.quota.memory_bytes = Some(HELD_BYTES);
            }
            let execution = context.native(&["attack", name, &limit.to_string()], &policy)?;
            let said = String::from_utf8_lossy(&execution.output).into_owned();
            let ended = matches!(&execution.outcome, Outcome::QuotaExceeded { resource: Resource::Memory, .. });
            match ended && said.is_empty() {
                true => context.expect("in the jail", &execution.outcome, true)?,
                false => expect_stopped(context, &execution)?,
            }
        }
        Ok(())
    })?;
    context.recovery()
}

/// Removes what would outlive this process.
fn release(context: &mut Context, target: &Target) -> Result<(), Failure> {
    match &target.shared_memory {
        Some(id) => context.outside(&["remove-shared-memory", id]).map(drop),
        None => Ok(()),
    }
}

/// As [`attack`], on a file of a directory granted for reading.
fn granted(context: &mut Context, name: &str, file: &str) -> Result<(), Failure> {
    let place = |context: &mut Context, folder: &str| {
        let folder = context.make_directory(folder)?;
        std::fs::write(folder.join("file"), "contents").map_err(|error| context.failure(error.to_string()))?;
        Ok(folder)
    };
    context.baseline(|context| {
        let folder = place(context, "outside")?;
        outside(context, name, &folder.join(file).to_string_lossy())
    })?;
    context.enforced(|context| {
        let folder = place(context, "granted")?;
        let mut policy = context.native_policy();
        policy.grants.directories.push(DirectoryGrant::read_only(&folder, "/granted"));
        let read = context.native(&["attack", "read-file", "/granted/file"], &policy)?;
        context.expect(
            "reading it",
            String::from_utf8_lossy(&read.output),
            read.output == "worked contents".as_bytes(),
        )?;
        let before = listing(&folder);
        let execution = context.native(&["attack", name, &format!("/granted/{file}")], &policy)?;
        expect_stopped(context, &execution)?;
        let after = listing(&folder);
        context.expect("the directory", &after, before == after)
    })?;
    context.recovery()
}

/// Tries to leave a right behind in a directory granted for writing, and looks at the directory afterwards.
fn right(context: &mut Context, name: &str) -> Result<(), Failure> {
    let owned = |folder: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&folder.metadata().ok()?).into();
    context.baseline(|context| {
        let folder = context.make_directory("outside")?;
        context.outside(&["attack", "write-file", &folder.join("plain").to_string_lossy()])?;
        outside(context, name, &folder.to_string_lossy())?;
        let found = rights(&folder, owned(&folder.join("plain")));
        let left = if name == "change-owner" { found.is_empty() } else { !found.is_empty() };
        context.expect("what it left", found, left)
    })?;
    context.enforced(|context| {
        let folder = context.make_directory("granted")?;
        let owner = owned(&folder);
        let mut policy = context.native_policy();
        policy.grants.directories.push(DirectoryGrant::read_write(&folder, "/granted"));
        policy.quota.disk_bytes = None;
        let execution = context.native(&["attack", "write-file", "/granted/plain"], &policy)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("an ordinary file", &said, said.starts_with("worked") && folder.join("plain").exists())?;
        let execution = context.native(&["attack", name, "/granted"], &policy)?;
        expect_stopped(context, &execution)?;
        let found = rights(&folder, owner);
        context.expect("seen from outside: what it left", &found, found.is_empty())
    })?;
    context.recovery()
}

/// Files in a directory that give a right, are no files, or are not `owner`'s.
fn rights(folder: &std::path::Path, owner: Option<u32>) -> String {
    use std::os::unix::fs::MetadataExt;
    let strange = |entry: std::fs::DirEntry| {
        let found = entry.path().symlink_metadata().ok()?;
        let ordinary = found.is_file() && found.mode() & 0o6000 == 0 && Some(found.uid()) == owner;
        (!ordinary).then(|| format!("{} {:o} of {}", entry.file_name().to_string_lossy(), found.mode(), found.uid()))
    };
    let found: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(strange).collect();
    found.join(", ")
}

/// What looks like files there is the host itself.
fn special_grant(context: &mut Context) -> Result<(), Failure> {
    let granting = |context: &Context, path: &std::path::Path| {
        let mut policy = context.native_policy();
        policy.grants.directories.push(DirectoryGrant::read_only(path, "/granted"));
        policy
    };
    let ordinary = context.make_directory("ordinary")?;
    context.baseline(|context| context.prepare_native(&granting(context, &ordinary)).map(drop))?;
    context.enforced(|context| {
        for path in super::isolation::special_directories(context)? {
            let policy = granting(context, path);
            let module = context.block_on(context.sandbox().load(crate::probe::native("probe")));
            match module.and_then(|module| module.prepare(policy, HostFunctions::new())) {
                Ok(_) => context.expect(&path.to_string_lossy(), "granted", false)?,
                Err(error) => {
                    context.expect(&path.to_string_lossy(), &error, error.kind() == ErrorKind::InvalidPolicy)?;
                }
            }
        }
        Ok(())
    })?;
    context.recovery()
}

/// A grant of all files is not one of the kernel's.
fn special_below(context: &mut Context) -> Result<(), Failure> {
    super::isolation::special_directories(context)?;
    let nonce = context.nonce();
    let folder = context.make_directory("ordinary")?;
    std::fs::write(folder.join("file"), &nonce).map_err(|error| context.failure(error.to_string()))?;
    let granting = |context: &Context, path: &std::path::Path| {
        let mut policy = context.native_policy();
        policy.grants.directories.push(DirectoryGrant::read_only(path, "/granted"));
        policy
    };
    context.baseline(|context| {
        outside(context, "read-file", "/proc/version")?;
        let policy = granting(context, &folder);
        let execution = context.native(&["attack", "read-file", "/granted/file"], &policy)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("an ordinary file", &said, said == format!("worked {nonce}"))
    })?;
    context.enforced(|context| {
        let policy = granting(context, std::path::Path::new("/"));
        for path in ["/granted/proc/version", "/granted/proc/self/status"] {
            match context.native(&["attack", "read-file", path], &policy) {
                Ok(execution) => expect_stopped(context, &execution)?,
                // Not every user of a machine may show all of it; then nothing ran.
                Err(error) => context.expect("a grant of all files", error.message, true)?,
            }
        }
        Ok(())
    })?;
    context.recovery()
}

/// A program that waits until its wall time is over, while its host must wait as well.
fn waits(context: &mut Context, verb: &str) -> Result<(), Failure> {
    let mut policy = context.native_policy();
    policy.quota.wall_time = Some(super::IDLE);
    let prepared = context.baseline(|context| {
        let execution = context.native(&["exit", "0"], &policy)?;
        context.expect_completed("a program that does not wait", &execution)?;
        context.prepare_native(&policy)
    })?;
    context.enforced(|context| {
        let mut call = Call::new().arguments([verb]);
        if verb == "read" {
            call = call.input(context.late_input(NEVER, b"late", || {}));
        }
        super::expect_idle(context, &*prepared, call)
    })?;
    drop(prepared);
    context.recovery()
}

/// A program at a path that a policy names. It would leave a mark.
fn interpreter(context: &mut Context) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let folder = context.make_directory("planted")?;
    let (program, mark) = (folder.join("python3"), folder.join("mark"));
    context.baseline(|context| {
        let failed = |error: std::io::Error| context.failure(format!("cannot plant a program: {error}"));
        std::fs::write(&program, format!("#!/bin/sh\n: > '{}'\n", mark.display())).map_err(failed)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        std::process::Command::new(&program).status().map_err(failed)?;
        let there = mark.exists();
        std::fs::remove_file(&mark).map_err(failed)?;
        context.expect("outside any sandbox, its mark", there, there)
    })?;
    context.enforced(|context| {
        let script = Artifact::new(ArtifactKind::Script, "echo").named("script");
        let module = context
            .block_on(context.sandbox().load(script))
            .map_err(|error| context.failure(format!("a script: {error}")))?;
        let upwards = format!("{}{}", "../".repeat(16), program.display().to_string().trim_start_matches('/'));
        for name in [program.display().to_string(), upwards] {
            let mut policy = context.native_policy();
            policy.grants.interpreter = Some(name);
            match module.prepare(policy, HostFunctions::new()) {
                Ok(_) => context.expect("an interpreter by its path", "accepted", false)?,
                Err(error) => {
                    let refused = error.kind() == ErrorKind::Denied;
                    context.expect("an interpreter by its path", format!("{:?}", error.kind()), refused)?;
                }
            }
            let ran = mark.exists();
            context.expect("the planted program ran", ran, !ran)?;
        }
        Ok(())
    })?;
    context.recovery()
}

/// Names, sizes, modes, links and times of what is in a directory.
fn listing(folder: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let found = entry.metadata().ok()?;
            Some(format!(
                "{} {} {:o} {} {}",
                entry.file_name().to_string_lossy(),
                found.len(),
                found.mode(),
                found.nlink(),
                found.mtime()
            ))
        })
        .collect();
    names.sort();
    names.join(", ")
}

fn echo(context: &mut Context) -> Result<(), Failure> {
    let policy = context.native_policy();
    context.enforced(|context| {
        for len in [0usize, 1, 70_000, 1 << 20] {
            let input: Vec<u8> = context.nonce().bytes().cycle().take(len).collect();
            let call = Call::new().arguments(["echo"]).input(input.clone());
            let execution = context.native_call(call, &policy)?;
            context.expect_completed("echo", &execution)?;
            context.expect("its output", format!("{} bytes", execution.output.len()), execution.output == input)?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn arguments(context: &mut Context) -> Result<(), Failure> {
    let policy = context.native_policy();
    context.enforced(|context| {
        let nonce = context.nonce();
        let execution = context.native(&["arguments", "a b", &nonce, ""], &policy)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("its arguments", &said, said == format!("a b\n{nonce}\n"))?;
        let call = Call::new().arguments(["nul\0byte"]);
        let refused = context.prepare_native(&policy).map(|prepared| {
            context.block_on(async { prepared.instantiate().await?.call(call).await }).map_err(|error| error.kind())
        })?;
        let kind = refused.err();
        context.expect("an argument with a NUL byte", format!("{kind:?}"), kind == Some(ErrorKind::InvalidInput))
    })?;
    context.recovery()
}

fn exit_code(context: &mut Context) -> Result<(), Failure> {
    let policy = context.native_policy();
    context.enforced(|context| {
        for code in [0, 1, 75, 255] {
            let execution = context.native(&["exit", &code.to_string()], &policy)?;
            context.expect("its end", &execution.outcome, execution.outcome == Outcome::from_exit_code(code))?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn fault(context: &mut Context) -> Result<(), Failure> {
    const SIGSEGV: i32 = 11;
    let policy = context.native_policy();
    context.enforced(|context| {
        let execution = context.native(&["fault"], &policy)?;
        let typed = matches!(
            &execution.outcome,
            Outcome::Trapped { trap: TrapKind::Signal { number: SIGSEGV } | TrapKind::MemoryOutOfBounds, .. }
        );
        context.expect("touching memory that is not there", &execution.outcome, typed)?;
        let execution = context.native(&["abort"], &policy)?;
        let typed = matches!(&execution.outcome, Outcome::Trapped { trap, .. } if *trap != TrapKind::Other);
        context.expect("aborting", &execution.outcome, typed)
    })?;
    context.recovery()
}

fn forbidden_call(context: &mut Context) -> Result<(), Failure> {
    context.baseline(|context| outside(context, "ptrace", ""))?;
    context.enforced(|context| {
        let policy = context.native_policy();
        let execution = context.native(&["attack", "ptrace", ""], &policy)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        // Either an error the guest can handle, or an end that says why.
        let typed = match &execution.outcome {
            Outcome::Denied { .. } => true,
            Outcome::Completed => said.starts_with("refused"),
            _ => false,
        };
        context.expect("a call nobody grants", &execution.outcome, typed)
    })?;
    context.recovery()
}

/// What never comes.
const NEVER: Duration = Duration::from_secs(3600);
/// Long enough for a program to start on a busy machine, short enough for a check.
const QUOTA: Duration = Duration::from_millis(150);
/// Makes a call that nothing ends but its wall time. One that this does not end goes on for ever, so how late the end may be
/// does not matter.
fn expect_ended_by_wall_time(context: &mut Context, subject: &str, call: Call) -> Result<(), Failure> {
    let mut policy = context.native_policy();
    policy.quota.wall_time = Some(QUOTA);
    let prepared = context.prepare_native(&policy)?;
    let begun = Instant::now();
    let made = context.block_on(clock::within(QUOTA + super::PATIENCE, prepared.run(call)));
    let made = made.ok_or_else(|| context.failure(format!("{subject}: its wall time did not end it")))?;
    let execution = made.map_err(|error| context.failure(format!("native probe: {error}")))?;
    let took = begun.elapsed();
    context.expect_exceeded(subject, &execution, Resource::WallTime)?;
    context.expect("by the clock of this check", format!("{took:?}"), took >= QUOTA)
}

fn wall_time(context: &mut Context, verb: &str) -> Result<(), Failure> {
    context.enforced(|context| expect_ended_by_wall_time(context, verb, Call::new().arguments([verb])))?;
    context.recovery()
}

fn wall_time_input(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let input = context.late_input(NEVER, b"late", || {});
        expect_ended_by_wall_time(context, "waiting for input", Call::new().arguments(["read"]).input(input))
    })?;
    context.recovery()
}

fn cpu_time(context: &mut Context, verb: &str) -> Result<(), Failure> {
    context.enforced(|context| {
        let mut policy = context.native_policy();
        policy.quota.cpu_time = Some(QUOTA);
        // Long enough for any machine to give a guest its quota of a processor.
        policy.quota.wall_time = Some(Duration::from_secs(20));
        let begun = Instant::now();
        let execution = context.native(&[verb], &policy)?;
        context.expect_exceeded(verb, &execution, Resource::CpuTime)?;
        let took = begun.elapsed();
        context.expect("by the clock of this check", format!("{took:?}"), took >= QUOTA)?;
        // Sleeping costs nothing: the wall time ends it.
        policy.quota.wall_time = Some(2 * QUOTA);
        let execution = context.native(&["sleep"], &policy)?;
        context.expect_exceeded("sleep", &execution, Resource::WallTime)
    })?;
    context.recovery()
}

/// Quota of the memory checks. A program's own code and libraries count too, so half of it must be free.
const MEMORY_BYTES: u64 = 96 << 20;

fn memory(context: &mut Context, verb: &str) -> Result<(), Failure> {
    let touch =
        |context: &mut Context, bytes: u64, policy: &Policy| context.native(&[verb, &bytes.to_string()], policy);
    context.baseline(|context| {
        let mut policy = context.native_policy();
        policy.quota.memory_bytes = Some(8 * MEMORY_BYTES);
        let execution = touch(context, 2 * MEMORY_BYTES, &policy)?;
        context.expect_completed("under a larger quota", &execution)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("its output", &said, said == (2 * MEMORY_BYTES).to_string())
    })?;
    context.enforced(|context| {
        let mut policy = context.native_policy();
        policy.quota.memory_bytes = Some(MEMORY_BYTES);
        let execution = touch(context, MEMORY_BYTES / 2, &policy)?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("half of the quota", &said, said == (MEMORY_BYTES / 2).to_string())?;
        for bytes in [MEMORY_BYTES + 1, 2 * MEMORY_BYTES] {
            let execution = touch(context, bytes, &policy)?;
            let refused = execution.output == "refused".as_bytes();
            let ended = matches!(&execution.outcome, Outcome::QuotaExceeded { resource: Resource::Memory, .. });
            context.expect("more than the quota", &execution.outcome, refused || ended)?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn stack(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let mut policy = context.native_policy();
        policy.quota.stack_bytes = Some(512 << 10);
        let execution = context.native(&["recurse"], &policy)?;
        let ended = matches!(
            &execution.outcome,
            Outcome::QuotaExceeded { resource: Resource::Stack, .. }
                | Outcome::Trapped { trap: TrapKind::Signal { .. }, .. }
        );
        context.expect("recursion without end", &execution.outcome, ended)?;
        let bound = 16 << 20;
        let peak = execution.usage.memory_peak_bytes;
        context.expect("its peak memory", peak, peak < bound)
    })?;
    context.recovery()
}

fn written(context: &mut Context, verb: &str, resource: Resource) -> Result<(), Failure> {
    const LIMIT: u64 = 100_000;
    context.enforced(|context| {
        let mut policy = context.native_policy();
        (policy.quota.output_bytes, policy.quota.log_bytes) = (Some(LIMIT), Some(LIMIT));
        let execution = context.native(&[verb, &LIMIT.to_string()], &policy)?;
        context.expect_completed("exactly the quota", &execution)?;
        let execution = context.native(&[verb, &(LIMIT + 1).to_string()], &policy)?;
        context.expect_exceeded("one byte more", &execution, resource)?;
        let kept = execution.output.len().max(execution.error.len()) as u64;
        context.expect("what was kept", kept, kept <= LIMIT)
    })?;
    context.recovery()
}

fn open_files(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let folder = context.make_directory("files")?;
        std::fs::write(folder.join("file"), "x").map_err(|error| context.failure(error.to_string()))?;
        for limit in [1u64, 10] {
            let mut policy = context.native_policy();
            policy.grants.directories.push(DirectoryGrant::read_only(&folder, "/granted"));
            policy.quota.open_files = Some(limit);
            let execution = context.native(&["open", "/granted/file"], &policy)?;
            let said = String::from_utf8_lossy(&execution.output).into_owned();
            context.expect("files it could open", &said, said == limit.to_string())?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn with_scratch(context: &Context, disk_bytes: u64) -> Policy {
    let mut policy = context.native_policy();
    policy.grants.scratch = Some("/scratch".to_owned());
    policy.quota.disk_bytes = Some(disk_bytes);
    policy
}

fn disk_bytes(context: &mut Context) -> Result<(), Failure> {
    const LIMIT: u64 = 1 << 20;
    let fits = |context: &mut Context, disk_bytes: u64| {
        let policy = with_scratch(context, disk_bytes);
        let execution = context.native(&["fill", "/scratch/file"], &policy)?;
        context.expect_completed("filling the scratch directory", &execution)?;
        Ok(String::from_utf8_lossy(&execution.output).parse::<u64>().unwrap_or(u64::MAX))
    };
    context.baseline(|context| {
        let found = fits(context, 4 * LIMIT)?;
        context.expect("bytes that fit under a larger quota", found, found > LIMIT && found < u64::MAX)
    })?;
    context.enforced(|context| {
        for limit in [LIMIT, 4096, 0] {
            let found = fits(context, limit)?;
            context.expect(&format!("bytes that fit into {limit}"), found, found == limit)?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn scratch_is_own(context: &mut Context) -> Result<(), Failure> {
    let policy = with_scratch(context, 1 << 20);
    let prepared = context.baseline(|context| {
        let prepared = context.prepare_native(&policy)?;
        let write = Call::new().arguments(["attack", "write-file", "/scratch/file"]);
        let execution = context.block_on(prepared.run(write)).map_err(|error| context.failure(error.to_string()))?;
        let said = String::from_utf8_lossy(&execution.output).into_owned();
        context.expect("writing into its own", &said, said.starts_with("worked"))?;
        Ok(prepared)
    })?;
    context.enforced(|context| {
        let read = Call::new().arguments(["attack", "read-file", "/scratch/file"]);
        let execution = context.block_on(prepared.run(read)).map_err(|error| context.failure(error.to_string()))?;
        expect_stopped(context, &execution)
    })?;
    drop(prepared);
    context.recovery()
}

fn usage_cpu(context: &mut Context) -> Result<(), Failure> {
    let policy = context.native_policy();
    // Its start and end cost something besides.
    let around = context.baseline(|context| {
        let execution = context.native(&["burn", "1"], &policy)?;
        context.expect_completed("burning 1 ms", &execution)?;
        Ok(u64::try_from(execution.usage.cpu_time.as_nanos()).unwrap_or(u64::MAX))
    })?;
    context.enforced(|context| {
        let execution = context.native(&["burn", "200"], &policy)?;
        context.expect_completed("burning 200 ms", &execution)?;
        let own: u64 = String::from_utf8_lossy(&execution.output).parse().unwrap_or(u64::MAX);
        let told = u64::try_from(execution.usage.cpu_time.as_nanos()).unwrap_or(u64::MAX);
        // The kernel brings its figure up to date once a tick, and there are two of them.
        let truthful = told >= own / 10 * 9 && told <= own / 10 * 12 + 3 * around + 20_000_000;
        let seen = format!("{told} ns, by its own clock {own} ns, of a short program {around} ns");
        context.expect("CPU time told", seen, truthful)
    })?;
    context.recovery()
}

fn usage_memory(context: &mut Context) -> Result<(), Failure> {
    const TOUCHED: u64 = 32 << 20;
    context.enforced(|context| {
        let policy = context.native_policy();
        let execution = context.native(&["touch", &TOUCHED.to_string()], &policy)?;
        context.expect_completed("touching 32 MiB", &execution)?;
        let peak = execution.usage.memory_peak_bytes;
        context.expect("peak memory", peak, (TOUCHED..2 * TOUCHED).contains(&peak))?;
        // A parent's memory is not its child's.
        let ballast = vec![1u8; 64 << 20];
        let execution = context.native(&["exit", "0"], &policy)?;
        let peak = execution.usage.memory_peak_bytes;
        context.expect("of a small program under a large host", peak, peak < TOUCHED && ballast[1] == 1)
    })?;
    context.recovery()
}

fn cancel(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let policy = context.native_policy();
        for verb in ["spin", "sleep"] {
            let token = CancelToken::new();
            let theirs = token.clone();
            let input = context.late_input(NEVER, b"", move || theirs.cancel());
            let execution = context.native_call(Call::new().arguments([verb]).input(input).cancel(token), &policy)?;
            let cancelled = matches!(&execution.outcome, Outcome::Cancelled { .. });
            context.expect(verb, &execution.outcome, cancelled)?;
        }
        Ok(())
    })?;
    context.recovery()
}

fn dropped(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let policy = context.native_policy();
        let prepared = context.prepare_native(&policy)?;
        let mut instance = context
            .block_on(prepared.instantiate())
            .map_err(|error| context.failure(format!("native probe: {error}")))?;
        let call = Call::new().arguments(["sleep"]);
        let ended = context
            .block_on(async { tokio::time::timeout(Duration::from_millis(100), instance.call(call)).await.is_ok() });
        context.expect("a call that was dropped while it slept", if ended { "ended" } else { "dropped" }, !ended)?;
        let again = context.block_on(instance.call(Call::new())).map_err(|error| error.kind()).err();
        context.expect("another call of it", format!("{again:?}"), again == Some(ErrorKind::Stale))?;
        drop((instance, prepared));
        context.expect_nothing_left()
    })?;
    context.recovery()
}

fn many_starts(context: &mut Context) -> Result<(), Failure> {
    const STARTS: usize = 200;
    context.enforced(|context| {
        let policy = context.native_policy();
        let prepared = context.prepare_native(&policy)?;
        for start in 0..STARTS {
            let call = Call::new().arguments(["exit", "0"]);
            let execution = context.block_on(async { prepared.instantiate().await?.call(call).await });
            let execution = execution.map_err(|error| context.failure(format!("start {start}: {error}")))?;
            if !execution.outcome.is_success() {
                return context.expect("a start", &execution.outcome, false);
            }
        }
        drop(prepared);
        context.expect_nothing_left()?;
        context.expect("starts", STARTS, true)
    })?;
    context.recovery()
}

fn layers(context: &mut Context) -> Result<(), Failure> {
    context.enforced(|context| {
        let policy = context.native_policy();
        let execution = context.native(&["exit", "0"], &policy)?;
        let enforced: Vec<_> = execution
            .isolation
            .iter()
            .filter(|layer| layer.status == LayerStatus::Enforced)
            .map(|layer| layer.name.as_ref())
            .collect();
        context.expect("layers in force", enforced.join(", "), !enforced.is_empty())?;
        let missing: Vec<_> = execution
            .isolation
            .iter()
            .filter(|layer| layer.status == LayerStatus::Unavailable)
            .map(|layer| layer.name.as_ref())
            .collect();
        context.expect("layers this machine lacks", missing.join(", "), missing.is_empty())
    })?;
    context.recovery()
}
