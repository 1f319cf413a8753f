//! The guest programs: one verb each, performing one bounded action.
//!
//! A verb reads its parameter from its input and writes what it saw to its output, so that every backend can carry it.

use palisade_core::Artifact;

/// Verbs and their sources as WebAssembly text.
const WASM: &[(&str, &str)] = &[("echo", include_str!("../probes/echo.wat"))];

/// The probe for `verb` as a Wasm module.
///
/// # Panics
///
/// When there is no such verb.
pub fn wasm(verb: &str) -> Artifact {
    let source = WASM.iter().find(|(known, _)| *known == verb).map(|(_, source)| source);
    let source = source.unwrap_or_else(|| panic!("no probe `{verb}`"));
    let wasm = wat::parse_str(source).unwrap_or_else(|error| panic!("probe `{verb}`: {error}"));
    Artifact::wasm(wasm).named(verb)
}
