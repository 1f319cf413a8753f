//! A shared library whose constructor misbehaves as its build says. Compiled by the tests.
//!
//! This is the hostile side, which no part of Palisade links.
#[unsafe(no_mangle)]
pub static mut palisade_host_v1: *const u8 = std::ptr::null();

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    if cfg!(spins) {
        loop {
            std::hint::black_box(0);
        }
    }
    if cfg!(crashes) {
        // SAFETY: none, on purpose; nothing is mapped there, so the kernel ends this process.
        unsafe { *(8 as *mut u8) = 1 };
    }
    if cfg!(forges) {
        // Says that it is loaded and has returned, before anybody called it.
        let frames: &[u8] = &[b'L', 0, 0, 0, 0, b'R', 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        unsafe extern "C" {
            fn write(fd: i32, from: *const u8, len: usize) -> isize;
        }
        // SAFETY: `frames` is so long.
        unsafe { write(4, frames.as_ptr(), frames.len()) };
        loop {
            std::hint::black_box(0);
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn entry() -> i32 {
    0
}
