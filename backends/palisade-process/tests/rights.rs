//! What a guest may leave behind in a directory it can write, and whom it can reach from there.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::*;
use palisade_core::*;

fn writable(directory: &Path, owner: Option<u32>) -> Policy {
    let mut policy = fine();
    policy.quota.disk_bytes = None;
    let grant = DirectoryGrant::read_write(directory, "/data");
    policy.grants.directories.push(DirectoryGrant { owner, ..grant });
    policy
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory of somebody who is not root.
fn place() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    if is_root() {
        std::os::unix::fs::chown(directory.path(), Some(4321), Some(4321)).unwrap();
    }
    directory
}

/// Nothing in `directory` gives anybody a right he did not have.
fn assert_harmless(directory: &Path, owner: u32) {
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let found = entry.path().symlink_metadata().unwrap();
        let (mode, kind) = (found.permissions().mode(), found.file_type());
        assert_eq!(mode & 0o6000, 0, "{:?} has mode {mode:o}", entry.path());
        assert!(kind.is_file() || kind.is_dir(), "{:?} is no file: {:?}", entry.path(), kind.is_fifo());
        assert_eq!(found.uid(), owner, "{:?}", entry.path());
        seen += 1;
    }
    assert!(seen > 0, "the guest made nothing, so this shows nothing");
}

#[test]
fn no_call_leaves_a_right_behind() {
    let host = place();
    let owner = host.path().metadata().unwrap().uid();
    for change in [|_: &mut Policy| {}, |policy: &mut Policy| policy.quota.threads = Some(2)] {
        let mut policy = writable(host.path(), None);
        change(&mut policy);
        let execution = act(&["rights", "/data"], &policy);
        assert_eq!(output(&execution), "end\n", "{:?}", execution.outcome);
        assert_harmless(host.path(), owner);
    }
    // Nor in a scratch directory, which only this guest sees.
    let mut policy = fine();
    policy.grants.scratch = Some("/data".into());
    assert_eq!(output(&act(&["rights", "/data"], &policy)), "end\n");
}

#[test]
fn ordinary_modes_work() {
    let host = place();
    let execution = act(&["put", "/data/file", "x"], &writable(host.path(), None));
    assert_eq!(output(&execution), "written");
    let mut policy = writable(host.path(), None);
    policy.grants.interpreter = Some("sh".into());
    let change = "umask 022; : > /data/new; test -w /data/new && echo yes";
    let script = Artifact::new(ArtifactKind::Script, change).named("x.sh");
    assert_eq!(output(&run(&script, &policy, Call::new())), "yes\n");
    assert_eq!(host.path().join("new").metadata().unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_a_guest_makes_is_roots_only_when_the_policy_says_so() {
    if !is_root() {
        let host = place();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(output(&act(&["put", "/data/f", "x"], &writable(host.path(), Some(own)))), "written");
        let error = prepare(&guest(), &writable(host.path(), Some(own + 1))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        return;
    }
    let of_root = tempfile::tempdir().unwrap();
    let error = prepare(&guest(), &writable(of_root.path(), None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPolicy, "{error}");
    assert!(error.help().unwrap().contains("chown"), "{error:?}");
    assert_eq!(output(&act(&["put", "/data/f", "x"], &writable(of_root.path(), Some(0)))), "written");
    assert_eq!(of_root.path().join("f").metadata().unwrap().uid(), 0);

    let host = place();
    for (owner, name) in [(None, "a"), (Some(4321), "b")] {
        let path = format!("/data/{name}");
        assert_eq!(output(&act(&["put", &path, "x"], &writable(host.path(), owner))), "written");
        let made = host.path().join(name).metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 4321));
    }
    // Another has no right to write there, and gets none.
    let said = output(&act(&["put", "/data/c", "x"], &writable(host.path(), Some(4322))));
    assert!(said.starts_with("refused"), "{said}");
}

#[test]
fn directories_that_are_the_kernel_are_granted_to_nobody() {
    for special in ["/proc", "/proc/self", "/sys", "/dev/pts"] {
        if !Path::new(special).exists() {
            continue;
        }
        let mut policy = fine();
        policy.grants.directories.push(DirectoryGrant::read_only(special, "/data"));
        let error = prepare(&guest(), &policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPolicy, "{special}: {error}");
    }
    // Where one lies below what was granted, it is not shown.
    let mut policy = fine();
    policy.grants.directories.push(DirectoryGrant::read_only("/", "/data"));
    assert!(output(&act(&["cat", "/data/proc/self/status"], &policy)).starts_with("refused"));
}

#[test]
fn signals_reach_nobody_but_the_guest() {
    assert_eq!(output(&act(&["signal-group"], &fine())), "true -1 -1");
}
