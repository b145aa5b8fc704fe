//! Runs.

use kagzi_core::{
    DeadLetterReason, Failure, FencingToken, IdempotencyKey, Namespace, Payload, Priority, QueueName, Run,
    RunRecord, RunState, StoreError, WorkerId, WorkflowType,
};
use kagzi_proto::v1;

use super::field::{WireEnum, named, required, wire_enum, within};
use super::retry::retry_policy;
use super::time::{duration_to_wire, moment_to_wire, optional_duration, optional_moment, required_moment};
use super::value::{labels, labels_to_wire, optional_payload};
use super::{FromWire, IntoWire};

wire_enum!(RunState, v1::RunState, Pending Running Sleeping Completed Failed Cancelled);
wire_enum!(DeadLetterReason, v1::DeadLetterReason, RetriesExhausted NonRetryable RunTimeout Poison);

impl IntoWire<v1::Run> for Run {
    fn into_wire(self) -> v1::Run {
        v1::Run {
            run_id: self.run_id.to_string(),
            namespace: self.namespace.as_str().to_owned(),
            queue: self.queue.as_str().to_owned(),
            workflow_type: self.workflow_type.as_str().to_owned(),
            state: self.state.number(),
            priority: self.priority.get().into(),
            due_at: Some(moment_to_wire(self.due_at)),
            deadline_at: self.deadline_at.map(moment_to_wire),
            run_timeout: self.run_timeout.map(duration_to_wire),
            fencing_token: self.fencing_token.get(),
            worker_id: self.worker_id.map(Into::into),
            lease_expires_at: self.lease_expires_at.map(moment_to_wire),
            claim_operation_id: self.claim_operation.map(|id| id.to_string()),
            claims: self.claims,
            lost_leases: self.lost_leases,
            failures: self.failures,
            budget_token: self.budget_token.get(),
            retry_policy: self.retry.map(IntoWire::into_wire),
            idempotency_key: self.idempotency_key.map(Into::into),
            labels: labels_to_wire(self.labels),
            trace_context: self.trace_context,
            failure: self.failure.map(IntoWire::into_wire),
            dead_letter_reason: self.dead_letter.map_or(0, WireEnum::number),
            finish_operation_id: self.finish_operation.map(|id| id.to_string()),
            created_at: Some(moment_to_wire(self.created_at)),
            updated_at: Some(moment_to_wire(self.updated_at)),
            finished_at: self.finished_at.map(moment_to_wire),
        }
    }
}

impl FromWire<v1::Run> for Run {
    fn from_wire(wire: v1::Run) -> Result<Self, StoreError> {
        let operation = |field, text: Option<String>| text.map(|id| named(field, id.parse())).transpose();
        let failure = |wire| within("failure", Failure::from_wire(wire));
        Ok(Self {
            run_id: wire.run_id.parse()?,
            namespace: Namespace::new(wire.namespace)?,
            queue: QueueName::new(wire.queue)?,
            workflow_type: WorkflowType::new(wire.workflow_type)?,
            state: RunState::from_number("state", wire.state)?,
            priority: Priority::new(wire.priority.into())?,
            due_at: required_moment("due_at", wire.due_at)?,
            deadline_at: optional_moment("deadline_at", wire.deadline_at)?,
            run_timeout: optional_duration("run_timeout", wire.run_timeout)?,
            fencing_token: FencingToken::new(wire.fencing_token)?,
            worker_id: wire.worker_id.map(WorkerId::new).transpose()?,
            lease_expires_at: optional_moment("lease_expires_at", wire.lease_expires_at)?,
            claim_operation: operation("claim_operation_id", wire.claim_operation_id)?,
            claims: wire.claims,
            lost_leases: wire.lost_leases,
            failures: wire.failures,
            budget_token: named("budget_token", FencingToken::new(wire.budget_token))?,
            retry: retry_policy(wire.retry_policy)?,
            idempotency_key: wire.idempotency_key.map(IdempotencyKey::new).transpose()?,
            labels: labels(wire.labels)?,
            trace_context: wire.trace_context,
            failure: wire.failure.map(failure).transpose()?,
            dead_letter: optional_reason(wire.dead_letter_reason)?,
            finish_operation: operation("finish_operation_id", wire.finish_operation_id)?,
            created_at: required_moment("created_at", wire.created_at)?,
            updated_at: required_moment("updated_at", wire.updated_at)?,
            finished_at: optional_moment("finished_at", wire.finished_at)?,
        })
    }
}

fn optional_reason(wire: i32) -> Result<Option<DeadLetterReason>, StoreError> {
    (wire != 0).then(|| DeadLetterReason::from_number("dead_letter_reason", wire)).transpose()
}

/// The run in the field `run`, which must be there.
pub(super) fn required_run(wire: Option<v1::Run>) -> Result<Run, StoreError> {
    within("run", Run::from_wire(required("run", wire)?))
}

impl IntoWire<v1::RunRecord> for RunRecord {
    fn into_wire(self) -> v1::RunRecord {
        v1::RunRecord {
            run: Some(self.run.into_wire()),
            input: Some(self.input.into_wire()),
            output: self.output.map(IntoWire::into_wire),
        }
    }
}

impl FromWire<v1::RunRecord> for RunRecord {
    fn from_wire(wire: v1::RunRecord) -> Result<Self, StoreError> {
        Ok(Self {
            run: required_run(wire.run)?,
            input: within("input", Payload::from_wire(required("input", wire.input)?))?,
            output: optional_payload("output", wire.output)?,
        })
    }
}
