//! The plan of a jail: what it shows, what it bounds, what it runs.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use palisade_core::{Access, Artifact, Clocks, DirectoryGrant, Error, ErrorKind, Policy, Result};
use palisade_filesystems::Fuse;

use crate::interpreter::Interpreter;
use crate::kind::{Kind, PRELOADED};
use crate::landlock;
use crate::libraries::{self, Files, Trust};
use crate::seccomp::{self, Stage};
use crate::shared::Shared;
use crate::special;
use crate::sys;
use crate::sys::protocol::{FD_ANSWERS, Mount, Plan, Program};

/// User and group a guest sees itself as.
const INNER_ID: u32 = 1000;
/// User a jail runs as when the host runs as root. Unlike `nobody` it owns nothing anywhere.
const OUTER_ID: u32 = 64_999;
/// Where the program lies in its jail.
const PROGRAM_DIRECTORY: &str = "/plugin";
/// Devices every program may use; they hold nothing and reach nobody.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// The plan of the jail in which `artifact`, which is of this `kind`, runs under `policy`.
///
/// # Errors
///
/// What is granted is not there or may not be shown, or a library is missing.
pub(crate) fn plan(
    shared: &Shared,
    artifact: &Artifact,
    kind: &Kind,
    policy: &Policy,
    interpreter: Option<Interpreter>,
) -> Result<Plan> {
    let mut files = Files::new();
    let mut mounts = Vec::new();
    let mut rules: Vec<(String, u64)> = Vec::new();
    let mut directories: Vec<(PathBuf, PathBuf)> = Vec::new();
    let name = program_name(artifact.name());
    let path = format!("{PROGRAM_DIRECTORY}/{name}");
    // A program that can start others may start itself; else nobody needs it as a file of its own in the jail.
    let placed = !matches!(kind, Kind::Executable(_)) || policy.grants.child_processes;
    let program = match kind {
        Kind::Executable(elf) => {
            libraries::add(&mut files, elf, Path::new(&path), Trust::Guest)?;
            let before = vec![artifact.name().to_owned()];
            Program::Execute { path: if placed { path.clone() } else { String::new() }, before }
        }
        Kind::Script => {
            let Some(Interpreter { path: interpreter, files: needed, directories: library }) = interpreter else {
                return Err(Error::new(ErrorKind::Internal, "prepare", "a script without its interpreter"));
            };
            files = needed;
            directories.extend(library.into_iter().map(|path| (path.clone(), path)));
            let option = own_option(artifact.bytes(), &interpreter);
            let interpreter = text(&interpreter)?;
            let before = [Some(interpreter.clone()), option, Some(path.clone())];
            Program::Execute { path: interpreter, before: before.into_iter().flatten().collect() }
        }
        Kind::Library => Program::Library { path: path.clone() },
    };
    for (shown, real) in &files {
        mounts.push(Mount::File { source: text(real)?, target: text(shown)?, device: false });
        rules.push((text(shown)?, landlock::FILE));
    }
    if !matches!(kind, Kind::Library) {
        for device in DEVICES {
            mounts.push(Mount::File { source: device.into(), target: device.into(), device: true });
            rules.push((device.into(), landlock::DEVICE));
        }
    }
    let mut root_bytes = 1 << 20;
    if placed {
        root_bytes += (artifact.bytes().len() as u64).next_multiple_of(4096);
        mounts.push(Mount::Program { target: path.clone() });
        rules.push((path, landlock::FILE));
    }
    for (host, guest) in &directories {
        mounts.push(directory(host, text(guest)?, false, true, Fuse::Granted, |_| Ok(None))?);
        rules.push((text(guest)?, landlock::directory(false, true, shared.landlock_abi)));
    }
    for grant in &policy.grants.directories {
        let guest = guest_path(&grant.guest)?;
        let writable = grant.access == Access::ReadWrite;
        // What nobody in the jail can write is code of the host's, as its libraries are.
        let executable = !writable && !can_write_into(policy, grant);
        mounts.push(directory(&grant.host, guest.clone(), writable, executable, shared.fuse, |found| {
            owners(shared.is_root, grant, found)
        })?);
        rules.push((guest, landlock::directory(writable, executable, shared.landlock_abi)));
    }
    if let Some(scratch) = &policy.grants.scratch {
        let target = guest_path(scratch)?;
        rules.push((target.clone(), landlock::directory(true, false, shared.landlock_abi)));
        mounts.push(Mount::Scratch { target, bytes: policy.quota.disk_bytes.unwrap_or(0) });
    }
    shown_already(&mut mounts, &mut rules);
    refuse_overlaps(&mounts)?;
    let is_library = matches!(kind, Kind::Library);
    let host_calls = !is_library && !policy.grants.host_functions.is_empty();
    let objects = shared.memory_groups.is_some() || objects_bytes(policy).is_some();
    let filter = |stage| seccomp::filter(stage, policy, objects);
    Ok(Plan {
        become_id: shared.is_root.then_some(OUTER_ID),
        inner_id: INNER_ID,
        root_bytes,
        mounts,
        preload: if is_library { PRELOADED.map(str::to_owned).to_vec() } else { Vec::new() },
        program,
        environment: policy.grants.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        limits: limits(policy, is_library, shared.memory_groups.is_some(), host_calls),
        landlock: landlock::handled(shared.landlock_abi),
        landlock_rules: rules,
        filter: filter(if is_library { Stage::LibraryLoading } else { Stage::Executable }),
        filter_locked: if is_library { filter(Stage::LibraryLocked) } else { Vec::new() },
        trap_tsc: matches!(policy.grants.clocks, Clocks::Coarse { .. }),
        own_user_namespace: tasks(policy).is_some(),
        makes_code: policy.grants.executable_memory,
        host_calls,
        ablated: shared.ablated,
    })
}

/// User and group of the host in whose place the guest's own stand in a granted directory.
///
/// Where the host is an ordinary user, so is the guest, and everybody else's files stay theirs. Where it is root, what
/// the guest makes is not root's because nobody thought of it: a program that belongs to root is one bit away from
/// being root.
fn owners(is_root: bool, grant: &DirectoryGrant, found: &std::fs::Metadata) -> Result<Option<(u32, u32)>> {
    let refused = |kind, message: String, help: String| {
        Err(Error::new(kind, "prepare", message).with_context("field", "grants.directories").with_help(help))
    };
    let place = grant.host.display();
    if !is_root {
        let own = rustix::process::geteuid().as_raw();
        return match grant.owner {
            Some(owner) if owner != own => refused(
                ErrorKind::Unsupported,
                format!("user {own} cannot make files in {place} that belong to user {owner}"),
                "leave the owner out, or start as root".into(),
            ),
            _ => Ok(None),
        };
    }
    let writable = grant.access == Access::ReadWrite;
    match grant.owner {
        None if writable && found.uid() == 0 => refused(
            ErrorKind::InvalidPolicy,
            format!("the directory {place} belongs to root, and so would all that the guest makes in it"),
            format!(
                "give the directory to another user (`chown {OUTER_ID} {place}`), or name the owner of what the guest \
                 makes (`owner = 0` in a policy, `--dir {place}::{}:rw:0`)",
                grant.guest
            ),
        ),
        None => {
            // Root's group stays out of it as well. Nothing is made in what can only be read.
            let group = if writable && found.gid() == 0 { OUTER_ID } else { found.gid() };
            Ok(Some((found.uid(), group)))
        }
        Some(owner) => Ok(Some((owner, if owner != 0 && found.gid() == 0 { OUTER_ID } else { found.gid() }))),
    }
}

/// The option that a script's first line gives to its interpreter (`#!/usr/bin/sbcl --script`), if it is this one.
fn own_option(script: &[u8], interpreter: &Path) -> Option<String> {
    /// The kernel reads no further either.
    const LINE_BYTES_MAX: usize = 256;
    let line =
        script.get(..LINE_BYTES_MAX).unwrap_or(script).strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let (named, option) = std::str::from_utf8(line).ok()?.trim().split_once([' ', '\t'])?;
    let same = Path::new(named).file_name()? == interpreter.file_name()?;
    Some(option.trim().to_owned()).filter(|option| same && option.starts_with('-') && !option.contains('\0'))
}

/// The last part of an artifact's name, as a file name.
fn program_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    let safe: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "._-+".contains(*c)).take(200).collect();
    if safe.trim_matches('.').is_empty() { "plugin".to_owned() } else { safe }
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::InvalidPolicy, "prepare", format!("the path {} is not UTF-8", path.display()))
    })
}

/// The path a guest sees a directory at.
fn guest_path(guest: &str) -> Result<String> {
    let invalid = |why: &str| {
        Err(Error::new(ErrorKind::InvalidPolicy, "prepare", format!("the guest path `{guest}` {why}"))
            .with_context("field", "grants.directories")
            .with_help("choose an absolute path such as `/data`"))
    };
    let path = Path::new("/").join(guest);
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) || parts.any(|part| !matches!(part, Component::Normal(_))) {
        return invalid("leads upwards");
    }
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") {
        return invalid("is the root, which holds the program itself");
    }
    if path.starts_with(PROGRAM_DIRECTORY) {
        return invalid("is where a program lies");
    }
    text(&path)
}

/// A directory to show. It is opened and looked at now; the zygote checks that it still is the same.
fn directory(
    host: &Path,
    guest: String,
    writable: bool,
    executable: bool,
    fuse: Fuse,
    owners: impl FnOnce(&std::fs::Metadata) -> Result<Option<(u32, u32)>>,
) -> Result<Mount> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "prepare", format!("the granted directory {} cannot be opened", host.display()))
            .with_source(error)
    };
    let real = host.canonicalize().map_err(failed)?;
    let found = real.metadata().map_err(failed)?;
    if !found.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    special::refuse(&real, fuse).map_err(|error| error.with_context("field", "grants.directories"))?;
    Ok(Mount::Directory {
        source: text(&real)?,
        target: guest,
        writable,
        executable,
        device: found.dev(),
        inode: found.ino(),
        owners: owners(&found)?,
    })
}

/// Whether a guest under `policy` can write where `grant` lets it read: by another grant of the same place, or of one within or
/// around it.
fn can_write_into(policy: &Policy, grant: &DirectoryGrant) -> bool {
    let real = |grant: &DirectoryGrant| grant.host.canonicalize().unwrap_or_else(|_| grant.host.clone());
    let place = real(grant);
    let mut writable = policy.grants.directories.iter().filter(|other| other.access == Access::ReadWrite);
    writable.any(|other| place.starts_with(real(other)) || real(other).starts_with(&place))
}

/// Directories of the root that on many systems are links to those of the same name beneath `/usr`.
const MERGED: [&str; 5] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64"];

/// Leaves out what a directory shows anyway at the same path: libraries within a granted `/usr`, say. With that, the links
/// that lead into it.
fn shown_already(mounts: &mut Vec<Mount>, rules: &mut Vec<(String, u64)>) {
    let directories: Vec<(PathBuf, PathBuf)> = mounts
        .iter()
        .filter_map(|mount| match mount {
            Mount::Directory { source, target, writable: false, executable: true, .. } => {
                Some((PathBuf::from(target), PathBuf::from(source)))
            }
            _ => None,
        })
        .collect();
    let usr = directories.iter().any(|(target, source)| target == Path::new("/usr") && source == Path::new("/usr"));
    let links: Vec<&str> = MERGED
        .into_iter()
        .filter(|link| usr && std::fs::read_link(link).is_ok_and(|to| to == Path::new(&format!("usr{link}"))))
        .collect();
    let by_link = |target: &str| links.iter().any(|link| Path::new(target).starts_with(link) && target != *link);
    let is_shown = |source: &str, target: &str| {
        directories.iter().any(|(outer, from)| {
            let inside = Path::new(target).strip_prefix(outer).ok().filter(|inside| inside.parent().is_some());
            let there = inside.and_then(|inside| from.join(inside).canonicalize().ok());
            there.is_some_and(|there| there.starts_with(from) && there == Path::new(source))
        })
    };
    mounts.retain(|mount| match mount {
        Mount::File { source, target, device: false } => {
            !(is_shown(source, target) || by_link(target) && Path::new(source).starts_with("/usr"))
        }
        Mount::Directory { source, target, writable: false, .. } => !is_shown(source, target),
        _ => true,
    });
    for link in links {
        let free = |mount: &Mount| !Path::new(target_of(mount)).starts_with(link);
        if mounts.iter().all(free) {
            mounts.push(Mount::Link { target: format!("usr{link}"), path: link.to_owned() });
        }
    }
    // A rule names what is there. What lies in a directory has that one's.
    rules.retain(|(path, _)| mounts.iter().any(|mount| target_of(mount) == path));
}

/// Where `mount` is seen.
fn target_of(mount: &Mount) -> &str {
    match mount {
        Mount::File { target, .. }
        | Mount::Directory { target, .. }
        | Mount::Program { target }
        | Mount::Scratch { target, .. } => target,
        Mount::Link { path, .. } => path,
    }
}

/// Nothing may be shown inside a directory of the host: the place to show it at would have to be made there.
fn refuse_overlaps(mounts: &[Mount]) -> Result<()> {
    for outer in mounts.iter().filter(|mount| matches!(mount, Mount::Directory { .. } | Mount::Scratch { .. })) {
        let outer_target = target_of(outer);
        for inner in mounts.iter().filter(|inner| *inner != outer) {
            let inner_target = target_of(inner);
            if Path::new(inner_target).starts_with(outer_target) {
                return Err(Error::new(
                    ErrorKind::InvalidPolicy,
                    "prepare",
                    format!("the directory shown at `{outer_target}` would hide or hold `{inner_target}`"),
                )
                .with_context("field", "grants.directories")
                .with_help("show it under another name"));
            }
        }
    }
    Ok(())
}

/// Most threads and child processes besides the first, where there may be some and they are bounded. They are counted in a
/// user namespace of the instance's own, where nobody else counts, and together: the kernel makes no difference between them.
fn tasks(policy: &Policy) -> Option<u64> {
    let processes = if policy.grants.child_processes { policy.quota.processes? } else { 0 };
    Some(processes.saturating_add(policy.quota.threads?)).filter(|tasks| *tasks > 0)
}

/// What an open descriptor may make the kernel hold, at most: half of a pair of sockets whose buffer is full (the kernel's
/// 208 KiB, and one message beyond), or its share in what waits for others; a pipe holds less.
const OBJECT_BYTES: u64 = 320 << 10;

/// Memory that is kept for pipes, pairs of sockets and their like where no control group counts them: what all that a guest
/// can have open may hold. `None`: there is not so much, and it gets none of them.
fn objects_bytes(policy: &Policy) -> Option<u64> {
    objects_bytes_with(policy, sys::socket_buffer_bytes())
}

/// As [`objects_bytes`], on a host whose sockets hold so much.
fn objects_bytes_with(policy: &Policy, socket_buffer_bytes: u64) -> Option<u64> {
    /// What [`OBJECT_BYTES`] is computed from: the kernel's default.
    const SOCKET_BUFFER_BYTES: u64 = 212_992;
    if socket_buffer_bytes > SOCKET_BUFFER_BYTES {
        return None;
    }
    let Some(memory) = policy.quota.memory_bytes else { return Some(0) };
    // Those who wait for many grow with the square of their number: beyond this they would be more than their share.
    let files = policy.quota.open_files.filter(|files| *files <= 64)?.saturating_add(3);
    Some(files * OBJECT_BYTES).filter(|bytes| *bytes <= memory / 4)
}

/// Resource limits of an instance.
fn limits(policy: &Policy, is_library: bool, memory_groups: bool, host_calls: bool) -> Vec<(u32, u64)> {
    let quota = &policy.quota;
    let seconds = |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    // A backstop for when the host cannot look: the host is stopped or dead. Not for a library: the kernel counts over the
    // life of a process, and a quota of time is for one call of an instance that may be kept.
    let cpu = match (quota.cpu_time, quota.wall_time) {
        _ if is_library => u64::MAX,
        (Some(cpu), _) => seconds(cpu).saturating_add(1),
        (None, Some(wall)) if quota.threads == Some(0) => seconds(wall).saturating_add(2),
        _ => u64::MAX,
    };
    // Writable directories of the host are granted without a bound only, and a scratch directory has its size.
    let writable = policy.grants.directories.iter().any(|directory| directory.access == Access::ReadWrite)
        || policy.grants.scratch.is_some();
    // A control group counts what is used, not what is reserved.
    let own = quota.memory_bytes.map(|bytes| bytes - objects_bytes(policy).unwrap_or(0));
    let address_space = own.filter(|_| !memory_groups).unwrap_or(u64::MAX);
    let mut limits = vec![
        (libc::RLIMIT_CPU, cpu),
        (libc::RLIMIT_AS, address_space),
        (libc::RLIMIT_DATA, address_space),
        (libc::RLIMIT_STACK, quota.stack_bytes.unwrap_or(8 << 20)),
        (libc::RLIMIT_FSIZE, if writable { u64::MAX } else { 0 }),
        // One byte: with zero, a kernel set up to pipe core dumps to a program would still do so.
        (libc::RLIMIT_CORE, 1),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_SIGPENDING, 64),
        (libc::RLIMIT_RTPRIO, 0),
        (libc::RLIMIT_NICE, 0),
    ];
    if let Some(tasks) = tasks(policy) {
        limits.push((libc::RLIMIT_NPROC, tasks.saturating_add(1)));
    }
    if let Some(files) = quota.open_files {
        // The kernel bounds the numbers of descriptors, and those of host calls lie among them.
        let own = 3 + if host_calls && files > u64::from(FD_ANSWERS.unsigned_abs()) - 3 { 2 } else { 0 };
        limits.push((libc::RLIMIT_NOFILE, files.saturating_add(own)));
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Policy {
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        policy
    }

    #[test]
    fn what_nobody_counts_is_taken_off_the_address_space_or_not_given() {
        const SOCKET: u64 = 212_992;
        let mut policy = fine();
        let space = |policy: &Policy, groups| {
            let all = limits(policy, false, groups, false);
            all.into_iter().find(|limit| limit.0 == libc::RLIMIT_AS).map(|limit| limit.1)
        };
        assert_eq!(objects_bytes_with(&policy, SOCKET), Some(67 * OBJECT_BYTES));
        assert_eq!(space(&policy, false), Some((128 << 20) - objects_bytes(&policy).unwrap_or(0)));
        assert_eq!(space(&policy, true), Some(u64::MAX));
        // More descriptors than that, or memory of which it would be more than a part.
        policy.quota.open_files = Some(65);
        assert_eq!((objects_bytes_with(&policy, SOCKET), space(&policy, false)), (None, Some(128 << 20)));
        policy.quota.open_files = None;
        assert_eq!(objects_bytes_with(&policy, SOCKET), None);
        (policy.quota.open_files, policy.quota.memory_bytes) = (Some(64), Some(64 << 20));
        assert_eq!((objects_bytes_with(&policy, SOCKET), space(&policy, false)), (None, Some(64 << 20)));
        // A host that gives its sockets more.
        policy.quota.memory_bytes = Some(1 << 30);
        assert!(objects_bytes_with(&policy, SOCKET).is_some() && objects_bytes_with(&policy, SOCKET + 1).is_none());
        policy.quota.memory_bytes = None;
        assert_eq!((objects_bytes_with(&policy, SOCKET), space(&policy, false)), (Some(0), Some(u64::MAX)));
    }

    #[test]
    fn what_a_directory_shows_anyway_is_left_out() {
        let file = |target: &str| Mount::File {
            source: Path::new(target).canonicalize().unwrap().to_str().unwrap().to_owned(),
            target: target.to_owned(),
            device: false,
        };
        let shown = |host: &str, executable| {
            let found = Path::new(host).metadata().unwrap();
            Mount::Directory {
                source: host.to_owned(),
                target: host.to_owned(),
                writable: false,
                executable,
                device: found.dev(),
                inode: found.ino(),
                owners: None,
            }
        };
        let outside = Mount::Scratch { target: "/tmp".into(), bytes: 0 };
        let all = [shown("/usr", true), file("/usr/bin/env"), shown("/usr/share", true), outside.clone()];
        let rules = || ["/usr", "/usr/bin/env", "/usr/share", "/tmp"].map(|path| (path.to_owned(), 1)).to_vec();
        let (mut mounts, mut left) = (all.to_vec(), rules());
        shown_already(&mut mounts, &mut left);
        assert_eq!(mounts[..2], [shown("/usr", true), outside.clone()]);
        assert!(mounts[2..].iter().all(|mount| matches!(mount, Mount::Link { .. })), "{mounts:?}");
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(refuse_overlaps(&mounts).is_ok());
        // What shows something else there, and what may not be executed where it lies, stays, and is refused.
        let mut other = all.to_vec();
        other[1] = Mount::File { source: "/etc/hostname".into(), target: "/usr/bin/env".into(), device: false };
        let mut plain = all.to_vec();
        plain[0] = shown("/usr", false);
        for mut mounts in [other, plain] {
            shown_already(&mut mounts, &mut rules());
            assert!(refuse_overlaps(&mounts).is_err(), "{mounts:?}");
        }
    }

    #[test]
    fn the_kernels_own_clock_bounds_what_has_one_call_only() {
        let mut policy = fine();
        policy.quota.cpu_time = Some(Duration::from_millis(1500));
        let cpu =
            |is_library| limits(&policy, is_library, true, false).into_iter().find(|limit| limit.0 == libc::RLIMIT_CPU);
        assert_eq!(cpu(false), Some((libc::RLIMIT_CPU, 3)));
        assert_eq!(cpu(true), Some((libc::RLIMIT_CPU, u64::MAX)));
    }

    #[test]
    fn a_script_may_give_its_interpreter_an_option() {
        let option = |script: &str| own_option(script.as_bytes(), Path::new("/usr/bin/sbcl"));
        assert_eq!(option("#!/usr/bin/sbcl --script\n(print 1)"), Some("--script".into()));
        assert_eq!(option("#! /opt/sbcl\t--script\n"), Some("--script".into()));
        assert_eq!(option("#!/opt/sbcl\t--script --x \n"), Some("--script --x".into()));
        for script in ["", "#!", "(print 1)", "#!/usr/bin/sbcl", "#!/usr/bin/python3 -I\n", "#!/usr/bin/sbcl file\n"] {
            assert_eq!(option(script), None, "{script}");
        }
    }

    #[test]
    fn guest_paths_stay_inside() {
        for (guest, shown) in [("/data", "/data"), ("data", "/data"), ("/a/b/", "/a/b"), ("./x", "/x")] {
            assert_eq!(guest_path(guest).unwrap(), shown);
        }
    }

    #[test]
    fn names_of_artifacts_make_harmless_file_names() {
        assert_eq!(program_name("a/b/tool.py"), "tool.py");
        assert_eq!(program_name("../.."), "plugin");
        assert_eq!(program_name("a b\n/"), "plugin");
        assert_eq!(program_name("x y"), "xy");
    }
}
