//! What operators ask of a queue: to hand out nothing for a while, and to go on.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::OperationId;
use crate::name::{Namespace, QueueName};

/// The longest reason of a pause, in bytes: it is shown with every look at the queues.
pub const MAX_PAUSE_REASON_BYTES: usize = 512;

/// Whether claims take runs from a queue. One that nobody ever paused is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum QueueState {
    /// They do.
    #[default]
    Open,
    /// They do not.
    Paused,
}

impl QueueState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 2] = [Self::Open, Self::Paused];

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Paused => "PAUSED",
        }
    }
}

impl std::fmt::Display for QueueState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a queue is paused, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Why, for people: what the latest pause said. May be empty.
    pub reason: String,
    /// Since when, by the store's clock: the moment of the first pause after the queue was open.
    pub since: Timestamp,
}

/// What is to become of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueChange {
    /// Claims take nothing more from it.
    Pause {
        /// Why, for people; at most [`MAX_PAUSE_REASON_BYTES`] without control characters, may be empty.
        reason: String,
    },
    /// Claims take from it again.
    Resume,
}

impl QueueChange {
    /// The state that it leads to.
    pub const fn state(&self) -> QueueState {
        match self {
            Self::Pause { .. } => QueueState::Paused,
            Self::Resume => QueueState::Open,
        }
    }
}

/// Pauses or resumes a queue. The queue need not hold a run, nor ever have held one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetQueueState {
    /// The tenant.
    pub namespace: Namespace,
    /// The queue.
    pub queue: QueueName,
    /// What is to become of it.
    pub change: QueueChange,
    /// Names this change. A queue remembers the last
    /// [`REMEMBERED_QUEUE_OPERATIONS`](crate::REMEMBERED_QUEUE_OPERATIONS) of them.
    pub operation: OperationId,
}

impl SetQueueState {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] or [`StoreError::InvalidArgument`] about the reason.
    pub fn validate(&self) -> Result<(), StoreError> {
        let QueueChange::Pause { reason } = &self.change else { return Ok(()) };
        if reason.len() > MAX_PAUSE_REASON_BYTES {
            return Err(StoreError::TooLarge {
                field: "reason".to_owned(),
                limit_bytes: MAX_PAUSE_REASON_BYTES,
                actual_bytes: reason.len(),
            });
        }
        match reason.find(char::is_control) {
            None => Ok(()),
            Some(at) => Err(StoreError::InvalidArgument {
                field: "reason".to_owned(),
                expected: "text of one line, without control characters".to_owned(),
                got: format!("a control character at byte {at}"),
            }),
        }
    }
}

/// What a pause or a resume found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueOutcome {
    /// The queue was in the other state until now.
    Changed,
    /// It was in this state before. A pause has put its reason in the place of the one before.
    Unchanged,
}
