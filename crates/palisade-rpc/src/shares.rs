//! A bounded number of places that clients share.
//!
//! A client may have one more while it has fewer than are free (a dynamic threshold, as Choudhury and Hahne have it for buffers,
//! 1998): alone it has half of them at most, several have less each, and some are always left for one that has none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who is at the other end of a connection, as far as the system tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// A process of this machine.
    Process(i32),
    /// A machine.
    Machine(IpAddr),
    /// All of whom nothing is known.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Shares {
    places: Arc<Semaphore>,
    max: usize,
    held: Mutex<HashMap<Peer, usize>>,
}

/// A place that a client has for as long as this lives.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

impl Shares {
    pub(crate) fn new(max: usize) -> Arc<Shares> {
        let max = max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Arc::new(Shares { places: Arc::new(Semaphore::new(max)), max, held: Mutex::default() })
    }

    /// A place for a client, unless it has its share.
    pub(crate) fn take(self: &Arc<Self>, peer: Peer) -> Option<Share> {
        let mut held = self.held();
        let count = held.get(&peer).copied().unwrap_or_default();
        if count >= self.places.available_permits() {
            return None;
        }
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        held.insert(peer, count + 1);
        Some(Share { shares: Arc::clone(self), peer, _place: place })
    }

    /// Waits until nobody has a place.
    pub(crate) async fn all_given_back(&self) {
        // Never closed.
        let _ = self.places.acquire_many(self.max as u32).await;
    }

    // Every statement leaves the counts consistent, so a poisoned lock is safe to use again.
    fn held(&self) -> MutexGuard<'_, HashMap<Peer, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(count) = held.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_most_leaves_some() {
        let shares = Shares::new(16);
        let take = |process, count: usize| -> Vec<_> {
            (0..count).map_while(|_| shares.take(Peer::Process(process))).collect()
        };
        let greedy = take(1, 100);
        assert_eq!(greedy.len(), 8);
        let (second, third) = (take(2, 100), take(3, 100));
        assert_eq!((second.len(), third.len()), (4, 2));
        assert_eq!(take(4, 1).len(), 1, "there is always one for somebody new");
        drop(greedy);
        assert_eq!(take(4, 100).len(), 5);
        drop((second, third));
        assert!(shares.held().is_empty());
        assert_eq!(take(5, 100).len(), 8);
        assert_eq!(Shares::new(1).take(Peer::Unknown).map(|share| share.peer), Some(Peer::Unknown));
    }
}
