//! Looking at one run, cancelling it and putting it back to work.

use std::time::Duration;

use kagzi_core::{
    CancelOutcome, CancelRun, Namespace, RequeueOutcome, RequeueRun, RunId, RunRecord, RunState, StoreError,
};
use kagzi_proto::v1;
use kagzi_proto::v1::cancel_workflow_response::Outcome;

use super::field::{WireEnum, invalid, operation_id, required, within};
use super::time::{duration_to_wire, optional_duration};
use super::{FromWire, IntoWire};

/// Asks for one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetRun {
    /// The tenant.
    pub namespace: Namespace,
    /// The run.
    pub run_id: RunId,
    /// How long to wait for its end; zero: not at all.
    pub wait: Duration,
}

impl IntoWire<v1::GetWorkflowRequest> for GetRun {
    fn into_wire(self) -> v1::GetWorkflowRequest {
        v1::GetWorkflowRequest {
            namespace: self.namespace.into(),
            run_id: self.run_id.to_string(),
            wait: (!self.wait.is_zero()).then(|| duration_to_wire(self.wait)),
        }
    }
}

impl FromWire<v1::GetWorkflowRequest> for GetRun {
    fn from_wire(wire: v1::GetWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            run_id: wire.run_id.parse()?,
            wait: optional_duration("wait", wire.wait)?.unwrap_or_default(),
        })
    }
}

impl IntoWire<v1::GetWorkflowResponse> for RunRecord {
    fn into_wire(self) -> v1::GetWorkflowResponse {
        v1::GetWorkflowResponse { record: Some(self.into_wire()) }
    }
}

impl FromWire<v1::GetWorkflowResponse> for RunRecord {
    fn from_wire(wire: v1::GetWorkflowResponse) -> Result<Self, StoreError> {
        within("record", Self::from_wire(required("record", wire.record)?))
    }
}

impl IntoWire<v1::CancelWorkflowRequest> for CancelRun {
    fn into_wire(self) -> v1::CancelWorkflowRequest {
        v1::CancelWorkflowRequest {
            namespace: self.namespace.into(),
            run_id: self.run_id.to_string(),
            reason: self.reason,
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::CancelWorkflowRequest> for CancelRun {
    fn from_wire(wire: v1::CancelWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            run_id: wire.run_id.parse()?,
            reason: wire.reason,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::CancelWorkflowResponse> for CancelOutcome {
    fn into_wire(self) -> v1::CancelWorkflowResponse {
        let (outcome, state) = match self {
            Self::Cancelled => (Outcome::Cancelled, RunState::Cancelled),
            Self::AlreadyFinished(state) => (Outcome::AlreadyFinished, state),
        };
        v1::CancelWorkflowResponse { outcome: outcome.into(), state: state.number() }
    }
}

impl FromWire<v1::CancelWorkflowResponse> for CancelOutcome {
    fn from_wire(wire: v1::CancelWorkflowResponse) -> Result<Self, StoreError> {
        match wire.outcome() {
            Outcome::Cancelled => Ok(Self::Cancelled),
            Outcome::AlreadyFinished => RunState::from_number("state", wire.state).map(Self::AlreadyFinished),
            Outcome::Unspecified => {
                Err(invalid("outcome", "CANCELLED or ALREADY_FINISHED", format!("value {}", wire.outcome)))
            }
        }
    }
}

impl IntoWire<v1::RequeueWorkflowRequest> for RequeueRun {
    fn into_wire(self) -> v1::RequeueWorkflowRequest {
        v1::RequeueWorkflowRequest {
            namespace: self.namespace.into(),
            run_id: self.run_id.to_string(),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::RequeueWorkflowRequest> for RequeueRun {
    fn from_wire(wire: v1::RequeueWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            run_id: wire.run_id.parse()?,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::RequeueWorkflowResponse> for RequeueOutcome {
    fn into_wire(self) -> v1::RequeueWorkflowResponse {
        match self {
            Self::Requeued => v1::RequeueWorkflowResponse {},
        }
    }
}

impl FromWire<v1::RequeueWorkflowResponse> for RequeueOutcome {
    fn from_wire(_: v1::RequeueWorkflowResponse) -> Result<Self, StoreError> {
        Ok(Self::Requeued)
    }
}
