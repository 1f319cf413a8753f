//! The guest programs: one verb each, performing one bounded action.
//!
//! A verb reads its parameter from its input and writes what it saw to its output, so that every backend can carry it.

use palisade_core::{Artifact, ArtifactKind};

/// Verbs and their sources as WebAssembly text.
const WASM: &[(&str, &str)] = &[
    ("args", include_str!("../probes/args.wat")),
    ("argument", include_str!("../probes/argument.wat")),
    ("bomb", include_str!("../probes/bomb.wat")),
    ("clock", include_str!("../probes/clock.wat")),
    ("count", include_str!("../probes/count.wat")),
    ("echo", include_str!("../probes/echo.wat")),
    ("environ", include_str!("../probes/environ.wat")),
    ("exit", include_str!("../probes/exit.wat")),
    ("file", include_str!("../probes/file.wat")),
    ("grow", include_str!("../probes/grow.wat")),
    ("host", include_str!("../probes/host.wat")),
    ("large", include_str!("../probes/large.wat")),
    ("list", include_str!("../probes/list.wat")),
    ("open", include_str!("../probes/open.wat")),
    ("random", include_str!("../probes/random.wat")),
    ("randoms", include_str!("../probes/randoms.wat")),
    ("reactor", include_str!("../probes/reactor.wat")),
    ("recurse", include_str!("../probes/recurse.wat")),
    ("sleep", include_str!("../probes/sleep.wat")),
    ("socket", include_str!("../probes/socket.wat")),
    ("start", include_str!("../probes/start.wat")),
    ("stdin", include_str!("../probes/stdin.wat")),
    ("table", include_str!("../probes/table.wat")),
    ("traces", include_str!("../probes/traces.wat")),
    ("trap", include_str!("../probes/trap.wat")),
    ("unknown", include_str!("../probes/unknown.wat")),
    ("write", include_str!("../probes/write.wat")),
];

/// The native probe.
static NATIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/native-probe"));

/// The native probe, whose verb is its name unless it is called with arguments.
pub fn native(verb: &str) -> Artifact {
    Artifact::new(ArtifactKind::Executable, NATIVE).named(verb)
}

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
