//! A disk of its own, small enough to be filled.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::world::Failed;

/// A file system in memory. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

/// Nothing can be mounted here.
#[derive(Debug, thiserror::Error)]
#[error("needs a small disk, and {0}; as root it can be mounted")]
pub struct NoDisk(String);

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Errors
    ///
    /// [`NoDisk`] if this user may not.
    pub fn mount(size: &str) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "kagzi-test"])
            .arg(directory.path())
            .output()
            .map_err(|error| NoDisk(format!("mount: {error}")))?;
        if !mount.status.success() {
            return Err(NoDisk(String::from_utf8_lossy(&mount.stderr).trim().to_owned()).into());
        }
        Ok(Self(directory))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is left.
    pub fn fill(&self) -> Result<(), Failed> {
        let mut filler = File::create(self.path().join("filler"))?;
        while filler.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    /// Gives back what was taken.
    pub fn make_room(&self) -> Result<(), Failed> {
        Ok(fs::remove_file(self.path().join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still have its files open.
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}
