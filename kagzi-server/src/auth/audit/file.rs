//! The file of the record: lines at its end, opened anew when told that it was moved away, and when it was deleted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    end: Mutex<End>,
}

#[derive(Debug)]
struct End {
    file: File,
    /// A part of a line may stand there, since the rest could not be written.
    torn: bool,
}

impl LogFile {
    /// Makes the file, if there is none, so that only its user can read it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { path: path.to_owned(), end: Mutex::new(End { file, torn: false }) })
    }

    /// Opens the file of this name as it is now.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        *self.end() = End { file, torn: false };
        Ok(())
    }

    /// Adds a line. It is with the operating system then, so that no end of this process takes it away.
    pub(super) fn add(&self, mut line: String) -> io::Result<()> {
        let mut end = self.end();
        if is_deleted(&end.file) {
            // Nobody would ever read the line.
            *end = End { file: open(&self.path)?, torn: false };
        }
        if end.torn {
            line.insert(0, '\n');
        }
        line.push('\n');
        // One write a line where there is room for it, at the end of the file, so that lines of several servers do not mix.
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match end.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    end.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Whether no name leads to it any more.
#[cfg(unix)]
fn is_deleted(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Elsewhere an open file cannot be deleted.
#[cfg(not(unix))]
const fn is_deleted(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_deleted_is_made_anew_and_one_that_is_moved_goes_on_until_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("audit"), directory.path().join("audit.1"));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let file = LogFile::open(&path).unwrap();
        let add = |line: &str| file.add(line.to_owned()).unwrap();
        add("one");
        std::fs::remove_file(&path).unwrap();
        add("two");
        assert_eq!(read(&path), "two\n");
        std::fs::rename(&path, &moved).unwrap();
        add("three");
        assert_eq!(read(&moved), "two\nthree\n");
        file.reopen().unwrap();
        add("four");
        assert_eq!(read(&path), "four\n");
    }

    #[test]
    fn a_line_after_one_that_was_cut_off_is_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let file = LogFile::open(&path).unwrap();
        file.end().file.write_all(b"{\"half").unwrap();
        file.end().torn = true;
        file.add("whole".to_owned()).unwrap();
        file.add("next".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\nwhole\nnext\n");
    }
}
