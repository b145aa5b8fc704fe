//! Five-step workflows, driven straight at a store: start, claim, five steps of which each completion
//! begins the next, and the last completes the run. Eight durable writes.

use std::future::ready;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kagzi_core::{
    BeginOutcome, BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, CompleteStepOutcome, Lease,
    Namespace, NextStep, OperationId, Payload, QueueName, RunId, SharedStore, StartAt, StartRun, StepId,
    StoreError, Then, Timestamp, WorkerId, WorkflowType,
};
use tokio::task::{JoinError, JoinSet};

/// How many steps a workflow of the load has.
pub const STEPS: u32 = 5;
/// How many runs a reaper treats in one call, as the server does.
pub const REAP: u32 = 500;

/// The names that the load uses, made once.
#[derive(Clone, Debug)]
pub struct Names {
    namespace: Namespace,
    queue: QueueName,
    workflow_type: WorkflowType,
    worker_id: WorkerId,
    steps: Vec<StepId>,
}

impl Names {
    /// Names of a queue of their own, so that several loads can share a store.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if `queue` is not a name.
    pub fn new(queue: &str) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new("bench")?,
            queue: QueueName::new(queue)?,
            workflow_type: WorkflowType::new("five-steps")?,
            worker_id: WorkerId::new("bench")?,
            steps: (1..=STEPS).map(|n| StepId::new(format!("step-{n}"))).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn start(&self, payload: &Payload) -> StartRun {
        StartRun::new(self.namespace.clone(), self.queue.clone(), self.workflow_type.clone(), payload.clone())
    }

    pub(crate) fn claim(&self, limit: u32) -> Claim {
        Claim {
            namespace: self.namespace.clone(),
            queues: vec![self.queue.clone()],
            workflow_types: Vec::new(),
            worker_id: self.worker_id.clone(),
            lease_length: Duration::from_mins(10),
            limit,
            steps_limit: 100,
            operation: OperationId::generate(),
        }
    }

    pub(crate) fn cancel(&self, run_id: RunId) -> CancelRun {
        CancelRun {
            namespace: self.namespace.clone(),
            run_id,
            reason: String::new(),
            operation: OperationId::generate(),
        }
    }

    pub(crate) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn step(&self, number: u32) -> Option<NextStep> {
        self.steps.get(number as usize).map(|id| NextStep::new(id.clone(), number))
    }
}

/// Starts `count` workflows in one call.
///
/// # Errors
///
/// Those of the store.
pub async fn start_many(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    count: usize,
) -> Result<(), StoreError> {
    store.start((0..count).map(|_| names.start(payload)).collect()).await.map(drop)
}

/// Starts `count` workflows one by one with `in_flight` tasks, claims them in batches and executes
/// them to the end; answers when all are durable.
///
/// # Errors
///
/// The first error of the store.
pub async fn run_workflows(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    count: usize,
    in_flight: usize,
) -> Result<(), StoreError> {
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let share = count / in_flight + usize::from(task < count % in_flight);
        let (store, names, payload) = (store.clone(), names.clone(), payload.clone());
        tasks.spawn(async move {
            for _ in 0..share {
                store.start(vec![names.start(&payload)]).await?;
                // Whichever run comes: all tasks together start and claim the same number.
                for claimed in claim_one(&store, &names).await? {
                    execute(&store, &names, &payload, claimed).await?;
                }
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        joined(done)?;
    }
    Ok(())
}

/// Starts `count` runs in one call that are due at `due`.
///
/// # Errors
///
/// Those of the store.
pub async fn start_delayed(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    count: usize,
    due: Timestamp,
) -> Result<(), StoreError> {
    let delayed = || StartRun { start_at: StartAt::At(due), ..names.start(payload) };
    store.start((0..count).map(|_| delayed()).collect()).await.map(drop)
}

/// Starts `count` runs in one call and cancels each, so that they are finished.
///
/// # Errors
///
/// The first error of the store.
pub async fn start_and_cancel(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    count: usize,
) -> Result<(), StoreError> {
    let started = store.start((0..count).map(|_| names.start(payload)).collect()).await?;
    let cancel = started.into_iter().map(|started| store.cancel(names.cancel(started.run_id)));
    futures::stream::iter(cancel).buffer_unordered(256).try_for_each(|_| ready(Ok(()))).await
}

/// Reaps until nothing is due, as the server does.
///
/// # Errors
///
/// Those of the store.
pub async fn reap_all(store: &SharedStore) -> Result<u32, StoreError> {
    let mut treated = 0;
    loop {
        match store.reap(REAP).await?.total() {
            0 => return Ok(treated),
            some => treated += some,
        }
    }
}

/// Claims up to `limit` runs and leaves them held; answers how many.
///
/// # Errors
///
/// Those of the store.
pub async fn claim_and_hold(store: &SharedStore, names: &Names, limit: u32) -> Result<usize, StoreError> {
    Ok(store.claim(names.claim(limit)).await?.len())
}

/// Claims batch after batch with `claimers` tasks and completes each run at once, until there is none
/// left; answers how many.
///
/// # Errors
///
/// The first error of the store.
pub async fn claim_and_complete(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    claimers: usize,
    batch: u32,
) -> Result<usize, StoreError> {
    let mut tasks = JoinSet::new();
    for _ in 0..claimers {
        let (store, names, payload) = (store.clone(), names.clone(), payload.clone());
        tasks.spawn(async move {
            let mut done = 0;
            loop {
                let claimed = store.claim(names.claim(batch)).await?;
                if claimed.is_empty() {
                    return Ok(done);
                }
                done += claimed.len();
                let complete = claimed.into_iter().map(|run| {
                    store.complete_run(CompleteRun {
                        lease: run.lease.lease,
                        output: payload.clone(),
                        operation: OperationId::generate(),
                    })
                });
                futures::future::try_join_all(complete).await?;
            }
        });
    }
    let mut done = 0;
    while let Some(claimer) = tasks.join_next().await {
        done += joined(claimer)?;
    }
    Ok(done)
}

/// Claims `in_flight` runs, and lets each take `steps` steps one after the other, all runs at once;
/// answers how long that took. Each completion begins the next step.
///
/// # Errors
///
/// The first error of the store.
pub async fn take_steps(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    in_flight: usize,
    steps: u32,
) -> Result<Duration, StoreError> {
    let mut leases = Vec::new();
    while leases.len() < in_flight {
        let claimed = store.claim(names.claim(u32::try_from(in_flight).unwrap_or(u32::MAX))).await?;
        leases.extend(claimed.into_iter().map(|run| run.lease.lease));
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for lease in leases {
        let (store, payload) = (store.clone(), payload.clone());
        tasks.spawn(async move { take_steps_of(&store, lease, &payload, steps).await });
    }
    while let Some(run) = tasks.join_next().await {
        joined(run)?;
    }
    Ok(began.elapsed())
}

async fn take_steps_of(
    store: &SharedStore,
    lease: Lease,
    payload: &Payload,
    steps: u32,
) -> Result<(), StoreError> {
    let step =
        |number: u32| Ok::<_, StoreError>(NextStep::new(StepId::new(format!("step-{number}"))?, number));
    let begin = BeginStep { lease: lease.clone(), step: step(0)?, operation: OperationId::generate() };
    let mut outcome = store.begin_step(begin).await?;
    for number in 0..steps {
        let BeginOutcome::Execute { attempt } = outcome else { return Err(unexpected()) };
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(number)?.step_id,
            attempt,
            output: payload.clone(),
            then: Then::Begin(step(number + 1)?),
            operation: OperationId::generate(),
        };
        let CompleteStepOutcome::RecordedAndNext(next) = store.complete_step(complete).await? else {
            return Err(unexpected());
        };
        outcome = next;
    }
    Ok(())
}

pub(crate) fn joined<T>(task: Result<Result<T, StoreError>, JoinError>) -> Result<T, StoreError> {
    task.unwrap_or_else(|error| {
        Err(StoreError::Internal { context: "running the load", detail: error.to_string() })
    })
}

async fn claim_one(store: &SharedStore, names: &Names) -> Result<Vec<kagzi_core::ClaimedRun>, StoreError> {
    store.claim(names.claim(1)).await
}

async fn execute(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    claimed: kagzi_core::ClaimedRun,
) -> Result<(), StoreError> {
    let lease = claimed.lease.lease;
    let Some(first) = names.step(0) else { return Ok(()) };
    let begin = BeginStep { lease: lease.clone(), step: first, operation: OperationId::generate() };
    let mut outcome = store.begin_step(begin).await?;
    for number in 0..STEPS {
        let BeginOutcome::Execute { attempt } = outcome else { return Err(unexpected()) };
        let Some(step) = names.step(number) else { return Ok(()) };
        let then = names.step(number + 1).map_or_else(|| Then::CompleteRun(payload.clone()), Then::Begin);
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step.step_id,
            attempt,
            output: payload.clone(),
            then,
            operation: OperationId::generate(),
        };
        match store.complete_step(complete).await? {
            CompleteStepOutcome::RecordedAndNext(next) => outcome = next,
            CompleteStepOutcome::RecordedAndRunCompleted => return Ok(()),
            CompleteStepOutcome::Recorded => return Err(unexpected()),
        }
    }
    Err(unexpected())
}

pub(crate) fn unexpected() -> StoreError {
    StoreError::Internal {
        context: "running the load",
        detail: "a step was not given to the only worker that asked".to_owned(),
    }
}
