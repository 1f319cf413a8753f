//! Builds the jail all instances of a zygote share: namespaces and a private root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::ffi;
use super::protocol::{Mount, Plan};

pub(crate) const NEW_NS: u64 = 0x0002_0000;
pub(crate) const NEW_CGROUP: u64 = 0x0200_0000;
pub(crate) const NEW_UTS: u64 = 0x0400_0000;
pub(crate) const NEW_IPC: u64 = 0x0800_0000;
pub(crate) const NEW_USER: u64 = 0x1000_0000;
pub(crate) const NEW_PID: u64 = 0x2000_0000;
pub(crate) const NEW_NET: u64 = 0x4000_0000;

const MS_RDONLY: u64 = 1;
const MS_NOSUID: u64 = 2;
const MS_NODEV: u64 = 4;
const MS_NOEXEC: u64 = 8;
const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_REC: u64 = 16384;
const MS_PRIVATE: u64 = 1 << 18;
const MNT_DETACH: i32 = 2;

/// A step that failed, for the host's message.
pub(crate) struct Failed {
    pub(crate) step: String,
    pub(crate) error: io::Error,
}

pub(crate) trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, Failed>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl Into<String>) -> Result<T, Failed> {
        self.map_err(|error| Failed { step: step.into(), error })
    }
}

/// Protections that a build made for it can leave out. The numbers are those of the host's table.
pub(crate) mod protection {
    pub(crate) const PRIVATE_ROOT: u32 = 0;
    pub(crate) const READ_ONLY: u32 = 1;
    pub(crate) const NETWORK_NAMESPACE: u32 = 2;
    pub(crate) const PID_NAMESPACE: u32 = 3;
    pub(crate) const IPC_NAMESPACE: u32 = 4;
    pub(crate) const UTS_NAMESPACE: u32 = 5;
    pub(crate) const CAPABILITIES: u32 = 6;
    pub(crate) const LIMITS: u32 = 7;
    pub(crate) const LANDLOCK: u32 = 8;
    pub(crate) const SECCOMP: u32 = 9;
    pub(crate) const PARENT_DEATH: u32 = 10;
    pub(crate) const DESCRIPTORS: u32 = 11;
    pub(crate) const OUTER_USER: u32 = 12;
    pub(crate) const CGROUP_NAMESPACE: u32 = 13;
    pub(crate) const NO_NEW_PRIVILEGES: u32 = 14;
    pub(crate) const NOT_DUMPABLE: u32 = 15;
}

impl Plan {
    /// Whether a protection is on.
    pub(crate) fn on(&self, protection: u32) -> bool {
        self.ablated & (1 << protection) == 0
    }
}

/// Builds the jail. `program` is the descriptor that came with the plan. `processes` is the host's `/proc`, as an open
/// directory that stays reachable after the root is gone.
pub(crate) fn build(plan: &Plan, program: Option<i32>) -> Result<(), Failed> {
    let mut shared = NEW_NS;
    for (flag, protection) in [
        (NEW_NET, protection::NETWORK_NAMESPACE),
        (NEW_IPC, protection::IPC_NAMESPACE),
        (NEW_UTS, protection::UTS_NAMESPACE),
        (NEW_CGROUP, protection::CGROUP_NAMESPACE),
    ] {
        if plan.on(protection) {
            shared |= flag;
        }
    }
    match plan.become_id.filter(|_| plan.on(protection::OUTER_USER)) {
        // As root the mounts are made before the privileges go, so that directories only root may enter can be granted.
        Some(id) => {
            ffi::unshare_namespaces(shared).step("new namespaces")?;
            root(plan, program, Some(id))?;
            ffi::become_user(id).step("become an unprivileged user")?;
            // Changing users made this process unreadable for itself; its maps must be written once more.
            ffi::set_process_attribute(4, 1, 0).step("make the process's own files writable")?;
            ffi::unshare_namespaces(NEW_USER).step("new user namespace")?;
            map_user(plan.inner_id, id, id)?;
        }
        None => {
            let (uid, gid) = fs::metadata("/proc/self").map(|own| (own.uid(), own.gid())).step("read /proc/self")?;
            ffi::unshare_namespaces(NEW_USER | shared).step("new user namespace")?;
            map_user(plan.inner_id, uid, gid)?;
            root(plan, program, None)?;
        }
    }
    if plan.on(protection::UTS_NAMESPACE) && plan.become_id.is_none() {
        ffi::set_host_name("palisade").step("set the host name")?;
    }
    Ok(())
}

/// Where the process's own files in the host's `/proc` are. Open since before the root was left.
static OWN: std::sync::OnceLock<i32> = std::sync::OnceLock::new();

/// The host's `/proc` itself.
static PROCESSES: std::sync::OnceLock<i32> = std::sync::OnceLock::new();

/// Maps the user of a clone that has a user namespace of its own to itself.
pub(crate) fn map_child(pid: i32, id: u32) -> Result<(), Failed> {
    let processes = PROCESSES.get().copied().unwrap_or(-1);
    for (name, contents) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("{id} {id} 1\n")), ("gid_map", format!("{id} {id} 1\n"))]
    {
        let write = || {
            let path = ffi::c_string(&format!("{pid}/{name}"))?;
            let fd = ffi::open_at(processes, &path, 1)?;
            let written = ffi::write_all(fd, contents.as_bytes());
            ffi::close_fd(fd);
            written
        };
        write().step(format!("map the user of an instance ({name})"))?;
    }
    Ok(())
}

/// Opens what must stay reachable when the root is gone.
pub(crate) fn keep_own_files() -> Result<(), Failed> {
    let processes = ffi::open_path("/proc", ffi::O_PATH, 0).step("open /proc (is it mounted?)")?;
    let _ = PROCESSES.set(processes);
    let own = ffi::open_path("/proc/self", ffi::O_PATH, 0).step("open /proc/self (is /proc mounted?)")?;
    let _ = OWN.set(own);
    Ok(())
}

fn write_own(name: &str, contents: &str) -> io::Result<()> {
    let own = OWN.get().copied().unwrap_or(-1);
    let path = std::ffi::CString::new(name).map_err(|_| io::Error::from_raw_os_error(ffi::EINVAL))?;
    let fd = ffi::open_at(own, &path, 1)?;
    let written = ffi::write_all(fd, contents.as_bytes());
    ffi::close_fd(fd);
    written
}

fn map_user(inner: u32, uid: u32, gid: u32) -> Result<(), Failed> {
    write_own("setgroups", "deny").step("deny setgroups")?;
    write_own("uid_map", &format!("{inner} {uid} 1\n")).step("map the user")?;
    write_own("gid_map", &format!("{inner} {gid} 1\n")).step("map the group")
}

/// Where the new root is put together.
const STAGE: &str = "/tmp";

/// Makes the private root and enters it.
fn root(plan: &Plan, program: Option<i32>, owner: Option<u32>) -> Result<(), Failed> {
    ffi::mount_at("", "/", "", MS_REC | MS_PRIVATE, "").step("make mounts private")?;
    if owner.is_some() && plan.on(protection::UTS_NAMESPACE) {
        ffi::set_host_name("palisade").step("set the host name")?;
    }
    let mut namespaces: Vec<((u32, u32), i32)> = Vec::new();
    for mount in &plan.mounts {
        if let (Some(guest), Mount::Directory { owners: Some(owners), .. }) = (owner, mount)
            && !namespaces.iter().any(|(known, _)| known == owners)
        {
            namespaces.push((*owners, owner_namespace(guest, *owners)?));
        }
    }
    let stage = [STAGE, "/"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/");
    // Opened before the new root covers anything.
    let mut sources = Vec::new();
    for mount in &plan.mounts {
        sources.push(match mount {
            Mount::File { source, .. } | Mount::Directory { source, .. } => {
                Some(ffi::open_path(source, ffi::O_PATH, 0).step(format!("open {source}"))?)
            }
            Mount::Program { .. } | Mount::Link { .. } | Mount::Scratch { .. } => None,
        });
    }
    // One inode each for every directory, file and link, with room for the directories above them.
    let inodes = 64 + 16 * plan.mounts.len();
    let options = format!("mode=0755,size={},nr_inodes={inodes}", plan.root_bytes);
    ffi::mount_at("palisade", stage, "tmpfs", MS_NOSUID | MS_NODEV, &options).step("mount the private root")?;
    for (mount, source) in plan.mounts.iter().zip(&sources) {
        place(plan, mount, stage, source.or(program), &namespaces)?;
    }
    sources.into_iter().flatten().for_each(ffi::close_fd);
    if !plan.on(protection::PRIVATE_ROOT) {
        show_host(stage)?;
    }
    std::env::set_current_dir(stage).step("enter the private root")?;
    ffi::pivot_root_here().step("pivot to the private root")?;
    ffi::unmount(".", MNT_DETACH).step("leave the old root")?;
    std::env::set_current_dir("/").step("enter the private root")?;
    if plan.on(protection::READ_ONLY) {
        ffi::mount_at("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, "")
            .step("make the private root read-only")?;
    }
    verify(plan)
}

/// Most files and directories in a scratch directory: each costs the kernel memory whatever its size.
const SCRATCH_INODES_MAX: u32 = 16_384;
const PAGE: u64 = 4096;

/// Mounts the scratch directories of an instance, in a mount namespace of its own.
pub(crate) fn mount_scratch(plan: &Plan) -> Result<(), Failed> {
    for mount in &plan.mounts {
        let Mount::Scratch { target, bytes } = mount else { continue };
        // The kernel rounds up to pages, and takes zero for no bound.
        let pages = bytes / PAGE;
        let options = format!("mode=0700,size={},nr_inodes={SCRATCH_INODES_MAX}", pages.max(1) * PAGE);
        let flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | if pages == 0 { MS_RDONLY } else { 0 };
        ffi::mount_at("palisade", target, "tmpfs", flags, &options).step(format!("mount {target}"))?;
    }
    Ok(())
}

/// Shows everything of the host's root that is not there yet.
fn show_host(stage: &str) -> Result<(), Failed> {
    for entry in fs::read_dir("/").step("read the host's root")?.flatten() {
        let (from, to) = (entry.path(), format!("{stage}{}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && from != Path::new(stage) && !Path::new(&to).exists() {
            fs::create_dir(&to).step("show the host's root")?;
            ffi::mount_at(&from.to_string_lossy(), &to, "", MS_BIND | MS_REC, "").step("show the host's root")?;
        }
    }
    Ok(())
}

/// Puts one thing into the root that is being made at `stage`. `from` is the open source, or the program.
fn place(
    plan: &Plan,
    mount: &Mount,
    stage: &str,
    from: Option<i32>,
    namespaces: &[((u32, u32), i32)],
) -> Result<(), Failed> {
    let from = from.ok_or_else(|| io::Error::other("the plan came without its program"));
    let opened = |fd: i32| format!("/proc/self/fd/{fd}");
    let at = |target: &str| format!("{}/{}", stage.trim_end_matches('/'), target.trim_start_matches('/'));
    let parents = |path: &str| {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/")).to_owned();
        directories(&parent).step(format!("make {}", parent.display()))
    };
    match mount {
        Mount::File { source, target, device } => {
            let path = at(target);
            parents(&path)?;
            fs::File::create(&path).step(format!("make {target}"))?;
            let from = from.step(format!("open {source}"))?;
            ffi::mount_at(&opened(from), &path, "", MS_BIND, "").step(format!("show {source}"))?;
            let flags = if *device { MS_NOEXEC } else { MS_NODEV };
            restrict(plan, &path, flags | MS_NOSUID | if *device { 0 } else { MS_RDONLY })
                .step(format!("restrict {target}"))
        }
        Mount::Directory { source, target, writable, executable, device, inode, owners } => {
            let path = at(target);
            directories(Path::new(&path)).step(format!("make {target}"))?;
            let from = from.step(format!("open {source}"))?;
            match namespaces.iter().find(|(of, _)| Some(of) == owners.as_ref()) {
                Some((_, namespace)) => {
                    let tree = ffi::clone_mount(from).step(format!("open {source}"))?;
                    ffi::map_owners(tree, *namespace).step(format!(
                        "translate the owners of files in {source} (does its file system support it?)"
                    ))?;
                    ffi::attach_mount(tree, &path).step(format!("show {source}"))?;
                    ffi::close_fd(tree);
                }
                None => ffi::mount_at(&opened(from), &path, "", MS_BIND, "").step(format!("show {source}"))?,
            }
            let shown = fs::symlink_metadata(&path).step(format!("look at {target}"))?;
            if (shown.dev(), shown.ino()) != (*device, *inode) {
                return Err(io::Error::other("the path names another directory now")).step(format!("show {source}"));
            }
            let flags = if *writable { 0 } else { MS_RDONLY } | if *executable { 0 } else { MS_NOEXEC };
            restrict(plan, &path, flags | MS_NOSUID | MS_NODEV).step(format!("restrict {target}"))
        }
        Mount::Program { target } => {
            let path = at(target);
            parents(&path)?;
            // Opened anew: others that copy the same file have a position of their own.
            let mut from = fs::File::open(opened(from.step("program")?)).step("program")?;
            let mut to = fs::File::create(&path).step(format!("make {target}"))?;
            io::copy(&mut from, &mut to).step(format!("write {target}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).step(format!("write {target}"))
        }
        Mount::Scratch { target, .. } => directories(Path::new(&at(target))).step(format!("make {target}")),
        Mount::Link { target, path } => {
            let path = at(path);
            parents(&path)?;
            symlink(target, &path).step(format!("link {path}"))
        }
    }
}

/// Makes `path` and all directories above it, readable by everybody.
fn directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        directories(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Applies flags to a bind mount: the call that makes it ignores them. Flags the host's own mount has, and which may not be
/// lifted in a user namespace, are kept.
fn restrict(plan: &Plan, path: &str, flags: u64) -> io::Result<()> {
    let flags = if plan.on(protection::READ_ONLY) { flags } else { flags & !MS_RDONLY };
    let kept = ffi::mount_flags(path)? & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY | MS_ATIME);
    ffi::mount_at("", path, "", MS_REMOUNT | MS_BIND | flags | kept, "")
}

/// Access-time flags, which are locked in a user namespace as well. `statvfs` and `mount` use the same bits.
const MS_ATIME: u64 = 1024 | 2048 | (1 << 21);

/// A user namespace that exchanges user and group `guest` with `owners`, and leaves all others as they are.
fn owner_namespace(guest: u32, (user, group): (u32, u32)) -> Result<i32, Failed> {
    let step = "make a user namespace for owners";
    let (read, write) = ffi::pipe().step(step)?;
    let pid = ffi::clone_child(NEW_USER).step(step)?;
    if pid == 0 {
        ffi::close_fd(write);
        // Holds the namespace until the parent has it open and closes the pipe.
        let _ = ffi::read_exact(read, &mut [0]);
        ffi::exit(0);
    }
    ffi::close_fd(read);
    let own = format!("/proc/{pid}");
    let namespace = fs::write(format!("{own}/uid_map"), exchange(guest, user))
        .and_then(|()| fs::write(format!("{own}/gid_map"), exchange(guest, group)))
        .and_then(|()| ffi::open_path(&format!("{own}/ns/user"), 0, 0))
        .step(step);
    ffi::close_fd(write);
    ffi::reap(pid);
    namespace
}

/// A map of ids that exchanges `a` and `b` and leaves all others as they are.
fn exchange(a: u32, b: u32) -> String {
    let (low, high) = (a.min(b), a.max(b));
    // The last id is none.
    let last = u32::MAX - 1;
    // Runs of ids, each with the first of the run it is mapped to.
    let runs = [
        (0, low, 0),
        (low, low + 1, high),
        (low + 1, high, low + 1),
        (high, high + 1, low),
        (high + 1, last, high + 1),
    ];
    let runs = if low == high { vec![(0, last, 0)] } else { runs.to_vec() };
    let run = |(from, end, to): (u32, u32, u32)| (end > from).then(|| format!("{from} {to} {}\n", end - from));
    runs.into_iter().filter_map(run).collect()
}

/// Asserts that the root is what was asked for.
fn verify(plan: &Plan) -> Result<(), Failed> {
    let failed = |what: &str| Err(io::Error::other(what.to_owned())).step("verify the private root");
    let here = fs::metadata(".").step("verify the private root")?;
    let above = fs::metadata("..").step("verify the private root")?;
    if std::env::current_dir().ok().as_deref() != Some(Path::new("/"))
        || (here.dev(), here.ino()) != (above.dev(), above.ino())
    {
        return failed("the working directory is not the root");
    }
    for hidden in ["/proc", "/sys", "/etc/passwd"] {
        let asked_for =
            |target: &str| target == hidden || hidden.starts_with(&format!("{}/", target.trim_end_matches('/')));
        let granted = plan.mounts.iter().any(|mount| match mount {
            Mount::File { target, .. }
            | Mount::Directory { target, .. }
            | Mount::Program { target }
            | Mount::Scratch { target, .. } => asked_for(target),
            Mount::Link { .. } => false,
        });
        if !granted && Path::new(hidden).exists() && plan.on(protection::PRIVATE_ROOT) {
            return failed("the host's files are still there");
        }
    }
    if plan.on(protection::READ_ONLY) {
        if ffi::mount_flags("/").step("verify the private root")? & MS_RDONLY == 0 {
            return failed("the root is writable");
        }
        for mount in &plan.mounts {
            let (target, writable) = match mount {
                Mount::File { target, device, .. } => (target, *device),
                Mount::Directory { target, writable, .. } => (target, *writable),
                Mount::Program { .. } | Mount::Link { .. } | Mount::Scratch { .. } => continue,
            };
            if !writable && ffi::mount_flags(target).step(format!("verify {target}"))? & MS_RDONLY == 0 {
                return failed("a read-only grant is writable");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `map` makes of `id`, as the kernel reads it.
    fn mapped(map: &str, id: u32) -> Vec<u32> {
        let numbers = |line: &str| line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        let hit = |run: &Vec<u32>| (run[0] <= id && id - run[0] < run[2]).then(|| run[1] + (id - run[0]));
        map.lines().map(numbers).filter_map(|run| hit(&run)).collect()
    }

    #[test]
    fn two_ids_are_exchanged_and_all_others_stay() {
        for (a, b) in
            [(64_999, 0), (64_999, 1), (0, 64_999), (64_999, 64_998), (64_999, 1_000_000), (7, 7), (7, u32::MAX - 2)]
        {
            let map = exchange(a, b);
            for id in [0, 1, 2, 6, 7, 8, 64_997, 64_998, 64_999, 65_000, 999_999, 1_000_000, u32::MAX - 3, u32::MAX - 2]
            {
                let expected = if id == a {
                    b
                } else if id == b {
                    a
                } else {
                    id
                };
                assert_eq!(mapped(&map, id), [expected], "{a} and {b}: {id} in {map:?}");
            }
        }
    }
}
