//! Payloads: bytes that kagzi carries and never looks into.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::ContentType;

/// Opaque bytes with a content type, given back to the byte (invariant 12).
///
/// Cloning is cheap: the bytes are shared. `Debug` shows the content type and the length, never the
/// content, so that a payload cannot reach a log by way of `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// What the bytes are.
    pub content_type: ContentType,
    /// The bytes.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub bytes: Bytes,
}

impl Payload {
    /// A payload of any content type.
    pub fn new(content_type: ContentType, bytes: impl Into<Bytes>) -> Self {
        Self { content_type, bytes: bytes.into() }
    }

    /// Bytes that are JSON already.
    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self::new(ContentType::json(), bytes)
    }

    /// Bytes of no known kind.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::new(ContentType::bytes(), bytes)
    }

    /// No bytes at all.
    pub fn empty() -> Self {
        Self::raw(Bytes::new())
    }

    /// How many bytes count against the payload limit.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({}, {} bytes)", self.content_type, self.bytes.len())
    }
}

fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}
