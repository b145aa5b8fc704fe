//! Rows as bytes: JSON of the domain types, payloads beside it as they are.
//!
//! serde's `remote` derives name each field once, and the compiler says when core grows a new one.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptState, ContentType, DeadLetterReason, Failure, FencingToken, IdempotencyKey, Labels,
    Namespace, OperationId, Payload, Priority, QueueName, RetryPolicy, Run, RunId, RunState, StepId,
    StepKind, Timestamp, WorkerId, WorkflowType,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

#[derive(Serialize, Deserialize)]
#[serde(remote = "Run")]
struct RunRow {
    #[serde(with = "text")]
    run_id: RunId,
    namespace: Namespace,
    queue: QueueName,
    workflow_type: WorkflowType,
    state: RunState,
    priority: Priority,
    due_at: Timestamp,
    deadline_at: Option<Timestamp>,
    run_timeout: Option<Duration>,
    fencing_token: FencingToken,
    worker_id: Option<WorkerId>,
    lease_expires_at: Option<Timestamp>,
    #[serde(with = "optional_text")]
    claim_operation: Option<OperationId>,
    claims: u32,
    lost_leases: u32,
    failures: u32,
    budget_token: FencingToken,
    retry: Option<RetryPolicy>,
    idempotency_key: Option<IdempotencyKey>,
    labels: Labels,
    trace_context: Option<String>,
    failure: Option<Failure>,
    dead_letter: Option<DeadLetterReason>,
    #[serde(with = "optional_text")]
    finish_operation: Option<OperationId>,
    created_at: Timestamp,
    updated_at: Timestamp,
    finished_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Attempt")]
struct AttemptRow {
    #[serde(with = "text")]
    run_id: RunId,
    step_id: StepId,
    position: u32,
    kind: StepKind,
    attempt: u32,
    state: AttemptState,
    fencing_token: FencingToken,
    worker_id: WorkerId,
    retry: Option<RetryPolicy>,
    deadline_at: Option<Timestamp>,
    #[serde(with = "text")]
    begin_operation: OperationId,
    #[serde(with = "optional_text")]
    end_operation: Option<OperationId>,
    /// Kept beside the row, as the bytes they are.
    #[serde(skip)]
    output: Option<Payload>,
    failure: Option<Failure>,
    created_at: Timestamp,
    updated_at: Timestamp,
    finished_at: Option<Timestamp>,
}

pub(crate) fn run_to_bytes(run: &Run) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1024);
    RunRow::serialize(run, &mut serde_json::Serializer::new(&mut bytes))?;
    Ok(bytes)
}

pub(crate) fn run(bytes: &[u8]) -> Result<Run> {
    Ok(RunRow::deserialize(&mut serde_json::Deserializer::from_slice(bytes))?)
}

pub(crate) fn attempt_to_bytes(attempt: &Attempt) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    AttemptRow::serialize(attempt, &mut serde_json::Serializer::new(&mut bytes))?;
    Ok(bytes)
}

pub(crate) fn attempt((bytes, output): (&[u8], Option<(&str, &[u8])>)) -> Result<Attempt> {
    let attempt = AttemptRow::deserialize(&mut serde_json::Deserializer::from_slice(bytes))?;
    Ok(Attempt { output: output.map(payload).transpose()?, ..attempt })
}

pub(crate) fn payload_to_row(payload: &Payload) -> (&str, &[u8]) {
    (payload.content_type.as_str(), &payload.bytes)
}

pub(crate) fn payload((content_type, bytes): (&str, &[u8])) -> Result<Payload> {
    let content_type = ContentType::new(content_type).map_err(|error| Error::Damaged(error.to_string()))?;
    Ok(Payload::new(content_type, bytes.to_vec()))
}

/// A value by its `Display` and `FromStr`: ids have no other stable form.
mod text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same for one that may be missing.
mod optional_text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}
