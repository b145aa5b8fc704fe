//! The manifest, in the format of GNU `sha256sum`.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::path::RelativePath;

/// One file that was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it was, below the directory.
    pub path: RelativePath,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// What it takes in the archive.
    pub compressed_bytes: u64,
}

/// Writes `entries` as lines that `sha256sum -c` accepts.
///
/// # Errors
///
/// Those of `out`.
pub fn write(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    entries.iter().try_for_each(|entry| out.write_all(&line(entry)))
}

/// A name with a line break or a backslash is escaped, and its line begins with a backslash to say so.
/// A file called `-` would be taken for the standard input, so it is given with its directory.
fn line(entry: &Entry) -> Vec<u8> {
    let name = entry.path.as_bytes();
    let mut escaped = Vec::with_capacity(name.len() + 2);
    if name == b"-" {
        escaped.extend_from_slice(b"./");
    }
    let mut special = false;
    for &byte in name {
        let replaced: &[u8] = match byte {
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\\' => b"\\\\",
            _ => {
                escaped.push(byte);
                continue;
            }
        };
        special = true;
        escaped.extend_from_slice(replaced);
    }
    let mut line = Vec::with_capacity(escaped.len() + 70);
    if special {
        line.push(b'\\');
    }
    line.extend_from_slice(entry.sha256.as_bytes());
    line.extend_from_slice(b"  ");
    line.extend_from_slice(&escaped);
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const AWKWARD: [&[u8]; 12] = [
        b"plain.txt",
        b"with space",
        b" leading and trailing ",
        b"*star",
        b"-",
        b"--check",
        b"new\nline",
        b"return\r",
        b"back\\slash",
        b"\\n",
        b"\xff\xfenot utf-8",
        "\u{fc}ml\u{e4}ut \u{1f980}".as_bytes(),
    ];

    fn entry(name: &[u8], sha256: &str) -> Entry {
        let path = RelativePath::new(Path::new(OsStr::from_bytes(name)));
        Entry { path, sha256: sha256.to_owned(), bytes: 0, compressed_bytes: 0 }
    }

    #[test]
    fn names_are_escaped_as_sha256sum_does() {
        assert_eq!(line(&entry(b"a b", "00")), b"00  a b\n");
        assert_eq!(line(&entry(b"a\nb\\", "00")), b"\\00  a\\nb\\\\\n");
        assert_eq!(line(&entry(b"-", "00")), b"00  ./-\n");
    }

    #[test]
    fn sha256sum_accepts_every_awkward_name_and_notices_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> = AWKWARD
            .iter()
            .map(|name| {
                let path = dir.path().join(OsStr::from_bytes(name));
                std::fs::write(&path, name).unwrap();
                entry(name, &crate::demo::stream::digest(&path).unwrap().sha256)
            })
            .collect();
        let manifest = tempfile::NamedTempFile::new().unwrap();
        write(&entries, &mut manifest.as_file()).unwrap();
        let check = || {
            let mut sha256sum = Command::new("sha256sum");
            sha256sum.args(["--check", "--strict", "--quiet"]).arg(manifest.path()).current_dir(dir.path());
            sha256sum.output().expect("sha256sum is part of every Unix that has coreutils")
        };
        let output = check();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(dir.path().join("plain.txt"), "changed").unwrap();
        assert!(!check().status.success());
    }
}
