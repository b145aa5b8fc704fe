//! Behind a real PgBouncer that pools by the transaction.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use kagzi_core::{Payload, Store as _, StoreError};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{PgBouncer, TestDatabase, postgres};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use support::{database, namespace, start};

/// With one server connection, which all clients share.
async fn pooled() -> (TestDatabase, PgBouncer) {
    (database().await, PgBouncer::start(postgres().await.unwrap(), 1).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_the_error_says_which_one_to_add() {
    let (database, pooler) = pooled().await;
    let error = PostgresStore::connect(PostgresOptions::new(pooler.url(&database))).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("add `?pooler=transaction` to the URL"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_share_one_server_connection_and_leave_no_setting_on_it() {
    let (database, pooler) = pooled().await;
    let url = format!("{}?pooler=transaction&schema=behind", pooler.url(&database));
    let connect = || PostgresStore::connect(PostgresOptions::new(&url));
    let (one, two) = (connect().await.unwrap(), connect().await.unwrap());
    let mut ids = Vec::new();
    for store in [&one, &two, &one, &two] {
        ids.push(store.start(vec![start("q")]).await.unwrap()[0].run_id);
    }
    for id in ids {
        assert_eq!(one.get_run(&namespace(), id).await.unwrap().input, Payload::json("1"));
    }
    let another: PgConnectOptions = pooler.url(&database).parse().unwrap();
    let mut another = PgConnection::connect_with(&another.extra_float_digits(None)).await.unwrap();
    for (setting, default) in [
        ("enable_seqscan", "on"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("search_path", "\"$user\", public"),
    ] {
        let show = sqlx::AssertSqlSafe(format!("SHOW {setting}"));
        let value: String = another.fetch_one(show).await.unwrap().get(0);
        assert_eq!(value, default, "{setting}");
    }
}
