//! Tests: every statement on a path that a timer, a worker or a client takes finds its rows by an
//! index, whatever the tables hold.

use rusqlite::Connection;
use tempfile::TempDir;

use crate::options::SqliteOptions;
use crate::{apply, claim, listing, queues, reap, runs, schema, steps};

/// What workers, timers and keepers ask.
const HOT: [(&str, &str); 31] = [
    ("runs::LOAD", runs::LOAD),
    ("runs::LOAD_BY_KEY", runs::LOAD_BY_KEY),
    ("runs::LOAD_PAYLOAD", runs::LOAD_PAYLOAD),
    ("runs::LOAD_OPERATION", runs::LOAD_OPERATION),
    ("runs::FIND_FINISHED", runs::FIND_FINISHED),
    ("runs::DELETE", runs::DELETE),
    ("apply::UPDATE_RUN", apply::UPDATE_RUN),
    ("apply::EXTEND_LEASE", apply::EXTEND_LEASE),
    ("apply::UPDATE_ATTEMPT", apply::UPDATE_ATTEMPT),
    ("apply::OPEN_ATTEMPTS", apply::OPEN_ATTEMPTS),
    ("apply::ABANDON_ATTEMPT", apply::ABANDON_ATTEMPT),
    ("steps::LOAD", steps::LOAD),
    ("steps::LOAD_LATEST", steps::LOAD_LATEST),
    ("steps::LOAD_BEGUN_BY", steps::LOAD_BEGUN_BY),
    ("steps::COUNT_FAILURES", steps::COUNT_FAILURES),
    ("claim::HELD_BY_CLAIM", claim::HELD_BY_CLAIM),
    ("claim::OVERDUE_IN_QUEUE", claim::OVERDUE_IN_QUEUE),
    ("claim::READY", claim::READY),
    ("claim::READY_OF_TYPE", claim::READY_OF_TYPE),
    ("claim::READY_OF_TYPES", claim::READY_OF_TYPES),
    ("reap::OVERDUE_RUNS", reap::OVERDUE_RUNS),
    ("reap::OVERDUE_STEPS", reap::OVERDUE_STEPS),
    ("reap::NEXT_DUE_RUN", reap::NEXT_DUE_RUN),
    ("reap::NEXT_DUE_STEP", reap::NEXT_DUE_STEP),
    ("reap::HAS_PROGRESS", reap::HAS_PROGRESS),
    ("listing::PENDING_DEPTHS", listing::PENDING_DEPTHS),
    ("listing::WAITING_DEPTHS", listing::WAITING_DEPTHS),
    ("queues::LOAD", queues::LOAD),
    ("queues::IS_PAUSED", queues::IS_PAUSED),
    ("queues::PAUSED", queues::PAUSED),
    ("queues::SAVE", queues::SAVE),
];

/// What people ask. A page of a run's attempts is sorted, since attempts are kept by step.
const PAGES: [(&str, &str); 5] = [
    ("listing::LIST_RUNS", listing::LIST_RUNS),
    ("listing::COUNT_RUNS", listing::COUNT_RUNS),
    ("listing::ALL_ATTEMPTS", listing::ALL_ATTEMPTS),
    ("listing::LATEST_KEYS", listing::LATEST_KEYS),
    ("listing::LATEST_ATTEMPTS", listing::LATEST_ATTEMPTS),
];

fn plan(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    // The plan does not depend on what is bound, so everything stays NULL.
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(row.get("detail")?);
    }
    Ok(lines)
}

/// A scan of a table or of a whole index. Lists that the statement itself makes are not meant.
fn scans(line: &str) -> bool {
    line.starts_with("SCAN")
        && !line.contains("json_each")
        && line != "SCAN page"
        && !line.contains("VIRTUAL TABLE")
}

/// The index that finds the rows of a statement: another would find them too, but walk past others.
const FOUND_BY: [(&str, &str, &str); 15] = [
    ("runs::LOAD_BY_KEY", runs::LOAD_BY_KEY, "INDEX runs_key (namespace=? AND idempotency_key=?"),
    ("claim::HELD_BY_CLAIM", claim::HELD_BY_CLAIM, "INDEX runs_claim (claim_operation=?)"),
    (
        "claim::OVERDUE_IN_QUEUE",
        claim::OVERDUE_IN_QUEUE,
        "INDEX runs_queue_attention (namespace=? AND queue=? AND attention_at",
    ),
    (
        "claim::READY",
        claim::READY,
        "INDEX runs_ready (namespace=? AND queue=? AND (claim_rank,run_id)>(?,?))",
    ),
    (
        "claim::READY_OF_TYPE",
        claim::READY_OF_TYPE,
        "INDEX runs_ready_of_type (namespace=? AND queue=? AND workflow_type=? AND (claim_rank,run_id)>(?,?))",
    ),
    (
        "claim::READY_OF_TYPES",
        claim::READY_OF_TYPES,
        "INDEX runs_ready (namespace=? AND queue=? AND (claim_rank,run_id)>(?,?))",
    ),
    ("reap::OVERDUE_RUNS", reap::OVERDUE_RUNS, "INDEX runs_attention (attention_at"),
    ("reap::OVERDUE_STEPS", reap::OVERDUE_STEPS, "INDEX steps_deadline (deadline_at"),
    ("reap::NEXT_DUE_RUN", reap::NEXT_DUE_RUN, "INDEX runs_attention (attention_at"),
    ("reap::NEXT_DUE_STEP", reap::NEXT_DUE_STEP, "INDEX steps_deadline (deadline_at"),
    ("runs::FIND_FINISHED", runs::FIND_FINISHED, "INDEX runs_finished (finished_at"),
    ("listing::PENDING_DEPTHS", listing::PENDING_DEPTHS, "COVERING INDEX runs_ready (namespace=?"),
    ("queues::IS_PAUSED", queues::IS_PAUSED, "PRIMARY KEY (namespace=? AND queue=? AND partition=?)"),
    ("listing::LIST_RUNS", listing::LIST_RUNS, "INDEX runs_listing (namespace=? AND created_at"),
    ("listing::COUNT_RUNS", listing::COUNT_RUNS, "INDEX runs_listing (namespace=? AND created_at"),
];

/// How many runs the large file holds, unless the variable says so.
const ROWS: u32 = 20_000;
const ROWS_VARIABLE: &str = "KAGZI_PLANS_ROWS";

/// Runs with a step each: one in ten of them live, of two types, in two queues.
const FILL: &str = "\
    WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {rows} - 1) \
    INSERT INTO runs (run_id, namespace, queue, workflow_type, state, priority, due_at, claim_rank, \
        attention_at, fencing_token, worker_id, lease_expires_at, claim_operation, claims, lost_leases, \
        failures, budget_token, created_at, updated_at, finished_at) \
    SELECT unhex(printf('%032x', n)), 'n', 'q' || (n / 2 % 2), 't' || (n % 2), \
        CASE n % 20 WHEN 0 THEN 'PENDING' WHEN 1 THEN 'RUNNING' ELSE 'COMPLETED' END, 0, n, n, \
        iif(n % 20 = 1, n, NULL), 1, iif(n % 20 = 1, 'w', NULL), iif(n % 20 = 1, n, NULL), \
        iif(n % 20 = 1, unhex(printf('%032x', n)), NULL), 1, 0, 0, 0, n, n, iif(n % 20 < 2, NULL, n) \
    FROM n; \
    INSERT INTO steps (run_id, step_id, attempt, position, kind, state, fencing_token, worker_id, deadline_at, \
        begin_operation, created_at, updated_at) \
    SELECT run_id, 's', 1, 0, 'TASK', 'RUNNING', 1, 'w', iif(state = 'RUNNING', due_at, NULL), run_id, due_at, \
        due_at FROM runs;";

fn open(directory: &TempDir) -> Connection {
    schema::open_writer(&SqliteOptions::new(directory.path().join("kagzi.db"))).unwrap()
}

fn fill(connection: &Connection) {
    let rows = std::env::var(ROWS_VARIABLE).map_or(ROWS, |rows| rows.parse().expect(ROWS_VARIABLE));
    let fill = FILL.replace("{rows}", &rows.to_string());
    // A file that is only there to be large need not survive a crash.
    connection.execute_batch(&format!("PRAGMA synchronous = OFF; BEGIN; {fill} COMMIT;")).unwrap();
}

/// What is wrong with the plans: nothing, it is to be hoped.
fn complaints(connection: &Connection) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, sql) in HOT.iter().chain(&PAGES) {
        match plan(connection, sql) {
            Err(error) => complaints.push(format!("{name} cannot be prepared: {error}")),
            Ok(lines) if lines.iter().any(|line| scans(line)) => {
                complaints.push(format!("{name} scans: {lines:#?}"));
            }
            Ok(_) => {}
        }
    }
    // What timers and workers ask comes in order from an index.
    for (name, sql) in HOT {
        let sorts = |line: &String| line.contains("TEMP B-TREE");
        if let Ok(lines) = plan(connection, sql)
            && lines.iter().any(sorts)
        {
            complaints.push(format!("{name} sorts: {lines:#?}"));
        }
    }
    for (name, sql, index) in FOUND_BY {
        if let Ok(lines) = plan(connection, sql)
            && !lines.iter().any(|line| line.contains(index))
        {
            complaints.push(format!("{name} does not go by {index}: {lines:#?}"));
        }
    }
    complaints
}

#[test]
fn every_look_up_goes_by_its_index_on_empty_and_large_files_with_statistics_and_without() {
    let directory = tempfile::tempdir().unwrap();
    let connection = open(&directory);
    assert_eq!(complaints(&connection), [""; 0], "empty");
    fill(&connection);
    assert_eq!(complaints(&connection), [""; 0], "large");
    // Somebody may have gathered them by hand.
    connection.execute_batch("ANALYZE").unwrap();
    assert_eq!(complaints(&connection), [""; 0], "large, with statistics");
}

#[test]
fn a_missing_index_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let connection = open(&directory);
    let indexes: Vec<(String, String)> = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(indexes.len() > 5, "{indexes:?}");
    for (name, definition) in indexes {
        connection.execute_batch(&format!("DROP INDEX {name}")).unwrap();
        assert_ne!(complaints(&connection), [""; 0], "nobody misses {name}");
        connection.execute_batch(&definition).unwrap();
    }
    assert_eq!(complaints(&connection), [""; 0], "all are back");
}
