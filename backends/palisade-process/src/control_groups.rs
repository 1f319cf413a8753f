//! Where this host may make control groups, of version 1 and 2, and what hosts leave behind there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// Names of groups begin with this, the host's process id and a dash.
pub(crate) const PREFIX: &str = "palisade-";

/// Which interface a controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// Where this process may have made groups.
static PARENTS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes what hosts left behind at `parent` that were killed, and has this one's removed when it exits.
pub(crate) fn sweep(parent: &Path) {
    let mut parents = PARENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if parents.is_empty() {
        sys::at_exit(remove_own);
    }
    parents.insert(parent.to_owned());
    drop(parents);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let host = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if host.is_some_and(|host| !Path::new(&format!("/proc/{host}")).exists()) {
            // One that is still in use cannot be removed.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Removes the groups of this process. A sandbox in a static is never dropped, and its groups would stay.
extern "C" fn remove_own() {
    let own = format!("{PREFIX}{}-", std::process::id());
    for parent in PARENTS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&own)) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Where this process may make groups: its own group in each hierarchy that has `controller`. Version 2 counts CPU time
/// without any.
pub(crate) fn candidates(own: &str, mounts: &str, controller: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(root), Some(point)) = (before.split(' ').nth(3), before.split(' ').nth(4)) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let version = match kind {
            "cgroup" if options.split(',').any(|option| option == controller) => Version::One,
            "cgroup2" => Version::Two,
            _ => continue,
        };
        let group = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let matches = match version {
                Version::One => controllers.split(',').any(|each| each == controller),
                Version::Two => controllers.is_empty(),
            };
            matches.then_some(path)
        });
        let Some(group) = group else { continue };
        let inside = group.strip_prefix(root.trim_end_matches('/')).unwrap_or(group);
        let own = Path::new(point).join(inside.trim_start_matches('/'));
        if version == Version::One || controller == "cpuacct" {
            found.push((version, own));
            continue;
        }
        // A group of version 2 with processes in it has no children with controllers: below its own group a process can make
        // groups only if somebody set that up, and else beside it, where a service manager gave away the group above.
        let above = own.parent().filter(|above| above.starts_with(point) && is_delegated(above)).map(Path::to_owned);
        found.extend(
            [Some(own), above].into_iter().flatten().filter(|place| gives(place, controller)).map(|p| (version, p)),
        );
    }
    found
}

/// Whether children of the group at `place` have `controller`, or get it now.
fn gives(place: &Path, controller: &str) -> bool {
    let file = place.join("cgroup.subtree_control");
    let has = || fs::read_to_string(&file).is_ok_and(|list| list.split_whitespace().any(|each| each == controller));
    // Refused while there are processes in the group itself, and where it is not ours.
    has() || (fs::write(&file, format!("+{controller}")).is_ok() && has())
}

/// Whether a service manager gave the group at `place` away, for whoever is in it to make groups there: so systemd marks what
/// `Delegate=` names.
fn is_delegated(place: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(place, "user.delegate", &mut value).is_ok_and(|len| value.get(..len) == Some(b"1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_groups_follows_from_what_the_kernel_lists() {
        let mounts = "25 22 0:22 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      26 22 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      27 22 0:24 /box /mnt/memory rw - cgroup cgroup rw,memory\n\
                      broken line\n";
        let own = "5:cpu:/x\n4:memory:/box/a\n0::/\n";
        let found = candidates(own, mounts, "memory");
        assert_eq!(
            found,
            [
                (Version::One, PathBuf::from("/sys/fs/cgroup/memory/box/a")),
                (Version::One, PathBuf::from("/mnt/memory/a"))
            ]
        );
        assert!(candidates("", mounts, "memory").is_empty() && candidates(own, "", "memory").is_empty());
        assert!(candidates(own, mounts, "cpuacct").is_empty());
        let mounts = "30 22 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(candidates(own, mounts, "cpuacct"), [(Version::Two, PathBuf::from("/sys/fs/cgroup"))]);
    }

    /// A tree as systemd makes it of `Delegate=memory` and `DelegateSubgroup=daemon`. What the kernel answers by itself is
    /// written by the test: files take every write.
    #[test]
    fn in_version_2_groups_are_made_beside_the_daemon_where_that_was_given_away() {
        let tree = tempfile::tempdir().unwrap();
        let service = tree.path().join("palisade.service");
        let daemon = service.join("daemon");
        fs::create_dir_all(&daemon).unwrap();
        let mounts = format!("30 22 0:24 / {} rw - cgroup2 cgroup2 rw\n", tree.path().display());
        let look = || candidates("0::/palisade.service/daemon\n", &mounts, "memory");
        assert!(look().is_empty(), "nothing here has controllers");
        let control = service.join("cgroup.subtree_control");
        fs::write(&control, "cpu memory pids\n").unwrap();
        assert!(look().is_empty(), "it was not given away");
        match rustix::fs::setxattr(&service, "user.delegate", b"1", rustix::fs::XattrFlags::empty()) {
            Ok(()) => assert_eq!(look(), [(Version::Two, service.clone())]),
            // A file system without such attributes cannot be a tree as systemd makes it.
            Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
        }
        // Below its own group, where somebody set that up.
        fs::write(daemon.join("cgroup.subtree_control"), "memory").unwrap();
        assert_eq!(look()[0], (Version::Two, daemon));
    }
}
