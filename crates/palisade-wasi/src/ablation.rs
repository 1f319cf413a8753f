//! Leaves protections of Wasm backends out, in builds made for it: what the suite notices then is what each is for.

use palisade_core::{Access, Policy};

/// Whether this build can leave anything out. Such a build certifies nothing.
pub const BUILT_FOR_IT: bool = cfg!(palisade_ablation);

/// Whether the protection `name` is to be left out: never, but in a build made for it.
pub fn left_out(name: &str) -> bool {
    BUILT_FOR_IT && std::env::var("PALISADE_ABLATE").is_ok_and(|asked| asked.split(',').any(|asked| asked == name))
}

/// The policy that is enforced in place of the one that was asked for.
pub fn weaken(mut policy: Policy) -> Policy {
    if !BUILT_FOR_IT {
        return policy;
    }
    let quota = &mut policy.quota;
    let lift = |limit: &mut Option<u64>, name: &str| {
        if left_out(name) {
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
    if left_out("wall-time") {
        quota.wall_time = None;
    }
    if left_out("cpu-time") {
        quota.cpu_time = None;
    }
    if left_out("read-only") {
        policy.grants.directories.iter_mut().for_each(|directory| directory.access = Access::ReadWrite);
    }
    if left_out("coarse-clocks") {
        policy.grants.clocks = palisade_core::Clocks::Fine;
    }
    policy
}
