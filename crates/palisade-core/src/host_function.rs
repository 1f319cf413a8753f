//! Functions of the host that a guest may call by name.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::{BoxFuture, Error, ErrorKind, Grants, Result, TraceContext, on_thread};

/// One call of a host function by a guest.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostCall {
    /// Name the guest called.
    pub name: Arc<str>,
    /// What the guest passed. Untrusted.
    pub input: Bytes,
    /// The trace the call belongs to, with its span as parent: what a call that goes out for it carries.
    pub trace: Option<Arc<TraceContext>>,
}

/// An error a host function gives back to the guest, which may handle it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFunctionError(pub String);

impl fmt::Display for HostFunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for HostFunctionError {
    fn from(message: T) -> Self {
        HostFunctionError(message.into())
    }
}

/// A function of the host that guests may call: bytes in, bytes out.
///
/// Async closures implement it; see [`HostFunctions::add`].
pub trait HostFunction: Send + Sync + 'static {
    /// Runs the function.
    ///
    /// # Behavior
    ///
    /// * The future is dropped when the guest's call ends first (deadline, cancel), so it must not block its thread.
    /// * A panic ends the guest's call with [`Outcome::Crashed`](crate::Outcome::Crashed), and nothing else.
    /// * The time it takes counts towards the guest's wall time.
    fn call(&self, call: HostCall) -> BoxFuture<'static, Result<Bytes, HostFunctionError>>;
}

impl<F, R> HostFunction for F
where
    F: Fn(HostCall) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Bytes, HostFunctionError>> + Send + 'static,
{
    fn call(&self, call: HostCall) -> BoxFuture<'static, Result<Bytes, HostFunctionError>> {
        Box::pin(self(call))
    }
}

/// The host functions an embedder offers. What a guest may call of them is granted by name in
/// [`Grants::host_functions`].
///
/// ```
/// use palisade_core::HostFunctions;
///
/// let functions = HostFunctions::new()
///     .add("greet", |call| async move { Ok([b"hello ", &call.input[..]].concat().into()) })
///     .add_blocking("read_config", |_call| std::fs::read("config").map(Into::into).map_err(|e| e.to_string().into()));
/// assert_eq!(functions.names().collect::<Vec<_>>(), ["greet", "read_config"]);
/// ```
#[derive(Clone, Default)]
pub struct HostFunctions(BTreeMap<Arc<str>, Arc<dyn HostFunction>>);

impl HostFunctions {
    /// No function.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an async function, in place of any earlier one of that name.
    #[must_use]
    pub fn add<F, R>(self, name: &str, function: F) -> Self
    where
        F: Fn(HostCall) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Bytes, HostFunctionError>> + Send + 'static,
    {
        self.add_function(name, Arc::new(function))
    }

    /// Adds a function that blocks. Each call runs on a thread of its own; when the guest's call ends first, the thread
    /// is left behind until the function returns. At most 256 such threads exist at once in a process; beyond that the
    /// guest gets an error.
    #[must_use]
    pub fn add_blocking<F>(self, name: &str, function: F) -> Self
    where
        F: Fn(HostCall) -> Result<Bytes, HostFunctionError> + Send + Sync + 'static,
    {
        self.add_function(name, Arc::new(Blocking(Arc::new(function))))
    }

    /// Adds any [`HostFunction`], in place of any earlier one of that name.
    #[must_use]
    pub fn add_function(mut self, name: &str, function: Arc<dyn HostFunction>) -> Self {
        self.0.insert(name.into(), function);
        self
    }

    /// Puts around each function what `wrap` makes of it.
    #[must_use]
    pub fn wrapped(self, wrap: impl Fn(Arc<dyn HostFunction>) -> Arc<dyn HostFunction>) -> Self {
        HostFunctions(self.0.into_iter().map(|(name, function)| (name, wrap(function))).collect())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }

    /// Keeps what `grants` names.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when a granted function does not exist, listing those that do.
    pub fn granted(&self, grants: &Grants) -> Result<HostFunctions> {
        let mut granted = BTreeMap::new();
        for name in &grants.host_functions {
            let Some((name, function)) = self.0.get_key_value(name.as_str()) else {
                let known = self.names().collect::<Vec<_>>().join(", ");
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "prepare",
                    format!("the policy grants host function `{name}`, which this host does not offer"),
                )
                .with_help(format!("it offers: {}", if known.is_empty() { "none" } else { &known })));
            };
            granted.insert(Arc::clone(name), Arc::clone(function));
        }
        Ok(HostFunctions(granted))
    }

    /// Calls the function `name`, or returns `None` when there is none.
    ///
    /// `trace` is that of the [`Call`](crate::Call). Backends use this: a panic of the function is caught and given as `Err` with its text.
    pub fn invoke(&self, name: &str, input: Bytes, trace: Option<&Arc<TraceContext>>) -> Option<Invocation> {
        let (name, function) = self.0.get_key_value(name)?;
        let call = HostCall { name: Arc::clone(name), input, trace: trace.cloned() };
        Some(Invocation(match catch_unwind(AssertUnwindSafe(|| function.call(call))) {
            Ok(future) => Ok(future),
            Err(panic) => Err(panic_text(&*panic)),
        }))
    }
}

impl fmt::Debug for HostFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A running host function: `Err` is the text of its panic.
pub struct Invocation(Result<BoxFuture<'static, Result<Bytes, HostFunctionError>>, String>);

impl Future for Invocation {
    type Output = Result<Result<Bytes, HostFunctionError>, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(future) => match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
            },
            Err(text) => Poll::Ready(Err(text.clone())),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}

/// Most threads of blocking host functions in the process.
const BLOCKING_THREADS_MAX: usize = 256;
static BLOCKING_THREADS: AtomicUsize = AtomicUsize::new(0);

struct Blocking<F>(Arc<F>);

impl<F> HostFunction for Blocking<F>
where
    F: Fn(HostCall) -> Result<Bytes, HostFunctionError> + Send + Sync + 'static,
{
    fn call(&self, call: HostCall) -> BoxFuture<'static, Result<Bytes, HostFunctionError>> {
        /// Counts a thread for as long as it lives, also when its function panics.
        struct Counted;
        impl Drop for Counted {
            fn drop(&mut self) {
                BLOCKING_THREADS.fetch_sub(1, Ordering::SeqCst);
            }
        }

        if BLOCKING_THREADS.fetch_add(1, Ordering::SeqCst) >= BLOCKING_THREADS_MAX {
            drop(Counted);
            return Box::pin(async { Err("too many blocking host functions are running".into()) });
        }
        let counted = Counted;
        let function = Arc::clone(&self.0);
        let work = move || {
            let _counted = counted;
            function(call)
        };
        match on_thread("palisade-host-fn", work) {
            // A panic is carried over to the caller's thread, where `Invocation` turns it into the call's outcome.
            Ok(answer) => Box::pin(async { answer.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) }),
            Err(error) => Box::pin(async move { Err(format!("cannot start a thread: {error}").into()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_on;

    fn functions() -> HostFunctions {
        HostFunctions::new()
            .add("echo", |call| async move { Ok(call.input) })
            .add("fails", |_| async { Err("no".into()) })
            .add("panics", |_| async { panic!("boom") })
            .add_blocking("blocks", |call| Ok(call.input))
            .add_blocking("blocks_and_panics", |_| panic!("bang {}", 7))
    }

    #[test]
    fn results_errors_and_panics_come_back_apart() {
        let call = |name: &str| block_on(functions().invoke(name, Bytes::from_static(b"x"), None).unwrap());
        assert_eq!(call("echo"), Ok(Ok(Bytes::from_static(b"x"))));
        assert_eq!(call("fails"), Ok(Err(HostFunctionError("no".into()))));
        assert_eq!(call("panics"), Err("boom".into()));
        assert_eq!(call("blocks"), Ok(Ok(Bytes::from_static(b"x"))));
        assert_eq!(call("blocks_and_panics"), Err("bang 7".into()));
        assert!(functions().invoke("missing", Bytes::new(), None).is_none());
    }

    #[test]
    fn only_what_is_granted_is_kept() {
        let mut grants = Grants::default();
        grants.host_functions.insert("echo".into());
        assert_eq!(functions().granted(&grants).unwrap().names().collect::<Vec<_>>(), ["echo"]);
        grants.host_functions.insert("ecko".into());
        let error = functions().granted(&grants).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("`ecko`") && error.to_string().contains("echo, fails"), "{error}");
    }
}
