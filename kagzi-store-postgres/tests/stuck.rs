//! Somebody holds a lock and does not go on: a frozen server, or a person with an open transaction.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    BeginStep, Lease, ManualClock, NextStep, OperationId, QueueChange, QueueName, QueueOutcome, ReleaseRun,
    SetQueueState, StepId, Store as _, StoreError,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use support::{beat, begin, claim, database, held, namespace, start};

/// A session that holds what `sql` locks until it is let go of.
async fn stuck(database: &TestDatabase, sql: String) -> PgConnection {
    let mut session = PgConnection::connect(&database.url()).await.unwrap();
    session.execute("BEGIN").await.unwrap();
    session.execute(AssertSqlSafe(sql)).await.unwrap();
    session
}

fn lock(leases: &[&Lease]) -> String {
    let ids: Vec<String> = leases.iter().map(|lease| format!("'{}'", lease.run_id.as_uuid())).collect();
    format!("SELECT 1 FROM runs WHERE run_id IN ({}) FOR UPDATE", ids.join(", "))
}

async fn connect(options: PostgresOptions) -> Arc<PostgresStore> {
    let options = PostgresOptions { lock_timeout: Duration::from_millis(100), ..options };
    Arc::new(PostgresStore::connect(options).await.unwrap())
}

fn is_unavailable<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Unavailable { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_run_that_is_stuck_leave_its_neighbours_in_the_batch_alone() {
    let database = database().await;
    let store = connect(PostgresOptions { lanes: 1, ..PostgresOptions::new(database.url()) }).await;
    let leases = held(&*store, 3).await;
    let (first, second, free) = (&leases[0], &leases[1], &leases[2]);
    let mut holder = stuck(&database, lock(&[first, second])).await;
    // The first fills the only lane and waits, so the other two gather into one batch behind it.
    let (first_answer, second_answer, free_answer) =
        tokio::join!(begin(&*store, first, 0), begin(&*store, second, 0), begin(&*store, free, 0));
    assert!(free_answer.is_ok(), "{free_answer:?}");
    assert!(is_unavailable(&first_answer), "{first_answer:?}");
    assert!(is_unavailable(&second_answer), "{second_answer:?}");
    holder.execute("ROLLBACK").await.unwrap();
    for lease in [first, second] {
        begin(&*store, lease, 0).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_of_a_run_that_is_stuck_leaves_the_other_leases_alone() {
    let database = database().await;
    let store = connect(PostgresOptions::new(database.url())).await;
    let leases = held(&*store, 3).await;
    let mut holder = stuck(&database, lock(&[&leases[1]])).await;
    let gone = Lease { run_id: start("q").run_id(), ..leases[0].clone() };
    let batch = || leases.iter().chain([&gone]).map(beat).collect::<Vec<_>>();
    let answers = store.heartbeat(batch()).await.unwrap();
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert!(is_unavailable(&answers[1]), "{answers:?}");
    assert!(matches!(answers[3], Err(StoreError::RunNotFound { .. })), "{answers:?}");
    holder.execute("ROLLBACK").await.unwrap();
    let answers = store.heartbeat(batch()).await.unwrap();
    assert!(answers[..3].iter().all(Result::is_ok), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_heartbeats_go_in_pieces_and_each_gets_its_answer() {
    let database = database().await;
    let store = connect(PostgresOptions::new(database.url())).await;
    let leases = held(&*store, 1000).await;
    let answers = store.heartbeat(leases.iter().map(beat).collect()).await.unwrap();
    for (lease, answer) in leases.iter().zip(answers) {
        assert_eq!(&answer.unwrap().lease, lease);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_answer_though_an_overdue_run_and_the_sweep_of_another_server_are_stuck() {
    let database = database().await;
    let clock = ManualClock::default();
    let store = connect(PostgresOptions {
        clock: Some(Arc::new(clock.clone())),
        max_connections: 4,
        acquire_timeout: Duration::from_secs(20),
        ..PostgresOptions::new(database.url())
    })
    .await;
    let overdue = held(&*store, 1).await.remove(0);
    clock.advance(Duration::from_hours(1));
    let sweep = "SELECT pg_advisory_xact_lock(hashtextextended('kagzi sweep public n', 0)); ".to_owned();
    let mut holder = stuck(&database, sweep + &lock(&[&overdue])).await;
    store.start((0..20).map(|_| start("q")).collect()).await.unwrap();
    // Far more of them than connections.
    let claims: Vec<_> = (0..20)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.claim(claim("q", 1)).await })
        })
        .collect();
    for claim in claims {
        assert_eq!(claim.await.unwrap().unwrap().len(), 1);
    }
    holder.execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reap_of_timed_out_steps_passes_by_a_run_that_is_stuck_and_treats_the_next() {
    let database = database().await;
    let clock = ManualClock::default();
    let options =
        PostgresOptions { clock: Some(Arc::new(clock.clone())), ..PostgresOptions::new(database.url()) };
    let store = connect(options).await;
    let leases = held(&*store, 3).await;
    for (n, lease) in (0..).zip(&leases) {
        let timeout = Some(Duration::from_millis(10 + u64::from(n)));
        let step = NextStep { timeout, ..NextStep::new(StepId::new(format!("step-{n}")).unwrap(), n) };
        let begin = BeginStep { lease: lease.clone(), step, operation: OperationId::generate() };
        store.begin_step(begin).await.unwrap();
    }
    clock.advance(Duration::from_secs(1));
    // The one that is overdue longest would be all of the share.
    let mut holder = stuck(&database, lock(&[&leases[0]])).await;
    for _ in 0..2 {
        assert_eq!(store.reap(1).await.unwrap().steps_timed_out, 1);
    }
    assert_eq!(store.reap(1).await.unwrap().total(), 0, "the stuck one is left to whoever holds it");
    holder.execute("ROLLBACK").await.unwrap();
    assert_eq!(store.reap(1).await.unwrap().steps_timed_out, 1);
}

fn change(change: QueueChange) -> SetQueueState {
    let queue = QueueName::new("q").unwrap();
    SetQueueState { namespace: namespace(), queue, change, operation: OperationId::generate() }
}

fn pause() -> SetQueueState {
    change(QueueChange::Pause { reason: String::new() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_stuck_holds_up_no_pause_and_keeps_what_it_took() {
    let database = database().await;
    let store = connect(PostgresOptions::new(database.url())).await;
    store.start((0..3).map(|_| start("q")).collect()).await.unwrap();
    let claiming = "SELECT kagzi_claim(0::smallint, NULL, 'n', '{q}', NULL, 'w', 60000000, 1, 1000,
                                       gen_random_uuid(), false, false)";
    let mut other = stuck(&database, claiming.to_owned()).await;
    assert_eq!(store.set_queue_state(pause()).await.unwrap(), QueueOutcome::Changed);
    other.execute("COMMIT").await.unwrap();
    assert!(store.claim(claim("q", 3)).await.unwrap().is_empty(), "whoever begins now takes nothing");
    let depths = store.queue_depths(&namespace()).await.unwrap();
    assert_eq!((depths[0].running, depths[0].pending), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_stuck_holds_up_no_claim_and_holds_once_it_has_committed() {
    let database = database().await;
    let store = connect(PostgresOptions::new(database.url())).await;
    store.start((0..3).map(|_| start("q")).collect()).await.unwrap();
    let pausing = "SELECT kagzi_queue_lock(0::smallint, NULL, 'n', 'q');
                   UPDATE queues SET state = 'PAUSED', paused_at = clock_timestamp(), reason = ''";
    let mut other = stuck(&database, pausing.to_owned()).await;
    assert_eq!(store.claim(claim("q", 1)).await.unwrap().len(), 1);
    let waited = store.set_queue_state(change(QueueChange::Resume)).await;
    assert!(is_unavailable(&waited), "changes of one queue come one after the other: {waited:?}");
    other.execute("COMMIT").await.unwrap();
    assert!(store.claim(claim("q", 1)).await.unwrap().is_empty());
    assert_eq!(store.set_queue_state(change(QueueChange::Resume)).await.unwrap(), QueueOutcome::Changed);
    assert_eq!(store.claim(claim("q", 1)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_tells_no_steps_of_a_run_whose_lease_was_lost_before_they_were_read() {
    let database = database().await;
    let store = connect(PostgresOptions {
        lock_timeout: Duration::from_mins(1),
        ..PostgresOptions::new(database.url())
    })
    .await;
    let leases = held(&*store, 2).await;
    for lease in &leases {
        begin(&*store, lease, 0).await.unwrap();
        store.release(ReleaseRun { lease: lease.clone(), operation: OperationId::generate() }).await.unwrap();
    }
    // The runs are taken, and their steps cannot be read yet.
    let mut holder = stuck(&database, "LOCK TABLE steps IN ACCESS EXCLUSIVE MODE".to_owned()).await;
    let claiming = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.claim(claim("q", 2)).await })
    };
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'steps'::regclass AND NOT granted";
    while !holder.fetch_one(waits).await.unwrap().get::<bool, _>(0) {
        tokio::task::yield_now().await;
    }
    let lost = leases[0].run_id;
    let next =
        format!("UPDATE runs SET fencing_token = fencing_token + 1 WHERE run_id = '{}'", lost.as_uuid());
    holder.execute(AssertSqlSafe(next)).await.unwrap();
    holder.execute("COMMIT").await.unwrap();
    let claimed = claiming.await.unwrap().unwrap();
    let told: Vec<_> = claimed
        .iter()
        .map(|claimed| (claimed.run.run_id, claimed.steps.len(), claimed.more_steps.is_some()))
        .collect();
    assert_eq!(told, [(lost, 0, true), (leases[1].run_id, 1, false)]);
}
