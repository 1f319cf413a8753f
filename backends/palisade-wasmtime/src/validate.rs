//! What a module is made of, as far as this engine asks; the limits of all engines are in `palisade_wasm::structure`.

use palisade_core::Result;
use palisade_wasm::structure::{self, malformed};
use wasmparser::{FunctionBody, Operator, Payload};

use crate::engine::{INSTANCE_BYTES_MAX, POOL_TABLE_ENTRIES, POOL_TABLES_PER_MODULE};

/// What a module is made of, as far as loading it depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Structure {
    /// There is a start function.
    pub(crate) has_start: bool,
    /// Its instances fit into the slots of the pool.
    pub(crate) fits_pool: bool,
}

/// Reads the structure of `wasm` and checks it against the limits, mostly without looking into function bodies.
pub(crate) fn scan(wasm: &[u8]) -> Result<Structure> {
    let mut fits_pool = true;
    let mut outgrows_pool = false;
    let (mut functions, mut globals, mut tables) = (0, 0, 0);
    let structure = structure::scan(wasm, |payload| {
        match payload {
            Payload::FunctionSection(section) => functions = section.count(),
            Payload::GlobalSection(section) => globals = section.count(),
            Payload::TableSection(section) => {
                tables = section.count();
                for table in section.clone() {
                    let ty = table.map_err(malformed)?.ty;
                    fits_pool &= ty.initial <= POOL_TABLE_ENTRIES as u64;
                    outgrows_pool |= ty.maximum.is_none_or(|maximum| maximum > POOL_TABLE_ENTRIES as u64);
                }
            }
            // A slot's table stops growing at the slot's end, which must not be the guest's bound.
            Payload::CodeSectionEntry(body) if outgrows_pool && fits_pool => fits_pool = !grows_table(body)?,
            _ => {}
        }
        Ok(())
    })?;
    // An upper bound on what the engine keeps per instance: 32 bytes a function, 16 a global.
    let instance_bytes = functions as usize * 32 + globals as usize * 16;
    fits_pool &= tables <= POOL_TABLES_PER_MODULE && instance_bytes < INSTANCE_BYTES_MAX / 2;
    Ok(Structure { has_start: structure.has_start, fits_pool })
}

/// Whether a function grows a table.
fn grows_table(body: &FunctionBody<'_>) -> Result<bool> {
    let mut operators = body.get_operators_reader().map_err(malformed)?;
    while !operators.eof() {
        if matches!(operators.read().map_err(malformed)?, Operator::TableGrow { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits_pool(wat: &str) -> bool {
        scan(&wat::parse_str(wat).unwrap()).unwrap().fits_pool
    }

    #[test]
    fn what_outgrows_a_slot_is_allocated_on_demand() {
        assert!(fits_pool("(module (table 100000 funcref) (memory 1))"));
        assert!(!fits_pool("(module (table 100001 funcref))"));
        assert!(!fits_pool(&format!("(module {})", "(table 1 funcref)".repeat(5))));
        let grows = "(func (drop (table.grow (ref.null func) (i32.const 1))))";
        assert!(!fits_pool(&format!("(module (table 1 funcref) {grows})")));
        assert!(fits_pool(&format!("(module (table 1 100 funcref) {grows})")));
        assert!(!fits_pool(&format!("(module {})", "(func)".repeat(20_000))));
    }

    #[test]
    fn a_start_function_is_seen() {
        assert!(scan(&wat::parse_str("(module (func $f) (start $f))").unwrap()).unwrap().has_start);
    }
}
