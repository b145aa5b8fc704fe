//! Five-step workflows through the store itself: how many a second, with so many in flight.
//!
//! ```text
//! cargo run --release -p kagzi-store-postgres --example throughput -- [IN_FLIGHT [WORKFLOWS [LANES]]]
//! ```
//!
//! It takes its Postgres where tests do: from `KAGZI_TEST_POSTGRES_URL`, or from the server binaries.

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagzi_core::{
    BeginOutcome, BeginStep, Claim, ClaimedRun, CompleteStep, CompleteStepOutcome, Namespace, NextStep,
    OperationId, Payload, QueueName, RunFilter, RunState, StartRun, StepId, Store, StoreError, Then,
    WorkerId, WorkflowType,
};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use tokio::sync::Mutex;

type Failed = Box<dyn Error + Send + Sync>;

const STEPS: u32 = 5;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let in_flight = arguments.next().transpose()?.unwrap_or(64);
    let workflows = arguments.next().transpose()?.unwrap_or(20_000);
    let lanes = arguments.next().transpose()?.unwrap_or(2);

    let server = kagzi_testkit::postgres().await?;
    let database = server.fresh_database().await?;
    let options = PostgresOptions { lanes, listen: Listen::On, ..PostgresOptions::new(database.url()) };
    let store = Arc::new(PostgresStore::connect(options).await?);

    // Once to warm connections and plans, on tables as young as they are.
    run(&store, in_flight, in_flight * 4).await?;
    let took = run(&store, in_flight, workflows).await?;

    let filter = RunFilter { states: vec![RunState::Completed], ..RunFilter::default() };
    let completed = store.count_runs(&namespace()?, &filter).await?;
    let rate = f64::from(u32::try_from(workflows)?) / took.as_secs_f64();
    writeln!(
        std::io::stdout(),
        "{workflows} workflows of {STEPS} steps, {in_flight} in flight, {lanes} lanes: {took:.2?}, \
         {rate:.0} workflows/s ({completed} completed); {server}",
    )?;
    store.close().await?;
    Ok(())
}

fn namespace() -> Result<Namespace, StoreError> {
    Namespace::new("throughput")
}

/// Starts `count` workflows one by one and takes them through their steps, `in_flight` at a time.
async fn run(store: &Arc<PostgresStore>, in_flight: usize, count: usize) -> Result<Duration, Failed> {
    let started_at = Instant::now();
    let claimed = Arc::new(Claimed::default());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..in_flight {
        let (store, claimed) = (Arc::clone(store), Arc::clone(&claimed));
        let mine = count / in_flight + usize::from(task < count % in_flight);
        tasks.spawn(async move {
            for _ in 0..mine {
                store.start(vec![start()?]).await?;
                let run = claimed.next(&store, in_flight).await?;
                work(&store, &run).await?;
            }
            Ok::<(), Failed>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(started_at.elapsed())
}

fn start() -> Result<StartRun, StoreError> {
    let (queue, workflow) = (QueueName::new("orders")?, WorkflowType::new("ship")?);
    Ok(StartRun::new(namespace()?, queue, workflow, Payload::json("{\"order\":1}")))
}

/// What a worker does: one claim for all who wait, as many runs as they are.
#[derive(Default)]
struct Claimed {
    runs: Mutex<VecDeque<ClaimedRun>>,
    waiting: std::sync::atomic::AtomicU32,
}

impl Claimed {
    async fn next(&self, store: &PostgresStore, in_flight: usize) -> Result<ClaimedRun, Failed> {
        use std::sync::atomic::Ordering::Relaxed;
        self.waiting.fetch_add(1, Relaxed);
        loop {
            let mut runs = self.runs.lock().await;
            if let Some(run) = runs.pop_front() {
                self.waiting.fetch_sub(1, Relaxed);
                return Ok(run);
            }
            let limit = self.waiting.load(Relaxed).clamp(1, u32::try_from(in_flight)?);
            runs.extend(store.claim(claim(limit)?).await?);
        }
    }
}

fn claim(limit: u32) -> Result<Claim, StoreError> {
    Ok(Claim {
        namespace: namespace()?,
        queues: vec![QueueName::new("orders")?],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker")?,
        lease_length: Duration::from_secs(30),
        limit,
        steps_limit: 100,
        operation: OperationId::generate(),
    })
}

async fn work(store: &PostgresStore, run: &ClaimedRun) -> Result<(), Failed> {
    let lease = &run.lease.lease;
    let step = |n: u32| Ok::<_, StoreError>(NextStep::new(StepId::new(format!("step-{n}"))?, n));
    let begin = BeginStep { lease: lease.clone(), step: step(0)?, operation: OperationId::generate() };
    let BeginOutcome::Execute { mut attempt } = store.begin_step(begin).await? else {
        return Err("the first step was begun before".into());
    };
    for n in 0..STEPS {
        let then =
            if n + 1 < STEPS { Then::Begin(step(n + 1)?) } else { Then::CompleteRun(Payload::json("1")) };
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(n)?.step_id,
            attempt,
            output: Payload::json("{\"done\":true}"),
            then,
            operation: OperationId::generate(),
        };
        match store.complete_step(complete).await? {
            CompleteStepOutcome::RecordedAndNext(BeginOutcome::Execute { attempt: next }) => attempt = next,
            CompleteStepOutcome::RecordedAndRunCompleted => {}
            other => return Err(format!("unexpected: {other:?}").into()),
        }
    }
    Ok(())
}
