//! What a check works with.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{
    ArtifactKind, Call, Capabilities, Clocks, ErrorKind, Execution, HostFunctions, Input, Outcome, Phase, Policy,
    Prepared, PreparedExt, Quota, Resource, Sandbox,
};

use crate::run::goes_on;
use crate::{Evidence, Failure, Step, Subject, clock};

/// Wall time of a probe that is not about wall time, so that a broken backend ends. No probe needs a second of a processor.
const WALL_TIME: Duration = Duration::from_secs(30);
/// How long what was dropped may take to be gone: CPU time of the thread that waits, which looks again and again.
const PROMPTLY: Duration = Duration::from_secs(1);

/// What a check works with: the sandbox, fresh for this check, and a place to write down what it saw.
#[derive(Debug)]
pub struct Context {
    subject: Subject,
    sandbox: Arc<dyn Sandbox>,
    runtime: tokio::runtime::Runtime,
    scratch: tempfile::TempDir,
    step: Step,
    evidence: Vec<Evidence>,
    /// What the process held before the check.
    before: Held,
}

/// What a process holds, seen from outside the sandbox.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    files: BTreeSet<String>,
    children: BTreeSet<String>,
}

impl Context {
    /// A context for one check of `subject`.
    ///
    /// # Errors
    ///
    /// When the backend does not open, or the machine has no room for a scratch directory.
    pub fn new(subject: Subject) -> Result<Context, Failure> {
        let failed =
            |what: &str, error: &dyn Display| Failure { step: Step::Baseline, message: format!("{what}: {error}") };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| failed("no runtime", &error))?;
        let scratch = tempfile::tempdir().map_err(|error| failed("no scratch directory", &error))?;
        give_away(scratch.path()).map_err(|error| failed("no scratch directory", &error))?;
        let sandbox = (subject.open)().map_err(|error| failed("the backend does not open", &error))?;
        let mut context = Context {
            subject,
            sandbox,
            runtime,
            scratch,
            step: Step::Baseline,
            evidence: Vec::new(),
            before: Held { files: BTreeSet::new(), children: BTreeSet::new() },
        };
        // The first use may open what stays open (a cache, a helper process); that is no leak.
        let _ = context.run("echo", "", &context.base_policy());
        context.before = held();
        Ok(context)
    }

    /// What the backend declares.
    pub fn capabilities(&self) -> &Capabilities {
        self.sandbox.capabilities()
    }

    /// The sandbox itself, for checks of loading.
    pub fn sandbox(&self) -> &Arc<dyn Sandbox> {
        &self.sandbox
    }

    /// What was seen so far.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// Takes what was seen.
    pub fn take_evidence(&mut self) -> Vec<Evidence> {
        std::mem::take(&mut self.evidence)
    }

    /// The step the check is in.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Begins the automatic refusal variant.
    pub(crate) fn begin_refusal(&mut self) {
        self.step = Step::Refusal;
    }

    /// First step: the attack, where the policy allows it. Must succeed, or the check proves nothing.
    ///
    /// # Errors
    ///
    /// Those of `body`; the check is then broken.
    pub fn baseline<T>(&mut self, body: impl FnOnce(&mut Context) -> Result<T, Failure>) -> Result<T, Failure> {
        self.step = Step::Baseline;
        body(self)
    }

    /// Second step: the attack, where the policy does not allow it.
    ///
    /// # Errors
    ///
    /// Those of `body`; the requirement is then not met.
    pub fn enforced<T>(&mut self, body: impl FnOnce(&mut Context) -> Result<T, Failure>) -> Result<T, Failure> {
        self.step = Step::Enforced;
        body(self)
    }

    /// Third step: a fresh instance still works, and no file or process was left behind.
    ///
    /// # Errors
    ///
    /// When something does not work or was left behind.
    pub fn recovery(&mut self) -> Result<(), Failure> {
        self.step = Step::Recovery;
        let nonce = self.nonce();
        let execution = self.run("echo", nonce.clone(), &self.base_policy())?;
        self.expect_completed("a fresh instance after the attack", &execution)?;
        self.expect("its output", String::from_utf8_lossy(&execution.output), execution.output == nonce.as_bytes())?;
        self.expect_nothing_left()
    }

    /// Requires that this process holds no file and no child that it did not hold before the check. What was dropped may
    /// take a moment to go.
    ///
    /// # Errors
    ///
    /// When something stays.
    pub fn expect_nothing_left(&mut self) -> Result<(), Failure> {
        let begun = clock::thread_cpu_time();
        let (files, children) = loop {
            let after = held();
            let files: Vec<_> = after.files.difference(&self.before.files).cloned().collect();
            let children: Vec<_> = after.children.difference(&self.before.children).map(|pid| describe(pid)).collect();
            // Files belong to this process and are closed at once, but for those that wait for a child.
            let patience = if children.is_empty() { PROMPTLY / 20 } else { PROMPTLY };
            if (files.is_empty() && children.is_empty()) || clock::thread_cpu_time() - begun > patience {
                break (files, children);
            }
            std::thread::yield_now();
        };
        self.expect("files left open", files.join(", "), files.is_empty())?;
        self.expect("processes left behind", children.join(", "), children.is_empty())
    }

    /// A random text of 32 characters that nobody else knows: seeing it is proof of a leak.
    ///
    /// # Panics
    ///
    /// When the system has no randomness.
    pub fn nonce(&mut self) -> String {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the system has randomness");
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A directory of the host for this check alone.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// User whom the directory of [`Context::scratch`] belongs to.
    pub fn scratch_owner(&self) -> u32 {
        #[cfg(unix)]
        return self.scratch().metadata().map_or(0, |found| std::os::unix::fs::MetadataExt::uid(&found));
        #[cfg(not(unix))]
        0
    }

    /// Makes a directory below [`Context::scratch`].
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn make_directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.scratch.path().join(name);
        std::fs::create_dir_all(&path)
            .and_then(|()| give_away(&path))
            .map_err(|error| self.failure(format!("cannot make {name}: {error}")))?;
        Ok(path)
    }

    /// Drives a future.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let done = self.runtime.block_on(future);
        goes_on();
        done
    }

    /// Loads the probe for `verb` and prepares it.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn prepare(&self, verb: &str, policy: &Policy, functions: HostFunctions) -> Result<Arc<dyn Prepared>, Failure> {
        self.try_prepare(verb, policy, functions).map_err(|error| self.failure(format!("probe `{verb}`: {error}")))
    }

    /// As [`Context::prepare`], with the backend's error.
    ///
    /// # Errors
    ///
    /// The backend's.
    pub fn try_prepare(
        &self,
        verb: &str,
        policy: &Policy,
        functions: HostFunctions,
    ) -> palisade_core::Result<Arc<dyn Prepared>> {
        let artifact = (self.subject.probe)(verb);
        self.block_on(self.sandbox.load(artifact))?.prepare(policy.clone(), functions)
    }

    /// Runs the probe for `verb` in a fresh instance.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn run(&mut self, verb: &str, input: impl Into<Input>, policy: &Policy) -> Result<Execution, Failure> {
        self.call(verb, Call::new().input(input), policy, HostFunctions::new())
    }

    /// Makes one call of the probe for `verb` in a fresh instance.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn call(
        &mut self,
        verb: &str,
        call: Call,
        policy: &Policy,
        functions: HostFunctions,
    ) -> Result<Execution, Failure> {
        let prepared = self.prepare(verb, policy, functions)?;
        self.block_on(prepared.run(call)).map_err(|error| self.failure(format!("probe `{verb}`: {error}")))
    }

    /// Input that gives `text` only `after` the guest first waits for it; `on_wait` runs at that moment.
    pub fn late_input(
        &self,
        after: Duration,
        text: &'static [u8],
        on_wait: impl FnOnce() + Send + 'static,
    ) -> palisade_core::Input {
        palisade_core::Input::Stream(Box::pin(Late { after, text: Some(text), on_wait: Some(on_wait), sleep: None }))
    }

    /// The probe for `verb`, as the backend gets it.
    pub fn artifact(&self, verb: &str) -> palisade_core::Artifact {
        (self.subject.probe)(verb)
    }

    /// Makes a fresh instance of the probe for `verb`, for more than one call.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn instance(
        &self,
        verb: &str,
        policy: &Policy,
        functions: HostFunctions,
    ) -> Result<Box<dyn palisade_core::Instance>, Failure> {
        let prepared = self.prepare(verb, policy, functions)?;
        self.block_on(prepared.instantiate()).map_err(|error| self.failure(format!("probe `{verb}`: {error}")))
    }

    /// Makes one more call of an instance.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn call_again(
        &self,
        instance: &mut Box<dyn palisade_core::Instance>,
        call: Call,
    ) -> Result<Execution, Failure> {
        self.block_on(instance.call(call)).map_err(|error| self.failure(format!("another call: {error}")))
    }

    /// Writes down what was seen, and ends the check when it is not as required.
    ///
    /// # Errors
    ///
    /// When `holds` is false.
    pub fn expect(&mut self, subject: &str, observed: impl Display, holds: bool) -> Result<(), Failure> {
        // Guests choose what is seen; a report is bounded.
        let observed: String = observed.to_string().chars().take(500).collect();
        let message = format!("{subject}: {observed}");
        self.evidence.push(Evidence { step: self.step, subject: subject.to_owned(), observed, holds });
        if holds { Ok(()) } else { Err(Failure { step: self.step, message }) }
    }

    /// Requires success.
    ///
    /// # Errors
    ///
    /// When the guest ended in another way.
    pub fn expect_completed(&mut self, subject: &str, execution: &Execution) -> Result<(), Failure> {
        self.expect(subject, &execution.outcome, execution.outcome.is_success())
    }

    /// Requires that `resource` ran out, by more than its limit.
    ///
    /// # Errors
    ///
    /// When the guest ended in another way.
    pub fn expect_exceeded(&mut self, subject: &str, execution: &Execution, resource: Resource) -> Result<(), Failure> {
        let holds = matches!(&execution.outcome,
            Outcome::QuotaExceeded { resource: found, limit, used, .. } if *found == resource && used > limit);
        self.expect(subject, &execution.outcome, holds)
    }

    /// Requires that `resource` ran out in `phase`.
    ///
    /// # Errors
    ///
    /// When the guest ended in another way.
    pub fn expect_exceeded_in(
        &mut self,
        subject: &str,
        execution: &Execution,
        resource: Resource,
        phase: Phase,
    ) -> Result<(), Failure> {
        let holds = matches!(&execution.outcome,
            Outcome::QuotaExceeded { resource: found, phase: found_phase, .. } if *found == resource && *found_phase == phase);
        self.expect(subject, &execution.outcome, holds)
    }

    /// Requires that preparing is refused with `kind`.
    ///
    /// # Errors
    ///
    /// When it is accepted, or refused for another reason.
    pub fn expect_refused(
        &mut self,
        subject: &str,
        verb: &str,
        policy: &Policy,
        kind: ErrorKind,
    ) -> Result<(), Failure> {
        match self.try_prepare(verb, policy, HostFunctions::new()) {
            Ok(_) => self.expect(subject, "accepted", false),
            Err(error) => self.expect(subject, &error, error.kind() == kind),
        }
    }

    /// The default policy, as this subject's own probes can run under it: no backend keeps a native executable from reading
    /// the processor's clock, so that one gets fine clocks.
    pub fn base_policy(&self) -> Policy {
        let mut policy = Policy::default();
        if self.artifact("echo").kind() == ArtifactKind::Executable {
            policy.grants.clocks = Clocks::Fine;
        }
        policy
    }

    /// The default policy, as the native probe can run under it.
    pub fn native_policy(&self) -> Policy {
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        policy
    }

    /// Runs the native probe with these arguments in a fresh instance.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn native(&mut self, arguments: &[&str], policy: &Policy) -> Result<Execution, Failure> {
        self.native_call(Call::new().arguments(arguments.iter().copied()), policy)
    }

    /// Makes one call of the native probe in a fresh instance.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn native_call(&mut self, call: Call, policy: &Policy) -> Result<Execution, Failure> {
        let prepared = self.prepare_native(policy)?;
        self.block_on(prepared.run(call)).map_err(|error| self.failure(format!("native probe: {error}")))
    }

    /// Loads the native probe and prepares it.
    ///
    /// # Errors
    ///
    /// The backend's, as a failure of the current step.
    pub fn prepare_native(&self, policy: &Policy) -> Result<Arc<dyn Prepared>, Failure> {
        let module = self.block_on(self.sandbox.load(crate::probe::native("probe")));
        let prepared = module.and_then(|module| module.prepare(policy.clone(), HostFunctions::new()));
        prepared.map_err(|error| self.failure(format!("native probe: {error}")))
    }

    /// Runs the native probe with these arguments as an ordinary process of this machine, outside any sandbox: what it
    /// wrote.
    ///
    /// # Errors
    ///
    /// The system's, as a failure of the current step.
    pub fn outside(&mut self, arguments: &[&str]) -> Result<String, Failure> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.scratch().join("native-probe");
        let failed = |error: std::io::Error| self.failure(format!("the native probe does not run by itself: {error}"));
        if !path.exists() {
            std::fs::write(&path, crate::probe::native("probe").bytes()).map_err(failed)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        let output = std::process::Command::new(path)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(failed)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A policy that bounds nothing but wall time, generously, as far as the backend declares it.
    pub fn generous(&self) -> Policy {
        Policy { quota: Quota { wall_time: Some(WALL_TIME), ..Quota::unlimited() }, ..Policy::default() }
    }

    /// Ends the check because this machine cannot show what it is about.
    pub fn blocked(&self, message: impl Into<String>) -> Failure {
        Failure { step: Step::Machine, message: message.into() }
    }

    /// A failure of the current step.
    pub fn failure(&self, message: impl Into<String>) -> Failure {
        Failure { step: self.step, message: message.into() }
    }
}

/// The user whom what the checks grant belongs to when they run as root. It owns nothing else.
const OWNER: u32 = 64_123;

/// Gives `directory` to an ordinary user where this is root's: a backend may refuse to have guests make files of root's.
fn give_away(directory: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::uid(&directory.metadata()?) == 0 {
        std::os::unix::fs::chown(directory, Some(OWNER), Some(OWNER))?;
    }
    Ok(())
}

/// See [`Context::late_input`].
struct Late<F> {
    after: Duration,
    text: Option<&'static [u8]>,
    on_wait: Option<F>,
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

// Nothing in it is pinned in place.
impl<F> Unpin for Late<F> {}

impl<F: FnOnce() + Send + 'static> futures_core::Stream for Late<F> {
    type Item = std::io::Result<palisade_core::Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        if let Some(on_wait) = self.on_wait.take() {
            on_wait();
        }
        if self.text.is_none() {
            return std::task::Poll::Ready(None);
        }
        let after = self.after;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        sleep.as_mut().poll(context).map(|()| self.text.take().map(|text| Ok(text.into())))
    }
}

/// A process and what it is doing, for people.
fn describe(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("gone").trim().to_owned();
    format!("{pid} ({}, {})", field("Name:"), field("State:"))
}

/// What this process holds, from the kernel's own list.
fn held() -> Held {
    // The unit tests of this crate share one process, and see each other's files. Real runs give each check a process of
    // its own, and the kill matrix is the only test of its process.
    if cfg!(test) {
        return Held::default();
    }
    let list = |folder: &str| -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    // Reading the list opens one itself, and its number changes: the target of each link is what counts.
    let files = list("/proc/self/fd")
        .into_iter()
        .filter_map(|number| {
            std::fs::read_link(format!("/proc/self/fd/{number}")).ok().map(|to| format!("{number}: {}", to.display()))
        })
        .collect();
    let children = list("/proc/self/task")
        .into_iter()
        .filter_map(|task| std::fs::read_to_string(format!("/proc/self/task/{task}/children")).ok())
        .flat_map(|children| children.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    Held { files, children }
}
