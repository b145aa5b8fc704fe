//! The file of the record: lines at its end, opened anew when told that it was moved away, and when it was deleted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::writer::{Place, Sink};
use crate::document::check_regular;

/// See the module.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// A part of a line may stand there, since the rest could not be written.
    torn: bool,
}

impl LogFile {
    /// Makes the file, if there is none, so that only its user can read it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, torn: false })
    }
}

impl Sink for LogFile {
    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// It is with the operating system then, so that no end of this process takes it away.
    fn add(&mut self, mut line: String) -> io::Result<Place> {
        let mut place = Place::Same;
        if is_deleted(&self.file) {
            // Nobody would ever read the line.
            self.reopen()?;
            place = Place::New;
        }
        if self.torn {
            line.insert(0, '\n');
        }
        line.push('\n');
        // One write a line where there is room for it, at the end of the file, so that lines of several servers do not mix.
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(place)
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: to open a pipe waits for whoever reads it.
    match std::fs::metadata(path) {
        Ok(there) => check_regular(&there)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
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
        let mut file = LogFile::open(&path).unwrap();
        let add = |file: &mut LogFile, line: &str| file.add(line.to_owned()).unwrap();
        assert_eq!(add(&mut file, "one"), Place::Same);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(add(&mut file, "two"), Place::New);
        assert_eq!(read(&path), "two\n");
        std::fs::rename(&path, &moved).unwrap();
        add(&mut file, "three");
        assert_eq!(read(&moved), "two\nthree\n");
        file.reopen().unwrap();
        add(&mut file, "four");
        assert_eq!(read(&path), "four\n");
    }

    #[test]
    fn a_line_after_one_that_was_cut_off_is_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut file = LogFile::open(&path).unwrap();
        file.file.write_all(b"{\"half").unwrap();
        file.torn = true;
        file.add("whole".to_owned()).unwrap();
        file.add("next".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\nwhole\nnext\n");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_by_what_it_is_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let refusal = |path: &Path| LogFile::open(path).unwrap_err().to_string();
        assert!(refusal(&path).contains("a pipe"), "{}", refusal(&path));
        assert!(refusal(Path::new("/dev/null")).contains("a device"));
        assert!(refusal(directory.path()).contains("a directory"));
        // The same where one took the place of a file that was moved away.
        std::fs::remove_file(&path).unwrap();
        let mut file = LogFile::open(&path).unwrap();
        std::fs::rename(&path, directory.path().join("audit.1")).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        file.reopen().unwrap_err();
        file.add("still there".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join("audit.1")).unwrap(), "still there\n");
    }
}
