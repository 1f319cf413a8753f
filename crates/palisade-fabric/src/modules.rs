//! Loaded modules, so that a plugin is compiled once for many tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_core::{Artifact, ArtifactHash, Module, Result, Sandbox};
use tokio::sync::{OnceCell, Semaphore};

/// Most loads at once: no more than the backends compile at once, which refuse the rest. Those beyond it wait in line, as
/// long as their tasks may, and cost no attempt.
const LOADS_MAX: usize = 8;

/// Modules by their artifact, a bounded number; beyond it, the one used longest ago goes. It lives on while instances of
/// it do.
#[derive(Debug)]
pub(crate) struct Modules {
    sandbox: Arc<dyn Sandbox>,
    modules_max: usize,
    loads: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_artifact: HashMap<ArtifactHash, Slot>,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    module: Arc<OnceCell<Arc<dyn Module>>>,
    last_use: u64,
}

impl Modules {
    pub(crate) fn new(sandbox: Arc<dyn Sandbox>, modules_max: usize) -> Modules {
        Modules { sandbox, modules_max: modules_max.max(1), loads: Semaphore::new(LOADS_MAX), kept: Mutex::default() }
    }

    /// The module of an artifact. Of several who want it at once, one loads it and the others wait; when that one is
    /// dropped or fails, the next one tries.
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::load`].
    pub(crate) async fn get(&self, artifact: &Artifact) -> Result<Arc<dyn Module>> {
        let cell = self.cell(artifact.hash());
        let load = || async {
            // Never closed.
            let _room = self.loads.acquire().await.ok();
            self.sandbox.load(artifact.clone()).await
        };
        cell.get_or_try_init(load).await.cloned()
    }

    fn cell(&self, artifact: ArtifactHash) -> Arc<OnceCell<Arc<dyn Module>>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let last_use = kept.uses;
        if let Some(slot) = kept.by_artifact.get_mut(&artifact) {
            slot.last_use = last_use;
            return Arc::clone(&slot.module);
        }
        if kept.by_artifact.len() >= self.modules_max {
            let oldest = kept.by_artifact.iter().min_by_key(|(_, slot)| slot.last_use).map(|(artifact, _)| *artifact);
            oldest.map(|oldest| kept.by_artifact.remove(&oldest));
        }
        let module = Arc::new(OnceCell::new());
        kept.by_artifact.insert(artifact, Slot { module: Arc::clone(&module), last_use });
        module
    }

    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
