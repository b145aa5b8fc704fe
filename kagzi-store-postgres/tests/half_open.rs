//! Links to the server that die in silence: nothing is sent back, and nothing is closed.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Store as _, StoreError};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use kagzi_testkit::{Proxy, behind_proxy};

use support::{begin, claim, database, held, namespace, start};

/// Far longer than anything here takes: only a wait without end is caught by it.
const LONG: Duration = Duration::from_mins(1);

async fn behind(url: &str) -> (Proxy, Arc<PostgresStore>) {
    let (link, url) = behind_proxy(url).await.unwrap();
    let options = PostgresOptions {
        max_connections: 4,
        lanes: 2,
        // Short, since each dead link costs twice that; but a busy machine takes its time for a statement, too.
        statement_timeout: Duration::from_millis(600),
        acquire_timeout: Duration::from_secs(10),
        listen: Listen::Off,
        ..PostgresOptions::new(url)
    };
    (link, Arc::new(PostgresStore::connect(options).await.unwrap()))
}

/// Whether it may be sent again.
fn may_be_sent_again<T>(answer: &Result<T, StoreError>) -> bool {
    answer.as_ref().err().is_none_or(StoreError::is_retryable)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_over_a_dead_link_is_answered_and_what_is_asked_next_goes_another_way() {
    let database = database().await;
    let (link, store) = behind(&database.url()).await;
    let leases = held(&*store, 8).await;
    for round in 0..3 {
        link.half_open();
        // Every connection is found dead by somebody: by reads, batches, claims and starts.
        let asked = leases.iter().map(|lease| {
            let (store, lease) = (Arc::clone(&store), lease.clone());
            tokio::spawn(async move {
                assert!(may_be_sent_again(&store.get_run(&namespace(), lease.run_id).await));
                assert!(may_be_sent_again(&begin(&*store, &lease, round).await));
                assert!(may_be_sent_again(&store.claim(claim("empty", 1)).await));
                assert!(may_be_sent_again(&store.start(vec![start("other")]).await));
            })
        });
        for asked in asked.collect::<Vec<_>>() {
            tokio::time::timeout(LONG, asked).await.expect("nobody waits without end").unwrap();
        }
        for lease in &leases {
            begin(&*store, lease, 10 + round).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_go_away_while_a_link_is_dead_leave_no_connection_behind() {
    let database = database().await;
    let (link, store) = behind(&database.url()).await;
    let leases = held(&*store, 8).await;
    link.half_open();
    for lease in leases.iter().chain(&leases) {
        let (store, lease) = (Arc::clone(&store), lease.clone());
        let asked = tokio::spawn(async move { store.claim(claim("q", 1)).await.map(|_| lease) });
        tokio::task::yield_now().await;
        asked.abort();
    }
    for lease in &leases {
        let answered = async {
            while let Err(error) = begin(&*store, lease, 0).await {
                assert!(error.is_retryable(), "{error}");
            }
        };
        tokio::time::timeout(LONG, answered).await.expect("the connections come back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_database_is_silent_closes_all_the_same() {
    let database = database().await;
    let (link, url) = behind_proxy(&database.url()).await.unwrap();
    // It listens, and nothing of its own ends a wait within the time of this test.
    let options = PostgresOptions { statement_timeout: 10 * LONG, ..PostgresOptions::new(url) };
    let store = PostgresStore::connect(options).await.unwrap();
    held(&store, 8).await;
    link.black_hole();
    tokio::time::timeout(LONG, store.close()).await.expect("a goodbye is not waited for").unwrap();
    assert_eq!(store.stats().connections.unwrap().idle, 0);
    assert!(matches!(store.now().await, Err(StoreError::Unavailable { .. })));
}
