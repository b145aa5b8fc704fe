//! Pausing and resuming queues.

use kagzi_core::{
    Namespace, Pause, QueueName, QueueOperations, QueueOutcome, QueueRow, SetQueueState, decide,
};
use rusqlite::{Connection, params};

use crate::commit::Tx;
use crate::error::Error;
use crate::rows::{Columns, all, execute, first};

pub(crate) const LOAD: &str = "\
    SELECT paused_at, reason, operations, created_at, updated_at FROM queues \
    WHERE namespace = ?1 AND queue = ?2 AND partition = 0";

pub(crate) const IS_PAUSED: &str = "\
    SELECT 1 FROM queues WHERE namespace = ?1 AND queue = ?2 AND partition = 0 AND state = 'PAUSED'";

/// By the key, whose order is the order of the answer.
pub(crate) const PAUSED: &str = "\
    SELECT queue, paused_at, reason FROM queues WHERE namespace = ?1 AND state = 'PAUSED' AND partition = 0";

pub(crate) const SAVE: &str = "\
    INSERT INTO queues (namespace, queue, state, paused_at, reason, operations, created_at, updated_at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
    ON CONFLICT (namespace, queue, partition) DO UPDATE SET state = excluded.state, \
        paused_at = excluded.paused_at, reason = excluded.reason, operations = excluded.operations, \
        updated_at = excluded.updated_at";

pub(crate) fn set_state(tx: &mut Tx<'_>, request: &SetQueueState) -> Result<QueueOutcome, Error> {
    let row = load(tx.connection, &request.namespace, &request.queue)?;
    let decision = decide::set_queue_state(row.as_ref(), request, tx.now)?;
    if let Some(row) = &decision.row {
        save(tx.connection, request, row)?;
        if row.pause.is_none() {
            tx.wakes.note_queue(&request.namespace, &request.queue);
        }
    }
    Ok(decision.answer)
}

fn load(
    connection: &Connection,
    namespace: &Namespace,
    queue: &QueueName,
) -> Result<Option<QueueRow>, Error> {
    first(connection, LOAD, params![namespace.as_str(), queue.as_str()], |row| {
        let mut columns = Columns::new(row);
        let since = columns.optional(Columns::moment)?;
        let reason = columns.optional(|c| c.text().map(str::to_owned))?;
        Ok(QueueRow {
            pause: since.zip(reason).map(|(since, reason)| Pause { reason, since }),
            operations: QueueOperations::from_text(columns.text()?)?,
            created_at: columns.moment()?,
            updated_at: columns.moment()?,
        })
    })
}

fn save(connection: &Connection, request: &SetQueueState, row: &QueueRow) -> Result<(), Error> {
    let values = params![
        request.namespace.as_str(),
        request.queue.as_str(),
        row.state().as_str(),
        row.pause.as_ref().map(|pause| pause.since.as_micros()),
        row.pause.as_ref().map(|pause| pause.reason.as_str()),
        row.operations.to_text()?,
        row.created_at.as_micros(),
        row.updated_at.as_micros(),
    ];
    execute(connection, SAVE, values).map(|_| ())
}

/// Whether claims take nothing from a queue.
pub(crate) fn is_paused(
    connection: &Connection,
    namespace: &Namespace,
    queue: &QueueName,
) -> Result<bool, Error> {
    let key = params![namespace.as_str(), queue.as_str()];
    Ok(first(connection, IS_PAUSED, key, |_| Ok(()))?.is_some())
}

/// The paused queues of a namespace.
pub(crate) fn paused(
    connection: &Connection,
    namespace: &Namespace,
) -> Result<Vec<(QueueName, Pause)>, Error> {
    all(connection, PAUSED, params![namespace.as_str()], |row| {
        let mut columns = Columns::new(row);
        let queue = columns.name()?;
        let since = columns.moment()?;
        Ok((queue, Pause { since, reason: columns.text()?.to_owned() }))
    })
}
