//! What the store asks of Citus, and what it makes of its answers. The functions and the catalogue of Citus are played by
//! a stand-in on plain Postgres, which spreads nothing: so this shows the steps, their order, and how they are
//! taken up again. What Citus does with them, only a cluster shows.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use kagzi_core::{ErrorScope, SchemaPolicy, Store, StoreError, Verdict};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::TestDatabase;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::{claim, database, start};

/// Notes what it is asked for. A table named `unreachable_for_NAME` plays a node that is away when NAME is distributed.
const STAND_IN: &str = r"
    CREATE TABLE pg_dist_node (
        nodeid integer, groupid integer, nodename text, nodeport integer, isactive boolean, shouldhaveshards boolean
    );
    INSERT INTO pg_dist_node VALUES
        (1, 0, 'n1', 5432, true, false), (2, 1, 'n2', 5432, true, true), (3, 2, 'n3', 5432, false, true);
    CREATE TABLE pg_dist_local_group (groupid integer);
    INSERT INTO pg_dist_local_group VALUES (0);
    CREATE TABLE told (nodeid integer, success boolean, result text);
    INSERT INTO told VALUES (1, true, 'off off off'), (2, true, 'on on on');
    CREATE FUNCTION run_command_on_all_nodes(command text, OUT nodeid integer, OUT success boolean, OUT result text)
    RETURNS SETOF record LANGUAGE sql AS 'SELECT * FROM told';
    CREATE TABLE pg_dist_partition (logicalrelid regclass, partmethod char);
    CREATE TABLE pg_dist_object (classid oid, objid oid, distribution_argument_index integer);
    CREATE TABLE asked (place serial, what text);
    CREATE FUNCTION note(name text, what text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF to_regclass('unreachable_for_' || name) IS NOT NULL THEN
            RAISE EXCEPTION 'connection to the remote node n2:5432 failed with the following error: refused'
                USING ERRCODE = '08006';
        END IF;
        INSERT INTO asked (what) VALUES (name || what);
    END $$;
    CREATE FUNCTION create_distributed_table(
        table_name regclass, distribution_column text, distribution_type text DEFAULT 'hash',
        colocate_with text DEFAULT 'default', shard_count integer DEFAULT NULL
    ) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM note(table_name::text, format(' by %s beside %s in %s', distribution_column, colocate_with,
                                              COALESCE(shard_count::text, 'as many')));
        INSERT INTO pg_dist_partition VALUES (table_name, 'h');
    END $$;
    CREATE FUNCTION create_distributed_function(
        function_name regprocedure, distribution_arg_name text DEFAULT NULL,
        colocate_with text DEFAULT 'default', force_delegation boolean DEFAULT NULL
    ) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        v_name text := (SELECT proname FROM pg_proc WHERE oid = function_name);
    BEGIN
        PERFORM note(v_name, CASE WHEN distribution_arg_name IS NULL THEN ' everywhere'
            ELSE format(' by %s beside %s, forced: %s', distribution_arg_name, colocate_with, force_delegation) END);
        INSERT INTO pg_dist_object
        VALUES ('pg_proc'::regclass, function_name, CASE WHEN distribution_arg_name IS NOT NULL THEN 0 END);
    END $$;
    INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    VALUES (99999, 'citus', 10, 'public'::regnamespace, false, '13.0-1');
";

/// A database with the stand-in, and a connection to it.
async fn cluster() -> (TestDatabase, PgConnection) {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute(STAND_IN).await.unwrap();
    (database, connection)
}

fn options(database: &TestDatabase, partitions: u16) -> PostgresOptions {
    PostgresOptions { partitions: Some(partitions), ..PostgresOptions::new(database.url()) }
}

async fn asked(connection: &mut PgConnection) -> Vec<String> {
    let rows = connection.fetch_all("SELECT what FROM asked ORDER BY place").await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The functions with a body that would not find their tables on a node, or would keep plans there.
async fn unsettled(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT proname::text FROM pg_proc
        WHERE proname LIKE 'kagzi\\_%' AND prolang <> (SELECT oid FROM pg_language WHERE lanname = 'sql')
          AND (proconfig @> '{search_path=public, plan_cache_mode=force_custom_plan}') IS NOT TRUE";
    connection.fetch_all(sql).await.unwrap().iter().map(|row| row.get(0)).collect()
}

const TABLES: [&str; 5] = [
    "runs by partition beside none in 7",
    "payloads by partition beside runs in as many",
    "steps by partition beside runs in as many",
    "operations by partition beside runs in as many",
    "queues by partition beside runs in as many",
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_spread_by_partition_and_functions_sent_there_once_however_many_servers_start() {
    let (database, mut connection) = cluster().await;
    let plan = PostgresStore::plan_migration(options(&database, 7)).await.unwrap();
    assert_eq!(plan.steps.last(), Some(&"citus_distribution"), "{plan:?}");
    assert!(asked(&mut connection).await.is_empty(), "a plan changes nothing");

    let openers: Vec<_> =
        (0..8).map(|_| tokio::spawn(PostgresStore::connect(options(&database, 7)))).collect();
    for opener in openers {
        opener.await.unwrap().unwrap();
    }
    let asked = asked(&mut connection).await;
    assert_eq!(asked[..5], TABLES, "the tables first, and what a foreign key leads to before it");
    let (delegated, everywhere): (Vec<&str>, Vec<&str>) = asked[5..]
        .iter()
        .map(String::as_str)
        .partition(|what| what.contains(" by p_partition beside runs, forced: t"));
    assert_eq!(delegated.len(), 11, "{delegated:?}");
    for called in ["kagzi_steps", "kagzi_claim", "kagzi_look", "kagzi_save_runs", "kagzi_heartbeat"] {
        assert!(
            delegated.iter().any(|what| what.starts_with(&format!("{called} "))),
            "{called}: {delegated:?}"
        );
    }
    assert!(everywhere.iter().all(|what| what.ends_with(" everywhere")), "{everywhere:?}");
    for called in ["kagzi_end_of_time", "kagzi_steps_complete", "kagzi_claim_take", "kagzi_peek"] {
        assert!(everywhere.contains(&format!("{called} everywhere").as_str()), "{called}: {everywhere:?}");
    }
    assert_eq!(unsettled(&mut connection).await, Vec::<String>::new());
    let plan = PostgresStore::plan_migration(options(&database, 7)).await.unwrap();
    assert!(plan.steps.is_empty(), "{plan:?}");

    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    assert_eq!(store.partitions(), 7);
    store.start((0..20).map(|_| start("q")).collect()).await.unwrap();
    assert_eq!(store.claim(claim("q", 20)).await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_node_that_is_away_half_way_is_told_and_the_next_start_goes_on_there() {
    let (database, mut connection) = cluster().await;
    connection.execute("CREATE TABLE unreachable_for_steps ()").await.unwrap();
    let error = PostgresStore::connect(options(&database, 7)).await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StoreError::Unavailable { scope: ErrorScope::Part, .. }), "{told}");
    assert!(told.contains("a node of the cluster cannot be reached") && told.contains("n2:5432"), "{told}");
    assert_eq!(asked(&mut connection).await, TABLES[..2]);

    let mut looking = options(&database, 7);
    looking.schema_policy = SchemaPolicy::Require;
    let told = PostgresStore::connect(looking.clone()).await.unwrap_err().to_string();
    assert!(told.contains("kagzi migrate") && told.contains("the table steps"), "{told}");

    connection
        .execute("DROP TABLE unreachable_for_steps; CREATE TABLE unreachable_for_kagzi_steps ()")
        .await
        .unwrap();
    let migration = PostgresStore::migrate(options(&database, 7)).await;
    assert!(matches!(migration, Err(StoreError::Unavailable { .. })), "{migration:?}");
    let told = PostgresStore::connect(looking.clone()).await.unwrap_err().to_string();
    assert!(told.contains("the function kagzi_"), "{told}");

    connection.execute("DROP TABLE unreachable_for_kagzi_steps").await.unwrap();
    let migration = PostgresStore::migrate(options(&database, 7)).await.unwrap();
    assert_eq!(migration.steps, ["citus_distribution"]);
    PostgresStore::connect(looking).await.unwrap();
    let mut asked = asked(&mut connection).await;
    assert_eq!(asked[..5], TABLES);
    let all = asked.len();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), all, "nothing was done twice");
}

#[tokio::test]
async fn a_function_that_lost_its_settings_is_told_and_gets_them_again() {
    let (database, mut connection) = cluster().await;
    PostgresStore::connect(options(&database, 7)).await.unwrap();
    connection.execute("ALTER FUNCTION kagzi_peek RESET search_path").await.unwrap();
    let mut looking = options(&database, 7);
    looking.schema_policy = SchemaPolicy::Require;
    let told = PostgresStore::connect(looking).await.unwrap_err().to_string();
    assert!(told.contains("functions without the settings"), "{told}");
    PostgresStore::connect(options(&database, 7)).await.unwrap();
    assert_eq!(unsettled(&mut connection).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_citus_too_old_or_without_nodes_is_refused_before_anything_is_made() {
    let (database, mut connection) = cluster().await;
    for (preparation, part) in [
        ("UPDATE pg_extension SET extversion = '10.2-4' WHERE extname = 'citus'", "got 10.2-4"),
        (
            "UPDATE pg_extension SET extversion = '12.1-1' WHERE extname = 'citus';
             UPDATE pg_dist_node SET shouldhaveshards = false",
            "citus_add_node",
        ),
    ] {
        connection.execute(AssertSqlSafe(preparation)).await.unwrap();
        let error = PostgresStore::connect(options(&database, 7)).await.unwrap_err();
        let told = error.to_string();
        assert!(matches!(&error, StoreError::InvalidArgument { field, .. } if field == "citus"), "{told}");
        assert!(told.contains(part), "{told}");
        let made = connection.fetch_one("SELECT to_regclass('runs') IS NOT NULL").await.unwrap();
        assert!(!made.get::<bool, _>(0));
    }
    // One partition has nothing to spread, and stays where the URL leads.
    PostgresStore::connect(options(&database, 1)).await.unwrap();
    assert!(asked(&mut connection).await.is_empty());
}

#[tokio::test]
async fn a_node_that_answers_before_a_commit_is_durable_is_refused_and_one_that_is_away_is_not() {
    let (database, mut connection) = cluster().await;
    let mut tell = async |success: bool, result: &str| {
        let sql = format!("UPDATE told SET success = {success}, result = '{result}' WHERE nodeid = 2");
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    tell(true, "off on on").await;
    let told = PostgresStore::connect(options(&database, 7)).await.unwrap_err().to_string();
    for part in ["citus: expected", "set synchronous_commit = on", "got synchronous_commit = off on n2:5432"]
    {
        assert!(told.contains(part), "{told}");
    }
    let told = PostgresStore::migrate(options(&database, 7)).await.unwrap_err().to_string();
    assert!(told.contains("n2:5432"), "{told}");
    let untouched = PostgresStore::plan_migration(options(&database, 7)).await.unwrap();
    assert_eq!(untouched.from, 0, "nothing was made");
    // All of one partition stays where the store's own setting counts.
    PostgresStore::migrate(PostgresOptions { schema: Some("one".to_owned()), ..options(&database, 1) })
        .await
        .unwrap();

    tell(true, "local on on").await;
    let store = PostgresStore::connect(options(&database, 7)).await.unwrap();
    for (success, result, verdict) in [
        (true, "remote_write on on", Verdict::Ok),
        (false, "failed to connect to n2:5432", Verdict::Warn),
        (true, "on off on", Verdict::Fail),
        (true, "off on on", Verdict::Fail),
    ] {
        tell(success, result).await;
        let findings = store.examine().await.unwrap();
        let found = findings.iter().find(|finding| finding.check == "nodes").unwrap();
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(verdict == Verdict::Ok || found.found.contains("n2:5432"), "{found:?}");
        let opened = PostgresStore::connect(options(&database, 7)).await;
        assert_eq!(opened.is_ok(), result != "off on on", "{opened:?}");
    }
}
