//! Paths below the backed-up directory, carried to the byte through payloads, manifests and messages.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A path relative to the directory that is backed up. File names are bytes, not text: one that is not
/// UTF-8 travels as an array of bytes in JSON, any other as a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Carried", into = "Carried")]
pub struct RelativePath(Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Carried {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<Carried> for RelativePath {
    fn from(carried: Carried) -> Self {
        match carried {
            Carried::Text(text) => Self(text.into_bytes()),
            Carried::Bytes(bytes) => Self(bytes),
        }
    }
}

impl From<RelativePath> for Carried {
    fn from(path: RelativePath) -> Self {
        String::from_utf8(path.0).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

impl RelativePath {
    /// `path`, which must be relative already.
    pub fn new(path: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        Self(path.as_os_str().as_bytes().to_vec())
    }

    /// Where it is, seen from `root`.
    pub fn below(&self, root: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        root.join(std::ffi::OsStr::from_bytes(&self.0))
    }

    /// The path as the file system knows it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// For people: control characters and bytes that are not UTF-8 are shown as escapes, so that a file
/// name can neither break a line nor drive a terminal.
impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    f.write_char(character)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn path(bytes: &[u8]) -> RelativePath {
        RelativePath::new(Path::new(OsStr::from_bytes(bytes)))
    }

    #[test]
    fn every_name_survives_json_to_the_byte() {
        for bytes in [&b"a/b.txt"[..], "dir/\u{fc}\u{1f980}".as_bytes(), b"\xff\xfe/x", b"new\nline\\", b"-"]
        {
            let json = serde_json::to_string(&path(bytes)).unwrap();
            let back: RelativePath = serde_json::from_str(&json).unwrap();
            assert_eq!(back.as_bytes(), bytes, "{json}");
        }
        assert_eq!(serde_json::to_string(&path(b"a/b")).unwrap(), r#""a/b""#, "text stays readable");
    }

    #[test]
    fn a_shown_name_is_one_harmless_line() {
        assert_eq!(path(b"a\nb\x1b[31m\xff").to_string(), "a\\nb\\u{1b}[31m\\xff");
        assert_eq!(path("\u{fc}/x".as_bytes()).to_string(), "\u{fc}/x");
    }

    #[test]
    fn a_path_is_found_below_its_root() {
        assert_eq!(path(b"a/b").below(Path::new("/r")), Path::new("/r/a/b"));
    }
}
