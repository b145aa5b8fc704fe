//! No attempt outlives its run or comes after it, though no foreign key says so: whoever writes one holds
//! the lock of its run.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kagzi_core::{
    CompleteRun, DeleteFinished, Lease, OperationId, Payload, Store as _, StoreError, Timestamp,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use support::{begin, database, held, namespace};

async fn count(database: &TestDatabase, sql: &'static str) -> i64 {
    let mut session = PgConnection::connect(&database.url()).await.unwrap();
    session.fetch_one(sql).await.unwrap().get(0)
}

async fn orphans(database: &TestDatabase) -> i64 {
    count(
        database,
        "SELECT count(*) FROM steps s WHERE NOT EXISTS (
             SELECT FROM runs r WHERE r.run_id = s.run_id AND r.partition = s.partition)",
    )
    .await
}

async fn finish(store: &PostgresStore, lease: &Lease) {
    let output = Payload::json("1");
    let complete = CompleteRun { lease: lease.clone(), output, operation: OperationId::generate() };
    store.complete_run(complete).await.unwrap();
}

async fn remove(store: &PostgresStore) -> u64 {
    let before = Timestamp::MAX;
    let all = DeleteFinished { namespace: Some(namespace()), states: Vec::new(), before, limit: 100 };
    store.delete_finished(&all).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_waited_for_the_removal_of_its_run_begins_nothing() {
    let database = database().await;
    let store = Arc::new(PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap());
    let lease = held(&*store, 1).await.remove(0);
    let mut remover = PgConnection::connect(&database.url()).await.unwrap();
    remover.execute("BEGIN").await.unwrap();
    let id = lease.run_id.as_uuid();
    remover.execute(AssertSqlSafe(format!("DELETE FROM runs WHERE run_id = '{id}'"))).await.unwrap();
    let begun = tokio::spawn({
        let (store, lease) = (Arc::clone(&store), lease.clone());
        async move { begin(&*store, &lease, 0).await }
    });
    let started = Instant::now();
    while count(&database, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "the begin does not wait");
    }
    remover.execute("COMMIT").await.unwrap();
    let answer = begun.await.unwrap();
    assert!(matches!(answer, Err(StoreError::RunNotFound { .. })), "{answer:?}");
    assert_eq!(orphans(&database).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn begins_that_race_the_end_and_the_removal_of_their_runs_leave_no_attempt_behind() {
    const RUNS: u32 = 40;
    let database = database().await;
    let store = Arc::new(PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap());
    let mut tasks = Vec::new();
    for lease in held(&*store, RUNS).await {
        let ending = (Arc::clone(&store), lease.clone());
        tasks.push(tokio::spawn(async move {
            let (store, lease) = ending;
            for step in 0..10 {
                // Refused once the run has ended or is gone.
                begin(&*store, &lease, step).await.ok();
            }
        }));
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            finish(&store, &lease).await;
            remove(&store).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    remove(&store).await;
    assert_eq!(count(&database, "SELECT count(*) FROM runs").await, 0);
    assert_eq!(count(&database, "SELECT count(*) FROM steps").await, 0);
}
