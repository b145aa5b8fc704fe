//! Where a demo writes: a directory of its own, which it takes away again unless asked to leave it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::archive::{Archive, MARKER};
use super::removal::{remove_content, remove_directory};
use crate::cli::{CliError, complain};

/// What stays when a demo is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The manifest.
    Manifest,
    /// Everything: database and archive.
    Everything,
}

/// The output directory of one demo. Dropped before it is [`finished`](Self::finish), everything in it
/// is removed, unless it is to be kept.
#[derive(Debug)]
pub struct Workspace {
    directory: PathBuf,
    archive: Archive,
    keep: Keep,
    state: State,
    origin: Origin,
}

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The demo's: it was not there before.
    Made,
    /// It was there, empty.
    Found,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    Finished,
}

impl Workspace {
    /// Makes the directory `wanted`, or a fresh one named after `demo` among the temporary ones.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or is not empty.
    pub fn create(demo: &str, wanted: Option<&Path>, keep: Keep) -> Result<Self, CliError> {
        let temporary = std::env::temp_dir().join(format!("kagzi-{demo}"));
        let directory = wanted.unwrap_or(&temporary);
        let refuse = |why: io::Error| {
            let remedy = match wanted {
                Some(_) => "name one that can be written and is empty: --output DIR",
                None => "set TMPDIR to a directory that can be written, or name an output: --output DIR",
            };
            CliError::failed("could not make the output directory", format!("{}: {why}", directory.display()))
                .remedy(remedy)
        };
        let origin = if directory.exists() { Origin::Found } else { Origin::Made };
        // What is backed up may be nobody's business but the owner's. A directory for temporary files
        // that is not there is a mistake; what people name on purpose is made with what leads to it.
        DirBuilder::new().recursive(wanted.is_some()).mode(0o700).create(directory).map_err(refuse)?;
        if fs::read_dir(directory).map_err(refuse)?.next().is_some() {
            return Err(refuse(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty")));
        }
        let directory = directory.canonicalize().map_err(refuse)?;
        let archive = Archive::create(&directory).map_err(refuse)?;
        Ok(Self { directory, archive, keep, state: State::Open, origin })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the backup is written to.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Where the demo's own database is, if it needs one.
    pub fn database(&self) -> PathBuf {
        self.directory.join("kagzi.db")
    }

    /// What stays.
    pub fn keep(&self) -> Keep {
        self.keep
    }

    /// Leaves what is to stay, and takes the rest away.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn finish(mut self) -> io::Result<()> {
        self.state = State::Finished;
        match self.keep {
            Keep::Everything => self.archive.remove_partial(),
            Keep::Manifest => self.remove_all_but_manifest(),
        }
    }

    fn remove_all_but_manifest(&self) -> io::Result<()> {
        let manifest = self.archive.manifest();
        let marker = self.directory.join(MARKER);
        remove_content(&self.directory, |path| path != manifest && path != marker)
    }

    fn remove(&self) -> io::Result<()> {
        match self.origin {
            Origin::Made => remove_directory(&self.directory),
            Origin::Found => remove_content(&self.directory, |_| true),
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.state == State::Open && self.keep == Keep::Manifest {
            // A worker that was just killed may have made one more file while we looked.
            let removed = (0..3).any(|_| self.remove().is_ok());
            if !removed {
                complain(format_args!("could not remove {}", self.directory.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_manifest_stays_unless_more_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::create("demo-1", Some(dir.path()), Keep::Manifest).unwrap();
        fs::write(workspace.database(), "x").unwrap();
        workspace.archive().write_manifest(&[]).unwrap();
        let manifest = workspace.archive().manifest();
        workspace.finish().unwrap();
        assert!(manifest.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the manifest and the marker");
    }

    #[test]
    fn a_demo_that_is_broken_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        drop(Workspace::create("demo-1", Some(&output), Keep::Manifest).unwrap());
        assert!(!output.exists());
        fs::create_dir(&output).unwrap();
        drop(Workspace::create("demo-1", Some(&output), Keep::Manifest).unwrap());
        assert_eq!(fs::read_dir(&output).unwrap().count(), 0, "it was there before");
        drop(Workspace::create("demo-1", Some(&output), Keep::Everything).unwrap());
        assert!(output.exists());
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "x").unwrap();
        let refused = Workspace::create("demo-1", Some(dir.path()), Keep::Manifest).unwrap_err();
        assert!(refused.to_string().contains("not empty"), "{refused}");
        assert!(dir.path().join("precious").exists());
    }
}
