//! Policies, tasks and the units people write in them.

use palisade::{Artifact, Policy, Task, units};

/// The bytes are read as a policy, as a task and as every unit. What is read is written and read again, the same.
pub fn policy(data: &[u8]) {
    if let Ok(policy) = serde_json::from_slice::<Policy>(data) {
        let text = serde_json::to_string(&policy).expect("a policy has a JSON form");
        assert_eq!(serde_json::from_str::<Policy>(&text).ok(), Some(policy.clone()));
        let _ = policy.validate();
        let backends = palisade::backends();
        let opened = backends.first().and_then(|backend| (backend.open)(&palisade::BackendOptions::new()).ok());
        let _ = opened.map(|sandbox| sandbox.capabilities().admit(&policy));
    }
    if let Ok(task) = serde_json::from_slice::<Task>(data) {
        let text = serde_json::to_string(&task).expect("a task has a JSON form");
        assert_eq!(serde_json::from_str::<Task>(&text).ok(), Some(task));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (units::parse_duration(text), units::parse_bytes(text), units::parse_count(text));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let task = Task::new(Artifact::new(palisade::ArtifactKind::Wasm, &b"x"[..]).hash());
    let json = |text: serde_json::Result<String>| text.unwrap_or_default().into_bytes();
    let mut all = vec![json(serde_json::to_string(&Policy::default())), json(serde_json::to_string(&task))];
    all.extend(["1h 30m", "1.5GiB", "10_000"].map(|text| text.as_bytes().to_vec()));
    all
}
