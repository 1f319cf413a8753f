//! Serves calls of a shared library: loads it inside the finished jail, gives it the table of host functions, and carries
//! what it says to the host.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ffi;
use super::instance::{hide, say};
use super::jail::{Failed, Step, protection};
use super::protocol::{
    CALL, ERROR, FD_NOTICES, FD_REQUEST, FRAME_HEADER, GO, HOST_CALL, HOST_RESULT, LOAD_FAILED, LOADED, LOG, OUTPUT,
    Plan, RETURN, Reader, SIGNAL, Writer,
};

/// Version of the table.
const ABI_VERSION: u32 = 1;
/// The plugin's variable that receives the table.
const HOST_VARIABLE: &str = "palisade_host_v1";

/// The functions of the host, as `include/palisade.h` declares them.
#[repr(C)]
struct HostTable {
    version: u32,
    size_bytes: u32,
    input_len: extern "C" fn() -> u64,
    input_read: extern "C" fn(u64, *mut u8, u64) -> u64,
    output_write: extern "C" fn(*const u8, u64),
    error_write: extern "C" fn(*const u8, u64),
    log: extern "C" fn(u32, *const u8, u64),
    host_call: extern "C" fn(*const u8, u64, *const u8, u64) -> u64,
    host_result_read: extern "C" fn(u64, *mut u8, u64) -> u64,
}

static TABLE: HostTable = HostTable {
    version: ABI_VERSION,
    size_bytes: size_of::<HostTable>() as u32,
    input_len,
    input_read,
    output_write,
    error_write,
    log,
    host_call,
    host_result_read,
};

/// What the table's functions work on.
struct State {
    input: Vec<u8>,
    read: u64,
    result: Vec<u8>,
}

static STATE: Mutex<State> = Mutex::new(State { input: Vec::new(), read: 0, result: Vec::new() });

/// Runs `action` on the state, one thread at a time: a plugin may have been granted threads.
fn with_state<T>(action: impl FnOnce(&mut State) -> T) -> T {
    // Nothing panics in here: this program aborts instead.
    action(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Says something to the host. When the host does not listen any more, this instance is over.
fn tell(kind: u8, message: &[u8]) {
    if say(kind, message).is_err() {
        ffi::exit(0);
    }
}

/// The plugin's range, or an empty one for a null pointer.
///
/// # Safety
///
/// `from` is null or points to `len` bytes. The plugin promises it; if it lies, it harms only itself.
unsafe fn range<'a>(from: *const u8, len: u64) -> &'a [u8] {
    if from.is_null() {
        return &[];
    }
    // SAFETY: as required of the caller.
    unsafe { std::slice::from_raw_parts(from, len as usize) }
}

/// Copies from `offset` on.
///
/// # Safety
///
/// `to` is null or has room for `len` bytes; as in [`range`].
unsafe fn copy(from: &[u8], offset: u64, to: *mut u8, len: u64) -> u64 {
    let from = usize::try_from(offset).ok().and_then(|offset| from.get(offset..)).unwrap_or_default();
    let copied = from.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    if to.is_null() {
        return 0;
    }
    // SAFETY: `copied` is at most `len`, for which the caller answers, and within `from`.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, copied) };
    copied as u64
}

extern "C" fn input_len() -> u64 {
    with_state(|state| state.input.len() as u64)
}

extern "C" fn input_read(offset: u64, to: *mut u8, len: u64) -> u64 {
    with_state(|state| {
        // SAFETY: the plugin's promise.
        let copied = unsafe { copy(&state.input, offset, to, len) };
        state.read = state.read.saturating_add(copied);
        copied
    })
}

/// Sends in pieces that fit a frame.
fn tell_pieces(kind: u8, bytes: &[u8]) {
    with_state(|_| bytes.chunks(1 << 20).for_each(|piece| tell(kind, piece)));
}

extern "C" fn output_write(from: *const u8, len: u64) {
    // SAFETY: the plugin's promise.
    tell_pieces(OUTPUT, unsafe { range(from, len) });
}

extern "C" fn error_write(from: *const u8, len: u64) {
    // SAFETY: the plugin's promise.
    tell_pieces(ERROR, unsafe { range(from, len) });
}

extern "C" fn log(level: u32, from: *const u8, len: u64) {
    // SAFETY: the plugin's promise.
    let text = unsafe { range(from, len.min(1 << 20)) };
    with_state(|_| tell(LOG, &[&level.to_le_bytes(), text].concat()));
}

extern "C" fn host_call(name: *const u8, name_len: u64, from: *const u8, len: u64) -> u64 {
    // SAFETY: the plugin's promise.
    let name = unsafe { range(name, name_len) };
    // SAFETY: the plugin's promise.
    let input = unsafe { range(from, len) };
    with_state(|state| {
        let mut message = Writer::default();
        message.bytes(name).bytes(input);
        tell(HOST_CALL, &message.0);
        let (HOST_RESULT, answer) = receive() else { ffi::exit(0) };
        let (status, result) = answer.split_first().map_or((1, &[][..]), |(status, result)| (*status, result));
        state.result = result.to_vec();
        u64::from(status) << 32 | state.result.len() as u64
    })
}

extern "C" fn host_result_read(offset: u64, to: *mut u8, len: u64) -> u64 {
    // SAFETY: the plugin's promise.
    with_state(|state| unsafe { copy(&state.result, offset, to, len) })
}

/// The next frame, in a single system call when it is short. The host sends the next one only when this one was answered.
fn receive() -> (u8, Vec<u8>) {
    let mut short = [0; 4096];
    let Ok(got @ FRAME_HEADER..) = ffi::read_once(FD_REQUEST, &mut short) else {
        // The host dropped this instance. (What is written at once, as a header is, also arrives at once.)
        ffi::exit(0)
    };
    let [kind, len @ ..] = [short[0], short[1], short[2], short[3], short[4]];
    let mut message = vec![0; u32::from_le_bytes(len) as usize];
    let here = got - FRAME_HEADER;
    if here > message.len() {
        ffi::exit(0);
    }
    message[..here].copy_from_slice(&short[FRAME_HEADER..got]);
    if here < message.len() && !ffi::read_exact(FD_REQUEST, &mut message[here..]).unwrap_or(false) {
        ffi::exit(0);
    }
    (kind, message)
}

/// Handles a signal the guest caused. Async-signal-safe.
///
/// Where the time stamp counter is trapped, reading it arrives here and is answered with the kernel's coarse clock. That is
/// far behind what the C library's clock expects of the counter, which then also gives the time of the kernel's last tick.
/// Anything else is reported, and ends this instance.
extern "C" fn on_signal(signal: c_int, info: *mut super::ffi::SignalInfo, context: *mut c_void) {
    const SIGABRT: c_int = 6;
    const SIGSEGV: c_int = 11;
    if signal == SIGSEGV && TRAP_TSC.load(Ordering::Relaxed) && super::ffi::answer_counter(context) {
        return;
    }
    // SAFETY: the kernel passes valid information about the signal.
    let address = unsafe { (*info).address };
    let overran = signal == SIGSEGV && address.abs_diff(STACK.load(Ordering::Relaxed)) < STACK_SPAN;
    let frame = [SIGNAL, 2, 0, 0, 0, signal as u8, overran.into()];
    let _ = super::ffi::write_all(super::protocol::FD_REPLY, &frame);
    super::ffi::default_signal(signal);
    if signal == SIGABRT {
        // Process 1 of a namespace survives its own signals, so it leaves as a shell would report it.
        super::ffi::exit(128 + signal);
    }
    // Returning runs the faulting instruction once more, now without a handler.
}

static TRAP_TSC: AtomicBool = AtomicBool::new(false);

/// Lowest address the main stack may reach, and how far around it a fault counts as running over.
static STACK: AtomicUsize = AtomicUsize::new(0);
const STACK_SPAN: usize = 256 << 10;

/// Loads the library when told to, and serves calls until the host hangs up. Returns only when it never came so far.
pub(crate) fn serve(plan: &Plan, environment: &[CString], path: &str) -> Failed {
    match prepare(plan, environment, path) {
        Ok(library) => loop {
            match receive() {
                (CALL, message) => call(library, &message),
                _ => ffi::exit(0),
            }
        },
        Err(failed) => failed,
    }
}

fn prepare(plan: &Plan, environment: &[CString], path: &str) -> Result<ffi::Library, Failed> {
    const SIGNALS: [i32; 5] = [4, 6, 7, 8, 11];
    const RLIMIT_STACK: u32 = 3;
    let here = &raw const path as usize;
    let stack_bytes =
        plan.limits.iter().find(|(resource, _)| *resource == RLIMIT_STACK).map_or(8 << 20, |limit| limit.1);
    STACK.store(here.saturating_sub(usize::try_from(stack_bytes).unwrap_or(0)), Ordering::Relaxed);
    TRAP_TSC.store(plan.trap_tsc, Ordering::Relaxed);
    ffi::set_environment(environment);
    ffi::alternate_stack().step("stack for signals")?;
    for signal in SIGNALS {
        ffi::handle_signal(signal, on_signal).step("signals")?;
    }
    match receive() {
        // The host has taken what it wants, and the plugin must not have it.
        (GO, _) => ffi::close_fd(FD_NOTICES),
        _ => return Err(io::Error::from_raw_os_error(ffi::EINVAL)).step("wait for the host"),
    }
    if plan.on(protection::NOT_DUMPABLE) {
        hide(plan)?;
    }
    let library = match ffi::load_library(path) {
        Ok(library) => library,
        Err(message) => {
            tell(LOAD_FAILED, message.as_bytes());
            ffi::exit(124)
        }
    };
    if let Some(variable) = library.symbol(HOST_VARIABLE) {
        // SAFETY: the host has seen in the file that this symbol is a variable of a pointer's size.
        unsafe { *variable.cast::<*const HostTable>() = &TABLE };
    }
    if !plan.filter_locked.is_empty() {
        ffi::install_filter(&plan.filter_locked).step("second system call filter")?;
    }
    tell(LOADED, &[]);
    Ok(library)
}

fn call(library: ffi::Library, message: &[u8]) {
    let mut reader = Reader(message);
    let (Some(entry), Some(input)) = (reader.text(), reader.bytes()) else { ffi::exit(0) };
    let Some(address) = library.symbol(&entry) else { ffi::exit(0) };
    with_state(|state| *state = State { input: input.to_vec(), read: 0, result: Vec::new() });
    // SAFETY: the host has seen in the file that this symbol is a function; the header says what its type must be.
    let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> i32>(address) };
    let code = function();
    let read = with_state(|state| state.read);
    tell(RETURN, &[&code.to_le_bytes()[..], &read.to_le_bytes()].concat());
}
