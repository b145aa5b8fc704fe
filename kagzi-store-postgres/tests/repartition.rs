//! A schema is moved to another number of partitions: all of it, once, and only while nobody uses it.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::time::Duration;

use kagzi_core::{
    AttemptScope, BeginOutcome, CompleteStep, FailRun, Failure, IdempotencyKey, Lease, ListAttempts,
    Namespace, OperationId, PageRequest, Payload, QueueChange, QueueName, RunId, RunState, SetQueueState,
    StartAt, StartOutcome, StartRun, StepId, Store, StoreError, Then,
};
use kagzi_store_postgres::{Moved, PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::{begin, claim, database, namespace, start};

fn old(database: &TestDatabase) -> PostgresOptions {
    PostgresOptions { schema: Some("old".to_owned()), ..PostgresOptions::new(database.url()) }
}

fn new(database: &TestDatabase, partitions: u16) -> PostgresOptions {
    PostgresOptions {
        schema: Some("new".to_owned()),
        partitions: Some(partitions),
        ..PostgresOptions::new(database.url())
    }
}

async fn move_it(database: &TestDatabase) -> Result<Moved, StoreError> {
    PostgresStore::move_to_partitions(old(database), new(database, 7)).await
}

async fn spy(database: &TestDatabase) -> PgConnection {
    PgConnection::connect(&database.url()).await.unwrap()
}

/// What the old store left.
struct Left {
    database: TestDatabase,
    /// A start with an idempotency key, whose run a worker holds in its second step.
    keyed: StartRun,
    lease: Lease,
    dead: FailRun,
    runs: Vec<RunId>,
}

fn complete(lease: &Lease, step: u32, then: Then) -> CompleteStep {
    CompleteStep {
        lease: lease.clone(),
        step_id: StepId::new(format!("step-{step}")).unwrap(),
        attempt: 1,
        output: Payload::raw(&b"\x00\xff\\N\t"[..]),
        then,
        operation: OperationId::generate(),
    }
}

fn pause(queue: &str) -> SetQueueState {
    SetQueueState {
        namespace: namespace(),
        queue: QueueName::new(queue).unwrap(),
        change: QueueChange::Pause { reason: "moving \\N house".to_owned() },
        operation: OperationId::generate(),
    }
}

/// A store of one partition with some of everything, and nobody connected to it.
async fn left() -> Left {
    let database = database().await;
    let store = PostgresStore::connect(old(&database)).await.unwrap();
    let key = IdempotencyKey::new("order-7 \\ \u{1f980}").unwrap();
    let keyed = StartRun { idempotency_key: Some(key), ..start("q") };
    store.start(vec![keyed.clone()]).await.unwrap();
    let lease = store.claim(claim("q", 1)).await.unwrap()[0].lease.lease.clone();
    begin(&store, &lease, 0).await.unwrap();
    store.complete_step(complete(&lease, 0, Then::Nothing)).await.unwrap();
    begin(&store, &lease, 1).await.unwrap();

    store.start(vec![start("dead")]).await.unwrap();
    let of_dead = store.claim(claim("dead", 1)).await.unwrap()[0].lease.lease.clone();
    let failure = Failure::non_retryable("no", "never");
    let dead = FailRun { lease: of_dead, failure, operation: OperationId::generate() };
    store.fail_run(dead.clone()).await.unwrap();

    let mut runs = vec![keyed.run_id(), dead.lease.run_id];
    let others = (0..40).map(|number| match number % 2 {
        0 => start("busy"),
        _ => StartRun { start_at: StartAt::After(Duration::from_hours(1)), ..start("busy") },
    });
    runs.extend(store.start(others.collect()).await.unwrap().iter().map(|started| started.run_id));
    store.start(vec![StartRun { namespace: Namespace::new("other").unwrap(), ..start("q") }]).await.unwrap();
    store.set_queue_state(pause("paused")).await.unwrap();
    store.close().await.unwrap();
    // Connections end a moment after they were closed.
    gone(&database).await;
    Left { database, keyed, lease, dead, runs }
}

async fn gone(database: &TestDatabase) {
    let mut spy = spy(database).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'kagzi'";
    while spy.fetch_one(sessions).await.unwrap().get::<i64, _>(0) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn everything_is_there_afterwards_and_goes_on_where_it_was() {
    let left = left().await;
    let before = {
        let store = PostgresStore::connect(old(&left.database)).await.unwrap();
        let mut records = Vec::new();
        for run_id in &left.runs {
            records.push(store.get_run(&namespace(), *run_id).await.unwrap());
        }
        store.close().await.unwrap();
        gone(&left.database).await;
        records
    };
    let moved = move_it(&left.database).await.unwrap();
    assert_eq!((moved.from_partitions, moved.partitions), (1, 7));
    let rows: Vec<_> = moved.tables.iter().map(|one| (one.table, one.rows, one.was_there)).collect();
    assert_eq!(
        rows,
        [
            ("runs", 43, false),
            ("payloads", 43, false),
            ("steps", 2, false),
            ("operations", 1, false),
            ("queues", 1, false)
        ]
    );

    let store = PostgresStore::connect(new(&left.database, 7)).await.unwrap();
    assert_eq!(store.partitions(), 7);
    for record in before {
        assert_eq!(store.get_run(&namespace(), record.run.run_id).await.unwrap(), record);
    }
    // The lease is good, the history known to the byte, and the key bound.
    let memoized = begin(&store, &left.lease, 0).await.unwrap();
    assert_eq!(memoized, BeginOutcome::Memoized { attempt: 1, output: Payload::raw(&b"\x00\xff\\N\t"[..]) });
    let finish = Then::CompleteRun(Payload::json("1"));
    store.complete_step(complete(&left.lease, 1, finish)).await.unwrap();
    let again = StartRun { operation: OperationId::generate(), ..left.keyed.clone() };
    assert_eq!(store.start(vec![again]).await.unwrap()[0].outcome, StartOutcome::Existing);
    let (scope, page) = (AttemptScope::All, PageRequest::first(10));
    let list = ListAttempts { namespace: namespace(), run_id: left.keyed.run_id(), scope, page };
    assert_eq!(store.list_attempts(&list).await.unwrap().items.len(), 2);
    // A repeat of a rare operation gets its first answer; the queue is paused in every partition; all can be claimed.
    store.fail_run(left.dead.clone()).await.unwrap();
    let state = store.get_run(&namespace(), left.dead.lease.run_id).await.unwrap().run.state;
    assert_eq!(state, RunState::Failed);
    store.start((0..20).map(|_| start("paused")).collect()).await.unwrap();
    assert!(store.claim(claim("paused", 20)).await.unwrap().is_empty());
    assert_eq!(store.claim(claim("busy", 100)).await.unwrap().len(), 20);
    store.close().await.unwrap();

    for options in [old(&left.database), PostgresOptions { partitions: Some(1), ..old(&left.database) }] {
        let told = PostgresStore::connect(options).await.unwrap_err().to_string();
        assert!(told.contains("moved all runs of this schema"), "{told}");
    }
    gone(&left.database).await;
    let told = move_it(&left.database).await.unwrap_err().to_string();
    assert!(told.contains("moved all runs of this schema"), "{told}");
}

#[tokio::test]
async fn a_move_that_breaks_off_is_opened_by_nobody_and_goes_on_when_it_is_called_again() {
    let left = left().await;
    let mut spy = spy(&left.database).await;
    // The new schema is made and lets no step in.
    PostgresStore::migrate(new(&left.database, 7)).await.unwrap();
    gone(&left.database).await;
    spy.execute(
        "CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$;
         CREATE TRIGGER break_off BEFORE INSERT ON new.steps FOR EACH ROW EXECUTE FUNCTION break_off()",
    )
    .await
    .unwrap();
    let told = move_it(&left.database).await.unwrap_err().to_string();
    assert!(told.contains("the disk is full"), "{told}");
    let told = PostgresStore::connect(new(&left.database, 7)).await.unwrap_err().to_string();
    assert!(told.contains("run it again"), "{told}");
    let count = async |spy: &mut PgConnection, table: &str| {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM new.{table}"));
        spy.fetch_one(sql).await.unwrap().get::<i64, _>(0)
    };
    assert_eq!((count(&mut spy, "payloads").await, count(&mut spy, "steps").await), (43, 0));
    PostgresStore::connect(old(&left.database)).await.unwrap().close().await.unwrap();
    gone(&left.database).await;

    spy.execute("DROP TRIGGER break_off ON new.steps").await.unwrap();
    let moved = move_it(&left.database).await.unwrap();
    let there: Vec<bool> = moved.tables.iter().map(|one| one.was_there).collect();
    assert_eq!(there, [true, true, false, false, false]);
    let store = PostgresStore::connect(new(&left.database, 7)).await.unwrap();
    assert_eq!(store.claim(claim("busy", 100)).await.unwrap().len(), 20);
}

#[tokio::test]
async fn what_was_written_between_two_attempts_is_noticed_and_nothing_is_opened() {
    for change in [
        "UPDATE old.runs SET claims = claims + 1 WHERE run_id = (SELECT run_id FROM old.runs LIMIT 1)",
        "UPDATE old.payloads SET bytes = 'x' WHERE run_id = (SELECT run_id FROM old.payloads LIMIT 1)",
        "UPDATE old.runs SET created_at = created_at + interval '1 microsecond'",
        "DELETE FROM old.runs WHERE queue = 'busy'",
        "UPDATE new.payloads SET partition = (partition + 1) % 7",
    ] {
        let left = left().await;
        let mut spy = spy(&left.database).await;
        PostgresStore::migrate(new(&left.database, 7)).await.unwrap();
        gone(&left.database).await;
        spy.execute(
            "CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'full'; END $$;
             CREATE TRIGGER break_off BEFORE INSERT ON new.steps FOR EACH ROW EXECUTE FUNCTION break_off()",
        )
        .await
        .unwrap();
        move_it(&left.database).await.unwrap_err();
        spy.execute("DROP TRIGGER break_off ON new.steps").await.unwrap();
        spy.execute(AssertSqlSafe(change)).await.unwrap();
        let error = move_it(&left.database).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::InvalidArgument { field, .. } if field == "to"),
            "{change}: {error}"
        );
        assert!(error.to_string().contains("begin again"), "{change}: {error}");
        PostgresStore::connect(new(&left.database, 7)).await.unwrap_err();
        PostgresStore::connect(old(&left.database)).await.unwrap();
    }
}

#[tokio::test]
async fn a_store_in_use_the_same_number_and_a_schema_with_rows_are_refused_and_left_alone() {
    let left = left().await;
    let refused = async |to: PostgresOptions| {
        PostgresStore::move_to_partitions(old(&left.database), to).await.unwrap_err().to_string()
    };
    let told = refused(PostgresOptions { partitions: None, ..new(&left.database, 7) }).await;
    assert!(told.contains("to: expected a URL that says how many partitions"), "{told}");
    let told = refused(new(&left.database, 1)).await;
    assert!(told.contains("partitions: expected another number"), "{told}");
    let told = refused(PostgresOptions { partitions: Some(7), ..old(&left.database) }).await;
    assert!(
        told.contains("partitions: expected 1") && told.contains("got 7"),
        "it is the same schema: {told}"
    );

    let store = PostgresStore::connect(old(&left.database)).await.unwrap();
    let told = refused(new(&left.database, 7)).await;
    assert!(told.contains("stop every server"), "{told}");
    store.close().await.unwrap();

    let other = PostgresStore::connect(new(&left.database, 7)).await.unwrap();
    other.start(vec![start("q")]).await.unwrap();
    other.close().await.unwrap();
    gone(&left.database).await;
    let told = refused(new(&left.database, 7)).await;
    assert!(told.contains("to: expected a new schema, or one without rows; runs has some"), "{told}");
    let told = refused(new(&left.database, 8)).await;
    assert!(told.contains("partitions: expected 7") && told.contains("got 8"), "{told}");

    // Whoever writes under another name is waited for, and not for ever.
    let mut writer = spy(&left.database).await;
    let mut writing = writer.begin().await.unwrap();
    writing.execute("UPDATE old.runs SET updated_at = updated_at").await.unwrap();
    let impatient = PostgresOptions { lock_timeout: Duration::from_millis(50), ..old(&left.database) };
    let error = PostgresStore::move_to_partitions(impatient, new(&left.database, 7)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    writing.rollback().await.unwrap();
    PostgresStore::connect(old(&left.database)).await.unwrap();
}
