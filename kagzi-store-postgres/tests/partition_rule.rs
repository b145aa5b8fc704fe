//! Every statement names one partition, and the test that says so can fail.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod one_partition;
mod support;

use std::collections::BTreeSet;

use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use one_partition::body::statements;
use one_partition::rule::{From, TABLES, check};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

/// A function call that Citus sends to its node is of one of our functions; this is all of them.
const CALLED: [&str; 11] = [
    "kagzi_claim",
    "kagzi_heartbeat",
    "kagzi_look",
    "kagzi_moments_due",
    "kagzi_overdue",
    "kagzi_paused_queues",
    "kagzi_queue_depths",
    "kagzi_queue_lock",
    "kagzi_save_runs",
    "kagzi_start",
    "kagzi_steps",
];

#[tokio::test]
async fn every_statement_of_every_function_names_the_partition_that_it_was_called_with() {
    let database = support::database().await;
    PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let functions = connection
        .fetch_all(
            "SELECT proname::text AS name, prosrc AS body, lanname::text AS language,
                 pg_get_function_arguments(p.oid) AS arguments
             FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
             WHERE pronamespace = current_schema()::regnamespace ORDER BY 1",
        )
        .await
        .unwrap();
    let (mut checked, mut names) = (0, BTreeSet::new());
    for function in &functions {
        let text = |column: &str| function.get::<String, _>(column);
        names.insert(text("name"));
        if text("language") == "sql" {
            assert_eq!(text("name"), "kagzi_end_of_time", "the one that touches no table");
            continue;
        }
        assert!(text("arguments").starts_with("p_partition smallint"), "{}", text("name"));
        for sql in statements(&text("body"), &TABLES).unwrap() {
            let touched = check(&sql, From::Function).unwrap_or_else(|why| panic!("{}: {why}", text("name")));
            checked += usize::from(!touched.tables.is_empty());
        }
    }
    assert!(checked >= 30, "only {checked} statements that touch a table were found in {names:?}");
    assert!(CALLED.iter().all(|called| names.contains(*called)), "{names:?}");
}

#[test]
fn a_statement_that_leaves_the_partition_out_or_open_is_found() {
    for (sql, why) in [
        ("SELECT * FROM runs WHERE run_id = $1", "touches runs without"),
        ("SELECT * FROM runs WHERE partition = $1 OR run_id = $2", "touches runs without"),
        ("SELECT * FROM runs WHERE partition = ANY ($1)", "touches runs without"),
        ("SELECT * FROM runs WHERE partition > $1", "touches runs without"),
        ("SELECT * FROM runs r WHERE partition = r.priority", "touches runs without"),
        (
            "SELECT * FROM runs r, steps s WHERE r.partition = $1 AND s.run_id = r.run_id",
            "touches steps without",
        ),
        ("SELECT * FROM runs r, steps s WHERE partition = $1", "touches runs without"),
        ("SELECT * FROM runs r, steps s WHERE r.partition = $1 AND s.partition = $2", "several partitions"),
        ("SELECT 1 WHERE EXISTS (SELECT 1 FROM queues WHERE queue = $1)", "touches queues without"),
        ("SELECT (SELECT count(*) FROM steps) AS n FROM runs WHERE partition = $1", "touches steps without"),
        ("WITH w AS (SELECT * FROM payloads) SELECT * FROM w", "touches payloads without"),
        (
            "SELECT * FROM UNNEST($1::uuid[]) AS u(id) CROSS JOIN LATERAL (SELECT 1 FROM runs r WHERE r.run_id = u.id) x",
            "touches runs without",
        ),
        ("SELECT 1 FROM runs WHERE partition = $1 UNION ALL SELECT 1 FROM runs", "touches runs without"),
        ("UPDATE runs SET state = 'FAILED' WHERE run_id = $1", "touches runs without"),
        ("UPDATE runs SET partition = $2 WHERE partition = $1", "another partition"),
        ("DELETE FROM steps WHERE run_id = ANY ($1)", "touches steps without"),
        ("INSERT INTO operations (run_id, answer) VALUES ($1, $2)", "without a partition"),
        (
            "INSERT INTO operations (run_id, partition) SELECT u.id, u.place FROM UNNEST($1, $2) AS u(id, place)",
            "no constant",
        ),
        ("INSERT INTO operations (run_id, partition) VALUES ($1, 1), ($2, 2)", "several partitions"),
        ("SELECT kagzi_steps()", "without a partition"),
        ("SELECT done FROM kagzi_steps($1 % 7) AS done", "no constant"),
        ("SELECT * FROM (SELECT * FROM kagzi_claim($1, $2)) x", "in a form"),
        ("SELECT c.* FROM kagzi_claim($1, $2) c WHERE c.told = 'TAKEN'", "in a form"),
        ("SELECT c.* FROM kagzi_claim($1, $2) c, kagzi_look($1) l", "in a form"),
        ("SELECT kagzi_save_runs($1), kagzi_save_runs($1)", "in a form"),
        ("LOCK TABLE runs", ""),
    ] {
        let told = check(sql, From::Store).expect_err(sql);
        assert!(told.contains(why), "{sql}: {told}");
    }
}

#[test]
fn a_statement_that_keeps_the_rule_passes() {
    for sql in [
        "SELECT 1 FROM runs WHERE run_id = $1 AND partition = $2 AND namespace IS NOT DISTINCT FROM $3 \
         FOR NO KEY UPDATE SKIP LOCKED",
        "SELECT 1 FROM UNNEST($1::uuid[]) WITH ORDINALITY AS u(id, i) CROSS JOIN LATERAL (SELECT 1 FROM runs r \
         WHERE r.run_id = u.id AND r.partition = $2 OFFSET 0 FOR NO KEY UPDATE) held",
        "INSERT INTO operations (run_id, partition) VALUES ($1, $2)",
        "SELECT told, (taken).run_id FROM kagzi_claim($1, $2)",
        "SELECT kagzi_save_runs($1, $2)",
    ] {
        check(sql, From::Store).unwrap();
    }
}

/// What is asked of Citus about a statement can be asked: on plain Postgres there are no tasks to count.
#[tokio::test]
async fn a_statement_can_be_planned_for_one_partition_without_its_values() {
    let database = support::database().await;
    PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    for sql in [
        "SELECT 1 FROM runs WHERE run_id = $1 AND partition = $2 FOR NO KEY UPDATE",
        "INSERT INTO operations (run_id, operation_id, partition, answer, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $5)",
        "SELECT queue, state, runs, oldest_due_at FROM kagzi_queue_depths($1, $2)",
    ] {
        let touched = check(sql, From::Store).unwrap();
        assert_eq!(one_partition::tasks::count(&mut connection, sql, &touched).await.unwrap(), None, "{sql}");
    }
}

#[test]
fn a_function_that_hides_a_table_from_the_test_is_found() {
    let body = "BEGIN v_run := (SELECT run_id FROM runs LIMIT 1); END";
    assert!(statements(body, &TABLES).unwrap_err().contains("no statement begins"));
    let body = "BEGIN
        -- A comment on runs; and more.
        IF p_limit > 0 THEN PERFORM FROM runs r WHERE r.partition = p_partition LIMIT 1; END IF;
        SELECT max(s.attempt), 'a; b' INTO v_a, v_b FROM steps s WHERE s.run_id = p_run;
        FOR beat IN SELECT * FROM UNNEST(p_run) AS u(run) LOOP
            UPDATE runs r SET updated_at = p_now WHERE r.partition = p_partition RETURNING r.run_id INTO v_run;
        END LOOP;
    END";
    let found = statements(body, &TABLES).unwrap();
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(check(&found[0], From::Function).is_ok());
    assert!(check(&found[1], From::Function).unwrap_err().contains("touches steps without"), "{}", found[1]);
    assert!(check(&found[2], From::Function).is_ok());
    assert!(check(&found[3], From::Function).is_ok());
}
