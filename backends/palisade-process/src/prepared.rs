//! A module prepared for a policy: its jail, and the processes that wait in it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Weak};

use palisade_core::{Error, ErrorKind, HostFunctions, Layer, Result};

use crate::jail::Jail;
use crate::kind::Kind;
use crate::pool::{Pool, fill_later};
use crate::process::Process;

/// A module with its policy, and the jail in which its instances run.
pub(crate) struct ProcessPrepared {
    this: Weak<ProcessPrepared>,
    /// Before the jail, so that its processes end first.
    pub(crate) pool: Arc<Pool>,
    pub(crate) jail: Arc<Jail>,
    pub(crate) kind: Kind,
    pub(crate) functions: HostFunctions,
    pub(crate) isolation: Arc<[Layer]>,
    entries: BTreeSet<String>,
}

impl fmt::Debug for ProcessPrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPrepared").field("policy", &self.jail.policy).finish_non_exhaustive()
    }
}

impl ProcessPrepared {
    pub(crate) fn new(
        jail: Jail,
        kind: Kind,
        functions: HostFunctions,
        entries: impl IntoIterator<Item = String>,
    ) -> Arc<ProcessPrepared> {
        let jail = Arc::new(jail);
        Arc::new_cyclic(|this| ProcessPrepared {
            this: this.clone(),
            pool: Arc::new(Pool::new(Arc::clone(&jail))),
            isolation: jail.shared.isolation(&jail.policy, &kind),
            jail,
            kind,
            functions,
            entries: entries.into_iter().collect(),
        })
    }

    /// Itself, for what outlives a borrow. `None` while it is being dropped.
    pub(crate) fn this(&self) -> Option<Arc<ProcessPrepared>> {
        self.this.upgrade()
    }

    /// A process for one instance: one that was made ahead, if there is one.
    pub(crate) fn process(&self) -> Result<Process> {
        let parked = self.pool.take();
        if self.pool.used_before() {
            fill_later(Arc::downgrade(&self.pool));
        }
        parked.map_or_else(|| Process::create(&self.jail), Ok)
    }

    /// Whether `entry` can be called.
    pub(crate) fn check_entry(&self, entry: &str) -> Result<()> {
        if self.entries.contains(entry) {
            return Ok(());
        }
        let known = self.entries.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(Error::new(ErrorKind::NotFound, "call", format!("there is no entry `{entry}`"))
            .with_context("entry", entry)
            .with_help(match (&self.kind, known.is_empty()) {
                (Kind::Library, true) => "the library exports no function".to_owned(),
                _ => format!("entries: {known}"),
            }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessSandbox;
    use crate::elf;
    use crate::kind::PROGRAM_ENTRY;
    use crate::plan::plan;
    use crate::sys::protocol::INSTANCE_FDS;
    use crate::zygote::sealed;
    use palisade_core::{
        Artifact, ArtifactKind, BackendOptions, Call, Clocks, ErrorKind, Outcome, Policy, PreparedExt, block_on,
    };
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// `/bin/true`, prepared.
    fn prepared_program() -> Arc<ProcessPrepared> {
        let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap();
        let own = Artifact::new(ArtifactKind::Executable, std::fs::read("/bin/true").unwrap());
        let kind = Kind::Executable(elf::parse(own.bytes()).unwrap());
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        let plan = plan(sandbox.shared(), &own, &kind, &policy, None).unwrap();
        let program = Arc::new(sealed("test", own.bytes()).unwrap());
        let jail = Jail::build(Arc::clone(sandbox.shared()), policy, false, plan, program).unwrap();
        ProcessPrepared::new(jail, kind, HostFunctions::new(), [PROGRAM_ENTRY.to_owned()])
    }

    #[test]
    fn an_instance_is_parked_ahead_and_used_once_unless_it_died() {
        let prepared = prepared_program();
        assert!(prepared.pool.take().is_none());
        prepared.pool.fill();
        assert_eq!(prepared.pool.pids().len(), 2);
        let [stays, dies] = prepared.pool.pids()[..] else { unreachable!() };
        let pid = rustix::process::Pid::from_raw(dies).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None).unwrap();
        assert_eq!(prepared.pool.take().map(|process| process.pid), Some(stays));
        assert!(prepared.pool.take().is_none());
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
    }

    #[test]
    fn a_zygote_that_was_killed_is_replaced() {
        let prepared = prepared_program();
        let before = prepared.jail.zygote().pid();
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
        let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Some may still be waiting that it made.
        for _ in 0..5 {
            assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
        }
        assert_ne!(prepared.jail.zygote().pid(), before);
    }

    #[test]
    fn an_answer_that_comes_late_is_nobodys() {
        use rustix::process::{Pid, Signal, kill_process};
        let prepared = prepared_program();
        let zygote = prepared.jail.zygote();
        let pid = Pid::from_raw(zygote.pid().cast_signed()).unwrap();
        zygote.answer_within(Duration::from_millis(20));
        kill_process(pid, Signal::STOP).unwrap();
        let null = prepared.jail.null.as_fd();
        let create = || zygote.create([null; INSTANCE_FDS]).map(|created| created.pid);
        assert_eq!(create().unwrap_err().kind(), ErrorKind::Io);
        // Going on it would answer the question nobody waits for any more, and the next one's asker would take that.
        let _ = kill_process(pid, Signal::CONT);
        for _ in 0..10 {
            assert_eq!(create().unwrap_err().kind(), ErrorKind::Io);
        }
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
    }
}
