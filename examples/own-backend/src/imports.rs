//! What guests can import: WASI preview 1, and the functions of module `palisade`.

use std::sync::LazyLock;
use std::time::Duration;

use palisade_wasi::{GuestMemory, Stop, Wait, reactor};
use wasmi::{Caller, FuncType, Linker, StoreContextMut, Val, ValType};

use crate::guest::Guest;

/// How long imports run one after the other before a guest's limits are looked at.
const TIME_SLICE: Duration = Duration::from_millis(1);

/// An import that is provided.
pub(crate) struct Import {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    parameters: &'static [ValType],
    results: &'static [ValType],
    run: Run,
}

/// Runs an import with its parameters. `None` for one without a result.
type Run = fn(&mut GuestMemory<'_>, &mut Guest, &[Val]) -> Result<Option<Val>, Stop>;

impl Import {
    pub(crate) fn ty(&self) -> FuncType {
        FuncType::new(self.parameters.iter().copied(), self.results.iter().copied())
    }
}

/// Why an import does not return to the guest now.
#[derive(Debug)]
pub(crate) struct Halt {
    pub(crate) stop: Stop,
    /// What is to be called again, where `stop` says so.
    pub(crate) again: Again,
}

/// A call of an import that is to be made again.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    index: usize,
    values: Vec<Val>,
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest stopped: {:?}", self.stop)
    }
}

impl wasmi::errors::HostError for Halt {}

impl Again {
    /// Makes the call, and charges the guest for what the host took.
    pub(crate) fn call<'a>(&self, store: impl Into<StoreContextMut<'a, Guest>>) -> Result<Option<Val>, Stop> {
        let mut store = store.into();
        let Import { run, .. } = &IMPORTS[self.index];
        let (result, guest) = match store.data().memory {
            Some(memory) => {
                let (bytes, guest) = memory.data_and_store_mut(store);
                (run(&mut GuestMemory::new(bytes), guest, &self.values), guest)
            }
            None => {
                let guest = store.data_mut();
                let result = run(&mut GuestMemory::new(&mut []), guest, &self.values)?;
                guest.charge()?;
                return Ok(result);
            }
        };
        let result = result?;
        guest.charge()?;
        Ok(result)
    }
}

/// Defines all imports for an engine.
pub(crate) fn linker(engine: &wasmi::Engine) -> Result<Linker<Guest>, wasmi::errors::LinkerError> {
    let mut linker = Linker::new(engine);
    for (index, import) in IMPORTS.iter().enumerate() {
        let function = move |mut caller: Caller<'_, Guest>, values: &[Val], results: &mut [Val]| {
            let again = Again { index, values: values.to_vec() };
            // A guest that calls nothing but imports uses little fuel, and much time.
            if caller.data().slice_began.elapsed() > TIME_SLICE {
                return Err(wasmi::Error::host(Halt { stop: Stop::Yield, again }));
            }
            match again.call(&mut caller) {
                Ok(result) => {
                    results.iter_mut().zip(result).for_each(|(to, result)| *to = result);
                    Ok(())
                }
                Err(stop) => Err(wasmi::Error::host(Halt { stop, again })),
            }
        };
        linker.func_new(import.module, import.name, import.ty(), function)?;
    }
    Ok(linker)
}

/// What guests can import.
pub(crate) static IMPORTS: LazyLock<Vec<Import>> = LazyLock::new(|| {
    let mut imports = wasi();
    imports.extend(reactor());
    imports
});

/// The import `module.name`.
pub(crate) fn find(module: &str, name: &str) -> Option<&'static Import> {
    IMPORTS.iter().find(|import| (import.module, import.name) == (module, name))
}

/// Wasm's type of a parameter, and how it is read.
trait Parameter {
    const TYPE: ValType;
    fn read(value: Option<&Val>) -> Self;
}

impl Parameter for i32 {
    const TYPE: ValType = ValType::I32;
    // The engine has checked the types.
    fn read(value: Option<&Val>) -> i32 {
        value.and_then(Val::i32).unwrap_or_default()
    }
}

impl Parameter for i64 {
    const TYPE: ValType = ValType::I64;
    fn read(value: Option<&Val>) -> i64 {
        value.and_then(Val::i64).unwrap_or_default()
    }
}

macro_rules! wasi_glue {
    ($($module:literal {
        $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
    })*) => {
        fn wasi() -> Vec<Import> {
            vec![$($(Import {
                module: $module,
                name: stringify!($name),
                parameters: &[$(<$type as Parameter>::TYPE),*],
                results: wasi_glue!(@results $kind),
                run: |memory, guest, values| {
                    let mut _values = values.iter();
                    $(let $parameter = <$type as Parameter>::read(_values.next());)*
                    let errno = guest.wasi.$method(memory, &mut guest.streams, $($parameter),*)?;
                    Ok(Some(Val::I32(errno.into())))
                },
            }),*),*]
        }
    };
    (@results exit) => { &[] };
    (@results $kind:ident) => { &[ValType::I32] };
}

palisade_wasi::for_each_wasi_function!(wasi_glue);

fn reactor() -> Vec<Import> {
    const I: ValType = ValType::I32;
    let import = |name, parameters, results, run| Import { module: reactor::MODULE, name, parameters, results, run };
    fn word(values: &[Val], index: usize) -> u32 {
        i32::read(values.get(index)).cast_unsigned()
    }
    fn some(result: u32) -> Option<Val> {
        Some(Val::I32(result.cast_signed()))
    }
    vec![
        import("input_len", &[], &[I], |_, guest, _| Ok(some(reactor::input_len(&guest.streams)))),
        import("input_read", &[I, I, I], &[I], |memory, guest, v| {
            reactor::input_read(memory, &mut guest.streams, word(v, 0), word(v, 1), word(v, 2)).map(some)
        }),
        import("output_write", &[I, I], &[], |memory, guest, v| {
            reactor::output_write(memory, &mut guest.streams, word(v, 0), word(v, 1)).map(|()| None)
        }),
        import("error_write", &[I, I], &[], |memory, guest, v| {
            reactor::error_write(memory, &mut guest.streams, word(v, 0), word(v, 1)).map(|()| None)
        }),
        import("log", &[I, I, I], &[], |memory, guest, v| {
            reactor::log(memory, &mut guest.streams, word(v, 0), word(v, 1), word(v, 2)).map(|()| None)
        }),
        import("host_result_read", &[I, I, I], &[I], |memory, guest, v| {
            guest.host.result_read(memory, word(v, 0), word(v, 1), word(v, 2)).map(some)
        }),
        import("host_call", &[I, I, I, I], &[ValType::I64], |memory, guest, v| {
            // Called once more when the function has replied.
            if let Some(reply) = guest.reply.take() {
                return Ok(Some(Val::I64(guest.host.finish(reply)?.cast_signed())));
            }
            let room = guest.account.room();
            let invocation = guest.host.start(memory, room, word(v, 0), word(v, 1), word(v, 2), word(v, 3))?;
            guest.invocation = Some(invocation);
            guest.charge()?;
            Err(Stop::Wait(Wait::default()))
        }),
    ]
}
