//! Asks the engine for work.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Claim, ClaimedRun, OperationId, StoreError};

use super::Worker;
use super::leases::Leases;
use crate::calls::{About, Calls, asked_for};
use crate::error::WorkerError;
use crate::run::Writes;

/// How long giving back may take.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);

/// Polls, and knows which poll has not been answered.
pub(super) struct Poller {
    calls: Calls,
    leases: Arc<Leases>,
    wait: Duration,
    template: Claim,
    /// A claim that was sent and not answered: it may have taken runs.
    unanswered: Option<Claim>,
}

impl Poller {
    pub(super) fn new(worker: &Worker, leases: Arc<Leases>) -> Self {
        Self {
            calls: worker.calls.clone(),
            leases,
            wait: worker.settings.poll_wait,
            template: worker.claim.clone(),
            unanswered: None,
        }
    }

    /// Asks for up to `limit` runs until there is at least one. After a failure, the same claim is sent
    /// again, so that runs which it took are not lost with its answer; and if the leases are no longer fresh, not
    /// before a heartbeat has arrived, lest the worker take runs whose leases expired in an outage away from itself.
    /// A server that only refuses more calls for a moment is not asked to write all of them down again.
    pub(super) async fn poll(&mut self, limit: usize) -> Result<Vec<ClaimedRun>, WorkerError> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let mut failures = 0;
        loop {
            let lease_length = self.template.lease_length;
            let to_extend = failures > 0 && !self.leases.are_fresh(lease_length);
            if to_extend && !self.leases.extend(&self.calls, lease_length).await {
                failures += 1;
                tokio::time::sleep(self.calls.backoff.delay(failures, Duration::ZERO)).await;
                continue;
            }
            let claim = self.unanswered.get_or_insert_with(|| Claim {
                limit,
                operation: OperationId::generate(),
                ..self.template.clone()
            });
            let error = match self.calls.transport.poll(claim.clone(), self.wait).await {
                Ok(claimed) => {
                    self.unanswered = None;
                    failures = 0;
                    if claimed.is_empty() {
                        continue;
                    }
                    return Ok(claimed);
                }
                Err(error) => error,
            };
            failures += 1;
            self.calls.failed(&About::operation("poll"), failures, &error);
            if is_refusal(&error) {
                self.unanswered = None;
                return Err(WorkerError::Refused(error));
            }
            tokio::time::sleep(self.calls.backoff.delay(failures, asked_for(&error))).await;
        }
    }

    /// Gives back what an unanswered claim took, as far as that can be learnt in a few seconds; the
    /// rest comes back when its leases expire.
    pub(super) async fn give_back(&mut self) {
        let Some(claim) = self.unanswered.take() else { return };
        let giving_back = async {
            let claimed = self.calls.transport.poll(claim, Duration::ZERO).await?;
            for run in claimed {
                let writes = Writes { calls: self.calls.clone(), lease: run.lease.lease };
                writes.release().await?;
                self.calls.reporter.counters.runs_released.add(1);
            }
            Ok::<(), StoreError>(())
        };
        match tokio::time::timeout(GIVE_BACK_TIME, giving_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.calls.failed(&About::operation("poll"), 1, &error),
            Err(_) => tracing::warn!("the last poll was not answered; what it took comes back by itself"),
        }
    }
}

/// Whether the engine will answer the same for as long as the worker is what it is.
const fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::InvalidArgument { .. }
            | StoreError::TooLarge { .. }
            | StoreError::OperationConflict { .. }
            | StoreError::SchemaMismatch { .. }
    )
}
