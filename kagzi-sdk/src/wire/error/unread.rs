//! What a server says of a request that never reached its services: one that is too long, or that
//! cannot be read.
//!
//! The transport refuses those by itself, with a code and a text. Here they get the details that every
//! other error has.

use kagzi_core::StoreError;
use tonic::{Code, Status};

use super::{UNAVAILABLE_RETRY_AFTER, error_to_status};

/// What stands before the fields in the text of a decoder's error.
const DECODER: &str = "failed to decode Protobuf message: ";

const EXPECTED: &str = "a message of kagzi.v1 as its .proto files describe it; generate the client from the files of this server";

/// The status that tells what was wrong with a request, in place of one that the transport made of it.
/// Nothing for a status that has its details.
pub fn explained(status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let text = status.message();
    let error = match status.code() {
        Code::OutOfRange => match sizes(text) {
            Some((actual_bytes, limit_bytes)) => {
                StoreError::TooLarge { field: "request".to_owned(), limit_bytes, actual_bytes }
            }
            None => unreadable("request".to_owned(), text),
        },
        Code::InvalidArgument => {
            let what = text.strip_prefix(DECODER).unwrap_or(text);
            unreadable(path(what).unwrap_or_else(|| "request".to_owned()), what)
        }
        // The transport calls a frame that it cannot read its own mistake.
        Code::Internal => unreadable("request".to_owned(), text),
        Code::Unavailable => StoreError::unavailable(text, UNAVAILABLE_RETRY_AFTER),
        _ => return None,
    };
    Some(error_to_status(&error))
}

fn unreadable(field: String, got: &str) -> StoreError {
    StoreError::InvalidArgument { field, expected: EXPECTED.to_owned(), got: got.to_owned() }
}

/// The fields that a decoder's text leads through, the innermost first (`Inner.name: Outer.inner: what
/// was wrong`), as a path: `inner.name`.
fn path(text: &str) -> Option<String> {
    let step = |part: &str| {
        let (message, field) = part.split_once('.')?;
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        (is_name(message) && is_name(field)).then(|| field.to_owned())
    };
    let mut fields: Vec<String> = text.split(": ").map_while(step).collect();
    fields.reverse();
    (!fields.is_empty()).then(|| fields.join("."))
}

/// The two numbers of the transport's text about a message that is too long: its length, and the limit.
fn sizes(text: &str) -> Option<(usize, usize)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_to_a_field_is_read_from_the_text() {
        for (text, expected) in [
            ("C.d_e: A.b: invalid string value: data is not UTF-8 encoded", Some("b.d_e")),
            ("A.b: buffer underflow", Some("b")),
            ("invalid varint", None),
            ("a sentence. And another: more", None),
        ] {
            assert_eq!(path(text).as_deref(), expected, "{text}");
        }
    }
}
