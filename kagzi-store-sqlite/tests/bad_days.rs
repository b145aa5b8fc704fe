//! What becomes of a store whose file, disk or neighbours misbehave: a clear error, nothing half done,
//! and work goes on by itself when the cause is gone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kagzi_core::{
    CancelRun, Claim, Namespace, NextStep, OperationId, Payload, QueueName, RunFilter, RunId, StartRun,
    StepId, Store, StoreError, WorkerId, WorkflowType,
};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;

fn options(directory: &Path) -> SqliteOptions {
    SqliteOptions::new(directory.join("kagzi.db")).busy_timeout(Duration::from_millis(50))
}

async fn open(directory: &Path) -> SqliteStore {
    SqliteStore::open(options(directory)).await.unwrap()
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn a_start(input_bytes: usize) -> StartRun {
    StartRun::new(
        namespace(),
        QueueName::new("q").unwrap(),
        WorkflowType::new("t").unwrap(),
        Payload::raw(vec![7; input_bytes]),
    )
}

async fn start(store: &SqliteStore, input_bytes: usize) -> Result<RunId, StoreError> {
    Ok(store.start(vec![a_start(input_bytes)]).await?[0].run_id)
}

async fn runs(store: &SqliteStore) -> u64 {
    store.count_runs(&namespace(), &RunFilter::default()).await.unwrap()
}

#[track_caller]
fn assert_unavailable(error: &StoreError, remedy: &str) {
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(remedy), "{error}");
}

#[tokio::test]
async fn a_file_that_is_moved_away_takes_no_writes_until_it_is_back() {
    for name in ["kagzi.db", "kagzi.db-wal"] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).await;
        let kept = start(&store, 10).await.unwrap();
        let (here, there) = (directory.path().join(name), directory.path().join("elsewhere"));
        fs::rename(&here, &there).unwrap();
        assert_unavailable(&start(&store, 10).await.unwrap_err(), "put it back");
        // Another file in its place is not it.
        File::create(&here).unwrap();
        assert_unavailable(&start(&store, 10).await.unwrap_err(), "put it back");
        fs::rename(&there, &here).unwrap();
        start(&store, 10).await.unwrap();
        assert_eq!(runs(&store).await, 2);
        store.close().await.unwrap();
        let store = open(directory.path()).await;
        assert_eq!(runs(&store).await, 2);
        store.get_run(&namespace(), kept).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_locked_by_another_process_is_told_and_work_goes_on_when_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let other = rusqlite::Connection::open(directory.path().join("kagzi.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_unavailable(&start(&store, 10).await.unwrap_err(), "another process holds the file");
    assert_unavailable(&store.probe().await.unwrap_err(), "another process holds the file");
    assert_eq!(runs(&store).await, 0, "reads go on");
    other.execute_batch("ROLLBACK").unwrap();
    store.probe().await.unwrap();
    start(&store, 10).await.unwrap();
    assert_eq!(runs(&store).await, 1);
}

/// Only what never happens is waited for so long.
const NEVER: Duration = Duration::from_mins(1);

#[tokio::test]
async fn who_asks_hears_of_a_lock_though_operations_wait_on_for_it_and_they_are_done_when_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let patient = options(directory.path()).busy_timeout(10 * NEVER);
    let store = std::sync::Arc::new(SqliteStore::open(patient).await.unwrap());
    let other = rusqlite::Connection::open(directory.path().join("kagzi.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let waiting = tokio::spawn({
        let store = std::sync::Arc::clone(&store);
        async move { start(&store, 10).await }
    });
    for _ in 0..3 {
        let told = tokio::time::timeout(NEVER, store.probe()).await.expect("it does not wait for the lock");
        assert_unavailable(&told.unwrap_err(), "another process holds the file");
    }
    assert_eq!(runs(&store).await, 0, "reads go on");
    assert!(!waiting.is_finished());
    other.execute_batch("ROLLBACK").unwrap();
    tokio::time::timeout(NEVER, waiting).await.unwrap().unwrap().unwrap();
    tokio::time::timeout(NEVER, store.probe()).await.unwrap().unwrap();
    assert_eq!(runs(&store).await, 1);
}

/// Bytes in the middle of every page: where its cells are.
fn spoil(path: &Path, spoil: impl Fn(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    spoil(&mut bytes);
    File::options().write(true).open(path).unwrap().write_all_at(&bytes, 0).unwrap();
}

#[tokio::test]
async fn a_damaged_header_is_refused_and_left_alone_and_opens_once_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    start(&store, 10).await.unwrap();
    store.close().await.unwrap();
    let path = directory.path().join("kagzi.db");
    let good = fs::read(&path).unwrap();
    for (from, to) in [(0, 16), (16, 40), (0, 100)] {
        spoil(&path, |bytes| bytes[from..to].fill(0xff));
        let damaged = fs::read(&path).unwrap();
        let error = SqliteStore::open(options(directory.path())).await.unwrap_err();
        assert!(
            matches!(error, StoreError::InvalidArgument { .. } | StoreError::Internal { .. }),
            "a retry cannot help: {error:?}"
        );
        assert!(error.to_string().contains("backup"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "left alone");
        spoil(&path, |bytes| bytes.copy_from_slice(&good));
    }
    assert_eq!(runs(&open(directory.path()).await).await, 1);
}

#[tokio::test]
async fn a_page_that_is_damaged_under_the_store_is_told_and_read_again_once_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let run_id = start(&store, 10).await.unwrap();
    store.close().await.unwrap();
    let path = directory.path().join("kagzi.db");
    let good = fs::read(&path).unwrap();
    let store = open(directory.path()).await;
    // All but the first page, which says where the tables are.
    spoil(&path, |bytes| bytes[4096..].fill(0xff));
    let error = store.get_run(&namespace(), run_id).await.unwrap_err();
    assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    assert!(error.to_string().contains("backup"), "{error}");
    let error = start(&store, 10).await.unwrap_err();
    assert!(error.to_string().contains("backup"), "{error}");
    spoil(&path, |bytes| bytes.copy_from_slice(&good));
    store.get_run(&namespace(), run_id).await.unwrap();
    start(&store, 10).await.unwrap();
    assert_eq!(runs(&store).await, 2);
}

/// A disk of its own, if this user may mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "kagzi-test"])
            .arg(directory.path())
            .output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0.path()).status().is_ok_and(|status| status.success()));
    }
}

/// Where nothing can be mounted, the same is proved by SQLite's own limit of pages, in `commit/tests.rs`.
#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_acknowledged_and_is_over_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("2m") else { return };
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let store = open(disk.0.path()).await;
    let mut acknowledged = Vec::new();
    let error = loop {
        match start(&store, 10_000).await {
            Ok(run_id) => acknowledged.push(run_id),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1000, "the disk is full long before");
    };
    assert_unavailable(&error, "free some space");
    assert!(!acknowledged.is_empty());
    assert_eq!(runs(&store).await, acknowledged.len() as u64, "what failed left nothing");
    fs::remove_file(&ballast).unwrap();
    store.probe().await.unwrap();
    acknowledged.push(start(&store, 10_000).await.unwrap());
    store.close().await.unwrap();
    let store = open(disk.0.path()).await;
    assert_eq!(runs(&store).await, acknowledged.len() as u64);
    for run_id in acknowledged {
        assert_eq!(store.get_run(&namespace(), run_id).await.unwrap().input.len_bytes(), 10_000);
    }
    store.close().await.unwrap();
}

fn claim() -> Claim {
    Claim {
        namespace: namespace(),
        queues: vec![QueueName::new("q").unwrap()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 10,
        operation: OperationId::generate(),
    }
}

#[tokio::test]
async fn what_another_process_wrote_to_a_held_run_is_seen_by_its_holders_next_write() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (open(directory.path()).await, open(directory.path()).await);
    start(&here, 10).await.unwrap();
    let lease = here.claim(claim()).await.unwrap().remove(0).lease.lease;
    let begin = |number| kagzi_core::BeginStep {
        lease: lease.clone(),
        step: NextStep::new(StepId::new(format!("s{number}")).unwrap(), number),
        operation: OperationId::generate(),
    };
    here.begin_step(begin(0)).await.unwrap();
    let cancel = CancelRun {
        namespace: namespace(),
        run_id: lease.run_id,
        reason: String::new(),
        operation: OperationId::generate(),
    };
    there.cancel(cancel).await.unwrap();
    let error = here.begin_step(begin(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");
}
