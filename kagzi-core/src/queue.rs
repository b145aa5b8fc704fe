//! What a store keeps of a queue: whether it is paused, and the changes that were made last.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::OperationId;
use crate::op::{Pause, QueueOutcome, QueueState};

/// How many of the operations on a queue are remembered, the last ones: far more than could have been
/// made between an operation and its repeat after a lost reply (invariant 8), and a bound on the row.
pub const REMEMBERED_QUEUE_OPERATIONS: usize = 32;

/// The row of a queue. A queue without one is open; there is one from its first pause or resume on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// Why and since when it is paused; nothing while it is open.
    pub pause: Option<Pause>,
    /// The operations that were performed on it last.
    pub operations: QueueOperations,
    /// When the row was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl QueueRow {
    /// Whether claims take runs from the queue.
    pub const fn state(&self) -> QueueState {
        match self.pause {
            Some(_) => QueueState::Paused,
            None => QueueState::Open,
        }
    }
}

/// The last operations on a queue with what they asked for and were answered, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOperations(Vec<Answered>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answered {
    operation: OperationId,
    asked: QueueState,
    outcome: QueueOutcome,
}

/// An [`Answered`] as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored(String, QueueState, QueueOutcome);

impl QueueOperations {
    /// What an operation asked for and was answered, if it is remembered.
    pub fn find(&self, operation: OperationId) -> Option<(QueueState, QueueOutcome)> {
        let found = self.0.iter().find(|answered| answered.operation == operation);
        found.map(|answered| (answered.asked, answered.outcome))
    }

    /// Remembers one more, and forgets the oldest beyond [`REMEMBERED_QUEUE_OPERATIONS`].
    pub fn remember(&mut self, operation: OperationId, asked: QueueState, outcome: QueueOutcome) {
        self.0.push(Answered { operation, asked, outcome });
        let over = self.0.len().saturating_sub(REMEMBERED_QUEUE_OPERATIONS);
        self.0.drain(..over);
    }

    /// The form to store: JSON of about 65 bytes an operation.
    ///
    /// # Errors
    ///
    /// [`StoreError::Internal`]; cannot happen for a value of this type.
    pub fn to_text(&self) -> Result<String, StoreError> {
        let stored: Vec<Stored> =
            self.0.iter().map(|one| Stored(one.operation.to_string(), one.asked, one.outcome)).collect();
        serde_json::to_string(&stored).map_err(|error| StoreError::Internal {
            context: "encoding the operations on a queue",
            detail: error.to_string(),
        })
    }

    /// Reads the stored form back.
    ///
    /// # Errors
    ///
    /// [`StoreError::Internal`] if the text is not one that [`to_text`](Self::to_text) made.
    pub fn from_text(text: &str) -> Result<Self, StoreError> {
        let damaged =
            |detail: String| StoreError::Internal { context: "reading the operations on a queue", detail };
        let stored: Vec<Stored> = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        let read = |Stored(operation, asked, outcome): Stored| {
            let operation = operation.parse().map_err(|error: StoreError| damaged(error.to_string()))?;
            Ok(Answered { operation, asked, outcome })
        };
        stored.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_operations_are_remembered_to_the_letter_and_older_ones_forgotten() {
        let mut operations = QueueOperations::default();
        let ids: Vec<OperationId> =
            (0..=REMEMBERED_QUEUE_OPERATIONS).map(|_| OperationId::generate()).collect();
        for (at, id) in ids.iter().enumerate() {
            let (asked, outcome) = if at % 2 == 0 {
                (QueueState::Paused, QueueOutcome::Changed)
            } else {
                (QueueState::Open, QueueOutcome::Unchanged)
            };
            operations.remember(*id, asked, outcome);
        }
        assert_eq!(operations.find(ids[0]), None, "the oldest");
        assert_eq!(operations.find(ids[1]), Some((QueueState::Open, QueueOutcome::Unchanged)));
        assert_eq!(operations.find(ids[2]), Some((QueueState::Paused, QueueOutcome::Changed)));
        let text = operations.to_text().unwrap();
        assert!(text.len() < 80 * REMEMBERED_QUEUE_OPERATIONS, "{} bytes", text.len());
        assert_eq!(QueueOperations::from_text(&text).unwrap(), operations);
        assert!(QueueOperations::from_text("[[\"x\",\"OPEN\",\"changed\"]]").is_err());
    }
}
