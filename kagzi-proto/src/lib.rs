//! The `kagzi.v1` gRPC protocol: messages, clients and server traits, generated from the `.proto`
//! files of this crate, which document every call and field.
//!
//! The conversions to and from the domain types of `kagzi-core` are in `kagzi_sdk::wire`.

pub mod codec;
mod elements;

use std::fmt;

/// The well-known types that the messages use.
pub use prost_types::{Duration, Timestamp};

/// The package `kagzi.v1`. A version is only ever added to; what would break clients becomes `v2`.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::large_enum_variant,
    reason = "generated; documented in the .proto files, and an answer is moved but once"
)]
pub mod v1 {
    tonic::include_proto!("kagzi.v1");
}

/// The encoded `FileDescriptorSet` of the protocol, for server reflection and generic clients.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kagzi.v1.bin"));

/// The `domain` of every `google.rpc.ErrorInfo` that kagzi sends.
pub const ERROR_DOMAIN: &str = "kagzi";

/// The longest message that a server reads and a client should be ready to read, in bytes, unless
/// configured otherwise: 16 MiB. (gRPC's own default of 4 MiB would refuse a run whose input and
/// output are both at the payload limit.)
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Shows the content type and the length, never the content, so that a payload cannot reach a log.
impl fmt::Debug for v1::Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({}, {} bytes)", self.content_type, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_descriptor_set_describes_the_three_services() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut services: Vec<_> = set
            .file
            .iter()
            .flat_map(|file| &file.service)
            .map(prost_types::ServiceDescriptorProto::name)
            .collect();
        services.sort_unstable();
        assert_eq!(services, ["AdminService", "WorkerService", "WorkflowService"]);
    }

    #[test]
    fn every_enum_begins_with_an_unspecified_value() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let ours = set.file.iter().filter(|file| file.package() == "kagzi.v1");
        for enumeration in ours.flat_map(|file| &file.enum_type) {
            let zero = enumeration.value.iter().find(|value| value.number() == 0).unwrap();
            assert!(zero.name().ends_with("_UNSPECIFIED"), "{}", zero.name());
        }
    }

    #[test]
    fn debug_of_a_message_shows_no_payload() {
        let secret = v1::Payload { content_type: "text/plain".into(), data: "secret".into() };
        let request = v1::StartWorkflowRequest { input: Some(secret), ..Default::default() };
        let shown = format!("{request:?}");
        assert!(shown.contains("6 bytes") && !shown.contains("secret"), "{shown}");
        assert!(!shown.contains("115, 101"), "{shown}");
    }
}
