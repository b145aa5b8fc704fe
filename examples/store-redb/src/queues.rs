//! Pausing and resuming queues.

use kagzi_core::{
    Namespace, Pause, QueueName, QueueOperations, QueueOutcome, QueueRow, SetQueueState, Timestamp, decide,
};
use redb::{ReadTransaction, ReadableTable as _};

use crate::error::{Error, Result};
use crate::save::Writing;
use crate::tables::{QUEUES, micros};

pub(crate) fn set_state(writing: &mut Writing<'_>, request: &SetQueueState) -> Result<QueueOutcome> {
    request.validate()?;
    let (namespace, queue) = (request.namespace.as_str(), request.queue.as_str());
    let found =
        writing.tables.queues.get((namespace, queue))?.map(|found| read(found.value())).transpose()?;
    let decision = decide::set_queue_state(found.as_ref(), request, writing.now())?;
    if let Some(row) = &decision.row {
        let pause = row.pause.as_ref().map(|pause| (pause.reason.as_str(), micros(pause.since)));
        let operations = row.operations.to_text()?;
        let value = (pause, operations.as_str(), micros(row.created_at), micros(row.updated_at));
        writing.tables.queues.insert((namespace, queue), value)?;
        writing.wrote = true;
        if row.pause.is_none() {
            writing.news.note_queue(&request.namespace, &request.queue);
        }
    }
    Ok(decision.answer)
}

fn read(
    (pause, operations, created_at, updated_at): (Option<(&str, i64)>, &str, i64, i64),
) -> Result<QueueRow> {
    let damaged = |error: kagzi_core::StoreError| Error::Damaged(error.to_string());
    Ok(QueueRow {
        pause: pause.map(pause_from),
        operations: QueueOperations::from_text(operations).map_err(damaged)?,
        created_at: Timestamp::from_micros_clamped(created_at),
        updated_at: Timestamp::from_micros_clamped(updated_at),
    })
}

fn pause_from((reason, since): (&str, i64)) -> Pause {
    Pause { reason: reason.to_owned(), since: Timestamp::from_micros_clamped(since) }
}

/// Leaves those of `queues` that are not paused.
pub(crate) fn keep_open(
    writing: &Writing<'_>,
    namespace: &Namespace,
    queues: &mut Vec<QueueName>,
) -> Result<()> {
    let mut open = Vec::with_capacity(queues.len());
    for queue in queues.drain(..) {
        let found = writing.tables.queues.get((namespace.as_str(), queue.as_str()))?;
        if found.is_none_or(|found| found.value().0.is_none()) {
            open.push(queue);
        }
    }
    *queues = open;
    Ok(())
}

/// The paused queues of a namespace, by name.
pub(crate) fn paused(reading: &ReadTransaction, namespace: &Namespace) -> Result<Vec<(QueueName, Pause)>> {
    let mut paused = Vec::new();
    for entry in reading.open_table(QUEUES)?.range((namespace.as_str(), "")..)? {
        let (key, value) = entry?;
        let (found, queue) = key.value();
        if found != namespace.as_str() {
            break;
        }
        if let (Some(pause), ..) = value.value() {
            let queue = QueueName::new(queue).map_err(|error| Error::Damaged(error.to_string()))?;
            paused.push((queue, pause_from(pause)));
        }
    }
    Ok(paused)
}
