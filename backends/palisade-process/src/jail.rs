//! The jail of a module under one policy: its plan, and the zygote that makes processes in it.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use palisade_core::{Error, ErrorKind, Policy, Result};

use crate::shared::Shared;
use crate::sys::protocol::{INSTANCE_FDS, Plan};
use crate::zygote::{Created, Zygote};

/// A jail, and what every process in it begins with.
#[derive(Debug)]
pub(crate) struct Jail {
    pub(crate) shared: Arc<Shared>,
    pub(crate) policy: Policy,
    /// It holds a shared library, not a program.
    pub(crate) is_library: bool,
    /// For the streams that a process does not have.
    pub(crate) null: OwnedFd,
    plan: Plan,
    /// What it runs, as a file.
    program: Arc<OwnedFd>,
    zygote: Mutex<Arc<Zygote>>,
}

impl Jail {
    /// Builds the jail of `plan`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] naming the step that failed.
    pub(crate) fn build(
        shared: Arc<Shared>,
        policy: Policy,
        is_library: bool,
        plan: Plan,
        program: Arc<OwnedFd>,
    ) -> Result<Jail> {
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(|error| {
                Error::new(ErrorKind::Io, "prepare", "/dev/null cannot be opened").with_source(error)
            })?;
        let zygote = Mutex::new(Arc::new(Zygote::start(&plan, Some(&program))?));
        Ok(Jail { shared, policy, is_library, null: null.into(), plan, program, zygote })
    }

    /// Has the zygote make an instance; a zygote that died is replaced, once.
    pub(crate) fn create(&self, fds: [BorrowedFd<'_>; INSTANCE_FDS]) -> Result<Created> {
        let current = || Arc::clone(&self.zygote.lock().unwrap_or_else(PoisonError::into_inner));
        let zygote = current();
        match zygote.create(fds) {
            Err(error) if error.kind() == ErrorKind::Io => {
                let mut slot = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
                if Arc::ptr_eq(&slot, &zygote) {
                    *slot = Arc::new(Zygote::start(&self.plan, Some(&self.program))?);
                }
                let fresh = Arc::clone(&slot);
                drop(slot);
                fresh.create(fds)
            }
            result => result,
        }
    }

    #[cfg(test)]
    pub(crate) fn zygote(&self) -> Arc<Zygote> {
        Arc::clone(&self.zygote.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
