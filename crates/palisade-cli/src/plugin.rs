//! Reading a plugin from a file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use palisade::{Artifact, Error, ErrorKind, Result};

/// Largest file that is read. Backends have bounds of their own below this; a text form is larger than what it says.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads a plugin: a Wasm module in the binary or the text format.
pub(crate) fn read(path: &Path) -> Result<Artifact> {
    let bytes = read_file(path, "load", FILE_BYTES_MAX)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
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
            (Some(help), _) => result.help(help),
            (None, ErrorKind::NotFound) => result.help("check the path"),
            (None, _) => result.source(error),
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
