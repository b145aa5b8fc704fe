//! Claims that take what they should not, or hand over too little.

use async_trait::async_trait;
use kagzi_core::{Claim, ClaimedRun, OperationId, SharedStore, StoreError};

use super::Bug;

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
}

#[async_trait]
impl Bug for CarelessClaim {
    async fn claim(&self, store: &SharedStore, mut it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        match self {
            Self::Types => it.workflow_types.clear(),
            Self::Limit => it.limit = it.limit.saturating_add(1),
            Self::Queues => it.queues.truncate(1),
            Self::Operation => it.operation = OperationId::generate(),
            Self::MoreSteps | Self::Steps => {}
        }
        let mut claimed = store.claim(it).await?;
        for run in &mut claimed {
            match self {
                Self::MoreSteps => run.more_steps = None,
                Self::Steps => run.steps.clear(),
                Self::Types | Self::Limit | Self::Queues | Self::Operation => {}
            }
        }
        Ok(claimed)
    }
}
