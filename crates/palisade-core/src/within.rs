//! Whether one policy asks for no more than another gives.

use std::fmt::Display;

use crate::{Access, Clocks, DirectoryGrant, Error, ErrorKind, Grants, Policy, Quota, Randomness, Resource, Result};

impl Policy {
    /// Whether a guest under this policy could do no more, and use no more, than one under `ceiling`.
    ///
    /// A quota is within another that is as large or larger, or not bounded. A directory is within one of the same path on
    /// the host that gives the same access or more and names the same owner; the guest may see it under another name. An
    /// environment variable must be there with the same value. Coarse clocks are within finer ones. Seeded randomness is
    /// within any, the system's only within the system's.
    ///
    /// ```
    /// use palisade_core::{ErrorKind, Policy};
    ///
    /// let ceiling = Policy::default();
    /// let mut policy = Policy::default();
    /// policy.quota.memory_bytes = Some(1 << 20);
    /// assert!(policy.within(&ceiling).is_ok());
    /// policy.grants.network = true;
    /// assert_eq!(policy.within(&ceiling).unwrap_err().kind(), ErrorKind::Denied);
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`], naming the first thing that is beyond the ceiling and what is allowed at most.
    pub fn within(&self, ceiling: &Policy) -> Result<()> {
        let Policy { quota, grants } = self;
        quota.within(&ceiling.quota)?;
        grants.within(&ceiling.grants)
    }
}

fn beyond(field: &'static str, asked: impl Display, allowed: impl Display) -> Error {
    Error::new(ErrorKind::Denied, "admit", format!("{field}: {asked} is more than is allowed here"))
        .with_context("field", field)
        .with_help(format!("ask for at most {allowed}"))
}

impl Quota {
    fn within(&self, ceiling: &Quota) -> Result<()> {
        for resource in Resource::ALL.iter().copied() {
            let Some(most) = ceiling.get(resource) else { continue };
            match self.get(resource) {
                Some(asked) if asked <= most => {}
                asked => {
                    let asked = asked.map_or_else(|| "unlimited".to_owned(), |asked| resource.display(asked));
                    return Err(beyond(resource.as_str(), asked, resource.display(most)));
                }
            }
        }
        Ok(())
    }
}

impl Grants {
    fn within(&self, ceiling: &Grants) -> Result<()> {
        // Every field by its name: one that is added and forgotten here does not compile.
        let Grants {
            directories,
            scratch,
            environment,
            clocks,
            randomness,
            host_functions,
            network,
            child_processes,
            executable_memory,
            interpreter,
        } = self;
        let denied = |field: &'static str, what: String| {
            Err(Error::new(ErrorKind::Denied, "admit", format!("{what} is not allowed here"))
                .with_context("field", field)
                .with_help("ask for less, or have whoever set this limit raise it"))
        };
        for directory in directories {
            if !ceiling.directories.iter().any(|allowed| directory_within(directory, allowed)) {
                let access = match directory.access {
                    Access::ReadOnly => "read-only",
                    Access::ReadWrite => "read-write",
                };
                let owner = directory.owner.map(|owner| format!(" for user {owner}")).unwrap_or_default();
                let what = format!("the directory {}, {access}{owner},", directory.host.display());
                return denied("grants.directories", what);
            }
        }
        if scratch.is_some() && ceiling.scratch.is_none() {
            return denied("grants.scratch", "a scratch directory".into());
        }
        if let Some((name, _)) = environment.iter().find(|(name, value)| ceiling.environment.get(*name) != Some(*value))
        {
            return denied("grants.environment", format!("the environment variable {name} with this value"));
        }
        match (clocks, &ceiling.clocks) {
            (_, Clocks::Fine) => {}
            (Clocks::Coarse { step }, Clocks::Coarse { step: least }) if step >= least => {}
            (_, Clocks::Coarse { step: least }) => {
                return Err(beyond("grants.clocks", "this clock", format!("steps of {least:?}")));
            }
        }
        match (randomness, ceiling.randomness) {
            (Randomness::Seeded(_), _) | (Randomness::Secure, Randomness::Secure) => {}
            (Randomness::Secure, Randomness::Seeded(_)) => {
                return denied("grants.randomness", "randomness of the system".into());
            }
        }
        if let Some(name) = host_functions.difference(&ceiling.host_functions).next() {
            return denied("grants.host_functions", format!("the host function `{name}`"));
        }
        if *network && !ceiling.network {
            return denied("grants.network", "the network".into());
        }
        if *child_processes && !ceiling.child_processes {
            return denied("grants.child_processes", "starting child processes".into());
        }
        if *executable_memory && !ceiling.executable_memory {
            return denied("grants.executable_memory", "making code while running".into());
        }
        if interpreter.is_some() && *interpreter != ceiling.interpreter {
            let name = interpreter.as_deref().unwrap_or_default();
            return denied("grants.interpreter", format!("the interpreter `{name}`"));
        }
        Ok(())
    }
}

/// The paths are compared as they are written: one that leads elsewhere by a symbolic link, or through `..`, is another.
fn directory_within(directory: &DirectoryGrant, allowed: &DirectoryGrant) -> bool {
    let DirectoryGrant { host, guest: _, access, owner } = directory;
    let reads_only = *access == Access::ReadOnly;
    *host == allowed.host && (reads_only || allowed.access == Access::ReadWrite) && *owner == allowed.owner
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A policy that asks for everything there is.
    fn everything() -> Policy {
        Policy {
            quota: Quota::unlimited(),
            grants: Grants {
                directories: vec![DirectoryGrant::read_write("/srv", "/srv").owned_by(7)],
                scratch: Some("/tmp".into()),
                environment: [("A".to_owned(), "B".to_owned())].into(),
                clocks: Clocks::Fine,
                randomness: Randomness::Secure,
                host_functions: ["f".to_owned()].into(),
                network: true,
                child_processes: true,
                executable_memory: true,
                interpreter: Some("python3".into()),
            },
        }
    }

    /// A policy that asks for nothing.
    fn nothing() -> Policy {
        let mut quota = Quota::unlimited();
        for resource in Resource::ALL.iter().copied() {
            quota.set(resource, Some(0));
        }
        let clocks = Clocks::Coarse { step: Duration::from_secs(3600) };
        Policy { quota, grants: Grants { clocks, randomness: Randomness::Seeded(0), ..Grants::default() } }
    }

    #[test]
    fn what_asks_for_less_or_as_much_is_within() {
        for policy in [everything(), nothing(), Policy::default()] {
            policy.within(&policy).unwrap();
            policy.within(&everything()).unwrap();
            nothing().within(&policy).unwrap();
        }
    }

    #[test]
    fn each_field_that_asks_for_more_is_refused_by_its_name() {
        // By way of the text form, so that a field that is added is tried as well.
        let (most, least) = (serde_json::to_value(everything()).unwrap(), serde_json::to_value(nothing()).unwrap());
        let mut tried = 0;
        for part in ["quota", "grants"] {
            for (field, value) in most[part].as_object().unwrap() {
                let mut asked = least.clone();
                asked[part][field] = value.clone();
                let policy: Policy = serde_json::from_value(asked).unwrap();
                let error = policy.within(&nothing()).expect_err(field);
                assert_eq!(error.kind(), ErrorKind::Denied, "{field}");
                let named = error.context().iter().any(|(_, value)| value.trim_start_matches("grants.") == field);
                assert!(named, "{field}: {error:?}");
                policy.within(&everything()).unwrap();
                tried += 1;
            }
        }
        assert_eq!(tried, Resource::ALL.len() + 10);
    }

    #[test]
    fn directories_are_compared_by_path_access_and_owner() {
        let grants = |directory: DirectoryGrant| Policy {
            grants: Grants { directories: vec![directory], ..Grants::default() },
            ..Policy::default()
        };
        let ceiling = grants(DirectoryGrant::read_only("/srv/data", "/data"));
        let refused = |directory| assert!(grants(directory).within(&ceiling).is_err());
        grants(DirectoryGrant::read_only("/srv/data", "/elsewhere")).within(&ceiling).unwrap();
        refused(DirectoryGrant::read_write("/srv/data", "/data"));
        refused(DirectoryGrant::read_only("/srv/data/below", "/data"));
        refused(DirectoryGrant::read_only("/srv/data/../data", "/data"));
        refused(DirectoryGrant::read_only("/srv", "/data"));
        refused(DirectoryGrant::read_only("/srv/data", "/data").owned_by(0));
        let ceiling = grants(DirectoryGrant::read_write("/srv/data", "/data"));
        grants(DirectoryGrant::read_only("/srv/data", "/data")).within(&ceiling).unwrap();
    }

    #[test]
    fn a_limit_above_the_ceiling_says_what_is_allowed() {
        let mut policy = Policy::default();
        policy.quota.memory_bytes = None;
        let error = policy.within(&Policy::default()).unwrap_err();
        assert!(error.to_string().contains("memory_bytes: unlimited"), "{error}");
        assert!(error.help().unwrap_or_default().contains("128 MiB"), "{error:?}");
    }
}
