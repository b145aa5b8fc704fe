//! Several servers in one URL: which of them the store works with, and when it leaves one.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

mod support;

use std::time::Duration;

use kagzi_core::{Store, StoreError, Topic};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use kagzi_testkit::{ClusterOptions, PostgresCluster, free_port};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use support::start;

/// Far above what anything here takes: only what never ends makes a test fail.
const NEVER: Duration = Duration::from_mins(1);

/// How many each store may open, beside those for LISTEN.
const CONNECTIONS: u32 = 4;

async fn cluster() -> PostgresCluster {
    PostgresCluster::start(small()).await.unwrap()
}

fn small() -> ClusterOptions {
    ClusterOptions { max_connections: 30, ..ClusterOptions::default() }
}

fn over(ports: &str, listen: Listen) -> PostgresOptions {
    let url = format!("postgres://postgres:secret@{ports}/postgres");
    PostgresOptions { max_connections: CONNECTIONS, listen, ..PostgresOptions::new(url) }
}

fn place(cluster: &PostgresCluster) -> String {
    format!("127.0.0.1:{}", cluster.port())
}

async fn number(cluster: &PostgresCluster, sql: &'static str) -> i64 {
    let mut connection = PgConnection::connect(&cluster.url()).await.unwrap();
    connection.fetch_one(sql).await.unwrap().get(0)
}

const RUNS: &str = "SELECT count(*) FROM runs";
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kagzi'";

/// Asks until the answer is this one.
async fn until(cluster: &PostgresCluster, sql: &'static str, wanted: i64) {
    let asking = async { while number(cluster, sql).await != wanted {} };
    tokio::time::timeout(NEVER, asking).await.expect("it comes to that");
}

/// Starts runs until one is acknowledged.
async fn until_started(store: &PostgresStore) {
    let starting = async {
        while let Err(error) = store.start(vec![start("q")]).await {
            assert!(error.is_retryable(), "{error}");
        }
    };
    tokio::time::timeout(NEVER, starting).await.expect("a server is found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_hears_that_it_is_read_only_is_closed() {
    let cluster = cluster().await;
    let store = PostgresStore::connect(over(&place(&cluster), Listen::Off)).await.unwrap();
    store.start(vec![start("q")]).await.unwrap();
    cluster.set("default_transaction_read_only", "on").await.unwrap();
    // The setting reaches a session when it is idle next.
    let refused = tokio::time::timeout(NEVER, async {
        loop {
            if let Err(error) = store.start(vec![start("q")]).await {
                break error;
            }
        }
    });
    let error = refused.await.expect("the store hears of it");
    assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("it is read-only now"), "{error}");
    let that_wrote = "SELECT count(*) FROM pg_stat_activity
                      WHERE application_name = 'kagzi' AND query LIKE '%INSERT INTO runs%'";
    // Each that wrote before hears of it when it writes next.
    let closing = async {
        while number(&cluster, that_wrote).await > 0 {
            store.start(vec![start("q")]).await.unwrap_err();
        }
    };
    tokio::time::timeout(NEVER, closing).await.expect("each is closed");
    // Those that only read have not heard of it. A look whether the server takes writes closes one after the
    // other.
    store.next_due().await.unwrap();
    for _ in 0..CONNECTIONS {
        store.probe().await.unwrap_err();
    }
    until(&cluster, SESSIONS, 0).await;
    cluster.set("default_transaction_read_only", "off").await.unwrap();
    until_started(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_works_with_the_server_that_takes_writes_and_leaves_one_that_does_no_more() {
    let first = cluster().await;
    let mut second = first.standby("second", small()).await.unwrap();
    let both = format!("{},{}", place(&second), place(&first));
    let store = PostgresStore::connect(over(&both, Listen::On)).await.unwrap();
    let other = PostgresStore::connect(over(&both, Listen::On)).await.unwrap();
    store.start(vec![start("q")]).await.unwrap();
    assert_eq!(number(&first, RUNS).await, 1, "a standby is passed by, though it comes first");
    second.catch_up_with(&first).await.unwrap();
    assert_eq!(number(&second, RUNS).await, 1);
    assert_eq!(number(&second, SESSIONS).await, 0);

    first.set("default_transaction_read_only", "on").await.unwrap();
    second.promote().await.unwrap();
    until_started(&store).await;
    until_started(&other).await;
    until(&first, SESSIONS, 0).await;
    assert_eq!(number(&first, RUNS).await, 1);

    // The old one takes writes again, and everybody loses their connections.
    first.set("default_transaction_read_only", "off").await.unwrap();
    let before = number(&second, RUNS).await;
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'kagzi'";
    assert!(number(&second, end).await > 0);
    until_started(&store).await;
    until_started(&other).await;
    assert!(number(&second, RUNS).await >= before + 2);
    assert_eq!(number(&first, RUNS).await, 1, "nobody goes back to an earlier timeline");

    // Hints go by way of the new server.
    let topic = Topic::Queue(support::namespace(), kagzi_core::QueueName::new("hints").unwrap());
    let mut waiter = other.wake_hub().subscribe([topic]);
    let woken = async {
        let mut waiting = std::pin::pin!(waiter.wait());
        // A hint may be lost while connections come back.
        while futures::future::poll_immediate(&mut waiting).await.is_none() {
            store.start(vec![start("hints")]).await.ok();
        }
    };
    tokio::time::timeout(NEVER, woken).await.expect("it hears of a start");

    // Nor does anybody where the old one is all that is left.
    tokio::task::block_in_place(|| second.stop()).unwrap();
    let refused = async {
        loop {
            match store.start(vec![start("q")]).await {
                Err(error) if error.to_string().contains("this is an old primary") => break,
                Err(error) => assert!(error.is_retryable(), "{error}"),
                Ok(_) => panic!("it went back in time"),
            }
        }
    };
    tokio::time::timeout(NEVER, refused).await.expect("it says why");
    assert_eq!(number(&first, RUNS).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_server_will_do_the_error_says_why_of_each() {
    let first = cluster().await;
    let standby = first.standby("second", small()).await.unwrap();
    let nobody = format!("127.0.0.1:{}", free_port().unwrap());
    let names = format!("{nobody},{}", place(&standby));
    let error = PostgresStore::connect(over(&names, Listen::Off)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
    let text = error.to_string();
    let (refused, is_standby) =
        (format!("{nobody}: "), format!("{}: this server is a standby", place(&standby)));
    for part in [refused.as_str(), &is_standby, "none of the 2 servers", "promote a standby"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("secret"), "{text}");

    // One host is held to what the URL asks for as well.
    let url = format!("{}?target_session_attrs=primary", standby.url());
    let error = PostgresStore::connect(PostgresOptions::new(url)).await.unwrap_err();
    assert!(error.to_string().contains("this server is a standby"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_whether_writes_are_taken_waits_for_a_synchronous_standby_as_they_do() {
    let primary = cluster().await;
    let mut standby = primary.standby("second", small()).await.unwrap();
    primary.wait_for_standby("second").await.unwrap();
    let options =
        PostgresOptions { lock_timeout: Duration::from_millis(50), ..over(&place(&primary), Listen::Off) };
    let store = std::sync::Arc::new(PostgresStore::connect(options).await.unwrap());
    store.probe().await.unwrap();
    tokio::task::block_in_place(|| standby.stop()).unwrap();

    let looking = tokio::spawn({
        let store = std::sync::Arc::clone(&store);
        async move { store.probe().await }
    });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kagzi' AND wait_event = 'SyncRep'";
    until(&primary, waiting, 1).await;
    // Reads are answered, and whoever else looks does not come to wait for a commit of their own.
    store.next_due().await.unwrap();
    for _ in 0..3 {
        let error = store.probe().await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
    }
    assert_eq!(number(&primary, waiting).await, 1);
    assert!(!looking.is_finished());

    standby.restart().await.unwrap();
    tokio::time::timeout(NEVER, looking).await.expect("the commit is answered").unwrap().unwrap();
    store.probe().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_the_schema_hears_that_writes_are_taken() {
    let cluster = cluster().await;
    let owner = PostgresStore::connect(over(&place(&cluster), Listen::Off)).await.unwrap();
    let mut connection = PgConnection::connect(&cluster.url()).await.unwrap();
    connection
        .execute(
            "CREATE ROLE clerk LOGIN PASSWORD 'secret';
             GRANT SELECT, INSERT, UPDATE, DELETE ON runs, payloads, steps, operations, queues TO clerk;
             GRANT SELECT ON kagzi_schema TO clerk",
        )
        .await
        .unwrap();
    let url = format!("postgres://clerk:secret@{}/postgres", place(&cluster));
    let store = PostgresStore::connect(PostgresOptions { listen: Listen::Off, ..PostgresOptions::new(url) });
    let store = store.await.unwrap();
    store.start(vec![start("q")]).await.unwrap();
    store.probe().await.unwrap();
    owner.probe().await.unwrap();
}
