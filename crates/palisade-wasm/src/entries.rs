//! What can be called, and what a call is refused for before any guest code runs.

use palisade_core::{Call, Entry, Error, ErrorKind, Result};

use crate::imports::LISTED_MAX;

/// The error for a call of `name`, which is none of `entries`. `export` is the type of the export of that name, where there
/// is one.
pub fn unknown<'a>(name: &str, export: Option<&str>, entries: impl Iterator<Item = &'a str> + Clone) -> Error {
    let message = match export {
        Some(ty) => {
            format!("export `{name}` is a {ty}, not an entry point, which is a function `() -> ()` or `() -> i32`")
        }
        None => format!("the module has no export `{name}`"),
    };
    let nearest = entries
        .clone()
        .map(|entry| (strsim::jaro_winkler(name, entry), entry))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let count = entries.clone().count();
    let mut list = entries.take(LISTED_MAX).map(|entry| format!("`{entry}`")).collect::<Vec<_>>().join(", ");
    if count > LISTED_MAX {
        list += &format!(" and {} more", count - LISTED_MAX);
    }
    let help = match nearest {
        _ if count == 0 => "it has no entry point at all".to_owned(),
        Some((_, nearest)) => format!("did you mean `{nearest}`? It has: {list}"),
        None => format!("it has: {list}"),
    };
    Error::new(ErrorKind::NotFound, "call", message).with_context("entry", name.to_owned()).with_help(help)
}

/// The entry point that runs before the first call's own: a WASI reactor's `_initialize`.
pub fn initialize(entries: &[Entry]) -> Option<&str> {
    entries.iter().find(|entry| entry.name == "_initialize" && !entry.returns_code).map(|entry| entry.name.as_str())
}

/// Refuses an argument that no program could get.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for one with a NUL byte.
pub fn check_arguments(call: &Call) -> Result<()> {
    match call.arguments.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => {
            Err(Error::new(ErrorKind::InvalidInput, "call", format!("argument {argument:?} has a NUL byte")))
        }
        None => Ok(()),
    }
}

/// The error for a call of an instance that serves no more.
pub fn stale() -> Error {
    let message = "this instance ended abnormally, or its call was dropped, and serves no more calls";
    Error::new(ErrorKind::Stale, "call", message).with_help("make a fresh instance")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_entry_is_told_with_what_there_is() {
        let entries = ["resize", "rotate"];
        let error = unknown("resise", None, entries.iter().copied());
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("did you mean `resize`? It has: `resize`, `rotate`"), "{error}");
        let error = unknown("memory", Some("memory of 1 pages or more"), entries.iter().copied());
        assert!(error.to_string().contains("is a memory of 1 pages or more, not an entry point"), "{error}");
        assert!(unknown("run", None, std::iter::empty()).to_string().contains("no entry point at all"));
        let many: Vec<_> = (0..25).map(|number| format!("e{number}")).collect();
        assert!(unknown("x", None, many.iter().map(String::as_str)).to_string().contains("and 5 more"));
    }

    #[test]
    fn only_an_initialize_without_a_result_runs_by_itself() {
        let entry = |name: &str, returns_code| Entry { name: name.to_owned(), returns_code };
        assert_eq!(initialize(&[entry("run", false), entry("_initialize", false)]), Some("_initialize"));
        assert_eq!(initialize(&[entry("_initialize", true)]), None);
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(check_arguments(&Call::new().arguments(["a", ""])).is_ok());
        assert_eq!(check_arguments(&Call::new().arguments(["a\0b"])).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(stale().kind(), ErrorKind::Stale);
    }
}
