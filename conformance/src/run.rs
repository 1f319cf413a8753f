//! Runs checks: one in this process, or all of them, each in a process of its own.

use std::any::Any;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::{
    ArtifactKind, Clocks, DirectoryGrant, Enforcement, ErrorKind, GrantKind, Policy, Quota, Randomness, Resource,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

use crate::{Check, Context, Evidence, Failure, Need, Step, Subject, Verdict};

/// Wall time of one check.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(30);
/// Checks that run at once: more would disturb what the others measure.
const PARALLEL_MAX: usize = 2;
/// What is kept of each stream of a check's process.
const STREAM_BYTES_MAX: usize = 4 << 20;
/// How long a stream may stay open after the end of the process: what left its group may hold it.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);
/// Begins the line of a check's process that carries its report.
const MARKER: &str = "palisade-conformance-report: ";

/// What a check found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// Id of the check.
    pub id: String,
    /// Ids of the requirements it exercises.
    pub requires: Vec<String>,
    /// What it found out.
    pub verdict: Verdict,
    /// Why; empty when it passed.
    pub message: String,
    /// The step it ended in, when it did not pass.
    pub step: Option<Step>,
    /// What it saw, in order.
    pub evidence: Vec<Evidence>,
    /// The fault of the reference backend that must make it fail.
    pub control: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

impl CheckReport {
    pub(crate) fn new<C>(
        check: &Check<C>,
        verdict: Verdict,
        message: impl Into<String>,
        started: Instant,
    ) -> CheckReport {
        CheckReport {
            id: check.id.to_owned(),
            requires: check.requires.iter().map(|id| (*id).to_owned()).collect(),
            verdict,
            message: message.into(),
            step: None,
            evidence: Vec::new(),
            control: check.control.to_owned(),
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Whether a verdict of `pass` follows from what was seen: all of it holds, and the enforced case was looked at.
    pub fn evidence_suffices(&self) -> bool {
        let enforced = self.evidence.iter().any(|evidence| evidence.step == Step::Enforced);
        enforced && self.evidence.iter().all(|evidence| evidence.holds)
    }
}

/// Runs one check in this process.
pub fn run_check(subject: Subject, check: &Check) -> CheckReport {
    let started = Instant::now();
    let broken = |message: String| CheckReport::new(check, Verdict::Broken, message, started);
    let mut context = match catch_unwind(|| Context::new(subject)) {
        Ok(Ok(context)) => context,
        Ok(Err(failure)) => return CheckReport { step: Some(failure.step), ..broken(failure.message) },
        Err(panic) => return broken(format!("panicked while it opened the backend: {}", panic_text(&*panic))),
    };
    let missing: Vec<_> = check.all_needs().filter(|need| !need.is_declared(context.capabilities())).collect();
    let result = catch_unwind(AssertUnwindSafe(|| {
        if missing.is_empty() { (check.run)(&mut context) } else { refusal(&mut context, &missing) }
    }));
    let step = context.step();
    let mut report = match result {
        Err(panic) => {
            CheckReport { step: Some(step), ..broken(format!("panicked in {step:?}: {}", panic_text(&*panic))) }
        }
        Ok(Err(failure)) => {
            let verdict = match failure.step {
                Step::Baseline => Verdict::Broken,
                Step::Machine => Verdict::Blocked,
                Step::Enforced | Step::Recovery | Step::Refusal => Verdict::Fail,
            };
            CheckReport { step: Some(failure.step), ..CheckReport::new(check, verdict, failure.message, started) }
        }
        Ok(Ok(())) if !missing.is_empty() => {
            let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
            CheckReport::new(check, Verdict::Unsupported, format!("does not offer {}", names.join(", ")), started)
        }
        Ok(Ok(())) => CheckReport::new(check, Verdict::Pass, "", started),
    };
    report.evidence = context.take_evidence();
    if report.verdict == Verdict::Pass && !report.evidence_suffices() {
        match report.evidence.iter().find(|evidence| !evidence.holds) {
            // A body that goes on after what it saw is a body that looks away.
            Some(evidence) => {
                report.verdict = if evidence.step == Step::Baseline { Verdict::Broken } else { Verdict::Fail };
                report.message = format!("{}: {}", evidence.subject, evidence.observed);
                report.step = Some(evidence.step);
            }
            None => {
                report.verdict = Verdict::Vacuous;
                report.message = "observed nothing in its enforced step".to_owned();
            }
        }
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(context))) {
        report.verdict = report.verdict.max(Verdict::Broken);
        report.message = format!("panicked while it closed the backend: {}", panic_text(&*panic));
    }
    report
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Asks for what the backend does not declare; it must say that it has no such thing.
fn refusal(context: &mut Context, missing: &[Need]) -> Result<(), Failure> {
    // A backend that refuses everything proves nothing by refusing this: what it declares, it must accept.
    let modest = modest(context);
    let answer = answer(context, &modest);
    if let Err((_, message)) = answer {
        return Err(Failure {
            step: Step::Baseline,
            message: format!("a policy of what is declared is refused: {message}"),
        });
    }
    context.begin_refusal();
    context.expect("a policy of what is declared", "accepted", true)?;
    for need in missing {
        if let Need::Artifact(kind) = need {
            return refuses_artifact(context, *kind);
        }
        let Some((policy, wanted)) = demand(context, *need, &modest) else { continue };
        let subject = format!("asking for {need}, which is not declared");
        match (self::answer(context, &policy), wanted) {
            (Ok(()), Wanted::Accepted) => {
                context.expect(&format!("a bound on {need}, of which no guest ever has any"), "accepted", true)?;
            }
            (Ok(()), Wanted::Refused) => context.expect(&subject, "accepted", false)?,
            (Err((kind, message)), wanted) => {
                context.expect(&subject, message, wanted == Wanted::Refused && kind == ErrorKind::Unsupported)?;
            }
        }
    }
    Ok(())
}

/// Loads the probe of a kind the backend does not declare. What else the check needs does not matter then.
fn refuses_artifact(context: &mut Context, kind: ArtifactKind) -> Result<(), Failure> {
    let artifact = match kind {
        ArtifactKind::Wasm => crate::probe::wasm("echo"),
        _ => crate::probe::native("echo"),
    };
    let loaded = context.block_on(context.sandbox().load(artifact));
    let subject = format!("loading {kind} artifacts, which are not declared");
    match loaded {
        Ok(_) => context.expect(&subject, "accepted", false),
        Err(error) => context.expect(&subject, &error, error.kind() == ErrorKind::Unsupported),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Accepted,
    Refused,
}

fn answer(context: &Context, policy: &Policy) -> Result<(), (ErrorKind, String)> {
    match context.try_prepare("echo", policy, palisade_core::HostFunctions::new()) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.kind(), error.to_string())),
    }
}

/// A policy that asks for nothing the backend does not declare.
fn modest(context: &Context) -> Policy {
    let mut policy = Policy { quota: Quota::unlimited(), ..context.base_policy() };
    if !context.capabilities().grants.contains(&GrantKind::ClocksCoarse) {
        policy.grants.clocks = Clocks::Fine;
    }
    policy
}

/// `modest` and `need` besides, and the answer it must have. `None` where a policy cannot ask for it.
fn demand(context: &Context, need: Need, modest: &Policy) -> Option<(Policy, Wanted)> {
    let mut policy = modest.clone();
    match need {
        Need::Abi(_) | Need::Artifact(_) => return None,
        Need::Quota(resource) => {
            set_quota(&mut policy.quota, resource);
            let always_zero = context.capabilities().enforcement(resource) == Enforcement::AlwaysZero;
            return Some((policy, if always_zero { Wanted::Accepted } else { Wanted::Refused }));
        }
        Need::Grant(kind) => {
            let grants = &mut policy.grants;
            let scratch = context.scratch();
            match kind {
                GrantKind::DirectoriesReadOnly => grants.directories.push(DirectoryGrant::read_only(scratch, "/x")),
                GrantKind::DirectoriesReadWrite => grants.directories.push(DirectoryGrant::read_write(scratch, "/x")),
                GrantKind::Environment => drop(grants.environment.insert("X".into(), "x".into())),
                GrantKind::ClocksCoarse => grants.clocks = Clocks::default(),
                GrantKind::ClocksFine => grants.clocks = Clocks::Fine,
                GrantKind::RandomnessSeeded => grants.randomness = Randomness::Seeded(1),
                GrantKind::HostFunctions => drop(grants.host_functions.insert("x".into())),
                GrantKind::Network => grants.network = true,
                GrantKind::ChildProcesses => grants.child_processes = true,
                GrantKind::Interpreter => grants.interpreter = Some("python3".into()),
                GrantKind::DirectoryOwner => {
                    let owner = context.scratch_owner();
                    grants.directories.push(DirectoryGrant::read_only(scratch, "/x").owned_by(owner));
                }
                GrantKind::Scratch => grants.scratch = Some("/x".into()),
                GrantKind::ExecutableMemory => grants.executable_memory = true,
                _ => return None,
            }
        }
    }
    Some((policy, Wanted::Refused))
}

/// Bounds one resource, by a bound every backend that has it can hold.
fn set_quota(quota: &mut Quota, resource: Resource) {
    let time = Some(Duration::from_secs(10));
    match resource {
        Resource::WallTime => quota.wall_time = time,
        Resource::CpuTime => quota.cpu_time = time,
        Resource::Fuel => quota.fuel = Some(1 << 30),
        Resource::Memory => quota.memory_bytes = Some(64 << 20),
        Resource::Stack => quota.stack_bytes = Some(512 << 10),
        Resource::Output => quota.output_bytes = Some(1 << 20),
        Resource::Log => quota.log_bytes = Some(1 << 20),
        Resource::OpenFiles => quota.open_files = Some(16),
        Resource::Disk => quota.disk_bytes = Some(1 << 20),
        Resource::HostCalls => quota.host_calls = Some(1000),
        Resource::Processes => quota.processes = Some(0),
        Resource::Threads => quota.threads = Some(0),
        // A resource this version of the suite does not know cannot be in its catalog.
        _ => {}
    }
}

/// What the process of one check does: runs it and writes its report on standard output. It ends with its parent.
pub fn run_as_child(subject: Subject, check: &Check) {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let report = run_check(subject, check);
    // A report of text and numbers always has a JSON form.
    let json = serde_json::to_string(&report).unwrap_or_default();
    println!("\n{MARKER}{json}");
}

/// Runs checks, each in a process of its own.
#[derive(Debug)]
pub struct Runner<F> {
    command: F,
    budget: Duration,
}

impl<F: Fn(&str) -> Command + Sync> Runner<F> {
    /// A runner that starts the process for a check's id with `command`; that process calls [`run_as_child`].
    pub fn new(command: F) -> Self {
        Runner { command, budget: CHECK_TIME_MAX }
    }

    /// Sets the wall time of one check, in place of [`CHECK_TIME_MAX`].
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// Runs `checks`; the reports come in their order. `progress` hears of each as it ends.
    pub fn run(&self, checks: &[&Check], progress: impl Fn(&CheckReport) + Sync) -> Vec<CheckReport> {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from).min(PARALLEL_MAX);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(checks.len()));
        std::thread::scope(|scope| {
            for _ in 0..parallel {
                scope.spawn(|| {
                    while let Some((number, check)) = {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        checks.get(number).map(|check| (number, check))
                    } {
                        let report = self.run_one(check);
                        progress(&report);
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((number, report));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, report)| report).collect()
    }

    fn run_one(&self, check: &Check) -> CheckReport {
        let started = Instant::now();
        let broken = |message: String| CheckReport::new(check, Verdict::Broken, message, started);
        let ended = match run_process((self.command)(check.id), self.budget) {
            Ok(ended) => ended,
            Err(error) => return broken(format!("its process does not start: {error}")),
        };
        let Some(status) = ended.status else {
            return broken(format!("took longer than {} s; its process group was killed", self.budget.as_secs_f64()));
        };
        let reports: Vec<_> = ended.stdout.lines().filter_map(|line| line.strip_prefix(MARKER)).collect();
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
        };
        match reports[..] {
            // What a process does after its report is part of the check: it must end well.
            [json] if status.success() => match serde_json::from_str::<CheckReport>(json) {
                Ok(report) if report.id == check.id => report,
                Ok(report) => broken(format!("reported about `{}`", report.id)),
                Err(error) => broken(format!("its report is unreadable: {error}")),
            },
            [_] => broken(format!("{how} after its report{}", tail(&ended.stderr))),
            [] => broken(format!("{how} without a report{}", tail(&ended.stderr))),
            _ => broken("its process wrote more than one report".to_owned()),
        }
    }
}

/// The last line of `text` that says something, as an addition to a message.
fn tail(text: &str) -> String {
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("note: "));
    last.map(|line| format!(": {}", line.chars().take(300).collect::<String>())).unwrap_or_default()
}

struct Ended {
    /// `None`: it took too long.
    status: Option<ExitStatus>,
    stdout: String,
    stderr: String,
}

/// Runs a process as the leader of a group of its own, and leaves no process of the group behind.
fn run_process(mut command: Command, budget: Duration) -> std::io::Result<Ended> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().map(Stream::read);
    let stderr = child.stderr.take().map(Stream::read);
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, ended) = mpsc::channel();
    // Waits without reaping, so that the number of the group stays taken until everything in it was killed.
    let waiter = std::thread::spawn(move || {
        if let Some(pid) = group {
            while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
                .is_err_and(|error| error == rustix::io::Errno::INTR)
            {}
        }
        let _ = sender.send(());
    });
    let in_time = ended.recv_timeout(budget).is_ok();
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    let _ = waiter.join();
    let text = |stream: Option<Stream>| stream.map(Stream::finish).unwrap_or_default();
    Ok(Ended { status: in_time.then_some(status), stdout: text(stdout), stderr: text(stderr) })
}

/// A stream of a process, read by a thread.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Stream {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (sender, ended) = mpsc::channel();
        let shared = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut piece = [0; 8192];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(&piece[..length]);
                // Of a flood, the end is kept: the report comes last.
                let excess = bytes.len().saturating_sub(2 * STREAM_BYTES_MAX);
                if excess > 0 {
                    bytes.drain(..STREAM_BYTES_MAX + excess);
                }
            }
            let _ = sender.send(());
        });
        Stream { bytes, ended }
    }

    fn finish(self) -> String {
        let _ = self.ended.recv_timeout(STREAM_PATIENCE);
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::{
        Abi, Artifact, BoxFuture, Call, Capabilities, Execution, HostFunctions, Input, Instance, Module, ModuleInfo,
        Outcome, Prepared, Result as Answer, Sandbox, Usage,
    };

    use super::*;
    use crate::report::tests::{check, report};

    /// Answers with its input, and admits policies as `admit` says.
    #[derive(Debug, Clone)]
    struct Echo {
        capabilities: Capabilities,
        info: ModuleInfo,
        policy: Policy,
        admit: fn(&Capabilities, &Policy) -> Answer<()>,
    }

    impl Sandbox for Echo {
        fn capabilities(&self) -> &Capabilities {
            &self.capabilities
        }

        fn load(&self, _: Artifact) -> BoxFuture<'_, Answer<Arc<dyn Module>>> {
            let module: Arc<dyn Module> = Arc::new(self.clone());
            Box::pin(std::future::ready(Ok(module)))
        }
    }

    impl Module for Echo {
        fn info(&self) -> &ModuleInfo {
            &self.info
        }

        fn prepare(&self, policy: Policy, _: HostFunctions) -> Answer<Arc<dyn Prepared>> {
            (self.admit)(&self.capabilities, &policy)?;
            Ok(Arc::new(Echo { policy, ..self.clone() }))
        }
    }

    impl Prepared for Echo {
        fn policy(&self) -> &Policy {
            &self.policy
        }

        fn instantiate(&self) -> BoxFuture<'_, Answer<Box<dyn Instance>>> {
            let instance: Box<dyn Instance> = Box::new(self.clone());
            Box::pin(std::future::ready(Ok(instance)))
        }
    }

    impl Instance for Echo {
        fn call(&mut self, call: Call) -> BoxFuture<'_, Answer<Execution>> {
            let mut execution = Execution::new(Outcome::Completed, Usage::default());
            if let Input::Bytes(bytes) = call.input {
                execution.output = bytes;
            }
            Box::pin(std::future::ready(Ok(execution)))
        }
    }

    fn echo(admit: fn(&Capabilities, &Policy) -> Answer<()>) -> Arc<dyn Sandbox> {
        let mut capabilities = report().capabilities.unwrap();
        capabilities.quotas = Resource::ALL.iter().copied().map(|resource| (resource, Enforcement::Enforced)).collect();
        capabilities.quotas.insert(Resource::Threads, Enforcement::AlwaysZero);
        capabilities.quotas.remove(&Resource::Fuel);
        capabilities.memory_bytes_max = u64::MAX;
        capabilities.stack_bytes_max = u64::MAX;
        capabilities.grants = [GrantKind::ClocksCoarse].into();
        let info = ModuleInfo::new(&Artifact::wasm(Vec::new()), Abi::Command);
        Arc::new(Echo { capabilities, info, policy: Policy::default(), admit })
    }

    fn subject(open: fn() -> Answer<Arc<dyn Sandbox>>) -> Subject {
        Subject { name: "echo", version: "1.0.0", open, probe: crate::probe::wasm, expectations: "version = 1" }
    }

    fn honest() -> Subject {
        subject(|| Ok(echo(Capabilities::admit)))
    }

    fn open_to_all() -> Subject {
        subject(|| Ok(echo(|_, _| Ok(()))))
    }

    fn closed_to_all() -> Subject {
        subject(|| Ok(echo(|_, _| Err(palisade_core::Error::new(ErrorKind::Unsupported, "admit", "no")))))
    }

    fn check_of(needs: &'static [Need], run: fn(&mut Context) -> Result<(), Failure>) -> Check {
        Check { id: "a.b.c", requires: &["a.b.d"], needs, control: "fault", run }
    }

    fn triad(context: &mut Context) -> Result<(), Failure> {
        context.baseline(|context| context.expect("the attack", "works", true))?;
        context.enforced(|context| context.expect("the attack", "is stopped", true))?;
        context.recovery()
    }

    #[test]
    fn the_verdict_follows_from_the_step_that_failed() {
        let verdict = |run| run_check(honest(), &check_of(&[], run)).verdict;
        assert_eq!(verdict(triad), Verdict::Pass);
        assert_eq!(verdict(|context| context.baseline(|context| context.expect("x", "", false))), Verdict::Broken);
        assert_eq!(verdict(|context| context.enforced(|context| context.expect("x", "", false))), Verdict::Fail);
        assert_eq!(verdict(|_| Ok(())), Verdict::Vacuous);
        assert_eq!(verdict(|context| context.recovery()), Verdict::Vacuous);
        assert_eq!(verdict(|_| panic!("lost")), Verdict::Broken);
    }

    #[test]
    fn a_check_that_looks_away_does_not_pass() {
        let looks_away = |context: &mut Context| {
            let _ = context.enforced(|context| context.expect("the secret", "seen", false));
            triad(context)
        };
        let report = run_check(honest(), &check_of(&[], looks_away));
        assert_eq!((report.verdict, report.message.as_str()), (Verdict::Fail, "the secret: seen"));
    }

    #[test]
    fn a_panic_is_reported_with_what_was_seen_before() {
        let run = |context: &mut Context| {
            context.enforced(|context| context.expect("x", "y", true))?;
            panic!("lost {}", 7)
        };
        let report = run_check(honest(), &check_of(&[], run));
        assert_eq!((report.verdict, report.evidence.len(), report.step), (Verdict::Broken, 1, Some(Step::Enforced)));
        assert!(report.message.contains("lost 7"), "{report:?}");
        let closed = subject(|| Err(palisade_core::Error::new(ErrorKind::Io, "open", "no such engine")));
        let report = run_check(closed, &check_of(&[], triad));
        assert_eq!((report.verdict, report.message.contains("no such engine")), (Verdict::Broken, true));
    }

    #[test]
    fn what_is_not_declared_must_be_refused() {
        let kinds: [&'static [Need]; 9] = [
            &[Need::Quota(Resource::Fuel)],
            &[Need::Grant(GrantKind::DirectoriesReadOnly)],
            &[Need::Grant(GrantKind::DirectoriesReadWrite)],
            &[Need::Grant(GrantKind::Environment)],
            &[Need::Grant(GrantKind::ClocksFine)],
            &[Need::Grant(GrantKind::RandomnessSeeded)],
            &[Need::Grant(GrantKind::HostFunctions)],
            &[Need::Grant(GrantKind::Network)],
            &[Need::Grant(GrantKind::ChildProcesses)],
        ];
        for needs in kinds {
            let verdict = |subject| run_check(subject, &check_of(needs, |_| panic!("the body does not run"))).verdict;
            assert_eq!(verdict(honest()), Verdict::Unsupported, "{needs:?}");
            assert_eq!(verdict(open_to_all()), Verdict::Fail, "{needs:?}");
            // Who refuses everything shows nothing by it.
            assert_eq!(verdict(closed_to_all()), Verdict::Broken, "{needs:?}");
        }
    }

    #[test]
    fn what_a_guest_never_has_may_be_bounded() {
        let check = check_of(&[Need::Quota(Resource::Threads)], triad);
        assert_eq!(run_check(honest(), &check).verdict, Verdict::Unsupported);
        assert_eq!(run_check(honest(), &check_of(&[Need::Abi(Abi::Extism)], triad)).verdict, Verdict::Unsupported);
        let refuses_threads = subject(|| {
            Ok(echo(|capabilities, policy| match policy.quota.threads {
                Some(_) => Err(palisade_core::Error::new(ErrorKind::Unsupported, "admit", "no threads")),
                None => capabilities.admit(policy),
            }))
        });
        assert_eq!(run_check(refuses_threads, &check).verdict, Verdict::Fail);
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn run_script(script: &str, budget: Duration) -> CheckReport {
        let check = check_of(&[], triad);
        let reports = Runner::new(|_: &str| shell(script)).budget(budget).run(&[&check], |_| {});
        let [report] = <[CheckReport; 1]>::try_from(reports).unwrap();
        report
    }

    #[test]
    fn reports_come_from_processes_in_the_order_of_the_checks() {
        let checks: Vec<_> = ["a.a.a", "a.a.b", "a.a.c", "a.a.d", "a.a.e"]
            .map(|id| Check { id, ..check_of(&[], triad) })
            .into_iter()
            .collect();
        let heard = Mutex::new(Vec::new());
        let runner = Runner::new(|id: &str| {
            let json = serde_json::to_string(&check(id, Verdict::Pass)).unwrap();
            let mut command = shell("echo noise; printf '%s%s\\n' \"$MARKER\" \"$REPORT\"");
            command.env("MARKER", MARKER).env("REPORT", json);
            command
        });
        let reports = runner.run(&checks.iter().collect::<Vec<_>>(), |report| {
            heard.lock().unwrap().push(report.id.clone());
        });
        let ids: Vec<_> = reports.iter().map(|report| report.id.as_str()).collect();
        assert_eq!(ids, ["a.a.a", "a.a.b", "a.a.c", "a.a.d", "a.a.e"]);
        assert!(reports.iter().all(|report| report.verdict == Verdict::Pass));
        assert_eq!(heard.lock().unwrap().len(), 5);
    }

    #[test]
    fn a_process_without_one_good_report_is_a_broken_check() {
        let long = Duration::from_secs(60);
        let broken = |script: &str, part: &str| {
            let report = run_script(script, long);
            assert!(report.verdict == Verdict::Broken && report.message.contains(part), "{script}: {report:?}");
        };
        broken("exit 0", "ended with exit code 0 without a report");
        broken("echo help >&2; exit 3", "ended with exit code 3 without a report: help");
        broken("kill -SEGV $$", "killed by signal 11 without a report");
        broken(&format!("echo '{MARKER}{{}}'"), "unreadable");
        broken(&format!("echo '{MARKER}{{}}'; echo '{MARKER}{{}}'"), "more than one report");
        broken(&format!("echo '{MARKER}{{}}'; exit 1"), "exit code 1 after its report");
        let other = serde_json::to_string(&check("x.y.z", Verdict::Pass)).unwrap().replace('\'', "'\\''");
        broken(&format!("printf '%s\\n' '{MARKER}{}'", other.replace("\\u001b", "?")), "reported about `x.y.z`");
    }

    #[test]
    fn a_hanging_check_is_killed_with_its_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (sender, ended) = mpsc::channel();
        let reader = pipe.clone();
        // The grandchild holds the pipe open: it ends when everything in the group is dead.
        std::thread::spawn(move || sender.send(std::fs::read(reader)));
        let check = check_of(&[], triad);
        let runner = Runner::new(|_: &str| {
            let mut command = shell("sleep 1000 > \"$PIPE\" & wait");
            command.env("PIPE", &pipe);
            command
        });
        let reports = runner.budget(Duration::from_millis(500)).run(&[&check], |_| {});
        assert_eq!(reports[0].verdict, Verdict::Broken);
        assert!(reports[0].message.contains("took longer than 0.5 s"), "{reports:?}");
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)).unwrap().unwrap(), b"");
    }

    #[test]
    fn a_child_left_behind_does_not_hold_the_run_up() {
        let started = Instant::now();
        let report = run_script("sleep 1000 & exit 0", Duration::from_secs(60));
        assert_eq!(report.verdict, Verdict::Broken);
        assert!(started.elapsed() < Duration::from_secs(60), "the child was not killed with its group");
    }

    #[test]
    fn of_a_flood_the_end_is_kept() {
        let report = run_script("yes | head -c 20000000; echo; echo end >&2; exit 1", Duration::from_secs(60));
        assert!(report.message.ends_with(": end"), "{report:?}");
    }
}
