//! What an ELF file says about itself. The file is hostile; everything is bounded and checked.

use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader, Sym};
use palisade_core::{Error, ErrorKind, Result};

/// Most libraries a file may need, and most symbols it may export.
const NEEDED_MAX: usize = 128;
const EXPORTS_MAX: usize = 65_536;
/// Longest name in a file, in bytes.
const NAME_BYTES_MAX: usize = 4096;

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

/// Reads `bytes`.
///
/// # Errors
///
/// [`ErrorKind::InvalidArtifact`], saying what is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<Elf> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidArtifact, "load", message);
    let corrupt = |error: object::Error| invalid("the ELF file is damaged".into()).source(error.to_string());
    match bytes {
        [0x7f, b'E', b'L', b'F', class, data, ..] => {
            if *class != elf::ELFCLASS64 {
                return Err(invalid("a 32-bit executable cannot run here".into()).help("build it for this machine"));
            }
            if *data != elf::ELFDATA2LSB {
                return Err(invalid("an ELF file of the wrong byte order".into()).help("build it for this machine"));
            }
        }
        _ => return Err(invalid("not an ELF file".into())),
    }
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(corrupt)?;
    let endian = file.endian();
    let header = file.elf_header();
    let machine = header.e_machine(endian);
    if machine != MACHINE {
        return Err(invalid(format!("built for another machine (ELF machine {machine})"))
            .help(format!("build it for {}", std::env::consts::ARCH)));
    }
    let kind = header.e_type(endian);
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        return Err(invalid(format!("neither an executable nor a shared library (ELF type {kind})"))
            .help("link it; an object file or a core dump cannot run"));
    }
    let mut found = Elf { is_library: kind == elf::ET_DYN, ..Elf::default() };
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= NAME_BYTES_MAX && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(invalid("a name in the ELF file is too long or not text".into())),
    };
    for segment in file.elf_program_headers() {
        if let Some(loader) = segment.interpreter(endian, bytes).map_err(corrupt)? {
            found.loader = Some(text(loader)?);
            found.is_library = false;
        }
        match segment.p_type(endian) {
            elf::PT_LOAD => {
                let (size, in_file) = (segment.p_memsz(endian), segment.p_filesz(endian));
                let end = segment.p_offset(endian).checked_add(in_file);
                if size < in_file || end.is_none_or(|end| end > bytes.len() as u64) {
                    return Err(invalid("a segment lies outside the ELF file".into()).help("the file is truncated"));
                }
                found.memory_bytes = found.memory_bytes.saturating_add(size);
            }
            elf::PT_GNU_STACK => found.executable_stack = segment.p_flags(endian) & elf::PF_X != 0,
            _ => {}
        }
    }
    if found.memory_bytes == 0 {
        return Err(invalid("the ELF file has nothing to load".into()));
    }
    let sections = file.elf_section_table();
    // The dynamic section is read by way of the segment, as the loader does: section headers may lie.
    for segment in file.elf_program_headers() {
        let Some(entries) = segment.dynamic(endian, bytes).map_err(corrupt)? else { continue };
        let value = |tag: i64| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
        let strings = match (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) {
            (Some(address), Some(size)) => at_address(&file, bytes, address, size)
                .ok_or_else(|| invalid("the string table lies outside the ELF file".into()))?,
            _ => &[],
        };
        let string = |offset: u64| {
            let rest = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == 0);
            end.map(|end| &rest[..end]).ok_or_else(|| invalid("a name lies outside the ELF file".into())).and_then(text)
        };
        for entry in entries {
            match entry.d_tag(endian) {
                elf::DT_NEEDED => found.needed.push(string(entry.d_val(endian))?),
                elf::DT_RPATH | elf::DT_RUNPATH => {
                    found.run_path.extend(string(entry.d_val(endian))?.split(':').map(str::to_owned));
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
    }
    if found.is_library {
        let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM).map_err(corrupt)?;
        for symbol in symbols.iter().take(EXPORTS_MAX) {
            if symbol.is_undefined(endian) || symbol.st_bind() == elf::STB_LOCAL {
                continue;
            }
            let name = text(symbol.name(endian, symbols.strings()).map_err(corrupt)?)?;
            match symbol.st_type() {
                elf::STT_FUNC => found.functions.push(name),
                elf::STT_OBJECT => found.variables.push((name, symbol.st_size(endian))),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// The part of the file that is loaded at `address`.
fn at_address<'a>(file: &ElfFile64<'a>, bytes: &'a [u8], address: u64, size: u64) -> Option<&'a [u8]> {
    let endian = file.endian();
    for segment in file.elf_program_headers() {
        if segment.p_type(endian) != elf::PT_LOAD {
            continue;
        }
        let Some(inside) = address.checked_sub(segment.p_vaddr(endian)) else { continue };
        if inside < segment.p_filesz(endian) {
            let start = usize::try_from(segment.p_offset(endian).checked_add(inside)?).ok()?;
            return bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?);
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
