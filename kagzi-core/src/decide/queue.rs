//! Pausing and resuming queues.

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::op::{Pause, QueueChange, QueueOutcome, SetQueueState};
use crate::queue::QueueRow;

/// What becomes of the row of a queue, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDecision {
    /// The row to write; nothing for a repeat. If it is open, the queue is announced once that is durable.
    pub row: Option<QueueRow>,
    /// What to answer then.
    pub answer: QueueOutcome,
}

/// Pauses or resumes a queue, whose row is `row` if it has one.
///
/// # Errors
///
/// [`StoreError::QueueOperationConflict`].
pub fn set_queue_state(
    row: Option<&QueueRow>,
    request: &SetQueueState,
    now: Timestamp,
) -> Result<QueueDecision, StoreError> {
    let asked = request.change.state();
    match row.and_then(|row| row.operations.find(request.operation)) {
        Some((before, answer)) if before == asked => return Ok(QueueDecision { row: None, answer }),
        Some(_) => {
            return Err(StoreError::QueueOperationConflict {
                queue: request.queue.clone(),
                operation: request.operation,
            });
        }
        None => {}
    }
    let paused = row.and_then(|row| row.pause.as_ref());
    let answer = if paused.is_some() == matches!(request.change, QueueChange::Pause { .. }) {
        QueueOutcome::Unchanged
    } else {
        QueueOutcome::Changed
    };
    let pause = match &request.change {
        QueueChange::Pause { reason } => {
            Some(Pause { reason: reason.clone(), since: paused.map_or(now, |pause| pause.since) })
        }
        QueueChange::Resume => None,
    };
    // An operation that changes nothing is remembered as well: sent again later, it still must not.
    let mut operations = row.map(|row| row.operations.clone()).unwrap_or_default();
    operations.remember(request.operation, asked, answer);
    let created_at = row.map_or(now, |row| row.created_at);
    Ok(QueueDecision { row: Some(QueueRow { pause, operations, created_at, updated_at: now }), answer })
}
