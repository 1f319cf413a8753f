//! The most that the operator of a daemon lets anybody be given, whatever a request asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_core::{
    Access, ArtifactKind, Clocks, Error, ErrorKind, Grants, HostFunctions, Policy, Quota, Result, Tenant,
};
use palisade_fabric::{AgentMemory, MemoryLimits};
use serde::{Deserialize, Serialize};

use crate::AgentSettings;

/// What any install, agent or task may be given at most: one bound for everybody, and another for tenants that are named.
///
/// A plugin is installed for all tenants, so it may have what one of the bounds allows; a task is held to the bound of its
/// tenant. Environment variables are the requester's own text and are not bounded by what a bound lists.
///
/// ```
/// use palisade_core::{DirectoryGrant, Policy, Tenant};
/// use palisade_rpc::Ceiling;
///
/// let ceiling = Ceiling::default();
/// let tenant = Tenant("mail".into());
/// assert!(ceiling.admit_task(&tenant, &Policy::default()).is_ok());
/// let mut policy = Policy::default();
/// policy.grants.directories.push(DirectoryGrant::read_only("/srv", "/data"));
/// assert!(ceiling.admit_task(&tenant, &policy).is_err());
///
/// let text = r#"
///     [tenant.mail]
///     grants.directories = [{ host = "/srv", guest = "/", access = "read_only" }]
/// "#;
/// let ceiling = Ceiling::parse(text).unwrap();
/// assert!(ceiling.admit_task(&tenant, &policy).is_ok());
/// assert!(ceiling.admit_task(&Tenant("other".into()), &policy).is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// `None`: not bounded.
    everybody: Option<Bound>,
    tenants: BTreeMap<String, Bound>,
    protected: Vec<PathBuf>,
}

/// Kinds that may be installed by default: all there are.
const KINDS: [ArtifactKind; 4] =
    [ArtifactKind::Wasm, ArtifactKind::Executable, ArtifactKind::SharedLibrary, ArtifactKind::Script];

/// The bound of everybody or of one tenant, as in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    quota: Quota,
    grants: Grants,
    /// Kinds of artifact that may be installed.
    kinds: BTreeSet<ArtifactKind>,
    agent: AgentBound,
    /// Interpreters that may be named.
    interpreters: BTreeSet<String>,
}

/// The most an agent may be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentBound {
    tasks_max: usize,
    memory_entries_max: usize,
    memory_bytes_max: usize,
}

impl Default for Bound {
    /// No directory, no interpreter, no child processes; every quota has a bound. CPU time and fuel are bounded by the wall
    /// time and the threads.
    fn default() -> Self {
        let quota = Quota {
            wall_time: Some(Duration::from_secs(3600)),
            memory_bytes: Some(1 << 30),
            stack_bytes: Some(16 << 20),
            output_bytes: Some(128 << 20),
            log_bytes: Some(16 << 20),
            open_files: Some(1024),
            disk_bytes: Some(256 << 20),
            host_calls: Some(10_000_000),
            threads: Some(64),
            ..Quota::default()
        };
        let offered = AgentMemory::new(MemoryLimits::default()).add_to(HostFunctions::new());
        let grants = Grants {
            scratch: Some("/".into()),
            clocks: Clocks::Fine,
            host_functions: offered.names().map(str::to_owned).collect(),
            ..Grants::default()
        };
        Bound {
            quota,
            grants,
            kinds: KINDS.into(),
            agent: AgentBound { tasks_max: 1024, memory_entries_max: 100_000, memory_bytes_max: 64 << 20 },
            interpreters: BTreeSet::new(),
        }
    }
}

impl Bound {
    fn admit(&self, policy: &Policy) -> Result<()> {
        let mut ceiling = Policy { quota: self.quota.clone(), grants: self.grants.clone() };
        ceiling.grants.environment.clone_from(&policy.grants.environment);
        if let Some(interpreter) = policy.grants.interpreter.as_ref().filter(|name| self.interpreters.contains(*name)) {
            ceiling.grants.interpreter = Some(interpreter.clone());
        }
        // What the wall time and the threads bound anyway need not be bounded for itself.
        let mut policy = policy.clone();
        for resource in [palisade_core::Resource::CpuTime, palisade_core::Resource::Fuel] {
            if policy.quota.get(resource).is_none() {
                policy.quota.set(resource, self.quota.get(resource));
            }
        }
        policy.within(&ceiling)
    }

    fn admit_agent(&self, kind: ArtifactKind, agent: &AgentSettings) -> Result<()> {
        let denied = |what: String, most: String| {
            Err(Error::new(ErrorKind::Denied, "admit", format!("{what} is more than is allowed here"))
                .with_help(format!("ask for at most {most}")))
        };
        if !self.kinds.contains(&kind) {
            return Err(Error::new(
                ErrorKind::Denied,
                "admit",
                format!("artifacts of kind {kind} are not allowed here"),
            ));
        }
        let AgentBound { tasks_max, memory_entries_max, memory_bytes_max } = self.agent;
        if agent.tasks_max > tasks_max {
            return denied(format!("an agent of {} tasks at once", agent.tasks_max), tasks_max.to_string());
        }
        if agent.memory.entries_max > memory_entries_max {
            return denied(format!("a memory of {} entries", agent.memory.entries_max), memory_entries_max.to_string());
        }
        if agent.memory.bytes_max > memory_bytes_max {
            return denied(format!("a memory of {} bytes", agent.memory.bytes_max), memory_bytes_max.to_string());
        }
        Ok(())
    }
}

impl Default for Ceiling {
    /// No directory, no interpreter, no child processes, and a bound on every quota, for everybody.
    fn default() -> Self {
        Ceiling { everybody: Some(Bound::default()), tenants: BTreeMap::new(), protected: Vec::new() }
    }
}

impl Ceiling {
    /// No bound on anything but [what is protected](Ceiling::protect). For hosts that trust all who send requests.
    pub fn unlimited() -> Ceiling {
        Ceiling { everybody: None, tenants: BTreeMap::new(), protected: Vec::new() }
    }

    /// Reads a ceiling from TOML: the fields of a policy, besides `kinds`, `interpreters` and `agent`, each as far as it is
    /// to be other than by default; and the same below `tenant.NAME`, on top of what holds for everybody.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPolicy`], saying where.
    pub fn parse(text: &str) -> Result<Ceiling> {
        let invalid = |message: String| {
            Error::new(ErrorKind::InvalidPolicy, "read the ceiling", message)
                .with_help("the fields are those of a policy file, and `kinds`, `interpreters`, `agent`, `tenant.NAME`")
        };
        let mut table: toml::Table = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let tenants = match table.remove("tenant") {
            None => toml::Table::new(),
            Some(toml::Value::Table(tenants)) => tenants,
            Some(_) => return Err(invalid("`tenant` is a table with a table for each tenant".into())),
        };
        let over = |base: &Bound, changes: toml::Table, name: &str| -> Result<Bound> {
            let mut all = toml::Table::try_from(base).map_err(|error| invalid(error.to_string()))?;
            merge(&mut all, changes);
            let bound: Bound = all.try_into().map_err(|error: toml::de::Error| invalid(format!("{name}{error}")))?;
            refuse_nested(&bound.grants).map(|()| bound)
        };
        let everybody = over(&Bound::default(), table, "")?;
        let mut named = BTreeMap::new();
        for (name, changes) in tenants {
            let toml::Value::Table(changes) = changes else {
                return Err(invalid(format!("`tenant.{name}` is a table")));
            };
            let bound = over(&everybody, changes, &format!("tenant.{name}: "))?;
            named.insert(name, bound);
        }
        Ok(Ceiling { everybody: Some(everybody), tenants: named, protected: Vec::new() })
    }

    /// Directories that nobody is granted, nor what lies in them or holds them: the daemon's own data, cache, key and socket.
    #[must_use]
    pub fn protect(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Ceiling {
        self.protected.extend(paths);
        self
    }

    /// Whether a plugin may be installed with `policy`, and run by such an agent. Looks at the file system.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`], naming what is beyond the ceiling.
    pub fn admit_install(&self, kind: ArtifactKind, policy: &Policy, agent: &AgentSettings) -> Result<()> {
        self.refuse_protected(policy)?;
        self.any(|bound| bound.admit(policy).and_then(|()| bound.admit_agent(kind, agent)))
    }

    /// Whether an agent may have these settings.
    ///
    /// # Errors
    ///
    /// As [`Ceiling::admit_install`].
    pub fn admit_agent(&self, kind: ArtifactKind, agent: &AgentSettings) -> Result<()> {
        self.any(|bound| bound.admit_agent(kind, agent))
    }

    /// Whether some bound admits it; what the one for everybody says when none does.
    fn any(&self, admit: impl Fn(&Bound) -> Result<()>) -> Result<()> {
        let Some(everybody) = &self.everybody else { return Ok(()) };
        match admit(everybody) {
            Err(error) if !self.tenants.values().any(|bound| admit(bound).is_ok()) => Err(explained(error)),
            _ => Ok(()),
        }
    }

    /// Whether a task of `tenant` may run under `policy`. Looks at the file system, if any directory is granted.
    ///
    /// # Errors
    ///
    /// As [`Ceiling::admit_install`].
    pub fn admit_task(&self, tenant: &Tenant, policy: &Policy) -> Result<()> {
        self.refuse_protected(policy)?;
        match self.tenants.get(&tenant.0).or(self.everybody.as_ref()) {
            Some(bound) => bound.admit(policy).map_err(explained),
            None => Ok(()),
        }
    }

    /// A directory is told by device and inode: it may be mounted or named in several ways.
    fn refuse_protected(&self, policy: &Policy) -> Result<()> {
        let chain = |path: &Path| -> Vec<(u64, u64)> {
            let Ok(real) = path.canonicalize() else { return Vec::new() };
            let id = |place: &Path| place.metadata().ok().map(|found| (found.dev(), found.ino()));
            real.ancestors().filter_map(id).collect()
        };
        for directory in &policy.grants.directories {
            let granted = chain(&directory.host);
            for protected in &self.protected {
                let kept = chain(protected);
                let holds = granted.first().is_some_and(|own| kept.contains(own));
                let lies_in = kept.first().is_some_and(|own| granted.contains(own));
                if holds || lies_in {
                    let message =
                        format!("the directory {} holds or is part of the daemon's own", directory.host.display());
                    return Err(Error::new(ErrorKind::Denied, "admit", message)
                        .with_context("field", "grants.directories")
                        .with_help("grant another directory; no ceiling allows this one"));
                }
            }
        }
        Ok(())
    }
}

/// Who meets a ceiling is told whose it is.
fn explained(error: Error) -> Error {
    let help = error.help().unwrap_or("ask for less").to_owned();
    error.with_help(format!("{help}; the daemon's ceiling (`palisade serve --ceiling FILE`) says what is allowed"))
}

/// A guest that may write a directory decides what lies in it: another that is granted by its path must not.
fn refuse_nested(grants: &Grants) -> Result<()> {
    for outer in grants.directories.iter().filter(|directory| directory.access == Access::ReadWrite) {
        let inside = |inner: &Path| inner != outer.host && inner.starts_with(&outer.host);
        if let Some(inner) = grants.directories.iter().find(|inner| inside(&inner.host)) {
            let message = format!("{} lies in {}, which guests may write", inner.host.display(), outer.host.display());
            return Err(Error::new(ErrorKind::InvalidPolicy, "read the ceiling", message).with_help(
                "a guest could put a link to anywhere in its place; allow directories that do not hold each other",
            ));
        }
    }
    Ok(())
}

/// Puts `changes` on top of `base`, table by table.
fn merge(base: &mut toml::Table, changes: toml::Table) {
    for (name, change) in changes {
        match (base.get_mut(&name), change) {
            // A variant of a clock or of randomness is a table too, and replaces another.
            (Some(toml::Value::Table(known)), toml::Value::Table(change))
                if name != "clocks" && name != "randomness" =>
            {
                merge(known, change);
            }
            (_, change) => drop(base.insert(name, change)),
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::{DirectoryGrant, Resource};

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant(name.to_owned())
    }

    fn with(change: impl FnOnce(&mut Policy)) -> Policy {
        let mut policy = Policy::default();
        change(&mut policy);
        policy
    }

    #[test]
    fn by_default_every_quota_is_bounded_and_nothing_of_the_host_is_given() {
        let ceiling = Ceiling::default();
        let admit = |policy: &Policy| ceiling.admit_task(&tenant("a"), policy);
        admit(&Policy::default()).unwrap();
        for resource in Resource::ALL.iter().copied() {
            let by_wall_time = matches!(resource, Resource::CpuTime | Resource::Fuel);
            let unlimited = with(|policy| policy.quota.set(resource, None));
            assert_eq!(admit(&unlimited).is_ok(), by_wall_time, "{resource}");
            let huge = with(|policy| policy.quota.set(resource, Some(1 << 60)));
            assert_eq!(admit(&huge).is_ok(), by_wall_time, "{resource}");
        }
        for refused in [
            with(|policy| policy.grants.directories.push(DirectoryGrant::read_only("/srv", "/data"))),
            with(|policy| policy.grants.interpreter = Some("python3".into())),
            with(|policy| policy.grants.child_processes = true),
            with(|policy| policy.grants.network = true),
            with(|policy| policy.grants.executable_memory = true),
        ] {
            let error = admit(&refused).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.help().unwrap().contains("--ceiling"), "{error}");
        }
        // What is the requester's own, or reaches nobody.
        admit(&with(|policy| drop(policy.grants.environment.insert("A".into(), "B".into())))).unwrap();
        admit(&with(|policy| policy.grants.clocks = Clocks::Fine)).unwrap();
        admit(&with(|policy| policy.grants.host_functions = ["kv.get".to_owned(), "kv.set".to_owned()].into()))
            .unwrap();
    }

    #[test]
    fn a_file_says_what_is_other_than_by_default_also_for_one_tenant() {
        let ceiling = Ceiling::parse(
            "interpreters = ['python3', 'sh']
             kinds = ['wasm', 'script']
             [quota]
             memory_bytes = '2GiB'
             wall_time = '2h'
             [agent]
             tasks_max = 4
             [tenant.mail]
             interpreters = []
             [tenant.mail.quota]
             memory_bytes = '64MiB'
             [tenant.build.grants]
             child_processes = true
             [tenant.build.quota]
             processes = 8",
        )
        .unwrap();
        let memory = |bytes| with(|policy| policy.quota.memory_bytes = Some(bytes));
        ceiling.admit_task(&tenant("a"), &memory(2 << 30)).unwrap();
        assert!(ceiling.admit_task(&tenant("a"), &memory((2 << 30) + 1)).is_err());
        ceiling.admit_task(&tenant("mail"), &memory(64 << 20)).unwrap();
        assert!(ceiling.admit_task(&tenant("mail"), &memory(65 << 20)).is_err());
        let script = with(|policy| policy.grants.interpreter = Some("sh".into()));
        ceiling.admit_task(&tenant("a"), &script).unwrap();
        assert!(
            ceiling
                .admit_task(
                    &tenant("mail"),
                    &with(|policy| {
                        policy.quota.memory_bytes = Some(1 << 20);
                        policy.grants.interpreter = Some("sh".into());
                    })
                )
                .is_err()
        );
        // A plugin for one tenant is installed with what that one may have; others do not get it.
        let builds = with(|policy| {
            policy.grants.child_processes = true;
            policy.quota.processes = Some(8);
        });
        let agent = AgentSettings { tasks_max: 4, ..AgentSettings::default() };
        ceiling.admit_install(ArtifactKind::Wasm, &builds, &agent).unwrap();
        ceiling.admit_task(&tenant("build"), &builds).unwrap();
        assert!(ceiling.admit_task(&tenant("a"), &builds).is_err());
        // Agents and kinds.
        assert!(ceiling.admit_install(ArtifactKind::Executable, &Policy::default(), &agent).is_err());
        assert!(ceiling.admit_agent(ArtifactKind::Wasm, &AgentSettings { tasks_max: 5, ..agent.clone() }).is_err());
        let mut greedy = agent;
        greedy.memory.bytes_max = 1 << 40;
        assert!(ceiling.admit_agent(ArtifactKind::Wasm, &greedy).is_err());
    }

    #[test]
    fn malformed_ceilings_are_refused() {
        for text in [
            "quotas = {}",
            "[quota]\nmemory = '1GiB'",
            "[quota]\nmemory_bytes = 'much'",
            "[tenant]\nmail = 1",
            "[tenant.mail.grant]\nnetwork = true",
            "tenant = 'mail'",
            "x =",
            "grants.directories = [{ host = '/a', guest = '/', access = 'rw' }, { host = '/a/b', guest = '/b' }]",
        ] {
            assert_eq!(Ceiling::parse(text).unwrap_err().kind(), ErrorKind::InvalidPolicy, "{text}");
        }
        assert_eq!(Ceiling::parse("").unwrap(), Ceiling::default());
    }

    #[test]
    fn what_is_the_daemons_own_is_granted_to_nobody() {
        let place = tempfile::tempdir().unwrap();
        let (data, other) = (place.path().join("data"), place.path().join("other"));
        std::fs::create_dir_all(data.join("plugins")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let allowed = |path: &Path| {
            let host = path.display();
            let text = format!("grants.directories = [{{ host = '{host}', guest = '/', access = 'rw' }}]");
            let ceiling = Ceiling::parse(&text).unwrap().protect([data.clone()]);
            let policy = with(|policy| policy.grants.directories.push(DirectoryGrant::read_only(path, "/x")));
            ceiling.admit_task(&tenant("a"), &policy)
        };
        allowed(&other).unwrap();
        for refused in [&data, &data.join("plugins"), &link, &other.join("../data"), place.path(), Path::new("/")] {
            let error = allowed(refused).unwrap_err();
            assert!(error.to_string().contains("daemon's own"), "{}: {error}", refused.display());
        }
    }
}
