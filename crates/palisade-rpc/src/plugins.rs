//! Installed plugins, kept in a directory by their hash.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use palisade_core::{Artifact, ArtifactHash, ArtifactKind, Error, ErrorKind, Policy, Result};
use palisade_fabric::{AgentTemplate, InstanceMode, MemoryLimits, RestartBudget};
use serde::{Deserialize, Serialize};

/// Most plugins. Each is held in memory, and shown in one list.
const PLUGINS_MAX: usize = 1000;
/// Most bytes of all plugins together.
const BYTES_MAX: u64 = 1 << 30;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most bytes of a manifest: far more than a request's policy makes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Fewest digits of a hash that stand for all of it.
const PREFIX_MIN: usize = 8;

/// How the tasks of a plugin are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// Whether tasks share an instance.
    pub instances: InstanceMode,
    /// Tasks run at once. Default 64.
    pub tasks_max: usize,
    /// How often it is started again after it failed.
    pub restarts: RestartBudget,
    /// Bounds of its memory.
    pub memory: MemoryLimits,
}

impl Default for AgentSettings {
    fn default() -> Self {
        AgentSettings {
            instances: InstanceMode::default(),
            tasks_max: 64,
            restarts: RestartBudget::default(),
            memory: MemoryLimits::default(),
        }
    }
}

/// An installed plugin.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plugin {
    /// Its bytes, kind and name.
    pub artifact: Artifact,
    /// The most its tasks may use and reach.
    pub policy: Policy,
    /// How its tasks are run. `None`: its agent was terminated.
    pub agent: Option<AgentSettings>,
}

impl Plugin {
    /// A plugin to install.
    pub fn new(artifact: Artifact, policy: Policy, agent: AgentSettings) -> Plugin {
        Plugin { artifact, policy, agent: Some(agent) }
    }

    /// The name of its agent: several plugins may have one name.
    pub(crate) fn agent_name(&self) -> String {
        format!("{}@{:.12}", self.artifact.name(), self.artifact.hash().to_string())
    }
}

/// What lies beside the bytes. It is written after them, so that a plugin with a manifest is whole.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    kind: ArtifactKind,
    policy: Policy,
    agent: Option<AgentSettings>,
}

/// The plugins of a daemon, in memory and, unless it is ephemeral, in a directory.
pub struct Plugins {
    directory: Option<PathBuf>,
    known: RwLock<BTreeMap<ArtifactHash, Arc<Plugin>>>,
    /// One change at a time; readers do not wait for the disk.
    changing: Mutex<()>,
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins").field("directory", &self.directory).field("count", &self.read().len()).finish()
    }
}

impl Plugins {
    /// Plugins that are kept nowhere.
    pub fn in_memory() -> Plugins {
        Plugins { directory: None, known: RwLock::default(), changing: Mutex::default() }
    }

    /// Opens a directory of plugins, or makes it, and checks each against its hash. What an installation left unfinished
    /// is removed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when a plugin is not what was installed, else [`ErrorKind::Io`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Plugins> {
        let directory = directory.into();
        let failed = |error| io_error("open plugins", &directory, error);
        fs::create_dir_all(&directory).map_err(failed)?;
        let names = fs::read_dir(&directory).map_err(failed)?;
        let names = names.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let mut known = BTreeMap::new();
        let mut unfinished = Vec::new();
        for name in names.iter().filter_map(|name| name.to_str()) {
            let Some((stem, extension)) = name.rsplit_once('.') else { continue };
            match (extension, stem.parse::<ArtifactHash>()) {
                ("json", Ok(hash)) => drop(known.insert(hash, Arc::new(load(&directory, hash)?))),
                ("plugin", Ok(_)) | ("new", _) => unfinished.push((name, stem)),
                _ => {}
            }
        }
        for (name, stem) in unfinished {
            if !stem.parse().is_ok_and(|hash| known.contains_key(&hash)) {
                fs::remove_file(directory.join(name)).map_err(failed)?;
            }
        }
        Ok(Plugins { directory: Some(directory), known: RwLock::new(known), changing: Mutex::default() })
    }

    /// All plugins, sorted by name.
    pub fn list(&self) -> Vec<Arc<Plugin>> {
        let mut all: Vec<_> = self.read().values().cloned().collect();
        all.sort_by(|one, other| one.artifact.name().cmp(other.artifact.name()));
        all
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    /// The plugin that `reference` means: a hash, the first 8 digits or more of one, or a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidInput`] when it may mean several.
    pub fn find(&self, reference: &str) -> Result<Arc<Plugin>> {
        let known = self.read();
        if let Some(plugin) = reference.parse().ok().and_then(|hash: ArtifactHash| known.get(&hash)) {
            return Ok(Arc::clone(plugin));
        }
        let is_prefix = reference.len() >= PREFIX_MIN && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        let prefix = reference.to_ascii_lowercase();
        let meant = |hash: &ArtifactHash, plugin: &Plugin| {
            plugin.artifact.name() == reference || is_prefix && hash.to_string().starts_with(&prefix)
        };
        let found: Vec<_> = known.iter().filter(|(hash, plugin)| meant(hash, plugin)).collect();
        match found[..] {
            [(_, plugin)] => Ok(Arc::clone(plugin)),
            [] => {
                let names = known.values().map(|plugin| plugin.artifact.name());
                let error =
                    Error::new(ErrorKind::NotFound, "find", format!("no plugin `{reference:.100}` is installed"));
                Err(match crate::service::nearest(reference, names) {
                    Some(nearest) => error.with_help(format!("did you mean `{nearest}`?")),
                    None => error.with_help("install it, or look at the installed ones with `palisade plugins`"),
                })
            }
            _ => {
                let hashes: Vec<_> =
                    found.iter().take(10).map(|(hash, _)| format!("{:.12}", hash.to_string())).collect();
                let message = format!("{} plugins are called `{reference:.100}`", found.len());
                Err(Error::new(ErrorKind::InvalidInput, "find", message)
                    .with_help(format!("name one: {}", hashes.join(", "))))
            }
        }
    }

    /// Keeps a plugin. `false` when it is there already, the same in everything. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a malformed name, and when the same bytes are installed with other settings;
    /// [`ErrorKind::Exhausted`] when there are too many, [`ErrorKind::Io`].
    pub fn install(&self, plugin: Plugin) -> Result<bool> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, hash) = (plugin.artifact.name(), plugin.artifact.hash());
        let invalid = |message: String| Error::new(ErrorKind::InvalidInput, "install", message);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(invalid(format!("a plugin's name has 1 to {NAME_BYTES_MAX} bytes and no control characters")));
        }
        if let Some(known) = self.read().get(&hash) {
            let same = known.artifact.name() == name
                && known.artifact.kind() == plugin.artifact.kind()
                && known.policy == plugin.policy
                && known.agent == plugin.agent;
            return if same {
                Ok(false)
            } else {
                Err(invalid(format!("these bytes are installed as `{}`, with other settings", known.artifact.name()))
                    .with_context("plugin", hash)
                    .with_help("remove that plugin first"))
            };
        }
        let bytes: u64 = self.read().values().map(|plugin| plugin.artifact.bytes().len() as u64).sum();
        if self.count() >= PLUGINS_MAX || bytes + plugin.artifact.bytes().len() as u64 > BYTES_MAX {
            let message = format!("there is room for {PLUGINS_MAX} plugins of 1 GiB together");
            return Err(Error::new(ErrorKind::Exhausted, "install", message).with_help("remove one that is not needed"));
        }
        if let Some(directory) = &self.directory {
            write(directory, &format!("{hash}.plugin"), plugin.artifact.bytes())?;
            write_manifest(directory, &plugin)?;
        }
        self.insert(plugin);
        Ok(true)
    }

    /// Keeps whether a plugin has an agent, and how that runs tasks. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], [`ErrorKind::Io`].
    pub fn set_agent(&self, plugin: ArtifactHash, agent: Option<AgentSettings>) -> Result<Arc<Plugin>> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.find(&plugin.to_string())?;
        let changed = Plugin { agent, ..(*known).clone() };
        if let Some(directory) = &self.directory {
            write_manifest(directory, &changed)?;
        }
        Ok(self.insert(changed))
    }

    /// Forgets a plugin and what its agent remembered. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], [`ErrorKind::Io`].
    pub fn remove(&self, plugin: ArtifactHash) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.find(&plugin.to_string())?;
        if let Some(directory) = &self.directory {
            let failed = |error| io_error("remove", directory, error);
            // The manifest first: bytes without one are swept away at the next start.
            fs::remove_file(directory.join(format!("{plugin}.json"))).map_err(failed)?;
            sync(directory).map_err(failed)?;
            self.forget(&known);
            fs::remove_file(directory.join(format!("{plugin}.plugin"))).map_err(failed)?;
            match fs::remove_file(directory.join(format!("{plugin}.memory"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        self.forget(&known);
        Ok(())
    }

    /// The template of a plugin's agent. `None` when it was terminated.
    pub(crate) fn template(&self, plugin: &Plugin) -> Option<AgentTemplate> {
        let settings = plugin.agent.clone()?;
        let mut template = AgentTemplate::new(plugin.agent_name(), plugin.artifact.clone());
        template.policy = plugin.policy.clone();
        template.instances = settings.instances;
        template.tasks_max = settings.tasks_max;
        template.restarts = settings.restarts;
        template.memory = settings.memory;
        let memory = |directory: &PathBuf| directory.join(format!("{}.memory", plugin.artifact.hash()));
        template.memory_file = self.directory.as_ref().map(memory);
        Some(template)
    }

    fn insert(&self, plugin: Plugin) -> Arc<Plugin> {
        let plugin = Arc::new(plugin);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(plugin.artifact.hash(), Arc::clone(&plugin));
        plugin
    }

    fn forget(&self, plugin: &Plugin) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&plugin.artifact.hash());
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ArtifactHash, Arc<Plugin>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(directory: &Path, hash: ArtifactHash) -> Result<Plugin> {
    let read = |extension: &str, bytes_max: u64| {
        let path = directory.join(format!("{hash}.{extension}"));
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
        read.map_err(|error| io_error("open plugins", &path, error))?;
        Ok(bytes)
    };
    let corrupt = |what: String| {
        Error::new(ErrorKind::Corrupt, "open plugins", what)
            .with_context("directory", directory.display())
            .with_help("put the plugin's files back from a copy, or remove them and install it again")
    };
    let manifest: Manifest = serde_json::from_slice(&read("json", MANIFEST_BYTES_MAX)?)
        .map_err(|error| corrupt(format!("the manifest of plugin {hash} is damaged: {error}")))?;
    let bytes = read("plugin", BYTES_MAX + 1)?;
    let artifact = Artifact::new(manifest.kind, bytes).named(manifest.name);
    if artifact.hash() != hash {
        return Err(corrupt(format!("the bytes of plugin {hash} are not those that were installed")));
    }
    Ok(Plugin { artifact, policy: manifest.policy, agent: manifest.agent })
}

fn write_manifest(directory: &Path, plugin: &Plugin) -> Result<()> {
    let artifact = &plugin.artifact;
    let manifest = Manifest {
        name: artifact.name().to_owned(),
        kind: artifact.kind(),
        policy: plugin.policy.clone(),
        agent: plugin.agent.clone(),
    };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|error| {
        Error::new(ErrorKind::InvalidPolicy, "install", "the plugin's settings cannot be written as JSON")
            .with_source(error)
    })?;
    write(directory, &format!("{}.json", artifact.hash()), &json)
}

/// Writes a file so that after a crash there is all of it or nothing.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let new = directory.join(format!("{name}.new"));
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(name))?;
        sync(directory)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        io_error("install", &directory.join(name), error)
    })
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn io_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, operation, format!("cannot use {}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str, bytes: &'static [u8]) -> Plugin {
        Plugin::new(Artifact::wasm(bytes).named(name), Policy::default(), AgentSettings::default())
    }

    #[test]
    fn plugins_outlive_the_daemon_and_are_verified() {
        let place = tempfile::tempdir().unwrap();
        let plugins = Plugins::open(place.path()).unwrap();
        assert!(plugins.install(plugin("one", b"1")).unwrap());
        assert!(!plugins.install(plugin("one", b"1")).unwrap(), "the same again");
        assert_eq!(plugins.install(plugin("uno", b"1")).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(plugins.install(plugin("two", b"2")).unwrap());
        plugins.set_agent(ArtifactHash::of(b"2"), None).unwrap();
        fs::write(place.path().join("x.new"), "left over").unwrap();
        fs::write(place.path().join(format!("{}.plugin", ArtifactHash::of(b"3"))), "3").unwrap();

        let plugins = Plugins::open(place.path()).unwrap();
        let names: Vec<_> = plugins.list().iter().map(|plugin| plugin.artifact.name().to_owned()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(plugins.find("one").unwrap().agent.is_some() && plugins.find("two").unwrap().agent.is_none());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 4, "what was unfinished is gone");

        plugins.remove(ArtifactHash::of(b"2")).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
        let bytes = place.path().join(format!("{}.plugin", ArtifactHash::of(b"1")));
        fs::write(bytes, "7").unwrap();
        assert_eq!(Plugins::open(place.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn plugins_are_found_by_hash_prefix_and_name() {
        let plugins = Plugins::in_memory();
        plugins.install(plugin("resize", b"1")).unwrap();
        let hash = ArtifactHash::of(b"1").to_string();
        for reference in [&hash, &hash[..8], &hash[..9].to_uppercase(), "resize"] {
            assert_eq!(plugins.find(reference).unwrap().artifact.name(), "resize");
        }
        assert!(plugins.find("resise").unwrap_err().to_string().contains("did you mean `resize`?"));
        assert_eq!(plugins.find(&hash[..7]).unwrap_err().kind(), ErrorKind::NotFound);
        plugins.install(plugin("resize", b"2")).unwrap();
        let error = plugins.find("resize").unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(&hash[..12]), "{error}");
        for name in ["", "a\nb", &"x".repeat(129)] {
            assert_eq!(plugins.install(plugin(name, b"3")).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
