//! Tests: every statement on a path that a timer, a worker or a client takes finds its rows by an
//! index, whatever the tables hold.

use std::path::Path;

use rusqlite::Connection;

use crate::options::SqliteOptions;
use crate::{apply, claim, listing, reap, runs, schema, steps};

/// What workers, timers and keepers ask.
const HOT: [(&str, &str); 26] = [
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
    ("claim::READY_OF_TYPES", claim::READY_OF_TYPES),
    ("reap::OVERDUE_RUNS", reap::OVERDUE_RUNS),
    ("reap::OVERDUE_STEPS", reap::OVERDUE_STEPS),
    ("reap::NEXT_DUE_RUN", reap::NEXT_DUE_RUN),
    ("reap::NEXT_DUE_STEP", reap::NEXT_DUE_STEP),
    ("reap::HAS_PROGRESS", reap::HAS_PROGRESS),
    ("listing::PENDING_DEPTHS", listing::PENDING_DEPTHS),
    ("listing::WAITING_DEPTHS", listing::WAITING_DEPTHS),
];

/// What people ask. A page of a run's attempts is sorted, since attempts are kept by step.
const PAGES: [(&str, &str); 4] = [
    ("listing::LIST_RUNS", listing::LIST_RUNS),
    ("listing::COUNT_RUNS", listing::COUNT_RUNS),
    ("listing::ALL_ATTEMPTS", listing::ALL_ATTEMPTS),
    ("listing::LATEST_ATTEMPTS", listing::LATEST_ATTEMPTS),
];

fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    // The plan does not depend on what is bound, so everything stays NULL.
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        lines.push(row.get("detail").unwrap());
    }
    lines
}

/// A scan of a table or of a whole index. Lists that the statement itself makes are not meant.
fn scans(line: &str) -> bool {
    line.starts_with("SCAN")
        && !line.contains("json_each")
        && line != "SCAN page"
        && !line.contains("VIRTUAL TABLE")
}

fn on_a_file(check: impl Fn(&Connection)) {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| schema::open_writer(&SqliteOptions::new(path)).unwrap();
    check(&open(&directory.path().join("kagzi.db")));
}

#[test]
fn no_statement_scans_a_table() {
    on_a_file(|connection| {
        for (name, sql) in HOT.iter().chain(&PAGES) {
            let lines = plan(connection, sql);
            assert!(!lines.iter().any(|line| scans(line)), "{name}: {lines:#?}");
        }
    });
}

#[test]
fn what_timers_and_workers_ask_comes_in_order_from_an_index() {
    on_a_file(|connection| {
        for (name, sql) in HOT {
            let lines = plan(connection, sql);
            assert!(!lines.iter().any(|line| line.contains("TEMP B-TREE")), "{name}: {lines:#?}");
        }
    });
}
