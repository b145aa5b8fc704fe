//! Steps that execute twice, change their outputs, or are written in halves.

use async_trait::async_trait;
use kagzi_core::{
    Attempt, AttemptScope, AttemptState, BeginOutcome, BeginStep, CompleteRun, CompleteStep,
    CompleteStepOutcome, ListAttempts, Page, PageRequest, Payload, SharedStore, StoreError, Then,
};

use super::Bug;

async fn is_recorded(store: &SharedStore, request: &BeginStep) -> Result<bool, StoreError> {
    let lease = &request.lease;
    let page = store
        .list_attempts(&ListAttempts {
            namespace: lease.namespace.clone(),
            run_id: lease.run_id,
            scope: AttemptScope::Latest,
            page: PageRequest::first(10_000),
        })
        .await?;
    Ok(page.items.iter().any(|attempt| attempt.step_id == request.step.step_id))
}

fn executes(outcome: BeginOutcome) -> BeginOutcome {
    match outcome {
        BeginOutcome::InProgress { attempt } => BeginOutcome::Execute { attempt },
        other => other,
    }
}

/// Looks whether the step is there, and decides by what it saw then.
#[derive(Debug)]
pub struct BeginReadsFirst;

#[async_trait]
impl Bug for BeginReadsFirst {
    async fn begin_step(&self, store: &SharedStore, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let seen = is_recorded(store, &request).await?;
        // Time enough for another to do the same.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let outcome = store.begin_step(request).await?;
        Ok(if seen { outcome } else { executes(outcome) })
    }
}

/// Tells everybody who begins an open step to execute it.
#[derive(Debug)]
pub struct SecondBeginExecutes;

#[async_trait]
impl Bug for SecondBeginExecutes {
    async fn begin_step(&self, store: &SharedStore, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        store.begin_step(request).await.map(executes)
    }
}

fn as_text(payload: &Payload) -> Payload {
    let text = String::from_utf8_lossy(&payload.bytes).into_owned();
    Payload::new(payload.content_type.clone(), text)
}

/// Takes outputs for text when they are written.
#[derive(Debug)]
pub struct OutputsAreText;

#[async_trait]
impl Bug for OutputsAreText {
    async fn complete_step(
        &self,
        store: &SharedStore,
        request: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        store.complete_step(CompleteStep { output: as_text(&request.output), ..request }).await
    }
}

/// Takes outputs for text when they are remembered.
#[derive(Debug)]
pub struct MemoryIsText;

#[async_trait]
impl Bug for MemoryIsText {
    async fn begin_step(&self, store: &SharedStore, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        Ok(match store.begin_step(request).await? {
            BeginOutcome::Memoized { attempt, output } => {
                BeginOutcome::Memoized { attempt, output: as_text(&output) }
            }
            other => other,
        })
    }
}

/// Writes a completion, and then what was to happen together with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletesInHalves {
    /// With nothing in between.
    AtOnce,
    /// If the caller is still there: it waits in between, as for a second transaction.
    WithAWait,
}

#[async_trait]
impl Bug for CompletesInHalves {
    async fn complete_step(
        &self,
        store: &SharedStore,
        mut request: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        let then = std::mem::replace(&mut request.then, Then::Nothing);
        let (lease, operation) = (request.lease.clone(), request.operation);
        let done = store.complete_step(request).await?;
        if *self == Self::WithAWait {
            tokio::task::yield_now().await;
        }
        match then {
            Then::Nothing => Ok(done),
            Then::Begin(step) => {
                let begun = store.begin_step(BeginStep { lease, step, operation }).await?;
                Ok(CompleteStepOutcome::RecordedAndNext(begun))
            }
            Then::CompleteRun(output) => {
                store.complete_run(CompleteRun { lease, output, operation }).await?;
                Ok(CompleteStepOutcome::RecordedAndRunCompleted)
            }
        }
    }
}

/// Shows a history without its failures, numbered anew.
#[derive(Debug)]
pub struct HistoryRenumbers;

#[async_trait]
impl Bug for HistoryRenumbers {
    async fn list_attempts(
        &self,
        store: &SharedStore,
        request: &ListAttempts,
    ) -> Result<Page<Attempt>, StoreError> {
        let mut page = store.list_attempts(request).await?;
        page.items.retain(|attempt| attempt.state != AttemptState::Abandoned);
        let mut last = None;
        for attempt in &mut page.items {
            let number = match last.take() {
                Some((step_id, number)) if step_id == attempt.step_id => number + 1,
                _ => 1,
            };
            attempt.attempt = number;
            last = Some((attempt.step_id.clone(), number));
        }
        Ok(page)
    }
}
