//! One file under several handles, and what is left of it when they go.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    Namespace, Payload, QueueName, RunFilter, StartRun, Store, StoreError, Topic, Verdict, WorkflowType,
};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};

async fn open(directory: &Path) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(SqliteOptions::new(directory.join("kagzi.db"))).await.unwrap())
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn a_start() -> StartRun {
    StartRun::new(
        namespace(),
        QueueName::new("q").unwrap(),
        WorkflowType::new("t").unwrap(),
        Payload::json("{}"),
    )
}

async fn runs(store: &SqliteStore) -> u64 {
    store.count_runs(&namespace(), &RunFilter::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_is_woken_by_a_start_on_another_handle() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (open(directory.path()).await, open(directory.path()).await);
    for _ in 0..3 {
        let start = a_start();
        let mut waiter =
            here.wake_hub().subscribe([Topic::Queue(start.namespace.clone(), start.queue.clone())]);
        there.start(vec![start]).await.unwrap();
        // Far above the 25 ms in which it happens: only a hint that never comes makes this fail.
        tokio::time::timeout(Duration::from_secs(20), waiter.wait()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_handles_write_at_once_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let handles = [open(directory.path()).await, open(directory.path()).await];
    let writers: Vec<_> = (0..16)
        .map(|number| {
            let store = Arc::clone(&handles[number % 2]);
            tokio::spawn(async move {
                for _ in 0..25 {
                    store.start(vec![a_start()]).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(runs(&handles[0]).await, 400);
    assert_eq!(runs(&handles[1]).await, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_store_loses_nothing_and_lets_go_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    for _ in 0..10 {
        store.start(vec![a_start()]).await.unwrap();
    }
    assert!(directory.path().join("kagzi.db-wal").exists());
    drop(store);
    // SQLite removes the log when the last connection closes: the writer's thread has ended.
    assert!(!directory.path().join("kagzi.db-wal").exists());
    assert_eq!(runs(&*open(directory.path()).await).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_what_was_taken_in_and_refuses_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.start(vec![a_start()]).await })
        })
        .collect();
    store.close().await.unwrap();
    let mut acknowledged = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(_) => acknowledged += 1,
            Err(error) => assert!(matches!(error, StoreError::Unavailable { .. }), "{error}"),
        }
    }
    for answer in [
        store.start(vec![a_start()]).await.map(|_| ()),
        store.get_run(&namespace(), a_start().run_id()).await.map(|_| ()),
        store.now().await.map(|_| ()),
        store.close().await,
    ] {
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })));
    }
    assert!(!directory.path().join("kagzi.db-wal").exists(), "every connection is closed");
    assert_eq!(runs(&*open(directory.path()).await).await, acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_line_makes_callers_wait_and_loses_none() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(directory.path().join("kagzi.db")).queue_bound(1).max_batch(1);
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.start(vec![a_start()]).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(runs(&store).await, 50);
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_file_is_its_users_alone_and_one_that_is_there_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kagzi.db");
    let modes = || {
        ["kagzi.db", "kagzi.db-wal", "kagzi.db-shm"]
            .map(|name| directory.path().join(name).metadata().unwrap().permissions().mode() & 0o777)
    };
    let privacy = async |store: &SqliteStore| {
        let findings = store.examine().await.unwrap();
        findings.into_iter().find(|finding| finding.check == "privacy").unwrap().verdict
    };
    let store = SqliteStore::open(SqliteOptions::new(&path)).await.unwrap();
    assert_eq!(modes(), [0o600; 3]);
    assert_eq!(privacy(&store).await, Verdict::Ok);
    store.close().await.unwrap();
    drop(store);

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(SqliteOptions::new(&path)).await.unwrap();
    assert_eq!(modes(), [0o644; 3]);
    assert_eq!(privacy(&store).await, Verdict::Warn);
    store.close().await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with("kagzi.db")), "{left:?}");
}
