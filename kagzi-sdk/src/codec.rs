//! Values to payloads and back: JSON, the one encoding that the SDK writes.

use kagzi_core::{ContentType, Payload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::encryption::Encryption;
use crate::payload_codec::PayloadError;

/// A value that could not be turned into a payload, or a payload into a value.
///
/// It names what was being read or written and the place of the fault, never the content: what serde
/// says about a wrong value may quote it, so only the category and the position are kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be written as JSON, such as a map whose keys are not texts.
    #[error("{what} cannot be written as JSON: a value of type {rust_type} has no JSON form")]
    Encode {
        /// What was written, such as `the output of step "charge"`.
        what: String,
        /// The Rust type of the value.
        rust_type: &'static str,
    },
    /// The payload is not JSON, by its own content type.
    #[error("{what} has content type {content_type}, expected application/json{}", hint(content_type))]
    ContentType {
        /// What was read.
        what: String,
        /// What the payload says it is.
        content_type: ContentType,
    },
    /// The client's payload codec refuses the payload.
    #[error("{what}: {error}")]
    Payload {
        /// What was read or written.
        what: String,
        /// Why.
        #[source]
        error: PayloadError,
    },
    /// The payload does not hold a value of the expected type.
    #[error(
        "{what} does not hold a {rust_type}: {fault} at line {line}, column {column} of its JSON; \
         if the type has changed, read both forms or start a new workflow type"
    )]
    Decode {
        /// What was read, such as `the input`.
        what: String,
        /// The Rust type that was expected.
        rust_type: &'static str,
        /// What sort of fault it is.
        fault: &'static str,
        /// The line of the fault, from 1.
        line: usize,
        /// The column of the fault, from 1; 0 where it is the value as a whole.
        column: usize,
    },
}

impl CodecError {
    /// A short stable name for failures: `encode`, `decode`, or that of a [`PayloadError`].
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Encode { .. } => "encode",
            Self::ContentType { .. } | Self::Decode { .. } => "decode",
            Self::Payload { error, .. } => error.code(),
        }
    }

    /// Whether the same may succeed later.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(self, Self::Payload { error, .. } if error.may_pass())
    }
}

/// What to do about a content type that is not JSON, where that is known.
fn hint(content_type: &ContentType) -> &'static str {
    if content_type.as_str() == Encryption::CONTENT_TYPE {
        "; it is encrypted: give the client its key by with_payload_codec"
    } else {
        ""
    }
}

/// Writes `value`; `what` names it in the error.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    what: impl FnOnce() -> String,
) -> Result<Payload, CodecError> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(Payload::json(bytes)),
        Err(_) => Err(CodecError::Encode { what: what(), rust_type: std::any::type_name::<T>() }),
    }
}

/// Reads a value of type `T`; `what` names the payload in the error.
pub(crate) fn decode<T: DeserializeOwned>(
    payload: &Payload,
    what: impl FnOnce() -> String,
) -> Result<T, CodecError> {
    if payload.content_type != ContentType::json() {
        return Err(CodecError::ContentType { what: what(), content_type: payload.content_type.clone() });
    }
    serde_json::from_slice(&payload.bytes).map_err(|error| CodecError::Decode {
        what: what(),
        rust_type: std::any::type_name::<T>(),
        fault: match error.classify() {
            serde_json::error::Category::Data => "a value of another shape",
            serde_json::error::Category::Eof => "an early end",
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => "a syntax error",
        },
        line: error.line(),
        column: error.column(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_placed_and_the_content_is_not_shown() {
        let payload = Payload::json(br#"{"card": "4111-secret"}"#.to_vec());
        let error = decode::<u32>(&payload, || "the input".to_owned()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("the input") && text.contains("line 1"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(error.code(), "decode");
    }

    #[test]
    fn another_content_type_is_refused_by_name() {
        let error = decode::<u32>(&Payload::raw(b"1".to_vec()), || "the input".to_owned()).unwrap_err();
        assert!(error.to_string().contains("application/octet-stream"), "{error}");
    }

    #[test]
    fn a_value_without_json_form_is_refused_when_written() {
        let map = std::collections::BTreeMap::from([(vec![1_u8], 1)]);
        let error = encode(&map, || "the output of step \"a\"".to_owned()).unwrap_err();
        assert!(error.to_string().contains("step \"a\""), "{error}");
        assert_eq!(error.code(), "encode");
    }
}
