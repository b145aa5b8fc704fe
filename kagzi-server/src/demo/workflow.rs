//! The workflow `backup-file`: one run backs up one file in five steps.
//!
//! Each step can be executed again after a crash without harm, and none relies on anything that a crash
//! could take: what a step leaves behind is on disk before it returns.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kagzi_core::RunId;
use kagzi_sdk::{Context, StepError, WorkflowError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::archive::Archive;
use super::blocking::off_the_runtime;
use super::failure;
use super::hold::{Countdown, HoldPoint};
use super::manifest::Entry;
use super::path::RelativePath;
use super::stream::{self, FileError, Fingerprint};
use super::worker::Troubles;

/// The name under which workers register it.
pub const WORKFLOW_TYPE: &str = "backup-file";

/// How many steps a file takes that lies still.
pub const STEPS: u64 = 5;

/// How often a file that changes under our hands is begun again from its digest.
const ROUNDS: u32 = 3;

/// What a run is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The file, below the directory.
    pub path: RelativePath,
}

/// What a worker knows beside the job.
#[derive(Debug)]
pub struct Backup {
    /// The directory that is backed up.
    pub root: PathBuf,
    /// Where to.
    pub archive: Archive,
    /// Where to wait for the end, in the first worker.
    pub hold: Option<Countdown>,
    /// Who hears of steps that fail and are tried again.
    pub troubles: Arc<Troubles>,
}

/// Why a file has to be begun again from its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Again {
    because: String,
}

fn again<T>(because: &str) -> Result<T, Again> {
    Err(Again { because: because.to_owned() })
}

/// A compressed file that has no place in the archive yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Packed {
    partial: String,
    bytes: u64,
}

/// Backs up one file.
///
/// A file that changes meanwhile is begun again: a step used again in another round gets an occurrence
/// of its own in the history, so every round is as durable as the first.
pub async fn backup_file(context: Context, job: Job, backup: Arc<Backup>) -> Result<Entry, WorkflowError> {
    let work = Work { run_id: context.run_id(), path: job.path, backup };
    let mut because = String::new();
    for _ in 0..ROUNDS {
        match round(&context, &work).await? {
            Ok(entry) => {
                context.step("record", || work.record(&entry)).await?;
                return Ok(entry);
            }
            Err(again) => because = again.because,
        }
    }
    let message = format!("{}: given up after {ROUNDS} rounds: {because}", work.path);
    Err(WorkflowError::non_retryable("changed", message))
}

/// The steps that a change of the file undoes.
async fn round(context: &Context, work: &Work) -> Result<Result<Entry, Again>, WorkflowError> {
    let before = context.step("digest", || work.digest()).await?;
    let packed = match context.step("compress", || work.compress(&before)).await? {
        Ok(packed) => packed,
        Err(again) => return Ok(Err(again)),
    };
    if let Err(again) = context.step("write", || work.write(&packed, &before)).await? {
        return Ok(Err(again));
    }
    if let Err(again) = context.step("verify", || work.verify(&before)).await? {
        return Ok(Err(again));
    }
    let Fingerprint { sha256, bytes, .. } = before;
    Ok(Ok(Entry { path: work.path.clone(), sha256, bytes, compressed_bytes: packed.bytes }))
}

/// What the steps of one run work with.
struct Work {
    run_id: RunId,
    path: RelativePath,
    backup: Arc<Backup>,
}

impl Work {
    /// Reads the file once and takes its digest.
    async fn digest(&self) -> Result<Fingerprint, StepError> {
        let source = self.source();
        let digest = off_the_runtime(move || stream::digest(&source)).await;
        self.hold_at(HoldPoint::Digest).await;
        digest.map_err(|error| self.file_failed(&error))
    }

    /// Reads it again and compresses it into a partial file. The name is new for each attempt: a worker
    /// that was thought dead may still be writing to the one before.
    async fn compress(&self, before: &Fingerprint) -> Result<Result<Packed, Again>, StepError> {
        let source = self.source();
        let partial = format!("{}-{}.zst", self.run_id, Uuid::now_v7().simple());
        let target = self.backup.archive.partial().join(&partial);
        let compressed = off_the_runtime(move || {
            let compressed = stream::compress(&source, &target);
            if compressed.is_err() {
                // On a full disk, what it takes is what everything else needs now.
                std::fs::remove_file(&target).ok();
            }
            compressed
        })
        .await;
        let (sha256, bytes) = compressed.map_err(|error| self.file_failed(&error))?;
        if sha256 == before.sha256 {
            Ok(Ok(Packed { partial, bytes }))
        } else {
            Ok(again("it changed between two readings"))
        }
    }

    /// Gives the partial file its place in the archive.
    async fn write(&self, packed: &Packed, before: &Fingerprint) -> Result<Result<(), Again>, StepError> {
        let (archive, partial) = (self.backup.archive.clone(), packed.partial.clone());
        let sha256 = before.sha256.clone();
        let published = off_the_runtime(move || archive.publish(&partial, &sha256)).await;
        self.hold_at(HoldPoint::Write).await;
        match published {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(again("its compressed form was lost before it had its place"))
            }
            Err(error) => Err(self.archive_failed(&error)),
        }
    }

    /// Decompresses what is in the archive, compares the digest, and looks whether the file is still
    /// what it was.
    async fn verify(&self, before: &Fingerprint) -> Result<Result<(), Again>, StepError> {
        let object = self.backup.archive.object(&before.sha256);
        let (source, before) = (self.source(), before.clone());
        let verdict = off_the_runtime(move || {
            if !stream::digest_compressed(&object).is_ok_and(|sha256| sha256 == before.sha256) {
                return Ok(again("its copy in the archive could not be read back"));
            }
            if stream::is_unchanged(&source, &before)? {
                Ok(Ok(()))
            } else {
                Ok(again("it changed while it was backed up"))
            }
        });
        verdict.await.map_err(|error| self.file_failed(&FileError::Read(error)))
    }

    /// Writes the run's line of the manifest.
    async fn record(&self, entry: &Entry) -> Result<(), StepError> {
        let (archive, run_id) = (self.backup.archive.clone(), self.run_id.to_string());
        let entry = entry.clone();
        let recorded = off_the_runtime(move || archive.record(&run_id, &entry)).await;
        recorded.map_err(|error| self.archive_failed(&error))
    }

    fn file_failed(&self, error: &FileError) -> StepError {
        self.told(failure::of_file(&self.path, error))
    }

    fn archive_failed(&self, error: &io::Error) -> StepError {
        self.told(failure::of_archive(&self.path, error))
    }

    /// A failure that the demo has heard of, if it will be tried again.
    fn told(&self, error: StepError) -> StepError {
        if error.failure().kind.may_retry() {
            self.backup.troubles.tell(&error.failure().message);
        }
        error
    }

    fn source(&self) -> PathBuf {
        self.path.below(&self.backup.root)
    }

    async fn hold_at(&self, point: HoldPoint) {
        if self.backup.hold.as_ref().is_some_and(|hold| hold.is_over(point)) {
            super::worker::announce_hold(self.run_id);
            // Heartbeats go on; only being killed ends this.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kagzi_core::{Namespace, OperationId};
    use tempfile::TempDir;

    use super::*;

    /// A file called `file`, and the work on it.
    fn work_on(content: &str) -> (TempDir, Work) {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("file"), content).unwrap();
        let archive = Archive::create(&dir.path().join("archive")).unwrap();
        let backup =
            Arc::new(Backup { root: dir.path().to_owned(), archive, hold: None, troubles: Arc::default() });
        let run_id = RunId::for_start(&Namespace::new("n").unwrap(), OperationId::generate(), None);
        (dir, Work { run_id, path: RelativePath::new(Path::new("file")), backup })
    }

    #[tokio::test]
    async fn a_file_that_changes_before_it_is_compressed_is_begun_again() {
        let (dir, work) = work_on("one");
        let before = work.digest().await.unwrap();
        fs::write(dir.path().join("file"), "two").unwrap();
        assert!(work.compress(&before).await.unwrap().unwrap_err().because.contains("changed"));
    }

    #[tokio::test]
    async fn a_file_that_changes_before_it_is_verified_is_begun_again() {
        let (dir, work) = work_on("one");
        let before = work.digest().await.unwrap();
        let packed = work.compress(&before).await.unwrap().unwrap();
        work.write(&packed, &before).await.unwrap().unwrap();
        assert_eq!(work.verify(&before).await.unwrap(), Ok(()));
        fs::write(dir.path().join("file"), "longer").unwrap();
        assert!(work.verify(&before).await.unwrap().unwrap_err().because.contains("changed"));
        fs::remove_file(dir.path().join("file")).unwrap();
        assert_eq!(work.verify(&before).await.unwrap_err().failure().code, "not_found");
    }

    #[tokio::test]
    async fn what_a_crash_took_is_made_again_and_what_it_left_is_used() {
        let (_dir, work) = work_on("one");
        let before = work.digest().await.unwrap();
        let packed = work.compress(&before).await.unwrap().unwrap();
        let lost = Packed { partial: "never written".to_owned(), ..packed.clone() };
        assert!(work.write(&lost, &before).await.unwrap().unwrap_err().because.contains("lost"));
        work.write(&packed, &before).await.unwrap().unwrap();
        work.write(&packed, &before).await.unwrap().unwrap();
        fs::write(work.backup.archive.object(&before.sha256), "damaged").unwrap();
        assert!(work.verify(&before).await.unwrap().unwrap_err().because.contains("read back"));
    }
}
