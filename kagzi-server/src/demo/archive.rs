//! The place where a backup is written.
//!
//! ```text
//! SHA256SUMS                 the manifest, written last
//! objects/<sha256>.zst       contents, compressed and named by the SHA-256 of what they hold
//! records/<run id>.json      one small file for each run that is through
//! partial/                   what compressions in flight have written so far
//! ```
//!
//! Everything but `partial/` appears whole or not at all, by an atomic rename, and is on disk before the
//! step that wrote it is recorded as completed. A content's name is its digest, so writing it twice, by
//! a repeated step or by two runs with equal files, is writing it once.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::manifest::Entry;

/// A file of this name marks a directory as the output of a demo; other demos leave it out.
pub const MARKER: &str = ".kagzi-demo";

/// The manifest's name.
pub const MANIFEST: &str = "SHA256SUMS";

/// The output directory of one demo.
#[derive(Clone, Debug)]
pub struct Archive {
    root: PathBuf,
}

impl Archive {
    /// Makes the directories of an archive in `root`.
    ///
    /// # Errors
    ///
    /// Those of making directories.
    pub fn create(root: &Path) -> io::Result<Self> {
        let archive = Self { root: root.to_owned() };
        for directory in [archive.objects(), archive.records(), archive.partial()] {
            fs::create_dir_all(directory)?;
        }
        File::create(root.join(MARKER))?;
        Ok(archive)
    }

    /// An archive that [`create`](Self::create) made.
    pub fn open(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where contents are.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Where the records of finished runs are.
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    /// Where compressions in flight write.
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Where the manifest is.
    pub fn manifest(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    /// Where the content with this digest is.
    pub fn object(&self, sha256: &str) -> PathBuf {
        self.objects().join(format!("{sha256}.zst"))
    }

    /// Puts the file `partial` of [`partial`](Self::partial) in its place. Done before, it does nothing.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is neither the partial file nor the object; else those of
    /// the file system.
    pub fn publish(&self, partial: &str, sha256: &str) -> io::Result<()> {
        let object = self.object(sha256);
        match fs::rename(self.partial().join(partial), &object) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && object.exists() => {}
            other => other?,
        }
        sync_directory(&self.objects())
    }

    /// Writes the record of a run, whole or not at all, replacing one that is there.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn record(&self, run_id: &str, entry: &Entry) -> io::Result<()> {
        let json = serde_json::to_vec(entry)?;
        // A name of its own for every writer: a worker that was thought dead may still be at it.
        let partial = self.partial().join(format!("{run_id}-{}.record", std::process::id()));
        write_synced(&partial, &json)?;
        fs::rename(&partial, self.record_of(run_id))?;
        sync_directory(&self.records())
    }

    /// Reads the record of a run.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is none; else those of reading or of a damaged record.
    pub fn read_record(&self, run_id: &str) -> io::Result<Entry> {
        Ok(serde_json::from_slice(&fs::read(self.record_of(run_id))?)?)
    }

    fn record_of(&self, run_id: &str) -> PathBuf {
        self.records().join(format!("{run_id}.json"))
    }

    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn write_manifest(&self, entries: &[Entry]) -> io::Result<()> {
        let mut text = Vec::new();
        super::manifest::write(entries, &mut text)?;
        let partial = self.partial().join(MANIFEST);
        write_synced(&partial, &text)?;
        fs::rename(&partial, self.manifest())?;
        sync_directory(&self.root)
    }

    /// Removes what killed compressions left behind.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn remove_partial(&self) -> io::Result<()> {
        fs::remove_dir_all(self.partial())
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A rename is durable once the directory that holds the new name is on disk.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::path::RelativePath;

    fn entry(name: &str) -> Entry {
        let path = RelativePath::new(Path::new(name));
        Entry { path, sha256: "ab".repeat(32), bytes: 3, compressed_bytes: 2 }
    }

    #[test]
    fn publishing_again_after_a_lost_answer_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::create(dir.path()).unwrap();
        fs::write(archive.partial().join("p"), "content").unwrap();
        archive.publish("p", "ab12").unwrap();
        archive.publish("p", "ab12").unwrap();
        assert_eq!(fs::read(archive.object("ab12")).unwrap(), b"content");
        assert_eq!(fs::read_dir(archive.partial()).unwrap().count(), 0);
    }

    #[test]
    fn publishing_what_was_never_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::create(dir.path()).unwrap();
        assert_eq!(archive.publish("p", "ab12").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_record_can_be_written_again_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::create(dir.path()).unwrap();
        archive.record("run", &entry("a")).unwrap();
        archive.record("run", &entry("a")).unwrap();
        assert_eq!(archive.read_record("run").unwrap(), entry("a"));
        assert_eq!(archive.read_record("other").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
