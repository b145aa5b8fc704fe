//! A schema of an older version is brought up to date with its data.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use kagzi_core::{
    AttemptScope, AttemptState, BeginOutcome, CompleteRun, CompleteStep, DeadLetterReason, FailRun, Failure,
    FailureOutcome, FencingToken, IdempotencyKey, Lease, ListAttempts, OperationId, PageRequest, Payload,
    RequeueRun, RunId, RunState, SchemaPolicy, StartOutcome, StartRun, StepId, Store, StoreError, Then,
    WorkerId,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::{begin, database, namespace, start};
use uuid::Uuid;

/// What a program that knew only the first migration left: a run in a worker's hands with a history
/// ($RUN in partition $PLACE), a dead letter with a recorded answer, and a completed run; in three
/// partitions, which is not the default, so that losing the number shows.
const ROWS: &str = r#"
    CREATE TABLE kagzi_schema (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version bigint NOT NULL,
        partitions smallint NOT NULL CHECK (partitions > 0),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    INSERT INTO kagzi_schema (version, partitions) VALUES (1, 3);

    INSERT INTO runs (run_id, partition, namespace, queue, workflow_type, state, priority, due_at, claim_rank,
        attention_at, fencing_token, worker_id, lease_expires_at, claim_operation, claims, lost_leases, failures,
        budget_token, idempotency_key, labels, failure, dead_letter, finish_operation, created_at, updated_at,
        finished_at)
    VALUES
        ('$RUN', $PLACE, 'n', 'q', 'w', 'RUNNING', 0, '2026-01-01Z', 1767225600000000, '9000-01-01Z', 2, 'w1',
            '9000-01-01Z', gen_random_uuid(), 2, 1, 0, 0, 'order-7', NULL, NULL, NULL, NULL,
            '2026-01-01 00:00:00.000001Z', '2026-01-02Z', NULL),
        ('019b0000-0000-7000-8000-000000000001', 1, 'n', 'q', 'w', 'FAILED', 0, '2026-01-01Z', 1767225600000000,
            NULL, 2, NULL, NULL, NULL, 2, 0, 1, 0, NULL, '{"team": "red"}',
            '{"kind":"NON_RETRYABLE","code":"no","message":"never"}', 'NON_RETRYABLE',
            '019b0000-0000-7000-8000-00000000fa11', '2026-01-01Z', '2026-01-02Z', '2026-01-02Z'),
        ('019b0000-0000-7000-8000-000000000002', 2, 'n', 'q', 'w', 'COMPLETED', 0, '2026-01-01Z',
            1767225600000000, NULL, 1, NULL, NULL, NULL, 1, 0, 0, 0, NULL, NULL, NULL, NULL,
            '019b0000-0000-7000-8000-00000000d0e0', '2026-01-01Z', '2026-01-02Z', '2026-01-02Z');

    INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
    SELECT run_id, 'INPUT'::payload_slot, partition, 'application/json', '1'::bytea, created_at, created_at
    FROM runs
    UNION ALL
    SELECT run_id, 'OUTPUT', partition, 'application/octet-stream', '\x00ff', updated_at, updated_at
    FROM runs WHERE state = 'COMPLETED';

    INSERT INTO steps (run_id, step_id, attempt, partition, position, kind, state, fencing_token, worker_id,
        begin_operation, end_operation, output_type, output, created_at, updated_at, finished_at)
    VALUES
        ('$RUN', 'step-0', 1, $PLACE, 0, 'TASK', 'COMPLETED', 1, 'w0', gen_random_uuid(), gen_random_uuid(),
            'application/octet-stream', '\x00fe', '2026-01-01Z', '2026-01-01Z', '2026-01-01Z'),
        ('$RUN', 'step-1', 1, $PLACE, 1, 'TASK', 'ABANDONED', 1, 'w0', gen_random_uuid(), NULL, NULL, NULL,
            '2026-01-01Z', '2026-01-02Z', '2026-01-02Z'),
        ('$RUN', 'step-1', 2, $PLACE, 1, 'TASK', 'RUNNING', 2, 'w1', gen_random_uuid(), NULL, NULL, NULL,
            '2026-01-02Z', '2026-01-02Z', NULL);

    INSERT INTO operations (run_id, operation_id, partition, answer, created_at, updated_at)
    VALUES ('019b0000-0000-7000-8000-000000000001', '019b0000-0000-7000-8000-00000000fa11', 1,
        '{"run_failed":{"DeadLetter":"NON_RETRYABLE"}}', '2026-01-02Z', '2026-01-02Z');
"#;

fn id(last: &str) -> Uuid {
    format!("019b0000-0000-7000-8000-00000000{last}").parse().unwrap()
}

/// The start that made the run in the worker's hands.
fn first() -> StartRun {
    StartRun {
        idempotency_key: Some(IdempotencyKey::new("order-7").unwrap()),
        operation: OperationId::from_uuid(id("57a7")),
        ..start("q")
    }
}

fn lease(run_id: RunId) -> Lease {
    let (worker_id, fencing_token) = (WorkerId::new("w1").unwrap(), FencingToken::new(2).unwrap());
    Lease { namespace: namespace(), run_id, worker_id, fencing_token }
}

/// What the older program left.
async fn older() -> (TestDatabase, PgConnection) {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute(include_str!("../migrations/0001_tables.sql")).await.unwrap();
    let run_id = first().run_id();
    let rows = ROWS.replace("$RUN", &run_id.to_string()).replace("$PLACE", &run_id.partition(3).to_string());
    connection.execute(AssertSqlSafe(rows)).await.unwrap();
    (database, connection)
}

async fn texts(connection: &mut PgConnection, sql: String) -> Vec<String> {
    connection.fetch_all(AssertSqlSafe(sql)).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Every row of every table, as text.
async fn rows(connection: &mut PgConnection) -> Vec<String> {
    let mut all = Vec::new();
    for table in ["runs", "payloads", "steps", "operations"] {
        all.extend(
            texts(connection, format!("SELECT '{table} ' || t::text FROM {table} t ORDER BY 1")).await,
        );
    }
    all
}

/// What a schema consists of: its version, tables with their columns, indexes and functions.
async fn shape(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT 'version ' || version FROM kagzi_schema
        UNION ALL SELECT table_name || '.' || column_name || ' ' || data_type FROM information_schema.columns
            WHERE table_schema = current_schema()
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
        ORDER BY 1";
    texts(connection, sql.to_owned()).await
}

async fn open(database: &TestDatabase) -> PostgresStore {
    PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap()
}

#[tokio::test]
async fn an_older_schema_is_migrated_with_its_data() {
    let (older, mut connection) = older().await;
    let before = rows(&mut connection).await;
    let store = open(&older).await;
    assert_eq!(rows(&mut connection).await, before, "every row is as it was");
    assert_eq!(store.partitions(), 3);

    let new = database().await;
    drop(open(&new).await);
    let mut there = PgConnection::connect(&new.url()).await.unwrap();
    assert_eq!(shape(&mut connection).await, shape(&mut there).await, "as a schema that was made anew");
}

#[tokio::test]
async fn an_older_schema_is_left_alone_by_whoever_requires_a_new_one_or_only_plans() {
    let (older, mut connection) = older().await;
    let before = shape(&mut connection).await;
    let mut options = PostgresOptions::new(older.url());
    options.schema_policy = SchemaPolicy::Require;
    let error = PostgresStore::connect(options.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaMismatch { found: 1, supported: 5, .. }), "{error}");
    let plan = PostgresStore::plan_migration(options.clone()).await.unwrap();
    assert_eq!(
        (plan.from, plan.to, plan.steps.as_slice()),
        (1, 5, ["0002_functions", "0003_queues", "0004_look", "0005_cluster"].as_slice())
    );
    assert_eq!(shape(&mut connection).await, before);

    assert_eq!(PostgresStore::migrate(options.clone()).await.unwrap(), plan);
    PostgresStore::connect(options).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn what_an_older_version_left_undone_goes_on_after_the_migration() {
    let (database, _connection) = older().await;
    let store = open(&database).await;
    let run_id = first().run_id();
    let lease = lease(run_id);

    // The worker that held the run before goes on: what it had completed is remembered to the byte, its
    // open step can be completed, and the run with it.
    let memoized = begin(&store, &lease, 0).await.unwrap();
    assert_eq!(memoized, BeginOutcome::Memoized { attempt: 1, output: Payload::raw(&b"\x00\xfe"[..]) });
    let complete = CompleteStep {
        lease: lease.clone(),
        step_id: StepId::new("step-1").unwrap(),
        attempt: 2,
        output: Payload::json("2"),
        then: Then::Nothing,
        operation: OperationId::generate(),
    };
    store.complete_step(complete).await.unwrap();
    let (output, operation) = (Payload::json("3"), OperationId::generate());
    store.complete_run(CompleteRun { lease, output, operation }).await.unwrap();
    let (scope, page) = (AttemptScope::All, PageRequest::first(10));
    let list = ListAttempts { namespace: namespace(), run_id, scope, page };
    let states: Vec<_> =
        store.list_attempts(&list).await.unwrap().items.iter().map(|one| one.state).collect();
    assert_eq!(states, [AttemptState::Completed, AttemptState::Abandoned, AttemptState::Completed]);

    // Its key is bound, and another's answer is remembered.
    let again = StartRun { operation: OperationId::generate(), ..first() };
    let started = store.start(vec![again]).await.unwrap()[0];
    assert_eq!((started.run_id, started.outcome), (run_id, StartOutcome::Existing));
    let dead = RunId::from_uuid(id("0001")).unwrap();
    let fail = FailRun {
        lease: self::lease(dead),
        failure: Failure::non_retryable("no", "never"),
        operation: OperationId::from_uuid(id("fa11")),
    };
    let answer = store.fail_run(fail).await.unwrap();
    assert_eq!(answer, FailureOutcome::DeadLetter(DeadLetterReason::NonRetryable));
    let operation = OperationId::generate();
    store.requeue(RequeueRun { namespace: namespace(), run_id: dead, operation }).await.unwrap();
    assert_eq!(store.get_run(&namespace(), dead).await.unwrap().run.state, RunState::Pending);
    let done = store.get_run(&namespace(), RunId::from_uuid(id("0002")).unwrap()).await.unwrap();
    assert_eq!(done.output, Some(Payload::raw(&b"\x00\xff"[..])));
}
