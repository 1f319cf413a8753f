//! Policies, tasks, ceilings and the units people write in them.

use std::fmt::Debug;
use std::time::Duration;

use palisade::{
    Access, Artifact, Capabilities, Clocks, DirectoryGrant, Policy, Randomness, Resource, Sandbox, Task, Tenant, units,
};
use palisade_fabric::narrowed;
use palisade_fake::Fake;
use palisade_rpc::Ceiling;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Between a policy and the ceiling it is held to.
const BETWEEN: char = '\0';

/// The bytes are read as a policy in JSON or TOML, as a ceiling, as a task and as every unit. What is read is written and
/// read again, the same; it is within itself, and never becomes more by being narrowed.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (units::parse_duration(text), units::parse_bytes(text), units::parse_count(text));
    let _ = json::<Task>(text);
    let (text, other) = text.split_once(BETWEEN).unwrap_or((text, ""));
    let tenants = [Tenant("a".into()), Tenant("b".into())];
    let ceiling = Ceiling::parse(other).unwrap_or_default();
    for policy in json::<Policy>(text).into_iter().chain(toml::<Policy>(text)) {
        let is_valid = policy.validate().is_ok();
        let is_admitted = capabilities().admit(&policy).is_ok();
        assert!(is_valid || !is_admitted, "what is invalid is admitted");
        policy.within(&policy).expect("a policy is within itself");
        for tenant in &tenants {
            let is_admitted = ceiling.admit_task(tenant, &policy).is_ok();
            let asks = policy.grants.network || policy.grants.child_processes || !policy.grants.directories.is_empty();
            assert!(!(is_admitted && asks && other.is_empty()), "the default ceiling gives what nobody allowed");
        }
        for agent in json::<Policy>(other).into_iter().chain(toml(other)) {
            if let Ok(narrow) = narrowed(&policy, &agent) {
                narrow.within(&agent).expect("what is narrowed is within the agent's");
                narrow.within(&policy).expect("what is narrowed is within the task's");
            }
        }
    }
    let _ = Ceiling::parse(text);
}

fn capabilities() -> Capabilities {
    Fake::new(None).capabilities().clone()
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = serde_json::from_str(text).ok()?;
    let written = serde_json::to_string(&value).expect("it has a JSON form");
    assert_eq!(serde_json::from_str::<T>(&written).expect("what is written can be read"), value);
    Some(value)
}

fn toml<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = toml::from_str(text).ok()?;
    // Not every number has a form in TOML; what has one is the same.
    if let Ok(written) = toml::to_string(&value) {
        assert_eq!(toml::from_str::<T>(&written).expect("what is written can be read"), value);
    }
    Some(value)
}

/// A policy that names everything, in both forms and with ceilings.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut full = Policy::default();
    Resource::ALL.iter().for_each(|resource| full.quota.set(*resource, Some(4096)));
    let grants = &mut full.grants;
    grants.directories = vec![DirectoryGrant::read_only("/srv", "/data"), DirectoryGrant::read_write("/b", "/b")];
    grants.directories[1].owner = Some(1000);
    assert_eq!(grants.directories[1].access, Access::ReadWrite);
    grants.scratch = Some("/tmp".into());
    grants.environment.insert("NAME".into(), "value".into());
    grants.clocks = Clocks::Coarse { step: Duration::from_millis(1) };
    grants.randomness = Randomness::Seeded(7);
    grants.host_functions.insert("memory.get".into());
    grants.interpreter = Some("python3".into());
    (grants.network, grants.child_processes) = (true, true);
    let (json, toml) = (serde_json::to_string(&full).unwrap_or_default(), toml::to_string(&full).unwrap_or_default());
    let task = Task::new(Artifact::new(palisade::ArtifactKind::Wasm, &b"x"[..]).hash());
    let small = "quota.wall_time = \"2s\"\nquota.memory_bytes = \"unlimited\"\ngrants.clocks = \"fine\"\n";
    let ceiling = "kinds = [\"wasm\"]\ninterpreters = [\"sh\"]\nagent.tasks_max = 2\n[tenant.a]\nquota.fuel = 10\n";
    let mut all = [
        serde_json::to_string(&Policy::default()).unwrap_or_default(),
        serde_json::to_string(&task).unwrap_or_default(),
        format!("{small}{BETWEEN}{ceiling}"),
        format!("{json}{BETWEEN}{toml}"),
        format!("{toml}{BETWEEN}{json}"),
        format!("{toml}{BETWEEN}{ceiling}"),
    ]
    .map(String::into_bytes)
    .to_vec();
    all.extend(["1h 30m", "1.5GiB", "10_000", ceiling].map(|text| text.as_bytes().to_vec()));
    all
}
