//! Loaded modules, so that a plugin is compiled once for many tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_core::{Artifact, ArtifactHash, Module, Result, Sandbox, Tenant};
use tokio::sync::OnceCell;

use crate::loads::Loads;

/// Most loads at once: no more than the backends compile at once, which refuse the rest. Those beyond it wait in line, as
/// long as their tasks may, and cost no attempt.
const LOADS_MAX: usize = 8;

/// Modules by their artifact, a bounded number; beyond it, of the tenant that brought most, the one used longest ago goes. It
/// lives on while instances of it do.
#[derive(Debug)]
pub(crate) struct Modules {
    sandbox: Arc<dyn Sandbox>,
    modules_max: usize,
    loads: Loads,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_artifact: HashMap<ArtifactHash, Slot>,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    /// Who wanted it first.
    tenant: Tenant,
    module: Arc<OnceCell<Arc<dyn Module>>>,
    last_use: u64,
}

impl Modules {
    pub(crate) fn new(sandbox: Arc<dyn Sandbox>, modules_max: usize) -> Modules {
        Modules { sandbox, modules_max: modules_max.max(1), loads: Loads::new(LOADS_MAX), kept: Mutex::default() }
    }

    /// The module of an artifact, for a tenant. Of several who want it at once, one loads it and the others wait; when that
    /// one is dropped or fails, the next one tries.
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::load`].
    pub(crate) async fn get(&self, artifact: &Artifact, tenant: &Tenant) -> Result<Arc<dyn Module>> {
        let cell = self.cell(artifact.hash(), tenant);
        if let Some(module) = cell.get() {
            return Ok(Arc::clone(module));
        }
        let _interest = self.loads.interest(artifact.hash(), tenant);
        let load = || async {
            let _place = self.loads.place(artifact.hash()).await;
            self.sandbox.load(artifact.clone()).await
        };
        let module = cell.get_or_try_init(load).await.cloned();
        if module.is_err() {
            self.forget(artifact.hash(), &cell);
        }
        module
    }

    fn cell(&self, artifact: ArtifactHash, tenant: &Tenant) -> Arc<OnceCell<Arc<dyn Module>>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let last_use = kept.uses;
        if let Some(slot) = kept.by_artifact.get_mut(&artifact) {
            slot.last_use = last_use;
            return Arc::clone(&slot.module);
        }
        if kept.by_artifact.len() >= self.modules_max {
            let surplus = kept.surplus();
            surplus.map(|surplus| kept.by_artifact.remove(&surplus));
        }
        let module = Arc::new(OnceCell::new());
        let slot = Slot { tenant: tenant.clone(), module: Arc::clone(&module), last_use };
        kept.by_artifact.insert(artifact, slot);
        module
    }

    /// What could not be loaded takes no room, unless somebody tries again already.
    fn forget(&self, artifact: ArtifactHash, cell: &Arc<OnceCell<Arc<dyn Module>>>) {
        let mut kept = self.lock();
        let is_same = kept.by_artifact.get(&artifact).is_some_and(|slot| Arc::ptr_eq(&slot.module, cell));
        // The list's and the caller's own.
        if is_same && Arc::strong_count(cell) <= 2 && !cell.initialized() {
            kept.by_artifact.remove(&artifact);
        }
    }

    // Every statement leaves the state consistent, so a poisoned lock is safe to use again.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Of the tenant with most modules, the one used longest ago.
    fn surplus(&self) -> Option<ArtifactHash> {
        let mut counts: HashMap<&Tenant, usize> = HashMap::new();
        self.by_artifact.values().for_each(|slot| *counts.entry(&slot.tenant).or_default() += 1);
        let most = counts.values().max().copied()?;
        let surplus = self.by_artifact.iter().filter(|(_, slot)| counts[&slot.tenant] == most);
        surplus.min_by_key(|(_, slot)| slot.last_use).map(|(artifact, _)| *artifact)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use palisade_core::{ArtifactKind, BoxFuture, Capabilities, Error, ErrorKind, block_on};
    use palisade_fake::Fake;

    use super::*;

    /// Counts loads, and refuses artifacts that do not begin as they should.
    #[derive(Debug)]
    struct Counting(Fake, AtomicUsize);

    impl Sandbox for Counting {
        fn capabilities(&self) -> &Capabilities {
            self.0.capabilities()
        }

        fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            if artifact.bytes().first() == Some(&b'!') {
                return Box::pin(async { Err(Error::new(ErrorKind::InvalidArtifact, "load", "broken")) });
            }
            self.0.load(artifact)
        }
    }

    fn artifact(number: u8) -> Artifact {
        // A custom section with another text makes another artifact of the same program.
        Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &[0, 5, 4], b"echo", &[0, 2, 1, number]].concat())
    }

    #[test]
    fn a_tenant_with_many_plugins_pushes_out_its_own_and_what_is_broken_nobodys() {
        let backend = Arc::new(Counting(Fake::new(None), AtomicUsize::new(0)));
        let modules = Modules::new(Arc::clone(&backend) as _, 8);
        let [greedy, modest] = ["greedy", "modest"].map(|name| Tenant(name.to_owned()));
        let get = |number, tenant| block_on(modules.get(&artifact(number), tenant)).unwrap();
        drop(get(0, &modest));
        (1..100).for_each(|number| drop(get(number, &greedy)));
        for number in 0..100 {
            let broken = Artifact::new(ArtifactKind::Wasm, vec![b'!', number]);
            assert_eq!(block_on(modules.get(&broken, &modest)).unwrap_err().kind(), ErrorKind::InvalidArtifact);
        }
        let loads = || backend.1.load(Ordering::Relaxed);
        assert_eq!(loads(), 200);
        drop(get(0, &modest));
        drop(get(99, &greedy));
        assert_eq!(loads(), 200, "what the modest one brought is there, and the greedy one's latest");
        drop(get(1, &greedy));
        assert_eq!(loads(), 201);
    }
}
