//! Pages: listings in bounded pieces, with cursors that hold their place while others write.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::error::StoreError;
use crate::limits::check_batch;

/// Where a listing goes on: opaque to callers, given by one page and good for the next page of the
/// same listing with the same filter. Anything else is refused.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// A cursor as it came from outside. It is checked when a listing opens it.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text to hand to callers: URL-safe, at most about 600 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a cursor for `listing`, a text that identifies the listing and its filter, at `place`.
    pub fn seal(listing: &str, place: &[u8]) -> Self {
        let mut bytes = checksum(listing, place).to_vec();
        bytes.extend_from_slice(place);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The place that [`seal`](Self::seal) put in.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadCursor`] for anything that `seal` did not make for the same `listing`.
    pub fn open(&self, listing: &str) -> Result<Vec<u8>, StoreError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(&self.0)
            .map_err(|_| StoreError::BadCursor { got: "a text that no listing gave" })?;
        match bytes.split_at_checked(8) {
            Some((sum, place)) if sum == checksum(listing, place) => Ok(place.to_vec()),
            _ => Err(StoreError::BadCursor { got: "one of another listing, or a damaged one" }),
        }
    }
}

fn checksum(listing: &str, place: &[u8]) -> [u8; 8] {
    let digest = Sha256::new()
        .chain_update(b"kagzi cursor\0")
        .chain_update(listing)
        .chain_update([0])
        .chain_update(place)
        .finalize();
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest[..8]);
    sum
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which page is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// How many items at most, from 1 to 10,000.
    pub limit: u32,
    /// Where to go on; nothing for the first page.
    pub cursor: Option<Cursor>,
}

impl PageRequest {
    /// The first page of at most `limit` items.
    pub const fn first(limit: u32) -> Self {
        Self { limit, cursor: None }
    }

    /// Checks the limit.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] outside 1 to 10,000.
    pub fn validate(&self) -> Result<(), StoreError> {
        check_batch("page.limit", self.limit as usize)
    }
}

/// A piece of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in the listing's order.
    pub items: Vec<T>,
    /// Where the next page begins; nothing on the last page.
    pub next: Option<Cursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_opens_only_for_its_own_listing() {
        let cursor = Cursor::seal("runs of a", b"place");
        assert_eq!(cursor.open("runs of a").unwrap(), b"place");
        assert!(cursor.open("runs of b").is_err());
    }

    #[test]
    fn damaged_and_invented_cursors_are_refused() {
        let good = Cursor::seal("l", b"place");
        for at in 0..good.as_str().len() {
            let mut text = good.as_str().as_bytes().to_vec();
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(text).unwrap();
            assert!(Cursor::from_text(text).open("l").is_err());
        }
        for text in ["", "x", "AAAA", "not base64!", "ü"] {
            assert!(Cursor::from_text(text).open("l").is_err());
        }
    }
}
