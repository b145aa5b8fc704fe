//! The worker: takes runs from queues and executes them.

mod builder;
mod execute;
mod leases;
mod poll;
mod registry;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Claim, ClaimedRun, WorkerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use builder::WorkerBuilder;

use crate::calls::Calls;
use crate::client::Client;
use crate::error::WorkerError;
use crate::stats::{Reporter, WorkerStats};
use execute::Executor;
use leases::Leases;
use poll::Poller;
use registry::Registry;

/// How long runs have to be given back once the drain timeout is over.
const RELEASE_TIME: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
struct Settings {
    max_concurrent_runs: u32,
    lease_length: Duration,
    poll_wait: Duration,
    steps_limit: u32,
    drain_timeout: Duration,
    cancel_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_concurrent_runs: 64,
            lease_length: Duration::from_secs(30),
            poll_wait: Duration::from_secs(20),
            steps_limit: 200,
            drain_timeout: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(5),
        }
    }
}

/// Takes runs from queues and executes them with the functions registered, many side by side.
///
/// A worker keeps its leases alive by heartbeats, repeats calls that an outage kept from arriving, and
/// stops a run whose lease is lost before it starts another step. Workflow functions run on the tokio
/// runtime: what blocks or computes for long belongs into `tokio::task::spawn_blocking`.
#[derive(Debug)]
pub struct Worker {
    /// Keeps an embedded engine alive.
    client: Client,
    calls: Calls,
    /// What it claims, each time with another limit and operation.
    claim: Claim,
    registry: Arc<Registry>,
    settings: Settings,
}

/// A look at a worker's counters from outside. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct StatsHandle(Reporter);

impl StatsHandle {
    /// The counters now.
    pub fn now(&self) -> WorkerStats {
        self.0.counters.snapshot()
    }
}

impl Worker {
    /// Begins to set up a worker on the engine and namespace of `client`.
    pub fn builder(client: Client) -> WorkerBuilder {
        WorkerBuilder::new(client)
    }

    /// The name under which the worker holds leases.
    pub fn worker_id(&self) -> &WorkerId {
        &self.claim.worker_id
    }

    /// The client that the worker was built with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The worker's counters, to be read while it runs and after.
    pub fn stats(&self) -> StatsHandle {
        StatsHandle(self.calls.reporter.clone())
    }

    /// Works until the process ends; see [`run_until`](Self::run_until).
    ///
    /// # Errors
    ///
    /// As for [`run_until`](Self::run_until).
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(std::future::pending()).await
    }

    /// Works until `shutdown` is ready, then drains: takes no more runs, lets steps in flight finish
    /// and be recorded, and gives unfinished runs back for other workers to go on with. Leases are kept
    /// alive meanwhile. Steps that are not done after the drain timeout are dropped.
    ///
    /// Dropping the future stops everything at once, as a crash would: the runs go on elsewhere when
    /// their leases have expired.
    ///
    /// # Errors
    ///
    /// [`WorkerError::Refused`] if the engine refuses to hand out work and asking again cannot help.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let leases = Arc::new(Leases::default());
        let executor = Executor {
            calls: self.calls.clone(),
            registry: Arc::clone(&self.registry),
            namespace: self.client.namespace().clone(),
            payloads: self.client.payloads().clone(),
            leases: Arc::clone(&leases),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
            settings: self.settings,
        };
        let working = async {
            let mut runs = JoinSet::new();
            let worked = self.work(&executor, &mut runs, shutdown).await;
            self.drain(&executor, &mut runs).await;
            worked
        };
        // The heart beats until the last run is given back.
        tokio::select! {
            worked = working => worked,
            never = leases.beat(&self.calls, self.settings.lease_length) => match never {},
        }
    }

    /// Takes runs and has them executed until `shutdown` is ready.
    async fn work(
        &self,
        executor: &Executor,
        runs: &mut JoinSet<()>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), WorkerError> {
        let slots = Arc::new(Semaphore::new(self.settings.max_concurrent_runs as usize));
        let mut poller = Poller::new(self, Arc::clone(&executor.leases));
        let mut shutdown = pin!(shutdown);
        loop {
            let taking = async {
                let mut free = free_slots(&slots).await;
                let claimed = poller.poll(free.num_permits()).await?;
                // There is a slot for each, since no engine hands out more than it is asked for.
                let admitted = claimed.into_iter().filter_map(|run| Some((run, free.split(1)?)));
                Ok(admitted.collect::<Vec<(ClaimedRun, OwnedSemaphorePermit)>>())
            };
            let claimed = tokio::select! {
                biased;
                () = &mut shutdown => {
                    executor.drain.cancel();
                    poller.give_back().await;
                    return Ok(());
                }
                claimed = taking => claimed?,
            };
            for (run, slot) in claimed {
                runs.spawn(executor.admit(run, slot));
            }
            while let Some(ended) = runs.try_join_next() {
                report_end(&ended);
            }
        }
    }

    /// Lets the runs end, within the drain timeout of their own accord, after it by force.
    async fn drain(&self, executor: &Executor, runs: &mut JoinSet<()>) {
        executor.drain.cancel();
        if tokio::time::timeout(self.settings.drain_timeout, all_ended(runs)).await.is_ok() {
            return;
        }
        tracing::warn!(runs = runs.len(), "the drain timeout is over: steps in flight are dropped");
        executor.abort.cancel();
        if tokio::time::timeout(RELEASE_TIME, all_ended(runs)).await.is_err() {
            tracing::warn!(runs = runs.len(), "runs could not be given back: their leases will expire");
        }
    }
}

/// Every slot that is free, at least one.
async fn free_slots(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let Ok(mut free) = Arc::clone(slots).acquire_owned().await else {
        // Nobody closes the semaphore; if somebody did, there would be no slot ever.
        return std::future::pending().await;
    };
    let more = u32::try_from(slots.available_permits()).unwrap_or(u32::MAX);
    if let Ok(more) = Arc::clone(slots).try_acquire_many_owned(more) {
        free.merge(more);
    }
    free
}

async fn all_ended(runs: &mut JoinSet<()>) {
    while let Some(ended) = runs.join_next().await {
        report_end(&ended);
    }
}

fn report_end(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // Code of workflows and steps is caught where it panics, so this is a panic of the SDK, or of a
        // destructor of the application.
        tracing::error!(%error, "an execution panicked; its lease will expire");
    }
}
