//! What a worker's stream adds to the calls: who it is, said once, and its room for runs.

use std::time::Duration;

use kagzi_core::{Claim, StoreError};
use kagzi_proto::v1;

use super::field::operation_id;
use super::page::limit;
use super::time::{duration_to_wire, optional_duration};
use super::worker::{Poll, poll_from_wire};

/// Who a worker is and what it takes: all of a claim but its limit and its operation.
pub fn open_to_wire(claim: &Claim) -> v1::OpenWork {
    v1::OpenWork {
        namespace: claim.namespace.as_str().to_owned(),
        queues: claim.queues.iter().map(|queue| queue.as_str().to_owned()).collect(),
        workflow_types: claim.workflow_types.iter().map(|kind| kind.as_str().to_owned()).collect(),
        worker_id: claim.worker_id.as_str().to_owned(),
        lease_length: Some(duration_to_wire(claim.lease_length)),
        steps_limit: claim.steps_limit,
    }
}

/// Reads who a worker is; one that names no lease length gets `default_lease_length`. The claim's limit
/// and operation are those of no claim in particular.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] naming the first field at fault.
pub fn open_from_wire(wire: v1::OpenWork, default_lease_length: Duration) -> Result<Claim, StoreError> {
    let poll = v1::PollActivityRequest {
        namespace: wire.namespace,
        queues: wire.queues,
        workflow_types: wire.workflow_types,
        worker_id: wire.worker_id,
        lease_length: wire.lease_length,
        steps_limit: wire.steps_limit,
        ..Default::default()
    };
    poll_from_wire(poll, default_lease_length).map(|poll| poll.claim)
}

/// The room that a worker has, as a message of its stream.
pub fn take_to_wire(poll: &Poll) -> v1::TakeRuns {
    v1::TakeRuns {
        limit: poll.claim.limit,
        wait: (!poll.wait.is_zero()).then(|| duration_to_wire(poll.wait)),
        operation_id: poll.claim.operation.to_string(),
    }
}

/// Reads the room that the worker `opened` has.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] naming the first field at fault.
pub fn take_from_wire(wire: &v1::TakeRuns, opened: &Claim) -> Result<Poll, StoreError> {
    let claim = Claim {
        limit: limit("limit", wire.limit, 1)?,
        operation: operation_id(&wire.operation_id)?,
        ..opened.clone()
    };
    Ok(Poll { claim, wait: optional_duration("wait", wire.wait)?.unwrap_or_default() })
}
