//! What the imports of a module tell about it, and what is wrong with them.

use palisade_core::{Abi, Error, ErrorKind, ImportInfo, Result};

/// Imports or entries listed in one message.
pub(crate) const LISTED_MAX: usize = 20;
/// Import module of reactors.
const REACTOR: &str = "palisade";

/// What provides an import of `module` that a backend has.
pub fn provider(module: &str) -> &'static str {
    if module == REACTOR { "palisade" } else { "WASI preview 1" }
}

/// How a module with these imports talks to its host: a module that imports anything of module `palisade` is a reactor, all
/// others are commands, also those that import nothing.
pub fn abi(imports: &[ImportInfo]) -> Abi {
    let uses = |module: &str| imports.iter().any(|import| import.module == module);
    match () {
        () if uses("extism:host/env") => Abi::Extism,
        () if uses(REACTOR) => Abi::Reactor,
        () => Abi::Command,
    }
}

/// Whether the module reads its input by offset, so that all of it must be there before it runs.
pub fn reads_input_by_offset(imports: &[ImportInfo]) -> bool {
    imports.iter().any(|import| import.module == REACTOR && import.name.starts_with("input_"))
}

/// What the imports say about the grants a plugin will or may need, in plain words.
pub fn needs(imports: &[ImportInfo]) -> Vec<String> {
    let uses = |names: &[&str]| imports.iter().any(|import| names.contains(&import.name.as_str()));
    let mut needs = Vec::new();
    if uses(&["path_open", "path_filestat_get", "fd_readdir", "path_create_directory", "path_unlink_file"]) {
        needs.push("directories: it can open files in the directories it is granted".to_owned());
    }
    if uses(&["environ_get"]) {
        needs.push("environment: it can read the variables it is granted".to_owned());
    }
    if uses(&["host_call"]) {
        needs.push("host_functions: it calls host functions by name; each must be granted".to_owned());
    }
    if uses(&["clock_time_get"]) {
        needs.push("clocks: coarse unless fine ones are granted".to_owned());
    }
    if imports.iter().any(|import| import.name.starts_with("sock_")) {
        needs.push("network: it imports socket functions, which find no socket here".to_owned());
    }
    let missing = imports.iter().filter(|import| import.provider.is_none()).count();
    if missing > 0 {
        needs.push(format!("{missing} imports that nothing here provides"));
    }
    needs
}

/// Refuses a module that imports what nobody provides, listing all of it with what would provide it. `known` are the module
/// and name of each import that is provided.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`].
pub fn check<'a>(imports: &[ImportInfo], known: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Result<()> {
    let missing: Vec<_> = imports.iter().filter(|import| import.provider.is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut list: Vec<_> = missing.iter().take(LISTED_MAX).map(|import| explain(import, known.clone())).collect();
    if missing.len() > LISTED_MAX {
        list.push(format!("and {} more", missing.len() - LISTED_MAX));
    }
    let message = format!("the module imports what this host does not provide: {}", list.join("; "));
    let error = Error::new(ErrorKind::Unsupported, "prepare", message);
    let named = |error: Error, import: &&ImportInfo| {
        error.with_context("missing_import", format!("{}.{}", import.module, import.name))
    };
    Err(missing.iter().fold(error, named))
}

/// Names a missing import and what would provide it.
fn explain<'a>(import: &ImportInfo, known: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let ImportInfo { module, name, ty, .. } = import;
    let of_module = known.filter(|(known, _)| known == module);
    let nearest = of_module
        .clone()
        .map(|(_, known)| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let advice = match (module.as_str(), nearest) {
        (_, Some((_, nearest))) => format!("did you mean `{nearest}`?"),
        ("env", _) if ty.starts_with("memory") => "memories are never imported; build without `--import-memory`".into(),
        ("env", _) => "an undefined C symbol or Emscripten; link it in, or build for `wasm32-wasip1`".into(),
        ("extism:host/env", _) => "the Extism plug-in kit; not provided by this version".into(),
        (module, _) if module.starts_with("wasi:") || module == "wasi_snapshot_preview2" => {
            "WASI preview 2 or later; build for `wasm32-wasip1`".into()
        }
        ("wasi", _) => "WASI threads; build without threads".into(),
        (module, _) if module.starts_with("wasix") => "WASIX; build for `wasm32-wasip1`".into(),
        ("__wbindgen_placeholder__" | "wbg", _) => {
            "JavaScript glue of wasm-bindgen; build for `wasm32-wasip1` without it".into()
        }
        _ if of_module.clone().next().is_some() => "no such function; see `palisade inspect`".into(),
        _ => "a host function must be called through `palisade.host_call` by its name".into(),
    };
    format!("`{module}.{name}` ({ty}): {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(module: &str, name: &str, provided: bool) -> ImportInfo {
        let provider = provided.then(|| provider(module).to_owned());
        ImportInfo { module: module.into(), name: name.into(), ty: "func() -> ()".into(), provider }
    }

    const KNOWN: [(&str, &str); 2] = [("palisade", "host_call"), ("wasi_snapshot_preview1", "fd_write")];

    #[test]
    fn what_is_missing_is_named_with_what_would_provide_it() {
        assert!(check(&[import("palisade", "host_call", true)], KNOWN.into_iter()).is_ok());
        let missing = [
            import("wasi_snapshot_preview1", "fd_writ", false),
            import("env", "malloc", false),
            import("wasi:io/streams", "read", false),
            import("palisade", "fly", false),
            import("app", "log", false),
        ];
        let error = check(&missing, KNOWN.into_iter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for part in
            ["did you mean `fd_write`?", "`env.malloc`", "WASI preview 2", "no such function", "`palisade.host_call`"]
        {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        let many: Vec<_> = (0..25).map(|number| import("app", &number.to_string(), false)).collect();
        assert!(check(&many, KNOWN.into_iter()).unwrap_err().message().contains("and 5 more"));
    }

    #[test]
    fn imports_tell_how_a_module_talks_and_what_it_needs() {
        let command = [import("wasi_snapshot_preview1", "environ_get", true)];
        let reactor = [import("palisade", "input_len", true), import("palisade", "host_call", true)];
        assert_eq!((abi(&[]), abi(&command), abi(&reactor)), (Abi::Command, Abi::Command, Abi::Reactor));
        assert!(reads_input_by_offset(&reactor) && !reads_input_by_offset(&command));
        assert!(needs(&command)[0].starts_with("environment") && needs(&reactor)[0].starts_with("host_functions"));
        assert_eq!(needs(&[import("app", "log", false)]), ["1 imports that nothing here provides"]);
    }
}
