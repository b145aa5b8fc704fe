//! What becomes of a schema on a real Citus cluster when something is missing, or ends half way. Each test starts a cluster
//! of its own, so they are played where the extension is installed: `cargo xtask cluster`.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::time::Duration;

use kagzi_core::{SchemaPolicy, Store, StoreError, Verdict};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::CitusCluster;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::{claim, start};

fn options(cluster: &CitusCluster, schema: &str, partitions: u16) -> PostgresOptions {
    let (partitions, schema) = (Some(partitions), Some(schema.to_owned()));
    PostgresOptions { partitions, schema, ..PostgresOptions::new(cluster.url()) }
}

async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    connection.fetch_one(AssertSqlSafe(sql.to_owned())).await.unwrap().get(0)
}

/// Starts and takes a run in each of some partitions.
async fn works(store: &PostgresStore) {
    store.start((0..30).map(|_| start("q")).collect()).await.unwrap();
    assert_eq!(store.claim(claim("q", 30)).await.unwrap().len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a Citus cluster: `cargo xtask cluster`"]
async fn a_migration_that_is_killed_at_any_step_is_taken_up_by_the_next_start() {
    let cluster = CitusCluster::start(2).await.unwrap();
    let mut watch = PgConnection::connect(&cluster.url()).await.unwrap();
    let mut found_unspread = 0;
    for (round, steps) in [0_i64, 1, 2, 4, 5, 6, 10, 15].into_iter().enumerate() {
        let schema = format!("killed_{round}");
        let opener = tokio::spawn(PostgresStore::connect(options(&cluster, &schema, 7)));
        let done = format!(
            "SELECT (SELECT count(*) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid
                     WHERE c.relnamespace = to_regnamespace('{schema}'))
                  + (SELECT count(*) FROM pg_dist_object o JOIN pg_proc p ON p.oid = o.objid
                     WHERE o.classid = 'pg_proc'::regclass AND o.distribution_argument_index IS NOT NULL
                       AND p.pronamespace = to_regnamespace('{schema}'))
             WHERE to_regclass('{schema}.kagzi_schema') IS NOT NULL"
        );
        tokio::time::timeout(Duration::from_mins(2), async {
            while !opener.is_finished() {
                let row = watch.fetch_optional(AssertSqlSafe(done.clone())).await.unwrap();
                if row.is_some_and(|row| row.get::<i64, _>(0) >= steps) {
                    break;
                }
            }
        })
        .await
        .unwrap();
        watch
            .execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                 WHERE application_name = 'kagzi' AND pid <> pg_backend_pid()",
            )
            .await
            .unwrap();
        // It may have been quicker, or be killed while it committed a step.
        if let Err(error) = opener.await.unwrap() {
            assert!(error.is_retryable(), "{error}");
        }
        let mut looking = options(&cluster, &schema, 7);
        looking.schema_policy = SchemaPolicy::Require;
        if let Err(error) = PostgresStore::connect(looking.clone()).await {
            assert!(error.to_string().contains("kagzi migrate"), "{error}");
            found_unspread += 1;
        }
        works(&PostgresStore::connect(options(&cluster, &schema, 7)).await.unwrap()).await;
        PostgresStore::connect(looking).await.unwrap();
    }
    assert!(found_unspread >= 3, "only {found_unspread} migrations were killed before their end");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a Citus cluster: `cargo xtask cluster`"]
async fn a_node_that_is_gone_is_told_by_its_address_and_nothing_is_half_done() {
    let mut cluster = CitusCluster::start(2).await.unwrap();
    works(&PostgresStore::connect(options(&cluster, "before", 7)).await.unwrap()).await;

    let port = cluster.workers()[1].port();
    tokio::task::block_in_place(|| cluster.workers()[1].kill()).unwrap();
    let error = PostgresStore::connect(options(&cluster, "meanwhile", 7)).await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{told}");
    assert!(
        told.contains("a node of the cluster cannot be reached") && told.contains(&format!(":{port}")),
        "{told}"
    );
    // What is spread already is opened, for the partitions that are there.
    let store = PostgresStore::connect(options(&cluster, "before", 7)).await.unwrap();
    store.probe().await.unwrap();

    cluster.workers()[1].restart().await.unwrap();
    works(&PostgresStore::connect(options(&cluster, "meanwhile", 7)).await.unwrap()).await;
    let mut connection = PgConnection::connect(&cluster.url()).await.unwrap();
    let spread = "SELECT count(*) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid
                  WHERE c.relnamespace = to_regnamespace('meanwhile')";
    assert_eq!(count(&mut connection, spread).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a Citus cluster: `cargo xtask cluster`"]
async fn another_number_of_partitions_later_is_refused_with_both() {
    let cluster = CitusCluster::start(1).await.unwrap();
    works(&PostgresStore::connect(options(&cluster, "fixed", 7)).await.unwrap()).await;
    let error = PostgresStore::connect(options(&cluster, "fixed", 8)).await.unwrap_err().to_string();
    assert!(error.contains("partitions: expected 7") && error.contains("got 8"), "{error}");
    // One partition has nothing to spread: it stays on the coordinator.
    works(&PostgresStore::connect(options(&cluster, "single", 1)).await.unwrap()).await;
    let mut connection = PgConnection::connect(&cluster.url()).await.unwrap();
    let spread = "SELECT count(*) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid
                  WHERE c.relnamespace = to_regnamespace('single')";
    assert_eq!(count(&mut connection, spread).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a Citus cluster: `cargo xtask cluster`"]
async fn a_node_that_answers_before_a_commit_is_durable_is_refused_by_its_address() {
    let mut cluster = CitusCluster::start(2).await.unwrap();
    let (url, port) = (cluster.workers()[1].url(), cluster.workers()[1].port());
    let mut node = PgConnection::connect(&url).await.unwrap();
    // On this node alone.
    node.execute("SET citus.enable_ddl_propagation = off").await.unwrap();
    let seen = "SELECT count(*) FROM run_command_on_workers('SHOW synchronous_commit') WHERE result = 'off'";
    let mut coordinator = PgConnection::connect(&cluster.url()).await.unwrap();

    let mut set = async |what: &str, careless: i64| {
        node.execute(AssertSqlSafe(format!("ALTER DATABASE postgres {what}"))).await.unwrap();
        assert_eq!(count(&mut coordinator, seen).await, careless);
    };

    set("SET synchronous_commit = off", 1).await;
    let told = PostgresStore::connect(options(&cluster, "careful", 7)).await.unwrap_err().to_string();
    assert!(told.contains("synchronous_commit = off on ") && told.contains(&format!(":{port}")), "{told}");
    set("RESET synchronous_commit", 0).await;
    let store = PostgresStore::connect(options(&cluster, "careful", 7)).await.unwrap();
    works(&store).await;

    for (what, careless, verdict) in [
        ("RESET synchronous_commit", 0, Verdict::Ok),
        ("SET synchronous_commit = off", 1, Verdict::Fail),
        ("SET synchronous_commit = local", 0, Verdict::Ok),
    ] {
        set(what, careless).await;
        let findings = store.examine().await.unwrap();
        let found = findings.iter().find(|finding| finding.check == "nodes").unwrap();
        assert_eq!(found.verdict, verdict, "{found:?}");
    }
}
