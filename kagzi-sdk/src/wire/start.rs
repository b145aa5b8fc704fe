//! Starting runs.

use kagzi_core::{
    IdempotencyKey, Namespace, Priority, QueueName, StartAt, StartOutcome, StartRun, Started, StoreError,
    WorkflowType,
};
use kagzi_proto::v1;
use kagzi_proto::v1::start_workflow_request::Start;
use kagzi_proto::v1::start_workflow_response::Outcome;

use super::field::{WireEnum, operation_id, wire_enum};
use super::page::{items, items_to_wire};
use super::retry::retry_policy;
use super::time::{duration, duration_to_wire, moment, moment_to_wire, optional_duration};
use super::value::{labels, labels_to_wire, payload};
use super::{FromWire, IntoWire};

wire_enum!(StartOutcome, Outcome, Created Existing);

impl IntoWire<v1::StartWorkflowRequest> for StartRun {
    fn into_wire(self) -> v1::StartWorkflowRequest {
        v1::StartWorkflowRequest {
            namespace: self.namespace.as_str().to_owned(),
            queue: self.queue.as_str().to_owned(),
            workflow_type: self.workflow_type.as_str().to_owned(),
            input: Some(self.input.into_wire()),
            idempotency_key: self.idempotency_key.map(Into::into),
            priority: self.priority.get().into(),
            start: match self.start_at {
                StartAt::Now => None,
                StartAt::After(delay) => Some(Start::StartAfter(duration_to_wire(delay))),
                StartAt::At(at) => Some(Start::StartAt(moment_to_wire(at))),
            },
            run_timeout: self.run_timeout.map(duration_to_wire),
            retry_policy: self.retry.map(IntoWire::into_wire),
            labels: labels_to_wire(self.labels),
            trace_context: self.trace_context,
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::StartWorkflowRequest> for StartRun {
    fn from_wire(wire: v1::StartWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            queue: QueueName::new(wire.queue)?,
            workflow_type: WorkflowType::new(wire.workflow_type)?,
            input: payload("input", wire.input)?,
            idempotency_key: wire.idempotency_key.map(IdempotencyKey::new).transpose()?,
            priority: Priority::new(wire.priority.into())?,
            start_at: match wire.start {
                None => StartAt::Now,
                Some(Start::StartAfter(delay)) => StartAt::After(duration("start_after", delay)?),
                Some(Start::StartAt(at)) => StartAt::At(moment("start_at", at)?),
            },
            run_timeout: optional_duration("run_timeout", wire.run_timeout)?,
            retry: retry_policy(wire.retry_policy)?,
            labels: labels(wire.labels)?,
            trace_context: wire.trace_context,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::StartWorkflowResponse> for Started {
    fn into_wire(self) -> v1::StartWorkflowResponse {
        v1::StartWorkflowResponse { run_id: self.run_id.to_string(), outcome: self.outcome.number() }
    }
}

impl FromWire<v1::StartWorkflowResponse> for Started {
    fn from_wire(wire: v1::StartWorkflowResponse) -> Result<Self, StoreError> {
        Ok(Self {
            run_id: wire.run_id.parse()?,
            outcome: StartOutcome::from_number("outcome", wire.outcome)?,
        })
    }
}

impl IntoWire<v1::StartWorkflowsRequest> for Vec<StartRun> {
    fn into_wire(self) -> v1::StartWorkflowsRequest {
        v1::StartWorkflowsRequest { starts: items_to_wire(self) }
    }
}

impl FromWire<v1::StartWorkflowsRequest> for Vec<StartRun> {
    fn from_wire(wire: v1::StartWorkflowsRequest) -> Result<Self, StoreError> {
        items("starts", wire.starts)
    }
}

impl IntoWire<v1::StartWorkflowsResponse> for Vec<Started> {
    fn into_wire(self) -> v1::StartWorkflowsResponse {
        v1::StartWorkflowsResponse { started: items_to_wire(self) }
    }
}

impl FromWire<v1::StartWorkflowsResponse> for Vec<Started> {
    fn from_wire(wire: v1::StartWorkflowsResponse) -> Result<Self, StoreError> {
        items("started", wire.started)
    }
}
