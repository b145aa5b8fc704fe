//! No operation reads more of a table than it is about, whatever the table's size and whatever the
//! planner knows of it.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::{Duration, Instant};

use kagzi_core::{
    AttemptScope, BeginStep, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteStep, DeleteFinished,
    FailRun, FailStep, Failure, Heartbeat, IdempotencyKey, ListAttempts, ListRuns, Namespace, NextStep,
    OperationId, PageRequest, Payload, QueueChange, QueueName, ReleaseRun, RequeueRun, RunFilter,
    SetQueueState, Sleep, SleepUntil, StartRun, StepId, Store, Then, WorkerId, WorkflowType,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

/// How many runs the largest table holds, unless the variable says so; each has an input, an output and three
/// steps. By hand, over a server that does not flush, ten million take some minutes (CONTRIBUTING.md).
const ROWS: u32 = 30_000;
const ROWS_VARIABLE: &str = "KAGZI_PLANS_ROWS";

fn rows() -> u32 {
    std::env::var(ROWS_VARIABLE).map_or(ROWS, |rows| rows.parse().unwrap())
}

/// Runs from `from` on, with ids in the order of time as real ones have: seven in ten finished, the others
/// another tenant's that wait for a worker, for a moment far away, or for the end of a lease.
fn runs(from: u32, count: u32) -> String {
    let id = "(lpad(to_hex(1700000000000 + i), 12, '0') || '7' || substr(md5(i::text), 1, 3) || '8' || \
              substr(md5(i::text), 4, 15))::uuid";
    let series = format!("generate_series({from}, {}) AS i", u64::from(from) + u64::from(count) - 1);
    let then = "timestamptz '2020-01-01' + i * interval '1 second'";
    let (far, held) = ("timestamptz '2900-01-01' + i * interval '1 second'", "i % 10 = 2");
    format!(
        "INSERT INTO runs (run_id, partition, namespace, queue, workflow_type, state, priority, due_at,
             claim_rank, attention_at, fencing_token, worker_id, lease_expires_at, claim_operation, claims,
             lost_leases, failures, budget_token, created_at, updated_at, finished_at)
         SELECT {id}, 0, CASE WHEN i % 10 < 3 THEN 'other' ELSE 'n' END, 'q', 'w',
             (CASE i % 10 WHEN 0 THEN 'PENDING' WHEN 1 THEN 'SLEEPING' WHEN 2 THEN 'RUNNING'
              ELSE 'COMPLETED' END)::run_state, 0, {then}, i,
             CASE WHEN i % 10 IN (1, 2) THEN {far} END, 1, CASE WHEN {held} THEN 'w' END,
             CASE WHEN {held} THEN {far} END, CASE WHEN {held} THEN {id} END, 1, 0, 0, 0, {then}, {then},
             CASE WHEN i % 10 > 2 THEN {then} END
         FROM {series};
         INSERT INTO payloads SELECT {id}, slot, 0, 'text/plain', '', {then}, {then}
         FROM {series}, UNNEST(enum_range(NULL::payload_slot)) AS slot;
         INSERT INTO steps (run_id, step_id, attempt, partition, position, kind, state, fencing_token, worker_id,
             attention_at, begin_operation, end_operation, output_type, output, created_at, updated_at, finished_at)
         SELECT {id}, 'step-' || n, 1, 0, n, 'TASK', state::attempt_state, 1, 'w',
             CASE WHEN state = 'RUNNING' THEN {far} END, {id}, {id}, 'text/plain',
             CASE WHEN state = 'COMPLETED' THEN ''::bytea END, {then}, {then}, {then}
         FROM {series}, generate_series(0, 2) AS n,
             LATERAL (SELECT CASE WHEN {held} AND n = 2 THEN 'RUNNING' ELSE 'COMPLETED' END) AS s (state);"
    )
}

/// Those whose absence turns a look-up into a scan. Without others the work is found by a neighbour
/// (`runs_ready_of_type` by `runs_ready` and the other way round, while queues are short), or made wrong
/// (`runs_idempotency_key`).
const INDEXES: [&str; 6] = [
    "runs_attention",
    "runs_queue_attention",
    "runs_claim_operation",
    "runs_created",
    "runs_finished",
    "steps_attention",
];

/// What was read so far: by scans of whole tables, and from indexes.
async fn reads(url: &str) -> (i64, i64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    // A backend hands in its counts when it ends.
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'kagzi'";
    let started = Instant::now();
    while connection.fetch_one(others).await.unwrap().get::<i64, _>(0) > 0 {
        assert!(started.elapsed() < Duration::from_mins(1), "the store's connections do not end");
    }
    let row = connection
        .fetch_one(
            "SELECT (SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables
                     WHERE relname IN ('runs', 'steps', 'payloads', 'operations', 'queues')),
                    (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes)",
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

/// Where entries were read, for the report.
async fn by_index(url: &str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = connection
        .fetch_one(
            "SELECT string_agg(indexrelname || ' ' || idx_tup_read, ', ' ORDER BY idx_tup_read DESC)
             FROM pg_stat_user_indexes",
        )
        .await
        .unwrap();
    row.get(0)
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

/// Each round has a queue of its own, so that none meets what another left.
fn queue(round: u32) -> QueueName {
    QueueName::new(format!("round-{round}")).unwrap()
}

fn start(round: u32, key: Option<&str>) -> StartRun {
    let workflow = WorkflowType::new("w").unwrap();
    StartRun {
        idempotency_key: key.map(|key| IdempotencyKey::new(key).unwrap()),
        ..StartRun::new(namespace(), queue(round), workflow, Payload::json("1"))
    }
}

fn step(n: u32) -> NextStep {
    let timeout = Some(Duration::from_hours(1));
    NextStep { timeout, ..NextStep::new(StepId::new(format!("step-{n}")).unwrap(), n) }
}

async fn claim(store: &PostgresStore, round: u32) -> ClaimedRun {
    let claim = Claim {
        namespace: namespace(),
        queues: vec![queue(round), QueueName::new("other").unwrap()],
        // With a filter and without: each has an index.
        workflow_types: if round.is_multiple_of(2) {
            vec![WorkflowType::new("w").unwrap()]
        } else {
            Vec::new()
        },
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    store.claim(claim).await.unwrap().pop().unwrap()
}

/// Every operation at least once, on a handful of runs.
async fn everything(store: &PostgresStore, round: u32) {
    let key = format!("key-{round}");
    store
        .start(vec![start(round, None), start(round, Some(&key)), start(round, None), start(round, None)])
        .await
        .unwrap();
    store.start(vec![start(round, Some(&key))]).await.unwrap();
    let operation = OperationId::generate;

    let run = claim(store, round).await;
    let lease = run.lease.lease.clone();
    let beat = Heartbeat { lease: lease.clone(), lease_length: Duration::from_mins(1) };
    store.heartbeat(vec![beat]).await.unwrap();
    store
        .begin_step(BeginStep { lease: lease.clone(), step: step(0), operation: operation() })
        .await
        .unwrap();
    for n in 0..2 {
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(n).step_id,
            attempt: 1,
            output: Payload::json("1"),
            then: if n == 0 { Then::Begin(step(1)) } else { Then::Nothing },
            operation: operation(),
        };
        store.complete_step(complete.clone()).await.unwrap();
        store.complete_step(complete).await.unwrap();
    }
    let complete = CompleteRun { lease, output: Payload::json("1"), operation: operation() };
    store.complete_run(complete).await.unwrap();

    let lease = claim(store, round).await.lease.lease;
    store
        .begin_step(BeginStep { lease: lease.clone(), step: step(0), operation: operation() })
        .await
        .unwrap();
    let fail = FailStep {
        lease,
        step_id: step(0).step_id,
        attempt: 1,
        failure: Failure::non_retryable("", ""),
        operation: operation(),
    };
    let failed = fail.lease.run_id;
    store.fail_step(fail).await.unwrap();
    store
        .requeue(RequeueRun { namespace: namespace(), run_id: failed, operation: operation() })
        .await
        .unwrap();

    let lease = claim(store, round).await.lease.lease;
    let sleep = Sleep {
        lease,
        step_id: step(7).step_id,
        position: 7,
        until: SleepUntil::After(Duration::from_hours(1)),
        operation: operation(),
    };
    store.sleep(sleep).await.unwrap();
    let lease = claim(store, round).await.lease.lease;
    store.release(ReleaseRun { lease, operation: operation() }).await.unwrap();
    let lease = claim(store, round).await.lease.lease;
    let failure = Failure::retryable("", "");
    store.fail_run(FailRun { lease: lease.clone(), failure, operation: operation() }).await.unwrap();
    let cancel = CancelRun {
        namespace: namespace(),
        run_id: lease.run_id,
        reason: String::new(),
        operation: operation(),
    };
    store.cancel(cancel).await.unwrap();

    for change in [QueueChange::Pause { reason: String::new() }, QueueChange::Resume] {
        let change =
            SetQueueState { namespace: namespace(), queue: queue(round), change, operation: operation() };
        store.set_queue_state(change).await.unwrap();
    }

    store.get_run(&namespace(), failed).await.unwrap();
    let page = PageRequest::first(5);
    let filter = RunFilter::default();
    store.list_runs(&ListRuns { namespace: namespace(), filter, page: page.clone() }).await.unwrap();
    for scope in [AttemptScope::All, AttemptScope::Latest] {
        let listing = ListAttempts { namespace: namespace(), run_id: failed, scope, page: page.clone() };
        store.list_attempts(&listing).await.unwrap();
    }
    store.reap(100).await.unwrap();
    store.next_due().await.unwrap();
    store.queue_depths(&namespace()).await.unwrap();
    let before = store.now().await.unwrap();
    let delete = DeleteFinished { namespace: Some(namespace()), states: Vec::new(), before, limit: 1 };
    store.delete_finished(&delete).await.unwrap();
}

/// Fourteen rounds of about thirty operations on a few rows each read less than this many index entries;
/// queue depths, and the sleepers and dead entries of earlier rounds, are the most of it. One operation that
/// walks through the least index there is reads 2,000 a round.
const MOST_ENTRIES: i64 = 20_000;

/// A database whose statistics are gathered when the test says so, and a connection to fill it by.
async fn database() -> (TestDatabase, PgConnection) {
    let database = kagzi_testkit::postgres().await.unwrap().fresh_database().await.unwrap();
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    store.close().await.unwrap();
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    for table in ["runs", "steps", "payloads", "operations", "queues"] {
        let off = format!("ALTER TABLE {table} SET (autovacuum_enabled = off)");
        admin.execute(AssertSqlSafe(off)).await.unwrap();
    }
    // Rows that are only there to be many need no check of their references, which would count.
    admin.execute("SET session_replication_role = replica").await.unwrap();
    (database, admin)
}

/// Seven times every operation, often enough for plans that are made once and kept; then the table grows,
/// and seven times more. Answers how many scans of whole tables and how many index entries that took.
async fn work(url: &str, admin: &mut PgConnection, growth: &str, round: &mut u32) -> (i64, i64) {
    let (scans_before, entries_before) = reads(url).await;
    let store = PostgresStore::connect(PostgresOptions::new(url)).await.unwrap();
    for growth in [growth, ""] {
        for _ in 0..7 {
            everything(&store, *round).await;
            *round += 1;
        }
        admin.execute(AssertSqlSafe(growth.to_owned())).await.unwrap();
    }
    store.close().await.unwrap();
    let (scans, entries) = reads(url).await;
    (scans - scans_before, entries - entries_before)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_scans_a_table_whether_empty_young_or_large() {
    let (database, mut admin) = database().await;
    let url = database.url();
    let (rows, mut round) = (rows(), 0);
    let first = rows / 3 * 2;
    for (stage, preparation, growth) in [
        ("empty, and large while the plans of an empty one are kept", "", runs(0, first)),
        ("large, with the statistics of an empty one", "", String::new()),
        ("large, and larger", "VACUUM ANALYZE", runs(first, rows - first)),
        ("larger, with statistics of its own", "VACUUM ANALYZE", String::new()),
    ] {
        admin.execute(preparation).await.unwrap();
        let (scans, entries) = work(&url, &mut admin, &growth, &mut round).await;
        eprintln!("{stage}: {scans} scans, {entries} index entries");
        assert_eq!(scans, 0, "{stage}: a whole table was read");
        assert!(
            entries < MOST_ENTRIES,
            "{stage}: {entries} index entries were read, so far {}",
            by_index(&url).await
        );
    }
}

/// The test above can fail: it sees each index that is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_index_is_seen() {
    let (database, mut admin) = database().await;
    let url = database.url();
    admin.execute(AssertSqlSafe(runs(0, 20_000))).await.unwrap();
    admin.execute("VACUUM ANALYZE").await.unwrap();
    let mut round = 0;
    for index in INDEXES {
        let row = admin.fetch_one(AssertSqlSafe(format!("SELECT pg_get_indexdef('{index}'::regclass)")));
        let definition: String = row.await.unwrap().get(0);
        admin.execute(AssertSqlSafe(format!("DROP INDEX {index}"))).await.unwrap();
        let (scans, entries) = work(&url, &mut admin, "", &mut round).await;
        eprintln!("without {index}: {scans} scans, {entries} index entries");
        assert!(scans > 0 || entries > MOST_ENTRIES, "without {index}: {scans} scans, {entries} entries");
        admin.execute(AssertSqlSafe(definition)).await.unwrap();
    }
}
