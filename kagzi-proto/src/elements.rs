//! How many elements a message holds, found out without decoding it.
//!
//! Two bytes on the wire may be an element of half a kilobyte in memory. So before a long message is decoded, its
//! elements are counted by what the `.proto` files say of it. A message that is not well formed is left to the decoder.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

/// What a repeated field may hold at most, wherever it stands: as much as one call may ask for.
const MOST_OF_A_FIELD: usize = 10_000;

/// What a message may hold in all: so many runs with as many labels as each may have, and some more.
const MOST_IN_ALL: usize = 500_000;

/// As deep as the decoder goes.
const DEEPEST: u32 = 100;

/// Of each message of the protocol, by its full name.
static SHAPES: LazyLock<HashMap<String, Shape>> = LazyLock::new(|| {
    // What was built in can be read, which a test shows.
    let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut shapes = HashMap::new();
    for file in &set.file {
        for message in &file.message_type {
            note(file.package(), message, &mut shapes);
        }
    }
    shapes
});

/// The fields of a message that are repeated or messages, by their numbers.
#[derive(Debug, Default)]
struct Shape(HashMap<u32, Field>);

#[derive(Debug)]
struct Field {
    /// With that of its message, as in the decoder's errors.
    name: String,
    repeated: bool,
    /// Many elements may come as one field.
    packs: bool,
    /// The full name of a message.
    message: Option<String>,
}

/// A message holds more elements than it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// `Message.field`, as in the decoder's errors.
    field: String,
    most: usize,
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: more than {} elements", self.field, self.most)
    }
}

fn note(within: &str, message: &DescriptorProto, shapes: &mut HashMap<String, Shape>) {
    let name = format!("{within}.{}", message.name());
    for nested in &message.nested_type {
        note(&name, nested, shapes);
    }
    let mut shape = Shape::default();
    for field in &message.field {
        let repeated = field.label() == Label::Repeated;
        let is_message = field.r#type() == Type::Message;
        if repeated || is_message {
            let packs = !matches!(field.r#type(), Type::Message | Type::String | Type::Bytes | Type::Group);
            let message_name = is_message.then(|| field.type_name().trim_start_matches('.').to_owned());
            let field_name = format!("{}.{}", message.name(), field.name());
            let number = field.number().unsigned_abs();
            let field = Field { name: field_name, repeated, packs, message: message_name };
            shape.0.insert(number, field);
        }
    }
    shapes.insert(name, shape);
}

/// Counts the elements of a message of this name.
pub(crate) fn count(full_name: &str, message: &[u8]) -> Result<(), TooMany> {
    let Some(shape) = SHAPES.get(full_name) else { return Ok(()) };
    let mut left = MOST_IN_ALL;
    walk(shape, message, &mut left, 0)
}

fn walk(shape: &Shape, mut bytes: &[u8], left: &mut usize, depth: u32) -> Result<(), TooMany> {
    // What has come of each repeated field: few messages have more than one.
    let mut counts: Vec<(u32, usize)> = Vec::new();
    while !bytes.is_empty() {
        let Ok((number, wire_type)) = decode_key(&mut bytes) else { return Ok(()) };
        let Some(field) = shape.0.get(&number) else {
            if skip_field(wire_type, number, &mut bytes, DecodeContext::default()).is_err() {
                return Ok(());
            }
            continue;
        };
        let (inner, elements) = if wire_type == WireType::LengthDelimited {
            let Ok(length) = decode_varint(&mut bytes) else { return Ok(()) };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((inner, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
            bytes = rest;
            // Packed, each element has a byte at least.
            (inner, if field.packs { length } else { 1 })
        } else if skip_field(wire_type, number, &mut bytes, DecodeContext::default()).is_ok() {
            (&[][..], 1)
        } else {
            return Ok(());
        };
        if field.repeated {
            let at = counts.iter().position(|(counted, _)| *counted == number).unwrap_or_else(|| {
                counts.push((number, 0));
                counts.len() - 1
            });
            counts[at].1 = counts[at].1.saturating_add(elements);
            let too_many = |most| TooMany { field: field.name.clone(), most };
            if counts[at].1 > MOST_OF_A_FIELD {
                return Err(too_many(MOST_OF_A_FIELD));
            }
            *left = left.checked_sub(elements).ok_or_else(|| too_many(MOST_IN_ALL))?;
        }
        if let Some(inner_shape) = field.message.as_ref().and_then(|name| SHAPES.get(name))
            && depth < DEEPEST
        {
            walk(inner_shape, inner, left, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Name;

    use super::*;
    use crate::v1;

    fn counted<M: prost::Message + Name>(message: &M) -> Result<(), String> {
        count(&M::full_name(), &message.encode_to_vec()).map_err(|too_many| too_many.to_string())
    }

    fn starts(count: usize, labels: usize) -> v1::StartWorkflowsRequest {
        let labels = (0..labels).map(|label| (label.to_string(), String::new())).collect();
        let start = v1::StartWorkflowRequest { labels, ..Default::default() };
        v1::StartWorkflowsRequest { starts: vec![start; count] }
    }

    #[test]
    fn as_many_as_may_be_pass_and_one_more_does_not_wherever_they_stand() {
        assert_eq!(counted(&starts(10_000, 32)), Ok(()));
        let too_many = "StartWorkflowsRequest.starts: more than 10000 elements";
        assert_eq!(counted(&starts(10_001, 0)).unwrap_err(), too_many);
        assert_eq!(counted(&starts(1, 10_000)), Ok(()));
        let too_many = "StartWorkflowRequest.labels: more than 10000 elements";
        assert_eq!(counted(&starts(1, 10_001)).unwrap_err(), too_many);
        let too_many = "StartWorkflowRequest.labels: more than 500000 elements";
        assert_eq!(counted(&starts(51, 10_000)).unwrap_err(), too_many);
        // Within a message of a stream.
        let request = v1::stream_workflows_request::Request::Start(starts(10_001, 0));
        let message = v1::StreamWorkflowsRequest { request: Some(request), ..Default::default() };
        let too_many = "StartWorkflowsRequest.starts: more than 10000 elements";
        assert_eq!(counted(&message).unwrap_err(), too_many);
    }

    #[test]
    fn texts_numbers_and_empty_messages_are_elements() {
        let queues = vec![String::new(); 10_001];
        let poll = v1::PollActivityRequest { queues, ..Default::default() };
        assert!(counted(&poll).unwrap_err().contains("queues: more than"));
        let states = vec![1; 10_001];
        let filter = v1::RunFilter { states, ..Default::default() };
        assert!(counted(&filter).unwrap_err().contains("states: more than"));
        // The same, not packed.
        let unpacked = [0x08, 0x01].repeat(10_001);
        assert!(count(&v1::RunFilter::full_name(), &unpacked).is_err());
        assert!(count(&v1::StartWorkflowsRequest::full_name(), &[0x0a, 0x00].repeat(10_001)).is_err());
    }

    #[test]
    fn payloads_and_what_is_not_well_formed_are_nobodys_elements() {
        let payload = v1::Payload { content_type: String::new(), data: vec![0x0a; 100_000].into() };
        let start = v1::StartWorkflowRequest { input: Some(payload), ..Default::default() };
        assert_eq!(counted(&start), Ok(()));
        for bytes in [&[0x0a][..], &[0x0a, 0x7f], &[0xff; 20], &[0x0b, 0x0b]] {
            assert_eq!(count(&v1::StartWorkflowsRequest::full_name(), bytes), Ok(()));
        }
    }

    #[test]
    fn every_message_of_the_protocol_is_known_by_its_name() {
        for name in [v1::StartWorkflowsRequest::full_name(), v1::StreamWorkRequest::full_name()] {
            assert!(SHAPES.contains_key(&name), "{name}");
        }
        let fields = SHAPES.values().flat_map(|shape| shape.0.values());
        for name in fields.filter_map(|field| field.message.as_ref()) {
            assert!(SHAPES.contains_key(name), "{name}");
        }
    }
}
