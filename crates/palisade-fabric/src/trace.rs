//! Spans of attempts and of their host calls, joined by W3C trace context.

use std::sync::Arc;

use palisade_core::{BoxFuture, Bytes, HostCall, HostFunction, HostFunctionError, Lease, TraceContext};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

/// The span of one attempt, and what its host calls carry.
pub(crate) struct AttemptTrace {
    pub(crate) span: Span,
    /// `None` when nobody traces: then nothing is drawn.
    pub(crate) context: Option<Arc<TraceContext>>,
}

impl AttemptTrace {
    /// Opens the span. A task that came without a trace is one of its own, whose id is the task's.
    pub(crate) fn open(lease: &Lease) -> AttemptTrace {
        let task = &lease.task;
        let span = info_span!(
            "task",
            task_id = %task.id,
            tenant = &*task.tenant.0,
            plugin = %task.plugin,
            attempt = lease.attempt,
            trace_id = Empty,
            parent_span_id = Empty,
            span_id = Empty,
            outcome = Empty,
        );
        if span.is_disabled() && task.trace.is_none() {
            return AttemptTrace { span, context: None };
        }
        let given = task.trace.as_ref().filter(|trace| trace.trace_id().is_some());
        let context = match given {
            Some(trace) => within(&span, trace),
            None => {
                let own = format!("00-{}-{:016x}-01", task.id.0.simple(), span_id());
                let context = TraceContext { traceparent: own, tracestate: String::new() };
                record(&span, &context);
                Some(context)
            }
        };
        AttemptTrace { span, context: context.map(Arc::new) }
    }
}

/// The context of what happens in `span`, a new part of `trace`.
fn within(span: &Span, trace: &TraceContext) -> Option<TraceContext> {
    span.record("parent_span_id", trace.parent_span_id()?);
    let context = trace.child(span_id())?;
    record(span, &context);
    Some(context)
}

fn record(span: &Span, context: &TraceContext) {
    span.record("trace_id", context.trace_id()).record("span_id", context.parent_span_id());
}

/// A random id; zero is none.
fn span_id() -> u64 {
    // A system without randomness does not start a scheduler either.
    getrandom::u64().unwrap_or(1).max(1)
}

/// A host function whose calls are spans of their trace.
pub(crate) struct Traced(pub(crate) Arc<dyn HostFunction>);

impl HostFunction for Traced {
    fn call(&self, mut call: HostCall) -> BoxFuture<'static, Result<Bytes, HostFunctionError>> {
        let Some(trace) = &call.trace else { return self.0.call(call) };
        let name = &*call.name;
        let span = info_span!("host_call", name, trace_id = Empty, parent_span_id = Empty, span_id = Empty);
        if span.is_disabled() {
            // What goes out is a part of the attempt.
            return self.0.call(call);
        }
        call.trace = within(&span, trace).map(Arc::new);
        let function = span.in_scope(|| self.0.call(call));
        Box::pin(function.instrument(span))
    }
}
