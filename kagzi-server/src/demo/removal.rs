//! Taking thousands of files away.
//!
//! A file that was brought to disk costs its unlink a wait for the file system's journal, whoever else
//! syncs meanwhile: some milliseconds, which are a minute for ten thousand files one after the other.
//! Many unlinks at a time share those waits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

/// How many files are removed at a time.
const THREADS: usize = 16;

/// Removes a directory with everything in it.
///
/// # Errors
///
/// The first one of the file system; other files are removed all the same.
pub fn remove_directory(directory: &Path) -> io::Result<()> {
    remove_content(directory, |_| true)?;
    fs::remove_dir(directory)
}

/// Removes what is in a directory, as far as `is_to_go` says so.
///
/// # Errors
///
/// The first one of the file system; other files are removed all the same.
pub fn remove_content(directory: &Path, is_to_go: impl Fn(&Path) -> bool) -> io::Result<()> {
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !is_to_go(&entry.path()) {
            continue;
        }
        if entry.file_type()?.is_dir() { &mut directories } else { &mut files }.push(entry.path());
    }
    let subdirectories = directories.iter().try_for_each(|directory| remove_directory(directory));
    remove_files(&files).and(subdirectories)
}

fn remove_files(files: &[PathBuf]) -> io::Result<()> {
    let share = files.len().div_ceil(THREADS).max(1);
    thread::scope(|scope| {
        let removers: Vec<_> = files.chunks(share).map(|files| scope.spawn(|| remove_each(files))).collect();
        let removed = removers.into_iter().map(|remover| match remover.join() {
            Ok(removed) => removed,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        removed.fold(Ok(()), Result::and)
    })
}

fn remove_each(files: &[PathBuf]) -> io::Result<()> {
    files.iter().map(fs::remove_file).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_there_is_goes_and_what_is_to_stay_stays() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        fs::create_dir_all(dir.path().join("sub/empty")).unwrap();
        for number in 0..=3 * THREADS {
            fs::write(dir.path().join(format!("{number}")), "x").unwrap();
            fs::write(dir.path().join(format!("sub/{number}")), "x").unwrap();
        }
        std::os::unix::fs::symlink(&precious, dir.path().join("sub/link")).unwrap();
        remove_content(dir.path(), |path| path != precious).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read(precious).unwrap(), b"x", "a link's target is not the link");
    }

    #[test]
    fn one_file_that_cannot_go_keeps_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "gone", "b"].map(|name| dir.path().join(name));
        fs::write(&files[0], "x").unwrap();
        fs::write(&files[2], "x").unwrap();
        assert_eq!(remove_each(&files).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
