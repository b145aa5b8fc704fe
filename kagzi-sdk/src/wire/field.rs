//! Fields: names, ids and enums as messages carry them, and errors that say which field is at fault.

use kagzi_core::{OperationId, StoreError};

/// An error about a field.
pub(super) fn invalid(field: &str, expected: impl Into<String>, got: impl Into<String>) -> StoreError {
    StoreError::InvalidArgument { field: field.to_owned(), expected: expected.into(), got: got.into() }
}

/// A message field that must be there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(|| invalid(field, "a value", "nothing"))
}

/// Puts the field of an error inside another: `queue` within `starts[3]` is `starts[3].queue`.
///
/// # Errors
///
/// That of `result`.
pub fn within<T>(outer: &str, result: Result<T, StoreError>) -> Result<T, StoreError> {
    rename(result, |field| format!("{outer}.{field}"))
}

/// Gives the field of an error another name.
pub(super) fn named<T>(field: &str, result: Result<T, StoreError>) -> Result<T, StoreError> {
    rename(result, |_| field.to_owned())
}

fn rename<T>(result: Result<T, StoreError>, name: impl FnOnce(&str) -> String) -> Result<T, StoreError> {
    result.map_err(|error| match error {
        StoreError::InvalidArgument { field, expected, got } => {
            StoreError::InvalidArgument { field: name(&field), expected, got }
        }
        StoreError::TooLarge { field, limit_bytes, actual_bytes } => {
            StoreError::TooLarge { field: name(&field), limit_bytes, actual_bytes }
        }
        other => other,
    })
}

/// A text field where empty stands for nothing.
pub(super) fn optional<T>(
    text: &str,
    read: impl FnOnce(&str) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// The operation id of a request; one that is left out is made up, with no retry safety for the caller.
pub(super) fn operation_id(text: &str) -> Result<OperationId, StoreError> {
    optional(text, str::parse).map(|id| id.unwrap_or_else(OperationId::generate))
}

/// An enum of the protocol and its twin in the domain. The zero value, and values that this version
/// does not know, have no twin.
pub(super) trait WireEnum: Copy {
    /// The number on the wire.
    fn number(self) -> i32;
    /// Reads the number in `field`.
    fn from_number(field: &str, number: i32) -> Result<Self, StoreError>;
}

macro_rules! wire_enum {
    ($domain:ty, $wire:ty, $($variant:ident)+) => {
        impl crate::wire::IntoWire<$wire> for $domain {
            fn into_wire(self) -> $wire {
                match self {
                    $(Self::$variant => <$wire>::$variant,)+
                }
            }
        }

        impl crate::wire::field::WireEnum for $domain {
            fn number(self) -> i32 {
                let wire: $wire = crate::wire::IntoWire::into_wire(self);
                wire.into()
            }

            fn from_number(field: &str, number: i32) -> Result<Self, kagzi_core::StoreError> {
                match <$wire>::try_from(number) {
                    $(Ok(<$wire>::$variant) => Ok(Self::$variant),)+
                    _ => Err(crate::wire::field::invalid(
                        field,
                        concat!("one of", $(" ", stringify!($variant)),+),
                        format!("value {number}"),
                    )),
                }
            }
        }
    };
}
pub(super) use wire_enum;
