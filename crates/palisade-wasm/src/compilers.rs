//! How many artifacts are compiled at once, and for how long.
//!
//! Compiling runs on a thread of its own. Whoever waits for it may give up, by time or by dropping the future; the thread
//! hears of it through its [`Attempt`], and keeps its place until it ends.

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use palisade_core::{Error, ErrorKind, Result, on_thread};
use rustix::process::{Signal, pidfd_send_signal};

use crate::structure::invalid;

/// Artifacts being compiled at once; compiling uses all cores by itself.
const COMPILERS_MAX: usize = 8;
/// Time to compile one artifact.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(120);

/// The compilers of one sandbox.
#[derive(Debug, Default)]
pub struct Compilers {
    running: Arc<AtomicUsize>,
}

/// One artifact's compilation, as its thread sees it.
#[derive(Debug, Clone, Default)]
pub struct Attempt(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    given_up: bool,
    process: Option<OwnedFd>,
}

impl Attempt {
    // Every statement leaves the state consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits for the result any more.
    pub fn is_given_up(&self) -> bool {
        self.lock().given_up
    }

    /// The work is done by the process behind `process`, which ends when the attempt is given up.
    pub(crate) fn is_done_by(&self, process: OwnedFd) {
        let mut state = self.lock();
        if state.given_up {
            kill(&process);
        }
        state.process = Some(process);
    }

    /// The process has ended, or is about to be waited for no more.
    pub(crate) fn is_done(&self) {
        self.lock().process = None;
    }
}

fn kill(process: impl AsFd) {
    // It may have ended by itself.
    let _ = pidfd_send_signal(process, Signal::KILL);
}

/// Gives an attempt up when it is dropped.
struct GiveUp(Attempt);

impl Drop for GiveUp {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.given_up = true;
        if let Some(process) = &state.process {
            kill(process);
        }
    }
}

/// A place among the compilers.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Compilers {
    /// Places taken.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Runs `compile` on a thread, for as long as somebody waits and `timeout` (of [`COMPILE_TIME_MAX`]) has not passed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when all places are taken, [`ErrorKind::InvalidArtifact`] when the time is up, and those of
    /// `compile`.
    pub async fn run<T: Send + 'static>(
        &self,
        timeout: impl Future<Output = ()>,
        compile: impl FnOnce(&Attempt) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let taken = self.running.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.running));
        if taken >= COMPILERS_MAX {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "load",
                format!("{COMPILERS_MAX} artifacts are being compiled already"),
            )
            .with_help("try again in a moment"));
        }
        let attempt = Attempt::default();
        let _give_up = GiveUp(attempt.clone());
        let compiled = on_thread("palisade-compile", move || {
            let compiled = compile(&attempt);
            // Before anybody hears of the end.
            drop(place);
            compiled
        });
        let compiled = compiled
            .map_err(|error| Error::new(ErrorKind::Io, "load", "no thread for the compiler").with_source(error))?;
        let (mut compiled, mut timeout) = (pin!(compiled), pin!(timeout));
        poll_fn(|context| {
            if let Poll::Ready(compiled) = compiled.as_mut().poll(context) {
                return Poll::Ready(compiled.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Internal, "load", "the compiler panicked on this artifact"))
                }));
            }
            timeout.as_mut().poll(context).map(|()| {
                let seconds = COMPILE_TIME_MAX.as_secs();
                Err(invalid(format!("the artifact takes longer than {seconds} s to compile")))
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::block_on;
    use std::sync::mpsc::channel;
    use std::task::{Context, Waker};

    #[test]
    fn places_are_bounded_and_given_back() {
        let compilers = Compilers::default();
        let (open, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let mut waiting: Vec<_> = (0..COMPILERS_MAX)
            .map(|_| {
                let gate = Arc::clone(&gate);
                Box::pin(compilers.run(std::future::pending(), move |_| {
                    let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                }))
            })
            .collect();
        let mut context = Context::from_waker(Waker::noop());
        waiting.iter_mut().for_each(|future| assert!(future.as_mut().poll(&mut context).is_pending()));
        let full = block_on(compilers.run(std::future::pending(), |_| Ok(())));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::Exhausted);
        drop(open);
        waiting.into_iter().for_each(|future| block_on(future).unwrap());
        block_on(compilers.run(std::future::pending(), |_| Ok(()))).unwrap();
    }

    #[test]
    fn who_gives_up_by_time_or_by_dropping_is_heard() {
        let compilers = Compilers::default();
        let (heard, hears) = channel();
        let until_given_up = |heard: std::sync::mpsc::Sender<()>| {
            move |attempt: &Attempt| {
                while !attempt.is_given_up() {
                    std::thread::yield_now();
                }
                heard.send(()).map_err(|_| Error::new(ErrorKind::Internal, "load", "nobody listens"))
            }
        };
        let late = block_on(compilers.run(std::future::ready(()), until_given_up(heard.clone())));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::InvalidArtifact);
        hears.recv().unwrap();
        let mut dropped = Box::pin(compilers.run(std::future::pending(), until_given_up(heard)));
        assert!(dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(dropped);
        hears.recv().unwrap();
    }

    #[test]
    fn a_panic_is_an_error() {
        let panicked =
            block_on(Compilers::default().run(std::future::pending(), |_| -> Result<()> { panic!("told to") }));
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Internal);
    }
}
