//! SQLite without kagzi: one connection, one thread, WAL and `synchronous=FULL`.

use std::time::Instant;

use kagzi_benches::backends::{Backend, Failed};
use rusqlite::{Connection, Transaction, params};
use uuid::Uuid;

use crate::metrics::Metrics;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE runs (
        run_id BLOB PRIMARY KEY, state TEXT NOT NULL, rank INTEGER NOT NULL, token INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX runs_ready ON runs (rank, run_id) WHERE state = 'PENDING';
    CREATE TABLE payloads (
        run_id BLOB NOT NULL REFERENCES runs, slot TEXT NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (run_id, slot)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE steps (
        run_id BLOB NOT NULL REFERENCES runs, step_id TEXT NOT NULL, attempt INTEGER NOT NULL,
        state TEXT NOT NULL, output BLOB, PRIMARY KEY (run_id, step_id, attempt)
    ) STRICT, WITHOUT ROWID;";

/// Rows committed one by one.
const ROWS: u32 = 3_000;
/// Runs that share each of their commits.
const RUNS_A_COMMIT: u32 = 256;
/// How many such groups.
const GROUPS: u32 = 20;
const STEPS: [&str; 5] = ["one", "two", "three", "four", "five"];

/// One row a commit, and whole five-step workflows with 256 runs a commit.
pub fn measure(metrics: &mut Metrics) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let mut connection = Connection::open(directory.path().join("plain.db"))?;
    connection.execute_batch(SCHEMA)?;
    let began = Instant::now();
    for rank in 0..ROWS {
        let transaction = connection.transaction()?;
        start(&transaction, Uuid::now_v7(), rank)?;
        transaction.commit()?;
    }
    metrics.add(Backend::Sqlite, "plain.rows_per_second", f64::from(ROWS) / began.elapsed().as_secs_f64());

    let began = Instant::now();
    for _ in 0..GROUPS {
        workflows(&mut connection)?;
    }
    let rate = f64::from(RUNS_A_COMMIT * GROUPS) / began.elapsed().as_secs_f64();
    metrics.add(Backend::Sqlite, "plain.workflows_per_second", rate);
    Ok(())
}

fn start(transaction: &Transaction<'_>, run: Uuid, rank: u32) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached("INSERT INTO runs VALUES (?1, 'PENDING', ?2, 0)")?
        .execute(params![run.as_bytes(), rank])
}

/// A group of workflows, abreast: start, claim, five steps, of which each completion begins the next.
fn workflows(connection: &mut Connection) -> Result<(), Failed> {
    let runs: Vec<Uuid> = (0..RUNS_A_COMMIT).map(|_| Uuid::now_v7()).collect();
    let each = |connection: &mut Connection,
                write: &dyn Fn(&Transaction<'_>, &Uuid) -> rusqlite::Result<usize>|
     -> Result<(), Failed> {
        let transaction = connection.transaction()?;
        for run in &runs {
            write(&transaction, run)?;
        }
        Ok(transaction.commit()?)
    };
    each(connection, &|tx, run| {
        start(tx, *run, 1)?;
        payload(tx, run, "INPUT")
    })?;
    each(connection, &|tx, run| {
        tx.prepare_cached("UPDATE runs SET state = 'RUNNING', token = token + 1 WHERE run_id = ?1")?
            .execute([run.as_bytes()])?;
        begin(tx, run, STEPS[0])
    })?;
    for (step, next) in STEPS.iter().zip(STEPS.iter().skip(1).map(Some).chain([None])) {
        each(connection, &|tx, run| {
            let token: i64 = tx
                .prepare_cached("SELECT token FROM runs WHERE run_id = ?1 AND state = 'RUNNING'")?
                .query_row([run.as_bytes()], |row| row.get(0))?;
            debug_assert_eq!(token, 1, "nobody else claims it");
            tx.prepare_cached(
                "UPDATE steps SET state = 'COMPLETED', output = ?3
                 WHERE run_id = ?1 AND step_id = ?2 AND attempt = 1",
            )?
            .execute(params![run.as_bytes(), step, b"\"abcdefgh\""])?;
            if let Some(next) = next {
                return begin(tx, run, next);
            }
            tx.prepare_cached("UPDATE runs SET state = 'COMPLETED' WHERE run_id = ?1")?
                .execute([run.as_bytes()])?;
            payload(tx, run, "OUTPUT")
        })?;
    }
    Ok(())
}

fn begin(transaction: &Transaction<'_>, run: &Uuid, step: &str) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached("INSERT INTO steps VALUES (?1, ?2, 1, 'RUNNING', NULL)")?
        .execute(params![run.as_bytes(), step])
}

fn payload(transaction: &Transaction<'_>, run: &Uuid, slot: &str) -> rusqlite::Result<usize> {
    transaction.prepare_cached("INSERT INTO payloads VALUES (?1, ?2, ?3)")?.execute(params![
        run.as_bytes(),
        slot,
        b"\"abcdefgh\""
    ])
}
