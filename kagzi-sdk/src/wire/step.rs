//! Attempts of steps.

use kagzi_core::{Attempt, AttemptState, Failure, FencingToken, StepId, StepKind, StoreError, WorkerId};
use kagzi_proto::v1;

use super::field::{WireEnum, named, wire_enum, within};
use super::retry::retry_policy;
use super::time::{moment_to_wire, optional_moment, required_moment};
use super::value::optional_payload;
use super::{FromWire, IntoWire};

wire_enum!(StepKind, v1::StepKind, Task Sleep);
wire_enum!(AttemptState, v1::AttemptState, Running Completed Failed Abandoned);

impl IntoWire<v1::Attempt> for Attempt {
    fn into_wire(self) -> v1::Attempt {
        v1::Attempt {
            run_id: self.run_id.to_string(),
            step_id: self.step_id.as_str().to_owned(),
            position: self.position,
            kind: self.kind.number(),
            attempt: self.attempt,
            state: self.state.number(),
            fencing_token: self.fencing_token.get(),
            worker_id: self.worker_id.as_str().to_owned(),
            retry_policy: self.retry.map(IntoWire::into_wire),
            deadline_at: self.deadline_at.map(moment_to_wire),
            begin_operation_id: self.begin_operation.to_string(),
            end_operation_id: self.end_operation.map(|id| id.to_string()),
            output: self.output.map(IntoWire::into_wire),
            failure: self.failure.map(IntoWire::into_wire),
            created_at: Some(moment_to_wire(self.created_at)),
            updated_at: Some(moment_to_wire(self.updated_at)),
            finished_at: self.finished_at.map(moment_to_wire),
        }
    }
}

impl FromWire<v1::Attempt> for Attempt {
    fn from_wire(wire: v1::Attempt) -> Result<Self, StoreError> {
        let failure = |wire| within("failure", Failure::from_wire(wire));
        let end_operation = wire.end_operation_id.map(|id| named("end_operation_id", id.parse())).transpose();
        Ok(Self {
            run_id: wire.run_id.parse()?,
            step_id: StepId::new(wire.step_id)?,
            position: wire.position,
            kind: StepKind::from_number("kind", wire.kind)?,
            attempt: wire.attempt,
            state: AttemptState::from_number("state", wire.state)?,
            fencing_token: FencingToken::new(wire.fencing_token)?,
            worker_id: WorkerId::new(wire.worker_id)?,
            retry: retry_policy(wire.retry_policy)?,
            deadline_at: optional_moment("deadline_at", wire.deadline_at)?,
            begin_operation: named("begin_operation_id", wire.begin_operation_id.parse())?,
            end_operation: end_operation?,
            output: optional_payload("output", wire.output)?,
            failure: wire.failure.map(failure).transpose()?,
            created_at: required_moment("created_at", wire.created_at)?,
            updated_at: required_moment("updated_at", wire.updated_at)?,
            finished_at: optional_moment("finished_at", wire.finished_at)?,
        })
    }
}
