//! What a call is about, as its log lines and its span tell it.

use std::sync::Arc;

use kagzi_core::{
    ClaimedRun, Namespace, QueueName, RunId, SPANS, StartRun, Started, StepId, StoreError, TraceContext,
    WorkerId, WorkflowType,
};
use kagzi_sdk::otel;
use kagzi_sdk::wire::error::Refusal;
use tonic::{Code, Request};
use tracing::field::{Empty, display};
use tracing::{Level, Span};

use super::bytes::RequestBytes;
use super::failures::Failures;
use super::stream::StreamPlace;
use super::subject::Subject;
use crate::auth::{Caller, Principal};

/// To how many traces a span is linked at most: as many links as a span of OpenTelemetry has by default.
const LINKS: usize = 128;

/// Who makes a call, and as part of which trace.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) caller: Caller,
    /// In the form that runs carry; whether it is one shows when somebody asks.
    pub(super) trace: Option<String>,
    /// Its place among the streams that are open, if it opens one.
    pub(super) place: Option<StreamPlace>,
    /// What is held of its messages, if it is a session.
    pub(super) held: Option<RequestBytes>,
}

impl Origin {
    /// Who makes a call, or sends a message on a stream, that opens no other.
    pub(super) const fn of(caller: Caller, trace: Option<String>) -> Self {
        Self { caller, trace, place: None, held: None }
    }
}

/// The trace that the headers of a call name.
pub(super) fn trace_of<M>(request: &Request<M>) -> Option<String> {
    let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
    let context = TraceContext::of_headers(header("traceparent")?, header("tracestate"))?;
    Some(context.to_string())
}

/// What a request names, as far as it does.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) namespace: Option<Namespace>,
    pub(super) run_id: Option<RunId>,
    pub(super) queue: Option<QueueName>,
    pub(super) worker: Option<WorkerId>,
    pub(super) step: Option<StepId>,
    pub(super) attempt: Option<u32>,
}

/// A call, as it is told of.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) method: &'static str,
    facts: Facts,
    trace: Option<String>,
    principal: Arc<Principal>,
}

/// A line about a call, whatever its level.
macro_rules! tell {
    ($level:ident, $told:expr, $($rest:tt)+) => {
        tracing::$level!(
            method = $told.method,
            namespace = $told.facts.namespace.as_ref().map(display),
            run_id = $told.facts.run_id.map(display),
            queue = $told.facts.queue.as_ref().map(display),
            worker = $told.facts.worker.as_ref().map(display),
            step = $told.facts.step.as_ref().map(display),
            attempt = $told.facts.attempt,
            trace_id = $told.trace_id(),
            $($rest)+
        )
    };
}

impl Told {
    pub(super) fn of(method: &'static str, request: Option<&impl Subject>, origin: &Origin) -> Self {
        let (trace, principal) = (origin.trace.clone(), Arc::clone(&origin.caller.principal));
        Self { method, facts: request.map(Subject::facts).unwrap_or_default(), trace, principal }
    }

    fn trace_id(&self) -> Option<&str> {
        Some(TraceContext::parse(self.trace.as_deref()?)?.trace_id())
    }

    /// The span of the call, within the trace that it is part of.
    pub(super) fn span(&self) -> Span {
        let service = service(self.method);
        let facts = &self.facts;
        let span = tracing::info_span!(
            target: SPANS,
            parent: None,
            "call",
            otel.name = format_args!("kagzi.v1.{service}/{}", self.method),
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = format_args!("kagzi.v1.{service}"),
            rpc.method = self.method,
            rpc.grpc.status_code = Empty,
            error.type = Empty,
            kagzi.namespace = facts.namespace.as_ref().map(display),
            kagzi.run_id = facts.run_id.map(display),
            kagzi.queue = facts.queue.as_ref().map(display),
            kagzi.worker_id = facts.worker.as_ref().map(display),
            kagzi.step = facts.step.as_ref().map(display),
            kagzi.attempt = facts.attempt.map(i64::from),
            kagzi.runs = Empty,
        );
        if let (false, Some(trace)) = (span.is_disabled(), &self.trace) {
            otel::continue_trace(&span, trace);
        }
        span
    }

    /// What a run that the call starts is to continue: the call's own span if that is exported, so that it is
    /// seen in the trace between the client and the run.
    pub(super) fn context(&self, span: &Span) -> Option<String> {
        otel::of(span).or_else(|| self.trace.clone().filter(|trace| TraceContext::parse(trace).is_some()))
    }

    /// Reports the answer to a call.
    pub(super) fn ended<T>(&self, span: &Span, outcome: &Result<T, Refusal>) {
        let code = outcome.as_ref().map_or_else(Refusal::code, |_| Code::Ok);
        span.record("rpc.grpc.status_code", code as i32);
        match outcome {
            Ok(_) => tell!(debug, self, "call answered"),
            Err(refusal) => {
                span.record("error.type", refusal.reason());
                if is_our_fault(code) {
                    span.record("otel.status_code", "ERROR");
                }
            }
        }
    }

    /// Reports that the store refused a call or failed it, no more often than `failures` says unless it is a bug. Errors
    /// hold no payload.
    pub(super) fn failed(&self, error: &StoreError, failures: &Failures) {
        let reason = error.reason();
        match error {
            StoreError::Internal { .. } | StoreError::SchemaMismatch { .. } => {
                tell!(error, self, reason, %error, "call failed");
            }
            // While the store is away, each call fails, and the breaker has told why.
            StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }
                if failures.may_tell(&self.principal.name, reason) =>
            {
                tell!(warn, self, reason, %error, "call failed");
            }
            StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. } => {
                tell!(debug, self, reason, %error, "call failed");
            }
            _ if failures.may_tell(&self.principal.name, reason) => {
                tell!(info, self, reason, %error, "call failed");
            }
            _ => tell!(debug, self, reason, %error, "call failed"),
        }
    }

    /// Reports a call about a namespace that is not served.
    pub(super) fn not_served(&self, failures: &Failures) {
        let reason = "NAMESPACE_NOT_FOUND";
        if failures.may_tell(&self.principal.name, reason) {
            tell!(info, self, reason, "call failed");
        } else {
            tell!(debug, self, reason, "call failed");
        }
    }
}

/// Notes on the span of a call which runs it claimed, and links it to their traces: it is part of none of
/// them, since it was made before anybody knew which they are.
pub(super) fn claimed(runs: &[ClaimedRun]) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    span.record("kagzi.runs", i64::try_from(runs.len()).unwrap_or(i64::MAX));
    for context in runs.iter().filter_map(|run| run.run.trace_context.as_deref()).take(LINKS) {
        otel::link(&span, context);
    }
}

/// Runs that are being started, as they are told of.
#[derive(Debug)]
pub(super) struct Starts(Vec<(Namespace, QueueName, WorkflowType, Option<String>)>);

impl Starts {
    /// Nothing is noted unless somebody wants the lines.
    pub(super) fn of(batch: &[StartRun]) -> Self {
        if !tracing::enabled!(Level::DEBUG) {
            return Self(Vec::new());
        }
        let note = |start: &StartRun| {
            let StartRun { namespace, queue, workflow_type, trace_context, .. } = start;
            (namespace.clone(), queue.clone(), workflow_type.clone(), trace_context.clone())
        };
        Self(batch.iter().map(note).collect())
    }

    /// Reports which runs there are now, also on the span of their call.
    pub(super) fn started(self, answers: &[Started]) {
        for ((namespace, queue, workflow_type, trace), started) in self.0.iter().zip(answers) {
            let trace_id = trace.as_deref().and_then(TraceContext::parse).map(|trace| trace.trace_id());
            let Started { run_id, outcome } = started;
            tracing::debug!(%namespace, %run_id, %queue, %workflow_type, trace_id, ?outcome, "run started");
        }
        if let [only] = answers {
            Span::current().record("kagzi.run_id", display(only.run_id));
        }
    }
}

/// The service that a method belongs to; requests of a stream have those of the calls that they stand for.
fn service(method: &str) -> &'static str {
    match method {
        "StartWorkflow" | "StartWorkflows" | "GetWorkflow" | "ListWorkflows" | "CountWorkflows"
        | "CancelWorkflow" | "RequeueWorkflow" | "ListStepAttempts" | "GetQueueDepths" | "PauseQueue"
        | "ResumeQueue" | "StreamWorkflows" => "WorkflowService",
        "GetServerInfo" | "DeleteFinished" => "AdminService",
        _ => "WorkerService",
    }
}

/// The codes that are errors of a server, by the conventions of OpenTelemetry.
const fn is_our_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use kagzi_proto::FILE_DESCRIPTOR_SET;
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_is_named_with_the_service_that_it_is_of() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let ours = services.filter(|one| one.name().ends_with("Service"));
        let methods = ours.flat_map(|one| one.method.iter().map(move |method| (method.name(), one.name())));
        let (named, declared): (Vec<_>, Vec<_>) =
            methods.map(|(method, of)| ((method, service(method)), (method, of))).unzip();
        assert_eq!(named, declared);
        assert!(named.len() > 20, "{named:?}");
    }
}
