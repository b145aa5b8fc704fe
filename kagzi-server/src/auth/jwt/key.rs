//! The keys that sign JWTs, as a JSON Web Key Set tells them, and what they verify.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// What a key signs by. A key has one algorithm; what a token says of it must agree, and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    EdDsa,
    Es256,
    Rs256,
}

impl Algorithm {
    pub(super) const ALL: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// Tells one key from all others, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

/// A public key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Reads a set. Keys of other kinds than those above, and keys that do not sign, are left out: sets hold
/// what others need, too. A set may hold none that is of use: all were taken back.
///
/// # Errors
///
/// A text, if it is no set.
pub(super) fn read(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("no JSON Web Key Set: {error}"))?;
    Ok(set.keys.into_iter().filter_map(Jwk::into_key).collect())
}

impl Jwk {
    fn into_key(self) -> Option<Key> {
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        let (algorithm, material) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => (Algorithm::EdDsa, Material::Ed25519(bytes(&self.x)?)),
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                let point = (x.len() == 32 && y.len() == 32).then(|| [&[4], &x[..], &y[..]].concat())?;
                (Algorithm::Es256, Material::P256(point))
            }
            ("RSA", _) => {
                let without_zeros =
                    |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect();
                let (n, e) = (bytes(&self.n)?, bytes(&self.e)?);
                (Algorithm::Rs256, Material::Rsa { n: without_zeros(n), e: without_zeros(e) })
            }
            _ => return None,
        };
        let for_something_else = self.alg.is_some_and(|alg| alg != algorithm.name())
            || self.usage.is_some_and(|usage| usage != "sig");
        (!for_something_else).then_some(Key { id: self.kid, algorithm, material })
    }
}

impl Key {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut digest = Sha256::new_with_prefix(self.algorithm.name());
        match &self.material {
            Material::Ed25519(point) | Material::P256(point) => digest.update(point),
            Material::Rsa { n, e } => {
                for number in [n, e] {
                    digest.update(number.len().to_le_bytes());
                    digest.update(number);
                }
            }
        }
        Fingerprint(digest.finalize().into())
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.material {
            Material::Ed25519(point) => UnparsedPublicKey::new(&ED25519, point).verify(message, signature),
            Material::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
        };
        verified.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_kinds_and_for_other_uses_are_left_out() {
        let ed =
            r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let others = [
            r#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
            ed.replace("\"kid\"", "\"use\":\"enc\",\"kid\""),
            ed.replace("\"kid\"", "\"alg\":\"RS256\",\"kid\""),
            r#"{"kty":"RSA","n":"not base64!","e":"AQAB"}"#.to_owned(),
        ];
        let keys = read(format!("{{\"keys\":[{},{ed}]}}", others.join(",")).as_bytes()).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!((keys[0].id.as_deref(), keys[0].algorithm), (Some("a"), Algorithm::EdDsa));
        for other in others {
            assert!(read(format!("{{\"keys\":[{other}]}}").as_bytes()).unwrap().is_empty(), "{other}");
        }
        assert!(read(b"{\"keys\":[]}").unwrap().is_empty());
        for text in ["", "{}", "{\"keys\":", "[]"] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
