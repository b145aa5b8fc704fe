//! Payloads, failures and labels.

use std::collections::BTreeMap;

use kagzi_core::{ContentType, Failure, FailureKind, Labels, Payload, StoreError};
use kagzi_proto::v1;

use super::field::{WireEnum, named, required, wire_enum, within};
use super::{FromWire, IntoWire};

wire_enum!(FailureKind, v1::FailureKind, Retryable NonRetryable Timeout Cancelled LeaseLost Panic);

impl IntoWire<v1::Payload> for Payload {
    fn into_wire(self) -> v1::Payload {
        v1::Payload { content_type: self.content_type.as_str().to_owned(), data: self.bytes }
    }
}

impl FromWire<v1::Payload> for Payload {
    fn from_wire(wire: v1::Payload) -> Result<Self, StoreError> {
        let content_type = match wire.content_type.as_str() {
            "" => ContentType::bytes(),
            text => ContentType::new(text)?,
        };
        Ok(Self::new(content_type, wire.data))
    }
}

/// A payload that may be left out.
pub(super) fn optional_payload(
    field: &str,
    wire: Option<v1::Payload>,
) -> Result<Option<Payload>, StoreError> {
    wire.map(|wire| within(field, Payload::from_wire(wire))).transpose()
}

/// A payload for which nothing stands for no bytes.
pub(super) fn payload(field: &str, wire: Option<v1::Payload>) -> Result<Payload, StoreError> {
    optional_payload(field, wire).map(|payload| payload.unwrap_or_else(Payload::empty))
}

impl IntoWire<v1::Failure> for Failure {
    fn into_wire(self) -> v1::Failure {
        v1::Failure {
            kind: self.kind.number(),
            code: self.code,
            message: self.message,
            details: self.details.map(IntoWire::into_wire),
        }
    }
}

impl FromWire<v1::Failure> for Failure {
    fn from_wire(wire: v1::Failure) -> Result<Self, StoreError> {
        Ok(Self {
            kind: FailureKind::from_number("kind", wire.kind)?,
            code: wire.code,
            message: wire.message,
            details: optional_payload("details", wire.details)?,
        })
    }
}

/// The failure that a request must bring.
pub(super) fn required_failure(wire: Option<v1::Failure>) -> Result<Failure, StoreError> {
    within("failure", Failure::from_wire(required("failure", wire)?))
}

pub(super) fn labels(wire: BTreeMap<String, String>) -> Result<Labels, StoreError> {
    // Core names the label at fault inside `labels` already.
    Labels::new(wire)
}

pub(super) fn labels_to_wire(labels: Labels) -> BTreeMap<String, String> {
    labels.into()
}

/// A list of names, each error with its place in the list.
pub(super) fn names<T>(
    field: &str,
    wire: &[String],
    read: impl Fn(&str) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    wire.iter().enumerate().map(|(at, text)| named(&format!("{field}[{at}]"), read(text))).collect()
}
