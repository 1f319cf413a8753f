//! Guests as WebAssembly text.

/// Never ends.
pub(crate) const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;

/// Does nothing.
pub(crate) const NOTHING: &str = r#"(module (func (export "_start")))"#;

/// Never ends, before its entry is even called.
pub(crate) const SPIN_AT_START: &str = r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#;

/// A WASI command with this body: functions, data from address 1024 on. It has two pages of memory, and `$write`,
/// `$read`, `$sleep` and `$exit` to work with.
pub(crate) fn command(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_open" (func $path_open
                (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (memory (export "memory") 2)
            (func $write (param $fd i32) (param $ptr i32) (param $len i32)
                (i32.store (i32.const 0) (local.get $ptr))
                (i32.store (i32.const 4) (local.get $len))
                (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
            ;; At most `len` bytes of the open file `fd` to `ptr`; how many there were.
            (func $read (param $fd i32) (param $ptr i32) (param $len i32) (result i32)
                (i32.store (i32.const 0) (local.get $ptr))
                (i32.store (i32.const 4) (local.get $len))
                (if (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
                (i32.load (i32.const 8)))
            ;; Waits on the monotonic clock, by a subscription at 64 and an event at 128.
            (func $sleep (param $nanos i64)
                (i32.store (i32.const 80) (i32.const 1))
                (i64.store (i32.const 88) (local.get $nanos))
                (if (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 12))
                    (then unreachable)))
            {body})"#
    )
}

/// Ends with this exit code.
pub(crate) fn exits_with(code: i32) -> String {
    command(&format!(r#"(func (export "_start") (call $exit (i32.const {code})))"#))
}

/// Writes a text to an open file: 1 is standard output, 2 standard error.
pub(crate) fn writes(fd: u32, text: &str) -> String {
    let len = text.len();
    command(&format!(
        r#"(data (i32.const 1024) "{text}")
        (func (export "_start") (call $write (i32.const {fd}) (i32.const 1024) (i32.const {len})))"#
    ))
}

/// Writes 1000 bytes to an open file, again and again without end.
pub(crate) fn floods(fd: u32) -> String {
    command(&format!(
        r#"(func (export "_start") (loop (call $write (i32.const {fd}) (i32.const 1024) (i32.const 1000)) (br 0)))"#
    ))
}

/// Copies its standard input to its standard output.
pub(crate) fn echoes() -> String {
    command(
        r#"(func (export "_start") (local $len i32)
            (loop $more
                (local.set $len (call $read (i32.const 0) (i32.const 1024) (i32.const 4096)))
                (call $write (i32.const 1) (i32.const 1024) (local.get $len))
                (br_if $more (local.get $len))))"#,
    )
}

/// Writes its arguments, each with a zero byte after it.
pub(crate) fn writes_arguments() -> String {
    command(
        r#"(func (export "_start")
            (if (call $args_sizes_get (i32.const 0) (i32.const 16)) (then unreachable))
            (if (call $args_get (i32.const 20000) (i32.const 1024)) (then unreachable))
            (call $write (i32.const 1) (i32.const 1024) (i32.load (i32.const 16))))"#,
    )
}

/// Writes its environment, each variable with a zero byte after it.
pub(crate) fn writes_environment() -> String {
    command(
        r#"(func (export "_start")
            (if (call $environ_sizes_get (i32.const 0) (i32.const 16)) (then unreachable))
            (if (call $environ_get (i32.const 20000) (i32.const 1024)) (then unreachable))
            (call $write (i32.const 1) (i32.const 1024) (i32.load (i32.const 16))))"#,
    )
}

/// Writes what is in a file of the first granted directory. Ends with WASI's error number when it cannot be opened.
pub(crate) fn writes_file(name: &str) -> String {
    let len = name.len();
    // The right asked for is to read.
    command(&format!(
        r#"(data (i32.const 512) "{name}")
        (func (export "_start") (local $errno i32)
            (local.set $errno (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const {len})
                (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
            (if (local.get $errno) (then (call $exit (local.get $errno))))
            (call $write (i32.const 1) (i32.const 1024)
                (call $read (i32.load (i32.const 16)) (i32.const 1024) (i32.const 4096))))"#
    ))
}

/// Makes a file in the first granted directory and writes `made` into it. Ends with WASI's error number when it cannot.
pub(crate) fn makes_file(name: &str) -> String {
    let len = name.len();
    // The right asked for is to write; the file is created.
    command(&format!(
        r#"(data (i32.const 512) "{name}") (data (i32.const 1024) "made")
        (func (export "_start") (local $errno i32)
            (local.set $errno (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const {len})
                (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))
            (if (local.get $errno) (then (call $exit (local.get $errno))))
            (call $write (i32.load (i32.const 16)) (i32.const 1024) (i32.const 4)))"#
    ))
}

/// A reactor with this body. It has one page of memory, and the imports that write.
pub(crate) fn reactor(body: &str) -> String {
    format!(
        r#"(module
            (import "palisade" "output_write" (func $output_write (param i32 i32)))
            (import "palisade" "error_write" (func $error_write (param i32 i32)))
            (import "palisade" "log" (func $log (param i32 i32 i32)))
            (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
            (memory (export "memory") 1)
            {body})"#
    )
}
