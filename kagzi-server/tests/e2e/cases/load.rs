//! A load of callers, who start runs of five steps and wait for them, and what becomes of it.

use kagzi_core::QueueName;
use kagzi_sdk::{Client, RunFilter, RunHandle, RunState, Start};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::expect_eq;
use crate::worker::FIVE;
use crate::world::Failed;

/// How many callers start runs and wait for them, one after the other.
pub const CALLERS: u64 = 8;

/// The runs of the load.
pub fn of_the_load() -> Result<RunFilter, Failed> {
    Ok(RunFilter { queue: Some(QueueName::new("default")?), ..RunFilter::default() })
}

/// How many of them are completed.
pub async fn done(client: &Client) -> Result<u64, Failed> {
    let filter = RunFilter { states: vec![RunState::Completed], ..of_the_load()? };
    Ok(client.count(&filter).await?)
}

/// Waits until so many more are.
pub async fn goes_on(client: &Client, runs: u64) -> Result<(), Failed> {
    let enough = done(client).await? + runs;
    while done(client).await? < enough {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Callers who start runs of five steps and wait for them, one after the other.
pub struct Load {
    enough: CancellationToken,
    callers: JoinSet<Result<Vec<RunHandle>, Failed>>,
}

impl Load {
    pub fn begin(client: &Client) -> Self {
        let (enough, mut callers) = (CancellationToken::new(), JoinSet::new());
        for caller in 0..CALLERS {
            callers.spawn(call(client.clone(), caller * 1_000_000, enough.clone()));
        }
        Self { enough, callers }
    }

    /// The runs that were acknowledged, all done and right.
    pub async fn end(&mut self) -> Result<Vec<RunHandle>, Failed> {
        self.enough.cancel();
        let mut runs = Vec::new();
        while let Some(caller) = self.callers.join_next().await {
            runs.extend(caller??);
        }
        Ok(runs)
    }
}

async fn call(client: Client, first: u64, enough: CancellationToken) -> Result<Vec<RunHandle>, Failed> {
    let mut runs = Vec::new();
    for number in first.. {
        if enough.is_cancelled() {
            break;
        }
        let start = Start::workflow(FIVE).queue("default").input(&number)?;
        let run = client.start(start).await?;
        expect_eq("the result of a run of five steps", &run.result::<u64>().await?, &(number + 5))?;
        runs.push(run);
    }
    Ok(runs)
}
