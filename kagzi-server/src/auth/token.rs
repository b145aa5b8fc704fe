//! Bearer tokens: 256 random bits, known to the server by their digest alone.
//!
//! A token is no password: nobody chose it and nobody can guess it, so one round of SHA-256 protects it
//! as well as a slow hash would, and every call can afford it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What tokens begin with, so that scanners of leaked secrets find them.
const PREFIX: &str = "kagzi_";

/// What stands before a digest in the access file.
const SCHEME: &str = "sha256:";

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes for a token")]
pub struct NoRandomness;

/// A token just made. It shows once, by [`reveal`](Self::reveal).
pub struct NewToken(String);

impl NewToken {
    /// Makes a token that nobody can guess.
    ///
    /// # Errors
    ///
    /// [`NoRandomness`] if the operating system fails.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0_u8; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the access file holds of it.
    pub fn digest(&self) -> String {
        TokenDigest::of(&self.0).to_string()
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewToken(***)")
    }
}

/// The SHA-256 of a token, compared in constant time.
#[derive(Clone, Copy)]
pub(crate) struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub(crate) fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Reads what the access file holds.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(SCHEME)?;
        let mut bytes = [0_u8; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Which row it stands in. To learn it from how long a look takes helps nobody: it is a part of the
    /// digest of a text that cannot be guessed.
    pub(crate) fn row(&self) -> [u8; 8] {
        let mut row = [0; 8];
        row.copy_from_slice(&self.0[..8]);
        row
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest tells nothing, but is nobody's to compare with either.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_long_differs_from_the_last_and_is_known_by_its_digest() {
        let (one, two) = (NewToken::generate().unwrap(), NewToken::generate().unwrap());
        assert!(one.reveal().starts_with(PREFIX) && one.reveal().len() == PREFIX.len() + 43);
        assert_ne!(one.reveal(), two.reveal());
        let digest = TokenDigest::parse(&one.digest()).unwrap();
        assert!(digest.is(&TokenDigest::of(one.reveal())) && !digest.is(&TokenDigest::of(two.reveal())));
        assert!(!format!("{one:?}{digest:?}").contains(&one.digest()[7..20]));
    }

    #[test]
    fn a_digest_is_the_sha_256_of_the_text() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenDigest::of("abc").to_string(), abc);
        for bad in ["", "sha256:", &abc[..70], &abc.replace('b', "x"), &format!("{abc}00"), &abc[7..]] {
            assert!(TokenDigest::parse(bad).is_none(), "{bad}");
        }
        assert!(TokenDigest::parse(&format!("sha256:{}", "+f".repeat(32))).is_none(), "signs are no digits");
    }
}
