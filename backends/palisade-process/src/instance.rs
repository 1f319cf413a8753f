//! One instance: a process parked in its jail, and the calls made in it.

use std::fmt;
use std::sync::Arc;

use palisade_core::{BoxFuture, Call, Error, ErrorKind, Execution, Instance, Policy, Prepared, Result};

use crate::call;
use crate::kind::Kind;
use crate::prepared::ProcessPrepared;
use crate::process::Process;
use crate::shared::Slot;

/// An instance. After an abnormal end it holds nothing any more.
pub(crate) struct ProcessInstance {
    prepared: Arc<ProcessPrepared>,
    process: Option<Process>,
    usable: bool,
    _slot: Slot,
}

impl fmt::Debug for ProcessInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessInstance").field("usable", &self.usable).field("process", &self.process).finish()
    }
}

impl ProcessInstance {
    pub(crate) fn new(prepared: Arc<ProcessPrepared>, process: Process, slot: Slot) -> Self {
        ProcessInstance { prepared, process: Some(process), usable: true, _slot: slot }
    }
}

impl Instance for ProcessInstance {
    fn call(&mut self, call: Call) -> BoxFuture<'_, Result<Execution>> {
        Box::pin(async move {
            self.prepared.check_entry(&call.entry)?;
            if let Some(argument) = call.arguments.iter().find(|argument| argument.contains('\0')) {
                let message = format!("argument {argument:?} has a NUL byte");
                return Err(Error::new(ErrorKind::InvalidInput, "call", message));
            }
            let length: usize = call.arguments.iter().map(|argument| argument.len() + 8).sum();
            if length > call::ARGUMENT_BYTES_MAX {
                let message = format!("{length} bytes of arguments are more than {}", call::ARGUMENT_BYTES_MAX);
                return Err(Error::new(ErrorKind::InvalidInput, "call", message).with_help("pass data as input"));
            }
            if !self.usable {
                return Err(Error::new(
                    ErrorKind::Stale,
                    "call",
                    "this instance ended abnormally, or its call was dropped, and serves no more calls",
                )
                .with_help("make a fresh instance"));
            }
            // Until the call has ended well: when it is dropped, the instance has nothing to go on with.
            self.usable = false;
            let mut process = match self.process.take() {
                Some(process) => process,
                // A program ends with its call; the next call starts it anew.
                None => self.prepared.process()?,
            };
            process.end_rest();
            let execution = call::run(&self.prepared, &mut process, call).await?;
            self.usable = execution.outcome.leaves_instance_usable();
            if self.usable && matches!(self.prepared.kind, Kind::Library) {
                // One that cannot be kept from computing is not kept.
                self.usable = process.begin_rest().is_ok();
                self.process = self.usable.then_some(process);
            }
            Ok(execution)
        })
    }
}

impl Prepared for ProcessPrepared {
    fn policy(&self) -> &Policy {
        &self.jail.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let slot = self.jail.shared.slot()?;
            let Some(this) = self.this() else {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "the prepared module is being dropped"));
            };
            let process = self.process()?;
            Ok(Box::new(ProcessInstance::new(this, process, slot)) as Box<dyn Instance>)
        })
    }
}
