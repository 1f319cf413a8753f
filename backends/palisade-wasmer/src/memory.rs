//! Linear memories in reused slots of address space.
//!
//! A slot is as much address space as an address and an offset can reach, of which only the guest's own part is
//! accessible: compiled code checks no bounds. Between instances the first part of a slot is zeroed by hand and stays
//! resident, the rest goes back to the kernel. That saves the mapping, the page faults and most of the kernel's lock, of
//! which a fresh memory mostly consists.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use palisade_wasi::Account;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use wasmer::sys::vm::{LinearMemory, VMMemory, VMMemoryDefinition};
use wasmer::{MemoryError, MemoryStyle, MemoryType, Pages};

/// Reserved for each memory: 4 GiB of addresses, 4 GiB of offsets, and what one access may reach beyond.
const SLOT_BYTES: usize = (8 << 30) + (64 << 10);
/// Part of each slot that stays resident and is zeroed by hand between instances.
const KEEP_RESIDENT_BYTES: usize = 128 << 10;
/// Slots kept for later; more are given back.
const FREE_SLOTS_MAX: usize = 256;
const WASM_PAGE: u64 = 1 << 16;
/// Pages that 32-bit addresses reach.
const PAGES_MAX: u32 = 1 << 16;

/// A reservation. What is not accessible faults.
#[derive(Debug)]
struct Slot {
    base: NonNull<u8>,
    /// From the start; always a multiple of the page size.
    accessible: usize,
}

// SAFETY: a slot is address space that it owns alone; nothing about it depends on a thread.
unsafe impl Send for Slot {}
// SAFETY: through a shared reference nothing of a slot is read or written.
unsafe impl Sync for Slot {}

impl Slot {
    fn reserve() -> std::io::Result<Slot> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), SLOT_BYTES, ProtFlags::empty(), flags)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| std::io::Error::other("mapped at address zero"))?;
        Ok(Slot { base, accessible: 0 })
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    /// Makes exactly the first `len` bytes accessible.
    fn resize(&mut self, len: usize) -> std::io::Result<()> {
        assert!(len <= PAGES_MAX as usize * WASM_PAGE as usize, "a memory is never larger than its addresses reach");
        let read_write = MprotectFlags::READ | MprotectFlags::WRITE;
        if len > self.accessible {
            // SAFETY: the range lies within this slot's own mapping.
            unsafe { rustix::mm::mprotect(self.at(self.accessible), len - self.accessible, read_write)? };
        } else if len < self.accessible {
            // SAFETY: as above; nobody holds a reference into a slot that is resized downwards, since only `Pool::take`
            // does that.
            unsafe { rustix::mm::mprotect(self.at(len), self.accessible - len, MprotectFlags::empty())? };
        }
        self.accessible = len;
        Ok(())
    }

    /// Makes all of it zero again.
    fn clear(&mut self) -> std::io::Result<()> {
        let by_hand = self.accessible.min(KEEP_RESIDENT_BYTES);
        // SAFETY: these bytes are accessible, and the memory they belonged to is gone.
        unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, by_hand) };
        if self.accessible > by_hand {
            let rest = self.accessible - by_hand;
            // SAFETY: the range lies within this slot's own private anonymous mapping, which reads as zero afterwards.
            unsafe { rustix::mm::madvise(self.at(by_hand), rest, Advice::LinuxDontNeed)? };
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping is this slot's own, and whoever used it is gone.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SLOT_BYTES) };
    }
}

/// Slots for the memories of all instances of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Slot>>,
}

impl Pool {
    /// Whether this process has room for a memory at all.
    pub(crate) fn probe(&self) -> std::io::Result<()> {
        let slot = Slot::reserve()?;
        self.lock().push(slot);
        Ok(())
    }

    // A list of slots is whole after every statement.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Slot>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot whose first `len` bytes are accessible and zero.
    fn take(&self, len: usize) -> std::io::Result<Slot> {
        let found = {
            let mut free = self.lock();
            // The same module again is the common case, and then there is nothing to change.
            match free.iter().rposition(|slot| slot.accessible == len) {
                Some(index) => Some(free.swap_remove(index)),
                None => free.pop(),
            }
        };
        let mut slot = match found {
            Some(slot) => slot,
            None => Slot::reserve()?,
        };
        slot.resize(len)?;
        Ok(slot)
    }

    fn put_back(&self, mut slot: Slot) {
        // A slot that cannot be cleared is unmapped.
        if slot.clear().is_ok() {
            let mut free = self.lock();
            if free.len() < FREE_SLOTS_MAX {
                free.push(slot);
            }
        }
    }
}

/// The linear memory of one instance.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Taken out only when dropped.
    slot: Option<Slot>,
    pool: Arc<Pool>,
    account: Arc<Account>,
    ty: MemoryType,
    style: MemoryStyle,
    /// Where compiled code reads base and length.
    definition: NonNull<VMMemoryDefinition>,
}

// SAFETY: the definition belongs to the same instance and moves between threads with it.
unsafe impl Send for Memory {}
// SAFETY: shared references only read the definition, which only `grow` changes, through an exclusive reference.
unsafe impl Sync for Memory {}

impl Memory {
    /// A memory of `ty`, charged to `account`.
    ///
    /// # Safety
    ///
    /// `definition` must be writable and stay so for as long as the memory lives.
    pub(crate) unsafe fn create(
        pool: &Arc<Pool>,
        account: &Arc<Account>,
        ty: MemoryType,
        style: MemoryStyle,
        mut definition: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        let len = u64::from(ty.minimum.0) * WASM_PAGE;
        account.grow(len).map_err(|_| MemoryError::Generic("the memory quota is used up".into()))?;
        let slot = pool.take(len as usize).map_err(|error| MemoryError::Region(error.to_string()))?;
        // SAFETY: writable, as the caller promises.
        let target = unsafe { definition.as_mut() };
        target.base = slot.base.as_ptr();
        target.current_length = len as usize;
        let (pool, account) = (Arc::clone(pool), Arc::clone(account));
        Ok(VMMemory(Box::new(Memory { slot: Some(slot), pool, account, ty, style, definition })))
    }

    fn pages(&self) -> u32 {
        let len = self.slot.as_ref().map_or(0, |slot| slot.accessible);
        (len as u64 / WASM_PAGE) as u32
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.put_back(slot);
        }
    }
}

impl LinearMemory for Memory {
    fn ty(&self) -> MemoryType {
        MemoryType { minimum: Pages(self.pages()), ..self.ty }
    }

    fn size(&self) -> Pages {
        Pages(self.pages())
    }

    fn style(&self) -> MemoryStyle {
        self.style
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let current = self.pages();
        let refused = || MemoryError::CouldNotGrow { current: Pages(current), attempted_delta: delta };
        let maximum = self.ty.maximum.map_or(PAGES_MAX, |maximum| maximum.0.min(PAGES_MAX));
        // Beyond the module's own maximum nothing is taken; the guest learns it by -1.
        let pages = current.checked_add(delta.0).filter(|pages| *pages <= maximum).ok_or_else(refused)?;
        // Over the quota it would learn the same, but the account remembers, and the guest is stopped next.
        self.account.grow(u64::from(delta.0) * WASM_PAGE).map_err(|_| refused())?;
        let len = (u64::from(pages) * WASM_PAGE) as usize;
        let slot = self.slot.as_mut().ok_or_else(refused)?;
        slot.resize(len).map_err(|error| MemoryError::Region(error.to_string()))?;
        // SAFETY: writable for as long as the memory lives, as promised to `create`; this is the guest's thread, and the
        // guest waits for this growth.
        unsafe { self.definition.as_mut().current_length = len };
        Ok(Pages(current))
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.definition
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(slot: &mut Slot) -> &mut [u8] {
        // SAFETY: the first `accessible` bytes are mapped, readable and writable, and borrowed for as long as the slot.
        unsafe { std::slice::from_raw_parts_mut(slot.base.as_ptr(), slot.accessible) }
    }

    #[test]
    fn a_reused_slot_is_zero_and_exactly_as_large_as_asked_for() {
        let pool = Pool::default();
        let len = 4 * KEEP_RESIDENT_BYTES;
        let mut slot = pool.take(len).unwrap();
        bytes(&mut slot).fill(0xaa);
        let base = slot.base;
        pool.put_back(slot);
        let mut again = pool.take(len).unwrap();
        assert_eq!(again.base, base, "the slot is reused");
        assert!(bytes(&mut again).iter().all(|byte| *byte == 0));
        bytes(&mut again).fill(0xbb);
        pool.put_back(again);
        let smaller = pool.take(1 << 16).unwrap();
        assert_eq!((smaller.base, smaller.accessible), (base, 1 << 16));
        pool.put_back(smaller);
        let mut larger = pool.take(2 * len).unwrap();
        assert_eq!(larger.base, base);
        assert!(bytes(&mut larger).iter().all(|byte| *byte == 0));
    }
}
