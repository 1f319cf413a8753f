//! A hand-written Wasmer embedding: the engine's own memories and stacks, a module that counts its fuel by code of its own
//! and looks at a word at loop heads, called on the caller's thread or on another one.

use std::sync::mpsc::{Receiver, Sender, channel};

use wasmer::sys::{Cranelift, EngineBuilder};
use wasmer::{Engine, Function, Instance, Module, RuntimeError, Store, TypedFunction, imports};

/// A module ready to be instantiated by hand.
#[derive(Debug)]
pub struct Embedding {
    // Before the engine, which holds its code.
    module: Module,
    engine: Engine,
}

impl Embedding {
    /// Compiles `wasm`, whose entry is called `_start` and which imports `host.check`.
    ///
    /// # Errors
    ///
    /// The compiler's, as text.
    pub fn new(wasm: &[u8]) -> Result<Embedding, String> {
        let engine = Engine::from(EngineBuilder::new(Cranelift::default()).engine());
        let module = Module::new(&engine, wasm).map_err(|error| error.to_string())?;
        Ok(Embedding { module, engine })
    }

    /// Makes a fresh instance, calls it and drops it.
    ///
    /// # Errors
    ///
    /// The guest's trap.
    pub fn fresh(&self) -> Result<(), RuntimeError> {
        self.warm()?.call()
    }

    /// An instance to be called again and again.
    ///
    /// # Errors
    ///
    /// The engine's.
    pub fn warm(&self) -> Result<Warm, RuntimeError> {
        let mut store = Store::new(self.engine.clone());
        let check = Function::new_typed(&mut store, || -> Result<(), RuntimeError> { Err(RuntimeError::new("over")) });
        let imports = imports! { "host" => { "check" => check } };
        let failed = |error: &dyn std::fmt::Display| RuntimeError::new(error.to_string());
        let instance = Instance::new(&mut store, &self.module, &imports).map_err(|error| failed(&error))?;
        let fuel = instance.exports.get_global("fuel").map_err(|error| failed(&error))?.clone();
        let function = instance.exports.get_typed_function(&store, "_start").map_err(|error| failed(&error))?;
        Ok(Warm { function, fuel, instance, store })
    }
}

/// A warm instance of an [`Embedding`].
#[derive(Debug)]
pub struct Warm {
    function: TypedFunction<(), ()>,
    fuel: wasmer::Global,
    #[expect(dead_code, reason = "holds the code the function runs")]
    instance: Instance,
    store: Store,
}

impl Warm {
    /// Calls it.
    ///
    /// # Errors
    ///
    /// The guest's trap.
    pub fn call(&mut self) -> Result<(), RuntimeError> {
        self.fuel.set(&mut self.store, wasmer::Value::I64(1_000_000_000))?;
        self.function.call_sys(&mut self.store)
    }
}

/// Runs what it is told on a thread of its own, as an embedding must that is to stop a guest from outside without blocking
/// its caller's executor.
#[derive(Debug)]
pub struct Thread {
    calls: Sender<()>,
    ended: Receiver<()>,
}

impl Thread {
    /// Starts it. `make` runs on the thread, and makes what runs at each call.
    pub fn start<F: FnMut()>(make: impl FnOnce() -> F + Send + 'static) -> Thread {
        let (calls, called) = channel();
        let (ends, ended) = channel();
        std::thread::spawn(move || {
            let mut work = make();
            for () in called {
                work();
                if ends.send(()).is_err() {
                    return;
                }
            }
        });
        Thread { calls, ended }
    }

    /// Runs it once and waits for it.
    ///
    /// # Panics
    ///
    /// When the thread panicked.
    pub fn call(&self) {
        self.calls.send(()).expect("the thread lives");
        self.ended.recv().expect("the thread lives");
    }
}
