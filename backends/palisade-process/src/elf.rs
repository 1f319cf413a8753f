//! What an ELF file says about itself. The file is hostile; everything is bounded and checked.

use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader, Sym};
use object::read::{ReadCache, ReadRef};
use palisade_core::{Error, ErrorKind, Result};

/// Most libraries a file may need.
const NEEDED_MAX: usize = 128;
/// Most segments, entries of the dynamic section, and symbols that are looked at in one file, together. The C library has
/// some 3000 symbols, the largest libraries of a system a few hundred thousand; those need not be read that far.
const STEPS_MAX: usize = 200_000;
/// Longest name in a file, in bytes.
const NAME_BYTES_MAX: usize = 4096;
/// Most bytes of names that are kept of one file, each with what it costs to keep it.
const NAMES_BYTES_MAX: usize = 4 << 20;

/// An ELF file of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Elf {
    /// The loader it asks for; none when it is linked statically, or a library.
    pub(crate) loader: Option<String>,
    /// Libraries it needs, by their names.
    pub(crate) needed: Vec<String>,
    /// Where it says they are; `$ORIGIN` not yet replaced.
    pub(crate) run_path: Vec<String>,
    /// Functions it exports.
    pub(crate) functions: Vec<String>,
    /// Variables it exports, with their sizes in bytes.
    pub(crate) variables: Vec<(String, u64)>,
    /// Code that runs when it is loaded.
    pub(crate) has_start: bool,
    /// Its text is changed by the loader.
    pub(crate) text_relocations: bool,
    /// It asks for a stack that can be executed.
    pub(crate) executable_stack: bool,
    /// Memory its segments take, in bytes.
    pub(crate) memory_bytes: u64,
    /// It is an executable with a fixed address or a position-independent one with a loader.
    pub(crate) is_library: bool,
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = elf::EM_X86_64;
#[cfg(not(target_arch = "x86_64"))]
const MACHINE: u16 = elf::EM_AARCH64;

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArtifact, "load", message.into())
}

/// What may still be kept of a file, and looked at in it. However a file is made up, all that is done with it fits in here.
struct Budget {
    names_bytes: usize,
    steps: usize,
}

impl Budget {
    fn step(&mut self) -> Result<()> {
        self.steps = self.steps.checked_sub(1).ok_or_else(|| {
            invalid(format!("the ELF file has more than {STEPS_MAX} segments, dynamic entries and symbols"))
        })?;
        Ok(())
    }

    /// `bytes` as a name to keep.
    fn name(&mut self, bytes: &[u8]) -> Result<String> {
        let name = match std::str::from_utf8(bytes) {
            Ok(name) if name.len() <= NAME_BYTES_MAX && !name.contains('\0') => name,
            _ => return Err(invalid("a name in the ELF file is too long or not text")),
        };
        let left = self.names_bytes.checked_sub(name.len() + size_of::<String>());
        self.names_bytes =
            left.ok_or_else(|| invalid(format!("the names in the ELF file take more than {NAMES_BYTES_MAX} bytes")))?;
        Ok(name.to_owned())
    }
}

/// Reads the ELF file at `path`, only as far as is needed to start it: not what it exports.
///
/// # Errors
///
/// As [`parse`], and the system's.
pub(crate) fn parse_file(path: &Path) -> Result<Elf> {
    let file = File::open(path).map_err(|error| {
        Error::new(ErrorKind::Io, "prepare", format!("{} cannot be read", path.display())).with_source(error)
    })?;
    read(&ReadCache::new(file), false)
}

/// Reads `bytes`.
///
/// # Errors
///
/// [`ErrorKind::InvalidArtifact`], saying what is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<Elf> {
    read(bytes, true)
}

fn read<'data, R: ReadRef<'data>>(bytes: R, exports: bool) -> Result<Elf> {
    let mut budget = Budget { names_bytes: NAMES_BYTES_MAX, steps: STEPS_MAX };
    let corrupt = |error: object::Error| invalid("the ELF file is damaged").with_source(error.to_string());
    match bytes.read_bytes_at(0, 6).unwrap_or_default() {
        [0x7f, b'E', b'L', b'F', class, data, ..] => {
            if *class != elf::ELFCLASS64 {
                return Err(invalid("a 32-bit executable cannot run here").with_help("build it for this machine"));
            }
            if *data != elf::ELFDATA2LSB {
                return Err(invalid("an ELF file of the wrong byte order").with_help("build it for this machine"));
            }
        }
        _ => return Err(invalid("not an ELF file")),
    }
    let file = ElfFile64::<Endianness, R>::parse(bytes).map_err(corrupt)?;
    let endian = file.endian();
    let header = file.elf_header();
    let machine = header.e_machine(endian);
    if machine != MACHINE {
        return Err(invalid(format!("built for another machine (ELF machine {machine})"))
            .with_help(format!("build it for {}", std::env::consts::ARCH)));
    }
    let kind = header.e_type(endian);
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        return Err(invalid(format!("neither an executable nor a shared library (ELF type {kind})"))
            .with_help("link it; an object file or a core dump cannot run"));
    }
    let mut found = Elf { is_library: kind == elf::ET_DYN, ..Elf::default() };
    let len = bytes.len().map_err(|()| invalid("the ELF file cannot be read"))?;
    for segment in file.elf_program_headers() {
        budget.step()?;
        if let Some(loader) = segment.interpreter(endian, bytes).map_err(corrupt)? {
            found.loader = Some(budget.name(loader)?);
            found.is_library = false;
        }
        match segment.p_type(endian) {
            elf::PT_LOAD => {
                let (size, in_file) = (segment.p_memsz(endian), segment.p_filesz(endian));
                let end = segment.p_offset(endian).checked_add(in_file);
                if size < in_file || end.is_none_or(|end| end > len) {
                    return Err(invalid("a segment lies outside the ELF file").with_help("the file is truncated"));
                }
                found.memory_bytes = found.memory_bytes.saturating_add(size);
            }
            elf::PT_GNU_STACK => found.executable_stack = segment.p_flags(endian) & elf::PF_X != 0,
            _ => {}
        }
    }
    if found.memory_bytes == 0 {
        return Err(invalid("the ELF file has nothing to load"));
    }
    let sections = file.elf_section_table();
    // The dynamic section is read by way of the segment, as the loader does: section headers may lie. It is the first, and
    // ends where the loader ends it.
    let dynamic = file.elf_program_headers().iter().find(|segment| segment.p_type(endian) == elf::PT_DYNAMIC);
    let entries = match dynamic {
        Some(segment) => segment.dynamic(endian, bytes).map_err(corrupt)?.unwrap_or_default(),
        None => &[],
    };
    let entries = &entries[..entries.len().min(STEPS_MAX)];
    let end = entries.iter().position(|entry| entry.d_tag(endian) == elf::DT_NULL).unwrap_or(entries.len());
    let entries = &entries[..end];
    let value = |tag: i64| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
    let strings = match (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) {
        (Some(address), Some(size)) => Some(
            at_address(&file, address, size).ok_or_else(|| invalid("the string table lies outside the ELF file"))?,
        ),
        _ => None,
    };
    let string = |offset: u64| -> Result<&[u8]> {
        let outside = || invalid("a name lies outside the ELF file");
        let (start, end) = strings.clone().map_or((0, 0), |strings| (strings.start, strings.end));
        let start = start.checked_add(offset).filter(|start| *start < end).ok_or_else(outside)?;
        let rest = bytes.read_bytes_at(start, (end - start).min(NAME_BYTES_MAX as u64 + 1)).map_err(|()| outside())?;
        rest.iter().position(|byte| *byte == 0).map(|end| &rest[..end]).ok_or_else(outside)
    };
    for entry in entries {
        budget.step()?;
        match entry.d_tag(endian) {
            elf::DT_NEEDED => found.needed.push(budget.name(string(entry.d_val(endian))?)?),
            elf::DT_RPATH | elf::DT_RUNPATH => {
                for place in string(entry.d_val(endian))?.split(|byte| *byte == b':') {
                    found.run_path.push(budget.name(place)?);
                }
            }
            elf::DT_TEXTREL => found.text_relocations = true,
            elf::DT_FLAGS => found.text_relocations |= entry.d_val(endian) & u64::from(elf::DF_TEXTREL) != 0,
            elf::DT_FLAGS_1 if entry.d_val(endian) & u64::from(elf::DF_1_PIE) != 0 => found.is_library = false,
            elf::DT_INIT | elf::DT_INIT_ARRAY | elf::DT_PREINIT_ARRAY => found.has_start = true,
            _ => {}
        }
        if found.needed.len() > NEEDED_MAX {
            return Err(invalid(format!("needs more than {NEEDED_MAX} libraries")));
        }
    }
    if exports && found.is_library {
        let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM).map_err(corrupt)?;
        for symbol in symbols.iter() {
            budget.step()?;
            if symbol.is_undefined(endian) || symbol.st_bind() == elf::STB_LOCAL {
                continue;
            }
            let mut name = || budget.name(symbol.name(endian, symbols.strings()).map_err(corrupt)?);
            match symbol.st_type() {
                elf::STT_FUNC => found.functions.push(name()?),
                elf::STT_OBJECT => found.variables.push((name()?, symbol.st_size(endian))),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// The part of the file that is loaded at `address`.
fn at_address<'data, R: ReadRef<'data>>(
    file: &ElfFile64<'data, Endianness, R>,
    address: u64,
    size: u64,
) -> Option<std::ops::Range<u64>> {
    let endian = file.endian();
    for segment in file.elf_program_headers() {
        if segment.p_type(endian) != elf::PT_LOAD {
            continue;
        }
        let Some(inside) = address.checked_sub(segment.p_vaddr(endian)) else { continue };
        if inside < segment.p_filesz(endian) {
            let start = segment.p_offset(endian).checked_add(inside)?;
            return Some(start..start.checked_add(size)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn an_executable_names_its_loader_and_libraries() {
        let found = parse(&own()).unwrap();
        assert!(found.loader.is_some() && !found.is_library, "{found:?}");
        assert!(found.needed.iter().any(|name| name.starts_with("libc.")), "{:?}", found.needed);
        assert!(!found.text_relocations && !found.executable_stack);
    }

    #[test]
    fn what_is_not_an_elf_file_of_this_machine_is_refused() {
        let refused = |bytes: &[u8]| {
            let error = parse(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArtifact);
            error.to_string()
        };
        assert!(refused(b"").contains("not an ELF"));
        assert!(refused(b"\0asm\x01\0\0\0").contains("not an ELF"));
        let mut file = own();
        file[4] = 1;
        assert!(refused(&file).contains("32-bit"));
        file[4] = 2;
        file[18] = 40;
        assert!(refused(&file).contains("another machine"));
        file = own();
        file[16] = 1;
        assert!(refused(&file).contains("neither"));
        let whole = own();
        for len in [5, 64, 100, 1000, whole.len() / 2] {
            refused(&whole[..len]);
        }
    }

    /// The least of an ELF file: `segments` (type, offset in the file, size), all at the address of their offset.
    fn made(kind: u16, segments: &[(u32, usize, usize)], contents: &[u8]) -> Vec<u8> {
        let start = 64 + 56 * segments.len();
        let mut file = vec![0u8; 64];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        for (at, value) in [(16, kind), (18, MACHINE), (52, 64), (54, 56), (56, segments.len() as u16), (58, 64)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file[20] = 1;
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        for (kind, offset, size) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(4u32.to_le_bytes());
            let (offset, size) = ((start + offset) as u64, *size as u64);
            [offset, offset, offset, size, size, 8].iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        file.extend(contents);
        file
    }

    /// Entries of a dynamic section whose string table lies `strings` bytes behind the start of the contents.
    fn dynamic(entries: &[(u32, u64)], segments: usize, strings: (usize, usize)) -> Vec<u8> {
        let address = (64 + 56 * segments + strings.0) as u64;
        let table = [(elf::DT_STRTAB as u32, address), (elf::DT_STRSZ as u32, strings.1 as u64)];
        table
            .iter()
            .chain(entries)
            .flat_map(|(tag, value)| [u64::from(*tag), *value])
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    #[test]
    fn however_a_file_repeats_itself_it_fits_the_budget() {
        // One string named a thousand times as the run path: each time it would be copied.
        let entries = vec![(elf::DT_RUNPATH as u32, 0); 5000];
        let size = 16 * (entries.len() + 2);
        let mut contents = dynamic(&entries, 2, (size, 4001));
        contents.extend([b':'; 4000]);
        contents.push(0);
        let segments = [(elf::PT_LOAD, 0, contents.len()), (elf::PT_DYNAMIC, 0, size)];
        let error = parse(&made(elf::ET_DYN, &segments, &contents)).unwrap_err();
        assert!(error.to_string().contains("names in the ELF file"), "{error}");

        // Every segment is a dynamic section, and each is long: the first counts, as far as its end.
        let mut entries = vec![(elf::DT_DEBUG as u32, 0); 1000];
        entries.push((elf::DT_NULL as u32, 0));
        entries.extend([(elf::DT_NEEDED as u32, 0); 1000]);
        let mut segments = vec![(elf::PT_LOAD, 0, 16 * 2003)];
        segments.extend(vec![(elf::PT_DYNAMIC, 0, 16 * 2003); 60_000]);
        let contents = dynamic(&entries, segments.len(), (0, 16));
        let found = parse(&made(elf::ET_DYN, &segments, &contents)).unwrap();
        assert!(found.needed.is_empty());

        // More entries than anybody needs.
        let entries = vec![(elf::DT_DEBUG as u32, 0); STEPS_MAX];
        let contents = dynamic(&entries, 2, (0, 16));
        let segments = [(elf::PT_LOAD, 0, contents.len()), (elf::PT_DYNAMIC, 0, contents.len())];
        let error = parse(&made(elf::ET_DYN, &segments, &contents)).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }

    #[test]
    fn a_file_is_read_as_its_bytes_are() {
        let path = std::env::current_exe().unwrap();
        let (of_file, of_bytes) = (parse_file(&path).unwrap(), parse(&own()).unwrap());
        assert_eq!((of_file.needed, of_file.loader), (of_bytes.needed, of_bytes.loader));
    }

    proptest::proptest! {
        #[test]
        fn damage_never_panics(changes in proptest::collection::vec((0usize..4096, proptest::num::u8::ANY), 1..20)) {
            static OWN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut file = OWN.get_or_init(own).clone();
            for (at, byte) in changes {
                file[at] = byte;
            }
            let _ = parse(&file);
        }
    }
}
