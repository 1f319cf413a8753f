//! Starting CPython from the cache of compiled code, against the same engine with its own WASI and a cached module.
//!
//! `PALISADE_GUESTS=<folder> cargo bench -p palisade-benches --bench cpython`
//!
//! Each start is a whole one: a new sandbox (engine and pool), the module from the cache, the program to its end. The
//! baseline has the same protections: fuel, epochs, a memory limit and a pool.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use palisade::{Artifact, BackendOptions, Bytes, Call, DirectoryGrant, HostFunctions, Policy, PreparedExt};
use palisade_benches::baseline;
use palisade_benches::paired::{compare, report};
use wasmtime::{Linker, Module, Store, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

const SCRIPT: &str = "print(sum(i * i for i in range(1000)))";
const ANSWER: &[u8] = b"332833500\n";

fn main() {
    let Some(guests) = std::env::var_os("PALISADE_GUESTS").map(PathBuf::from) else {
        println!("NOT RUN: set PALISADE_GUESTS to the folder of guests to time CPython");
        return;
    };
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");
    let python = guests.join("python");
    let unpacked = Command::new("tar").arg("xzf").arg(python.join("lib.tar.gz")).arg("-C").arg(scratch.path()).status();
    assert!(unpacked.is_ok_and(|status| status.success()), "the standard library unpacks");
    let library = scratch.path().join("usr");
    let wasm = std::fs::read(python.join("python-3.11.3.wasm")).expect("CPython is there");

    let wasm = Bytes::from(wasm);
    let options = BackendOptions::new().cache(scratch.path().join("cache"), scratch.path().join("key/key"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let ours = |_| {
        runtime.block_on(start(&options, wasm.clone(), &library));
    };

    let engine = baseline::engine().expect("the baseline's engine starts");
    let compiled = scratch.path().join("python.cwasm");
    std::fs::write(&compiled, engine.precompile_module(&wasm).expect("CPython compiles")).expect("it can be written");
    let theirs = |_| baseline_start(&compiled, &library);

    runtime.block_on(start(&options, wasm.clone(), &library));
    println!("PHASES of one start: {:?}", runtime.block_on(start(&options, wasm.clone(), &library)));
    report("CPython from the cache, against Wasmtime with a cached module", &compare(9, 1, ours, theirs), 1.5);
}

async fn start(options: &BackendOptions, wasm: Bytes, library: &Path) -> Phases {
    let mut policy = Policy::default();
    policy.quota.fuel = Some(u64::MAX - 1);
    policy.grants.directories.push(DirectoryGrant::read_only(library, "/usr"));
    let mut last = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        now - std::mem::replace(&mut last, now)
    };
    let artifact = Artifact::wasm(wasm).named("python");
    let identify = lap();
    let sandbox = palisade::open("wasmtime", options).expect("the backend opens");
    let open = lap();
    let module = sandbox.load(artifact).await.expect("CPython loads");
    let load = lap();
    let prepared = module.prepare(policy, HostFunctions::new()).expect("the policy is admitted");
    let execution = prepared.run(Call::new().arguments(["-c", SCRIPT])).await.expect("the call is made");
    let run = lap();
    assert!(execution.outcome.is_success() && execution.output == ANSWER, "{}", execution.outcome);
    drop((prepared, module, sandbox));
    Phases { identify, open, load, run, drop: lap() }
}

/// Where the time of a start goes.
#[derive(Debug)]
#[expect(dead_code, reason = "printed by way of Debug")]
struct Phases {
    identify: Duration,
    open: Duration,
    load: Duration,
    run: Duration,
    drop: Duration,
}

/// One start of the baseline, with an engine of its own like ours.
fn baseline_start(compiled: &Path, library: &Path) {
    struct Host {
        wasi: WasiP1Ctx,
        limits: StoreLimits,
    }
    let engine = baseline::engine().expect("the baseline's engine starts");
    let mut linker = Linker::new(&engine);
    p1::add_to_linker_sync(&mut linker, |host: &mut Host| &mut host.wasi).expect("WASI links");
    // SAFETY: the file is the output of `Engine::precompile_module` of an engine with the same configuration, written by
    // this process into a directory of its own.
    let module = unsafe { Module::deserialize_file(&engine, compiled) }.expect("the compiled module loads");
    let output = MemoryOutputPipe::new(1 << 20);
    let wasi = WasiCtxBuilder::new()
        .args(&["python", "-c", SCRIPT])
        .stdout(output.clone())
        .preopened_dir(library, "/usr", FsPerms::ReadOnly)
        .expect("the library is there")
        .build_p1();
    let limits = StoreLimitsBuilder::new().memory_size(128 << 20).build();
    let mut store = Store::new(&engine, Host { wasi, limits });
    store.limiter(|host| &mut host.limits);
    store.set_fuel(u64::MAX).expect("the engine counts fuel");
    store.set_epoch_deadline(1);
    let instance = linker.instantiate(&mut store, &module).expect("CPython starts");
    let entry = instance.get_typed_func::<(), ()>(&mut store, "_start").expect("it is a command");
    match entry.call(&mut store, ()) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(error.downcast_ref::<wasmtime_wasi::I32Exit>().map(|exit| exit.0), Some(0), "{error:?}")
        }
    }
    drop(store);
    assert_eq!(output.contents(), ANSWER);
}
