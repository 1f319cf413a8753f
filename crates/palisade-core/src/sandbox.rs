//! The contract of a sandbox.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;

use crate::{
    Artifact, BoxFuture, CancelToken, Capabilities, Execution, HostFunctions, LogLevel, ModuleInfo, Policy, Result,
    TraceContext,
};

/// A backend: loads artifacts and makes isolated instances of them.
///
/// # Contract
///
/// The methods are object-safe and async; any executor can drive them. A backend needs no runtime of its caller, and
/// blocks no thread of the caller for longer than one time slice (about a millisecond) of guest code.
///
/// *Dropping is cancelling*: when a future of this contract is dropped, the guest is stopped and its resources are
/// released promptly, whatever it was doing.
///
/// Certification (`palisade certify`) checks each sentence under `# Behavior`.
pub trait Sandbox: Send + Sync + fmt::Debug {
    /// What this backend can enforce on this machine.
    ///
    /// # Behavior
    ///
    /// * Constant for the life of the sandbox.
    /// * Everything declared works; everything not declared is refused by [`Module::prepare`].
    fn capabilities(&self) -> &Capabilities;

    /// Validates and compiles an artifact.
    ///
    /// # Behavior
    ///
    /// * Runs no code of the artifact.
    /// * Treats the artifact as hostile: its size, its structure and the time to compile it are bounded.
    /// * The module does not depend on the artifact's bytes afterwards.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArtifact`](crate::ErrorKind::InvalidArtifact) when it is malformed or breaks a bound,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when the backend does not load this kind.
    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>>;
}

/// An artifact loaded by a sandbox. Shared, and cheap to make instances of.
pub trait Module: Send + Sync + fmt::Debug {
    /// What the backend found in the artifact.
    fn info(&self) -> &ModuleInfo;

    /// Fixes the policy: checks it, opens the granted directories, binds the imports. Once, for many instances.
    ///
    /// # Behavior
    ///
    /// * Refuses whatever the backend cannot enforce or provide; nothing is silently weaker.
    /// * Directories are opened here; replacing a path afterwards changes nothing for the guest.
    /// * Of `host`, guests see what [`Grants::host_functions`](crate::Grants::host_functions) names.
    ///
    /// # Errors
    ///
    /// Kinds `InvalidPolicy`, `Unsupported` (the policy asks for, or the artifact imports, what the backend does not provide;
    /// every missing import is listed with what would provide it), `NotFound` (a granted directory or host function does
    /// not exist), `InvalidArtifact` (an import has the wrong type), `Io`.
    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>>;
}

/// A module with its policy: makes instances.
pub trait Prepared: Send + Sync + fmt::Debug {
    /// The policy instances run under.
    fn policy(&self) -> &Policy;

    /// Makes a fresh instance.
    ///
    /// # Behavior
    ///
    /// * Shares no state with any other instance.
    /// * Runs no guest code: a start function runs inside the first call, within that call's quota.
    /// * Dropping the instance releases everything it holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`](crate::ErrorKind::Exhausted) when the backend's bound on instances is reached.
    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>>;
}

/// One isolated execution context of a module.
pub trait Instance: Send + fmt::Debug {
    /// Calls an entry point and waits for its end.
    ///
    /// # Behavior
    ///
    /// * Whatever the guest does ends in an [`Execution`] with an [`Outcome`](crate::Outcome) and its
    ///   [`Usage`](crate::Usage). `Err` means that no guest code ran.
    /// * Wall time, CPU time, fuel, output, log, disk and host-call quotas count anew in each call; memory, globals and
    ///   open files live as long as the instance.
    /// * After an outcome that does not [leave the instance usable](crate::Outcome::leaves_instance_usable), and after a
    ///   dropped call, every further call is refused with [`ErrorKind::Stale`](crate::ErrorKind::Stale).
    /// * A [`CancelToken`] that is cancelled before the call ends it before guest code runs; one that is cancelled after
    ///   the call ended changes nothing, neither for it nor for the next call.
    /// * A panic of a host function ends this call only, as `Crashed`.
    /// * Of a WebAssembly module that exports a function `_initialize` without parameters or results, that function runs
    ///   before the first call's entry, once in each instance and within that call's quota.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an entry that does not exist or has the wrong type
    /// (listing those that do), `InvalidInput` for a malformed argument, `Stale` as above.
    fn call(&mut self, call: Call) -> BoxFuture<'_, Result<Execution>>;
}

/// Conveniences for users of a [`Prepared`] module.
pub trait PreparedExt: Prepared {
    /// Makes a fresh instance, calls it once and drops it.
    ///
    /// # Errors
    ///
    /// Those of [`Prepared::instantiate`] and [`Instance::call`].
    fn run(&self, call: Call) -> impl Future<Output = Result<Execution>> + Send {
        async move { self.instantiate().await?.call(call).await }
    }
}

impl<P: Prepared + ?Sized> PreparedExt for P {}

/// One call of an entry point.
///
/// ```
/// use palisade_core::Call;
///
/// let call = Call::new().entry("resize").arguments(["--width", "640"]).input(&b"picture"[..]);
/// assert_eq!(call.entry, "resize");
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Call {
    /// Name of the entry point; default `_start`.
    pub entry: Cow<'static, str>,
    /// Arguments after the program's own name.
    pub arguments: Vec<String>,
    /// Standard input, or a reactor's input.
    pub input: Input,
    /// Ends the call when cancelled.
    pub cancel: Option<CancelToken>,
    /// Takes output as it comes, in place of collecting it in the [`Execution`].
    pub sink: Option<Arc<dyn OutputSink>>,
    /// The trace the call belongs to, for the host functions it calls.
    pub trace: Option<Arc<TraceContext>>,
}

impl Default for Call {
    fn default() -> Self {
        Self::new()
    }
}

impl Call {
    /// The entry a call has unless it names another.
    pub const DEFAULT_ENTRY: &'static str = "_start";

    /// A call of `_start` without arguments or input.
    pub fn new() -> Self {
        Call {
            entry: Cow::Borrowed(Self::DEFAULT_ENTRY),
            arguments: Vec::new(),
            input: Input::default(),
            cancel: None,
            sink: None,
            trace: None,
        }
    }

    /// Sets the entry point.
    #[must_use]
    pub fn entry(mut self, entry: impl Into<Cow<'static, str>>) -> Self {
        self.entry = entry.into();
        self
    }

    /// Sets the arguments after the program's own name.
    #[must_use]
    pub fn arguments<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Input>) -> Self {
        self.input = input.into();
        self
    }

    /// Lets `token` end the call.
    #[must_use]
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Makes the call a part of a trace.
    #[must_use]
    pub fn trace(mut self, trace: Arc<TraceContext>) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sends output to `sink` as it comes.
    #[must_use]
    pub fn sink(mut self, sink: Arc<dyn OutputSink>) -> Self {
        self.sink = Some(sink);
        self
    }
}

/// What a guest reads as its input.
pub enum Input {
    /// All of it, known before the call.
    Bytes(Bytes),
    /// Pieces that arrive during the call; the guest waits for them within its wall time. A piece that is an error ends
    /// the input.
    Stream(Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>),
}

impl Default for Input {
    fn default() -> Self {
        Input::Bytes(Bytes::new())
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Input::Stream(_) => write!(f, "Stream"),
        }
    }
}

impl Input {
    /// Pieces that arrive during the call.
    pub fn stream(pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Input {
        Input::Stream(Box::pin(pieces))
    }
}

macro_rules! input_from {
    ($($bytes:ty)*) => {
        $(impl From<$bytes> for Input {
            fn from(bytes: $bytes) -> Self {
                Input::Bytes(bytes.into())
            }
        })*
    };
}
// One by one: an implementation for whatever becomes bytes would leave no room for any other.
input_from! { Bytes Vec<u8> Box<[u8]> String &'static [u8] &'static str }

impl<const N: usize> From<&'static [u8; N]> for Input {
    fn from(bytes: &'static [u8; N]) -> Self {
        Input::Bytes(Bytes::from_static(bytes))
    }
}

/// Takes what a guest writes, as it writes it, already within its quotas.
pub trait OutputSink: Send + Sync + fmt::Debug {
    /// Takes a piece.
    ///
    /// # Behavior
    ///
    /// * Called in the order in which the guest wrote, and not after the call ended; on the thread that drives the call, or
    ///   on the guest's where it has one. It must not block.
    fn write(&self, stream: OutputStream, bytes: &[u8]);
}

/// Where a guest wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output, or a reactor's output.
    Output,
    /// Standard error, or a reactor's error text.
    Error,
    /// A log record.
    Log(LogLevel),
}
