//! What guests can import: WASI preview 1, the functions of module `palisade`, and what the compiled-in limits call.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use palisade_core::TrapKind;
use palisade_wasi::{GuestMemory, Stop, TABLE_ENTRY_BYTES, reactor};
use wasmer::{Function, FunctionEnv, FunctionEnvMut, FunctionType, Store, Type};

use crate::guest::{Guest, Halt};
use crate::instrument::Reason;

/// An import that is provided.
pub(crate) struct Import {
    pub(crate) ty: FunctionType,
    /// Makes it for one store.
    pub(crate) make: fn(&mut Store, &FunctionEnv<Guest>) -> Function,
}

/// What guests can import, by module and name.
pub(crate) static IMPORTS: LazyLock<BTreeMap<(&'static str, &'static str), Import>> = LazyLock::new(|| {
    let mut imports = BTreeMap::new();
    add_wasi(&mut imports);
    add_reactor(&mut imports);
    imports
});

type Imports = BTreeMap<(&'static str, &'static str), Import>;
type Env<'a> = FunctionEnvMut<'a, Guest>;

/// Wasm's type of a parameter.
trait Parameter {
    const TYPE: Type;
}
impl Parameter for i32 {
    const TYPE: Type = Type::I32;
}
impl Parameter for u32 {
    const TYPE: Type = Type::I32;
}
impl Parameter for i64 {
    const TYPE: Type = Type::I64;
}

/// Generates [`add_wasi`] from the list of WASI functions.
macro_rules! wasi_glue {
    ($($module:literal {
        $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
    })*) => {
        fn add_wasi(imports: &mut Imports) {
            $($(
                imports.insert(
                    ($module, stringify!($name)),
                    Import {
                        ty: FunctionType::new(
                            vec![$(<$type as Parameter>::TYPE),*],
                            wasi_glue!(@results $kind),
                        ),
                        make: |store, env| wasi_glue!(@$kind store env $method ($($parameter: $type),*)),
                    },
                );
            )*)*
        }
    };
    (@results exit) => { vec![] };
    (@results $kind:ident) => { vec![Type::I32] };
    (@call $store:ident $env:ident $method:ident ($($parameter:ident: $type:ident),*)) => {
        Function::new_typed_with_env($store, $env, |mut env: Env<'_>, $($parameter: $type),*| -> Result<i32, Halt> {
            let errno = with_memory(&mut env, |memory, guest| {
                guest.wasi.$method(memory, &mut guest.streams, $($parameter),*)
            })?;
            Ok(i32::from(errno))
        })
    };
    (@exit $store:ident $env:ident $method:ident ($($parameter:ident: $type:ident),*)) => {
        Function::new_typed_with_env($store, $env, |mut env: Env<'_>, $($parameter: $type),*| -> Result<(), Halt> {
            with_memory(&mut env, |memory, guest| {
                guest.wasi.$method(memory, &mut guest.streams, $($parameter),*)
            })?;
            Ok(())
        })
    };
    (@wait $store:ident $env:ident $method:ident ($($parameter:ident: $type:ident),*)) => {
        Function::new_typed_with_env($store, $env, |mut env: Env<'_>, $($parameter: $type),*| -> Result<i32, Halt> {
            loop {
                let result = with_memory(&mut env, |memory, guest| {
                    guest.wasi.$method(memory, &mut guest.streams, $($parameter),*)
                });
                match result {
                    Ok(errno) => return Ok(i32::from(errno)),
                    Err(Stop::Wait(what)) => env.data_mut().wait(what)?,
                    Err(Stop::Yield) => env.data_mut().check()?,
                    Err(stop) => return Err(stop.into()),
                }
            }
        })
    };
}

palisade_wasi::for_each_wasi_function!(wasi_glue);

fn add_reactor(imports: &mut Imports) {
    const I: Type = Type::I32;
    let mut add = |name, parameters: usize, results: Vec<Type>, make| {
        let ty = FunctionType::new(vec![I; parameters], results);
        imports.insert((reactor::MODULE, name), Import { ty, make });
    };
    add("input_len", 0, vec![I], |store, env| {
        Function::new_typed_with_env(store, env, |env: Env<'_>| reactor::input_len(&env.data().streams))
    });
    add("input_read", 3, vec![I], |store, env| {
        Function::new_typed_with_env(store, env, |mut env: Env<'_>, offset: u32, ptr: u32, len: u32| {
            halting(with_memory(&mut env, |memory, guest| {
                reactor::input_read(memory, &mut guest.streams, offset, ptr, len)
            }))
        })
    });
    add("output_write", 2, vec![], |store, env| {
        Function::new_typed_with_env(store, env, |mut env: Env<'_>, ptr: u32, len: u32| {
            halting(with_memory(&mut env, |memory, guest| reactor::output_write(memory, &mut guest.streams, ptr, len)))
        })
    });
    add("error_write", 2, vec![], |store, env| {
        Function::new_typed_with_env(store, env, |mut env: Env<'_>, ptr: u32, len: u32| {
            halting(with_memory(&mut env, |memory, guest| reactor::error_write(memory, &mut guest.streams, ptr, len)))
        })
    });
    add("log", 3, vec![], |store, env| {
        Function::new_typed_with_env(store, env, |mut env: Env<'_>, level: u32, ptr: u32, len: u32| {
            halting(with_memory(&mut env, |memory, guest| reactor::log(memory, &mut guest.streams, level, ptr, len)))
        })
    });
    add("host_result_read", 3, vec![I], |store, env| {
        Function::new_typed_with_env(store, env, |mut env: Env<'_>, offset: u32, ptr: u32, len: u32| {
            halting(with_memory(&mut env, |memory, guest| guest.host.result_read(memory, offset, ptr, len)))
        })
    });
    add("host_call", 4, vec![Type::I64], |store, env| {
        Function::new_typed_with_env(
            store,
            env,
            |mut env: Env<'_>, name_ptr: u32, name_len: u32, ptr: u32, len: u32| -> Result<u64, Halt> {
                let invocation = with_memory(&mut env, |memory, guest| {
                    let room = guest.account.room();
                    guest.host.start(memory, room, name_ptr, name_len, ptr, len)
                })?;
                let reply = env.data_mut().wait_for_host(invocation)?;
                Ok(with_memory(&mut env, |_, guest| guest.host.finish(reply))?)
            },
        )
    });
}

/// Makes the function that the compiled-in limits call.
pub(crate) fn check(store: &mut Store, env: &FunctionEnv<Guest>) -> Function {
    Function::new_typed_with_env(store, env, |mut env: Env<'_>, reason: i32, amount: i64| -> Result<(), Halt> {
        let guest = env.data_mut();
        match Reason::from_guest(reason) {
            Some(Reason::MemoryBounds) => return Err(Halt::Trap(TrapKind::MemoryOutOfBounds)),
            Some(Reason::TableBounds) => return Err(Halt::Trap(TrapKind::TableOutOfBounds)),
            Some(Reason::TableGrows) => {
                guest.account.grow(amount.unsigned_abs().saturating_mul(TABLE_ENTRY_BYTES))?;
            }
            Some(Reason::Check) | None => {
                // SAFETY: the instance is running this very function, so its words exist; the guest, which alone writes
                // this one, waits.
                let fuel_left = guest.words.fuel().map_or(0, |fuel| unsafe { fuel.read() });
                guest.check_compiled(fuel_left)?;
            }
        }
        Ok(())
    })
}

/// The type of [`check`].
pub(crate) fn check_type() -> FunctionType {
    FunctionType::new(vec![Type::I32, Type::I64], vec![])
}

fn halting<R>(result: Result<R, Stop>) -> Result<R, Halt> {
    result.map_err(Halt::from)
}

/// Gives `work` the guest's memory and the host's data for it, and charges the guest for what the host took.
fn with_memory<R>(
    env: &mut Env<'_>,
    work: impl FnOnce(&mut GuestMemory<'_>, &mut Guest) -> Result<R, Stop>,
) -> Result<R, Stop> {
    let (guest, store) = env.data_and_store_mut();
    let (base, len) = match &guest.memory {
        Some(memory) => {
            let view = memory.view(&store);
            (view.data_ptr(), view.data_size() as usize)
        }
        None => (std::ptr::NonNull::dangling().as_ptr(), 0),
    };
    // SAFETY: the memory is `len` accessible bytes from `base` on for as long as nobody grows it. The guest, its only other
    // user, waits for this function, and nothing here runs or grows it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base, len) };
    let result = work(&mut GuestMemory::new(bytes), guest)?;
    guest.charge()?;
    Ok(result)
}
