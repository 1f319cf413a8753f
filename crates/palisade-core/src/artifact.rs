//! The bytes of a plugin, and what a backend found in them.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::units::serde_nanos;
use crate::{Error, ErrorKind};

/// What the bytes of an artifact are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArtifactKind {
    /// A WebAssembly module in the binary format.
    Wasm,
    /// A native executable.
    Executable,
    /// A script for an interpreter that the policy grants.
    Script,
    /// A native shared library.
    SharedLibrary,
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ArtifactKind::Wasm => "wasm",
            ArtifactKind::Executable => "executable",
            ArtifactKind::Script => "script",
            ArtifactKind::SharedLibrary => "shared library",
        })
    }
}

/// How a guest talks to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Abi {
    /// A program: input is standard input, output is standard output. In Wasm, WASI preview 1.
    Command,
    /// Bulk copies through the imports of module `palisade` (or the same functions as a C table).
    Reactor,
    /// The Extism plug-in kit.
    Extism,
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Abi::Command => "command",
            Abi::Reactor => "reactor",
            Abi::Extism => "extism",
        })
    }
}

/// SHA-256 of an artifact's bytes: its identity. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactHash([u8; 32]);

impl ArtifactHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        ArtifactHash(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ArtifactHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ArtifactHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ArtifactHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::new(ErrorKind::InvalidInput, "parse", format!("{text:?} is not a SHA-256 hash"))
                .with_help("write 64 hexadecimal digits")
        };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(ArtifactHash(hash))
    }
}

impl Serialize for ArtifactHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArtifactHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The bytes of a plugin, identified by their hash.
#[derive(Debug, Clone)]
pub struct Artifact {
    kind: ArtifactKind,
    name: String,
    bytes: Bytes,
    hash: Arc<OnceLock<ArtifactHash>>,
}

impl Artifact {
    /// An artifact of `kind`.
    pub fn new(kind: ArtifactKind, bytes: impl Into<Bytes>) -> Self {
        Artifact { kind, name: "plugin".to_owned(), bytes: bytes.into(), hash: Arc::default() }
    }

    /// A WebAssembly module in the binary format. The bytes are checked by the backend that loads them.
    pub fn wasm(bytes: impl Into<Bytes>) -> Self {
        Artifact::new(ArtifactKind::Wasm, bytes)
    }

    /// Sets the name the guest sees as its own (its first argument) and that messages use. Default `plugin`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The kind.
    pub fn kind(&self) -> ArtifactKind {
        self.kind
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The identity. Computed by the first call, once for all clones.
    pub fn hash(&self) -> ArtifactHash {
        *self.hash.get_or_init(|| ArtifactHash::of(&self.bytes))
    }
}

/// What a backend found in an artifact. Its identity is the artifact's own ([`Artifact::hash`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModuleInfo {
    /// The artifact's name.
    pub name: String,
    /// What the bytes are.
    pub artifact: ArtifactKind,
    /// How it talks to its host.
    pub abi: Abi,
    /// Size of the artifact.
    pub size_bytes: u64,
    /// Size of the compiled code, where there is such a thing.
    pub compiled_bytes: Option<u64>,
    /// Memory it needs to start, before it allocates anything.
    pub memory_initial_bytes: u64,
    /// The most memory it declares to need, if it says so.
    pub memory_maximum_bytes: Option<u64>,
    /// Code runs when an instance is made, before its entry is called.
    pub has_start: bool,
    /// Entry points it offers.
    pub entries: Vec<Entry>,
    /// What it imports.
    pub imports: Vec<ImportInfo>,
    /// Everything it exports.
    pub exports: Vec<ExportInfo>,
    /// Grants it will or may need, in plain words.
    pub needs: Vec<String>,
    /// The compiled code came from a cache.
    pub cached: bool,
    /// What else happened while loading that a person may want to know, for example a damaged cache file.
    pub notes: Vec<String>,
    /// Time to load, compiling included.
    #[serde(rename = "load_time_ns", with = "serde_nanos")]
    pub load_time: Duration,
}

impl ModuleInfo {
    /// An info of which only what `artifact` itself tells is filled in.
    pub fn new(artifact: &Artifact, abi: Abi) -> Self {
        ModuleInfo {
            name: artifact.name().to_owned(),
            artifact: artifact.kind(),
            abi,
            size_bytes: artifact.bytes().len() as u64,
            compiled_bytes: None,
            memory_initial_bytes: 0,
            memory_maximum_bytes: None,
            has_start: false,
            entries: Vec::new(),
            imports: Vec::new(),
            exports: Vec::new(),
            needs: Vec::new(),
            cached: false,
            notes: Vec::new(),
            load_time: Duration::ZERO,
        }
    }
}

/// An entry point: an export without parameters that returns nothing or one `i32` (0 = success).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name to call it by.
    pub name: String,
    /// It returns a result code.
    pub returns_code: bool,
}

/// One import of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportInfo {
    /// Import module.
    pub module: String,
    /// Import name.
    pub name: String,
    /// Type, as text.
    pub ty: String,
    /// What provides it here, or `None` when nothing does.
    pub provider: Option<String>,
}

/// One export of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// Export name.
    pub name: String,
    /// Type, as text.
    pub ty: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_written_and_read() {
        // Test vector from FIPS 180-2, appendix B.1.
        let hash = ArtifactHash::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.parse::<ArtifactHash>().unwrap(), hash);
        assert_eq!(serde_json::from_str::<ArtifactHash>(&format!("\"{text}\"")).unwrap(), hash);
        for wrong in ["", "ba", &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<ArtifactHash>().is_err());
        }
    }
}
