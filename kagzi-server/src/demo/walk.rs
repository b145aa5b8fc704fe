//! Finds what there is to back up.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::archive::MARKER;
use super::path::RelativePath;
use super::stream;

/// Directories that hold what can be made again; a newcomer's first try should not wait for them.
const LEFT_OUT: [&str; 2] = [".git", "target"];

/// What a walk found.
#[derive(Debug, Default)]
pub struct Found {
    /// Everything that is to get a run, in the order of its bytes. What turns out not to be readable is
    /// among it, so that it ends as a dead letter with its reason instead of being passed over.
    pub files: Vec<RelativePath>,
    /// How many of them can be read, as far as one can know beforehand.
    pub readable: usize,
    /// Directories that were not looked into.
    pub skipped: Vec<Skipped>,
}

/// A directory that was not looked into.
#[derive(Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub path: RelativePath,
    /// Why.
    pub reason: String,
}

/// Walks `root`, which is a directory. Links to files count as the files they lead to; links to
/// directories are not followed, so no loop of links can trap the walk; nor are other file systems
/// entered, so that a walk from the root does not try to back up the kernel.
///
/// # Errors
///
/// Only if `root` itself cannot be listed; any other directory that cannot is reported as skipped.
pub fn walk(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let mut pending = vec![PathBuf::new()];
    let file_system = fs::metadata(root)?.dev();
    while let Some(directory) = pending.pop() {
        let listing = match fs::read_dir(root.join(&directory)) {
            Ok(listing) => listing,
            Err(error) if directory.as_os_str().is_empty() => return Err(error),
            Err(error) => {
                found.skip(&directory, format!("cannot be listed: {error}"));
                continue;
            }
        };
        for entry in listing {
            match entry {
                Ok(entry) => {
                    visit(root, file_system, directory.join(entry.file_name()), &mut found, &mut pending);
                }
                Err(error) => {
                    found.skip(&directory, format!("could not be listed to its end: {error}"));
                    break;
                }
            }
        }
    }
    found.files.sort_unstable();
    found.skipped.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn visit(root: &Path, file_system: u64, path: PathBuf, found: &mut Found, pending: &mut Vec<PathBuf>) {
    let full = root.join(&path);
    let is_link = fs::symlink_metadata(&full).is_ok_and(|own| own.is_symlink());
    match fs::metadata(&full) {
        Ok(metadata) if metadata.is_dir() && is_link => {
            found.skip(&path, "a link to a directory, not followed".to_owned());
        }
        Ok(metadata) if metadata.is_dir() && metadata.dev() != file_system => {
            found.skip(&path, "another file system, not entered".to_owned());
        }
        Ok(metadata) if metadata.is_dir() => match left_out(&full) {
            Some(reason) => found.skip(&path, reason),
            None => pending.push(path),
        },
        // Whatever else it is, its run finds out.
        _ => {
            found.readable += usize::from(stream::open_regular(&full).is_ok());
            found.files.push(RelativePath::new(&path));
        }
    }
}

fn left_out(directory: &Path) -> Option<String> {
    if LEFT_OUT.iter().any(|name| directory.file_name() == Some(name.as_ref())) {
        return Some("left out by name".to_owned());
    }
    let own_output = directory.join(MARKER).exists();
    own_output.then(|| "the output of a demo".to_owned())
}

impl Found {
    fn skip(&mut self, path: &Path, reason: String) {
        self.skipped.push(Skipped { path: RelativePath::new(path), reason });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn shown(paths: &[RelativePath]) -> Vec<String> {
        paths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_cannot_trap_the_walk_and_broken_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/real"), "x").unwrap();
        symlink("..", dir.path().join("sub/up")).unwrap();
        symlink("self", dir.path().join("self")).unwrap();
        symlink("nowhere", dir.path().join("broken")).unwrap();
        symlink("sub/real", dir.path().join("alias")).unwrap();
        let found = walk(dir.path()).unwrap();
        assert_eq!(shown(&found.files), ["alias", "broken", "self", "sub/real"]);
        assert_eq!(found.readable, 2);
        assert_eq!(found.skipped.len(), 1);
        assert!(found.skipped[0].reason.contains("link to a directory"));
    }

    #[test]
    fn build_output_repositories_and_own_output_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for sub in [".git", "target", "backup", "src"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
            fs::write(dir.path().join(sub).join("file"), "x").unwrap();
        }
        fs::write(dir.path().join("backup").join(MARKER), "").unwrap();
        let found = walk(dir.path()).unwrap();
        assert_eq!(shown(&found.files), ["src/file"]);
        assert_eq!(found.skipped.len(), 3);
    }

    #[test]
    fn a_root_that_is_no_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(walk(&dir.path().join("absent")).is_err());
        fs::write(dir.path().join("file"), "x").unwrap();
        assert!(walk(&dir.path().join("file")).is_err());
    }

    #[test]
    fn an_empty_directory_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let found = walk(dir.path()).unwrap();
        assert!(found.files.is_empty() && found.skipped.is_empty());
    }
}
