//! How the store uses its connections.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{ErrorScope, Store as _, StoreError};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use kagzi_testkit::{Proxy, TestDatabase, behind_proxy};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use support::{database, namespace, start};

async fn behind(url: &str) -> (Proxy, Arc<PostgresStore>) {
    let (link, url) = behind_proxy(url).await.unwrap();
    let options = PostgresOptions { max_connections: 4, listen: Listen::Off, ..PostgresOptions::new(url) };
    (link, Arc::new(PostgresStore::connect(options).await.unwrap()))
}

/// Until the server has so many sessions of others in the database: one ends a moment after its client left.
async fn sessions(watcher: &mut PgConnection, wanted: i64) {
    let seen = async {
        loop {
            let row = watcher
                .fetch_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
                )
                .await
                .unwrap();
            if row.get::<i64, _>(0) == wanted {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), seen).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_one_round_trip() {
    const STATEMENTS: u64 = 200;
    let database = database().await;
    let (link, store) = behind(&database.url()).await;
    // Connected and prepared.
    store.start(vec![start("q")]).await.unwrap();
    let (before, connections) = (link.requests(), link.connections());
    for _ in 0..STATEMENTS {
        store.start(vec![start("q")]).await.unwrap();
    }
    let requests = link.requests() - before;
    assert_eq!(link.connections(), connections, "the connection is kept");
    // A busy machine may see a request in two pieces.
    assert!(requests < STATEMENTS * 5 / 4, "{requests} requests for {STATEMENTS} statements");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_told_and_closing_closes_all_of_it_once_all_are_answered() {
    let database = database().await;
    let (_link, store) = behind(&database.url()).await;
    let starts = |store: &Arc<PostgresStore>| {
        let starts = (0..64).map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.start(vec![start("q")]).await })
        });
        starts.collect::<Vec<_>>()
    };
    for answer in futures::future::join_all(starts(&store)).await {
        answer.unwrap().unwrap();
    }
    let told = store.stats().connections.unwrap();
    let mut watcher = PgConnection::connect(&database.url()).await.unwrap();
    assert_eq!((told.in_use, told.limit), (0, 4));
    sessions(&mut watcher, i64::from(told.idle)).await;
    let last = starts(&store);
    tokio::task::yield_now().await;
    store.close().await.unwrap();
    for answer in futures::future::join_all(last).await {
        // Begun before the end or after it, and in no case left alone.
        let answer = answer.unwrap();
        assert!(matches!(answer, Ok(_) | Err(StoreError::Unavailable { .. })), "{answer:?}");
    }
    let told = store.stats().connections.unwrap();
    assert_eq!((told.idle, told.in_use), (0, 0));
    sessions(&mut watcher, 0).await;
    assert!(matches!(store.now().await, Err(StoreError::Unavailable { .. })));
}

/// Whoever asks how full queues are waits until the session that this gives ends its transaction.
async fn slow_depths(database: &TestDatabase) -> PgConnection {
    const SLOW: &str = "CREATE OR REPLACE FUNCTION kagzi_queue_depths(p_partition smallint, p_namespace text)
        RETURNS TABLE (queue text, state text, runs bigint, oldest_due_at timestamptz) LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN; END $$";
    let mut holder = PgConnection::connect(&database.url()).await.unwrap();
    holder.execute(SLOW).await.unwrap();
    holder.execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await.unwrap();
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_do_not_end_leave_connections_to_writes_and_to_who_asks_whether_all_is_well() {
    let database = database().await;
    // Two connections, too: the last one is never a reader's.
    for max_connections in [2, 16] {
        let long = Duration::from_hours(1);
        let options = PostgresOptions {
            max_connections,
            listen: Listen::Off,
            statement_timeout: long,
            lock_timeout: long,
            ..PostgresOptions::new(database.url())
        };
        let scans = options.scans_at_once();
        let store = Arc::new(PostgresStore::connect(options).await.unwrap());
        let mut holder = slow_depths(&database).await;
        let slow = (0..3 * max_connections).map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.queue_depths(&namespace()).await })
        });
        let slow: Vec<_> = slow.collect();
        while store.stats().connections.unwrap().in_use < scans {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            let started = store.start(vec![start("q")]).await.unwrap();
            store.get_run(&namespace(), started[0].run_id).await.unwrap();
            store.probe().await.unwrap();
            store.next_due().await.unwrap();
        }
        assert_eq!(store.stats().connections.unwrap().in_use, scans);
        assert!(slow.iter().all(|one| !one.is_finished()));
        holder.execute("ROLLBACK").await.unwrap();
        for one in slow {
            one.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_take_too_long_or_wait_too_long_for_others_say_nothing_of_the_store() {
    let database = database().await;
    let options = PostgresOptions {
        statement_timeout: Duration::from_millis(300),
        lock_timeout: Duration::from_hours(1),
        listen: Listen::Off,
        ..PostgresOptions::new(database.url())
    };
    let store = PostgresStore::connect(options).await.unwrap();
    let _holder = slow_depths(&database).await;
    let about = namespace();
    let answers = futures::future::join_all((0..40).map(|_| store.queue_depths(&about))).await;
    let mut waited = 0;
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.scope(), Some(ErrorScope::Part), "{error}");
        waited += usize::from(error.to_string().contains("as may be"));
    }
    assert!((1..40).contains(&waited), "{waited} of them waited for others");
    store.start(vec![start("q")]).await.unwrap();
}
