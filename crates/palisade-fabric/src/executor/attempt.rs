//! One attempt of a task, from its lease to what there is to report.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    Call, CancelToken, Completion, Error, ErrorKind, Execution, Lease, Outcome, Phase, Report, Resource, Result,
    TraceContext, Usage,
};
use tracing::Instrument;

use super::{AdmitTask, Order, PATIENCE, Shared, ordered};
use crate::InstanceMode;
use crate::agent::{Agent, AgentPermit, Begin, name as outcome_name};
use crate::figures::{Notes, quota_used};
use crate::prepared::PreparedLine;
use crate::trace::AttemptTrace;

/// What all steps of an attempt need.
struct Attempt<'a> {
    shared: &'a Shared,
    lease: &'a Lease,
    token: CancelToken,
    begun: Instant,
    /// Where the task is, for the outcome of a deadline. In the order of [`PHASES`].
    phase: AtomicU8,
    notes: Notes,
}

const PHASES: [Phase; 5] = [Phase::Queued, Phase::Loading, Phase::Starting, Phase::Running, Phase::Teardown];

/// Why a task is told to end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    Deadline,
    /// Cancelled, or leased to somebody else: nobody wants to hear of it.
    Unwanted,
    /// The executor ends.
    Shutdown,
}

/// Runs one task to its completion, whatever happens. Gives what there is to report.
pub(super) async fn run(
    shared: &Shared,
    lease: Lease,
    turn: Option<AgentPermit>,
    now: Instant,
) -> Option<(Report, Notes)> {
    let (task, fence) = (lease.task.id, lease.fence);
    let begun = match begin(shared, &lease, turn, now) {
        Ok(Some(begun)) => Ok(begun),
        Ok(None) => {
            // A failure here is harmless: the lease expires, and the task is retried.
            let _ = shared.scheduler.release(task, fence).await;
            return None;
        }
        Err(completion) => Err(completion),
    };
    let trace = AttemptTrace::open(&lease);
    let attempt = Attempt {
        shared,
        lease: &lease,
        token: CancelToken::new(),
        begun: now,
        phase: AtomicU8::new(0),
        notes: Notes::default(),
    };
    let completion = {
        let work = attempt.work(begun, trace.context);
        let mut work = pin!(guarded(work).instrument(trace.span.clone()));
        // Most tasks of a quick guest are done at once, and need nobody to watch them.
        match std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(completion) => Ok(completion),
            // Boxed, so that those who need none of its timers do not make room for them.
            Poll::Pending => Box::pin(attempt.supervise(work)).await,
        }
    };
    match completion {
        Ok(completion) => {
            trace.span.record("outcome", outcome_name(&completion));
            trace.span.in_scope(|| tracing::debug!("the attempt ended"));
            Some((Report { task, fence, completion }, attempt.notes))
        }
        Err(Stop::Shutdown) => {
            trace.span.record("outcome", "released");
            // A failure here is harmless: the lease expires, and the task is retried.
            let _ = shared.scheduler.release(task, fence).await;
            None
        }
        Err(Stop::Unwanted | Stop::Deadline) => {
            trace.span.record("outcome", "unwanted");
            None
        }
    }
}

impl Attempt<'_> {
    fn enter(&self, phase: Phase) {
        let number = PHASES.iter().position(|known| *known == phase).unwrap_or_default();
        self.phase.store(number as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed)) % PHASES.len()]
    }

    /// Drives `work`, renews the lease, and stops the guest when it must.
    async fn supervise(&self, mut work: Pin<&mut impl Future<Output = Completion>>) -> Result<Completion, Stop> {
        let (task, fence) = (self.lease.task.id, self.lease.fence);
        let shared = self.shared;
        let mut ended = shared.scheduler.wait(task);
        let mut watched = true;
        let mut order = shared.order.subscribe();
        let deadline = self.lease.task.deadline;
        let left = deadline.map(|deadline| deadline.duration_since(SystemTime::now()).unwrap_or_default());
        let mut until_deadline = pin!(tokio::time::sleep(left.unwrap_or(Duration::MAX)));
        let lease_time = shared.options.lease_time;
        let mut renewal = pin!(tokio::time::sleep(until_renewal(self.lease.expires_at, lease_time)));
        let stop = loop {
            tokio::select! {
                biased;
                completion = &mut work => return Ok(completion),
                waited = &mut ended, if watched => match waited {
                    // The scheduler has no room for now, which is no reason to stop: there may be some at the end.
                    Err(error) if error.kind() == ErrorKind::Exhausted => watched = false,
                    // Cancelled, or a failing scheduler: then the lease cannot be kept either.
                    _ => break Stop::Unwanted,
                },
                () = &mut until_deadline, if deadline.is_some() => break Stop::Deadline,
                () = ordered(&mut order, Order::Stop) => break Stop::Shutdown,
                () = &mut renewal => {
                    // Another way round while the scheduler fails, as long as the lease may last.
                    let next = match shared.scheduler.renew(task, fence, lease_time).await {
                        Ok(expires_at) => until_renewal(expires_at, lease_time),
                        Err(error) if error.kind() == ErrorKind::Stale => break Stop::Unwanted,
                        Err(_) => (lease_time / 3).clamp(RENEWAL_MIN, PATIENCE.1),
                    };
                    renewal.as_mut().reset(tokio::time::Instant::now() + next);
                    if !watched {
                        (ended, watched) = (shared.scheduler.wait(task), true);
                    }
                }
            }
        };
        let phase = self.phase();
        let told = Instant::now();
        self.token.cancel();
        let last = tokio::time::timeout(shared.options.stop_grace, &mut work).await;
        if stop != Stop::Deadline {
            shared.metrics.killed(told.elapsed());
            return Err(stop);
        }
        let usage = match &last {
            // The guest ended by itself before it heard.
            Ok(Completion::Executed(execution)) if !matches!(execution.outcome, Outcome::Cancelled { .. }) => {
                return last.map_err(|_| stop);
            }
            Ok(Completion::Executed(execution)) => execution.usage,
            Ok(Completion::HostError { .. }) | Err(_) => Usage::default(),
        };
        // The guest's own word on where it was is finer.
        let phase = match last {
            Ok(Completion::Executed(execution)) => match execution.outcome {
                Outcome::Cancelled { phase } => phase,
                _ => phase,
            },
            _ => phase,
        };
        Ok(Completion::Executed(Box::new(Execution::new(past_deadline(self.lease, phase), usage))))
    }

    /// Runs a task that its agent began, and counts what became of it.
    async fn work(&self, begun: Result<Begun, Completion>, trace: Option<Arc<TraceContext>>) -> Completion {
        let mut begun = match begun {
            Ok(begun) => begun,
            Err(completion) => return completion,
        };
        let line = begun.line.take();
        let agent = &begun.turn.agent;
        let (completion, failed) = match self.call(agent, line, trace).await {
            Ok(execution) => {
                let failed = is_failure(&execution.outcome, agent.template.instances);
                (Completion::Executed(Box::new(execution)), failed)
            }
            Err(Ended::Cancelled) => (cancelled(self.phase()), false),
            Err(Ended::Error(error)) => (host_error(&error), false),
            Err(Ended::Broken(error)) => (host_error(&error), true),
        };
        self.enter(Phase::Teardown);
        begun.end(&completion, failed);
        completion
    }

    /// What the agent has prepared for the task's policy, or prepares now.
    async fn prepare(&self, agent: &Agent) -> Result<Arc<PreparedLine>, Ended> {
        let (shared, task) = (self.shared, &self.lease.task);
        let module = shared.modules.get(&agent.template.artifact, &task.tenant);
        let module = self.unless_cancelled(module).await?.map_err(|error| broken(agent, error))?;
        // Refused where the task asks for too much, which is no fault of the agent.
        let line = self.unless_cancelled(agent.prepare(module, task, &shared.weights)).await??;
        shared.bound_lines();
        Ok(line)
    }

    /// Calls the guest, in an instance that the agent kept or in a new one.
    async fn call(
        &self,
        agent: &Agent,
        line: Option<Arc<PreparedLine>>,
        trace: Option<Arc<TraceContext>>,
    ) -> Result<Execution, Ended> {
        let kept = agent.template.instances == InstanceMode::Kept;
        self.enter(Phase::Loading);
        let line = match line {
            Some(line) => line,
            None => self.prepare(agent).await?,
        };
        self.enter(Phase::Starting);
        let idle = kept.then(|| line.take()).flatten();
        let was_kept = idle.is_some();
        let mut instance = match idle {
            Some(instance) => instance,
            None => {
                let made = self.unless_cancelled(line.prepared.instantiate()).await?;
                made.map_err(|error| broken(agent, error))?
            }
        };
        self.enter(Phase::Running);
        let task = &self.lease.task;
        let mut call = Call::new()
            .entry(task.entry.clone())
            .arguments(task.arguments.iter().cloned())
            .input(task.input.clone())
            .cancel(self.token.clone());
        call.trace = trace;
        let _ = self.notes.started.set((self.begun.elapsed(), was_kept));
        // From here on the guest's call hears of the token itself, and says what it took.
        let execution = match instance.call(call).await {
            Ok(execution) => execution,
            // Asked for what there is not, by the task; no guest code ran, and the instance is as it was.
            Err(error) if !matches!(error.kind(), ErrorKind::Stale | ErrorKind::Internal) => {
                if kept {
                    line.give_back(instance);
                }
                return Err(error.into());
            }
            Err(error) => return Err(broken(agent, error)),
        };
        if let Some(used) = quota_used(&line.prepared.policy().quota, &execution.usage) {
            let _ = self.notes.quota_used.set(used);
        }
        if kept && execution.outcome.leaves_instance_usable() {
            line.give_back(instance);
        }
        Ok(execution)
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            result = work => Ok(result),
            () = self.token.cancelled() => Err(Ended::Cancelled),
        }
    }
}

/// Soonest that a lease is renewed again.
const RENEWAL_MIN: Duration = Duration::from_millis(1);

/// How long to wait before a lease is renewed: a third of what the scheduler granted, which may be less than was asked for.
fn until_renewal(expires_at: SystemTime, lease_time: Duration) -> Duration {
    // Where the clocks disagree, what was asked for, but no long time.
    let granted = expires_at.duration_since(SystemTime::now()).unwrap_or(Duration::from_secs(1));
    (granted.min(lease_time) / 3).max(RENEWAL_MIN)
}

/// The outcome of a task whose deadline passed, counted from its submission, as the scheduler does.
fn past_deadline(lease: &Lease, phase: Phase) -> Outcome {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let since = |time: SystemTime| nanos(time.duration_since(lease.submitted_at).unwrap_or_default());
    let limit = since(lease.task.deadline.unwrap_or(lease.submitted_at));
    Outcome::QuotaExceeded { resource: Resource::WallTime, limit, used: since(SystemTime::now()).max(limit + 1), phase }
}

/// `work`, with a panic of it as its outcome.
async fn guarded(work: impl Future<Output = Completion>) -> Completion {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned());
            let outcome = Outcome::Crashed { message: format!("a panic of the host: {text}") };
            Poll::Ready(Completion::Executed(Box::new(Execution::new(outcome, Usage::default()))))
        })
    })
    .await
}

/// Finds the agent of a task and begins it there. Gives `None` when the agent has no room for it or rests.
fn begin(shared: &Shared, lease: &Lease, turn: Option<AgentPermit>, now: Instant) -> Result<Option<Begun>, Completion> {
    let agent = shared.agents().get(&lease.task.plugin).cloned();
    let Some(agent) = agent else {
        let message = format!("no agent here runs plugin {}", lease.task.plugin);
        return Err(Completion::HostError { message, retryable: false });
    };
    if let Some(AdmitTask(admit)) = &shared.admit {
        admit(&lease.task).map_err(|error| host_error(&error))?;
    }
    let turn = turn.filter(|turn| Arc::ptr_eq(&turn.agent, &agent));
    let turn = match turn.map_or_else(|| AgentPermit::take(agent), Ok) {
        Ok(turn) => turn,
        Err(agent) => {
            shared.busy.add(&agent);
            return Ok(None);
        }
    };
    match turn.agent.begin(now, &lease.task.policy) {
        Ok(Begin::Started(line)) => Ok(Some(Begun { turn, line, at: now, ended: false })),
        Ok(Begin::Resting) => {
            shared.busy.add(&turn.agent);
            Ok(None)
        }
        Err(error) => Err(host_error(&error)),
    }
}

/// A task that an agent began and whose end it counts, even when its future panics or is dropped.
struct Begun {
    turn: AgentPermit,
    /// What is prepared already for its policy.
    line: Option<Arc<PreparedLine>>,
    at: Instant,
    ended: bool,
}

impl Begun {
    fn end(mut self, completion: &Completion, failed: bool) {
        self.ended = true;
        let agent = &self.turn.agent;
        let now = Instant::now();
        agent.end(completion, now.duration_since(self.at), failed, now);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.ended {
            let message = "it panicked, or did not stop when asked to".to_owned();
            let completion =
                Completion::Executed(Box::new(Execution::new(Outcome::Crashed { message }, Usage::default())));
            self.turn.agent.end(&completion, self.at.elapsed(), std::thread::panicking(), Instant::now());
        }
    }
}

/// Whether the agent, not only its task, failed: its kept instance is gone.
fn is_failure(outcome: &Outcome, instances: InstanceMode) -> bool {
    match outcome {
        Outcome::Crashed { .. } => true,
        Outcome::Cancelled { .. } => false,
        outcome => instances == InstanceMode::Kept && !outcome.leaves_instance_usable(),
    }
}

/// Why no guest code ran.
enum Ended {
    Cancelled,
    Error(Error),
    /// The agent cannot run any task.
    Broken(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Error(error)
    }
}

/// An error on the way to an instance: what makes the instances of an agent that keeps them is broken.
fn broken(agent: &Agent, error: Error) -> Ended {
    let kept = agent.template.instances == InstanceMode::Kept;
    if kept && !error.kind().is_retryable() { Ended::Broken(error) } else { error.into() }
}

pub(super) fn host_error(error: &Error) -> Completion {
    Completion::HostError { message: error.to_string(), retryable: error.kind().is_retryable() }
}

fn cancelled(phase: Phase) -> Completion {
    Completion::Executed(Box::new(Execution::new(Outcome::Cancelled { phase }, Usage::default())))
}
