//! One call of the native probe: interprets its arguments and enforces the policy while doing so.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use palisade_core::{
    Access, Call, CancelToken, Execution, Input, Layer, LayerStatus, Outcome, Phase, Policy, Resource, TrapKind, Usage,
};

use crate::alarm::Alarm;
use crate::{Fault, Shared};

/// Memory of a program that does nothing.
const BASE_BYTES: u64 = 1 << 20;

pub(crate) struct Program<'a> {
    shared: &'a Shared,
    policy: &'a Policy,
    arguments: Vec<String>,
    input: Input,
    cancel: Option<CancelToken>,
    begun: Instant,
    usage: Usage,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl<'a> Program<'a> {
    pub(crate) fn new(shared: &'a Shared, policy: &'a Policy, call: Call) -> Program<'a> {
        let mut usage = Usage::default();
        usage.memory_peak_bytes = BASE_BYTES;
        Program {
            shared,
            policy,
            arguments: call.arguments,
            input: call.input,
            cancel: call.cancel,
            begun: Instant::now(),
            usage,
            output: Vec::new(),
            error: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) -> Execution {
        if self.has(Fault::NativeLeaksFiles) {
            self.shared.leaks().files.extend(File::open("/dev/null"));
        }
        let mut outcome = self.interpret().await.err().unwrap_or(Outcome::Completed);
        if matches!(outcome, Outcome::Failed { .. }) && self.has(Fault::NativeLosesExitCode) {
            outcome = Outcome::Completed;
        }
        self.usage.wall_time = self.begun.elapsed();
        if self.has(Fault::NativeNoCpuTime) {
            self.usage.cpu_time = Duration::ZERO;
        }
        if self.has(Fault::NativeUnderstatesMemory) {
            self.usage.memory_peak_bytes /= 2;
        }
        let mut execution = Execution::new(outcome, self.usage);
        (execution.output, execution.error) = (self.output.into(), self.error.into());
        if !self.shared.has(Fault::NativeNoLayers) {
            let detail = "runs no program at all".into();
            execution.isolation = [Layer { name: "interpreter".into(), status: LayerStatus::Enforced, detail }].into();
        }
        execution
    }

    fn has(&self, fault: Fault) -> bool {
        self.shared.has(fault)
    }

    fn number(&self) -> u64 {
        self.arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn say(&mut self, text: impl ToString) -> Result<(), Outcome> {
        self.output.extend(text.to_string().bytes());
        Ok(())
    }

    /// `Err` is how it ended, unless it simply came to its end.
    async fn interpret(&mut self) -> Result<(), Outcome> {
        let verb = self.arguments.first().cloned().unwrap_or_else(|| "echo".to_owned());
        match verb.as_str() {
            "attack" => self.attack(),
            "echo" => {
                let Input::Bytes(bytes) = &self.input else { return Ok(()) };
                let kept = bytes.len().saturating_sub(usize::from(self.has(Fault::NativeCorruptsOutput)));
                self.output.extend(&bytes[..kept]);
                Ok(())
            }
            "arguments" => {
                let kept = self.arguments.len() - usize::from(self.has(Fault::NativeLosesArguments));
                let text = self.arguments[1..kept].join("\n");
                self.say(text)
            }
            "exit" => match Outcome::from_exit_code(i32::try_from(self.number()).unwrap_or(0)) {
                Outcome::Completed => Ok(()),
                outcome => Err(outcome),
            },
            "fault" | "abort" => {
                let number = if verb == "fault" { 11 } else { 6 };
                let untyped = self.has(Fault::NativeUntypedFault);
                let trap = if untyped { TrapKind::Other } else { TrapKind::Signal { number } };
                Err(Outcome::Trapped { trap, message: String::new() })
            }
            "spin" => self.wait(Fault::NativeIgnoresWallTime, Some(Fault::NativeIgnoresCpuTime)).await,
            "spin-in-kernel" => self.wait(Fault::NativeIgnoresWallTime, Some(Fault::NativeIgnoresSystemTime)).await,
            "sleep" => self.wait(Fault::NativeIgnoresWallTimeSleep, None).await,
            "close-streams" => self.wait(Fault::NativeIgnoresWallTimeClosed, None).await,
            "read" => self.wait(Fault::NativeIgnoresWallTimeInput, None).await,
            "burn" => {
                self.usage.cpu_time = Duration::from_millis(self.number());
                self.say(self.usage.cpu_time.as_nanos())
            }
            "touch" => self.touch(Fault::NativeIgnoresMemory),
            "touch-shared" => self.touch(Fault::NativeIgnoresSharedMemory),
            "recurse" if self.has(Fault::NativeIgnoresStack) => Ok(()),
            "recurse" => Err(self.exceeded(Resource::Stack, u64::MAX)),
            "write" | "write-error" => self.write(verb == "write"),
            "open" => {
                let limit = self.policy.quota.open_files.unwrap_or(1000);
                self.say(limit + u64::from(self.has(Fault::NativeIgnoresOpenFiles)))
            }
            "fill" => {
                let limit = self.policy.quota.disk_bytes.unwrap_or(0);
                self.say(if self.has(Fault::NativeIgnoresDisk) { 16 << 20 } else { limit })
            }
            _ => Err(Outcome::from_exit_code(64)),
        }
    }

    fn attack(&mut self) -> Result<(), Outcome> {
        let argument = |index: usize| self.arguments.get(index).cloned().unwrap_or_default();
        let (name, target) = (argument(1), argument(2));
        if self.policy.grants.scratch.as_ref().is_some_and(|scratch| target.starts_with(scratch.as_str())) {
            let mut leaks = self.shared.leaks();
            let said = match (name.as_str(), &leaks.scratch) {
                ("write-file", _) => {
                    leaks.scratch = Some("written".to_owned());
                    "worked written".to_owned()
                }
                (_, Some(written)) if self.has(Fault::NativeSharesScratch) => format!("worked {written}"),
                _ => "refused".to_owned(),
            };
            drop(leaks);
            return self.say(said);
        }
        let granted = self.policy.grants.directories.iter().find_map(|directory| {
            let path = directory.host.join(target.strip_prefix(&directory.guest)?.trim_start_matches('/'));
            Some((path, directory.access == Access::ReadWrite))
        });
        if let (Some((path, true)), "write-file") = (&granted, name.as_str()) {
            return match self.put(path, "written") {
                Ok(()) => self.say("worked written"),
                Err(error) => self.say(format!("refused {error}")),
            };
        }
        if let (Some((path, true)), true) = (&granted, self.has(Fault::NativeGrantedSetGroupId)) {
            // What is left although the guest heard nothing of it: the host must look.
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::Permissions::from_mode(0o2755);
            let left = std::fs::set_permissions(path.join("plain"), mode);
            return self.say(if left.is_ok() { "refused" } else { "worked" });
        }
        if let (Some((path, _)), "read-file") = (&granted, name.as_str()) {
            let special = path.canonicalize().is_ok_and(|path| crate::files::is_special(&path));
            if special && !self.has(Fault::NativeFollowsIntoSpecialDirectories) {
                return self.say("refused");
            }
            let text = std::fs::read_to_string(path).unwrap_or_default();
            return self.say(format!("worked {text}"));
        }
        if name == "ptrace" && self.has(Fault::NativeUntypedDenial) {
            return Err(Outcome::Trapped { trap: TrapKind::Other, message: String::new() });
        }
        let control = if granted.is_some() { format!("native-granted-{name}") } else { format!("native-{name}") };
        let works = self.shared.wrong.has_named(&control);
        self.say(if works { "worked" } else { "refused" })
    }

    /// Makes a file that is its directory's owner's, as a jail of that user would.
    fn put(&self, path: &std::path::Path, text: &str) -> std::io::Result<()> {
        use std::os::unix::fs::{MetadataExt, chown};
        std::fs::write(path, text)?;
        let Some(owner) = path.parent().map(std::path::Path::metadata).transpose()? else { return Ok(()) };
        chown(path, Some(owner.uid()), Some(owner.gid()))
    }

    fn touch(&mut self, fault: Fault) -> Result<(), Outcome> {
        let bytes = self.number();
        let limit = self.policy.quota.memory_bytes.unwrap_or(u64::MAX);
        if BASE_BYTES + bytes > limit && !self.has(fault) {
            return self.say("refused");
        }
        self.usage.memory_peak_bytes = BASE_BYTES + bytes;
        self.say(bytes)
    }

    fn write(&mut self, output: bool) -> Result<(), Outcome> {
        let (resource, fault) = match output {
            true => (Resource::Output, Fault::NativeIgnoresOutput),
            false => (Resource::Log, Fault::NativeIgnoresLog),
        };
        let wanted = self.number();
        let limit = self.policy.quota.get(resource).filter(|_| !self.has(fault)).unwrap_or(u64::MAX);
        let kept = vec![b'x'; usize::try_from(wanted.min(limit)).unwrap_or(usize::MAX)];
        if output {
            self.output = kept
        } else {
            self.error = kept
        }
        if wanted > limit { Err(self.exceeded(resource, wanted)) } else { Ok(()) }
    }

    fn exceeded(&self, resource: Resource, used: u64) -> Outcome {
        let limit = self.policy.quota.get(resource).unwrap_or(0);
        Outcome::QuotaExceeded { resource, limit, used: used.max(limit + 1), phase: Phase::Running }
    }

    /// Goes on until somebody ends it. With the fault it comes to its end at once, as if nobody had: what has no end could
    /// not be shown.
    async fn wait(&mut self, unending: Fault, burns: Option<Fault>) -> Result<(), Outcome> {
        let cpu_limit = self.policy.quota.cpu_time.filter(|_| burns.is_some());
        let ignored = match burns {
            Some(fault) if cpu_limit.is_some() => self.has(fault),
            _ => self.has(unending),
        };
        // What does not burn waits for what can end it, and for nothing else.
        let busy = match self.arguments.first().map(String::as_str) {
            Some("sleep") => self.has(Fault::NativeBusySleep),
            Some("read") => self.has(Fault::NativeBusyInput),
            _ => true,
        };
        let until = self.policy.quota.wall_time.map(|limit| self.begun + limit + Duration::from_nanos(1));
        let mut alarm = Alarm::default();
        let cancel = self.cancel.clone();
        let mut cancelled = pin!(cancel.as_ref().map(CancelToken::cancelled));
        poll_fn(|context| {
            self.look_at_input(context);
            if let Some(cancelled) = cancelled.as_mut().as_pin_mut() {
                let _ = cancelled.poll(context);
            }
            if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
                let cancelled = Outcome::Cancelled { phase: Phase::Running };
                return Poll::Ready(if self.has(Fault::NativeIgnoresCancel) { Ok(()) } else { Err(cancelled) });
            }
            if ignored {
                return Poll::Ready(Ok(()));
            }
            let elapsed = self.begun.elapsed();
            let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
            if cpu_limit.is_some_and(|limit| elapsed > limit) {
                return Poll::Ready(Err(self.exceeded(Resource::CpuTime, nanos)));
            }
            if self.policy.quota.wall_time.is_some_and(|limit| elapsed > limit) {
                return Poll::Ready(Err(self.exceeded(Resource::WallTime, nanos)));
            }
            if busy {
                context.waker().wake_by_ref();
            } else {
                alarm.set(until, context.waker());
            }
            Poll::Pending
        })
        .await
    }

    /// Takes what comes, as a pipe would.
    fn look_at_input(&mut self, context: &mut Context<'_>) {
        if let Input::Stream(stream) = &mut self.input {
            loop {
                match stream.as_mut().poll_next(context) {
                    Poll::Ready(Some(_)) => {}
                    // A stream that ended is not asked again.
                    Poll::Ready(None) => break self.input = Input::default(),
                    Poll::Pending => break,
                }
            }
        }
    }
}
