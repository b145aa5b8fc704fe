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
