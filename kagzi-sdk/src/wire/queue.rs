//! Pausing and resuming queues.

use kagzi_core::{Namespace, Pause, QueueChange, QueueName, QueueOutcome, SetQueueState, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::{pause_queue_response, resume_queue_response};

use super::field::{invalid, operation_id, required};
use super::time::{moment, moment_to_wire};
use super::{FromWire, IntoWire};

/// The call that asks for a change of a queue.
#[derive(Clone, Debug, PartialEq)]
pub enum QueueCall {
    /// `PauseQueue`.
    Pause(v1::PauseQueueRequest),
    /// `ResumeQueue`.
    Resume(v1::ResumeQueueRequest),
}

impl IntoWire<QueueCall> for SetQueueState {
    fn into_wire(self) -> QueueCall {
        let (namespace, queue) = (self.namespace.into(), self.queue.into());
        let operation_id = self.operation.to_string();
        match self.change {
            QueueChange::Pause { reason } => {
                QueueCall::Pause(v1::PauseQueueRequest { namespace, queue, reason, operation_id })
            }
            QueueChange::Resume => {
                QueueCall::Resume(v1::ResumeQueueRequest { namespace, queue, operation_id })
            }
        }
    }
}

impl FromWire<v1::PauseQueueRequest> for SetQueueState {
    fn from_wire(wire: v1::PauseQueueRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            queue: QueueName::new(wire.queue)?,
            change: QueueChange::Pause { reason: wire.reason },
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl FromWire<v1::ResumeQueueRequest> for SetQueueState {
    fn from_wire(wire: v1::ResumeQueueRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            queue: QueueName::new(wire.queue)?,
            change: QueueChange::Resume,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::PauseQueueResponse> for QueueOutcome {
    fn into_wire(self) -> v1::PauseQueueResponse {
        use pause_queue_response::Outcome;
        let outcome = match self {
            Self::Changed => Outcome::Paused,
            Self::Unchanged => Outcome::AlreadyPaused,
        };
        v1::PauseQueueResponse { outcome: outcome.into() }
    }
}

impl FromWire<v1::PauseQueueResponse> for QueueOutcome {
    fn from_wire(wire: v1::PauseQueueResponse) -> Result<Self, StoreError> {
        use pause_queue_response::Outcome;
        match wire.outcome() {
            Outcome::Paused => Ok(Self::Changed),
            Outcome::AlreadyPaused => Ok(Self::Unchanged),
            Outcome::Unspecified => {
                Err(invalid("outcome", "PAUSED or ALREADY_PAUSED", format!("value {}", wire.outcome)))
            }
        }
    }
}

impl IntoWire<v1::ResumeQueueResponse> for QueueOutcome {
    fn into_wire(self) -> v1::ResumeQueueResponse {
        use resume_queue_response::Outcome;
        let outcome = match self {
            Self::Changed => Outcome::Resumed,
            Self::Unchanged => Outcome::AlreadyOpen,
        };
        v1::ResumeQueueResponse { outcome: outcome.into() }
    }
}

impl FromWire<v1::ResumeQueueResponse> for QueueOutcome {
    fn from_wire(wire: v1::ResumeQueueResponse) -> Result<Self, StoreError> {
        use resume_queue_response::Outcome;
        match wire.outcome() {
            Outcome::Resumed => Ok(Self::Changed),
            Outcome::AlreadyOpen => Ok(Self::Unchanged),
            Outcome::Unspecified => {
                Err(invalid("outcome", "RESUMED or ALREADY_OPEN", format!("value {}", wire.outcome)))
            }
        }
    }
}

impl IntoWire<v1::QueuePause> for Pause {
    fn into_wire(self) -> v1::QueuePause {
        v1::QueuePause { reason: self.reason, since: Some(moment_to_wire(self.since)) }
    }
}

impl FromWire<v1::QueuePause> for Pause {
    fn from_wire(wire: v1::QueuePause) -> Result<Self, StoreError> {
        let since = required("since", wire.since)?;
        Ok(Self { reason: wire.reason, since: moment("since", since)? })
    }
}
