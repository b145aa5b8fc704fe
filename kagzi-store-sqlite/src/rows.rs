//! Rows to domain types and back, and the few ways in which statements are run.

use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptState, ContentType, DeadLetterReason, FencingToken, OperationId, Payload, Priority, Run,
    RunId, RunState, StepKind, StoreError, Timestamp,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::Error;

/// The columns of [`run`], of a table called `r`, in its order.
macro_rules! run_columns {
    () => {
        "r.run_id, r.namespace, r.queue, r.workflow_type, r.state, r.priority, r.due_at, r.deadline_at, \
         r.run_timeout, r.fencing_token, r.worker_id, r.lease_expires_at, r.claim_operation, r.claims, \
         r.lost_leases, r.failures, r.budget_token, r.finish_operation, r.dead_letter, r.created_at, \
         r.updated_at, r.finished_at, r.idempotency_key, r.trace_context, r.retry, r.labels, r.failure"
    };
}
pub(crate) use run_columns;

/// The columns of [`attempt`], of a table called `s`, in its order.
macro_rules! attempt_columns {
    () => {
        "s.run_id, s.step_id, s.attempt, s.position, s.kind, s.state, s.fencing_token, s.worker_id, \
         s.deadline_at, s.begin_operation, s.end_operation, s.created_at, s.updated_at, s.finished_at, \
         s.retry, s.output_type, s.output, s.failure"
    };
}
pub(crate) use attempt_columns;

/// The first row of a query, if it has one.
pub(crate) fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    decode: impl FnOnce(&Row<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(decode).transpose()
}

/// Every row of a query.
pub(crate) fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    decode: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(decode(row)?);
    }
    Ok(found)
}

/// Runs a statement that writes; answers how many rows it changed.
pub(crate) fn execute(connection: &Connection, sql: &str, params: impl Params) -> Result<usize, Error> {
    Ok(connection.prepare_cached(sql)?.execute(params)?)
}

/// Has every page read again from the file: after an error they may be damaged ones, which SQLite would
/// keep until somebody writes.
pub(crate) fn drop_cached_pages(connection: &Connection) {
    if let Err(error) = connection.execute_batch("PRAGMA shrink_memory") {
        tracing::debug!(%error, "cached pages could not be dropped");
    }
}

/// A run from [`run_columns`].
pub(crate) fn run(row: &Row<'_>) -> Result<Run, Error> {
    run_at(&mut Columns::new(row))
}

/// A run from the next columns.
pub(crate) fn run_at(columns: &mut Columns<'_>) -> Result<Run, Error> {
    // Fields are evaluated as written: in the order of the columns.
    Ok(Run {
        run_id: columns.run_id()?,
        namespace: columns.name()?,
        queue: columns.name()?,
        workflow_type: columns.name()?,
        state: columns.one_of(&RunState::ALL, RunState::as_str)?,
        priority: columns.int().and_then(|level| kept(Priority::new(level)))?,
        due_at: columns.moment()?,
        deadline_at: columns.optional(Columns::moment)?,
        run_timeout: columns.optional(Columns::duration)?,
        fencing_token: columns.token()?,
        worker_id: columns.optional(Columns::name)?,
        lease_expires_at: columns.optional(Columns::moment)?,
        claim_operation: columns.optional(Columns::operation)?,
        claims: columns.count()?,
        lost_leases: columns.count()?,
        failures: columns.count()?,
        budget_token: columns.token()?,
        finish_operation: columns.optional(Columns::operation)?,
        dead_letter: columns.optional(|c| c.one_of(&DeadLetterReason::ALL, DeadLetterReason::as_str))?,
        created_at: columns.moment()?,
        updated_at: columns.moment()?,
        finished_at: columns.optional(Columns::moment)?,
        idempotency_key: columns.optional(Columns::name)?,
        trace_context: columns.optional(|c| c.text().map(str::to_owned))?,
        retry: columns.optional(Columns::json)?,
        labels: columns.optional(Columns::json)?.unwrap_or_default(),
        failure: columns.optional(Columns::json)?,
    })
}

/// An attempt from [`attempt_columns`].
pub(crate) fn attempt(row: &Row<'_>) -> Result<Attempt, Error> {
    let mut columns = Columns::new(row);
    Ok(Attempt {
        run_id: columns.run_id()?,
        step_id: columns.name()?,
        attempt: columns.count()?,
        position: columns.count()?,
        kind: columns.one_of(&StepKind::ALL, StepKind::as_str)?,
        state: columns.one_of(&AttemptState::ALL, AttemptState::as_str)?,
        fencing_token: columns.token()?,
        worker_id: columns.name()?,
        deadline_at: columns.optional(Columns::moment)?,
        begin_operation: columns.operation()?,
        end_operation: columns.optional(Columns::operation)?,
        created_at: columns.moment()?,
        updated_at: columns.moment()?,
        finished_at: columns.optional(Columns::moment)?,
        retry: columns.optional(Columns::json)?,
        output: columns.optional_payload()?,
        failure: columns.optional(Columns::json)?,
    })
}

/// A row, read column by column from the left.
pub(crate) struct Columns<'r> {
    row: &'r Row<'r>,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(crate) const fn new(row: &'r Row<'r>) -> Self {
        Self { row, next: 0 }
    }

    fn value(&mut self) -> Result<ValueRef<'r>, Error> {
        let value = self.row.get_ref(self.next)?;
        self.next += 1;
        Ok(value)
    }

    fn unexpected(&self) -> Error {
        Error::damaged(format!("column {} of the result holds a value of another kind", self.next))
    }

    /// `read` the next column, or nothing if it is NULL.
    pub(crate) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if matches!(self.row.get_ref(self.next)?, ValueRef::Null) {
            self.next += 1;
            return Ok(None);
        }
        read(self).map(Some)
    }

    pub(crate) fn int(&mut self) -> Result<i64, Error> {
        match self.value()? {
            ValueRef::Integer(number) => Ok(number),
            _ => Err(self.unexpected()),
        }
    }

    pub(crate) fn text(&mut self) -> Result<&'r str, Error> {
        self.value()?.as_str().map_err(|_| self.unexpected())
    }

    fn blob(&mut self) -> Result<&'r [u8], Error> {
        self.value()?.as_blob().map_err(|_| self.unexpected())
    }

    fn uuid(&mut self) -> Result<Uuid, Error> {
        Uuid::from_slice(self.blob()?).map_err(|_| self.unexpected())
    }

    pub(crate) fn run_id(&mut self) -> Result<RunId, Error> {
        kept(RunId::from_uuid(self.uuid()?))
    }

    fn operation(&mut self) -> Result<OperationId, Error> {
        self.uuid().map(OperationId::from_uuid)
    }

    /// A name of any of the core's types.
    pub(crate) fn name<T: std::str::FromStr<Err = StoreError>>(&mut self) -> Result<T, Error> {
        kept(self.text()?.parse())
    }

    pub(crate) fn moment(&mut self) -> Result<Timestamp, Error> {
        kept(Timestamp::from_micros(self.int()?))
    }

    fn duration(&mut self) -> Result<Duration, Error> {
        u64::try_from(self.int()?).map(Duration::from_micros).map_err(|_| self.unexpected())
    }

    fn token(&mut self) -> Result<FencingToken, Error> {
        kept(FencingToken::new(self.int()?))
    }

    pub(crate) fn count(&mut self) -> Result<u32, Error> {
        u32::try_from(self.int()?).map_err(|_| self.unexpected())
    }

    /// A count of rows.
    pub(crate) fn total(&mut self) -> Result<u64, Error> {
        u64::try_from(self.int()?).map_err(|_| self.unexpected())
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T], name: fn(T) -> &'static str) -> Result<T, Error> {
        let text = self.text()?;
        all.iter().copied().find(|value| name(*value) == text).ok_or_else(|| self.unexpected())
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        // The parser's own message may quote what it read: a failure's details are payload.
        serde_json::from_str(self.text()?).map_err(|error| {
            Error::damaged(format!(
                "column {} holds JSON of another shape ({:?})",
                self.next,
                error.classify()
            ))
        })
    }

    /// A payload from two columns: content type and bytes.
    pub(crate) fn payload(&mut self) -> Result<Payload, Error> {
        let content_type = match self.text()? {
            "application/json" => ContentType::json(),
            other => kept(other.parse())?,
        };
        Ok(Payload::new(content_type, self.blob()?.to_vec()))
    }

    fn optional_payload(&mut self) -> Result<Option<Payload>, Error> {
        if matches!(self.row.get_ref(self.next)?, ValueRef::Null) {
            self.next += 2;
            return Ok(None);
        }
        self.payload().map(Some)
    }
}

/// What a row holds was checked when it was written: now it is damage, not an argument.
fn kept<T>(value: Result<T, StoreError>) -> Result<T, Error> {
    value.map_err(|error| Error::damaged(error.to_string()))
}

/// An id as it is bound.
pub(crate) const fn bytes(id: Uuid) -> [u8; 16] {
    id.into_bytes()
}

/// A duration as it is bound: at most 100 years, so it fits.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A structured value as it is bound.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| {
        Error::Refused(StoreError::Internal { context: "encoding a row", detail: error.to_string() })
    })
}
