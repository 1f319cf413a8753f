//! The self-test: attacks a live jail.

use std::os::fd::AsFd;
use std::time::Duration;

use palisade_core::{Clocks, Error, ErrorKind, Policy, Result};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::capabilities::NAME;
use crate::landlock;
use crate::seccomp::{self, Stage};
use crate::shared::Shared;
use crate::sys;
use crate::sys::protocol::{FRAME_HEADER, Mount, OUTPUT, PARKED, Plan, Program, SELF_TEST_SCRATCH};
use crate::zygote::Zygote;

/// The self-test is a handful of system calls.
const SELF_TEST_TIME_MAX: Duration = Duration::from_secs(20);

/// Attacks a live jail. Returns the attacks that worked.
pub(crate) fn self_test(shared: &Shared) -> Result<Vec<String>> {
    let mut policy = Policy::default();
    policy.grants.clocks = Clocks::Fine;
    let scratch = SELF_TEST_SCRATCH.to_owned();
    let plan = Plan {
        become_id: shared.is_root.then_some(64_999),
        inner_id: 1000,
        root_bytes: 1 << 20,
        mounts: vec![Mount::Scratch { target: scratch.clone(), bytes: 64 << 10 }],
        landlock_rules: vec![(scratch, landlock::directory(true, false, shared.landlock_abi))],
        limits: vec![(libc::RLIMIT_CPU, 2), (libc::RLIMIT_NOFILE, 16), (libc::RLIMIT_FSIZE, 0)],
        landlock: landlock::handled(shared.landlock_abi),
        filter: seccomp::filter(Stage::SelfTest, &policy, true),
        program: Program::SelfTest,
        ablated: shared.ablated,
        ..Plan::default()
    };
    let failed = |what: &str| {
        Error::new(ErrorKind::Unsupported, "open", format!("the self-test of the jail failed: {what}"))
            .with_context("backend", NAME)
            .with_help("`palisade doctor` shows what this machine allows")
    };
    let zygote = Zygote::start(&plan, None)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error.to_string()));
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(|e| failed(&e.to_string()))?;
    let (request_theirs, _request) = pipe()?;
    let (reply, reply_theirs) = pipe()?;
    let null = null.as_fd();
    let created = zygote.create([null, null, null, request_theirs.as_fd(), reply_theirs.as_fd(), null, null])?;
    drop(reply_theirs);
    let mut said = Vec::new();
    let watchdog = std::time::Instant::now();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = [rustix::event::PollFd::new(&reply, rustix::event::PollFlags::IN)];
        let left = SELF_TEST_TIME_MAX.saturating_sub(watchdog.elapsed());
        let timeout =
            rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut ready, Some(&timeout)) {
            Ok(0) => {
                sys::kill(&created.pidfd);
                let _ = sys::reap(created.pidfd.as_fd(), true);
                return Err(failed("it does not end"));
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(failed(&error.to_string())),
            Ok(_) => {}
        }
        match rustix::io::read(&reply, &mut buffer) {
            Ok(0) => break,
            Ok(len) => said.extend(&buffer[..len]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(&error.to_string())),
        }
    }
    let ended = sys::reap(created.pidfd.as_fd(), true).map_err(|error| failed(&error.to_string()))?;
    let parked = [PARKED, 0, 0, 0, 0];
    let Some(report) = said.strip_prefix(&parked) else {
        let text = said.get(FRAME_HEADER + 4..).unwrap_or_default();
        return Err(failed(&String::from_utf8_lossy(text)));
    };
    if report.first() != Some(&OUTPUT) {
        return Err(failed(&format!("it ended early: {:?}", ended.map(|ended| ended.by))));
    }
    let text = String::from_utf8_lossy(report.get(FRAME_HEADER..).unwrap_or_default()).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}
