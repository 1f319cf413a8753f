//! Leaves protections out, in builds made for it: what the suite notices then is what each protection is for.

use palisade_core::{Access, Policy};

/// Whether the protection `name` is to be left out.
pub(crate) fn leaves_out(name: &str) -> bool {
    std::env::var("PALISADE_ABLATE").is_ok_and(|asked| asked.split(',').any(|asked| asked == name))
}

/// The policy that is enforced in place of the one that was asked for.
pub(crate) fn weaken(mut policy: Policy) -> Policy {
    let quota = &mut policy.quota;
    let lift = |limit: &mut Option<u64>, name: &str| {
        if leaves_out(name) {
            *limit = None;
        }
    };
    lift(&mut quota.fuel, "fuel");
    lift(&mut quota.memory_bytes, "memory");
    lift(&mut quota.stack_bytes, "stack");
    lift(&mut quota.output_bytes, "output");
    lift(&mut quota.log_bytes, "log");
    lift(&mut quota.open_files, "open-files");
    lift(&mut quota.disk_bytes, "disk");
    lift(&mut quota.host_calls, "host-calls");
    if leaves_out("wall-time") {
        quota.wall_time = None;
    }
    if leaves_out("cpu-time") {
        quota.cpu_time = None;
    }
    if leaves_out("read-only") {
        policy.grants.directories.iter_mut().for_each(|directory| directory.access = Access::ReadWrite);
    }
    if leaves_out("coarse-clocks") {
        policy.grants.clocks = palisade_core::Clocks::Fine;
    }
    policy
}
