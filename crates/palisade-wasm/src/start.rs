//! The start function as an export.
//!
//! Making an instance must run no guest code, and a start function must run inside the first call, where its time is counted
//! and it can be stopped. Engines that run it while they make an instance get the module with an export in its place.

use std::borrow::Cow;
use std::collections::HashSet;

use palisade_core::Result;
use wasmparser::{Parser, Payload};

use crate::structure::{invalid, malformed};

/// Ids of sections.
const EXPORTS: u8 = 7;
const START: u8 = 8;
/// What the export is called, with a number behind it where the guest has that name already.
const NAME: &str = "palisade:start";

/// `wasm`, of which the start function, where it has one, is an export instead; and the name of that export.
///
/// # Errors
///
/// [`InvalidArtifact`](palisade_core::ErrorKind::InvalidArtifact) when it is malformed.
pub fn as_export(wasm: &[u8]) -> Result<(Cow<'_, [u8]>, Option<String>)> {
    let mut start = None;
    let mut names = HashSet::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::StartSection { func, .. } => start = Some(func),
            Payload::ExportSection(section) => {
                for export in section {
                    names.insert(export.map_err(malformed)?.name);
                }
            }
            _ => {}
        }
    }
    let Some(function) = start else { return Ok((Cow::Borrowed(wasm), None)) };
    let mut name = NAME.to_owned();
    for number in 0u32.. {
        if !names.contains(name.as_str()) {
            break;
        }
        name = format!("{NAME}{number}");
    }
    let mut ours = Vec::new();
    write_number(&mut ours, name.len());
    ours.extend_from_slice(name.as_bytes());
    // A function; then its index.
    ours.push(0);
    write_number(&mut ours, function as usize);

    let mut rewritten = Vec::with_capacity(wasm.len() + ours.len() + 16);
    let mut copied = 0;
    let mut exported = false;
    for payload in Parser::new(0).parse_all(wasm) {
        let (id, contents) = match payload.map_err(malformed)? {
            Payload::ExportSection(section) => (EXPORTS, section.range()),
            Payload::StartSection { range, .. } => (START, range),
            _ => continue,
        };
        // Before the contents stand the id and the length, which may be written longer than it need be.
        let begins = header_of(wasm, id, contents.start)?;
        rewritten.extend_from_slice(wasm.get(copied..begins).unwrap_or_default());
        copied = contents.end;
        if id == EXPORTS {
            let section = wasm.get(contents).unwrap_or_default();
            let (count, rest) = read_number(section).ok_or_else(|| invalid("the section of exports is cut off"))?;
            write_section(&mut rewritten, count + 1, &[rest, &ours]);
            exported = true;
        } else if !exported {
            // Sections are in order: where the start section stands, exports may stand as well.
            write_section(&mut rewritten, 1, &[&ours]);
        }
    }
    rewritten.extend_from_slice(wasm.get(copied..).unwrap_or_default());
    Ok((Cow::Owned(rewritten), Some(name)))
}

/// Where the header of the section begins whose contents begin at `contents`.
fn header_of(wasm: &[u8], id: u8, contents: usize) -> Result<usize> {
    // A length takes at most five bytes; its last byte is the only one below 128.
    (2..=6)
        .filter_map(|len| contents.checked_sub(len))
        .find(|begins| {
            let length = wasm.get(begins + 1..contents).unwrap_or_default();
            let (last, others) = length.split_last().unwrap_or((&0xff, &[]));
            wasm.get(*begins) == Some(&id) && *last < 128 && others.iter().all(|byte| *byte >= 128)
        })
        .ok_or_else(|| invalid("a section has no header"))
}

fn write_section(to: &mut Vec<u8>, count: usize, exports: &[&[u8]]) {
    let mut contents = Vec::new();
    write_number(&mut contents, count);
    exports.iter().for_each(|export| contents.extend_from_slice(export));
    to.push(EXPORTS);
    write_number(to, contents.len());
    to.extend_from_slice(&contents);
}

/// Writes an unsigned number in LEB128.
fn write_number(to: &mut Vec<u8>, mut number: usize) {
    while number >= 128 {
        to.push((number & 127) as u8 | 128);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Reads an unsigned number in LEB128, and gives what follows it.
fn read_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let len = bytes.iter().take(5).position(|byte| *byte < 128)? + 1;
    let (number, rest) = bytes.split_at_checked(len)?;
    Some((number.iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 127)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exports of a module that is valid, and whether it has a start function.
    fn look(wasm: &[u8]) -> (Vec<(String, u32)>, bool) {
        wasmparser::validate(wasm).unwrap();
        let (mut exports, mut starts) = (Vec::new(), false);
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.unwrap() {
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(Result::unwrap).map(|e| (e.name.to_owned(), e.index)));
                }
                Payload::StartSection { .. } => starts = true,
                _ => {}
            }
        }
        (exports, starts)
    }

    fn rewritten(text: &str) -> (Vec<(String, u32)>, bool) {
        let wasm = wat::parse_str(text).unwrap();
        let (rewritten, name) = as_export(&wasm).unwrap();
        let found = look(&rewritten);
        assert_eq!(name.is_some(), found.0.last().is_some_and(|(last, _)| Some(last) == name.as_ref()));
        found
    }

    #[test]
    fn a_start_function_becomes_the_last_export() {
        let (exports, starts) = rewritten(
            r#"(module (func $a) (func $f) (memory (export "memory") 1) (export "a" (func $a)) (start $f)
                (table 1 funcref) (elem (i32.const 0) $a) (data (i32.const 0) "x"))"#,
        );
        assert!(!starts);
        assert_eq!(exports, [("memory".into(), 0), ("a".into(), 0), (NAME.into(), 1)]);
    }

    #[test]
    fn a_module_without_exports_gets_one() {
        let (exports, starts) = rewritten("(module (func $f) (start $f) (memory 1) (data (i32.const 0) \"x\"))");
        assert_eq!((exports, starts), (vec![(NAME.into(), 0)], false));
    }

    #[test]
    fn a_name_that_the_guest_has_is_not_taken() {
        let taken = format!(r#"(module (func $f) (func $g (export "{NAME}")) (func (export "{NAME}0")) (start $f))"#);
        let (exports, _) = rewritten(&taken);
        assert_eq!(exports.last(), Some(&(format!("{NAME}1"), 0)));
    }

    #[test]
    fn what_starts_nothing_stays_as_it_is() {
        let wasm = wat::parse_str(r#"(module (func (export "run")))"#).unwrap();
        let (same, name) = as_export(&wasm).unwrap();
        assert!(matches!(same, Cow::Borrowed(same) if same == wasm) && name.is_none());
    }

    #[test]
    fn many_exports_and_long_lengths_are_read() {
        let exports: String = (0..300).map(|number| format!(r#"(export "e{number}" (func $f))"#)).collect();
        let (exports, starts) = rewritten(&format!("(module (func $f) {exports} (start $f))"));
        assert_eq!((exports.len(), starts), (301, false));
        // The length of the start section, 1, in five bytes.
        let wasm = wat::parse_str("(module (func $f) (start $f))").unwrap();
        let at = wasm.windows(3).position(|window| window == [START, 1, 0]).unwrap();
        let long = [&wasm[..=at], &[0x81, 0x80, 0x80, 0x80, 0x00], &wasm[at + 2..]].concat();
        let (rewritten, _) = as_export(&long).unwrap();
        assert_eq!(look(&rewritten), (vec![(NAME.into(), 0)], false));
    }

    #[test]
    fn damaged_modules_are_refused_or_rewritten_well() {
        let text = r#"(module (func $f (export "f")) (memory (export "m") 1) (start $f) (data (i32.const 0) "x"))"#;
        let wasm = wat::parse_str(text).unwrap();
        let mut rewritten = 0;
        for at in 8..wasm.len() {
            for value in [0, 1, 7, 8, 0x7f, 0x80, 0xff] {
                let mut damaged = wasm.clone();
                damaged[at] = value;
                let valid = wasmparser::validate(&damaged).is_ok();
                match as_export(&damaged) {
                    Ok((wasm, Some(_))) if valid => {
                        assert!(!look(&wasm).1);
                        rewritten += 1;
                    }
                    Ok(_) => {}
                    Err(_) => assert!(!valid, "byte {at} as {value}"),
                }
            }
        }
        assert!(rewritten > 0);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let wasm = wat::parse_str(r#"(module (func $f (export "f")) (start $f))"#).unwrap();
        let refused = (8..wasm.len()).filter(|len| as_export(&wasm[..*len]).is_err()).count();
        assert!(refused > wasm.len() / 2, "{refused}");
    }
}
