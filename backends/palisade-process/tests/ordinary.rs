//! What ordinary programs ask for beside computing, and what they are told when they cannot have it.

mod common;

use std::io::Write;
use std::time::Duration;

use common::*;
use palisade_core::*;

fn python(text: &str) -> Artifact {
    Artifact::new(ArtifactKind::Script, text.to_owned()).named("script.py")
}

fn with_python() -> Policy {
    let mut policy = fine();
    policy.grants.interpreter = Some("python3".into());
    policy
}

fn has_groups() -> bool {
    sandbox().capabilities().grants.contains(&GrantKind::ChildProcesses)
}

/// A folder that the guest's user may look into.
fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn threads_and_processes_go_together_and_count_together() {
    let mut policy = fine();
    policy.grants.child_processes = true;
    (policy.quota.processes, policy.quota.threads) = (Some(2), Some(3));
    if !has_groups() {
        assert_eq!(prepare(&guest(), &policy).unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    assert_eq!(output(&act(&["threads"], &policy)), "5");
    assert!(output(&act(&["run", "threads"], &policy)).starts_with('4'), "the child itself is one");
    // The kernel cannot bound one of them only.
    for (processes, threads) in [(None, Some(3)), (Some(2), None)] {
        (policy.quota.processes, policy.quota.threads) = (processes, threads);
        let error = prepare(&guest(), &policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("--threads"), "{error}");
    }
}

#[test]
fn code_comes_from_granted_directories_that_the_guest_cannot_write() {
    let place = folder();
    let library = std::fs::read("/lib/x86_64-linux-gnu/libz.so.1").or_else(|_| std::fs::read("/lib64/libz.so.1"));
    let Ok(library) = library else { panic!("this system has no zlib, which Python needs") };
    std::fs::write(place.path().join("libown.so"), library).unwrap();
    let load =
        python("import ctypes\ntry: ctypes.CDLL('/code/libown.so'); print('loaded')\nexcept OSError as e: print(e)");
    let mut policy = with_python();
    policy.grants.directories.push(DirectoryGrant::read_only(place.path(), "/code"));
    assert_eq!(output(&run(&load, &policy, Call::new())), "loaded\n");
    // The same place once more, or one around it, where the guest could put its own.
    for host in [place.path(), place.path().parent().unwrap()] {
        let mut policy = policy.clone();
        let mut writable = DirectoryGrant::read_write(host, "/own");
        if rustix::process::geteuid().is_root() {
            writable = writable.owned_by(0);
        }
        policy.grants.directories.push(writable);
        policy.quota.disk_bytes = None;
        let said = output(&run(&load, &policy, Call::new()));
        assert!(said.contains("failed to map segment"), "{said}");
    }
}

#[test]
fn locks_are_a_guests_own_and_never_on_files_of_the_host() {
    let place = folder();
    std::fs::write(place.path().join("file"), "x").unwrap();
    let lock = |path: &str| {
        python(&format!(
            "import errno, fcntl\nf = open('{path}', 'a+' if '{path}'.startswith('/own') else 'r')\n\
             try: fcntl.lockf(f, fcntl.LOCK_SH); print('locked')\nexcept OSError as e: print(errno.errorcode[e.errno])"
        ))
    };
    let mut policy = with_python();
    policy.grants.scratch = Some("/own".into());
    assert_eq!(output(&run(&lock("/own/file"), &policy, Call::new())), "locked\n");
    policy.grants.directories.push(DirectoryGrant::read_only(place.path(), "/data"));
    assert_eq!(output(&run(&lock("/data/file"), &policy, Call::new())), "EPERM\n");
}

#[test]
fn what_the_kernel_keeps_of_files_is_not_a_guests_peak() {
    const FILE_BYTES: usize = 96 << 20;
    let place = folder();
    let path = place.path().join("large");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&vec![7; FILE_BYTES]).unwrap();
    file.sync_all().unwrap();
    // So that it is read from the disk, by the guest and on its account.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut policy = fine();
    policy.quota.memory_bytes = Some(64 << 20);
    policy.grants.directories.push(DirectoryGrant::read_only(place.path(), "/data"));
    let execution = run(&program("sha256sum"), &policy, Call::new().arguments(["/data/large"]));
    assert_eq!(execution.outcome, Outcome::Completed);
    let peak = execution.usage.memory_peak_bytes;
    assert!((100_000..24 << 20).contains(&peak), "{peak} bytes");
    // What it holds itself stays.
    let touched = act(&["touch", &(40 << 20).to_string()], &policy).usage.memory_peak_bytes;
    assert!(touched >= 40 << 20, "{touched} bytes");
}

#[test]
fn refusals_name_the_option_that_helps() {
    let error = prepare(&guest(), &Policy::default()).unwrap_err();
    assert!(error.to_string().contains("--fine-clocks"), "{error}");
    let prepared = prepare(&guest(), &fine()).unwrap();
    let many = Call::new().arguments((0..30_000).map(|n| n.to_string()));
    let error = block_on(prepared.run(many)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("--stack"), "{error}");
    let mut policy = fine();
    policy.quota.stack_bytes = Some(8 << 20);
    let prepared = prepare(&guest(), &policy).unwrap();
    let many = Call::new().arguments(std::iter::once("exit".to_owned()).chain((0..30_000).map(|n| n.to_string())));
    assert_eq!(block_on(prepared.run(many)).unwrap().outcome, Outcome::Completed);
}

#[test]
fn a_guest_that_signals_itself_without_end_ends_at_its_deadline() {
    let mut policy = fine();
    policy.quota.wall_time = Some(Duration::from_millis(300));
    let execution = act(&["signal-handled", "15", "1000000000"], &policy);
    let ended = matches!(execution.outcome, Outcome::QuotaExceeded { resource: Resource::WallTime, .. });
    assert!(ended, "{:?}", execution.outcome);
}
