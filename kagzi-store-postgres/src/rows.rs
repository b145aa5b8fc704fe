//! Rows to domain types and back.

use kagzi_core::{
    Attempt, AttemptState, ContentType, DeadLetterReason, Failure, FencingToken, IdempotencyKey, Labels,
    Namespace, OperationId, Payload, Priority, QueueName, RetryPolicy, Run, RunId, RunState, StepId,
    StepKind, StoreError, Timestamp, WorkerId, WorkflowType,
};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Row as _, Type};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{Fault, damaged};

/// The columns of [`run_from_row`], of the table `runs` or of a query that stands for it.
macro_rules! run_columns {
    () => {
        "run_id, namespace, queue, workflow_type, state::text AS state, priority, due_at, deadline_at, \
         run_timeout_micros, fencing_token, worker_id, lease_expires_at, claim_operation, claims, lost_leases, \
         failures, budget_token, retry, idempotency_key, labels::text AS labels, trace_context, failure, \
         dead_letter::text AS dead_letter, finish_operation, created_at, updated_at, finished_at"
    };
}

/// The same of the runs that `kagzi_claim` took, each of which is one value in a row. They are told apart in the
/// statement itself: a query around it would keep Citus from sending the call to its node.
macro_rules! taken_columns {
    () => {
        "(taken).run_id, (taken).namespace, (taken).queue, (taken).workflow_type, \
         (taken).state::text AS state, (taken).priority, (taken).due_at, (taken).deadline_at, \
         (taken).run_timeout_micros, (taken).fencing_token, (taken).worker_id, (taken).lease_expires_at, \
         (taken).claim_operation, (taken).claims, (taken).lost_leases, (taken).failures, (taken).budget_token, \
         (taken).retry, (taken).idempotency_key, (taken).labels::text AS labels, (taken).trace_context, \
         (taken).failure, (taken).dead_letter::text AS dead_letter, (taken).finish_operation, \
         (taken).created_at, (taken).updated_at, (taken).finished_at"
    };
}

/// The columns of [`attempt_from_row`], of the table `steps` or of a query that stands for it.
macro_rules! attempt_columns {
    () => {
        "run_id, step_id, attempt, position, kind::text AS kind, state::text AS state, fencing_token, \
         worker_id, retry, deadline_at, begin_operation, end_operation, output_type, output, failure, \
         created_at, updated_at, finished_at"
    };
}

pub(crate) use {attempt_columns, run_columns, taken_columns};

/// A moment as `timestamptz`: both count microseconds, from different beginnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) Timestamp);

/// 2000-01-01, where Postgres begins to count, in microseconds since 1970.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Moment {
    fn array_type_info() -> PgTypeInfo {
        <OffsetDateTime as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Moment {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&(self.0.as_micros() - POSTGRES_EPOCH_MICROS), buffer)
    }
}

impl Decode<'_, Postgres> for Moment {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        Ok(Self(Timestamp::from_micros(micros.saturating_add(POSTGRES_EPOCH_MICROS))?))
    }
}

pub(crate) fn moment(at: Option<Timestamp>) -> Option<Moment> {
    at.map(Moment)
}

fn timestamp(row: &PgRow, column: &str) -> Result<Timestamp, Fault> {
    Ok(row.try_get::<Moment, _>(column)?.0)
}

fn optional_timestamp(row: &PgRow, column: &str) -> Result<Option<Timestamp>, Fault> {
    Ok(row.try_get::<Option<Moment>, _>(column)?.map(|moment| moment.0))
}

fn operation(row: &PgRow, column: &str) -> Result<Option<OperationId>, Fault> {
    Ok(row.try_get::<Option<Uuid>, _>(column)?.map(OperationId::from_uuid))
}

fn count(row: &PgRow, column: &str) -> Result<u32, Fault> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number).map_err(|_| damaged(format!("{column} is {number}")).into())
}

fn small_count(row: &PgRow, column: &str) -> Result<u32, Fault> {
    let number: i32 = row.try_get(column)?;
    u32::try_from(number).map_err(|_| damaged(format!("{column} is {number}")).into())
}

/// A text column through `read`, if it is not null.
fn optional<T>(
    row: &PgRow,
    column: &str,
    read: impl FnOnce(&str) -> Result<T, StoreError>,
) -> Result<Option<T>, Fault> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.map(read).transpose()?)
}

fn one_of<T: Copy>(text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T, StoreError> {
    all.iter()
        .copied()
        .find(|&one| name(one) == text)
        .ok_or_else(|| damaged(format!("unknown name {text:?}")))
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    // The error's text may quote the value, and that may be a payload.
    serde_json::from_str(text)
        .map_err(|error| damaged(format!("JSON is not as expected ({:?})", error.classify())))
}

/// The stored form of a structured value. Cannot fail for the types of kagzi-core.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Internal { context: "encoding a value", detail: error.to_string() })
}

/// Reads a row of [`run_columns`].
pub(crate) fn run_from_row(row: &PgRow) -> Result<Run, Fault> {
    Ok(Run {
        run_id: RunId::from_uuid(row.try_get("run_id")?)?,
        namespace: Namespace::new(row.try_get::<&str, _>("namespace")?)?,
        queue: QueueName::new(row.try_get::<&str, _>("queue")?)?,
        workflow_type: WorkflowType::new(row.try_get::<&str, _>("workflow_type")?)?,
        state: one_of(row.try_get("state")?, &RunState::ALL, RunState::as_str)?,
        priority: Priority::new(row.try_get::<i16, _>("priority")?.into())?,
        due_at: timestamp(row, "due_at")?,
        deadline_at: optional_timestamp(row, "deadline_at")?,
        run_timeout: row
            .try_get::<Option<i64>, _>("run_timeout_micros")?
            .map(|micros| std::time::Duration::from_micros(micros.unsigned_abs())),
        fencing_token: FencingToken::new(row.try_get("fencing_token")?)?,
        worker_id: optional(row, "worker_id", |text| WorkerId::new(text))?,
        lease_expires_at: optional_timestamp(row, "lease_expires_at")?,
        claim_operation: operation(row, "claim_operation")?,
        claims: count(row, "claims")?,
        lost_leases: count(row, "lost_leases")?,
        failures: count(row, "failures")?,
        budget_token: FencingToken::new(row.try_get("budget_token")?)?,
        retry: optional(row, "retry", json::<RetryPolicy>)?,
        idempotency_key: optional(row, "idempotency_key", |text| IdempotencyKey::new(text))?,
        labels: optional(row, "labels", json::<Labels>)?.unwrap_or_default(),
        trace_context: row.try_get("trace_context")?,
        failure: optional(row, "failure", json::<Failure>)?,
        dead_letter: optional(row, "dead_letter", |text| {
            one_of(text, &DeadLetterReason::ALL, DeadLetterReason::as_str)
        })?,
        finish_operation: operation(row, "finish_operation")?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
        finished_at: optional_timestamp(row, "finished_at")?,
    })
}

/// Reads a row of [`attempt_columns`].
pub(crate) fn attempt_from_row(row: &PgRow) -> Result<Attempt, Fault> {
    Ok(Attempt {
        run_id: RunId::from_uuid(row.try_get("run_id")?)?,
        step_id: StepId::new(row.try_get::<&str, _>("step_id")?)?,
        position: small_count(row, "position")?,
        kind: one_of(row.try_get("kind")?, &StepKind::ALL, StepKind::as_str)?,
        attempt: small_count(row, "attempt")?,
        state: one_of(row.try_get("state")?, &AttemptState::ALL, AttemptState::as_str)?,
        fencing_token: FencingToken::new(row.try_get("fencing_token")?)?,
        worker_id: WorkerId::new(row.try_get::<&str, _>("worker_id")?)?,
        retry: optional(row, "retry", json::<RetryPolicy>)?,
        deadline_at: optional_timestamp(row, "deadline_at")?,
        begin_operation: OperationId::from_uuid(row.try_get("begin_operation")?),
        end_operation: operation(row, "end_operation")?,
        output: payload_from_row(row, "output_type", "output")?,
        failure: optional(row, "failure", json::<Failure>)?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
        finished_at: optional_timestamp(row, "finished_at")?,
    })
}

/// A payload from its two columns, if it is there.
pub(crate) fn payload_from_row(
    row: &PgRow,
    content_type: &str,
    bytes: &str,
) -> Result<Option<Payload>, Fault> {
    let Some(content_type) = optional(row, content_type, |text| ContentType::new(text))? else {
        return Ok(None);
    };
    let bytes: Vec<u8> = row.try_get(bytes)?;
    Ok(Some(Payload::new(content_type, bytes)))
}

/// What becomes of a text for people when there is none.
pub(crate) fn retry_text(retry: Option<&RetryPolicy>) -> Result<Option<String>, StoreError> {
    retry.map(to_json).transpose()
}

/// A duration of a request, which is at most 100 years, in microseconds.
pub(crate) fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
