//! The workflow of the load: five trivial steps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kagzi_sdk::{Context, StepError, WorkerBuilder, WorkflowError};

/// Its name.
pub const FIVE_STEPS: &str = "five-steps";

/// Adds the workflow and the settings of a loaded worker.
pub fn register(builder: WorkerBuilder) -> WorkerBuilder {
    builder
        .queue("default")
        .register(FIVE_STEPS, five_steps)
        .max_concurrent_runs(512)
        .lease(Duration::from_secs(30))
}

/// Gives the moment at which its first step was executed, in microseconds since 1970.
async fn five_steps(ctx: Context, number: u64) -> Result<u64, WorkflowError> {
    let first = ctx
        .step("one", || async {
            micros_now().map_err(|error| StepError::non_retryable("clock", error.to_string()))
        })
        .await?;
    let mut sum = number;
    for step in ["two", "three", "four", "five"] {
        sum = ctx.step(step, || async move { Ok(sum + 1) }).await?;
    }
    Ok(first)
}

/// Microseconds since 1970.
pub fn micros_now() -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}
