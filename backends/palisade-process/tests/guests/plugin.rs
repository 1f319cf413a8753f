//! A shared library that behaves, and misbehaves. Compiled by the tests.
//!
//! This is the hostile side, which no part of Palisade links.
use std::ffi::c_void;

#[repr(C)]
pub struct Host {
    version: u32,
    size_bytes: u32,
    input_len: extern "C" fn() -> u64,
    input_read: extern "C" fn(u64, *mut c_void, u64) -> u64,
    output_write: extern "C" fn(*const c_void, u64),
    error_write: extern "C" fn(*const c_void, u64),
    log: extern "C" fn(u32, *const c_void, u64),
    host_call: extern "C" fn(*const u8, u64, *const c_void, u64) -> u64,
    host_result_read: extern "C" fn(u64, *mut c_void, u64) -> u64,
}

#[unsafe(no_mangle)]
pub static mut palisade_host_v1: *const Host = std::ptr::null();

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    // Numbers in, numbers out: nothing that a caller could get wrong for this library's memory.
    safe fn abort() -> !;
    safe fn fork() -> i32;
    fn dlopen(path: *const u8, flags: i32) -> *mut c_void;
}

fn host() -> &'static Host {
    // SAFETY: the worker sets it before it calls anything here, to a table that stays.
    unsafe { &*palisade_host_v1 }
}

fn input() -> Vec<u8> {
    let mut bytes = vec![0u8; (host().input_len)() as usize];
    (host().input_read)(0, bytes.as_mut_ptr().cast(), bytes.len() as u64);
    bytes
}

fn output(text: impl AsRef<[u8]>) {
    (host().output_write)(text.as_ref().as_ptr().cast(), text.as_ref().len() as u64);
}

#[unsafe(no_mangle)]
pub extern "C" fn echo() -> i32 {
    output(input());
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn fail() -> i32 {
    (host().error_write)(c"went wrong".as_ptr().cast(), 10);
    (host().log)(3, c"a warning".as_ptr().cast(), 9);
    75
}

/// Calls the host function named by the input.
#[unsafe(no_mangle)]
pub extern "C" fn host_function() -> i32 {
    let name = input();
    let answer = (host().host_call)(name.as_ptr(), name.len() as u64, c"question".as_ptr().cast(), 8);
    let mut result = vec![0u8; (answer & 0xffff_ffff) as usize];
    (host().host_result_read)(0, result.as_mut_ptr().cast(), result.len() as u64);
    output(result);
    (answer >> 32) as i32
}

static mut COUNT: u32 = 0;

#[unsafe(no_mangle)]
pub extern "C" fn count() -> i32 {
    // SAFETY: the worker has one thread, which is here.
    let count = unsafe {
        COUNT += 1;
        COUNT
    };
    output(count.to_string());
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn spin() -> i32 {
    loop {
        std::hint::black_box(0);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn segv() -> i32 {
    // SAFETY: none, on purpose; nothing is mapped there, so the kernel ends this process.
    unsafe { *(8 as *mut u8) = 1 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aborts() -> i32 {
    abort()
}

#[unsafe(no_mangle)]
pub extern "C" fn panics() -> i32 {
    panic!("on purpose")
}

fn deep(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 128]);
    if depth == u64::MAX { 0 } else { deep(depth + 1) + frame[7] }
}

#[unsafe(no_mangle)]
pub extern "C" fn recurse() -> i32 {
    deep(0) as i32
}

#[unsafe(no_mangle)]
pub extern "C" fn exits() -> i32 {
    std::process::exit(0)
}

/// Says on the worker's pipe that it returned, and goes on.
#[unsafe(no_mangle)]
pub extern "C" fn forges() -> i32 {
    let frames: &[u8] = &[b'L', 0, 0, 0, 0, b'R', 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `write` reads as many bytes as `frames` has.
    unsafe { syscall(1, 4i64, frames.as_ptr(), frames.len()) };
    loop {
        std::hint::black_box(0);
    }
}

/// Empty log records without end.
#[unsafe(no_mangle)]
pub extern "C" fn logs() -> i32 {
    loop {
        (host().log)(0, std::ptr::null(), 0);
    }
}

/// Announces more than it sends.
#[unsafe(no_mangle)]
pub extern "C" fn floods() -> i32 {
    let frame: &[u8] = &[b'O', 0xff, 0xff, 0xff, 0xff];
    // SAFETY: `write` reads as many bytes as `frame` has.
    unsafe { syscall(1, 4i64, frame.as_ptr(), frame.len()) };
    0
}

/// What a plugin must not be able to do; says what worked.
#[unsafe(no_mangle)]
pub extern "C" fn attack() -> i32 {
    let mut worked = Vec::new();
    if fork() >= 0 {
        worked.push("fork");
    }
    if std::fs::read("/etc/passwd").is_ok() || std::fs::read_dir("/").is_ok() {
        worked.push("files");
    }
    // SAFETY: the name ends with a zero byte.
    if !unsafe { dlopen(c"libz.so.1".as_ptr().cast(), 2) }.is_null() {
        worked.push("dlopen");
    }
    // SAFETY: the kernel chooses the place of a new mapping, which nobody uses.
    if unsafe { syscall(9, 0i64, 4096i64, 7i64, 0x22i64, -1i64, 0i64) } > 0 {
        worked.push("executable memory");
    }
    // SAFETY: `socket` takes numbers.
    if unsafe { syscall(41, 2i64, 1i64, 0i64) } >= 0 {
        worked.push("socket");
    }
    if std::thread::Builder::new().spawn(|| {}).is_ok() {
        worked.push("thread");
    }
    output(worked.join(","));
    0
}

/// The smallest steps of the processor's counter and of the clock, in their own units.
#[unsafe(no_mangle)]
pub extern "C" fn clocks() -> i32 {
    let step = |read: &dyn Fn() -> u64| {
        let mut smallest = u64::MAX;
        let mut last = read();
        for _ in 0..20_000 {
            let now = read();
            if now > last {
                smallest = smallest.min(now - last);
            }
            last = now;
        }
        smallest
    };
    // SAFETY: every x86-64 has the instruction; where it is forbidden, the kernel ends this process.
    let counter = step(&|| unsafe { std::arch::x86_64::_rdtsc() });
    let start = std::time::Instant::now();
    let clock = step(&|| start.elapsed().as_nanos() as u64);
    output(format!("{counter} {clock}"));
    0
}

/// Tells the host that it returned, and goes on computing.
#[unsafe(no_mangle)]
pub extern "C" fn return_and_spin() -> i32 {
    let frame = [b'R', 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `write` reads as many bytes as `frame` has.
    unsafe { syscall(1, 4i64, frame.as_ptr(), frame.len()) };
    loop {
        std::hint::black_box(0);
    }
}
