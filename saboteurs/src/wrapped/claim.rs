//! Claims that take what they should not, or hand over too little.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kagzi_conformance::suite_rules;
use kagzi_core::decide::ClaimRoom;
use kagzi_core::{
    AttemptScope, Claim, ClaimedRun, ListAttempts, OperationId, PageRequest, SharedStore, StoreError,
};

use super::{Bug, meanwhile};

/// What a claim does not look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarelessClaim {
    /// The types that were asked for.
    Types,
    /// The limit, by one.
    Limit,
    /// The queues after the first.
    Queues,
    /// Its operation id.
    Operation,
    /// That there may be more steps than it hands over.
    MoreSteps,
    /// The steps.
    Steps,
    /// The steps after the first hundred.
    StepsBeyondAHundred,
    /// The steps after the first 256.
    StepsBeyond256,
}

#[async_trait]
impl Bug for CarelessClaim {
    async fn claim(&self, store: &SharedStore, mut it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        match self {
            Self::Types => it.workflow_types.clear(),
            Self::Limit => it.limit = it.limit.saturating_add(1),
            Self::Queues => it.queues.truncate(1),
            Self::Operation => it.operation = OperationId::generate(),
            Self::MoreSteps | Self::Steps | Self::StepsBeyondAHundred | Self::StepsBeyond256 => {}
        }
        let mut claimed = store.claim(it).await?;
        for run in &mut claimed {
            match self {
                Self::MoreSteps => run.more_steps = None,
                Self::Steps => run.steps.clear(),
                Self::StepsBeyondAHundred => run.steps.truncate(100),
                Self::StepsBeyond256 => run.steps.truncate(256),
                Self::Types | Self::Limit | Self::Queues | Self::Operation => {}
            }
        }
        Ok(claimed)
    }
}

/// Sends a claim's steps again without charging the inputs that go with them.
#[derive(Debug, Default)]
pub struct RepeatsChargeNoInputs(Mutex<BTreeSet<String>>);

#[async_trait]
impl Bug for RepeatsChargeNoInputs {
    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let (operation, steps_limit) = (it.operation.to_string(), it.steps_limit);
        let mut claimed = store.claim(it).await?;
        let first =
            claimed.is_empty() || self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
        let mut room = ClaimRoom::new(&suite_rules());
        for run in claimed.iter_mut().filter(|_| !first) {
            let listing = ListAttempts {
                namespace: run.run.namespace.clone(),
                run_id: run.run.run_id,
                scope: AttemptScope::Latest,
                page: PageRequest::first(steps_limit),
            };
            let page = room.steps(&run.run, store.list_attempts(&listing).await?);
            (run.steps, run.more_steps) = (page.items, page.next);
        }
        Ok(claimed)
    }
}

/// Remembers of a claim that found nothing that there was nothing, and answers so when it is sent again.
#[derive(Debug, Default)]
pub struct NothingIsRemembered(Mutex<BTreeSet<String>>);

#[async_trait]
impl Bug for NothingIsRemembered {
    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let operation = it.operation.to_string();
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&operation) {
            return Ok(Vec::new());
        }
        let claimed = store.claim(it).await?;
        if claimed.is_empty() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
        }
        Ok(claimed)
    }
}

/// Reads the steps of claimed runs after the claim, whoever holds them by then.
#[derive(Clone, Copy, Debug)]
pub struct StepsReadLater;

#[async_trait]
impl Bug for StepsReadLater {
    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let steps_limit = it.steps_limit;
        let mut claimed = store.claim(it).await?;
        meanwhile().await;
        for run in claimed.iter_mut().filter(|run| run.more_steps.is_none()) {
            let listing = ListAttempts {
                namespace: run.run.namespace.clone(),
                run_id: run.run.run_id,
                scope: AttemptScope::Latest,
                page: PageRequest::first(steps_limit),
            };
            run.steps = store.list_attempts(&listing).await?.items;
        }
        Ok(claimed)
    }
}
