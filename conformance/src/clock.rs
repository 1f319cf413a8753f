//! Clocks for verdicts that do not depend on how busy the machine is.
//!
//! How long something takes is a question of the processor time it gets. Where eight others want each processor, what takes a
//! second takes nine. So whoever waits for something that must come waits for a third of its time by the wall, which nearly
//! always is enough; and then for as long as a thread beside needs to *use* the rest: it spins a little, rests, and counts of
//! each such round the share of a processor that it got. What is waited for could have had as much. What never comes is
//! noticed all the same, since every thread gets its share.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use palisade_core::on_thread;
use rustix::time::{ClockId, clock_gettime};

/// How long one look at the machine spins. Longer than a slice of the kernel's scheduler, which a thread that rested gets at
/// once.
const LOOK: Duration = Duration::from_millis(10);
/// How long it rests between two looks, so as not to take a processor from what is waited for.
const REST: Duration = Duration::from_millis(90);

/// CPU time in nanoseconds that this process spent on such looks.
static LOOKED: AtomicU64 = AtomicU64::new(0);

/// CPU time of this process, all its threads together, those that have ended among them; without what waiting itself used.
pub(crate) fn process_cpu_time() -> Duration {
    read(ClockId::ProcessCPUTime).saturating_sub(Duration::from_nanos(LOOKED.load(Ordering::Relaxed)))
}

/// CPU time of this thread.
pub(crate) fn thread_cpu_time() -> Duration {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Waits for what comes from `channel`, for at most `time` of a machine that has time for it. `None` when nothing came.
pub(crate) fn receive<T>(channel: &Receiver<T>, time: Duration) -> Option<Result<T, RecvError>> {
    let first = time / 3;
    come(channel, first).or_else(|| receive_patiently(channel, time - first))
}

/// As [`receive`], from the moment on at which the wall clock counts no more.
fn receive_patiently<T>(channel: &Receiver<T>, time: Duration) -> Option<Result<T, RecvError>> {
    let mut left = time;
    loop {
        let begun = Instant::now();
        let share = look(begun);
        if let Some(received) = come(channel, REST) {
            return Some(received);
        }
        let had = begun.elapsed().mul_f64(share);
        left = left.checked_sub(had).filter(|left| !left.is_zero())?;
    }
}

fn come<T>(channel: &Receiver<T>, time: Duration) -> Option<Result<T, RecvError>> {
    match channel.recv_timeout(time) {
        Ok(received) => Some(Ok(received)),
        Err(RecvTimeoutError::Disconnected) => Some(Err(RecvError)),
        Err(RecvTimeoutError::Timeout) => None,
    }
}

/// The share of a processor that a thread gets which wants one; more than 0 and at most 1.
fn look(begun: Instant) -> f64 {
    let before = thread_cpu_time();
    let used = loop {
        let used = thread_cpu_time().saturating_sub(before);
        if used >= LOOK {
            break used;
        }
        std::hint::spin_loop();
    };
    LOOKED.fetch_add(u64::try_from(used.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    (used.as_secs_f64() / begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0)
}

/// Drives `future`, in a runtime with timers, for at most `time` of a machine that has time for it. `None` when it did not end.
pub(crate) async fn within<R>(time: Duration, future: impl Future<Output = R>) -> Option<R> {
    let mut future = pin!(future);
    let first = time / 3;
    if let Ok(ended) = tokio::time::timeout(first, &mut future).await {
        return Some(ended);
    }
    // Hung up when this function is left.
    let (_hold, held) = channel::<()>();
    let rest = on_thread("conformance-clock", move || receive_patiently(&held, time - first).is_none());
    // Without a thread, the wall clock must do.
    let mut rest = pin!(async move {
        match rest {
            Ok(rest) => drop(rest.await),
            Err(_) => tokio::time::sleep(time - first).await,
        }
    });
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => rest.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// A thread that wants a processor all the time, to compare with.
#[derive(Debug)]
pub(crate) struct Spinner {
    stop: std::sync::mpsc::Sender<()>,
    used: std::thread::JoinHandle<Duration>,
}

impl Spinner {
    /// Starts it; `None` when there is no thread.
    pub(crate) fn start() -> Option<Spinner> {
        let (stop, stopped) = channel::<()>();
        let spin = move || {
            while let Err(std::sync::mpsc::TryRecvError::Empty) = stopped.try_recv() {
                std::hint::spin_loop();
            }
            thread_cpu_time()
        };
        let used = std::thread::Builder::new().name("conformance-spinner".to_owned()).spawn(spin).ok()?;
        Some(Spinner { stop, used })
    }

    /// Ends it: the CPU time that it got.
    pub(crate) fn stop(self) -> Duration {
        drop(self.stop);
        self.used.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<R>(future: impl Future<Output = R>) -> R {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn what_never_comes_is_noticed_and_not_before_its_time() {
        let time = Duration::from_millis(300);
        let begun = Instant::now();
        let (_sender, receiver) = channel::<()>();
        assert!(receive(&receiver, time).is_none());
        assert_eq!(block_on(within(time, std::future::pending::<()>())), None);
        // A share of a processor is one at most, so time passes no faster than by the wall.
        assert!(begun.elapsed() >= 2 * time);
    }

    #[test]
    fn what_comes_late_still_comes() {
        // Past the third that the wall clock counts.
        let time = Duration::from_secs(60);
        let (sender, receiver) = channel();
        let sent = std::thread::spawn(move || sender.send(7));
        assert_eq!(receive_patiently(&receiver, time), Some(Ok(7)));
        sent.join().unwrap().unwrap();
        assert!(receive(&receiver, time).is_some_and(|received| received.is_err()));
        // The wall clock's third is 200 ms.
        let late = async { tokio::time::sleep(Duration::from_millis(220)).await };
        assert_eq!(block_on(within(Duration::from_millis(600), late)), Some(()));
    }

    #[test]
    fn a_busy_machine_gets_more_time() {
        // More threads that want a processor than there are: none gets a whole one.
        let count = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        let spinners: Vec<_> = (0..count).filter_map(|_| Spinner::start()).collect();
        let (_sender, receiver) = channel::<()>();
        let (begun, time) = (Instant::now(), Duration::from_millis(600));
        assert!(receive_patiently(&receiver, time).is_none());
        let waited = begun.elapsed();
        let used: Duration = spinners.into_iter().map(Spinner::stop).sum();
        // None of them got a whole processor meanwhile, and neither would what is waited for.
        assert!(waited > time.mul_f64(1.3), "{waited:?}, in which they used {used:?}");
    }

    #[test]
    fn waiting_is_not_counted_as_work() {
        let before = (process_cpu_time(), LOOKED.load(Ordering::Relaxed));
        let (_sender, receiver) = channel::<()>();
        assert!(receive_patiently(&receiver, Duration::from_millis(200)).is_none());
        assert!(LOOKED.load(Ordering::Relaxed) > before.1);
        assert!(process_cpu_time() >= before.0);
    }
}
