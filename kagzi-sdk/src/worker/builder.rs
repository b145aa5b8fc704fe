//! How a worker is set up.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Claim, MAX_BATCH, OperationId, QueueName, StoreError, WorkerId, WorkflowType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::registry::{Registry, typed};
use super::{Settings, Worker};
use crate::backoff::Backoff;
use crate::calls::Calls;
use crate::client::Client;
use crate::context::Context;
use crate::error::{WorkerError, WorkflowError};
use crate::stats::{FailedCall, Reporter};
use crate::transport::WorkerScope;

/// Sets up a [`Worker`]. Mistakes are told by [`build`](Self::build).
#[derive(Debug)]
#[must_use]
pub struct WorkerBuilder {
    client: Client,
    queues: Vec<String>,
    registry: Registry,
    worker_id: Option<String>,
    settings: Settings,
    backoff: Backoff,
    reporter: Reporter,
    mistake: Option<WorkerError>,
}

impl WorkerBuilder {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            queues: Vec::new(),
            registry: Registry::default(),
            worker_id: None,
            settings: Settings::default(),
            backoff: Backoff::default(),
            reporter: Reporter::default(),
            mistake: None,
        }
    }

    /// Takes runs from this queue, too.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queues.push(queue.into());
        self
    }

    /// Executes runs of this type with this function. Input and output are JSON; a type that takes
    /// nothing takes `()`.
    pub fn register<F, Fut, In, Out>(mut self, workflow_type: impl AsRef<str>, function: F) -> Self
    where
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, WorkflowError>> + Send + 'static,
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
    {
        let mistake = match WorkflowType::new(&workflow_type) {
            Ok(name) if self.registry.add(name.clone(), typed(function)) => None,
            Ok(name) => Some(WorkerError::RegisteredTwice { workflow_type: name.as_str().to_owned() }),
            Err(error) => Some(WorkerError::Setting(error)),
        };
        self.mistake = self.mistake.or(mistake);
        self
    }

    /// The name under which the worker holds leases; by default random, made when the worker is built.
    /// Two workers of one name do each other no harm, since only the fencing token decides, but people
    /// cannot tell them apart: never build it from host and process id alone, which return.
    pub fn worker_id(mut self, worker_id: impl Into<String>) -> Self {
        self.worker_id = Some(worker_id.into());
        self
    }

    /// How many runs are executed side by side at most, 1 to 10,000. 64 by default.
    pub fn max_concurrent_runs(mut self, runs: u32) -> Self {
        self.settings.max_concurrent_runs = runs;
        self
    }

    /// How long a lease lasts without a heartbeat: after this long, the runs of a dead worker go on
    /// elsewhere. Heartbeats go out three times as often. 30 s by default.
    pub fn lease(mut self, length: Duration) -> Self {
        self.settings.lease_length = length;
        self
    }

    /// How long one poll waits at the engine for work. 20 s by default.
    pub fn poll_wait(mut self, wait: Duration) -> Self {
        self.settings.poll_wait = wait;
        self
    }

    /// How many recorded steps come with a claimed run at once, 1 to 10,000; the rest is fetched. 200
    /// by default.
    pub fn steps_per_claim(mut self, steps: u32) -> Self {
        self.settings.steps_limit = steps;
        self
    }

    /// How long a shutdown waits for steps in flight, before they are dropped and their runs given
    /// back. 30 s by default.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    /// How long steps in flight have, after their run was cancelled, to notice and to clean up before
    /// they are dropped; see [`Context::cancelled`]. 5 s by default.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.settings.cancel_grace = grace;
        self
    }

    /// How long to wait between repeats of failed calls.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Is called with every call to the engine that failed, on top of the log; it must not block.
    pub fn on_failed_call(mut self, observer: impl Fn(&FailedCall<'_>) + Send + Sync + 'static) -> Self {
        self.reporter.observer = Some(Arc::new(observer));
        self
    }

    /// The worker.
    ///
    /// # Errors
    ///
    /// [`WorkerError`] naming the first mistake.
    pub fn build(self) -> Result<Worker, WorkerError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        if self.registry.is_empty() {
            return Err(WorkerError::NoWorkflow);
        }
        if self.queues.is_empty() {
            return Err(WorkerError::NoQueue);
        }
        self.settings.check().map_err(WorkerError::Setting)?;
        let queues = self
            .queues
            .into_iter()
            .map(QueueName::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(WorkerError::Setting)?;
        let worker_id = WorkerId::new(self.worker_id.unwrap_or_else(random_worker_id));
        let claim = Claim {
            namespace: self.client.namespace().clone(),
            queues,
            workflow_types: self.registry.types(),
            worker_id: worker_id.map_err(WorkerError::Setting)?,
            lease_length: self.settings.lease_length,
            limit: 1,
            steps_limit: self.settings.steps_limit,
            operation: OperationId::generate(),
        };
        let shared = self.client.transport();
        let scope = WorkerScope { claim: claim.clone(), backoff: self.backoff };
        Ok(Worker {
            calls: Calls {
                transport: shared.for_worker(scope).unwrap_or_else(|| Arc::clone(shared)),
                backoff: self.backoff,
                reporter: self.reporter,
                trace: None,
            },
            client: self.client,
            claim,
            registry: Arc::new(self.registry),
            settings: self.settings,
        })
    }
}

impl Settings {
    fn check(&self) -> Result<(), StoreError> {
        let within = |field: &str, value: u32| {
            if (1..=MAX_BATCH).contains(&value) {
                return Ok(());
            }
            Err(StoreError::InvalidArgument {
                field: field.to_owned(),
                expected: format!("from 1 to {MAX_BATCH}"),
                got: value.to_string(),
            })
        };
        within("max_concurrent_runs", self.max_concurrent_runs)?;
        within("steps_per_claim", self.steps_limit)?;
        if self.lease_length < Duration::from_millis(10) || self.lease_length > kagzi_core::MAX_DURATION {
            return Err(StoreError::InvalidArgument {
                field: "lease".to_owned(),
                expected: "from 10 milliseconds to 100 years".to_owned(),
                got: format!("{:?}", self.lease_length),
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("max_concurrent_runs", &self.max_concurrent_runs)
            .field("lease_length", &self.lease_length)
            .field("poll_wait", &self.poll_wait)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}

/// The host's name, if the environment tells it, for people; and a random part that never returns.
fn random_worker_id() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let host: String =
        host.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(63).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{}", Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_ids_never_repeat_and_are_within_the_rule() {
        let (one, two) = (random_worker_id(), random_worker_id());
        assert_ne!(one, two);
        assert!(WorkerId::new(one).is_ok());
    }
}
