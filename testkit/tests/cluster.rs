//! The promises of the test kit itself: data survive a kill, and nothing outlives its owner.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use kagzi_testkit::{ClusterOptions, PostgresCluster, PostgresServer, postgres};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

async fn one(url: &str, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = connection.fetch_one(sql).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn tests_share_a_server_and_each_has_a_database_of_its_own() {
    let server = PostgresServer::at(postgres().await.unwrap().url().to_owned()).await.unwrap();
    let (first, second) = (server.fresh_database().await.unwrap(), server.fresh_database().await.unwrap());
    assert_eq!(one(&first.url(), "SELECT current_database()::text").await, first.name());
    assert_ne!(first.name(), second.name());
    let gone = first.url();
    drop(first);
    assert!(
        PgConnection::connect(&gone).await.is_err(),
        "others use the server too, so it is dropped with its handle"
    );
    assert_eq!(one(&second.url(), "SHOW fsync").await, "on");
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_nothing_survives_the_handle() {
    let mut cluster =
        PostgresCluster::start(ClusterOptions { max_connections: 20, ..ClusterOptions::default() })
            .await
            .unwrap();
    let url = cluster.url();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("CREATE TABLE kept AS SELECT 'yes'::text AS answer").await.unwrap();
    cluster.kill().unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    cluster.restart().await.unwrap();
    assert_eq!(one(&url, "SELECT answer FROM kept").await, "yes");
    assert_eq!(one(&url, "SHOW max_connections").await, "20");
    cluster.stop().unwrap();
    cluster.restart().await.unwrap();

    let (directory, pid) = (cluster.socket_directory().to_owned(), cluster.postmaster_pid().unwrap());
    drop(cluster);
    assert!(!directory.exists());
    assert!(!std::path::Path::new("/proc").join(pid).exists());
}

#[tokio::test]
async fn a_standby_has_what_was_answered_and_takes_over_and_one_that_is_waited_for_holds_answers_back() {
    let small = ClusterOptions { max_connections: 20, ..ClusterOptions::default() };
    let mut primary = PostgresCluster::start(small.clone()).await.unwrap();
    let standby = primary.standby("second", small).await.unwrap();
    primary.wait_for_standby("second").await.unwrap();
    let mut connection = PgConnection::connect(&primary.url()).await.unwrap();
    connection.execute("CREATE TABLE kept AS SELECT 'yes'::text AS answer").await.unwrap();
    standby.stop_following().await.unwrap();
    let held_back = tokio::spawn(async move { connection.execute("UPDATE kept SET answer = 'no'").await });
    let waits = "SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while one(&primary.url(), waits).await == "false" {}
    assert!(!held_back.is_finished(), "no answer before the standby has it");
    primary.kill().unwrap();
    held_back.await.unwrap().unwrap_err();
    assert_eq!(one(&standby.url(), "SELECT pg_is_in_recovery()::text").await, "true");
    standby.promote().await.unwrap();
    assert_eq!(one(&standby.url(), "SELECT pg_is_in_recovery()::text").await, "false");
    assert_eq!(one(&standby.url(), "UPDATE kept SET answer = answer RETURNING answer").await, "yes");
}
