//! Backups under load, and what is restored from them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kagzi_core::{
    AttemptScope, AttemptState, BeginOutcome, BeginStep, Claim, ClaimedRun, CompleteRun, CompleteStep,
    Heartbeat, ListAttempts, ListRuns, Namespace, NextStep, OperationId, PageRequest, Payload, QueueName,
    RunFilter, RunState, StartRun, StepId, Store, StoreError, Then, Verdict, WorkerId, WorkflowType,
};
use kagzi_store_sqlite::{Existing, SqliteOptions, SqliteStore};

fn options(directory: &Path, name: &str) -> SqliteOptions {
    SqliteOptions::new(directory.join(name))
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn a_start() -> StartRun {
    let (queue, workflow) = (QueueName::new("q").unwrap(), WorkflowType::new("w").unwrap());
    StartRun::new(namespace(), queue, workflow, Payload::json("1"))
}

async fn claim(store: &SqliteStore) -> ClaimedRun {
    let claim = Claim {
        namespace: namespace(),
        queues: vec![QueueName::new("q").unwrap()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    store.claim(claim).await.unwrap().remove(0)
}

/// One run from its start to its end, with one step.
async fn work(store: &SqliteStore) {
    store.start(vec![a_start()]).await.unwrap();
    let lease = claim(store).await.lease.lease;
    let step = NextStep::new(StepId::new("only").unwrap(), 0);
    let begin = BeginStep { lease: lease.clone(), step, operation: OperationId::generate() };
    let BeginOutcome::Execute { attempt, .. } = store.begin_step(begin).await.unwrap() else {
        panic!("a new step is executed")
    };
    let complete = CompleteStep {
        lease: lease.clone(),
        step_id: StepId::new("only").unwrap(),
        attempt,
        output: Payload::json("2"),
        then: Then::Nothing,
        operation: OperationId::generate(),
    };
    store.complete_step(complete).await.unwrap();
    let end = CompleteRun { lease, output: Payload::json("3"), operation: OperationId::generate() };
    store.complete_run(end).await.unwrap();
}

/// Every run is whole: a completed one has its completed step and both payloads.
async fn judge(store: &SqliteStore, expected: u64) {
    let all = ListRuns {
        namespace: namespace(),
        filter: RunFilter::default(),
        page: PageRequest { limit: 10_000, cursor: None },
    };
    let runs = store.list_runs(&all).await.unwrap().items;
    assert_eq!(runs.len() as u64, expected);
    for run in runs {
        let record = store.get_run(&namespace(), run.run_id).await.unwrap();
        let history = ListAttempts {
            namespace: namespace(),
            run_id: run.run_id,
            scope: AttemptScope::All,
            page: PageRequest { limit: 10, cursor: None },
        };
        let attempts = store.list_attempts(&history).await.unwrap().items;
        assert_eq!(record.input.bytes, Payload::json("1").bytes);
        if run.state == RunState::Completed {
            assert_eq!(record.output.unwrap().bytes, Payload::json("3").bytes);
            assert_eq!(attempts.len(), 1);
            assert_eq!(attempts[0].state, AttemptState::Completed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_holds_every_run_whole_and_the_restored_store_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let source = options(directory.path(), "kagzi.db");
    let store = Arc::new(SqliteStore::open(source.clone()).await.unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (store, over) = (Arc::clone(&store), Arc::clone(&over));
        async move {
            while !over.load(Ordering::Relaxed) {
                work(&store).await;
            }
        }
    });
    let everything = RunFilter::default();
    let mut before = 0;
    for round in 0..5 {
        // Some more were acknowledged since, and must be in the next backup.
        let acknowledged = before + 20;
        while store.count_runs(&namespace(), &everything).await.unwrap() < acknowledged {
            tokio::task::yield_now().await;
        }
        let backup = directory.path().join(format!("backup-{round}.db"));
        let copied = SqliteStore::back_up(source.clone(), &backup).await.unwrap();
        assert!(copied.runs >= acknowledged, "{} of {acknowledged}", copied.runs);
        before = copied.runs;

        let restored = options(directory.path(), &format!("restored-{round}.db"));
        let made = SqliteStore::restore(&backup, restored.clone(), Existing::Keep).await.unwrap();
        assert_eq!(made.copied.runs, copied.runs);
        let restored = SqliteStore::open(restored).await.unwrap();
        judge(&restored, copied.runs).await;
        let findings = restored.examine().await.unwrap();
        let failed: Vec<_> = findings.iter().filter(|found| found.verdict == Verdict::Fail).collect();
        assert!(failed.is_empty(), "{failed:?}");
        work(&restored).await;
        restored.close().await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    load.await.unwrap();
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_held_a_lease_before_a_restore_may_write_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let source = options(directory.path(), "kagzi.db");
    let backup = directory.path().join("backup.db");
    let store = SqliteStore::open(source.clone()).await.unwrap();
    store.start(vec![a_start(), a_start()]).await.unwrap();
    let early = claim(&store).await.lease.lease;
    SqliteStore::back_up(source.clone(), &backup).await.unwrap();
    let late = claim(&store).await.lease.lease;
    store.close().await.unwrap();

    SqliteStore::restore(&backup, source.clone(), Existing::PutAside).await.unwrap();
    let store = SqliteStore::open(source).await.unwrap();
    // Without the fence this would be given the token that `late` has, to the same worker.
    let again = claim(&store).await.lease.lease;
    assert_eq!((again.run_id, &again.worker_id), (late.run_id, &late.worker_id));
    assert!(again.fencing_token > late.fencing_token);
    let beat = |lease| Heartbeat { lease, lease_length: Duration::from_mins(2) };
    for lease in [early, late] {
        let answer = store.heartbeat(vec![beat(lease)]).await.unwrap().remove(0);
        assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "{answer:?}");
    }
    store.heartbeat(vec![beat(again)]).await.unwrap().remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_overwritten_and_nothing_open_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let source = options(directory.path(), "kagzi.db");
    let backup = directory.path().join("backup.db");
    let refused = |error: StoreError, field: &str, got: &str| {
        let said = error.to_string();
        assert!(said.starts_with(&format!("{field}: ")) && said.contains(got), "{said}");
    };
    let none = SqliteStore::back_up(source.clone(), &backup).await.unwrap_err();
    refused(none, "store", "where there is none");
    assert!(!source.path().exists(), "looking for a store makes none");

    let store = SqliteStore::open(source.clone()).await.unwrap();
    work(&store).await;
    SqliteStore::back_up(source.clone(), &backup).await.unwrap();
    let bytes = std::fs::read(&backup).unwrap();
    refused(SqliteStore::back_up(source.clone(), &backup).await.unwrap_err(), "to", "exists");
    assert_eq!(std::fs::read(&backup).unwrap(), bytes);

    work(&store).await;
    let restore = |existing| SqliteStore::restore(&backup, source.clone(), existing);
    refused(restore(Existing::Keep).await.unwrap_err(), "store", "exists");
    refused(restore(Existing::PutAside).await.unwrap_err(), "store", "which is open");
    work(&store).await;
    store.close().await.unwrap();

    let made = restore(Existing::PutAside).await.unwrap();
    let aside = SqliteStore::open(SqliteOptions::new(made.put_aside.unwrap())).await.unwrap();
    judge(&aside, 3).await;
    let store = SqliteStore::open(source.clone()).await.unwrap();
    judge(&store, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_the_store_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let source = options(directory.path(), "kagzi.db");
    let backup = directory.path().join("backup.db");
    let store = SqliteStore::open(source.clone()).await.unwrap();
    work(&store).await;
    SqliteStore::back_up(source.clone(), &backup).await.unwrap();
    store.close().await.unwrap();
    let mut bytes = std::fs::read(&backup).unwrap();
    let last = bytes.len() - 4096;
    bytes[last..].fill(0xa5);
    std::fs::write(&backup, bytes).unwrap();
    let error = SqliteStore::restore(&backup, source.clone(), Existing::PutAside).await.unwrap_err();
    assert!(matches!(error, StoreError::Internal { .. }), "{error}");
    judge(&SqliteStore::open(source).await.unwrap(), 1).await;
}
