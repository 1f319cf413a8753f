//! Reading a plugin from a file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use palisade::{Artifact, ArtifactKind, Error, ErrorKind, Result};

/// Largest file that is read. Backends have bounds of their own below this; a text form is larger than what it says.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Names of files that are scripts, whatever they begin with.
const SCRIPTS: [&str; 5] = ["py", "sh", "pl", "rb", "lua"];

/// Reads a plugin: a Wasm module in the binary or the text format, a native executable or shared library, or a script,
/// told apart by what is in the file.
pub(crate) fn read(path: &Path, is_script: bool) -> Result<Artifact> {
    let bytes = read_file(path, "load", FILE_BYTES_MAX)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let is_library = name.ends_with(".so") || name.contains(".so.");
    let says_wasm = ["wasm", "wat"].iter().any(|name| path.extension() == Some(OsStr::new(name)));
    let native = match &bytes[..] {
        _ if is_script => Some(ArtifactKind::Script),
        // What calls itself a module is told what is wrong with it as one.
        _ if says_wasm => None,
        [0x7f, b'E', b'L', b'F', ..] if is_library => Some(ArtifactKind::SharedLibrary),
        [0x7f, b'E', b'L', b'F', ..] => Some(ArtifactKind::Executable),
        [b'#', b'!', ..] => Some(ArtifactKind::Script),
        _ if path.extension().is_some_and(|extension| SCRIPTS.iter().any(|known| extension == *known)) => {
            Some(ArtifactKind::Script)
        }
        _ => None,
    };
    if let Some(kind) = native {
        return Ok(Artifact::new(kind, bytes).named(name));
    }
    let is_text = path.extension() == Some(OsStr::new("wat"));
    let wasm = if is_text && !bytes.starts_with(b"\0asm") { parse_text(&bytes, path)? } else { bytes };
    Ok(Artifact::wasm(wasm).named(name))
}

fn parse_text(text: &[u8], path: &Path) -> Result<Vec<u8>> {
    let invalid = |message: String| {
        Error::new(ErrorKind::InvalidArtifact, "load", format!("{} is not WebAssembly text: {message}", path.display()))
    };
    let text = std::str::from_utf8(text).map_err(|error| invalid(error.to_string()))?;
    wat::parse_str(text).map_err(|error| invalid(error.to_string()))
}

/// Reads a whole file of at most `bytes_max`.
pub(crate) fn read_file(path: &Path, operation: &'static str, bytes_max: u64) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let (kind, help) = match error.kind() {
            std::io::ErrorKind::NotFound => (ErrorKind::NotFound, similar(path)),
            _ => (ErrorKind::Io, None),
        };
        let what = if kind == ErrorKind::NotFound { "no such file" } else { "cannot read" };
        let result = Error::new(kind, operation, format!("{what}: {}", path.display()));
        match (help, kind) {
            (Some(help), _) => result.with_help(help),
            (None, ErrorKind::NotFound) => result.with_help("check the path"),
            (None, _) => result.with_source(error),
        }
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let message = format!("{} is larger than {bytes_max} bytes", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, operation, message));
    }
    Ok(bytes)
}

/// A file beside the missing one with nearly its name.
fn similar(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = std::fs::read_dir(parent).ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
    names
        .take(10_000)
        .map(|other| (strsim::jaro_winkler(&name, &other.to_string_lossy()), other))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| format!("did you mean {}?", path.with_file_name(other).display()))
}
