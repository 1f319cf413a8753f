//! The stacks guests run on, which the engine keeps: one for each thread, and a list for threads to come.
//!
//! The engine takes any kept stack that is large enough. A stack quota would so depend on what ran before; therefore a
//! thread forgets its stack when the next guest's is to have another size, and before it ends.

use std::cell::Cell;

thread_local! {
    static KEPT_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// To be called on a guest's thread before the guest runs: its stack will have `bytes`.
pub(crate) fn prepare(bytes: u64) {
    if KEPT_BYTES.get() != bytes {
        forget();
        KEPT_BYTES.set(bytes);
    }
}

/// Gives back this thread's stack.
pub(crate) fn forget() {
    wasmer::sys::vm::drain_stack_pool();
}
