//! Compiles the limits into the guest: rewrites a validated module before the engine sees it.
//!
//! The result counts fuel, looks at loop heads and function entries whether somebody wants it to stop, does bulk
//! operations in pieces and checks their bounds itself, asks before a table grows, and does not run its start function by
//! itself. It is an ordinary module, so this works with every compiler of the engine, and a guest cannot name what was
//! added: it was validated before.
//!
//! Two globals are added after the guest's own: first the fuel that is left, then a word that the host makes negative to
//! stop the guest. The guest only ever reads the second, so the host's store cannot be lost; and because fuel is stored in
//! every round of every loop, no compiler may keep the second in a register.

use std::collections::BTreeMap;

use palisade_core::{Error, ErrorKind, Result};
use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataCountSection, ElementSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, GlobalSection, GlobalType, ImportSection, InstructionSink, MemorySection, Module,
    RawSection, SectionId, TableSection, TypeSection, ValType,
};
use wasmparser::{DataKind, ElementItems, FunctionBody, KnownCustom, Operator, Parser, Payload, TypeRef};

/// Import module and name of the function that the added code calls.
pub(crate) const IMPORT: (&str, &str) = ("palisade:limits", "check");

/// What the added code calls its import for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Reason {
    /// Fuel is used up, or somebody wants the guest to stop.
    Check = 0,
    /// A bulk operation outside its memory.
    MemoryBounds = 1,
    /// A table operation outside its table.
    TableBounds = 2,
    /// A table is about to grow by the number of entries in the second argument.
    TableGrows = 3,
}

impl Reason {
    pub(crate) fn from_guest(number: i32) -> Option<Reason> {
        [Reason::Check, Reason::MemoryBounds, Reason::TableBounds, Reason::TableGrows]
            .into_iter()
            .find(|reason| *reason as i32 == number)
    }
}

/// Bytes or entries a bulk operation handles before it looks whether it is to stop.
const PIECE: i32 = 1 << 20;
/// Calls nested to make sure that there is stack left; each takes 16 bytes or more.
const PROBE_DEPTH: i32 = 1024;

/// A module with its limits compiled in.
pub(crate) struct Instrumented {
    pub(crate) wasm: Vec<u8>,
    /// Name under which the start function is exported now.
    pub(crate) start: Option<String>,
    /// Functions of the guest, imported ones included; those after them were added.
    pub(crate) functions: u32,
}

/// Rewrites `wasm`, which must be valid.
pub(crate) fn instrument(wasm: &[u8]) -> Result<Instrumented> {
    let mut rewriter = Rewriter::default();
    rewriter.run(wasm).map_err(|error| {
        Error::new(
            ErrorKind::InvalidArtifact,
            "load",
            format!("the limits cannot be compiled into the module: {error}"),
        )
    })
}

type Failed = reencode::Error<std::convert::Infallible>;

/// Functions that stand in for one instruction each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Helper {
    Probe,
    MemoryGrow,
    MemoryFill,
    MemoryCopy,
    MemoryInit { segment: u32 },
    TableGrow { table: u32 },
    TableFill { table: u32 },
    TableCopy { to: u32, from: u32 },
    TableInit { segment: u32, table: u32 },
    TableGet { table: u32 },
    TableSet { table: u32 },
}

struct Table {
    element: ValType,
    maximum: u64,
}

#[derive(Default)]
struct Rewriter {
    types: u32,
    imported: u32,
    defined: u32,
    globals: u32,
    tables: Vec<Table>,
    element_lens: Vec<u32>,
    data_lens: Vec<u32>,
    helpers: BTreeMap<Helper, u32>,
    /// The helpers in the order of their indices.
    order: Vec<Helper>,
}

impl Reencode for Rewriter {
    type Error = std::convert::Infallible;

    /// Our import comes after the guest's own, so its defined functions move by one.
    fn function_index(&mut self, function: u32) -> Result<u32, Failed> {
        Ok(self.moved(function))
    }
}

impl Rewriter {
    fn moved(&self, function: u32) -> u32 {
        if function < self.imported { function } else { function + 1 }
    }

    fn check_function(&self) -> u32 {
        self.imported
    }

    fn fuel(&self) -> u32 {
        self.globals
    }

    fn flag(&self) -> u32 {
        self.globals + 1
    }

    fn helper(&mut self, helper: Helper) -> u32 {
        if let Some(index) = self.helpers.get(&helper) {
            return *index;
        }
        let index = self.imported + 1 + self.defined + self.order.len() as u32;
        self.order.push(helper);
        self.helpers.insert(helper, index);
        index
    }

    fn run(&mut self, wasm: &[u8]) -> Result<Instrumented, Failed> {
        let mut types = TypeSection::new();
        let mut imports = ImportSection::new();
        let mut functions = FunctionSection::new();
        let mut tables = TableSection::new();
        let mut memories = MemorySection::new();
        let mut globals = GlobalSection::new();
        let mut exports = ExportSection::new();
        let mut elements = ElementSection::new();
        let mut code = CodeSection::new();
        let mut data = None;
        let mut data_count = None;
        let mut names = None;
        let mut start = None;
        let mut export_names = Vec::new();
        let mut entered_code = false;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => {
                    self.types = section.count();
                    self.parse_type_section(&mut types, section)?;
                }
                Payload::ImportSection(section) => {
                    for import in section.clone().into_imports() {
                        match import?.ty {
                            TypeRef::Func(_) | TypeRef::FuncExact(_) => self.imported += 1,
                            TypeRef::Global(_) => self.globals += 1,
                            TypeRef::Table(ty) => self.add_table(ty)?,
                            _ => {}
                        }
                    }
                    self.parse_import_section(&mut imports, section)?;
                }
                Payload::FunctionSection(section) => {
                    self.defined = section.count();
                    self.parse_function_section(&mut functions, section)?;
                }
                Payload::TableSection(section) => {
                    for table in section.clone() {
                        self.add_table(table?.ty)?;
                    }
                    self.parse_table_section(&mut tables, section)?;
                }
                Payload::MemorySection(section) => self.parse_memory_section(&mut memories, section)?,
                Payload::GlobalSection(section) => {
                    self.globals += section.count();
                    self.parse_global_section(&mut globals, section)?;
                }
                Payload::ExportSection(section) => {
                    for export in section.clone() {
                        export_names.push(export?.name);
                    }
                    self.parse_export_section(&mut exports, section)?;
                }
                Payload::StartSection { func, .. } => start = Some(self.moved(func)),
                Payload::ElementSection(section) => {
                    for element in section.clone() {
                        self.element_lens.push(match element?.items {
                            ElementItems::Functions(items) => items.count(),
                            ElementItems::Expressions(_, items) => items.count(),
                        });
                    }
                    self.parse_element_section(&mut elements, section)?;
                }
                Payload::DataCountSection { count, .. } => data_count = Some(count),
                Payload::DataSection(section) => {
                    for segment in section.clone() {
                        let segment = segment?;
                        // An active segment is dropped when the instance is made.
                        self.data_lens.push(match segment.kind {
                            DataKind::Passive => segment.data.len() as u32,
                            DataKind::Active { .. } => 0,
                        });
                    }
                    // Holds no function index, so it stays as it is.
                    data = Some(wasm[section.range()].to_vec());
                }
                Payload::CodeSectionEntry(body) => {
                    entered_code = true;
                    code.raw(&self.body(wasm, &body)?);
                }
                Payload::CustomSection(section) => {
                    if let KnownCustom::Name(section) = section.as_known() {
                        // Names are for people; a broken section is as good as none.
                        names = self.custom_name_section(section).ok();
                    }
                }
                _ => {}
            }
        }
        debug_assert!(entered_code || self.defined == 0);

        let check_type = self.types;
        types.ty().function([ValType::I32, ValType::I64], []);
        imports.import(IMPORT.0, IMPORT.1, EntityType::Function(check_type));
        let word = GlobalType { val_type: ValType::I64, mutable: true, shared: false };
        // Nothing may run before the host says how much.
        globals.global(word, &ConstExpr::i64_const(0));
        globals.global(word, &ConstExpr::i64_const(0));
        let start = start.map(|function| {
            let name = (0..).map(|n| format!("palisade:start{n}")).find(|name| !export_names.contains(&name.as_str()));
            let name = name.unwrap_or_default();
            exports.export(&name, ExportKind::Func, function);
            name
        });
        // A helper may need another one, which is then added behind it.
        let mut done = 0;
        while let Some(helper) = self.order.get(done).copied() {
            let (parameters, results) = self.signature(helper);
            types.ty().function(parameters, results);
            functions.function(check_type + 1 + done as u32);
            code.function(&self.helper_body(helper));
            done += 1;
        }

        let mut module = Module::new();
        module.section(&types).section(&imports).section(&functions).section(&tables).section(&memories);
        module.section(&globals).section(&exports).section(&elements);
        if let Some(count) = data_count {
            module.section(&DataCountSection { count });
        }
        module.section(&code);
        if let Some(data) = &data {
            module.section(&RawSection { id: SectionId::Data.into(), data });
        }
        if let Some(names) = &names {
            module.section(names);
        }
        Ok(Instrumented { wasm: module.finish(), start, functions: self.imported + self.defined })
    }

    fn add_table(&mut self, ty: wasmparser::TableType) -> Result<(), Failed> {
        let element = ValType::Ref(self.ref_type(ty.element_type)?);
        self.tables.push(Table { element, maximum: ty.maximum.unwrap_or(u64::from(u32::MAX)) });
        Ok(())
    }

    /// Rewrites one function. Instructions are copied as they are, but for those that name functions.
    fn body(&mut self, wasm: &[u8], body: &FunctionBody<'_>) -> Result<Vec<u8>, Failed> {
        let mut operators = body.get_operators_reader()?;
        let range = body.range();
        let mut out = Vec::with_capacity(range.len() * 2);
        out.extend_from_slice(&wasm[range.start..operators.original_position()]);
        self.check(&mut InstructionSink::new(&mut out));
        // Fuel of the instructions since the last charge.
        let mut owed = 0;
        while !operators.eof() {
            let at = operators.original_position();
            let operator = operators.read()?;
            let raw = &wasm[at..operators.original_position()];
            let stand_in = match operator {
                Operator::MemoryGrow { .. } => Some(Helper::MemoryGrow),
                Operator::MemoryFill { .. } => Some(Helper::MemoryFill),
                Operator::MemoryCopy { .. } => Some(Helper::MemoryCopy),
                Operator::MemoryInit { data_index, .. } => Some(Helper::MemoryInit { segment: data_index }),
                Operator::TableGrow { table } => Some(Helper::TableGrow { table }),
                Operator::TableFill { table } => Some(Helper::TableFill { table }),
                Operator::TableCopy { dst_table, src_table } => {
                    Some(Helper::TableCopy { to: dst_table, from: src_table })
                }
                Operator::TableInit { elem_index, table } => Some(Helper::TableInit { segment: elem_index, table }),
                Operator::TableGet { table } => Some(Helper::TableGet { table }),
                Operator::TableSet { table } => Some(Helper::TableSet { table }),
                _ => None,
            };
            if let Some(helper) = stand_in {
                self.charge(&mut out, &mut owed, 1);
                let helper = self.helper(helper);
                InstructionSink::new(&mut out).call(helper);
                continue;
            }
            match operator {
                Operator::Nop | Operator::Drop | Operator::Block { .. } => out.extend_from_slice(raw),
                Operator::Loop { .. } => {
                    self.charge(&mut out, &mut owed, 0);
                    out.extend_from_slice(raw);
                    self.check(&mut InstructionSink::new(&mut out));
                }
                Operator::Else | Operator::End | Operator::Return | Operator::Unreachable => {
                    self.charge(&mut out, &mut owed, 0);
                    out.extend_from_slice(raw);
                }
                // Every branch and call is charged, so no loop and no tree of calls is free.
                Operator::If { .. }
                | Operator::Br { .. }
                | Operator::BrIf { .. }
                | Operator::BrTable { .. }
                | Operator::CallIndirect { .. } => {
                    self.charge(&mut out, &mut owed, 1);
                    out.extend_from_slice(raw);
                }
                Operator::Call { function_index } => {
                    self.charge(&mut out, &mut owed, 1);
                    InstructionSink::new(&mut out).call(self.moved(function_index));
                }
                Operator::RefFunc { function_index } => {
                    owed += 1;
                    InstructionSink::new(&mut out).ref_func(self.moved(function_index));
                }
                _ => {
                    owed += 1;
                    out.extend_from_slice(raw);
                }
            }
        }
        Ok(out)
    }

    /// Charges what is owed and `more`.
    fn charge(&self, out: &mut Vec<u8>, owed: &mut i64, more: i64) {
        let fuel = std::mem::take(owed) + more;
        if fuel > 0 {
            let fuel_left = self.fuel();
            InstructionSink::new(out).global_get(fuel_left).i64_const(fuel).i64_sub().global_set(fuel_left);
        }
    }

    /// Calls the host when fuel is used up or the host wants it.
    fn check(&self, code: &mut InstructionSink<'_>) {
        code.global_get(self.fuel()).global_get(self.flag()).i64_or().i64_const(0).i64_lt_s().if_(BlockType::Empty);
        self.call_host(code, Reason::Check);
        code.end();
    }

    fn call_host(&self, code: &mut InstructionSink<'_>, reason: Reason) {
        code.i32_const(reason as i32).i64_const(0).call(self.check_function());
    }

    fn signature(&self, helper: Helper) -> (Vec<ValType>, Vec<ValType>) {
        const I: ValType = ValType::I32;
        let element = |table: u32| self.tables[table as usize].element;
        match helper {
            Helper::Probe => (vec![I], vec![]),
            Helper::MemoryGrow => (vec![I], vec![I]),
            Helper::MemoryFill
            | Helper::MemoryCopy
            | Helper::MemoryInit { .. }
            | Helper::TableCopy { .. }
            | Helper::TableInit { .. } => (vec![I, I, I], vec![]),
            Helper::TableGrow { table } => (vec![element(table), I], vec![I]),
            Helper::TableFill { table } => (vec![I, element(table), I], vec![]),
            Helper::TableGet { table } => (vec![I], vec![element(table)]),
            Helper::TableSet { table } => (vec![I, element(table)], vec![]),
        }
    }

    /// The code of a helper, whose parameters are the operands of the instruction it stands in for.
    fn helper_body(&mut self, helper: Helper) -> Function {
        let mut function = Function::new([]);
        let probe = match helper {
            Helper::Probe | Helper::MemoryInit { .. } | Helper::TableInit { .. } => self.helper(Helper::Probe),
            _ => 0,
        };
        let mut code = function.instructions();
        let code = &mut code;
        match helper {
            // Nested calls that do nothing but use the stack: where it ends, it ends here, in compiled code.
            Helper::Probe => {
                code.local_get(0).if_(BlockType::Empty).local_get(0).i32_const(1).i32_sub().call(probe).end();
            }
            Helper::MemoryGrow => {
                code.local_get(0).memory_grow(0).local_tee(0).i32_const(-1).i32_eq().if_(BlockType::Empty);
                // The host may have refused it for the quota.
                self.call_host(code, Reason::Check);
                code.end().local_get(0);
            }
            Helper::MemoryFill => {
                self.bounds(code, Size::Memory, 0, 2);
                self.charge_len(code, 2);
                self.in_pieces(code, 2, |code, len| {
                    code.local_get(0).local_get(1);
                    len(code);
                    code.memory_fill(0);
                    code.local_get(0).i32_const(PIECE).i32_add().local_set(0);
                });
            }
            Helper::MemoryCopy => {
                self.bounds(code, Size::Memory, 0, 2);
                self.bounds(code, Size::Memory, 1, 2);
                self.charge_len(code, 2);
                // Ranges may overlap: upwards when the target is below the source, else downwards.
                code.local_get(0).local_get(1).i32_le_u().if_(BlockType::Empty);
                self.in_pieces(code, 2, |code, len| {
                    code.local_get(0).local_get(1);
                    len(code);
                    code.memory_copy(0, 0);
                    code.local_get(0).i32_const(PIECE).i32_add().local_set(0);
                    code.local_get(1).i32_const(PIECE).i32_add().local_set(1);
                });
                code.else_();
                code.loop_(BlockType::Empty);
                code.local_get(2).i32_const(PIECE).i32_gt_u().if_(BlockType::Empty);
                code.local_get(2).i32_const(PIECE).i32_sub().local_set(2);
                code.local_get(0).local_get(2).i32_add().local_get(1).local_get(2).i32_add().i32_const(PIECE);
                code.memory_copy(0, 0);
                self.check(code);
                code.br(1).end().end();
                code.local_get(0).local_get(1).local_get(2).memory_copy(0, 0);
                code.end();
            }
            Helper::MemoryInit { segment } => {
                let len = self.data_lens.get(segment as usize).copied().unwrap_or(0);
                self.bounds(code, Size::Memory, 0, 2);
                self.bounds(code, Size::Fixed(len, Reason::MemoryBounds), 1, 2);
                self.charge_len(code, 2);
                // A dropped segment makes the engine itself raise the trap, for which it needs some stack.
                code.i32_const(PROBE_DEPTH).call(probe);
                code.local_get(0).local_get(1).local_get(2).memory_init(0, segment);
            }
            Helper::TableGrow { table } => {
                let maximum = self.tables[table as usize].maximum;
                self.charge_len(code, 1);
                // Beyond the table's own maximum nothing is taken; the guest learns it by -1.
                code.table_size(table).i64_extend_i32_u().local_get(1).i64_extend_i32_u().i64_add();
                code.i64_const(maximum as i64).i64_le_u().if_(BlockType::Empty);
                code.i32_const(Reason::TableGrows as i32).local_get(1).i64_extend_i32_u().call(self.check_function());
                code.end();
                code.local_get(0).local_get(1).table_grow(table);
            }
            Helper::TableFill { table } => {
                self.bounds(code, Size::Table(table), 0, 2);
                self.charge_len(code, 2);
                code.local_get(0).local_get(1).local_get(2).table_fill(table);
            }
            Helper::TableCopy { to, from } => {
                self.bounds(code, Size::Table(to), 0, 2);
                self.bounds(code, Size::Table(from), 1, 2);
                self.charge_len(code, 2);
                code.local_get(0).local_get(1).local_get(2).table_copy(to, from);
            }
            Helper::TableInit { segment, table } => {
                let len = self.element_lens.get(segment as usize).copied().unwrap_or(0);
                self.bounds(code, Size::Table(table), 0, 2);
                self.bounds(code, Size::Fixed(len, Reason::TableBounds), 1, 2);
                self.charge_len(code, 2);
                code.i32_const(PROBE_DEPTH).call(probe);
                code.local_get(0).local_get(1).local_get(2).table_init(table, segment);
            }
            Helper::TableGet { table } => {
                code.local_get(0).table_size(table).i32_ge_u().if_(BlockType::Empty);
                self.call_host(code, Reason::TableBounds);
                code.end().local_get(0).table_get(table);
            }
            Helper::TableSet { table } => {
                code.local_get(0).table_size(table).i32_ge_u().if_(BlockType::Empty);
                self.call_host(code, Reason::TableBounds);
                code.end().local_get(0).local_get(1).table_set(table);
            }
        }
        code.end();
        function
    }

    /// Stops the guest unless `at + len`, both of them locals, is within `size`.
    fn bounds(&self, code: &mut InstructionSink<'_>, size: Size, at: u32, len: u32) {
        code.local_get(at).i64_extend_i32_u().local_get(len).i64_extend_i32_u().i64_add();
        let reason = match size {
            Size::Memory => {
                code.memory_size(0).i64_extend_i32_u().i64_const(16).i64_shl();
                Reason::MemoryBounds
            }
            Size::Table(table) => {
                code.table_size(table).i64_extend_i32_u();
                Reason::TableBounds
            }
            Size::Fixed(len, reason) => {
                code.i64_const(i64::from(len));
                reason
            }
        };
        code.i64_gt_u().if_(BlockType::Empty);
        self.call_host(code, reason);
        code.end();
    }

    /// Charges a bulk operation by its length, before it runs.
    fn charge_len(&self, code: &mut InstructionSink<'_>, len: u32) {
        code.global_get(self.fuel()).local_get(len).i64_extend_i32_u().i64_sub().global_set(self.fuel());
        self.check(code);
    }

    /// Does `piece` for each [`PIECE`] of the local `len`, then for the rest. It is given what pushes its length.
    fn in_pieces(
        &self,
        code: &mut InstructionSink<'_>,
        len: u32,
        piece: impl Fn(&mut InstructionSink<'_>, &dyn Fn(&mut InstructionSink<'_>)),
    ) {
        code.loop_(BlockType::Empty);
        code.local_get(len).i32_const(PIECE).i32_gt_u().if_(BlockType::Empty);
        piece(code, &|code| {
            code.i32_const(PIECE);
        });
        code.local_get(len).i32_const(PIECE).i32_sub().local_set(len);
        self.check(code);
        code.br(1).end().end();
        piece(code, &|code| {
            code.local_get(len);
        });
    }
}

/// What a range must lie within.
#[derive(Clone, Copy)]
enum Size {
    Memory,
    Table(u32),
    Fixed(u32, Reason),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(wat: &str) -> Instrumented {
        let wasm = wat::parse_str(wat).unwrap();
        palisade_wasm::structure::validate(&wasm).unwrap();
        let instrumented = instrument(&wasm).unwrap();
        palisade_wasm::structure::validate(&instrumented.wasm).unwrap_or_else(|error| panic!("{error}\n{:?}", wat));
        instrumented
    }

    #[test]
    fn every_instruction_that_is_replaced_stays_valid() {
        let instrumented = rewritten(
            r#"(module
              (import "palisade" "input_len" (func $len (result i32)))
              (memory 1) (data $d "abc") (table $t 1 10 funcref) (table $u 1 funcref) (elem $e func $f $len)
              (global funcref (ref.func $f)) (export "f" (func $f)) (start $f)
              (func $f (local i64 f32)
                (memory.fill (i32.const 0) (i32.const 1) (i32.const 2))
                (memory.copy (i32.const 0) (i32.const 1) (i32.const 2))
                (memory.init $d (i32.const 0) (i32.const 1) (i32.const 2)) (data.drop $d)
                (drop (memory.grow (call $len)))
                (drop (table.grow $t (ref.func $f) (i32.const 1)))
                (drop (table.grow $u (ref.null func) (i32.const 1)))
                (table.fill $u (i32.const 0) (ref.null func) (i32.const 1))
                (table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 1))
                (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $e)
                (table.set $t (i32.const 0) (table.get $t (i32.const 0)))
                (block (loop (br 0)) (unreachable) (memory.fill) (drop (table.get $u)))))"#,
        );
        assert_eq!((instrumented.functions, instrumented.start.as_deref()), (2, Some("palisade:start0")));
    }

    #[test]
    fn an_export_of_the_guest_does_not_collide_with_ours() {
        let instrumented = rewritten(r#"(module (func $f (export "palisade:start0")) (start $f))"#);
        assert_eq!(instrumented.start.as_deref(), Some("palisade:start1"));
    }

    #[test]
    fn a_module_of_nothing_can_be_rewritten() {
        assert_eq!(rewritten("(module)").start, None);
    }
}
