//! The language all Wasm backends accept, and the limits on what an artifact may hold of it, checked before a compiler
//! sees it.
//!
//! Compiling is work done for somebody untrusted. A compiler takes time and memory by the size of a module, but also by the
//! product of a function's branches and locals, by the depth of its blocks, and by the number of values its calls and
//! branches carry. All of these have a bound, for one function and for the artifact as a whole.

use palisade_core::{Error, ErrorKind, Result};
use wasmparser::{
    BinaryReaderError, FuncToValidate, FuncValidatorAllocations, FunctionBody, Operator, Parser, Payload, ValidPayload,
    Validator, ValidatorResources, WasmFeatures,
};

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
/// Most tables of one module.
pub const TABLES_MAX: u32 = 100;
/// Blocks within blocks. Compilers take quadratic time in it; what people write has some dozens, what generators write some
/// hundreds.
const NESTING_MAX: u32 = 1000;
/// Locals of all functions together. A few bytes declare fifty thousand of them.
const LOCALS_MAX: u64 = 4_000_000;
/// What compiling one function may take, in the units of [`Work`]. Measured, the worst such function takes Cranelift 500 MB
/// and some seconds; the largest of CPython comes to 220 000.
const FUNCTION_WORK_MAX: u64 = 4_000_000;
/// What compiling all functions may take, in the units of [`Work`]; CPython comes to 7 million.
const WORK_MAX: u64 = 200_000_000;

/// What a module is made of, as far as loading it depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Structure {
    /// There is a start function.
    pub has_start: bool,
}

/// Reads the structure of `wasm` and checks it against the limits, without looking into function bodies. `also` is shown
/// each part for what an engine checks besides.
///
/// # Errors
///
/// [`ErrorKind::InvalidArtifact`], and those of `also`.
pub fn scan(wasm: &[u8], mut also: impl FnMut(&Payload<'_>) -> Result<()>) -> Result<Structure> {
    if wasm.is_empty() {
        return Err(invalid("the artifact is empty"));
    }
    if wasm.len() > ARTIFACT_BYTES_MAX {
        return Err(invalid(format!("the artifact has {} bytes, more than {ARTIFACT_BYTES_MAX}", wasm.len())));
    }
    if !wasm.starts_with(b"\0asm") {
        return Err(invalid("the artifact is not WebAssembly: it does not begin with `\\0asm`")
            .with_help("give a `.wasm` module, or its text form in a `.wat` file"));
    }
    if wasm.get(4..8) == Some(&[0x0d, 0, 1, 0]) {
        return Err(invalid("the artifact is a WebAssembly component, not a module")
            .with_help("build for `wasm32-wasip1`, which gives a module"));
    }
    let mut structure = Structure::default();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(malformed)?;
        match &payload {
            Payload::TypeSection(section) => at_most("types", section.count(), TYPES_MAX)?,
            Payload::ImportSection(section) => at_most("imports", section.count(), IMPORTS_MAX)?,
            Payload::FunctionSection(section) => at_most("functions", section.count(), FUNCTIONS_MAX)?,
            Payload::TableSection(section) => at_most("tables", section.count(), TABLES_MAX)?,
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
        also(&payload)?;
    }
    Ok(structure)
}

/// Checks that `wasm` is valid, and that compiling it takes no more than a bounded amount of work.
///
/// # Errors
///
/// [`ErrorKind::InvalidArtifact`].
pub fn validate(wasm: &[u8]) -> Result<()> {
    let mut validator = Validator::new_with_features(features());
    let mut parser = Parser::new(0);
    parser.set_features(features());
    // A function may refer to what comes behind it.
    let mut functions = Vec::new();
    for payload in parser.parse_all(wasm) {
        let payload = payload.map_err(malformed)?;
        if let ValidPayload::Func(function, body) = validator.payload(&payload).map_err(malformed)? {
            functions.push((function, body));
        }
    }
    let mut allocations = FuncValidatorAllocations::default();
    let mut module = Work::default();
    for (function, body) in functions {
        let index = function.index;
        let work;
        (work, allocations) = validate_function(function, &body, allocations)?;
        if work.units > FUNCTION_WORK_MAX {
            let units = work.units;
            return Err(invalid(format!(
                "function {index} is too complex to compile: its branches, times the locals that change, and the values \
                 they carry come to {units}, more than {FUNCTION_WORK_MAX}"
            ))
            .with_help("split the function, or build it with optimization"));
        }
        module.units += work.units;
        module.locals += work.locals;
        if module.units > WORK_MAX || module.locals > LOCALS_MAX {
            return Err(invalid(format!(
                "the module is too complex to compile: up to function {index} there are {} locals (at most \
                 {LOCALS_MAX}), and branches, times the locals that change, come to {} (at most {WORK_MAX})",
                module.locals, module.units
            ))
            .with_help("split the module, or build it with optimization"));
        }
    }
    Ok(())
}

/// What a compiler has to do: for each instruction the values it takes and gives, and for each way into a block the locals
/// that may have changed on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Work {
    units: u64,
    locals: u64,
}

fn validate_function(
    function: FuncToValidate<ValidatorResources>,
    body: &FunctionBody<'_>,
    allocations: FuncValidatorAllocations,
) -> Result<(Work, FuncValidatorAllocations)> {
    let mut validator = function.into_validator(allocations);
    let mut reader = body.get_binary_reader();
    validator.read_locals(&mut reader).map_err(malformed)?;
    reader.set_features(features());
    let locals = validator.len_locals();
    let mut changed = vec![false; locals as usize];
    let (mut values, mut ways) = (0u64, 0u64);
    while !reader.eof() {
        let at = reader.original_position();
        let operator = reader.peek_operator(&validator.visitor(at)).map_err(malformed)?;
        let (takes, gives) = operator.operator_arity(&validator.visitor(at)).unwrap_or_default();
        reader.visit_operator(&mut validator.visitor(at)).map_err(malformed)?.map_err(malformed)?;
        let mut each = 1 + u64::from(takes) + u64::from(gives);
        match &operator {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::Else => {
                ways += 1;
                let depth = validator.control_stack_height();
                // The function itself is a block as well.
                if depth > NESTING_MAX + 1 {
                    return Err(invalid(format!("a function nests its blocks deeper than {NESTING_MAX} levels")));
                }
            }
            Operator::Br { .. } | Operator::BrIf { .. } => ways += 1,
            Operator::BrTable { targets } => {
                let targets = u64::from(targets.len()) + 1;
                ways += targets;
                each *= targets;
            }
            Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => {
                if let Some(changed) = changed.get_mut(*local_index as usize) {
                    *changed = true;
                }
            }
            _ => {}
        }
        values += each;
    }
    reader.finish_expression(&validator.visitor(reader.original_position())).map_err(malformed)?;
    let changed = changed.iter().filter(|changed| **changed).count() as u64;
    let units = values.saturating_add(ways.saturating_mul(changed));
    Ok((Work { units, locals: u64::from(locals) }, validator.into_allocations()))
}

/// The language: WebAssembly 2.0 with extended constant expressions, without `externref`, since no host value is ever given
/// to a guest.
fn features() -> WasmFeatures {
    (WasmFeatures::WASM2 | WasmFeatures::EXTENDED_CONST).difference(WasmFeatures::GC_TYPES)
}

fn at_most(what: &str, count: u32, max: u32) -> Result<()> {
    if count > max {
        return Err(invalid(format!("the module has {count} {what}, more than {max}")));
    }
    Ok(())
}

/// An artifact that breaks a limit.
pub fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArtifact, "load", message)
}

/// An artifact that is not in the language.
pub fn malformed(error: BinaryReaderError) -> Error {
    invalid(format!("the module is malformed at byte {}: {}", error.offset(), error.message()))
        .with_help("check that the file is complete and uses no proposals beyond WebAssembly 2.0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_encoder as enc;

    /// What a load does.
    fn check(wasm: &[u8]) -> Result<Structure> {
        let structure = scan(wasm, |_| Ok(()))?;
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

    /// A module of one function that is called by nobody.
    fn function(wat: &str) -> Vec<u8> {
        wat::parse_str(format!("(module (func {wat}))")).unwrap()
    }

    #[test]
    fn references_to_the_host_are_refused() {
        assert!(refused(&wat::parse_str("(module (func (param externref)))").unwrap()).contains("malformed"));
        assert!(check(&wat::parse_str("(module (table 1 funcref) (func (param funcref)))").unwrap()).is_ok());
    }

    #[test]
    fn nesting_is_bounded_for_every_kind_of_block() {
        for kind in ["block", "loop", "if (i32.const 1) (then "] {
            let nested = |levels: usize| {
                let end = if kind.contains("then") { "))" } else { ")" };
                function(&format!("{}{}", format!("({kind} ").repeat(levels), end.repeat(levels)))
            };
            assert!(check(&nested(1000)).is_ok(), "{kind}");
            assert!(refused(&nested(1001)).contains("1000 levels"), "{kind}");
        }
    }

    /// Code as bytes, since the text of large functions takes long to read.
    fn coded(locals: u32, copies: usize, code: impl Fn(&mut enc::InstructionSink<'_>)) -> Vec<u8> {
        let mut types = enc::TypeSection::new();
        types.ty().function([], []);
        types.ty().function([], vec![enc::ValType::I32; 1000]);
        let mut functions = enc::FunctionSection::new();
        let mut section = enc::CodeSection::new();
        functions.function(1);
        let mut values = enc::Function::new([]);
        (0..1000).for_each(|_| _ = values.instructions().i32_const(0));
        values.instructions().end();
        section.function(&values);
        for _ in 0..copies {
            functions.function(0);
            let mut function = enc::Function::new([(locals, enc::ValType::I32)]);
            code(&mut function.instructions());
            function.instructions().end();
            section.function(&function);
        }
        let mut module = enc::Module::new();
        module.section(&types).section(&functions).section(&section);
        module.finish()
    }

    #[test]
    fn locals_of_the_whole_module_are_bounded() {
        // Each of these functions has eight bytes.
        assert!(check(&coded(50_000, 80, |_| {})).is_ok());
        assert!(refused(&coded(50_000, 81, |_| {})).contains("4050000 locals"));
    }

    #[test]
    fn branches_times_changed_locals_are_bounded() {
        let loops = |loops: u32, changed: u32| {
            coded(1000, 1, move |code| {
                for local in 0..changed {
                    code.i32_const(1).local_set(local);
                }
                for _ in 0..loops {
                    code.loop_(enc::BlockType::Empty).local_get(0).br_if(0).end();
                }
            })
        };
        assert!(check(&loops(1900, 1000)).is_ok());
        assert!(refused(&loops(2100, 1000)).contains("too complex"));
        // Locals that never change are joined nowhere.
        assert!(check(&loops(30_000, 10)).is_ok());
    }

    #[test]
    fn values_that_calls_and_branches_carry_are_bounded() {
        let many = enc::BlockType::FunctionType(1);
        let calls = |calls: u32| {
            coded(0, 1, move |code| {
                for _ in 0..calls {
                    code.block(enc::BlockType::Empty).call(0).br(0).end();
                }
            })
        };
        assert!(check(&calls(3900)).is_ok());
        assert!(refused(&calls(4000)).contains("too complex"));
        let tables = |targets: u32| {
            coded(0, 1, move |code| {
                code.block(enc::BlockType::Empty).block(many).call(0).i32_const(0);
                code.br_table((0..targets).map(|_| 0), 0).end().br(0).end();
            })
        };
        assert!(check(&tables(3900)).is_ok());
        assert!(refused(&tables(4100)).contains("too complex"));
    }

    #[test]
    fn the_work_of_the_whole_module_is_bounded() {
        let module = |functions: usize| {
            coded(1000, functions, |code| {
                for local in 0..1000 {
                    code.i32_const(1).local_set(local);
                }
                for _ in 0..1900 {
                    code.loop_(enc::BlockType::Empty).local_get(0).br_if(0).end();
                }
            })
        };
        assert!(check(&module(52)).is_ok());
        assert!(refused(&module(53)).contains("the module is too complex"));
    }
}
