//! The runs of one demo, as the server sees them: starting them, counting them, reading how they ended.

use std::collections::HashMap;
use std::time::Duration;

use kagzi_core::{Attempt, AttemptState, QueueName, Run, RunFilter, RunId, StepId, StoreError};
use kagzi_sdk::{Client, ClientError, RunHandle, Start};
use tokio::task::{JoinError, JoinSet};

use super::audit::Audit;
use super::path::RelativePath;
use super::workflow::{Job, WORKFLOW_TYPE};

/// How many runs are started, or listed, in one call.
const PAGE: u32 = 500;

/// How many histories are read at a time.
const READERS: usize = 16;

/// Which run backs up which file.
pub type Files = HashMap<RunId, RelativePath>;

/// The runs of one demo. They have a queue of their own, so that demos on one database do not mix.
#[derive(Clone, Debug)]
pub struct Batch {
    client: Client,
    queue: QueueName,
}

impl Batch {
    /// The batch of `queue`.
    pub const fn new(client: Client, queue: QueueName) -> Self {
        Self { client, queue }
    }

    /// Starts a run for each file, in their order, and answers whose file is which.
    ///
    /// # Errors
    ///
    /// Those of starting runs.
    pub async fn start(&self, files: &[RelativePath]) -> Result<Files, ClientError> {
        let mut started = Files::with_capacity(files.len());
        for files in files.chunks(PAGE as usize) {
            let start = |path: &RelativePath| {
                Start::workflow(WORKFLOW_TYPE).queue(self.queue.as_str()).input(&Job { path: path.clone() })
            };
            let runs = self.client.start_many(files.iter().map(start).collect::<Result<_, _>>()?).await?;
            started.extend(runs.iter().map(RunHandle::run_id).zip(files.iter().cloned()));
        }
        Ok(started)
    }

    /// The same batch, for whoever asks again soon: a call that fails is not repeated.
    #[must_use]
    pub fn at_once(&self) -> Self {
        Self { client: self.client.clone().with_patience(Duration::ZERO), queue: self.queue.clone() }
    }

    /// How many runs are not finished.
    ///
    /// # Errors
    ///
    /// Those of looking at the queues.
    pub async fn live(&self) -> Result<u64, ClientError> {
        let depths = self.client.queue_depths().await?;
        let own = depths.into_iter().find(|depth| depth.queue == self.queue);
        Ok(own.map_or(0, |depth| depth.pending + depth.running + depth.sleeping))
    }

    /// The step of this run that is being executed, by the attempts table.
    ///
    /// # Errors
    ///
    /// Those of listing attempts.
    pub async fn running_step(&self, run_id: RunId) -> Result<Option<StepId>, ClientError> {
        let attempts = self.client.attempts(run_id).await?;
        let running = attempts.into_iter().find(|attempt| attempt.state == AttemptState::Running);
        Ok(running.map(|attempt| attempt.step_id))
    }

    /// All its runs.
    ///
    /// # Errors
    ///
    /// Those of listing runs.
    pub async fn runs(&self) -> Result<Vec<Run>, ClientError> {
        let filter = RunFilter { queue: Some(self.queue.clone()), ..RunFilter::default() };
        let mut runs = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.client.list(&filter, PAGE, cursor).await?;
            runs.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(runs),
            }
        }
    }

    /// Reads every history, a few at a time, and adds it up.
    ///
    /// # Errors
    ///
    /// Those of listing attempts.
    pub async fn audit(&self, runs: &[Run]) -> Result<Audit, ClientError> {
        let mut audit = Audit::default();
        let mut readers = JoinSet::new();
        for run in runs {
            if readers.len() >= READERS
                && let Some(history) = readers.join_next().await
            {
                audit.add(&finished(history)?);
            }
            let (client, run_id) = (self.client.clone(), run.run_id);
            readers.spawn(async move { client.attempts(run_id).await });
        }
        while let Some(history) = readers.join_next().await {
            audit.add(&finished(history)?);
        }
        Ok(audit)
    }
}

fn finished(
    reader: Result<Result<Vec<Attempt>, ClientError>, JoinError>,
) -> Result<Vec<Attempt>, ClientError> {
    reader.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => {
            Err(StoreError::Internal { context: "reading a history", detail: error.to_string() }.into())
        }
    })
}
