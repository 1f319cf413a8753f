//! The zygote: builds the jail once, then clones instances into it for as long as the host wants.

use std::ffi::CString;

use super::ffi;
use super::instance;
use super::jail::{self, Failed, Step, protection};
use super::protocol::{CREATE, INSTANCE_FDS, Mount, Plan, Program};

/// The socket to the host.
const CONTROL: i32 = 0;
/// Longest plan, in bytes. The host keeps to it.
const PLAN_BYTES_MAX: usize = 160 << 10;
/// The zygote's own descriptors come after those that instances use.
const FIRST_OWN_FD: i32 = 20;

const PR_SET_PDEATHSIG: i32 = 1;
const PR_CAPBSET_DROP: i32 = 24;
const PR_SET_SECUREBITS: i32 = 28;
const PR_SET_NO_NEW_PRIVS: i32 = 38;
const PR_SET_SPECULATION_CTRL: i32 = 53;
const SIGKILL: u64 = 9;

/// What an instance needs besides the plan.
pub(crate) struct Ready {
    pub(crate) plan: Plan,
    pub(crate) environment: Vec<CString>,
    /// The program, open for execution.
    pub(crate) program: Option<i32>,
    /// The Landlock rules; none when each instance makes its own.
    pub(crate) rules: Option<i32>,
}

/// Runs until the host closes its end. Returns the exit code.
///
/// `keep_descriptors` leaves a protection out, as a plan's `ablated` does; it is needed before there is a plan.
pub(crate) fn run(host: i32, keep_descriptors: bool) -> i32 {
    match start(host, keep_descriptors) {
        Ok(ready) => {
            if reply(0, "", None).is_err() {
                return 1;
            }
            serve(&ready)
        }
        Err(Failed { step, error }) => {
            let _ = reply(error.raw_os_error().unwrap_or(-1), &format!("{step}: {error}"), None);
            1
        }
    }
}

/// Answers the host: a number (zero or a process id is success, told apart by the request), text, a descriptor.
fn reply(number: i32, text: &str, descriptor: Option<i32>) -> std::io::Result<()> {
    ffi::send(CONTROL, &[&number.to_le_bytes(), text.as_bytes()].concat(), descriptor)
}

fn start(host: i32, keep_descriptors: bool) -> Result<Ready, Failed> {
    for signal in 1..=64 {
        // Some cannot be set; those need not be.
        ffi::default_signal(signal);
    }
    ffi::leave_session();
    ffi::set_process_attribute(PR_SET_PDEATHSIG, SIGKILL, 0).step("end with the host")?;
    if host != 0 && ffi::parent() != host {
        return Err(std::io::Error::other("the host is gone")).step("end with the host");
    }
    if !keep_descriptors {
        ffi::close_from(3).step("close inherited descriptors")?;
    }
    let null = ffi::open_path("/dev/null", ffi::O_RDWR, 0).step("open /dev/null")?;
    for fd in null + 1..FIRST_OWN_FD {
        ffi::duplicate(null, fd, true).step("reserve descriptors")?;
    }
    jail::keep_own_files()?;

    let mut buffer = vec![0; PLAN_BYTES_MAX];
    let (len, fds) = ffi::receive(CONTROL, &mut buffer).step("receive the plan")?;
    let plan = Plan::decode(&buffer[..len])
        .ok_or_else(|| std::io::Error::other("the plan is malformed"))
        .step("receive the plan")?;
    if matches!(plan.program, Program::Library { .. }) {
        ffi::single_arena();
        for library in &plan.preload {
            // What is missing here is missed again, with a message, by the guest that needs it.
            let _ = ffi::load_library(library);
        }
    }
    jail::build(&plan, fds.first().copied())?;

    // What every instance inherits.
    if plan.on(protection::NO_NEW_PRIVILEGES) {
        ffi::set_process_attribute(PR_SET_NO_NEW_PRIVS, 1, 0).step("no new privileges")?;
    }
    if plan.on(protection::CAPABILITIES) {
        for capability in 0..64 {
            if ffi::set_process_attribute(PR_CAPBSET_DROP, capability, 0).is_err() {
                break;
            }
        }
        // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, and their locks.
        ffi::set_process_attribute(PR_SET_SECUREBITS, 0b1110_1111, 0).step("lock the secure bits")?;
    }
    // Best effort: where the CPU cannot do it, the kernel says so and there is nothing to enforce.
    let _ = ffi::set_process_attribute(PR_SET_SPECULATION_CTRL, 0, 8);

    let program = match &plan.program {
        // Not placed anywhere: executed from the file that came with the plan, which all zygotes of a module share.
        Program::Execute { path, .. } if path.is_empty() => {
            let program = fds.first().copied();
            Some(program.ok_or_else(|| std::io::Error::other("the plan came without its program")).step("program")?)
        }
        Program::Execute { path, .. } => Some(ffi::open_path(path, 0, 0).step(format!("open {path}"))?),
        Program::Library { .. } | Program::SelfTest => None,
    };
    let rules = match plan.on(protection::LANDLOCK) && !plan.has_scratch() {
        true => Some(rules(&plan)?),
        false => None,
    };
    let mut environment = Vec::new();
    for variable in &plan.environment {
        environment.push(ffi::c_string(variable).step("environment")?);
    }
    Ok(Ready { plan, environment, program, rules })
}

/// Makes the Landlock rules. They hold for what lies at the paths now: what an instance mounts later has none.
pub(crate) fn rules(plan: &Plan) -> Result<i32, Failed> {
    let rules = ffi::landlock_rules(&plan.landlock).step("make Landlock rules")?;
    for (path, rights) in &plan.landlock_rules {
        let allowed = ffi::open_path(path, ffi::O_PATH, 0)
            .and_then(|fd| ffi::landlock_allow(rules, fd, *rights).map(|()| ffi::close_fd(fd)));
        allowed.step(format!("allow {path} in Landlock"))?;
    }
    debug_assert!(plan.mounts.iter().all(|mount| !matches!(mount, Mount::Link { path, .. } if path == "/")));
    Ok(rules)
}

/// Clones an instance. In the clone it does not return.
///
/// One that was cloned and is of no use comes with the error: it is the host's child, and the host's to end.
fn create(ready: &Ready, flags: u64, fds: &[i32; INSTANCE_FDS]) -> Result<(i32, i32), (Failed, Option<i32>)> {
    let nothing = |failed: Failed| (failed, None);
    if !ready.plan.own_user_namespace {
        return match ffi::clone_for_host(flags).step("clone").map_err(nothing)? {
            None => instance::run(ready, fds),
            Some(created) => Ok(created),
        };
    }
    // The clone goes on when its users are mapped, which only a process outside may do.
    let (wait, go) = ffi::pipe().step("clone").map_err(nothing)?;
    let created = match ffi::clone_for_host(flags).step("clone") {
        Ok(None) => {
            ffi::close_fd(go);
            let _ = ffi::read_exact(wait, &mut [0]);
            ffi::close_fd(wait);
            instance::run(ready, fds)
        }
        Ok(Some(created)) => Ok(created),
        Err(failed) => Err(nothing(failed)),
    };
    let created = created.and_then(|created| match jail::map_child(created.0, ready.plan.inner_id) {
        Ok(()) => Ok(created),
        Err(failed) => Err((failed, Some(created.1))),
    });
    ffi::close_fd(wait);
    ffi::close_fd(go);
    created
}

/// Clones an instance for every request.
fn serve(ready: &Ready) -> i32 {
    let mut flags = 0;
    for (flag, protection) in [(jail::NEW_PID, protection::PID_NAMESPACE), (jail::NEW_IPC, protection::IPC_NAMESPACE)] {
        if ready.plan.on(protection) {
            flags |= flag;
        }
    }
    if ready.plan.own_user_namespace {
        flags |= jail::NEW_USER;
    }
    if ready.plan.has_scratch() {
        flags |= jail::NEW_NS;
    }
    loop {
        let mut buffer = [0; 64];
        let (len, fds) = match ffi::receive(CONTROL, &mut buffer) {
            Ok((len, fds)) if len > 0 => (len, fds),
            // The host is gone, or wants no more instances.
            _ => return 0,
        };
        let answer = match <[i32; INSTANCE_FDS]>::try_from(fds.clone()) {
            Ok(fds) if buffer[..len] == [CREATE] => match create(ready, flags, &fds) {
                Ok((pid, pidfd)) => {
                    let answer = reply(pid, "", Some(pidfd));
                    ffi::close_fd(pidfd);
                    answer
                }
                Err((Failed { step, error }, useless)) => {
                    let answer = reply(-error.raw_os_error().unwrap_or(1), &format!("{step}: {error}"), useless);
                    useless.into_iter().for_each(ffi::close_fd);
                    answer
                }
            },
            _ => reply(-ffi::EINVAL, "malformed request", None),
        };
        fds.into_iter().for_each(ffi::close_fd);
        if answer.is_err() {
            return 0;
        }
    }
}
