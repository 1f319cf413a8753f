//! Who loads next: a backend compiles only so many artifacts at once, and tenants share those places.
//!
//! A free place goes to whoever has the fewest loads under way, among those to whoever waits longest. So a tenant that brings
//! a hundred plugins delays another that brings one by no more than one load.

use std::sync::{Mutex, MutexGuard, PoisonError};

use palisade_core::{ArtifactHash, Tenant};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Loads {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Tenants that a load is under way for, one entry for each load.
    under_way: Vec<Tenant>,
    /// Loads that wait, the longest first.
    waiting: Vec<Waiting>,
    /// Who wants which artifact, one entry for each time.
    interests: Vec<(ArtifactHash, Tenant)>,
}

#[derive(Debug)]
struct Waiting {
    artifact: ArtifactHash,
    /// Hears for which tenant the place is.
    go: oneshot::Sender<Tenant>,
}

/// A tenant wants an artifact, for as long as this lives. Whoever has begun to wait for its load waits for this tenant too.
#[derive(Debug)]
pub(crate) struct Interest<'a> {
    loads: &'a Loads,
    artifact: ArtifactHash,
    tenant: Tenant,
}

/// A place to load one artifact.
#[derive(Debug)]
pub(crate) struct LoadPlace<'a> {
    loads: &'a Loads,
    tenant: Tenant,
}

impl Loads {
    pub(crate) fn new(places: usize) -> Loads {
        let state = State { free: places.max(1), under_way: Vec::new(), waiting: Vec::new(), interests: Vec::new() };
        Loads { state: Mutex::new(state) }
    }

    /// Notes that `tenant` wants `artifact`.
    pub(crate) fn interest(&self, artifact: ArtifactHash, tenant: &Tenant) -> Interest<'_> {
        let mut state = self.lock();
        state.interests.push((artifact, tenant.clone()));
        state.give_out();
        Interest { loads: self, artifact, tenant: tenant.clone() }
    }

    /// Waits for a place to load what somebody has an [interest](Loads::interest) in.
    pub(crate) async fn place(&self, artifact: ArtifactHash) -> Option<LoadPlace<'_>> {
        let (go, gone) = oneshot::channel();
        {
            let mut state = self.lock();
            state.waiting.push(Waiting { artifact, go });
            state.give_out();
        }
        let mut pending = Pending { loads: self, gone };
        // Never closed while this waits for it.
        let tenant = (&mut pending.gone).await.ok()?;
        Some(LoadPlace { loads: self, tenant })
    }

    // Every statement leaves the state consistent, so a poisoned lock is safe to use again.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, tenant: &Tenant) {
        let mut state = self.lock();
        state.free += 1;
        if let Some(at) = state.under_way.iter().position(|other| other == tenant) {
            state.under_way.swap_remove(at);
        }
        state.give_out();
    }
}

/// Waits for a place; one that comes when nobody waits any more goes back.
struct Pending<'a> {
    loads: &'a Loads,
    gone: oneshot::Receiver<Tenant>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.gone.close();
        if let Ok(tenant) = self.gone.try_recv() {
            self.loads.give_back(&tenant);
        }
    }
}

impl State {
    fn give_out(&mut self) {
        self.waiting.retain(|waiting| !waiting.go.is_closed());
        while self.free > 0 {
            let Some((at, tenant)) = self.next() else { return };
            let waiting = self.waiting.remove(at);
            if waiting.go.send(tenant.clone()).is_ok() {
                self.free -= 1;
                self.under_way.push(tenant);
            }
        }
    }

    /// The load whose turn it is, and for whom.
    fn next(&self) -> Option<(usize, Tenant)> {
        let under_way = |tenant: &Tenant| self.under_way.iter().filter(|other| *other == tenant).count();
        let for_whom = self.waiting.iter().enumerate().filter_map(|(at, waiting)| {
            let interests = self.interests.iter().filter(|(artifact, _)| *artifact == waiting.artifact);
            let (count, tenant) =
                interests.map(|(_, tenant)| (under_way(tenant), tenant)).min_by_key(|(count, _)| *count)?;
            Some((count, at, tenant))
        });
        for_whom.min_by_key(|(count, at, _)| (*count, *at)).map(|(_, at, tenant)| (at, tenant.clone()))
    }
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        let mut state = self.loads.lock();
        let same = |(artifact, tenant): &(ArtifactHash, Tenant)| *artifact == self.artifact && *tenant == self.tenant;
        if let Some(at) = state.interests.iter().position(same) {
            state.interests.swap_remove(at);
        }
    }
}

impl Drop for LoadPlace<'_> {
    fn drop(&mut self) {
        self.loads.give_back(&self.tenant);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::Poll;

    use palisade_core::{BoxFuture, block_on};
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant(name.to_owned())
    }

    fn artifact(number: usize) -> ArtifactHash {
        ArtifactHash::of(&number.to_le_bytes())
    }

    /// Whether it has its place by now.
    fn poll<'a>(waiting: &mut BoxFuture<'a, Option<LoadPlace<'a>>>) -> Option<LoadPlace<'a>> {
        let poll = poll_fn(|context| Poll::Ready(Pin::new(&mut *waiting).poll(context)));
        match block_on(poll) {
            Poll::Ready(place) => Some(place.expect("nothing is closed")),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_tenant_with_many_loads_delays_another_by_one() {
        let loads = Loads::new(2);
        let (greedy, modest) = (tenant("greedy"), tenant("modest"));
        let interests: Vec<_> = (0..100).map(|number| loads.interest(artifact(number), &greedy)).collect();
        let mut waiting: Vec<_> =
            (0..100).map(|number| Box::pin(loads.place(artifact(number))) as BoxFuture<'_, _>).collect();
        let mut placed: Vec<_> = waiting.iter_mut().map(poll).collect();
        let count = |placed: &[Option<LoadPlace<'_>>]| placed.iter().filter(|place| place.is_some()).count();
        assert_eq!(count(&placed), 2, "as many as there are places");
        let _wish = loads.interest(artifact(200), &modest);
        let mut modest_waits: BoxFuture<'_, _> = Box::pin(loads.place(artifact(200)));
        assert!(poll(&mut modest_waits).is_none());
        placed[0] = None;
        let place = poll(&mut modest_waits).expect("the next place is whose who has none");
        // Somebody else's artifact that is far behind in line, wanted by the modest one as well.
        drop(place);
        let third = poll(&mut waiting[2]).expect("nobody else waits now");
        let _also = loads.interest(artifact(99), &modest);
        placed[1] = None;
        assert!(poll(&mut waiting[3]).is_none());
        let last = poll(&mut waiting[99]).expect("it is for the modest one");
        assert_eq!((&third.tenant, &last.tenant), (&greedy, &modest));
        drop((third, last, placed, waiting, modest_waits, interests));
    }

    proptest! {
        /// Whatever is wanted, begun, given up and done: no place is lost, none is given twice, and while one is free nobody
        /// waits.
        #[test]
        fn places_are_neither_lost_nor_made(
            places in 1..4usize,
            steps in prop::collection::vec((0..3u8, 0..12usize, 0..4usize), 1..100),
        ) {
            let loads = Loads::new(places);
            let mut waiting: Vec<(Interest<'_>, BoxFuture<'_, Option<LoadPlace<'_>>>)> = Vec::new();
            let mut held = Vec::new();
            for (what, number, of) in steps {
                match what {
                    0 => {
                        let interest = loads.interest(artifact(number), &tenant(&of.to_string()));
                        waiting.push((interest, Box::pin(loads.place(artifact(number)))));
                    }
                    1 if !waiting.is_empty() => drop(waiting.remove(number % waiting.len())),
                    2 if !held.is_empty() => drop(held.remove(number % held.len())),
                    _ => {}
                }
                let mut at = 0;
                while at < waiting.len() {
                    match poll(&mut waiting[at].1) {
                        Some(place) => {
                            held.push((place, waiting.remove(at).0));
                        }
                        None => at += 1,
                    }
                }
                prop_assert!(held.len() <= places);
                prop_assert!(waiting.is_empty() || held.len() == places, "{} wait", waiting.len());
            }
            drop((waiting, held));
            let state = loads.lock();
            prop_assert_eq!(
                (state.free, state.under_way.len(), state.interests.len()),
                (places, 0, 0)
            );
        }
    }
}
