//! The bytes of an encrypted payload, and what binds them to their place.
//!
//! | bytes | |
//! | --- | --- |
//! | 1 | version, 1 |
//! | 1 | length of the key id |
//! | 1 to 64 | key id |
//! | 24 | nonce |
//! | rest | sealed: 1 byte length of the content type, the content type, the content; then 16 bytes of tag |

use kagzi_core::{ContentType, Payload};
use ring::aead::{AES_256_GCM, Aad};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::keys::{Key, KeyRing, NONCE_BYTES, Nonce, is_key_id};
use crate::payload_codec::{PayloadError, PayloadPlace};

const VERSION: u8 = 1;

/// Seals a payload with `key`.
pub(super) fn seal(key: &Key, place: &PayloadPlace<'_>, payload: &Payload) -> Result<Vec<u8>, PayloadError> {
    let refused = |problem: &str| PayloadError::Refused { problem: problem.to_owned() };
    let content_type = payload.content_type.as_str();
    let length = u8::try_from(content_type.len()).map_err(|_| refused("its content type is too long"))?;
    let tag_bytes = AES_256_GCM.tag_len();
    let mut text = Vec::with_capacity(1 + content_type.len() + payload.bytes.len() + tag_bytes);
    text.push(length);
    text.extend_from_slice(content_type.as_bytes());
    text.extend_from_slice(&payload.bytes);

    let bound = binding(&key.id, place);
    let nonce = if repeats(place) { key.synthetic_nonce(&bound, &text) } else { random_nonce()? };
    key.payload_key(&nonce)
        .and_then(|(key, nonce)| key.seal_in_place_append_tag(nonce, Aad::from(&bound), &mut text))
        .map_err(|_| refused("it is too large to be encrypted"))?;

    let id = key.id.as_bytes();
    let id_length = u8::try_from(id.len()).map_err(|_| refused("the id of the key is too long"))?;
    let mut envelope = Vec::with_capacity(2 + id.len() + NONCE_BYTES + text.len());
    envelope.extend_from_slice(&[VERSION, id_length]);
    envelope.extend_from_slice(id);
    envelope.extend_from_slice(&nonce);
    envelope.extend_from_slice(&text);
    Ok(envelope)
}

/// Opens what [`seal`] gave, with whichever key of the ring it names.
pub(super) fn open(ring: &KeyRing, place: &PayloadPlace<'_>, bytes: &[u8]) -> Result<Payload, PayloadError> {
    let envelope = Envelope::parse(bytes)?;
    let key_id = envelope.key_id.to_owned();
    let Some(key) = ring.find(envelope.key_id) else {
        return Err(PayloadError::UnknownKey { key_id, known: ring.ids() });
    };
    let bound = binding(envelope.key_id, place);
    let mut text = envelope.sealed.to_vec();
    let opened = key.payload_key(&envelope.nonce).and_then(|(key, nonce)| {
        key.open_in_place(nonce, Aad::from(&bound), &mut text).map(|text| text.len())
    });
    let Ok(length) = opened else {
        return Err(PayloadError::Tampered { key_id });
    };
    text.truncate(length);
    let text = bytes::Bytes::from(text);
    // Whoever has the key wrote what follows, so that a fault in it is not an attacker's.
    let odd = || PayloadError::Malformed { problem: "what was encrypted has no content type" };
    let end = 1 + usize::from(*text.first().ok_or_else(odd)?);
    let content_type = text.get(1..end).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(odd)?;
    Ok(Payload::new(ContentType::new(content_type).map_err(|_| odd())?, text.slice(end..)))
}

/// The parts of an encrypted payload, before anything of it is known to be true.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    pub(super) key_id: &'a str,
    pub(super) nonce: Nonce,
    pub(super) sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let malformed = |problem| PayloadError::Malformed { problem };
        let short = || malformed("it is too short");
        let (&version, rest) = bytes.split_first().ok_or_else(short)?;
        if version != VERSION {
            return Err(malformed("its version is not 1; a newer SDK may have written it"));
        }
        let (&length, rest) = rest.split_first().ok_or_else(short)?;
        let (key_id, rest) = rest.split_at_checked(usize::from(length)).ok_or_else(short)?;
        let key_id = std::str::from_utf8(key_id).ok().filter(|id| is_key_id(id));
        let key_id = key_id.ok_or_else(|| malformed("its key id is not one"))?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or_else(short)?;
        if sealed.len() < AES_256_GCM.tag_len() {
            return Err(short());
        }
        Ok(Self { key_id, nonce: *nonce, sealed })
    }
}

/// Whether the engine compares what is written here with what was written before. Then the same text must
/// give the same bytes.
const fn repeats(place: &PayloadPlace<'_>) -> bool {
    matches!(place, PayloadPlace::Input { idempotency_key: Some(_), .. })
}

fn random_nonce() -> Result<Nonce, PayloadError> {
    let mut nonce = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut nonce).map_err(|_| PayloadError::Refused {
        problem: "cannot be encrypted: the system gives no random bytes".to_owned(),
    })?;
    Ok(nonce)
}

/// What the tag vouches for besides the text: the format, the key id and the place, each part with its
/// length, so that no two places read the same.
fn binding(key_id: &str, place: &PayloadPlace<'_>) -> Vec<u8> {
    let mut bound = b"kagzi payload v1".to_vec();
    let mut add = |part: &[u8]| {
        bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bound.extend_from_slice(part);
    };
    add(key_id.as_bytes());
    match place {
        PayloadPlace::Input { namespace, workflow_type, idempotency_key } => {
            add(b"input");
            add(namespace.as_str().as_bytes());
            add(workflow_type.as_str().as_bytes());
            if let Some(key) = idempotency_key {
                add(key.as_str().as_bytes());
            }
        }
        PayloadPlace::StepOutput { namespace, run_id, step_id } => {
            add(b"step output");
            add(namespace.as_str().as_bytes());
            add(run_id.as_uuid().as_bytes());
            add(step_id.as_str().as_bytes());
        }
        PayloadPlace::RunOutput { namespace, run_id } => {
            add(b"run output");
            add(namespace.as_str().as_bytes());
            add(run_id.as_uuid().as_bytes());
        }
        PayloadPlace::FailureDetails { namespace, run_id } => {
            add(b"failure details");
            add(namespace.as_str().as_bytes());
            add(run_id.as_uuid().as_bytes());
        }
    }
    bound
}
