//! Traces: what calls carry along, and the spans of runs and steps.
//!
//! **Everything durable hangs on the context of the start.** It is the only place in a run's trace that no
//! crash takes away: the span of an execution is exported when that ends, and never if its worker is
//! killed. So steps are no children of the execution that they are part of, and what the worker writes on
//! behalf of a run carries the start's context too. A trace then has no holes, whoever dies.

use std::future::Future;
use std::sync::Arc;

use kagzi_core::{Failure, Run, RunId, StepId, TraceContext, WorkerId, WorkflowType};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tracing::Span;
use tracing::field::Empty;

use crate::run::Ended;

tokio::task_local! {
    static CARRIED: Arc<str>;
}

/// Makes a call with this trace context, if there is one.
pub(crate) async fn carrying<T>(context: Option<&Arc<str>>, call: impl Future<Output = T>) -> T {
    match context {
        Some(context) => CARRIED.scope(Arc::clone(context), call).await,
        None => call.await,
    }
}

/// The trace context for a call that is made now: the one that it is [`carrying`], else the caller's own.
pub(crate) fn outgoing() -> Option<Arc<str>> {
    CARRIED.try_with(Arc::clone).ok().or_else(|| current().map(Arc::from))
}

/// Puts the trace context of a call into its headers, as W3C has them.
pub(crate) fn into_headers(headers: &mut MetadataMap) {
    let Some(context) = outgoing() else { return };
    let Some(context) = TraceContext::parse(&context) else { return };
    for (name, value) in [("traceparent", Some(context.traceparent())), ("tracestate", context.tracestate())]
    {
        if let Some(value) = value.and_then(|value| AsciiMetadataValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
}

/// What the spans of a run need to know of it.
#[derive(Debug)]
pub(crate) struct RunTrace {
    /// The trace context of the start.
    pub(crate) context: Option<Arc<str>>,
    run_id: RunId,
    workflow_type: WorkflowType,
    worker_id: WorkerId,
}

impl RunTrace {
    pub(crate) fn new(run: &Run, worker_id: WorkerId) -> Self {
        let context = run.trace_context.as_deref().filter(|context| TraceContext::parse(context).is_some());
        Self {
            context: context.map(Arc::from),
            run_id: run.run_id,
            workflow_type: run.workflow_type.clone(),
            worker_id,
        }
    }

    /// The span of one execution of the run: its log lines belong to it, and so does what the workflow's
    /// code does outside of steps.
    pub(crate) fn run_span(&self, run: &Run) -> Span {
        let span = tracing::info_span!(
            "run",
            kagzi.run_id = %self.run_id,
            kagzi.workflow_type = %self.workflow_type,
            kagzi.namespace = %run.namespace,
            kagzi.queue = %run.queue,
            kagzi.worker_id = %self.worker_id,
            kagzi.fencing_token = run.fencing_token.get(),
            trace_id = self.context.as_deref().and_then(TraceContext::parse).map(|context| context.trace_id()),
            kagzi.outcome = Empty,
            error.type = Empty,
            otel.name = Empty,
            otel.kind = Empty,
            otel.status_code = Empty,
        );
        // Without a context the run begins a trace of its own, whatever the worker itself is part of.
        if continue_trace(&span, self.context.as_deref().unwrap_or_default()) {
            span.record("otel.name", format_args!("run {}", self.workflow_type));
            span.record("otel.kind", "consumer");
        }
        span
    }

    /// The span of one attempt of a step. The step's function runs in it.
    pub(crate) fn step_span(&self, name: &str, step_id: &StepId, attempt: u32) -> Span {
        let span = tracing::info_span!(
            "step",
            kagzi.step = %step_id,
            kagzi.attempt = i64::from(attempt),
            kagzi.outcome = Empty,
            error.type = Empty,
            otel.name = Empty,
            otel.status_code = Empty,
        );
        let exported = match self.context.as_deref() {
            Some(context) => continue_trace(&span, context),
            None => stays_within(&span),
        };
        if exported {
            // What the lines of a log have from the run's span around this one.
            let attributes = [
                ("kagzi.run_id", self.run_id.to_string()),
                ("kagzi.workflow_type", self.workflow_type.to_string()),
                ("kagzi.worker_id", self.worker_id.to_string()),
            ];
            describe(&span, attributes);
            span.record("otel.name", format_args!("step {name}"));
        }
        span
    }
}

/// Notes how an execution ended.
pub(crate) fn run_ended(span: &Span, ended: Ended) {
    let (outcome, error) = match ended {
        Ended::Completed => ("completed", false),
        Ended::ToRetry => ("to_retry", true),
        Ended::DeadLettered => ("dead_lettered", true),
        Ended::Slept => ("slept", false),
        Ended::Released => ("released", false),
        Ended::Lost => ("lease_lost", false),
        Ended::Stuck => ("stuck", true),
    };
    span.record("kagzi.outcome", outcome);
    if error {
        span.record("otel.status_code", "ERROR");
    }
}

/// Notes how an attempt of a step ended. The failure's message is the application's, and stays out.
pub(crate) fn step_ended<T>(span: &Span, outcome: &Result<T, Failure>) {
    match outcome {
        Ok(_) => {
            span.record("kagzi.outcome", "completed");
        }
        Err(failure) => {
            span.record("kagzi.outcome", "failed").record("error.type", failure.code.as_str());
            span.record("otel.status_code", "ERROR");
        }
    }
}

#[cfg(feature = "opentelemetry")]
use crate::otel::{continue_trace, current, describe, stays_within};
#[cfg(not(feature = "opentelemetry"))]
use without::{continue_trace, current, describe, stays_within};

/// Without the feature there is a context to carry, and nobody to export spans.
#[cfg(not(feature = "opentelemetry"))]
mod without {
    use tracing::Span;

    pub(super) const fn current() -> Option<String> {
        None
    }

    pub(super) const fn continue_trace(_: &Span, _: &str) -> bool {
        false
    }

    pub(super) const fn stays_within(_: &Span) -> bool {
        false
    }

    pub(super) fn describe<const N: usize>(_: &Span, _: [(&'static str, String); N]) {}
}
