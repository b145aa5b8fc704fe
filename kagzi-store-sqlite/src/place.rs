//! Whether the file is still where it was opened.
//!
//! A file that is moved, deleted or replaced while it is open can still be written to, and all of it
//! would be lost: SQLite itself does not look. The writer does, before each batch and before it
//! answers. When the file is back in its place, work goes on.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// The files of a database, as they were opened.
#[derive(Debug)]
pub(crate) struct Place {
    files: Vec<(PathBuf, FileId)>,
}

type FileId = (u64, u64);

impl Place {
    /// Looks at the files of an open connection in WAL mode. A database without a path has none.
    pub(crate) fn of(connection: &Connection) -> io::Result<Self> {
        let Some(path) = connection.path().filter(|path| !path.is_empty()) else {
            return Ok(Self { files: Vec::new() });
        };
        let mut log = OsString::from(path);
        log.push("-wal");
        let mut files = Vec::new();
        for path in [PathBuf::from(path), PathBuf::from(log)] {
            match file_id(&path) {
                Ok(Some(id)) => files.push((path, id)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files })
    }

    /// The first file that is not where it was.
    pub(crate) fn displaced(&self) -> Option<&Path> {
        let is_there = |path: &Path, id: &FileId| file_id(path).is_ok_and(|found| found.as_ref() == Some(id));
        self.files.iter().find(|(path, id)| !is_there(path, id)).map(|(path, _)| path.as_path())
    }
}

#[cfg(unix)]
fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map(|file| Some((file.dev(), file.ino())))
}

/// Elsewhere an open file cannot be moved or deleted.
#[cfg(not(unix))]
fn file_id(_: &Path) -> io::Result<Option<FileId>> {
    Ok(None)
}
