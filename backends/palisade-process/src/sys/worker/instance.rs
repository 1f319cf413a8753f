//! One instance: locks itself in, then becomes the guest.

use std::ffi::CString;
use std::io;

use super::attack;
use super::ffi;
use super::jail::{self, Failed, Step, protection};
use super::library;
use super::protocol::{
    FD_ANSWERS, FD_CALLS, FD_NOTICES, FD_PROGRAM, FD_REPLY, FD_REQUEST, FD_RULES, FRAME_HEADER, GO, INSTANCE_FDS,
    PARKED, Plan, Program, Reader, SETUP_FAILED, frame_header,
};
use super::zygote::{self, Ready};

const PR_SET_PDEATHSIG: i32 = 1;
const PR_SET_DUMPABLE: i32 = 4;
const PR_SET_TSC: i32 = 26;
const PR_TSC_SIGSEGV: u64 = 2;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_SET_MDWE: i32 = 65;
const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;
const SIGKILL: u64 = 9;
const RLIMIT_NOFILE: u32 = 7;

/// Longest arguments of a call, in bytes; the host keeps to it.
const ARGUMENT_BYTES_MAX: u32 = 2 << 20;

/// Runs an instance to its end.
pub(crate) fn run(ready: &Ready, fds: &[i32; INSTANCE_FDS]) -> ! {
    let failed = match lock_in(ready, fds) {
        Ok(()) => match &ready.plan.program {
            Program::Execute { before, .. } => execute(ready, before),
            Program::Library { path } => library::serve(&ready.plan, &ready.environment, path),
            Program::SelfTest => attack::run(),
        },
        Err(failed) => failed,
    };
    let mut message = failed.error.raw_os_error().unwrap_or(-1).to_le_bytes().to_vec();
    message.extend(format!("{}: {}", failed.step, failed.error).bytes());
    let _ = say(SETUP_FAILED, &message);
    ffi::exit(125)
}

/// Sends a frame to the host.
pub(crate) fn say(kind: u8, message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).map_err(|_| io::Error::from_raw_os_error(ffi::EINVAL))?;
    ffi::write_all(FD_REPLY, &[&frame_header(kind, len), message].concat())
}

/// Receives a frame: its kind and length.
pub(crate) fn hear() -> io::Result<(u8, u32)> {
    let mut header = [0; FRAME_HEADER];
    if !ffi::read_exact(FD_REQUEST, &mut header)? {
        // The host dropped this instance.
        ffi::exit(0);
    }
    let [kind, len @ ..] = header;
    Ok((kind, u32::from_le_bytes(len)))
}

fn lock_in(ready: &Ready, fds: &[i32; INSTANCE_FDS]) -> Result<(), Failed> {
    let plan = &ready.plan;
    // A session and a process group of its own: a signal to the group must reach neither the zygote nor its other guests.
    ffi::leave_session();
    let [of_everybody @ .., answers, calls] = fds;
    for (to, from) in of_everybody.iter().enumerate() {
        ffi::duplicate(*from, to as i32, to >= FD_REQUEST as usize).step("take descriptors")?;
    }
    if let Some(program) = ready.program {
        ffi::duplicate(program, FD_PROGRAM, true).step("take descriptors")?;
    }
    let rules = match ready.rules {
        None if plan.has_scratch() => {
            jail::mount_scratch(plan)?;
            if plan.on(protection::LANDLOCK) { Some(zygote::rules(plan)?) } else { None }
        }
        shared => shared,
    };
    if let Some(rules) = rules {
        ffi::duplicate(rules, FD_RULES, true).step("take descriptors")?;
    }
    if plan.host_calls {
        ffi::duplicate(*answers, FD_ANSWERS, false).step("take descriptors")?;
        ffi::duplicate(*calls, FD_CALLS, false).step("take descriptors")?;
    }
    if plan.on(protection::DESCRIPTORS) {
        let first = if plan.host_calls { FD_CALLS + 1 } else { FD_RULES + 1 };
        ffi::close_from(first).step("close descriptors")?;
    }
    if plan.on(protection::PARENT_DEATH) {
        ffi::set_process_attribute(PR_SET_PDEATHSIG, SIGKILL, 0).step("end with the host")?;
    }
    // An ordinary host may take a descriptor only from what it may look into; then this follows once the host has it.
    if plan.become_id.is_some() || matches!(plan.program, Program::SelfTest) {
        hide(plan)?;
    }
    let limits = |last: bool| {
        let all = plan.limits.iter().filter(|_| plan.on(protection::LIMITS));
        let mut now = all.filter(|(resource, _)| (*resource == RLIMIT_NOFILE) == last);
        now.try_for_each(|(resource, value)| ffi::limit(*resource, *value).step(format!("resource limit {resource}")))
    };
    limits(false)?;
    if plan.on(protection::CAPABILITIES) {
        ffi::drop_capabilities().step("drop capabilities")?;
    }
    // Kernels before 6.3 have no such switch; the filter refuses the same.
    if !plan.makes_code {
        let _ = ffi::set_process_attribute(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0);
    }
    let _ = ffi::set_process_attribute(PR_SET_THP_DISABLE, 1, 0);
    if plan.trap_tsc {
        ffi::set_process_attribute(PR_SET_TSC, PR_TSC_SIGSEGV, 0).step("trap the time stamp counter")?;
    }
    if rules.is_some() {
        ffi::landlock_restrict(FD_RULES).step("Landlock")?;
        ffi::close_fd(FD_RULES);
    }
    if plan.on(protection::SECCOMP) {
        match plan.program {
            Program::SelfTest => ffi::install_filter(&plan.filter).step("system call filter")?,
            Program::Execute { .. } | Program::Library { .. } => {
                let listener = ffi::install_asking_filter(&plan.filter).step("system call filter")?;
                if let Some(listener) = listener.filter(|listener| *listener != FD_NOTICES) {
                    ffi::duplicate(listener, FD_NOTICES, true).step("system call filter")?;
                    ffi::close_fd(listener);
                }
            }
        }
    }
    // That of open files comes last: the filter needed one more.
    limits(true)?;
    // Also finds out that the host died before its death could be noticed: nobody reads any more.
    say(PARKED, &[]).step("report")
}

/// Keeps this process's memory from others of its user. Executing a program undoes it.
pub(crate) fn hide(plan: &Plan) -> Result<(), Failed> {
    let dumpable = u64::from(!plan.on(protection::NOT_DUMPABLE));
    ffi::set_process_attribute(PR_SET_DUMPABLE, dumpable, 0).step("keep memory unreadable for others")
}

/// Waits for the arguments, and becomes the guest.
fn execute(ready: &Ready, before: &[String]) -> Failed {
    let arguments = (|| {
        let (kind, len) = hear()?;
        if kind != GO || len > ARGUMENT_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(ffi::EINVAL));
        }
        let mut message = vec![0; len as usize];
        ffi::read_exact(FD_REQUEST, &mut message)?;
        let after = Reader(&message).texts().ok_or_else(|| io::Error::from_raw_os_error(ffi::EINVAL))?;
        before.iter().chain(&after).map(|argument| ffi::c_string(argument)).collect::<io::Result<Vec<CString>>>()
    })();
    let error = match arguments {
        Ok(arguments) => ffi::execute(FD_PROGRAM, &arguments, &ready.environment),
        Err(error) => error,
    };
    Failed { step: "execute the program".to_owned(), error }
}
