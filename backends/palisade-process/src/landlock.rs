//! Rights of Landlock: the kernel's own list of what may be done beneath which path.

/// File-system rights (`linux/landlock.h`).
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;

/// A library, a program or a file of data: look, and execute.
pub(crate) const FILE: u64 = READ_FILE | EXECUTE;
/// A device such as `/dev/null`.
pub(crate) const DEVICE: u64 = READ_FILE | WRITE_FILE;

/// First version that covers truncating, without which a read-write directory would not be covered in full.
pub(crate) const ABI_WRITABLE: u32 = 3;

/// Everything version `abi` can handle: file-system rights, network rights, scopes. Version 1 has 13 file-system rights; 2
/// added moving between directories, 3 truncating, 4 TCP, 5 device control, 6 scopes for signals and abstract sockets.
pub(crate) fn handled(abi: u32) -> [u64; 3] {
    let files = match abi {
        0 => 0,
        1 => (1 << 13) - 1,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    };
    [files, if abi >= 4 { 0b11 } else { 0 }, if abi >= 6 { 0b11 } else { 0 }]
}

/// Rights beneath a granted directory.
pub(crate) fn directory(writable: bool, executable: bool, abi: u32) -> u64 {
    let change = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE;
    let rights = READ_FILE | READ_DIR | if writable { change } else { 0 } | if executable { EXECUTE } else { 0 };
    rights & handled(abi)[0]
}
