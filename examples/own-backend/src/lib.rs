//! An example of a backend of your own: WebAssembly modules, interpreted by wasmi.
//!
//! A guest runs inside its call's future, in slices of fuel, so it can be stopped and others get their turn without a thread
//! for each. Where it waits, the import that it called gives way, the future waits, and the import is called again.
//!
//! * `lib.rs`: the sandbox, what it declares, and how it registers.
//! * `module.rs`: modules, and modules prepared for one policy.
//! * `imports.rs`: what guests can import.
//! * `guest.rs`: what the host keeps for one instance.
//! * `instance.rs`: one instance, and how a call is driven.

mod guest;
mod imports;
mod instance;
mod module;

use std::sync::Arc;
use std::time::Instant;

use async_io::Timer;
use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, BackendRegistration, BoxFuture, Capabilities, Error, ErrorKind, Module,
    Result, Sandbox,
};
use palisade_wasi::Fuse;
use palisade_wasm::compilers::{COMPILE_TIME_MAX, Compilers};
use palisade_wasm::slots::Slots;

use crate::module::WasmiModule;

palisade_core::register_backend! {
    BackendRegistration::new("wasmi", |options| Ok(Arc::new(Wasmi::open(options))))
        .summary("WebAssembly modules, interpreted by wasmi")
        .loads(&[ArtifactKind::Wasm])
}

/// Instances alive at once, unless the options say otherwise.
const INSTANCES_DEFAULT: u32 = 1000;
const MEMORY_BYTES_MAX: u64 = 4 << 30;
const STACK_BYTES_MIN: u64 = 64 << 10;
const STACK_BYTES_DEFAULT: u64 = 1 << 20;
const STACK_BYTES_MAX: u64 = 16 << 20;

/// The wasmi backend.
#[derive(Debug)]
pub struct Wasmi(Arc<Shared>);

/// What modules, prepared modules and instances of one sandbox share.
#[derive(Debug)]
struct Shared {
    capabilities: Capabilities,
    compilers: Compilers,
    slots: Slots,
    fuse: Fuse,
}

impl Wasmi {
    /// Opens the backend.
    pub fn open(options: &BackendOptions) -> Wasmi {
        let instances = u64::from(options.instances_max.unwrap_or(INSTANCES_DEFAULT).max(1));
        Wasmi(Arc::new(Shared {
            capabilities: capabilities(instances),
            compilers: Compilers::default(),
            slots: Slots::new(instances),
            fuse: Fuse::from(options.fuse),
        }))
    }
}

impl Sandbox for Wasmi {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        Box::pin(async move {
            if artifact.kind() != ArtifactKind::Wasm {
                let message = format!("backend `wasmi` loads WebAssembly modules, not a {}", artifact.kind());
                return Err(Error::new(ErrorKind::Unsupported, "load", message));
            }
            let timeout = async {
                Timer::at(Instant::now() + COMPILE_TIME_MAX).await;
            };
            let shared = Arc::clone(&self.0);
            let module = self.0.compilers.run(timeout, move |_| WasmiModule::new(shared, &artifact)).await?;
            Ok(Arc::new(module) as Arc<dyn Module>)
        })
    }
}

fn capabilities(instances: u64) -> Capabilities {
    let mut capabilities = palisade_wasm::capabilities("wasmi", "wasmi 2.0");
    capabilities.memory_bytes_max = MEMORY_BYTES_MAX;
    capabilities.stack_bytes_min = STACK_BYTES_MIN;
    capabilities.stack_bytes_max = STACK_BYTES_MAX;
    capabilities.instances_max = instances;
    capabilities.caveats = vec![
        "one bulk operation of a guest runs to its end before its limits are looked at".to_owned(),
        "a guest's stack is two, one for values and one for calls, each within the quota".to_owned(),
    ];
    capabilities
}
