//! Schemas that one test has after another.
#![allow(clippy::unwrap_used, reason = "a test")]

use kagzi_testkit::{Schemas, TestSchema, postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

async fn rows(url: &str, table: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let count = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    let rows = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

#[tokio::test]
async fn a_schema_is_had_again_without_its_rows_and_not_before_its_sessions_have_ended() {
    let database = postgres().await.unwrap().fresh_database().await.unwrap();
    let schemas = Schemas::default();
    let TestSchema { name, url, fresh } = schemas.take(&database).await.unwrap();
    assert!(fresh);
    let mut session = PgConnection::connect(&url).await.unwrap();
    let script = format!(
        "CREATE SCHEMA {name};
         CREATE TABLE {name}.runs (id integer); INSERT INTO {name}.runs VALUES (1), (2);
         CREATE TABLE {name}.kagzi_schema (version integer); INSERT INTO {name}.kagzi_schema VALUES (7);"
    );
    session.execute(AssertSqlSafe(script)).await.unwrap();

    schemas.give_back(name.clone()).await;
    let other = schemas.take(&database).await.unwrap();
    assert!(other.fresh && other.name != name, "a session of the last holder is open: {other:?}");

    // A backend takes a moment to end after its client went away.
    session.close().await.unwrap();
    let again = loop {
        let taken = schemas.take(&database).await.unwrap();
        if !taken.fresh {
            break taken;
        }
    };
    assert_eq!(again.name, name);
    assert_eq!(rows(&database.url(), &format!("{name}.runs")).await, 0);
    assert_eq!(
        rows(&database.url(), &format!("{name}.kagzi_schema")).await,
        1,
        "what it was made with stays"
    );

    schemas.give_back(other.name).await;
    assert!(schemas.take(&database).await.unwrap().fresh, "nobody made that schema: it is not given out");
}
