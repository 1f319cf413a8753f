//! `palisade inspect`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use palisade::{ArtifactHash, ModuleInfo, Result, units};
use serde_json::json;

use crate::exit::Exit;
use crate::table::{printable, table};
use crate::{Machine, backend_for, open_backend, output, plugin};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The plugin: a `.wasm` module or its text form in a `.wat` file, a native executable, a `.so` library, or a script
    plugin: PathBuf,
    /// Backend to load it with [default: wasmtime for Wasm, process for native code and scripts]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Do not keep or use compiled code on disk
    #[arg(long)]
    no_cache: bool,
}

pub(crate) async fn run(options: Inspect) -> Result<Exit> {
    let artifact = plugin::read(&options.plugin, false)?;
    let backend = options.backend.as_deref().map_or_else(|| backend_for(&artifact), Ok)?;
    let module = open_backend(backend, !options.no_cache, &Machine::default())?.load(artifact.clone()).await?;
    match options.json {
        true => {
            let mut report = json!(module.info());
            report["hash"] = json!(artifact.hash());
            output::print_json(&report)
        }
        false => output::print(&describe(module.info(), artifact.hash())),
    }
    Ok(Exit::Success)
}

fn describe(info: &ModuleInfo, hash: ArtifactHash) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<10} {}", printable(&value));
    };
    fact("name", info.name.clone());
    fact("sha256", hash.to_string());
    fact("kind", format!("{}, {}", info.artifact, info.abi));
    let compiled = info.compiled_bytes.map(|bytes| format!(", compiled {}", units::display_bytes(bytes)));
    fact("size", format!("{}{}", units::display_bytes(info.size_bytes), compiled.unwrap_or_default()));
    let maximum = match info.memory_maximum_bytes {
        Some(bytes) => format!("at most {}", units::display_bytes(bytes)),
        None => "no maximum declared".to_owned(),
    };
    fact("memory", format!("{} to start with, {maximum}", units::display_bytes(info.memory_initial_bytes)));
    fact("start", if info.has_start { "runs code before its entry" } else { "nothing" }.to_owned());
    let entries: Vec<_> = info.entries.iter().map(|entry| entry.name.as_str()).collect();
    fact("entries", if entries.is_empty() { "none: it cannot be run".to_owned() } else { entries.join(", ") });
    for need in &info.needs {
        fact("needs", need.clone());
    }
    let imports: Vec<_> = info
        .imports
        .iter()
        .map(|import| {
            let provider = import.provider.clone().unwrap_or_else(|| "NOTHING".to_owned());
            vec![printable(&format!("{}.{}", import.module, import.name)), provider, printable(&import.ty)]
        })
        .collect();
    if !imports.is_empty() {
        text += &format!("\n{}", table(&["IMPORT", "PROVIDED BY", "TYPE"], &imports));
    }
    let exports: Vec<_> =
        info.exports.iter().map(|export| vec![printable(&export.name), printable(&export.ty)]).collect();
    if !exports.is_empty() {
        text += &format!("\n{}", table(&["EXPORT", "TYPE"], &exports));
    }
    text
}
