//! What a task runs under: its own policy, which asks for no more than its agent's gives.

use palisade_core::{Clocks, Policy, Quota, Randomness, Resource, Result};

/// The policy a task with policy `task` runs under, when its agent may give `agent`. It reaches what the task asks for and
/// nothing else that the agent has. A quota that the task lifts, or leaves at its default, is the agent's where that is
/// smaller, and so are clocks and randomness left at their default: nobody asked for more there.
///
/// # Errors
///
/// [`ErrorKind::Denied`](palisade_core::ErrorKind::Denied), naming the first thing that the task asks for and its agent may
/// not give.
pub fn narrowed(task: &Policy, agent: &Policy) -> Result<Policy> {
    let mut policy = task.clone();
    let default = Quota::default();
    for resource in Resource::ALL.iter().copied() {
        let (asked, most) = (task.quota.get(resource), agent.quota.get(resource));
        let beyond = most.is_some_and(|most| asked.is_none_or(|asked| asked > most));
        if beyond && (asked.is_none() || asked == default.get(resource)) {
            policy.quota.set(resource, most);
        }
    }
    let (asked, given) = (&mut policy.grants, &agent.grants);
    if asked.randomness == Randomness::default() {
        asked.randomness = given.randomness;
    }
    if asked.clocks == Clocks::default()
        && let (Clocks::Coarse { step }, Clocks::Coarse { step: least }) = (asked.clocks, given.clocks)
    {
        asked.clocks = Clocks::Coarse { step: step.max(least) };
    }
    policy.within(agent)?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use palisade_core::{DirectoryGrant, ErrorKind, Grants};

    use super::*;

    fn agent() -> Policy {
        let mut agent = Policy::default();
        agent.quota.fuel = Some(100);
        agent.quota.memory_bytes = Some(1000);
        agent.grants.clocks = Clocks::Fine;
        agent.grants.network = true;
        agent.grants.scratch = Some("/tmp".into());
        agent.grants.host_functions.insert("kv.get".into());
        agent.grants.directories.push(DirectoryGrant::read_write("/srv", "/data"));
        agent
    }

    #[test]
    fn a_task_that_asks_for_less_gets_less() {
        let agent = agent();
        let mut task = Policy { quota: Quota::unlimited(), ..Policy::default() };
        let policy = narrowed(&task, &agent).unwrap();
        assert_eq!(policy.grants, Grants::default(), "it reaches nothing that it did not ask for");
        assert_eq!(policy.quota, agent.quota, "what a task leaves open, the agent bounds");
        let untouched = narrowed(&Policy::default(), &agent).unwrap();
        assert_eq!(
            (untouched.quota.fuel, untouched.quota.memory_bytes),
            (Some(100), Some(1000)),
            "it asked for no more"
        );
        task.quota.fuel = Some(99);
        task.quota.cpu_time = Some(std::time::Duration::from_secs(1));
        task.grants.directories.push(DirectoryGrant::read_only("/srv", "/elsewhere"));
        task.grants.randomness = Randomness::Seeded(7);
        let policy = narrowed(&task, &agent).unwrap();
        assert_eq!((policy.quota.fuel, policy.quota.memory_bytes), (Some(99), Some(1000)));
        assert_eq!(policy.quota.cpu_time, task.quota.cpu_time);
        assert_eq!(policy.grants, task.grants, "what it asked for is what it gets: the seed, the access, the clocks");
    }

    #[test]
    fn clocks_and_randomness_are_the_agents_unless_the_task_asks() {
        let mut agent = agent();
        agent.grants.randomness = Randomness::Seeded(7);
        agent.grants.clocks = Clocks::Coarse { step: std::time::Duration::from_millis(10) };
        let mut task = Policy::default();
        let grants = narrowed(&task, &agent).unwrap().grants;
        assert_eq!((grants.randomness, grants.clocks), (agent.grants.randomness, agent.grants.clocks));
        task.grants.randomness = Randomness::Seeded(8);
        assert_eq!(narrowed(&task, &agent).unwrap().grants.randomness, Randomness::Seeded(8));
        task.grants.clocks = Clocks::Fine;
        assert!(narrowed(&task, &agent).is_err());
    }

    #[test]
    fn a_task_that_asks_for_more_is_refused() {
        let agent = agent();
        let refused = |change: &dyn Fn(&mut Policy)| {
            let mut task = Policy { quota: Quota::unlimited(), ..Policy::default() };
            change(&mut task);
            narrowed(&task, &agent).unwrap_err().kind() == ErrorKind::Denied
        };
        assert!(refused(&|task| task.quota.memory_bytes = Some(1001)));
        assert!(refused(&|task| task.grants.directories.push(DirectoryGrant::read_write("/etc", "/data"))));
        assert!(refused(&|task| drop(task.grants.environment.insert("A".into(), "B".into()))));
        assert!(refused(&|task| task.grants.host_functions = ["kv.set".to_owned()].into()));
        assert!(refused(&|task| task.grants.child_processes = true));
        assert!(refused(&|task| task.grants.interpreter = Some("sh".into())));
    }
}
