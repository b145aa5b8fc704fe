//! What a schema of several partitions does when one of them makes trouble.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    Claim, ClaimedRun, DeleteFinished, Heartbeat, ManualClock, MoreDue, Namespace, OperationId, Payload,
    Priority, QueueName, RunId, StartRun, Store, StoreError, WorkerId, WorkflowType,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{TestDatabase, postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

const MINUTE: Duration = Duration::from_mins(1);

/// Two partitions, a clock to turn, and a connection to make trouble with.
struct World {
    store: PostgresStore,
    clock: ManualClock,
    admin: PgConnection,
    _database: TestDatabase,
}

impl World {
    async fn new() -> Self {
        let database = postgres().await.unwrap().fresh_database().await.unwrap();
        let clock = ManualClock::default();
        let options = PostgresOptions {
            partitions: Some(2),
            clock: Some(Arc::new(clock.clone())),
            ..PostgresOptions::new(database.url())
        };
        let store = PostgresStore::connect(options).await.unwrap();
        let admin = PgConnection::connect(&database.url()).await.unwrap();
        Self { store, clock, admin, _database: database }
    }

    /// Starts a run in this partition.
    async fn start_in(&self, partition: u16, priority: i64) -> RunId {
        let start = std::iter::repeat_with(|| StartRun {
            priority: Priority::new(priority).unwrap(),
            ..StartRun::new(namespace(), queue(), WorkflowType::new("w").unwrap(), Payload::json("1"))
        });
        let start = start.into_iter().find(|start| start.run_id().partition(2) == partition).unwrap();
        self.store.start(vec![start]).await.unwrap()[0].run_id
    }

    async fn claim(&self, limit: u32) -> Vec<ClaimedRun> {
        claim(&self.store, limit).await
    }

    /// From now on this kind of write fails in these partitions.
    async fn trouble(&mut self, event: &str, partitions: &str) {
        let trigger = format!(
            "CREATE OR REPLACE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF OLD.partition = ANY (ARRAY[{partitions}]) THEN RAISE EXCEPTION 'trouble'; END IF;
                 RETURN COALESCE(NEW, OLD);
             END $$;
             CREATE OR REPLACE TRIGGER trouble BEFORE {event} ON runs FOR EACH ROW EXECUTE FUNCTION trouble();"
        );
        self.admin.execute(AssertSqlSafe(trigger)).await.unwrap();
    }
}

async fn claim(store: &PostgresStore, limit: u32) -> Vec<ClaimedRun> {
    let claim = Claim {
        namespace: namespace(),
        queues: vec![queue()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: MINUTE,
        limit,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    store.claim(claim).await.unwrap()
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn queue() -> QueueName {
    QueueName::new("q").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reap_tells_what_it_did_although_one_partition_failed() {
    let mut world = World::new().await;
    for partition in [0, 0, 1] {
        world.start_in(partition, 0).await;
    }
    assert_eq!(world.claim(10).await.len(), 3);
    world.clock.advance(MINUTE);
    for (troubled, treated) in [("0", 1), ("1", 2)] {
        world.trouble("UPDATE", troubled).await;
        let reaped = world.store.reap(10).await.unwrap();
        assert_eq!((reaped.leases_expired, reaped.more), (treated, MoreDue::Maybe), "{troubled}");
        world.trouble("UPDATE", "-1").await;
        assert_eq!(world.store.reap(10).await.unwrap().leases_expired, 3 - treated);
        assert_eq!(world.claim(10).await.len(), 3);
        world.clock.advance(MINUTE);
    }
    world.trouble("UPDATE", "0, 1").await;
    let error = world.store.reap(10).await.unwrap_err();
    assert!(matches!(error, StoreError::Internal { .. }), "nothing was done: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_answers_for_each_lease_although_one_partition_failed() {
    let mut world = World::new().await;
    for partition in [0, 1] {
        world.start_in(partition, 0).await;
    }
    let claimed = world.claim(10).await;
    world.clock.advance(MINUTE / 2);
    let beats: Vec<Heartbeat> = claimed
        .iter()
        .map(|run| Heartbeat { lease: run.lease.lease.clone(), lease_length: MINUTE })
        .collect();
    for troubled in [0, 1] {
        world.trouble("UPDATE", &troubled.to_string()).await;
        let verdicts = world.store.heartbeat(beats.clone()).await.unwrap();
        for (beat, verdict) in beats.iter().zip(verdicts) {
            if beat.lease.run_id.partition(2) == troubled {
                assert!(matches!(verdict, Err(StoreError::Internal { .. })), "{verdict:?}");
            } else {
                assert_eq!(verdict.unwrap().lease, beat.lease);
            }
        }
    }
    world.trouble("UPDATE", "0, 1").await;
    world.store.heartbeat(beats).await.expect_err("nothing was extended");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_tells_what_it_deleted_although_one_partition_failed() {
    let mut world = World::new().await;
    for partition in [0, 1, 1] {
        let run_id = world.start_in(partition, 0).await;
        let cancel = kagzi_core::CancelRun {
            namespace: namespace(),
            run_id,
            reason: String::new(),
            operation: OperationId::generate(),
        };
        world.store.cancel(cancel).await.unwrap();
    }
    world.clock.advance(MINUTE);
    let before = world.store.now().await.unwrap();
    let delete = DeleteFinished { namespace: None, states: Vec::new(), before, limit: 10 };
    world.trouble("DELETE", "0").await;
    assert_eq!(world.store.delete_finished(&delete).await.unwrap(), 2);
    world.store.delete_finished(&delete).await.expect_err("what is left cannot be deleted");
    world.trouble("DELETE", "-1").await;
    assert_eq!(world.store.delete_finished(&delete).await.unwrap(), 1);
    let left = world.admin.fetch_one("SELECT count(*) FROM payloads").await.unwrap();
    assert_eq!(left.get::<i64, _>(0), 0, "their payloads have gone with them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_finds_what_is_free_behind_what_others_hold_in_another_partition() {
    let mut world = World::new().await;
    let urgent = world.start_in(0, 5).await;
    let ordinary = world.start_in(1, 0).await;
    let mut other = world.admin.begin().await.unwrap();
    other.execute("SELECT FROM runs WHERE partition = 0 FOR UPDATE").await.unwrap();
    let taken = claim(&world.store, 1).await;
    assert_eq!(taken[0].run.run_id, ordinary);
    other.rollback().await.unwrap();
    assert_eq!(world.claim(1).await[0].run.run_id, urgent);
}
