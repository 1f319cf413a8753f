//! Profile `isolation`: a guest reaches what is granted, and nothing else.

use std::path::Path;

use palisade_core::{
    Abi, Call, Clocks, DirectoryGrant, ErrorKind, Execution, GrantKind, HostFunctions, Policy, Randomness,
};

use super::{contains, must, number_at, numbers};
use crate::{Check, Context, Failure, Need, Requirement};

pub(super) const REQUIREMENTS: &[Requirement] = &[
    must(
        "isolation.files.filesystem-isolation",
        "A guest MUST NOT reach a file outside the directories it was granted, by any path or link.",
        "theft or destruction of the host's files",
    ),
    must(
        "isolation.files.read-only",
        "A guest MUST NOT change anything in a directory granted for reading, nor link it to where it could.",
        "tampering with what others rely on",
    ),
    must(
        "isolation.files.opened-when-prepared",
        "A guest MUST see the directory that was there when its module was prepared, whatever its path leads to afterwards.",
        "whoever can rename a directory decides what guests see",
    ),
    must(
        "isolation.files.no-special",
        "File systems that are the kernel's own, as procfs, MUST NOT be granted, nor be reached where they lie below a grant.",
        "the host's memory, processes and devices as files",
    ),
    must(
        "isolation.environment.granted-only",
        "A guest MUST see the environment variables and arguments it was given, and no others.",
        "secrets in the host's environment or another call's arguments",
    ),
    must(
        "isolation.instance.fresh-state",
        "A new instance MUST NOT see the memory, globals or tables of an earlier one.",
        "data of the previous tenant",
    ),
    must(
        "isolation.clock.timing-attack-resistance",
        "Coarse clocks MUST advance in whole steps.",
        "measuring what neighbours do",
    ),
    must(
        "isolation.random.as-granted",
        "Seeded randomness MUST repeat, and secure randomness MUST NOT.",
        "secrets that can be guessed; runs that cannot be repeated",
    ),
    must(
        "isolation.network.network-isolation",
        "Without the grant a guest MUST NOT use any socket.",
        "a guest that reaches the inner network",
    ),
    must(
        "isolation.agents.agent-to-agent-isolation",
        "Two guests MUST NOT see each other's files, environment or memory.",
        "one agent spying on another",
    ),
];

const REACTOR: Need = Need::Abi(Abi::Reactor);
const COMMAND: Need = Need::Abi(Abi::Command);
const READ: &[Need] = &[REACTOR, COMMAND, Need::Grant(GrantKind::DirectoriesReadOnly)];
const WRITE: &[Need] =
    &[REACTOR, COMMAND, Need::Grant(GrantKind::DirectoriesReadOnly), Need::Grant(GrantKind::DirectoriesReadWrite)];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "isolation.files.parent-directory",
        requires: &["isolation.files.filesystem-isolation"],
        needs: READ,
        control: "follows-parent",
        run: parent_directory,
    },
    Check {
        id: "isolation.files.absolute-path",
        requires: &["isolation.files.filesystem-isolation"],
        needs: READ,
        control: "opens-absolute",
        run: absolute_path,
    },
    Check {
        id: "isolation.files.link-to-file",
        requires: &["isolation.files.filesystem-isolation"],
        needs: READ,
        control: "follows-file-links",
        run: link_to_file,
    },
    Check {
        id: "isolation.files.link-to-directory",
        requires: &["isolation.files.filesystem-isolation"],
        needs: WRITE,
        control: "follows-directory-links",
        run: link_to_directory,
    },
    Check {
        id: "isolation.files.read-only-contents",
        requires: &["isolation.files.read-only"],
        needs: WRITE,
        control: "writes-read-only",
        run: read_only_contents,
    },
    Check {
        id: "isolation.files.read-only-entries",
        requires: &["isolation.files.read-only"],
        needs: WRITE,
        control: "changes-read-only",
        run: read_only_entries,
    },
    Check {
        id: "isolation.files.hard-link",
        requires: &["isolation.files.read-only"],
        needs: WRITE,
        control: "links-read-only",
        run: hard_link,
    },
    Check {
        id: "isolation.files.renamed-directory",
        requires: &["isolation.files.opened-when-prepared"],
        needs: READ,
        control: "opens-late",
        run: renamed_directory,
    },
    Check {
        id: "isolation.files.special-grant",
        requires: &["isolation.files.no-special"],
        needs: READ,
        control: "grants-special-directories",
        run: special_grant,
    },
    Check {
        id: "isolation.files.special-below",
        requires: &["isolation.files.no-special"],
        needs: READ,
        control: "follows-into-special-directories",
        run: special_below,
    },
    Check {
        id: "isolation.clock.long-steps",
        requires: &["isolation.clock.timing-attack-resistance"],
        needs: &[REACTOR, COMMAND, Need::Grant(GrantKind::ClocksCoarse)],
        control: "shortens-long-steps",
        run: clock_long_steps,
    },
    Check {
        id: "isolation.environment.of-the-host",
        requires: &["isolation.environment.granted-only"],
        needs: &[REACTOR, COMMAND, Need::Grant(GrantKind::Environment)],
        control: "leaks-environment",
        run: environment,
    },
    Check {
        id: "isolation.environment.arguments",
        requires: &["isolation.environment.granted-only"],
        needs: &[REACTOR, COMMAND],
        control: "leaks-arguments",
        run: arguments,
    },
    Check {
        id: "isolation.instance.memory",
        requires: &["isolation.instance.fresh-state"],
        needs: &[REACTOR],
        control: "leaks-memory",
        run: fresh_memory,
    },
    Check {
        id: "isolation.instance.globals",
        requires: &["isolation.instance.fresh-state"],
        needs: &[REACTOR],
        control: "leaks-globals",
        run: fresh_globals,
    },
    Check {
        id: "isolation.instance.tables",
        requires: &["isolation.instance.fresh-state"],
        needs: &[REACTOR],
        control: "leaks-tables",
        run: fresh_tables,
    },
    Check {
        id: "isolation.clock.steps",
        requires: &["isolation.clock.timing-attack-resistance"],
        needs: &[REACTOR, COMMAND, Need::Grant(GrantKind::ClocksCoarse), Need::Grant(GrantKind::ClocksFine)],
        control: "fine-clocks",
        run: clock_steps,
    },
    Check {
        id: "isolation.random.seeded",
        requires: &["isolation.random.as-granted"],
        needs: &[REACTOR, COMMAND, Need::Grant(GrantKind::RandomnessSeeded)],
        control: "ignores-seed",
        run: random_seeded,
    },
    Check {
        id: "isolation.random.secure",
        requires: &["isolation.random.as-granted"],
        needs: &[REACTOR, COMMAND],
        control: "predictable-randomness",
        run: random_secure,
    },
    Check {
        id: "isolation.network.sockets",
        requires: &["isolation.network.network-isolation"],
        needs: &[REACTOR, COMMAND],
        control: "opens-sockets",
        run: sockets,
    },
    Check {
        id: "isolation.agents.files-and-environment",
        requires: &["isolation.agents.agent-to-agent-isolation"],
        needs: &[REACTOR, COMMAND, Need::Grant(GrantKind::DirectoriesReadOnly), Need::Grant(GrantKind::Environment)],
        control: "mixes-agents",
        run: agents,
    },
];

const READ_FILE: u32 = 0;
const WRITE_FILE: u32 = 1;
const UNLINK: u32 = 2;
const RENAME: u32 = 3;
const MAKE_DIRECTORY: u32 = 4;
const LINK: u32 = 5;

/// Input of the probe `file`. Directories are descriptors: 3 is the first granted one.
fn request(operation: u32, directory: u32, path: &str, other: u32, other_path: &str, data: &[u8]) -> Vec<u8> {
    // Paths of checks are short.
    let lengths = [path.len() as u32, other_path.len() as u32, data.len() as u32];
    let mut input = numbers(&[operation, directory, other]);
    input.extend(numbers(&lengths));
    input.extend([path.as_bytes(), other_path.as_bytes(), data].concat());
    input
}

/// Input of the probe `file` for writing a file.
pub(super) fn write_request(directory: u32, path: &str, data: &[u8]) -> Vec<u8> {
    request(WRITE_FILE, directory, path, 0, "", data)
}

/// Input of the probe `file` for making an entry of each kind beside `file`, and the entry's name.
pub(super) fn make_requests() -> [(&'static str, Vec<u8>); 4] {
    const MAKE_LINK: u32 = 6;
    [
        ("directory", request(MAKE_DIRECTORY, 3, "directory", 0, "", b"")),
        ("new", write_request(3, "new", b"")),
        ("hard", request(LINK, 3, "file", 3, "hard", b"")),
        ("soft", request(MAKE_LINK, 3, "soft", 0, "file", b"")),
    ]
}

fn read_request(directory: u32, path: &str) -> Vec<u8> {
    request(READ_FILE, directory, path, 0, "", b"")
}

/// Error numbers by which WASI says that something is not allowed: EACCES, ELOOP, EPERM, EROFS, ENOTCAPABLE.
const NOT_ALLOWED: [u32; 5] = [2, 32, 63, 69, 76];

fn reading(ctx: &Context, folders: &[&Path]) -> Policy {
    let mut policy = ctx.generous();
    for (number, folder) in folders.iter().enumerate() {
        policy.grants.directories.push(DirectoryGrant::read_only(*folder, format!("/{number}")));
    }
    policy
}

fn put(ctx: &Context, path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| ctx.failure(format!("cannot write a file: {error}")))
}

/// Requires that the probe `file` was refused as not allowed, and saw nothing of `nonce`.
fn expect_kept_out(ctx: &mut Context, subject: &str, execution: &Execution, nonce: &str) -> Result<(), Failure> {
    ctx.expect_completed(subject, execution)?;
    let errno = number_at(&execution.output, 0);
    ctx.expect(
        "the secret in the guest's hands",
        contains(&execution.output, nonce),
        !contains(&execution.output, nonce),
    )?;
    ctx.expect("error number", errno, NOT_ALLOWED.contains(&errno))
}

/// Requires that the probe `file` worked and read `text`.
fn expect_read(ctx: &mut Context, subject: &str, execution: &Execution, text: &str) -> Result<(), Failure> {
    ctx.expect_completed(subject, execution)?;
    let errno = number_at(&execution.output, 0);
    ctx.expect(subject, format!("errno {errno}"), errno == 0 && execution.output.get(4..) == Some(text.as_bytes()))
}

/// Reads `path` where all of the scratch directory is granted, and `escape` where only `inside` is.
fn expect_no_escape(ctx: &mut Context, nonce: &str, allowed: &str, escapes: &[String]) -> Result<(), Failure> {
    let everything = ctx.scratch().to_owned();
    let inside = everything.join("inside");
    ctx.baseline(|ctx| {
        let policy = reading(ctx, &[&everything]);
        let execution = ctx.run("file", read_request(3, allowed), &policy)?;
        expect_read(ctx, "within what is granted", &execution, nonce)
    })?;
    ctx.enforced(|ctx| {
        let policy = reading(ctx, &[&inside]);
        for escape in escapes {
            let execution = ctx.run("file", read_request(3, escape), &policy)?;
            expect_kept_out(ctx, escape.trim_start_matches(&*everything.to_string_lossy()), &execution, nonce)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A directory `inside` and, beside it, `outside/secret`.
fn plant(ctx: &mut Context) -> Result<String, Failure> {
    let nonce = ctx.nonce();
    ctx.make_directory("inside/deeper")?;
    let outside = ctx.make_directory("outside")?;
    put(ctx, &outside.join("secret"), &nonce)?;
    Ok(nonce)
}

/// The oldest escape there is.
fn parent_directory(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = plant(ctx)?;
    let escapes = ["../outside/secret", "deeper/../../outside/secret", "./.././outside/secret"].map(str::to_owned);
    expect_no_escape(ctx, &nonce, "inside/../outside/secret", &escapes)
}

/// Joining an absolute path to a directory gives the absolute path, in many libraries.
fn absolute_path(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = plant(ctx)?;
    let absolute = ctx.scratch().join("outside/secret").to_string_lossy().into_owned();
    expect_no_escape(ctx, &nonce, "outside/secret", &[absolute.clone(), format!("/{absolute}")])
}

fn link(ctx: &Context, target: &str, at: &str) -> Result<(), Failure> {
    let at = ctx.scratch().join(at);
    std::os::unix::fs::symlink(target, at).map_err(|error| ctx.failure(format!("cannot make a link: {error}")))
}

/// A link planted inside leads the host's own open() outside.
fn link_to_file(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = plant(ctx)?;
    link(ctx, "../outside/secret", "inside/link")?;
    let absolute = ctx.scratch().join("outside/secret").to_string_lossy().into_owned();
    link(ctx, &absolute, "inside/absolute")?;
    expect_no_escape(ctx, &nonce, "inside/link", &["link".to_owned(), "absolute".to_owned()])
}

/// A link in the middle of a path, and one that a trailing slash resolves.
fn link_to_directory(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = plant(ctx)?;
    link(ctx, "../outside", "inside/exit")?;
    let everything = ctx.scratch().to_owned();
    let granted = |ctx: &Context, folder: &Path| {
        let mut policy = ctx.generous();
        policy.grants.directories.push(DirectoryGrant::read_write(folder, "/rw"));
        policy
    };
    ctx.baseline(|ctx| {
        let policy = granted(ctx, &everything);
        let execution = ctx.run("file", read_request(3, "inside/exit/secret"), &policy)?;
        expect_read(ctx, "within what is granted", &execution, &nonce)?;
        let execution = ctx.run("file", request(MAKE_DIRECTORY, 3, "inside/exit/made/", 0, "", b""), &policy)?;
        ctx.expect("made a directory by way of the link", number_at(&execution.output, 0), {
            number_at(&execution.output, 0) == 0 && everything.join("outside/made").is_dir()
        })
    })?;
    ctx.enforced(|ctx| {
        let policy = granted(ctx, &everything.join("inside"));
        let execution = ctx.run("file", read_request(3, "exit/secret"), &policy)?;
        expect_kept_out(ctx, "reading through the link", &execution, &nonce)?;
        for operation in [request(MAKE_DIRECTORY, 3, "exit/new/", 0, "", b""), write_request(3, "exit/new", b"x")] {
            let execution = ctx.run("file", operation, &policy)?;
            expect_kept_out(ctx, "changing through the link", &execution, &nonce)?;
        }
        let there = everything.join("outside/new").exists();
        ctx.expect("seen from outside: something new", there, !there)
    })?;
    ctx.recovery()
}

/// A directory with a file of `nonce` in it, granted as `access` says; and a second, writable one.
fn folders(ctx: &Context, name: &str, nonce: &str, writable: bool) -> Result<Policy, Failure> {
    let folder = ctx.make_directory(name)?;
    put(ctx, &folder.join("file"), nonce)?;
    let other = ctx.make_directory(&format!("{name}-other"))?;
    let mut policy = ctx.generous();
    let grant = if writable { DirectoryGrant::read_write } else { DirectoryGrant::read_only };
    policy.grants.directories.push(grant(folder, "/first".to_owned()));
    policy.grants.directories.push(DirectoryGrant::read_write(other, "/second"));
    Ok(policy)
}

fn expect_unchanged(ctx: &mut Context, folder: &Path, nonce: &str) -> Result<(), Failure> {
    let text = std::fs::read_to_string(folder.join("file")).unwrap_or_default();
    ctx.expect("seen from outside: the file", &text, text == nonce)?;
    let names: Vec<_> = std::fs::read_dir(folder)
        .map_err(|error| ctx.failure(error.to_string()))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ctx.expect("seen from outside: the directory", names.join(", "), names == ["file"])
}

/// Read-only is what most data is granted as.
fn read_only_contents(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    ctx.baseline(|ctx| {
        let policy = folders(ctx, "rw", &nonce, true)?;
        let execution = ctx.run("file", write_request(3, "file", b"changed"), &policy)?;
        let text = std::fs::read_to_string(ctx.scratch().join("rw/file")).unwrap_or_default();
        ctx.expect("writing where it is granted", number_at(&execution.output, 0), text == "changed")
    })?;
    ctx.enforced(|ctx| {
        let policy = folders(ctx, "ro", &nonce, false)?;
        for path in ["file", "new"] {
            let execution = ctx.run("file", write_request(3, path, b"changed"), &policy)?;
            expect_kept_out(ctx, "writing", &execution, &nonce)?;
        }
        let folder = ctx.scratch().join("ro");
        expect_unchanged(ctx, &folder, &nonce)
    })?;
    ctx.recovery()
}

/// A directory's entries are as much its content as the bytes in its files.
fn read_only_entries(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let operations = [
        ("make a directory", request(MAKE_DIRECTORY, 3, "made", 0, "", b"")),
        ("rename", request(RENAME, 3, "file", 3, "renamed", b"")),
        ("rename out", request(RENAME, 3, "file", 4, "moved", b"")),
        ("rename in", request(RENAME, 4, "own", 3, "file", b"")),
        ("unlink", request(UNLINK, 3, "file", 0, "", b"")),
    ];
    ctx.baseline(|ctx| {
        for (subject, operation) in operations.clone() {
            let policy = folders(ctx, "rw", &nonce, true)?;
            put(ctx, &ctx.scratch().join("rw-other/own"), "own")?;
            let execution = ctx.run("file", operation, &policy)?;
            let errno = number_at(&execution.output, 0);
            ctx.expect(subject, format!("errno {errno}"), errno == 0)?;
        }
        Ok(())
    })?;
    ctx.enforced(|ctx| {
        let policy = folders(ctx, "ro", &nonce, false)?;
        put(ctx, &ctx.scratch().join("ro-other/own"), "own")?;
        for (subject, operation) in operations {
            let execution = ctx.run("file", operation, &policy)?;
            expect_kept_out(ctx, subject, &execution, &nonce)?;
        }
        let folder = ctx.scratch().join("ro");
        expect_unchanged(ctx, &folder, &nonce)
    })?;
    ctx.recovery()
}

/// A second name in a writable directory would make a read-only file writable.
fn hard_link(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let operation = || request(LINK, 3, "file", 4, "stolen", b"");
    ctx.baseline(|ctx| {
        let policy = folders(ctx, "rw", &nonce, true)?;
        let execution = ctx.run("file", operation(), &policy)?;
        let text = std::fs::read_to_string(ctx.scratch().join("rw-other/stolen")).unwrap_or_default();
        ctx.expect("linking where it is granted", number_at(&execution.output, 0), text == nonce)
    })?;
    ctx.enforced(|ctx| {
        let policy = folders(ctx, "ro", &nonce, false)?;
        let execution = ctx.run("file", operation(), &policy)?;
        expect_kept_out(ctx, "linking a read-only file to a writable directory", &execution, &nonce)?;
        let there = ctx.scratch().join("ro-other/stolen").exists();
        ctx.expect("seen from outside: a second name", there, !there)
    })?;
    ctx.recovery()
}

/// Hosts keep passwords in their environment.
fn environment(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let mut policy = ctx.generous();
    policy.grants.environment.insert("GRANTED".to_owned(), nonce.clone());
    ctx.baseline(|ctx| {
        let here = std::env::vars_os().count();
        ctx.expect("variables the host has", here, here > 0)?;
        let execution = ctx.run("environ", "", &policy)?;
        ctx.expect_completed("reading the environment", &execution)?;
        ctx.expect("the granted one", execution.output.len(), contains(&execution.output, &nonce))
    })?;
    ctx.enforced(|ctx| {
        let expected = format!("GRANTED={nonce}\0");
        let execution = ctx.run("environ", "", &policy)?;
        ctx.expect("bytes of environment", execution.output.len(), execution.output == expected.as_bytes())?;
        let policy = ctx.generous();
        let execution = ctx.run("environ", "", &policy)?;
        ctx.expect_completed("reading the environment without a grant", &execution)?;
        ctx.expect("bytes of environment", execution.output.len(), execution.output.is_empty())
    })?;
    ctx.recovery()
}

/// Arguments are where tokens and names of customers are passed.
fn arguments(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let policy = ctx.generous();
    let mut instance = ctx.instance("args", &policy, HostFunctions::new())?;
    ctx.baseline(|ctx| {
        let execution = ctx.call_again(&mut instance, Call::new().arguments([nonce.clone()]))?;
        ctx.expect_completed("reading arguments", &execution)?;
        ctx.expect("its own", execution.output.len(), contains(&execution.output, &nonce))
    })?;
    ctx.enforced(|ctx| {
        let again = ctx.call_again(&mut instance, Call::new().arguments(["other"]))?;
        let fresh = ctx.call("args", Call::new().arguments(["other"]), &policy, HostFunctions::new())?;
        for (subject, execution) in [("the next call", again), ("another instance", fresh)] {
            ctx.expect_completed(subject, &execution)?;
            ctx.expect("its own", execution.output.len(), contains(&execution.output, "other"))?;
            let leak = contains(&execution.output, &nonce);
            ctx.expect("the earlier call's", leak, !leak)?;
        }
        Ok(())
    })?;
    drop(instance);
    ctx.recovery()
}

/// A kept instance sees what it left of kind `flag`; a fresh one must not.
fn expect_fresh(ctx: &mut Context, flag: u32) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let policy = ctx.generous();
    let prepared = ctx.prepare("traces", &policy, HostFunctions::new())?;
    ctx.baseline(|ctx| {
        let mut kept =
            ctx.block_on(prepared.instantiate()).map_err(|error| ctx.failure(format!("a kept instance: {error}")))?;
        ctx.call_again(&mut kept, Call::new().input(nonce.clone()))?;
        let execution = ctx.call_again(&mut kept, Call::new().input(nonce.clone()))?;
        ctx.expect_completed("looking at what the same instance left", &execution)?;
        let flags = number_at(&execution.output, 0);
        ctx.expect("traces", flags, flags & flag != 0)?;
        ctx.expect("its own secret", contains(&execution.output, &nonce), contains(&execution.output, &nonce))
    })?;
    ctx.enforced(|ctx| {
        for _ in 0..50 {
            let execution = ctx.block_on(palisade_core::PreparedExt::run(&*prepared, Call::new().input(nonce.clone())));
            let execution = execution.map_err(|error| ctx.failure(format!("a fresh instance: {error}")))?;
            ctx.expect_completed("looking at what others left", &execution)?;
            let flags = number_at(&execution.output, 0);
            ctx.expect("traces", flags, flags & flag == 0)?;
            if flag == 1 {
                let leak = contains(&execution.output, &nonce);
                ctx.expect("the other's secret", leak, !leak)?;
            }
        }
        Ok(())
    })?;
    drop(prepared);
    ctx.recovery()
}

/// Memory is reused; what was in it must not be.
fn fresh_memory(ctx: &mut Context) -> Result<(), Failure> {
    expect_fresh(ctx, 1)
}

/// Globals live beside memory, and are forgotten by those who clear only that.
fn fresh_globals(ctx: &mut Context) -> Result<(), Failure> {
    expect_fresh(ctx, 2)
}

/// A stale function reference is another tenant's code.
fn fresh_tables(ctx: &mut Context) -> Result<(), Failure> {
    expect_fresh(ctx, 4)
}

/// A clock finer than its step measures caches and neighbours.
fn clock_steps(ctx: &mut Context) -> Result<(), Failure> {
    const STEP: u64 = 1_000_000;
    let readings = |ctx: &mut Context, clocks: Clocks, id: u32| {
        let mut policy = ctx.generous();
        policy.grants.clocks = clocks;
        let execution = ctx.run("clock", numbers(&[id, 4000]), &policy)?;
        ctx.expect_completed("reading a clock", &execution)?;
        let (times, _) = execution.output.as_chunks::<8>();
        let times: Vec<_> = times.iter().copied().map(u64::from_le_bytes).collect();
        ctx.expect("readings", times.len(), times.len() == 4000 && times.is_sorted())?;
        Ok(times.iter().filter(|time| !time.is_multiple_of(STEP)).count())
    };
    for id in [0, 1] {
        ctx.baseline(|ctx| {
            let fine = readings(ctx, Clocks::Fine, id)?;
            ctx.expect("readings between steps, of a fine clock", fine, fine > 0)
        })?;
        ctx.enforced(|ctx| {
            let coarse = Clocks::Coarse { step: std::time::Duration::from_nanos(STEP) };
            let between = readings(ctx, coarse, id)?;
            ctx.expect("readings between steps, of a coarse clock", between, between == 0)
        })?;
    }
    ctx.recovery()
}

fn random(ctx: &mut Context, randomness: Randomness) -> Result<Vec<u8>, Failure> {
    let mut policy = ctx.generous();
    policy.grants.randomness = randomness;
    let execution = ctx.run("random", "", &policy)?;
    ctx.expect_completed("drawing random bytes", &execution)?;
    ctx.expect("random bytes", execution.output.len(), execution.output.len() == 32)?;
    Ok(execution.output.to_vec())
}

/// Replays need the same randomness each time.
fn random_seeded(ctx: &mut Context) -> Result<(), Failure> {
    let first = ctx.baseline(|ctx| random(ctx, Randomness::Seeded(7)))?;
    ctx.enforced(|ctx| {
        let again = random(ctx, Randomness::Seeded(7))?;
        ctx.expect("the same seed again", again == first, again == first)?;
        let other = random(ctx, Randomness::Seeded(8))?;
        ctx.expect("another seed gives the same", other == first, other != first)
    })?;
    ctx.recovery()
}

/// Guests make keys of it.
fn random_secure(ctx: &mut Context) -> Result<(), Failure> {
    let mut seen = vec![ctx.baseline(|ctx| random(ctx, Randomness::Secure))?];
    ctx.enforced(|ctx| {
        for _ in 0..8 {
            let next = random(ctx, Randomness::Secure)?;
            let known = seen.contains(&next);
            ctx.expect("seen before", known, !known)?;
            seen.push(next);
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// No socket call may work, and nobody may connect.
fn sockets(ctx: &mut Context) -> Result<(), Failure> {
    use std::net::{TcpListener, TcpStream};

    let failed = |ctx: &Context, error: std::io::Error| ctx.failure(format!("loopback: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| failed(ctx, error))?;
    listener.set_nonblocking(true).map_err(|error| failed(ctx, error))?;
    let seen = || std::iter::from_fn(|| listener.accept().ok()).count();
    ctx.baseline(|ctx| {
        // Whoever does connect is seen.
        let address = listener.local_addr().map_err(|error| failed(ctx, error))?;
        let stream = TcpStream::connect(address).map_err(|error| failed(ctx, error))?;
        drop(stream);
        let seen = seen();
        ctx.expect("connections seen by the listener", seen, seen == 1)
    })?;
    ctx.enforced(|ctx| {
        let policy = ctx.generous();
        match ctx.try_prepare("socket", &policy, HostFunctions::new()) {
            // A backend may also have no such imports at all.
            Err(error) => ctx.expect("a guest that imports sockets", &error, error.kind() == ErrorKind::Denied)?,
            Ok(_) => {
                let execution = ctx.run("socket", "", &policy)?;
                ctx.expect_completed("trying every socket call", &execution)?;
                let (tried, worked) = (number_at(&execution.output, 0), number_at(&execution.output, 1));
                ctx.expect("socket calls", format!("{tried} tried, {worked} worked"), tried == 32 && worked == 0)?;
            }
        }
        let seen = seen();
        ctx.expect("connections seen by the listener", seen, seen == 0)
    })?;
    drop(listener);
    ctx.recovery()
}

/// Agents of different owners run side by side in one host.
fn agents(ctx: &mut Context) -> Result<(), Failure> {
    let agent = |ctx: &mut Context, name: &str| {
        let nonce = ctx.nonce();
        let folder = ctx.make_directory(name)?;
        put(ctx, &folder.join(name), &nonce)?;
        let mut policy = reading(ctx, &[&folder]);
        policy.grants.environment.insert(name.to_owned(), nonce.clone());
        Ok((nonce, policy))
    };
    let (first, policy_first) = agent(ctx, "first")?;
    let (second, policy_second) = agent(ctx, "second")?;
    // Both are prepared before either runs, so that they live at the same time.
    let mut guests = Vec::new();
    for policy in [&policy_first, &policy_second] {
        let files = ctx.instance("file", policy, HostFunctions::new())?;
        let environment = ctx.instance("environ", policy, HostFunctions::new())?;
        guests.push((files, environment));
    }
    let names = ["first", "second"];
    let nonces = [&first, &second];
    ctx.baseline(|ctx| {
        for (number, (files, environment)) in guests.iter_mut().enumerate() {
            let execution = ctx.call_again(files, Call::new().input(read_request(3, names[number])))?;
            expect_read(ctx, "its own file", &execution, nonces[number])?;
            let execution = ctx.call_again(environment, Call::new())?;
            let own = contains(&execution.output, nonces[number]);
            ctx.expect("its own environment", own, own)?;
        }
        Ok(())
    })?;
    ctx.enforced(|ctx| {
        for (number, (files, environment)) in guests.iter_mut().enumerate() {
            let (name, nonce) = (names[1 - number], nonces[1 - number]);
            for directory in 3..8 {
                for path in [name.to_owned(), format!("../{name}/{name}")] {
                    let execution = ctx.call_again(files, Call::new().input(read_request(directory, &path)))?;
                    let refused = number_at(&execution.output, 0) != 0 && !contains(&execution.output, nonce);
                    ctx.expect("the other's file is out of reach", refused, refused)?;
                }
            }
            let execution = ctx.call_again(environment, Call::new())?;
            let leak = contains(&execution.output, nonce);
            ctx.expect("the other's environment", leak, !leak)?;
        }
        Ok(())
    })?;
    drop(guests);
    ctx.recovery()
}

/// Whoever can rename a directory must not choose what guests see of the host.
fn renamed_directory(ctx: &mut Context) -> Result<(), Failure> {
    let (first, second) = (ctx.nonce(), ctx.nonce());
    let folder = ctx.make_directory("granted")?;
    put(ctx, &folder.join("file"), &first)?;
    let policy = reading(ctx, &[&folder]);
    let prepared = ctx.baseline(|ctx| {
        let prepared = ctx.prepare("file", &policy, HostFunctions::new())?;
        let call = Call::new().input(read_request(3, "file"));
        let execution = ctx.block_on(palisade_core::PreparedExt::run(&*prepared, call));
        let execution = execution.map_err(|error| ctx.failure(error.to_string()))?;
        expect_read(ctx, "before it was renamed", &execution, &first)?;
        Ok(prepared)
    })?;
    ctx.enforced(|ctx| {
        let moved = std::fs::rename(&folder, ctx.scratch().join("moved"));
        moved.map_err(|error| ctx.failure(format!("cannot rename a directory: {error}")))?;
        ctx.make_directory("granted")?;
        put(ctx, &folder.join("file"), &second)?;
        let call = Call::new().input(read_request(3, "file"));
        let execution = ctx.block_on(palisade_core::PreparedExt::run(&*prepared, call));
        let execution = execution.map_err(|error| ctx.failure(error.to_string()))?;
        let leak = contains(&execution.output, &second);
        ctx.expect("what lies at its path now", leak, !leak)?;
        expect_read(ctx, "after it was renamed", &execution, &first)
    })?;
    drop(prepared);
    ctx.recovery()
}

/// Directories of this machine that are the kernel itself.
pub(super) fn special_directories(ctx: &Context) -> Result<Vec<&'static Path>, Failure> {
    let known = [("/proc", "/proc/self/maps"), ("/proc/self", "/proc/self/maps"), ("/sys", "/sys/kernel")];
    let there: Vec<_> =
        known.into_iter().filter(|(_, sign)| Path::new(sign).exists()).map(|(path, _)| Path::new(path)).collect();
    if there.is_empty() { Err(ctx.blocked("this machine has no procfs")) } else { Ok(there) }
}

/// What looks like files there is the host itself.
fn special_grant(ctx: &mut Context) -> Result<(), Failure> {
    let ordinary = ctx.make_directory("ordinary")?;
    ctx.baseline(|ctx| {
        let policy = reading(ctx, &[&ordinary]);
        ctx.prepare("file", &policy, HostFunctions::new()).map(drop)
    })?;
    let special = special_directories(ctx)?;
    ctx.enforced(|ctx| {
        for path in special {
            let policy = reading(ctx, &[path]);
            ctx.expect_refused(&path.to_string_lossy(), "file", &policy, ErrorKind::InvalidPolicy)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A grant of all files is not one of the kernel's.
fn special_below(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    put(ctx, &ctx.scratch().join("file"), &nonce)?;
    special_directories(ctx)?;
    let policy = reading(ctx, &[Path::new("/")]);
    ctx.baseline(|ctx| {
        let path = ctx.scratch().join("file").to_string_lossy().trim_start_matches('/').to_owned();
        let execution = ctx.run("file", read_request(3, &path), &policy)?;
        expect_read(ctx, "an ordinary file", &execution, &nonce)
    })?;
    ctx.enforced(|ctx| {
        for path in ["proc/self/maps", "proc/version", "proc/self/environ"] {
            let execution = ctx.run("file", read_request(3, path), &policy)?;
            ctx.expect_completed(path, &execution)?;
            let (errno, len) = (number_at(&execution.output, 0), execution.output.len());
            ctx.expect(path, format!("errno {errno}, {len} bytes"), errno != 0 && len <= 8)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A step that a backend cannot make must be refused, not made shorter.
fn clock_long_steps(ctx: &mut Context) -> Result<(), Failure> {
    const STEP: u64 = 3_600_000_000_000;
    ctx.baseline(|ctx| {
        let execution = ctx.run("clock", numbers(&[0, 10]), &ctx.generous())?;
        ctx.expect_completed("reading a clock", &execution)
    })?;
    ctx.enforced(|ctx| {
        let mut policy = ctx.generous();
        policy.grants.clocks = Clocks::Coarse { step: std::time::Duration::from_nanos(STEP) };
        match ctx.try_prepare("clock", &policy, HostFunctions::new()) {
            Err(error) => ctx.expect("steps of an hour", &error, error.kind() == ErrorKind::Unsupported),
            Ok(_) => {
                for id in [0, 1] {
                    let execution = ctx.run("clock", numbers(&[id, 100]), &policy)?;
                    ctx.expect_completed("reading a clock", &execution)?;
                    let (times, _) = execution.output.as_chunks::<8>();
                    let between = times.iter().filter(|time| !u64::from_le_bytes(**time).is_multiple_of(STEP)).count();
                    let seen = format!("{between} of {}", times.len());
                    ctx.expect("readings between steps of an hour", seen, between == 0 && times.len() == 100)?;
                }
                Ok(())
            }
        }
    })?;
    ctx.recovery()
}
