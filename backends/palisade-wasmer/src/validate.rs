//! Structural limits on artifacts, checked before the compiler sees them.
//!
//! Compiling is work done for somebody untrusted, and takes time and memory in proportion to these numbers.

use std::collections::HashMap;

use palisade_core::{Error, ErrorKind, Result};
use wasmer::{FunctionType, Type};
use wasmparser::{CompositeInnerType, Parser, Payload, TypeSectionReader, ValType, Validator, WasmFeatures};

use crate::engine::TABLES_MAX;
use crate::imports::{IMPORTS, check_type};

/// Largest artifact.
const ARTIFACT_BYTES_MAX: usize = 128 << 20;
/// Most functions.
const FUNCTIONS_MAX: u32 = 200_000;
/// Largest body of one function; the compiler's time grows faster than linearly with it.
const FUNCTION_BYTES_MAX: usize = 1 << 20;
const TYPES_MAX: u32 = 50_000;
const IMPORTS_MAX: u32 = 10_000;
const EXPORTS_MAX: u32 = 100_000;
const GLOBALS_MAX: u32 = 50_000;
const SEGMENTS_MAX: u32 = 100_000;

/// What a module is made of, as far as loading it depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Structure {
    /// There is a start function.
    pub(crate) has_start: bool,
}

/// Reads the structure of `wasm` and checks it against the limits, without looking into function bodies.
pub(crate) fn scan(wasm: &[u8]) -> Result<Structure> {
    if wasm.is_empty() {
        return Err(invalid("the artifact is empty"));
    }
    if wasm.len() > ARTIFACT_BYTES_MAX {
        return Err(invalid(format!("the artifact has {} bytes, more than {ARTIFACT_BYTES_MAX}", wasm.len())));
    }
    if !wasm.starts_with(b"\0asm") {
        return Err(invalid("the artifact is not WebAssembly: it does not begin with `\\0asm`")
            .help("give a `.wasm` module, or its text form in a `.wat` file"));
    }
    if wasm.get(4..8) == Some(&[0x0d, 0, 1, 0]) {
        return Err(invalid("the artifact is a WebAssembly component, not a module")
            .help("build for `wasm32-wasip1`, which gives a module"));
    }
    let mut structure = Structure::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::TypeSection(section) => {
                at_most("types", section.count(), TYPES_MAX)?;
                check_type_hashes(section)?;
            }
            Payload::ImportSection(section) => at_most("imports", section.count(), IMPORTS_MAX)?,
            Payload::FunctionSection(section) => at_most("functions", section.count(), FUNCTIONS_MAX)?,
            Payload::TableSection(section) => at_most("tables", section.count(), TABLES_MAX as u32)?,
            Payload::GlobalSection(section) => at_most("globals", section.count(), GLOBALS_MAX)?,
            Payload::ExportSection(section) => at_most("exports", section.count(), EXPORTS_MAX)?,
            Payload::ElementSection(section) => at_most("element segments", section.count(), SEGMENTS_MAX)?,
            Payload::DataSection(section) => at_most("data segments", section.count(), SEGMENTS_MAX)?,
            Payload::StartSection { .. } => structure.has_start = true,
            Payload::CodeSectionEntry(body) if body.range().len() > FUNCTION_BYTES_MAX => {
                let len = body.range().len();
                return Err(invalid(format!("a function of {len} bytes is larger than {FUNCTION_BYTES_MAX}")));
            }
            _ => {}
        }
    }
    Ok(structure)
}

/// Refuses function types that the engine would take for one another: it tells types apart by a hash of 32 bits, for which
/// anybody can find two types of the same value, and it dies when a module brings one that a host function has.
fn check_type_hashes(section: TypeSectionReader<'_>) -> Result<()> {
    let mut known: HashMap<u32, FunctionType> = HashMap::new();
    let ours = IMPORTS.values().map(|import| import.ty.clone()).chain([check_type()]);
    let mut theirs = Vec::new();
    for group in section {
        for ty in group.map_err(malformed)?.into_types() {
            // Other kinds, and types of other proposals, are refused by the validator.
            if let CompositeInnerType::Func(ty) = &ty.composite_type.inner
                && let (Some(parameters), Some(results)) = (types(ty.params()), types(ty.results()))
            {
                theirs.push(FunctionType::new(parameters, results));
            }
        }
    }
    for ty in ours.chain(theirs) {
        let hash = ty.signature_hash();
        match known.get(&hash) {
            Some(other) if *other != ty => {
                return Err(invalid(format!("two function types have the same hash: {ty} and {other}"))
                    .help("this does not happen by chance; load it with the `wasmtime` backend if it is meant so"));
            }
            _ => drop(known.insert(hash, ty)),
        }
    }
    Ok(())
}

fn types(types: &[ValType]) -> Option<Vec<Type>> {
    let ty = |ty: &ValType| match *ty {
        ValType::I32 => Some(Type::I32),
        ValType::I64 => Some(Type::I64),
        ValType::F32 => Some(Type::F32),
        ValType::F64 => Some(Type::F64),
        ValType::V128 => Some(Type::V128),
        ValType::FUNCREF => Some(Type::FuncRef),
        ValType::EXTERNREF => Some(Type::ExternRef),
        ValType::Ref(_) => None,
    };
    types.iter().map(ty).collect()
}

/// Checks that `wasm` is valid.
pub(crate) fn validate(wasm: &[u8]) -> Result<()> {
    Validator::new_with_features(features()).validate_all(wasm).map_err(malformed)?;
    Ok(())
}

/// The language both Wasm backends accept.
fn features() -> WasmFeatures {
    // Without `externref`: no host value is ever given to a guest, and the other Wasm backend has none.
    (WasmFeatures::WASM2 | WasmFeatures::EXTENDED_CONST).difference(WasmFeatures::GC_TYPES)
}

fn at_most(what: &str, count: u32, max: u32) -> Result<()> {
    if count > max {
        return Err(invalid(format!("the module has {count} {what}, more than {max}")));
    }
    Ok(())
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArtifact, "load", message)
}

fn malformed(error: wasmparser::BinaryReaderError) -> Error {
    invalid(format!("the module is malformed at byte {}: {}", error.offset(), error.message()))
        .help("check that the file is complete and uses no proposals beyond WebAssembly 2.0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_encoder as enc;

    /// What a load does.
    fn check(wasm: &[u8]) -> Result<Structure> {
        let structure = scan(wasm)?;
        validate(wasm)?;
        Ok(structure)
    }

    fn refused(wasm: &[u8]) -> String {
        let error = check(wasm).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArtifact);
        error.to_string()
    }

    #[test]
    fn what_is_not_a_module_is_named() {
        assert!(refused(b"").contains("empty"));
        assert!(refused(b"#!/bin/sh").contains("not WebAssembly"));
        assert!(refused(b"\0asm").contains("malformed"));
        assert!(refused(b"\0asm\x0d\0\x01\0").contains("component"));
        assert!(refused(b"\0asm\x01\0\0\0\xff").contains("malformed"));
    }

    #[test]
    fn every_truncation_of_a_module_is_refused_or_valid_but_never_panics() {
        let wasm = wat::parse_str(
            r#"(module (memory 1) (func (export "_start") i32.const 1 drop) (data (i32.const 0) "abc"))"#,
        );
        let wasm = wasm.unwrap();
        assert!(check(&wasm).is_ok());
        let refused = (0..wasm.len()).filter(|len| check(&wasm[..*len]).is_err()).count();
        assert!(refused > wasm.len() / 2);
    }

    #[test]
    fn a_start_function_is_seen() {
        let wasm = wat::parse_str("(module (func $f) (start $f))").unwrap();
        assert!(check(&wasm).unwrap().has_start);
    }

    #[test]
    fn counts_are_bounded() {
        let tables = |count: usize| {
            let mut section = enc::TableSection::new();
            for _ in 0..count {
                section.table(enc::TableType {
                    element_type: enc::RefType::FUNCREF,
                    table64: false,
                    minimum: 0,
                    maximum: None,
                    shared: false,
                });
            }
            let mut module = enc::Module::new();
            module.section(&section);
            module.finish()
        };
        assert!(check(&tables(100)).is_ok());
        assert!(refused(&tables(101)).contains("101 tables"));
    }

    /// Types of eight parameters each, among them `n`-th of four kinds at each place.
    fn eight(mut n: usize) -> Vec<Type> {
        let kinds = [Type::I32, Type::I64, Type::F32, Type::F64];
        (0..8).map(|_| (kinds[n % 4], n /= 4).0).collect()
    }

    fn hash(first: &[Type], second: &[Type]) -> u32 {
        FunctionType::new([first, second].concat(), vec![]).signature_hash()
    }

    /// Sixteen parameters of a type whose hash is `wanted`. The hash is linear, so halves can be looked for apart.
    fn with_hash(wanted: u32) -> Option<Vec<Type>> {
        let zero = eight(0);
        let firsts: HashMap<u32, usize> = (0..1 << 16).map(|n| (hash(&eight(n), &zero), n)).collect();
        let both = hash(&zero, &zero);
        (0..1 << 16).find_map(|n| {
            let first = firsts.get(&(wanted ^ hash(&zero, &eight(n)) ^ both))?;
            Some([eight(*first), eight(n)].concat())
        })
    }

    #[test]
    fn a_type_that_collides_with_a_host_functions_is_refused() {
        let module = |parameters: &[Type]| {
            let parameters: String =
                parameters.iter().map(|ty| format!(" {}", ty.to_string().to_lowercase())).collect();
            wat::parse_str(format!("(module (type (func (param{parameters}))) (func (export \"_start\")))")).unwrap()
        };
        // Not every hash has such a type.
        let mut ours = IMPORTS.values().map(|import| import.ty.clone()).chain([check_type()]);
        let colliding = ours.find_map(|ty| with_hash(ty.signature_hash())).expect("some of them can be hit");
        assert!(refused(&module(&colliding)).contains("same hash"));
        assert!(check(&module(&eight(7))).is_ok(), "other types are let through");
    }

    #[test]
    fn types_that_collide_with_each_other_are_refused() {
        let mut candidates = (0..100).map(eight);
        let found = candidates.find_map(|one| Some((with_hash(hash(&one, &[]))?, one)));
        let (one, other) = found.expect("some of them can be hit");
        let text = |parameters: &[Type]| {
            let parameters: String =
                parameters.iter().map(|ty| format!(" {}", ty.to_string().to_lowercase())).collect();
            format!("(type (func (param{parameters})))")
        };
        let wasm = wat::parse_str(format!("(module {} {})", text(&one), text(&other))).unwrap();
        assert!(refused(&wasm).contains("same hash"));
        assert!(check(&wat::parse_str(format!("(module {} {})", text(&one), text(&one))).unwrap()).is_ok());
    }

    #[test]
    fn a_giant_function_is_refused() {
        let body = |nops: usize| {
            let mut types = enc::TypeSection::new();
            types.ty().function([], []);
            let mut functions = enc::FunctionSection::new();
            functions.function(0);
            let mut function = enc::Function::new([]);
            for _ in 0..nops {
                function.instruction(&enc::Instruction::Nop);
            }
            function.instruction(&enc::Instruction::End);
            let mut code = enc::CodeSection::new();
            code.function(&function);
            let mut module = enc::Module::new();
            module.section(&types).section(&functions).section(&code);
            module.finish()
        };
        assert!(check(&body(1000)).is_ok());
        assert!(refused(&body(FUNCTION_BYTES_MAX)).contains("a function of"));
    }
}
