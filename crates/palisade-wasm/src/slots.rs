//! The bound on how many instances of one sandbox are alive at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palisade_core::{Error, ErrorKind, Result};

/// The instances of one sandbox.
#[derive(Debug, Clone)]
pub struct Slots {
    max: u64,
    taken: Arc<AtomicU64>,
}

/// One instance's place, until it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicU64>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slots {
    /// At most `max` at once.
    pub fn new(max: u64) -> Slots {
        Slots { max, taken: Arc::default() }
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when all are taken.
    pub fn take(&self) -> Result<Slot> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        // Given back by its drop, whether it is handed out or not.
        let slot = Slot(Arc::clone(&self.taken));
        if taken >= self.max {
            let message = format!("all {} instances of this sandbox are in use", self.max);
            return Err(Error::new(ErrorKind::Exhausted, "instantiate", message)
                .with_help("drop instances, or open the backend with a larger `instances_max`"));
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_are_and_one_again_after_a_drop() {
        let slots = Slots::new(2);
        let (_one, two) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!(slots.take().unwrap_err().kind(), ErrorKind::Exhausted);
        drop(two);
        let _again = slots.take().unwrap();
        assert!(slots.take().is_err());
    }
}
