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
/// What compiling one function may take, in the units of [`Work`].
const FUNCTION_WORK_MAX: u64 = 10_000_000;
/// What compiling all functions may take, in the units of [`Work`].
const WORK_MAX: u64 = 400_000_000;

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
            .help("give a `.wasm` module, or its text form in a `.wat` file"));
    }
    if wasm.get(4..8) == Some(&[0x0d, 0, 1, 0]) {
        return Err(invalid("the artifact is a WebAssembly component, not a module")
            .help("build for `wasm32-wasip1`, which gives a module"));
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
            .help("split the function, or build it with optimization"));
        }
        module.units += work.units;
        module.locals += work.locals;
        if module.units > WORK_MAX || module.locals > LOCALS_MAX {
            return Err(invalid(format!(
                "the module is too complex to compile: up to function {index} there are {} locals (at most \
                 {LOCALS_MAX}), and branches, times the locals that change, come to {} (at most {WORK_MAX})",
                module.locals, module.units
            ))
            .help("split the module, or build it with optimization"));
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
        .help("check that the file is complete and uses no proposals beyond WebAssembly 2.0")
}
