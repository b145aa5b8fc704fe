//! The errors of the SDK: what workflow code returns, and what callers get.

use std::fmt;

use kagzi_core::{DeadLetterReason, Failure, FailureKind, Payload, RunId, RunState, StoreError};
use serde::Serialize;

use crate::codec::{self, CodecError};

/// Longer codes would be refused by every store.
const MAX_CODE_BYTES: usize = 128;
/// Half of the default limit of stores, so that a long error cannot keep a failure from being recorded.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;

macro_rules! application_error {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Failure);

        impl $name {
            /// A failure that a retry may cure. `code` is a short stable name for programs, such as
            /// `gateway_busy`; `message` is for people and must not contain payloads.
            pub fn retryable(code: impl Into<String>, message: impl fmt::Display) -> Self {
                Self(Failure::retryable(code, message.to_string()))
            }

            /// A failure that no retry can cure: the run becomes a dead letter at once.
            pub fn non_retryable(code: impl Into<String>, message: impl fmt::Display) -> Self {
                Self(Failure::non_retryable(code, message.to_string()))
            }

            /// The same failure with details, kept beside it as JSON.
            ///
            /// # Errors
            ///
            /// [`CodecError::Encode`] if the value has no JSON form.
            pub fn with_details<T: Serialize + ?Sized>(mut self, details: &T) -> Result<Self, CodecError> {
                self.0.details = Some(codec::encode(details, || "the details of a failure".to_owned())?);
                Ok(self)
            }

            /// A failure of any kind, field by field.
            pub const fn from_failure(failure: Failure) -> Self {
                Self(failure)
            }

            /// The failure in fields, as it will be recorded.
            pub const fn failure(&self) -> &Failure {
                &self.0
            }

            /// The failure in fields, as it will be recorded.
            pub fn into_failure(self) -> Failure {
                self.0
            }
        }

        /// Any error converts, so that `?` works: a retryable failure with code `error`, whose message
        /// is the error and its sources.
        impl<E: std::error::Error + Send + Sync + 'static> From<E> for $name {
            fn from(error: E) -> Self {
                let codec = (&error as &dyn std::error::Error).downcast_ref::<CodecError>();
                Self(match codec {
                    Some(codec) if codec.may_pass() => Failure::retryable(codec.code(), with_sources(&error)),
                    Some(codec) => Failure::non_retryable(codec.code(), codec.to_string()),
                    None => Failure::retryable("error", with_sources(&error)),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_failure(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

application_error!(
    /// What a step function returns when it fails.
    ///
    /// The failure is recorded with the attempt, and the step's retry policy decides whether and when
    /// the step is tried again. Like `anyhow::Error`, it takes any error through `?` and is for that
    /// reason not itself a [`std::error::Error`].
    ///
    /// ```
    /// use kagzi_sdk::StepError;
    ///
    /// fn charge(cents: i64) -> Result<String, StepError> {
    ///     if cents <= 0 {
    ///         return Err(StepError::non_retryable("bad_amount", "an amount must be positive"));
    ///     }
    ///     let account = std::fs::read_to_string("/nowhere/account")?; // retryable
    ///     Ok(account)
    /// }
    /// assert!(charge(0).unwrap_err().to_string().contains("bad_amount"));
    /// assert_eq!(charge(1).unwrap_err().failure().code, "error");
    /// ```
    StepError
);

application_error!(
    /// What a workflow function returns when it fails outside any step.
    ///
    /// The run's retry policy decides whether the run is executed again; its completed steps stay
    /// memoized either way. Like [`StepError`], it takes any error through `?`.
    WorkflowError
);

impl From<StepError> for WorkflowError {
    fn from(error: StepError) -> Self {
        Self(error.0)
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many errors repeat their source in their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn write_failure(f: &mut fmt::Formatter<'_>, failure: &Failure) -> fmt::Result {
    write!(f, "{}", failure.kind.as_str())?;
    if !failure.code.is_empty() {
        write!(f, " {}", failure.code)?;
    }
    if failure.message.is_empty() { Ok(()) } else { write!(f, ": {}", failure.message) }
}

/// The failure of code that panicked, from what it panicked with.
pub(crate) fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Failure {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not a text".to_owned());
    Failure::new(FailureKind::Panic, "panic", format!("{what} panicked: {message}"))
}

/// A failure whose texts are cut to what every store accepts: an over-long message must not keep the
/// failure itself from being recorded.
pub(crate) fn fitted(mut failure: Failure) -> Failure {
    for (text, limit) in [(&mut failure.code, MAX_CODE_BYTES), (&mut failure.message, MAX_MESSAGE_BYTES)] {
        if text.len() > limit {
            let mark = if limit > MAX_CODE_BYTES { " [cut]" } else { "" };
            let mut end = limit - mark.len();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(mark);
        }
    }
    failure
}

/// A run that did not complete: it is a dead letter, or it was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowFailed {
    /// The run.
    pub run_id: RunId,
    /// [`RunState::Failed`] or [`RunState::Cancelled`].
    pub state: RunState,
    /// What sort of failure ended it.
    pub kind: FailureKind,
    /// The failure's short stable name, as the application gave it. May be empty.
    pub code: String,
    /// The failure's text for people.
    pub message: String,
    /// Anything more, as the application encoded it.
    pub details: Option<Payload>,
    /// Why the engine gave the run up; nothing if it was cancelled.
    pub dead_letter: Option<DeadLetterReason>,
}

impl WorkflowFailed {
    /// The details as a value of type `T`; nothing if there are none.
    ///
    /// # Errors
    ///
    /// [`CodecError`] if they do not hold a `T`.
    pub fn details<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>, CodecError> {
        let what = || "the details of a failure".to_owned();
        self.details.as_ref().map(|details| codec::decode(details, what)).transpose()
    }
}

impl fmt::Display for WorkflowFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} is {}", self.run_id, self.state)?;
        if let Some(reason) = self.dead_letter {
            write!(f, " ({})", reason.as_str())?;
        }
        write!(f, ": {}", self.kind.as_str())?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for WorkflowFailed {}

/// What a [`Client`](crate::Client) answers instead of a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The engine refused the call, or could not be reached for longer than the client's patience.
    #[error(transparent)]
    Call(#[from] StoreError),
    /// A value could not be written or read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The run ended without a result.
    #[error(transparent)]
    WorkflowFailed(#[from] Box<WorkflowFailed>),
    /// The address of the server is not one.
    #[error("server address {address:?}: expected one such as http://127.0.0.1:7474 ({problem})")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A token, key or certificate cannot be read or used.
    #[error("credentials from {from}: {problem}")]
    Credentials {
        /// Where they were to come from: a file or a variable.
        from: String,
        /// What is wrong, without the secret.
        problem: String,
    },
    /// No server answered at the address.
    #[error("no kagzi server answers at {address}: {problem}; start one with `kagzi dev`")]
    Connect {
        /// The address.
        address: String,
        /// What happened.
        problem: String,
    },
}

/// Why a worker could not be built, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The worker has no workflow to execute. Register one.
    #[error("a worker needs at least one workflow: call register")]
    NoWorkflow,
    /// The worker has no queue to take runs from. Name one.
    #[error("a worker needs at least one queue: call queue")]
    NoQueue,
    /// Two functions were registered under one workflow type.
    #[error("workflow type {workflow_type:?} is registered twice; give each function a name of its own")]
    RegisteredTwice {
        /// The name.
        workflow_type: String,
    },
    /// A setting is outside its documented rule.
    #[error(transparent)]
    Setting(StoreError),
    /// The engine refuses to hand out work, and asking again cannot help.
    #[error("the engine refuses to hand out work: {0}")]
    Refused(StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let failure = Failure::retryable("ü".repeat(100), "ü".repeat(40_000));
        let fitted = fitted(failure);
        assert!(fitted.code.len() <= MAX_CODE_BYTES && fitted.code.chars().all(|c| c == 'ü'));
        assert!(fitted.message.len() <= MAX_MESSAGE_BYTES && fitted.message.ends_with(" [cut]"));
    }

    #[test]
    fn sources_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let outer = StoreError::unavailable("disk on fire", std::time::Duration::ZERO);
        assert_eq!(StepError::from(inner).failure().message, "disk on fire");
        assert_eq!(StepError::from(outer).failure().message, "the store is unavailable: disk on fire");
    }

    #[test]
    fn a_codec_error_is_not_retried() {
        let error = codec::decode::<u32>(&Payload::json("x"), || "a file".to_owned()).unwrap_err();
        let failure = StepError::from(error).into_failure();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::NonRetryable, "decode"));
    }
}
