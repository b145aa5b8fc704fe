//! The workflow of the load: five steps that do nothing but hand their input on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kagzi_sdk::{Client, Context, StepError, Worker, WorkerBuilder, WorkerError, WorkflowError};

/// How many steps it has.
pub const STEPS: u32 = 5;

/// Its name.
pub const WORKFLOW_TYPE: &str = "five-steps";

/// Where its runs wait.
pub const QUEUE: &str = "bench";

/// How long a worker's leases last: on a busy machine, too, none is meant to be lost.
const LEASE: Duration = Duration::from_secs(30);

/// A worker of the load with up to `concurrency` runs at a time.
///
/// # Errors
///
/// [`WorkerError`] if `concurrency` is out of range.
pub fn worker(client: Client, concurrency: u32) -> Result<Worker, WorkerError> {
    worker_of(client, [QUEUE.to_owned()], concurrency)
}

/// The same for other queues.
///
/// # Errors
///
/// [`WorkerError`] if `concurrency` or the queues are out of range.
pub fn worker_of(
    client: Client,
    queues: impl IntoIterator<Item = String>,
    concurrency: u32,
) -> Result<Worker, WorkerError> {
    queues
        .into_iter()
        .fold(Worker::builder(client), WorkerBuilder::queue)
        .register(WORKFLOW_TYPE, five_steps)
        .max_concurrent_runs(concurrency)
        .lease(LEASE)
        .build()
}

/// Each step records its input as its output; the run's result is the moment at which the first step was
/// executed, in microseconds since 1970.
async fn five_steps(ctx: Context, filler: String) -> Result<u64, WorkflowError> {
    let first = || {
        let filler = filler.clone();
        async move {
            let began = micros_now().ok_or_else(|| StepError::non_retryable("clock", "it is before 1970"))?;
            Ok((began, filler))
        }
    };
    let (began, mut filler) = ctx.step("one", first).await?;
    for step in ["two", "three", "four", "five"] {
        filler = ctx.step(step, || async { Ok(filler.clone()) }).await?;
    }
    Ok(began)
}

/// Microseconds since 1970, unless the clock is before that.
pub fn micros_now() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_micros()).ok())
}
