//! The keys of an [`Encryption`](super::Encryption): an id each, one to write with, all to read with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::error::Unspecified;
use ring::{hkdf, hmac};

/// How long a key is.
const KEY_BYTES: usize = 32;
/// How long its id may be.
pub(super) const MAX_KEY_ID_BYTES: usize = 64;
/// How much of a nonce chooses the key of one payload; the rest is the nonce of AES-GCM.
const SALT_BYTES: usize = 12;
/// A nonce: 192 bits.
pub(super) const NONCE_BYTES: usize = SALT_BYTES + ring::aead::NONCE_LEN;

/// A nonce.
pub(super) type Nonce = [u8; NONCE_BYTES];

/// One key. Its bytes are kept only in the forms that the primitives use, and never shown.
pub(super) struct Key {
    pub(super) id: String,
    for_payloads: hkdf::Prk,
    for_nonces: hmac::Key,
}

impl Key {
    fn new(id: &str, bytes: &[u8; KEY_BYTES]) -> Result<Self, Unspecified> {
        // The bytes are uniformly random by contract, so they need no extraction.
        let for_payloads = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, bytes);
        let for_nonces = for_payloads.expand(&[b"kagzi payload v1 nonce"], hmac::HMAC_SHA256)?.into();
        Ok(Self { id: id.to_owned(), for_payloads, for_nonces })
    }

    /// The key of the payloads whose nonce begins like this one, and what is left of the nonce.
    pub(super) fn payload_key(&self, nonce: &Nonce) -> Result<(LessSafeKey, ring::aead::Nonce), Unspecified> {
        let (salt, rest) = nonce.split_at(SALT_BYTES);
        let key: UnboundKey =
            self.for_payloads.expand(&[b"kagzi payload v1 key", salt], &AES_256_GCM)?.into();
        Ok((LessSafeKey::new(key), ring::aead::Nonce::try_assume_unique_for_key(rest)?))
    }

    /// The nonce that this very text has at this very place, and no other.
    pub(super) fn synthetic_nonce(&self, place: &[u8], text: &[u8]) -> Nonce {
        let mut context = hmac::Context::with_key(&self.for_nonces);
        context.update(&(place.len() as u64).to_be_bytes());
        context.update(place);
        context.update(text);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&context.sign().as_ref()[..NONCE_BYTES]);
        nonce
    }
}

/// Keys in the order of their text; the first is the one to write with.
pub(super) struct KeyRing {
    pub(super) active: Key,
    others: Vec<Key>,
}

impl KeyRing {
    /// Reads `id:base64` words, one or more to a line; what follows a `#` is a comment. What is wrong is
    /// told by the number of the line, never by what stands there.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split_once('#').map_or(line, |(before, _)| before);
            for word in line.split_whitespace() {
                let key = parse_key(word).map_err(|problem| format!("line {number}: {problem}"))?;
                if keys.iter().any(|other| other.id == key.id) {
                    return Err(format!(
                        "line {number}: key id {:?} is there twice; every key needs an id of its own",
                        key.id
                    ));
                }
                keys.push(key);
            }
        }
        let mut keys = keys.into_iter();
        let active = keys.next().ok_or("there is no key; expected lines of the form key-id:base64")?;
        Ok(Self { active, others: keys.collect() })
    }

    pub(super) fn find(&self, id: &str) -> Option<&Key> {
        self.keys().find(|key| key.id == id)
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.active).chain(&self.others)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.keys().map(|key| key.id.clone()).collect()
    }
}

/// Shows the ids, never the keys.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys().map(|key| &key.id)).finish()
    }
}

/// Whether a text may be the id of a key.
pub(super) fn is_key_id(text: &str) -> bool {
    (1..=MAX_KEY_ID_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn parse_key(word: &str) -> Result<Key, String> {
    let form = "expected key-id:base64";
    let (id, encoded) = word.split_once(':').ok_or_else(|| format!("{form}, got no colon"))?;
    if !is_key_id(id) {
        return Err(format!(
            "{form} with an id of 1 to {MAX_KEY_ID_BYTES} letters, digits, dots, dashes or underscores"
        ));
    }
    let bytes = STANDARD.decode(encoded).map_err(|_| {
        format!("the key of id {id:?} is not base64; make one with `openssl rand -base64 32`")
    })?;
    let length = bytes.len();
    let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| {
        format!(
            "the key of id {id:?} has {length} bytes, expected {KEY_BYTES}; make one with \
             `openssl rand -base64 32`"
        )
    })?;
    Key::new(id, &bytes).map_err(|_| format!("the key of id {id:?} cannot be used"))
}
