//! How many five-step workflows a second this store takes, embedded, from the start to the end:
//! `cargo run --release -p kagzi-store-sqlite --example throughput -- [DIRECTORY]`.
//!
//! The yardstick stands beside it: the same file system, one small row a commit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kagzi_core::{
    BeginOutcome, BeginStep, Claim, ClaimedRun, CompleteStep, CompleteStepOutcome, Namespace, NextStep,
    OperationId, Payload, QueueName, StartRun, StepId, Store, StoreError, Then, WorkerId, WorkflowType,
};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};

const STEPS: u32 = 5;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let directory = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    report(&format!("one row a commit: {:.0} commits/s", rows_a_second(directory.path())?));
    for (in_flight, workflows) in [(1, 1_000), (16, 20_000), (64, 60_000), (256, 60_000)] {
        let path = directory.path().join(format!("{in_flight}.db"));
        let store = Arc::new(SqliteStore::open(SqliteOptions::new(path)).await?);
        let began = Instant::now();
        let left = Arc::new(AtomicU32::new(workflows));
        let tasks: Vec<_> = (0..in_flight)
            .map(|number| tokio::spawn(client(Arc::clone(&store), Arc::clone(&left), number)))
            .collect();
        for task in tasks {
            task.await??;
        }
        let rate = f64::from(workflows) / began.elapsed().as_secs_f64();
        report(&format!(
            "{in_flight:>4} in flight: {rate:.0} workflows/s, {:.0} steps/s",
            rate * f64::from(STEPS)
        ));
        store.close().await?;
    }
    Ok(())
}

/// Runs workflows one after the other until none is left: start, claim, five steps, finish.
async fn client(store: Arc<SqliteStore>, left: Arc<AtomicU32>, number: u32) -> Outcome<()> {
    let namespace = Namespace::new("bench")?;
    let queue = QueueName::new(format!("queue-{number}"))?;
    let worker_id = WorkerId::new(format!("worker-{number}"))?;
    let one_less = |left: u32| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        let start = StartRun::new(
            namespace.clone(),
            queue.clone(),
            WorkflowType::new("five-steps")?,
            Payload::json("{\"order\":42}"),
        );
        store.start(vec![start]).await?;
        let claim = Claim {
            namespace: namespace.clone(),
            queues: vec![queue.clone()],
            workflow_types: Vec::new(),
            worker_id: worker_id.clone(),
            lease_length: Duration::from_secs(30),
            limit: 1,
            steps_limit: 100,
            operation: OperationId::generate(),
        };
        for claimed in store.claim(claim).await? {
            work(&store, &claimed).await?;
        }
    }
    Ok(())
}

async fn work(store: &SqliteStore, claimed: &ClaimedRun) -> Outcome<()> {
    let lease = &claimed.lease.lease;
    let step = |position: u32| {
        Ok::<_, StoreError>(NextStep::new(StepId::new(format!("step-{position}"))?, position))
    };
    let begin = BeginStep { lease: lease.clone(), step: step(0)?, operation: OperationId::generate() };
    let mut outcome = store.begin_step(begin).await?;
    for position in 0..STEPS {
        let BeginOutcome::Execute { attempt } = outcome else { return Err("nothing to execute".into()) };
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(position)?.step_id,
            attempt,
            output: Payload::json("{\"ok\":true}"),
            then: if position + 1 < STEPS {
                Then::Begin(step(position + 1)?)
            } else {
                Then::CompleteRun(Payload::json("\"done\""))
            },
            operation: OperationId::generate(),
        };
        match store.complete_step(complete).await? {
            CompleteStepOutcome::RecordedAndNext(next) => outcome = next,
            CompleteStepOutcome::Recorded | CompleteStepOutcome::RecordedAndRunCompleted => break,
        }
    }
    Ok(())
}

/// The yardstick: one row a commit, as durable as the store.
fn rows_a_second(directory: &Path) -> Outcome<f64> {
    let connection = rusqlite::Connection::open(directory.join("rows.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;",
    )?;
    let began = Instant::now();
    let mut insert = connection.prepare("INSERT INTO rows (text) VALUES (?1)")?;
    for _ in 0..5_000 {
        insert.execute(["{\"ok\":true}"])?;
    }
    Ok(5_000.0 / began.elapsed().as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn report(line: &str) {
    println!("{line}");
}
