//! Polls, heartbeats, and the ends of runs and leases.

use std::time::Duration;

use kagzi_core::{
    Claim, ClaimedRun, CompleteRun, CompleteRunOutcome, FailRun, FailureOutcome, GrantedLease, Heartbeat,
    Namespace, Payload, QueueName, ReleaseOutcome, ReleaseRun, StoreError, WorkerId, WorkflowType,
};
use kagzi_proto::v1;
use kagzi_proto::v1::heartbeat_verdict::Verdict;

use super::error::{error_from_item, error_to_item};
use super::field::{operation_id, required, within};
use super::lease::lease;
use super::page::{cursor, cursor_to_wire, items, items_to_wire, limit};
use super::run::required_run;
use super::time::{duration_to_wire, optional_duration};
use super::value::{names, payload, required_failure};
use super::{FromWire, IntoWire, bad_answer};

/// How many steps come with a claimed run if the poll does not say.
pub const DEFAULT_STEPS_LIMIT: u32 = 100;

/// A claim that may wait for work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// What to claim.
    pub claim: Claim,
    /// How long to wait if nothing is due; zero: not at all.
    pub wait: Duration,
}

impl IntoWire<v1::PollActivityRequest> for Poll {
    fn into_wire(self) -> v1::PollActivityRequest {
        let claim = self.claim;
        v1::PollActivityRequest {
            namespace: claim.namespace.into(),
            queues: claim.queues.into_iter().map(Into::into).collect(),
            workflow_types: claim.workflow_types.into_iter().map(Into::into).collect(),
            worker_id: claim.worker_id.into(),
            lease_length: Some(duration_to_wire(claim.lease_length)),
            limit: claim.limit,
            steps_limit: claim.steps_limit,
            wait: (!self.wait.is_zero()).then(|| duration_to_wire(self.wait)),
            operation_id: claim.operation.to_string(),
        }
    }
}

/// Reads a poll; one that names no lease length gets `default_lease_length`.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] naming the first field at fault.
pub fn poll_from_wire(
    wire: v1::PollActivityRequest,
    default_lease_length: Duration,
) -> Result<Poll, StoreError> {
    let claim = Claim {
        namespace: Namespace::new(wire.namespace)?,
        queues: names("queues", &wire.queues, |text| QueueName::new(text))?,
        workflow_types: names("workflow_types", &wire.workflow_types, |text| WorkflowType::new(text))?,
        worker_id: WorkerId::new(wire.worker_id)?,
        lease_length: optional_duration("lease_length", wire.lease_length)?.unwrap_or(default_lease_length),
        limit: limit("limit", wire.limit, 1)?,
        steps_limit: limit("steps_limit", wire.steps_limit, DEFAULT_STEPS_LIMIT)?,
        operation: operation_id(&wire.operation_id)?,
    };
    claim.validate()?;
    Ok(Poll { claim, wait: optional_duration("wait", wire.wait)?.unwrap_or_default() })
}

impl IntoWire<v1::ClaimedRun> for ClaimedRun {
    fn into_wire(self) -> v1::ClaimedRun {
        v1::ClaimedRun {
            lease: Some(self.lease.into_wire()),
            run: Some(self.run.into_wire()),
            input: Some(self.input.into_wire()),
            steps: items_to_wire(self.steps),
            more_steps_cursor: cursor_to_wire(self.more_steps),
        }
    }
}

impl FromWire<v1::ClaimedRun> for ClaimedRun {
    fn from_wire(wire: v1::ClaimedRun) -> Result<Self, StoreError> {
        Ok(Self {
            lease: within("lease", GrantedLease::from_wire(required("lease", wire.lease)?))?,
            run: required_run(wire.run)?,
            input: within("input", Payload::from_wire(required("input", wire.input)?))?,
            steps: items("steps", wire.steps)?,
            more_steps: cursor(wire.more_steps_cursor),
        })
    }
}

impl IntoWire<v1::PollActivityResponse> for Vec<ClaimedRun> {
    fn into_wire(self) -> v1::PollActivityResponse {
        v1::PollActivityResponse { runs: items_to_wire(self) }
    }
}

impl FromWire<v1::PollActivityResponse> for Vec<ClaimedRun> {
    fn from_wire(wire: v1::PollActivityResponse) -> Result<Self, StoreError> {
        items("runs", wire.runs)
    }
}

/// The request for a batch of heartbeats.
pub fn heartbeats_to_wire(batch: Vec<Heartbeat>) -> v1::RecordHeartbeatRequest {
    let heartbeats = batch.into_iter().map(|heartbeat| v1::Heartbeat {
        lease: Some(heartbeat.lease.into_wire()),
        lease_length: Some(duration_to_wire(heartbeat.lease_length)),
    });
    v1::RecordHeartbeatRequest { heartbeats: heartbeats.collect() }
}

/// Reads a batch of heartbeats; one that names no lease length gets `default_lease_length`.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] naming the first field at fault.
pub fn heartbeats_from_wire(
    wire: v1::RecordHeartbeatRequest,
    default_lease_length: Duration,
) -> Result<Vec<Heartbeat>, StoreError> {
    let read = |wire: v1::Heartbeat| {
        let lease_length =
            optional_duration("lease_length", wire.lease_length)?.unwrap_or(default_lease_length);
        let heartbeat = Heartbeat { lease: lease(wire.lease)?, lease_length };
        heartbeat.validate()?;
        Ok(heartbeat)
    };
    wire.heartbeats
        .into_iter()
        .enumerate()
        .map(|(at, wire)| within(&format!("heartbeats[{at}]"), read(wire)))
        .collect()
}

/// The answer to a batch of heartbeats.
pub fn verdicts_to_wire(verdicts: Vec<Result<GrantedLease, StoreError>>) -> v1::RecordHeartbeatResponse {
    let verdicts = verdicts.into_iter().map(|verdict| {
        let verdict = match verdict {
            Ok(granted) => Verdict::Granted(granted.into_wire()),
            Err(error) => Verdict::Refused(error_to_item(&error)),
        };
        v1::HeartbeatVerdict { verdict: Some(verdict) }
    });
    v1::RecordHeartbeatResponse { verdicts: verdicts.collect() }
}

/// Reads the answer to a batch of `expected` heartbeats.
///
/// # Errors
///
/// [`StoreError::Internal`] if the answer cannot be read or has another number of verdicts.
pub fn verdicts_from_wire(
    wire: v1::RecordHeartbeatResponse,
    expected: usize,
) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
    if wire.verdicts.len() != expected {
        return Err(StoreError::Internal {
            context: "reading the server's answer",
            detail: format!("{} verdicts on {expected} heartbeats", wire.verdicts.len()),
        });
    }
    let read = |wire: v1::HeartbeatVerdict| match required("verdict", wire.verdict)? {
        Verdict::Granted(granted) => within("granted", GrantedLease::from_wire(granted)).map(Ok),
        Verdict::Refused(item) => Ok(Err(error_from_item(&item))),
    };
    wire.verdicts.into_iter().map(|wire| read(wire).map_err(bad_answer)).collect()
}

impl IntoWire<v1::CompleteWorkflowRequest> for CompleteRun {
    fn into_wire(self) -> v1::CompleteWorkflowRequest {
        v1::CompleteWorkflowRequest {
            lease: Some(self.lease.into_wire()),
            run_output: Some(self.output.into_wire()),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::CompleteWorkflowRequest> for CompleteRun {
    fn from_wire(wire: v1::CompleteWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            lease: lease(wire.lease)?,
            output: payload("run_output", wire.run_output)?,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::CompleteWorkflowResponse> for CompleteRunOutcome {
    fn into_wire(self) -> v1::CompleteWorkflowResponse {
        match self {
            Self::Completed => v1::CompleteWorkflowResponse {},
        }
    }
}

impl FromWire<v1::CompleteWorkflowResponse> for CompleteRunOutcome {
    fn from_wire(_: v1::CompleteWorkflowResponse) -> Result<Self, StoreError> {
        Ok(Self::Completed)
    }
}

impl IntoWire<v1::FailWorkflowRequest> for FailRun {
    fn into_wire(self) -> v1::FailWorkflowRequest {
        v1::FailWorkflowRequest {
            lease: Some(self.lease.into_wire()),
            failure: Some(self.failure.into_wire()),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::FailWorkflowRequest> for FailRun {
    fn from_wire(wire: v1::FailWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self {
            lease: lease(wire.lease)?,
            failure: required_failure(wire.failure)?,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::FailWorkflowResponse> for FailureOutcome {
    fn into_wire(self) -> v1::FailWorkflowResponse {
        v1::FailWorkflowResponse { outcome: Some(self.into_wire()) }
    }
}

impl FromWire<v1::FailWorkflowResponse> for FailureOutcome {
    fn from_wire(wire: v1::FailWorkflowResponse) -> Result<Self, StoreError> {
        within("outcome", Self::from_wire(required("outcome", wire.outcome)?))
    }
}

impl IntoWire<v1::ReleaseWorkflowRequest> for ReleaseRun {
    fn into_wire(self) -> v1::ReleaseWorkflowRequest {
        v1::ReleaseWorkflowRequest {
            lease: Some(self.lease.into_wire()),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::ReleaseWorkflowRequest> for ReleaseRun {
    fn from_wire(wire: v1::ReleaseWorkflowRequest) -> Result<Self, StoreError> {
        Ok(Self { lease: lease(wire.lease)?, operation: operation_id(&wire.operation_id)? })
    }
}

impl IntoWire<v1::ReleaseWorkflowResponse> for ReleaseOutcome {
    fn into_wire(self) -> v1::ReleaseWorkflowResponse {
        match self {
            Self::Released => v1::ReleaseWorkflowResponse {},
        }
    }
}

impl FromWire<v1::ReleaseWorkflowResponse> for ReleaseOutcome {
    fn from_wire(_: v1::ReleaseWorkflowResponse) -> Result<Self, StoreError> {
        Ok(Self::Released)
    }
}
