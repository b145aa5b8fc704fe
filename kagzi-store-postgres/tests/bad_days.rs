//! Bad days of a database that others had: idle transactions, small pools, commits that fail.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    BeginStep, Claim, ClaimedRun, CompleteStep, ErrorScope, Namespace, NextStep, OperationId, Payload,
    QueueName, RunFilter, StartRun, StepId, Store, StoreError, Then, Verdict, WorkerId, WorkflowType,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{TestDatabase, postgres};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

/// Far above what anything here takes: only what never ends makes a test fail.
const NEVER: Duration = Duration::from_mins(1);

async fn database() -> TestDatabase {
    postgres().await.unwrap().fresh_database().await.unwrap()
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn start() -> StartRun {
    let (queue, workflow) = (QueueName::new("q").unwrap(), WorkflowType::new("w").unwrap());
    StartRun::new(namespace(), queue, workflow, Payload::json("1"))
}

async fn claim(store: &PostgresStore, limit: u32) -> Vec<ClaimedRun> {
    let claim = Claim {
        namespace: namespace(),
        queues: vec![QueueName::new("q").unwrap()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    store.claim(claim).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_on_one_run_does_not_keep_others_from_being_claimed() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    store.start((0..3).map(|_| start()).collect()).await.unwrap();
    let mut idle = PgConnection::connect(&database.url()).await.unwrap();
    let mut transaction = idle.begin().await.unwrap();
    transaction.execute("SELECT 1 FROM runs ORDER BY claim_rank, run_id LIMIT 1 FOR UPDATE").await.unwrap();
    let claimed = tokio::time::timeout(NEVER, claim(&store, 3)).await.unwrap();
    assert_eq!(claimed.len(), 2, "all but the one that somebody sits on");
    transaction.rollback().await.unwrap();
    assert_eq!(claim(&store, 3).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_at_once_over_the_smallest_pool_all_end() {
    let database = database().await;
    let options = PostgresOptions { max_connections: 2, lanes: 2, ..PostgresOptions::new(database.url()) };
    let store = Arc::new(PostgresStore::connect(options).await.unwrap());
    store.start((0..64).map(|_| start()).collect()).await.unwrap();
    let workers: Vec<_> = claim(&store, 64)
        .await
        .into_iter()
        .map(|run| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { live(&store, run).await })
        })
        .collect();
    for worker in workers {
        tokio::time::timeout(NEVER, worker).await.unwrap().unwrap();
    }
}

/// A step by the fast path, the same again by the careful one, and the end.
async fn live(store: &PostgresStore, run: ClaimedRun) {
    let (lease, operation) = (run.lease.lease, OperationId::generate());
    let step = NextStep::new(StepId::new("a").unwrap(), 0);
    store.begin_step(BeginStep { lease: lease.clone(), step, operation }).await.unwrap();
    let complete = CompleteStep {
        lease,
        step_id: StepId::new("a").unwrap(),
        attempt: 1,
        output: Payload::json("1"),
        then: Then::CompleteRun(Payload::json("2")),
        operation: OperationId::generate(),
    };
    store.complete_step(complete.clone()).await.unwrap();
    store.complete_step(complete).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_is_an_error_and_nothing_happened() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    // Every statement succeeds; the commit does not.
    admin
        .execute(
            "CREATE FUNCTION no_commit() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN RAISE EXCEPTION 'this transaction is not to be'; END $$;
             CREATE CONSTRAINT TRIGGER no_commit AFTER INSERT ON runs DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION no_commit()",
        )
        .await
        .unwrap();
    let request = start();
    assert!(store.start(vec![request.clone()]).await.is_err(), "one start, gathered with others");
    assert!(store.start(vec![start(), start()]).await.is_err(), "a batch of its own");
    assert_eq!(store.count_runs(&namespace(), &RunFilter::default()).await.unwrap(), 0);
    admin.execute("DROP TRIGGER no_commit ON runs").await.unwrap();
    store.start(vec![request]).await.unwrap();
    assert_eq!(store.count_runs(&namespace(), &RunFilter::default()).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_is_told_by_a_probe() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    store.probe().await.unwrap();
    let set = |value: &str| {
        let name = database.name();
        // Sessions keep what they began with, as those of a server that was demoted end.
        format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = {value};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
    };
    let mut admin = PgConnection::connect(postgres().await.unwrap().url()).await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(set("on"))).await.unwrap();
    let error = once_reconnected(&store).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { reason, .. } if reason.contains("primary")),
        "{error}"
    );
    admin.execute(sqlx::AssertSqlSafe(set("off"))).await.unwrap();
    once_reconnected(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_has_locked_is_told_by_a_probe_and_by_an_examination_until_it_is_free() {
    let database = database().await;
    for partitions in [1, 7] {
        let schema = format!("of_{partitions}");
        let mut admin = PgConnection::connect(&database.url()).await.unwrap();
        admin
            .execute(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}; SET search_path = {schema}")))
            .await
            .unwrap();
        let url = format!("{}?schema={schema}", database.url());
        let store = PostgresStore::connect(PostgresOptions {
            partitions: Some(partitions),
            ..PostgresOptions::new(url)
        });
        let store = store.await.unwrap();
        let locks = async || {
            let findings = store.examine().await.unwrap();
            findings.into_iter().find(|finding| finding.check == "locks").unwrap()
        };
        for (table, mode) in [
            ("runs", "SHARE"),
            ("payloads", "ACCESS EXCLUSIVE"),
            ("steps", "SHARE"),
            ("operations", "EXCLUSIVE"),
            ("queues", "ACCESS EXCLUSIVE"),
        ] {
            store.probe().await.unwrap();
            assert_eq!(locks().await.verdict, Verdict::Ok);
            admin
                .execute(sqlx::AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN {mode} MODE")))
                .await
                .unwrap();
            let error = tokio::time::timeout(NEVER, store.probe()).await.unwrap().unwrap_err();
            let StoreError::Unavailable { reason, .. } = &error else { panic!("{error:?}") };
            for part in [&format!("the table {table} is locked"), "pg_locks"] {
                assert!(reason.contains(part), "{reason}");
            }
            assert_eq!(error.scope(), Some(ErrorScope::Store));
            let found = locks().await;
            assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
            assert!(found.found.contains(table) && found.remedy.unwrap().contains("pg_locks"));
            admin.execute("ROLLBACK").await.unwrap();
        }
        // What every server does all the time, and who reads, is in nobody's way.
        admin.execute("BEGIN; LOCK TABLE runs, steps IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
        store.probe().await.unwrap();
        // Who waits for a lock has all others wait behind.
        let mut alter = PgConnection::connect(&database.url()).await.unwrap();
        let asked = alter.fetch_one("SELECT pg_backend_pid()").await.unwrap();
        let pid: i32 = asked.get(0);
        let altering = tokio::spawn(async move {
            let lock = format!("BEGIN; LOCK TABLE {schema}.runs IN ACCESS EXCLUSIVE MODE; ROLLBACK");
            alter.execute(sqlx::AssertSqlSafe(lock)).await.map(drop)
        });
        let waits = format!("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = {pid})");
        while !admin.fetch_one(sqlx::AssertSqlSafe(waits.as_str())).await.unwrap().get::<bool, _>(0) {}
        let error = store.probe().await.unwrap_err().to_string();
        assert!(error.contains(&format!("process {pid} waits to lock the table runs")), "{error}");
        admin.execute("ROLLBACK").await.unwrap();
        altering.await.unwrap().unwrap();
        store.probe().await.unwrap();
    }
}

/// What a probe says over a connection that is not one of those that were ended.
async fn once_reconnected(store: &PostgresStore) -> Result<(), StoreError> {
    for _ in 0..PostgresOptions::new("").max_connections {
        match store.probe().await {
            Err(StoreError::Unavailable { reason, .. }) if reason.contains("cannot be reached") => {}
            answer => return answer,
        }
    }
    store.probe().await
}
