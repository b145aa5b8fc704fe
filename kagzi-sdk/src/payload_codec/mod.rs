//! The seam between values and the engine: what a payload becomes on its way out, and back.

mod apply;

use std::fmt;

use kagzi_core::{ContentType, IdempotencyKey, Namespace, Payload, RunId, StepId, WorkflowType};

pub(crate) use apply::{Payloads, RunPayloads};

/// Turns payloads into what the engine is given, and back: encryption, compression.
///
/// Set on a client by [`Client::with_payload_codec`](crate::Client::with_payload_codec); its workers
/// inherit it. It stands between the JSON of the SDK and the engine, over gRPC and embedded alike, and
/// sees every input, step output, run output and the details of failures. [`Encryption`] is the one that
/// comes with the SDK.
///
/// - What `encode` gave, `decode` must take back, at the same [place](PayloadPlace) and for as long as
///   the run is kept: a step recorded today may be replayed in a year.
/// - Both are called on the threads of the runtime, so they must not block; fetch keys beforehand.
/// - An input at a place with an idempotency key should encode to the same bytes each time. The engine
///   compares the bytes of a start sent again with those of the first; where they differ, the client reads
///   the first input back and compares decoded values, which costs two more calls.
///
/// [`Encryption`]: crate::Encryption
pub trait PayloadCodec: fmt::Debug + Send + Sync + 'static {
    /// What the engine is to keep for `payload`.
    ///
    /// # Errors
    ///
    /// [`PayloadError`]; then nothing is sent.
    fn encode(&self, payload: Payload, place: &PayloadPlace<'_>) -> Result<Payload, PayloadError>;

    /// The payload that `encode` was given.
    ///
    /// # Errors
    ///
    /// [`PayloadError`], without a byte of the content in its text.
    fn decode(&self, payload: Payload, place: &PayloadPlace<'_>) -> Result<Payload, PayloadError>;
}

/// Where a payload belongs. All of it stays the same for the life of the run, requeues included, so that
/// a codec can bind a payload to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadPlace<'a> {
    /// What a run is started with. It has no id yet.
    Input {
        /// The tenant.
        namespace: &'a Namespace,
        /// The program that is given it.
        workflow_type: &'a WorkflowType,
        /// The caller's name for the start, if it has one.
        idempotency_key: Option<&'a IdempotencyKey>,
    },
    /// What a step gave.
    StepOutput {
        /// The tenant.
        namespace: &'a Namespace,
        /// The run.
        run_id: RunId,
        /// The step, with its occurrence.
        step_id: &'a StepId,
    },
    /// What a run completed with.
    RunOutput {
        /// The tenant.
        namespace: &'a Namespace,
        /// The run.
        run_id: RunId,
    },
    /// The details of a failure, of a step or of the run itself: those of the last step become the run's.
    FailureDetails {
        /// The tenant.
        namespace: &'a Namespace,
        /// The run.
        run_id: RunId,
    },
}

/// Why a [`PayloadCodec`] refuses a payload. No text shows content or keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// It is encrypted with a key that is not in the key ring. The one case that passes by itself, once
    /// every process has the key, so a worker's failure of this sort is retryable.
    #[error("encrypted with key {key_id:?}, which is not in the key ring, only: {}; add that key", known.join(", "))]
    UnknownKey {
        /// The key's id.
        key_id: String,
        /// The ids in the key ring.
        known: Vec<String>,
    },
    /// It does not open: it was changed, or it comes from another place, or another key has this id.
    #[error(
        "does not open with key {key_id:?}: it was changed, or moved here from another namespace, run or \
         step, or the key of that id is not the one that it was encrypted with"
    )]
    Tampered {
        /// The key's id.
        key_id: String,
    },
    /// It says that it is encrypted, and is in no form that encryption gives.
    #[error("is no encrypted payload, although its content type says so: {problem}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// It is in plain text where only encrypted payloads are taken.
    #[error(
        "is not encrypted, but has content type {content_type}; if it is from before encryption, accept \
         plain text until such runs have ended"
    )]
    NotEncrypted {
        /// What it says it is.
        content_type: ContentType,
    },
    /// Any other reason of a codec.
    #[error("{problem}")]
    Refused {
        /// The reason, without content or keys.
        problem: String,
    },
}

impl PayloadError {
    /// A short stable name for failures, such as `payload_unknown_key`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownKey { .. } => "payload_unknown_key",
            Self::Tampered { .. } => "payload_tampered",
            Self::Malformed { .. } => "payload_malformed",
            Self::NotEncrypted { .. } => "payload_not_encrypted",
            Self::Refused { .. } => "payload_refused",
        }
    }

    /// Whether the same payload may be taken later.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::UnknownKey { .. })
    }
}
