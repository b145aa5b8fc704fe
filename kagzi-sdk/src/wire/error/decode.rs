//! From what the wire carries to a [`StoreError`].

use std::error::Error as _;
use std::str::FromStr;
use std::time::Duration;

use kagzi_core::{
    AttemptState, FencingToken, IdempotencyKey, LostReason, QueueName, RunState, StepId, StoreError,
};
use tonic::{Code, Status};

use super::{PERMISSION_DENIED, Refusal, UNAUTHENTICATED};

/// How long to wait where the other side does not say.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The error that was described, or, if the description cannot be read, one that behaves like it.
pub(super) fn rebuild(described: &Refusal) -> StoreError {
    exact(described).unwrap_or_else(|| by_code(described.code, &described.message, described.retry_delay))
}

fn exact(described: &Refusal) -> Option<StoreError> {
    let text = |name: &str| described.metadata.get(name).cloned();
    let run_id = || parsed(described, "run_id");
    let step_id = || text("step_id").and_then(|id| StepId::new(id).ok());
    Some(match described.reason.as_str() {
        "TOO_LARGE" => StoreError::TooLarge {
            field: text("field")?,
            limit_bytes: parsed(described, "limit_bytes")?,
            actual_bytes: parsed(described, "actual_bytes")?,
        },
        "BAD_CURSOR" => StoreError::BadCursor { got: known(&CURSORS, &text("got")?) },
        "RUN_NOT_FOUND" => StoreError::RunNotFound { run_id: run_id()? },
        "LEASE_LOST" => StoreError::LeaseLost {
            run_id: run_id()?,
            presented: token(described, "presented_token")?,
            reason: lost(described)?,
        },
        "ATTEMPT_NOT_RUNNING" => StoreError::AttemptNotRunning {
            run_id: run_id()?,
            step_id: step_id()?,
            attempt: parsed(described, "attempt")?,
            state: match text("attempt_state") {
                None => None,
                Some(name) => Some(AttemptState::ALL.into_iter().find(|state| state.as_str() == name)?),
            },
        },
        "STEP_KIND_MISMATCH" => StoreError::StepKindMismatch { run_id: run_id()?, step_id: step_id()? },
        "WRONG_STATE" => StoreError::WrongState {
            run_id: run_id()?,
            state: run_state(described)?,
            expected: known(&STATES, &text("expected")?),
        },
        "IDEMPOTENCY_CONFLICT" => StoreError::IdempotencyConflict {
            key: text("idempotency_key").and_then(|key| IdempotencyKey::new(key).ok())?,
            run_id: run_id()?,
            differs: text("differs")?.split(',').map(|field| known(&START_FIELDS, field)).collect(),
        },
        "OPERATION_CONFLICT" => {
            let operation = parsed(described, "operation_id")?;
            match text("queue") {
                Some(queue) => {
                    StoreError::QueueOperationConflict { queue: QueueName::new(queue).ok()?, operation }
                }
                None => StoreError::OperationConflict { run_id: run_id()?, operation },
            }
        }
        "SCHEMA_MISMATCH" => StoreError::SchemaMismatch {
            found: parsed(described, "found_version")?,
            supported: parsed(described, "supported_version")?,
            remedy: "see the log of the server for what to do",
        },
        "UNAVAILABLE" | "SHUTTING_DOWN" | "OVERLOADED" | "LIMIT_REACHED" => {
            StoreError::unavailable(text("cause")?, described.retry_delay.unwrap_or(RETRY_AFTER))
        }
        "OUTCOME_UNKNOWN" => StoreError::outcome_unknown(text("cause")?),
        "INTERNAL" => StoreError::Internal {
            context: "answering a call on the server",
            detail: match text("context") {
                Some(context) => format!("{context}: {}", text("detail")?),
                None => text("detail")?,
            },
        },
        UNAUTHENTICATED | PERMISSION_DENIED => StoreError::InvalidArgument {
            field: "credentials".to_owned(),
            expected: text("expected")?,
            got: text("got")?,
        },
        // Whatever else names a field: INVALID_ARGUMENT, NAMESPACE_NOT_FOUND, and what is yet to come.
        _ => StoreError::InvalidArgument {
            field: text("field")?,
            expected: text("expected")?,
            got: text("got")?,
        },
    })
}

fn parsed<T: FromStr>(described: &Refusal, name: &str) -> Option<T> {
    described.metadata.get(name)?.parse().ok()
}

fn token(described: &Refusal, name: &str) -> Option<FencingToken> {
    FencingToken::new(parsed(described, name)?).ok()
}

fn run_state(described: &Refusal) -> Option<RunState> {
    let name = described.metadata.get("state")?;
    RunState::ALL.into_iter().find(|state| state.as_str() == name)
}

fn lost(described: &Refusal) -> Option<LostReason> {
    Some(match described.metadata.get("lost_reason")?.as_str() {
        "TOKEN_STALE" => LostReason::TokenStale { current: token(described, "current_token")? },
        "OTHER_WORKER" => LostReason::OtherWorker,
        "NOT_RUNNING" => LostReason::NotRunning { state: run_state(described)? },
        _ => return None,
    })
}

// Some texts in a `StoreError` are `&'static str`, chosen from few. The last of each list stands for
// one that a newer server may send.
const START_FIELDS: [&str; 9] = [
    "queue",
    "workflow_type",
    "input",
    "idempotency_key",
    "priority",
    "run_timeout",
    "retry_policy",
    "labels",
    "another field",
];
const STATES: [&str; 2] = ["FAILED (a dead letter)", "another state"];
const CURSORS: [&str; 4] = [
    "a text that no listing gave",
    "one of another listing, or a damaged one",
    "one with a damaged place",
    "another text",
];

fn known<const N: usize>(texts: &[&'static str; N], text: &str) -> &'static str {
    texts.iter().find(|known| **known == text).copied().unwrap_or(texts[N - 1])
}

/// The error that asks for the right behaviour after a status that no kagzi server made.
pub(super) fn foreign(status: &Status) -> StoreError {
    if status.code() == Code::InvalidArgument && status.source().is_some() {
        // Made by this side's decoder: see `kagzi_proto::codec`.
        return StoreError::Internal {
            context: "reading the server's answer",
            detail: status.message().to_owned(),
        };
    }
    if status.code() == Code::Unavailable && status.source().is_none() {
        // Said by what lies between, such as a gateway that lost its own connection to the server: only a kagzi
        // server knows that nothing was changed.
        return no_answer(status.message());
    }
    if status.code() == Code::Internal && !FOR_GOOD.iter().any(|text| status.message().starts_with(text)) {
        // A kagzi server's own has details. This one is of a link that broke behind what lies between, or of an
        // answer that was cut short: who knows how far the call came.
        return no_answer(status.message());
    }
    by_code(status.code(), status.message(), None)
}

/// How INTERNAL begins that this side's tonic made of an answer which would be no better another time.
const FOR_GOOD: [&str; 5] = [
    // From HTTP 400: what lies between does not take the request at all.
    "grpc-status header missing, mapped from HTTP status code",
    "protocol error: received message with",
    "Error decompressing",
    "Error compressing",
    "Error encoding",
];

fn no_answer(message: &str) -> StoreError {
    StoreError::outcome_unknown(format!("no answer from the server: {message}"))
}

fn by_code(code: Code, message: &str, retry_delay: Option<Duration>) -> StoreError {
    let invalid = |field: &str, expected: &str| StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: expected.to_owned(),
        got: message.to_owned(),
    };
    match code {
        Code::Unavailable | Code::ResourceExhausted => StoreError::unavailable(
            format!("the server cannot be reached or takes no more: {message}"),
            retry_delay.unwrap_or(RETRY_AFTER),
        ),
        // The connection broke, the caller's or a proxy's time ran out: the call may have been done.
        Code::Unknown | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => no_answer(message),
        Code::OutOfRange => invalid(
            "message",
            "a message within the limit of the receiver; raise `max_message_bytes`, or ask for less at a time",
        ),
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
            invalid("request", "one that the server accepts")
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            invalid("credentials", "credentials that the server accepts")
        }
        Code::Unimplemented => invalid("server", "a kagzi server of this version or a newer one"),
        Code::Ok | Code::Internal | Code::DataLoss => {
            StoreError::Internal { context: "calling the server", detail: format!("{code:?}: {message}") }
        }
    }
}
