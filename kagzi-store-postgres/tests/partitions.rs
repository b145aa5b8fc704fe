//! Claims, reaping and listings over several partitions, and what one that is away takes along.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    IdempotencyKey, ListRuns, ManualClock, PageRequest, RunFilter, RunId, StartAt, StartRun, Store,
    StoreError,
};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{Connection as _, Executor as _, PgConnection};
use support::{claim, database, namespace, start};

async fn open(database: &TestDatabase, partitions: u16, clock: &ManualClock) -> PostgresStore {
    let options = PostgresOptions {
        partitions: Some(partitions),
        listen: Listen::Off,
        clock: Some(Arc::new(clock.clone())),
        ..PostgresOptions::new(database.url())
    };
    PostgresStore::connect(options).await.unwrap()
}

#[tokio::test]
async fn those_who_wait_for_work_ask_about_four_times_a_second_together() {
    let (database, clock) = (database().await, ManualClock::default());
    let store = open(&database, 32, &clock).await;
    assert_eq!(store.wake_hub().longest_rest(), Duration::from_secs(8));
    store.close().await.unwrap();
    let other = support::database().await;
    let store = open(&other, 1, &clock).await;
    assert_eq!(store.wake_hub().longest_rest(), Duration::ZERO, "one partition is looked at as ever");
}

/// A start whose run falls into a partition of seven.
fn start_in(partition: u16, number: u32) -> StartRun {
    (0..100_000)
        .map(|salt| {
            let key = IdempotencyKey::new(format!("{number}-{salt}")).unwrap();
            StartRun { idempotency_key: Some(key), ..start("q") }
        })
        .find(|start| start.run_id().partition(7) == partition)
        .unwrap()
}

#[tokio::test]
async fn a_listing_is_in_order_over_all_pages_also_where_one_partition_has_nearly_all() {
    let (database, clock) = (database().await, ManualClock::default());
    let store = open(&database, 7, &clock).await;
    let mut started: Vec<RunId> = Vec::new();
    for number in 0..150 {
        clock.advance(Duration::from_millis(1));
        let partition = if number % 10 == 0 { u16::try_from(number / 10 % 7).unwrap() } else { 3 };
        started.push(store.start(vec![start_in(partition, number)]).await.unwrap()[0].run_id);
    }
    started.reverse();
    for limit in [1, 7, 50, 149, 150, 151] {
        let (mut listed, mut page) = (Vec::new(), PageRequest::first(limit));
        loop {
            let request = ListRuns { namespace: namespace(), filter: RunFilter::default(), page };
            let read = store.list_runs(&request).await.unwrap();
            assert!(read.items.len() <= limit as usize);
            listed.extend(read.items.iter().map(|run| run.run_id));
            let Some(next) = read.next else { break };
            page = PageRequest { limit, cursor: Some(next) };
        }
        assert_eq!(listed, started, "pages of {limit}");
    }
    assert_eq!(store.count_runs(&namespace(), &RunFilter::default()).await.unwrap(), 150);
}

/// Lets the node of partition 2 be away, as Citus tells it, for those who look, reap or write steps there.
const AWAY: &str = "
    CREATE FUNCTION away(p_partition smallint) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF p_partition = 2 AND to_regclass('node_is_away') IS NOT NULL THEN
            RAISE EXCEPTION 'connection to the remote node n2:5432 failed with the following error: refused'
                USING ERRCODE = '08006';
        END IF;
    END $$;
    CREATE TABLE node_is_away ();
    ALTER FUNCTION kagzi_look RENAME TO real_look;
    CREATE FUNCTION kagzi_look(p_partition smallint, timestamptz, text, text[], text[], text, integer, uuid, boolean)
    RETURNS TABLE (told text, claim_rank bigint, run_id uuid, input_bytes integer) LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM away(p_partition);
        RETURN QUERY SELECT * FROM real_look($1, $2, $3, $4, $5, $6, $7, $8, $9);
    END $$;
    ALTER FUNCTION kagzi_moments_due RENAME TO real_moments_due;
    CREATE FUNCTION kagzi_moments_due(p_partition smallint, timestamptz, bigint)
    RETURNS TABLE (attention_at timestamptz, is_attempt boolean) LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM away(p_partition);
        RETURN QUERY SELECT * FROM real_moments_due($1, $2, $3);
    END $$;
    ALTER FUNCTION kagzi_heartbeat RENAME TO real_heartbeat;
    CREATE FUNCTION kagzi_heartbeat(p_partition smallint, timestamptz, uuid[], text[], text[], bigint[], bigint[])
    RETURNS SETOF timestamptz LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM away(p_partition);
        RETURN QUERY SELECT * FROM real_heartbeat($1, $2, $3, $4, $5, $6, $7);
    END $$;
";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_takes_its_partitions_along_and_no_others() {
    let (database, clock) = (database().await, ManualClock::default());
    let store = open(&database, 7, &clock).await;
    let second = Duration::from_secs(1);
    store.start((0..7).map(|partition| start_in(partition, 0)).collect()).await.unwrap();
    let sleepers = (0..7).map(|partition| {
        let start = start_in(partition, 1);
        StartRun { start_at: StartAt::After(second), ..start }
    });
    store.start(sleepers.collect()).await.unwrap();
    let held = store.claim(claim("q", 7)).await.unwrap();
    assert_eq!(held.len(), 7);

    let mut node = PgConnection::connect(&database.url()).await.unwrap();
    node.execute(AWAY).await.unwrap();
    clock.advance(second);
    let reaped = store.reap(100).await.unwrap();
    assert_eq!(reaped.total(), 6, "the sleepers of the other partitions wake");
    let claimed = store.claim(claim("q", 100)).await.unwrap();
    assert_eq!(claimed.len(), 6, "and are handed out");
    assert!(claimed.iter().all(|one| one.run.run_id.partition(7) != 2));

    let beats = held.iter().map(|one| support::beat(&one.lease.lease)).collect();
    for (held, beat) in held.iter().zip(store.heartbeat(beats).await.unwrap()) {
        match beat {
            Ok(_) => assert_ne!(held.run.run_id.partition(7), 2),
            Err(error) => {
                assert_eq!(held.run.run_id.partition(7), 2);
                let told = error.to_string();
                assert!(
                    matches!(error, StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }),
                    "{told}"
                );
                assert!(told.contains("n2:5432"), "{told}");
            }
        }
    }
    store.probe().await.unwrap();

    node.execute("DROP TABLE node_is_away").await.unwrap();
    // Those who can do without it leave it alone for a second.
    let back = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let claimed = store.claim(claim("q", 100)).await.unwrap();
            if !claimed.is_empty() {
                break claimed;
            }
            tokio::task::yield_now().await;
        }
    });
    let back = back.await.unwrap();
    assert_eq!(back.iter().map(|one| one.run.run_id.partition(7)).collect::<Vec<_>>(), [2]);
}
