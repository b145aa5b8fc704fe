//! A run that was started, and its result.

use std::time::Duration;

use kagzi_core::{Attempt, CancelOutcome, RunId, RunRecord, RunState, StartOutcome, Started, StoreError};
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::codec;
use crate::error::{ClientError, WorkflowFailed};

/// How long one look for the end of a run waits.
const WAIT: Duration = Duration::from_secs(30);

/// One run of a client. Dropping the handle does nothing to the run.
#[derive(Clone, Debug)]
pub struct RunHandle {
    client: Client,
    run_id: RunId,
    outcome: Option<StartOutcome>,
}

impl RunHandle {
    pub(crate) fn new(client: Client, started: Started) -> Self {
        Self { client, run_id: started.run_id, outcome: Some(started.outcome) }
    }

    pub(crate) fn existing(client: Client, run_id: RunId) -> Self {
        Self { client, run_id, outcome: None }
    }

    /// The run's id.
    pub const fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Whether the start made the run or found it by its key; nothing for a handle made from an id.
    pub const fn start_outcome(&self) -> Option<StartOutcome> {
        self.outcome
    }

    /// Waits for the end of the run, however long that takes, and gives its output.
    ///
    /// Cancel safe: it only reads, so wrap it in `tokio::time::timeout` for a limit.
    ///
    /// # Errors
    ///
    /// [`ClientError::WorkflowFailed`] with the reason if the run ended as a dead letter or was
    /// cancelled; [`ClientError::Codec`] if its output is not a `T`.
    pub async fn result<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let record = self.finished().await?;
        match (record.output, record.run.failure) {
            (Some(output), _) => Ok(codec::decode(&output, || format!("the output of run {}", self.run_id))?),
            (None, Some(failure)) => Err(Box::new(WorkflowFailed {
                run_id: self.run_id,
                state: record.run.state,
                kind: failure.kind,
                code: failure.code,
                message: failure.message,
                details: failure.details,
                dead_letter: record.run.dead_letter,
            })
            .into()),
            (None, None) => {
                let detail = format!("run {} is {} without output or failure", self.run_id, record.run.state);
                Err(StoreError::Internal { context: "reading a finished run", detail }.into())
            }
        }
    }

    /// Waits for the end of the run, whichever it is, and gives the run as it then stands.
    ///
    /// # Errors
    ///
    /// [`StoreError::RunNotFound`]; [`ClientError::Codec`] if a payload codec refuses one of its payloads.
    pub async fn finished(&self) -> Result<RunRecord, ClientError> {
        let client = &self.client;
        loop {
            let look = || client.transport().await_finished(client.namespace(), self.run_id, WAIT);
            let record = client.patiently(look).await?;
            if record.run.state.is_terminal() {
                let namespace = client.namespace();
                return Ok(client.payloads().decode_record(namespace, self.run_id, record)?);
            }
        }
    }

    /// The run as it stands now.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub async fn record(&self) -> Result<RunRecord, ClientError> {
        self.client.get(self.run_id).await
    }

    /// The state of the run now.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub async fn state(&self) -> Result<RunState, ClientError> {
        Ok(self.record().await?.run.state)
    }

    /// The run's whole history.
    ///
    /// # Errors
    ///
    /// As for [`Client::attempts`].
    pub async fn attempts(&self) -> Result<Vec<Attempt>, ClientError> {
        self.client.attempts(self.run_id).await
    }

    /// Cancels the run.
    ///
    /// # Errors
    ///
    /// As for [`Client::cancel`].
    pub async fn cancel(&self, reason: impl Into<String>) -> Result<CancelOutcome, ClientError> {
        self.client.cancel(self.run_id, reason).await
    }
}
