//! What this engine needs checked besides the limits of all engines, which are in `palisade_wasm::structure`.

use std::collections::HashMap;

use palisade_core::Result;
use palisade_wasm::structure::{self, Structure, invalid, malformed};
use wasmer::{FunctionType, Type};
use wasmparser::{CompositeInnerType, Payload, TypeSectionReader, ValType};

use crate::imports::{IMPORTS, check_type};

/// Reads the structure of `wasm` and checks it against the limits, without looking into function bodies.
pub(crate) fn scan(wasm: &[u8]) -> Result<Structure> {
    structure::scan(wasm, |payload| match payload {
        Payload::TypeSection(section) => check_type_hashes(section.clone()),
        _ => Ok(()),
    })
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
                return Err(invalid(format!("two function types have the same hash: {ty} and {other}")).with_help(
                    "this does not happen by chance; load it with the `wasmtime` backend if it is meant so",
                ));
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

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::ErrorKind;

    /// What a load does.
    fn check(wasm: &[u8]) -> Result<Structure> {
        let structure = scan(wasm)?;
        structure::validate(wasm)?;
        Ok(structure)
    }

    fn refused(wasm: &[u8]) -> String {
        let error = check(wasm).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArtifact);
        error.to_string()
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
}
