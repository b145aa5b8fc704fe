//! How the store uses its connections.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Store as _, StoreError};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use kagzi_testkit::{Proxy, behind_proxy};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use support::{database, start};

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
