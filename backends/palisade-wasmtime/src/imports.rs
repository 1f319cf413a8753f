//! What guests can import: WASI preview 1 and the functions of module `palisade`.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use palisade_core::Phase;
use palisade_wasi::reactor;
use palisade_wasi::{GuestMemory, Stop, Wait};
use wasmtime::{Caller, Engine, Linker, Store};

use crate::guest::{Guest, Halt};
use crate::watchdog::Watchdog;

/// Import module and name.
pub(crate) type ImportName = (String, String);

/// A linker with everything a guest can import, and the list of it.
pub(crate) fn linker(engine: &Engine, watchdog: &Arc<Watchdog>) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    add_wasi(&mut linker, watchdog)?;
    add_reactor(&mut linker)?;
    Ok(linker)
}

/// The names in a linker.
pub(crate) fn names(linker: &Linker<Guest>, store: &mut Store<Guest>) -> BTreeSet<ImportName> {
    linker.iter(store).map(|(module, name, _)| (module.to_owned(), name.to_owned())).collect()
}

/// Generates [`add_wasi`] from the list of WASI functions.
macro_rules! wasi_glue {
    ($($module:literal {
        $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
    })*) => {
        fn add_wasi(linker: &mut Linker<Guest>, watchdog: &Arc<Watchdog>) -> wasmtime::Result<()> {
            $($(wasi_glue!(@$kind linker watchdog $module $name $method ($($parameter: $type),*));)*)*
            Ok(())
        }
    };
    (@call $linker:ident $watchdog:ident $module:literal $name:ident $method:ident
        ($($parameter:ident: $type:ident),*)) => {
        $linker.func_wrap($module, stringify!($name), |mut caller: Caller<'_, Guest>, $($parameter: $type),*| {
            with_memory(&mut caller, |memory, guest| guest.wasi.$method(memory, &mut guest.streams, $($parameter),*))
                .map(i32::from)
        })?
    };
    (@exit $linker:ident $watchdog:ident $module:literal $name:ident $method:ident
        ($($parameter:ident: $type:ident),*)) => {
        $linker.func_wrap(
            $module,
            stringify!($name),
            |mut caller: Caller<'_, Guest>, $($parameter: $type),*| -> wasmtime::Result<()> {
                with_memory(&mut caller, |memory, guest| {
                    guest.wasi.$method(memory, &mut guest.streams, $($parameter),*).map(drop)
                })
            },
        )?
    };
    (@wait $linker:ident $watchdog:ident $module:literal $name:ident $method:ident
        ($($parameter:ident: $type:ident),*)) => {{
        let watchdog = Arc::clone($watchdog);
        $linker.func_wrap_async(
            $module,
            stringify!($name),
            move |mut caller: Caller<'_, Guest>, ($($parameter,)*): ($($type,)*)| {
                let watchdog = Arc::clone(&watchdog);
                Box::new(async move {
                    loop {
                        let result = try_with_memory(&mut caller, |memory, guest| {
                            guest.wasi.$method(memory, &mut guest.streams, $($parameter),*)
                        });
                        match result {
                            Ok(errno) => return Ok(i32::from(errno)),
                            Err(Stop::Wait(what)) => wait(&mut caller, &watchdog, what).await,
                            Err(Stop::Yield) => give_way(&mut caller).await?,
                            Err(stop) => return Err(wasmtime::Error::from(Halt(stop))),
                        }
                    }
                })
            },
        )?
    }};
}

palisade_wasi::for_each_wasi_function!(wasi_glue);

fn add_reactor(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    const M: &str = reactor::MODULE;
    linker.func_wrap(M, "input_len", |caller: Caller<'_, Guest>| reactor::input_len(&caller.data().streams))?;
    linker.func_wrap(M, "input_read", |mut caller: Caller<'_, Guest>, offset: u32, ptr: u32, len: u32| {
        with_memory(&mut caller, |memory, guest| reactor::input_read(memory, &mut guest.streams, offset, ptr, len))
    })?;
    linker.func_wrap(M, "output_write", |mut caller: Caller<'_, Guest>, ptr: u32, len: u32| {
        with_memory(&mut caller, |memory, guest| reactor::output_write(memory, &mut guest.streams, ptr, len))
    })?;
    linker.func_wrap(M, "error_write", |mut caller: Caller<'_, Guest>, ptr: u32, len: u32| {
        with_memory(&mut caller, |memory, guest| reactor::error_write(memory, &mut guest.streams, ptr, len))
    })?;
    linker.func_wrap(M, "log", |mut caller: Caller<'_, Guest>, level: u32, ptr: u32, len: u32| {
        with_memory(&mut caller, |memory, guest| reactor::log(memory, &mut guest.streams, level, ptr, len))
    })?;
    linker.func_wrap(M, "host_result_read", |mut caller: Caller<'_, Guest>, offset: u32, ptr: u32, len: u32| {
        with_memory(&mut caller, |memory, guest| guest.host.result_read(memory, offset, ptr, len))
    })?;
    linker.func_wrap_async(
        M,
        "host_call",
        |mut caller: Caller<'_, Guest>, (name_ptr, name_len, ptr, len): (u32, u32, u32, u32)| {
            Box::new(async move {
                let invocation = with_memory(&mut caller, |memory, guest| {
                    let room = guest.room();
                    guest.host.start(memory, room, name_ptr, name_len, ptr, len)
                })?;
                let meter = Arc::clone(&caller.data().meter);
                let phase = meter.phase();
                meter.set_phase(Phase::HostCall);
                let reply = invocation.await;
                meter.set_phase(phase);
                with_memory(&mut caller, |_, guest| guest.host.finish(reply))
            })
        },
    )?;
    Ok(())
}

/// Gives `work` the guest's memory and the host's data for it, and charges the guest for what the host took.
fn with_memory<R>(
    caller: &mut Caller<'_, Guest>,
    work: impl FnOnce(&mut GuestMemory<'_>, &mut Guest) -> Result<R, Stop>,
) -> wasmtime::Result<R> {
    try_with_memory(caller, work).map_err(|stop| Halt(stop).into())
}

fn try_with_memory<R>(
    caller: &mut Caller<'_, Guest>,
    work: impl FnOnce(&mut GuestMemory<'_>, &mut Guest) -> Result<R, Stop>,
) -> Result<R, Stop> {
    // Known once the instance is made; a start function runs before that.
    let memory = caller.data().memory.or_else(|| caller.get_export("memory").and_then(|export| export.into_memory()));
    let (bytes, guest) = match memory {
        Some(memory) => memory.data_and_store_mut(&mut *caller),
        None => (&mut [][..], caller.data_mut()),
    };
    let result = work(&mut GuestMemory::new(bytes), guest)?;
    guest.charge()?;
    Ok(result)
}

/// Between two parts of a long function: what a guest does at the end of its time slice.
async fn give_way(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    caller.data().check_slice().map_err(Halt)?;
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    Ok(())
}

/// Waits for what a WASI function has to wait for.
async fn wait(caller: &mut Caller<'_, Guest>, watchdog: &Watchdog, wait: Wait) {
    let meter = Arc::clone(&caller.data().meter);
    let phase = meter.phase();
    meter.set_phase(Phase::HostCall);
    let mut sleep = pin!(wait.until.map(|until| watchdog.sleep_until(until)));
    let mut work = pin!(if wait.work { caller.data_mut().wasi.take_work() } else { None });
    poll_fn(|context| {
        if sleep.as_mut().as_pin_mut().is_some_and(|sleep| sleep.poll(context).is_ready()) {
            return Poll::Ready(());
        }
        if work.as_mut().as_pin_mut().is_some_and(|work| work.poll(context).is_ready()) {
            return Poll::Ready(());
        }
        if wait.input && caller.data_mut().streams.poll_input(context).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    meter.set_phase(phase);
}
