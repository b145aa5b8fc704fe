//! Steps: begin, complete, fail, sleep; and completing a run, which shares their batches.

use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::decide::{self, Decision};
use kagzi_core::{
    BeginOutcome, BeginStep, CompleteRun, CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailStep,
    FailureOutcome, Lease, Namespace, NextStep, OperationId, Payload, RunId, Sleep, SleepOutcome, StoreError,
    Then, Topic,
};
use sqlx::Row as _;

use crate::commit::{Committer, Gathered, Verdict};
use crate::error::{Fault, MAX_TRIES, RETRY_AFTER, is_connection_lost};
use crate::locked::Wanted;
use crate::rows::{micros, retry_text};
use crate::statement::query;
use crate::{Inner, PostgresStore};

/// A write of a worker that is gathered with others.
#[derive(Clone, Debug)]
pub(crate) enum StepOperation {
    Begin(Arc<BeginStep>),
    Complete(Arc<CompleteStep>),
    Finish(Arc<CompleteRun>),
}

impl StepOperation {
    fn lease(&self) -> &Lease {
        match self {
            Self::Begin(request) => &request.lease,
            Self::Complete(request) => &request.lease,
            Self::Finish(request) => &request.lease,
        }
    }

    fn operation(&self) -> OperationId {
        match self {
            Self::Begin(request) => request.operation,
            Self::Complete(request) => request.operation,
            Self::Finish(request) => request.operation,
        }
    }

    fn completes(&self) -> Option<&CompleteStep> {
        match self {
            Self::Complete(request) => Some(request),
            Self::Begin(_) | Self::Finish(_) => None,
        }
    }

    fn begins(&self) -> Option<&NextStep> {
        match self {
            Self::Begin(request) => Some(&request.step),
            Self::Complete(request) => match &request.then {
                Then::Begin(next) => Some(next),
                Then::Nothing | Then::CompleteRun(_) => None,
            },
            Self::Finish(_) => None,
        }
    }

    fn finishes(&self) -> Option<&Payload> {
        match self {
            Self::Complete(request) => match &request.then {
                Then::CompleteRun(output) => Some(output),
                Then::Nothing | Then::Begin(_) => None,
            },
            Self::Finish(request) => Some(&request.output),
            Self::Begin(_) => None,
        }
    }
}

impl Gathered for StepOperation {
    fn run_id(&self) -> RunId {
        self.lease().run_id
    }

    fn namespace(&self) -> &Namespace {
        &self.lease().namespace
    }

    fn len_bytes(&self) -> usize {
        self.completes().map_or(0, |request| request.output.len_bytes())
            + self.finishes().map_or(0, Payload::len_bytes)
    }

    type Answer = Verdict;

    fn unanswered() -> Verdict {
        // The lane had sent its batch, perhaps.
        Verdict::FateOpen
    }
}

/// Commits batches of [`StepOperation`].
pub(crate) struct StepCommitter(pub(crate) Arc<Inner>);

#[async_trait]
impl Committer<StepOperation> for StepCommitter {
    async fn commit(&self, partition: i16, batch: &[StepOperation]) -> Vec<Verdict> {
        let mut tries = 1;
        loop {
            match self.0.commit_steps(partition, batch).await {
                Ok(done) => {
                    self.0.announce_steps(batch, &done);
                    return done.iter().map(|&done| verdict(done)).collect();
                }
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return vec![after_fault(fault, "committing steps"); batch.len()],
            }
        }
    }

    fn partition_of(&self, run_id: RunId) -> i16 {
        self.0.partition(run_id)
    }
}

const fn verdict(done: bool) -> Verdict {
    if done { Verdict::Done } else { Verdict::NotOrdinary }
}

/// What a batch that failed means to each of its operations.
pub(crate) fn after_fault(fault: Fault, context: &'static str) -> Verdict {
    tracing::warn!(%fault, context, "a batch failed");
    if fault.is_locked() {
        // Somebody holds one of the runs, and the others need not wait for it.
        return Verdict::NotOrdinary;
    }
    if matches!(&fault, Fault::Committing(error) if is_connection_lost(error)) {
        return Verdict::FateOpen;
    }
    match fault.into_store_error(context) {
        StoreError::Unavailable { reason, scope, .. } => Verdict::Away { reason, scope },
        // One of them is to blame, perhaps: they go one by one.
        _ => Verdict::NotOrdinary,
    }
}

/// Takes an operation that its batch did not do along the path that knows all rules and repeats.
pub(crate) async fn carefully<T>(
    verdict: Verdict,
    path: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    match verdict {
        Verdict::Away { reason, scope } => Err(StoreError::unavailable(reason, RETRY_AFTER).within(scope)),
        Verdict::Done | Verdict::NotOrdinary => path.await,
        Verdict::FateOpen => match path.await {
            // It may have been done with its batch, and there is nobody to ask now.
            Err(StoreError::Unavailable { reason, scope, .. }) => {
                Err(StoreError::outcome_unknown(reason).within(scope))
            }
            answer => answer,
        },
    }
}

impl Inner {
    async fn commit_steps(&self, partition: i16, batch: &[StepOperation]) -> Result<Vec<bool>, Fault> {
        let each = || batch.iter();
        let retries = each()
            .map(|one| retry_text(one.begins().and_then(|next| next.retry.as_ref())))
            .collect::<Result<Vec<_>, _>>()?;
        let query = query(
            "SELECT done FROM kagzi_steps($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                 $16, $17) AS done",
        )
        .bind(partition)
        .bind(self.clock_now())
        .bind(each().map(|one| one.run_id().as_uuid()).collect::<Vec<_>>())
        .bind(each().map(|one| one.lease().namespace.as_str()).collect::<Vec<_>>())
        .bind(each().map(|one| one.lease().worker_id.as_str()).collect::<Vec<_>>())
        .bind(each().map(|one| one.lease().fencing_token.get()).collect::<Vec<_>>())
        .bind(each().map(|one| one.operation().as_uuid()).collect::<Vec<_>>())
        .bind(each().map(|one| Some(one.completes()?.step_id.as_str())).collect::<Vec<_>>())
        .bind(each().map(|one| Some(i64::from(one.completes()?.attempt))).collect::<Vec<_>>())
        .bind(each().map(|one| Some(one.completes()?.output.content_type.as_str())).collect::<Vec<_>>())
        .bind(each().map(|one| Some(&one.completes()?.output.bytes[..])).collect::<Vec<_>>())
        .bind(each().map(|one| Some(one.begins()?.step_id.as_str())).collect::<Vec<_>>())
        .bind(each().map(|one| i32::try_from(one.begins()?.position).ok()).collect::<Vec<_>>())
        .bind(retries)
        .bind(each().map(|one| one.begins()?.timeout.map(micros)).collect::<Vec<_>>())
        .bind(each().map(|one| Some(one.finishes()?.content_type.as_str())).collect::<Vec<_>>())
        .bind(each().map(|one| Some(&one.finishes()?.bytes[..])).collect::<Vec<_>>());
        let rows = self.write_all(query).await?;
        if rows.len() != batch.len() {
            return Err(crate::error::damaged("kagzi_steps did not answer every element").into());
        }
        rows.iter().map(|row| Ok(row.try_get("done")?)).collect()
    }

    fn announce_steps(&self, batch: &[StepOperation], done: &[bool]) {
        let now = self.now_roughly();
        for operation in batch.iter().zip(done).filter_map(|(operation, &done)| done.then_some(operation)) {
            if operation.finishes().is_some() {
                self.announce_topic(Topic::Run(operation.run_id()));
            }
            if let Some(timeout) = operation.begins().and_then(|next| next.timeout) {
                self.hub.note_deadline(now.saturating_add(timeout));
            }
        }
    }

    pub(crate) async fn fail_step(&self, request: &FailStep) -> Result<FailureOutcome, StoreError> {
        request.validate(&self.rules)?;
        let wanted = Wanted {
            attempt: Some((&request.step_id, request.attempt)),
            failures_of: Some(&request.step_id),
            recorded: Some(request.operation),
            ..Wanted::default()
        };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("failing a step", run, wanted, |it| {
            let (attempt, failures) = (it.attempt.as_ref(), it.failures);
            decide::fail_step(&it.run, attempt, failures, it.recorded, request, &self.rules, it.now)
        })
        .await
    }

    pub(crate) async fn sleep(&self, request: &Sleep) -> Result<SleepOutcome, StoreError> {
        request.validate()?;
        let wanted =
            Wanted { latest: Some(&request.step_id), recorded: Some(request.operation), ..Wanted::default() };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("putting a run to sleep", run, wanted, |it| {
            decide::sleep(&it.run, it.latest.as_ref(), it.recorded, request, it.now)
        })
        .await
    }

    async fn begin_carefully(&self, request: &BeginStep) -> Result<BeginOutcome, StoreError> {
        let wanted = Wanted { latest: Some(&request.step.step_id), ..Wanted::default() };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("beginning a step", run, wanted, |it| {
            decide::begin_step(&it.run, it.latest.as_ref(), request, it.now)
        })
        .await
    }

    async fn complete_carefully(&self, request: &CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        let next = match &request.then {
            Then::Begin(next) => Some(&next.step_id),
            Then::Nothing | Then::CompleteRun(_) => None,
        };
        let wanted = Wanted {
            attempt: Some((&request.step_id, request.attempt)),
            latest: next,
            begun_by: Some(request.operation),
            ..Wanted::default()
        };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("completing a step", run, wanted, |it| {
            let (attempt, latest) = (it.attempt.as_ref(), it.latest.as_ref());
            if decide::was_completed_by(attempt, request.operation) {
                let answer = decide::completed_again(&it.run, it.begun.as_ref(), latest, request)?;
                return Ok(Decision::unchanged(answer));
            }
            decide::complete_step(&it.run, attempt, latest, request, it.now)
        })
        .await
    }

    async fn finish_carefully(&self, request: &CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("completing a run", run, Wanted::default(), |it| {
            decide::complete_run(&it.run, request, it.now)
        })
        .await
    }
}

impl PostgresStore {
    pub(crate) async fn begin(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        request.validate()?;
        let request = Arc::new(request);
        match self.steps.submit(StepOperation::Begin(Arc::clone(&request))).await? {
            // The ordinary begin is the first of its step.
            Verdict::Done => Ok(BeginOutcome::Execute { attempt: 1 }),
            verdict => carefully(verdict, self.inner.begin_carefully(&request)).await,
        }
    }

    pub(crate) async fn complete(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        request.validate(&self.inner.rules)?;
        let request = Arc::new(request);
        let verdict = self.steps.submit(StepOperation::Complete(Arc::clone(&request))).await?;
        match (verdict, &request.then) {
            (Verdict::Done, Then::Nothing) => Ok(CompleteStepOutcome::Recorded),
            (Verdict::Done, Then::Begin(_)) => {
                Ok(CompleteStepOutcome::RecordedAndNext(BeginOutcome::Execute { attempt: 1 }))
            }
            (Verdict::Done, Then::CompleteRun(_)) => Ok(CompleteStepOutcome::RecordedAndRunCompleted),
            (verdict, _) => carefully(verdict, self.inner.complete_carefully(&request)).await,
        }
    }

    pub(crate) async fn finish(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        request.validate(&self.inner.rules)?;
        let request = Arc::new(request);
        match self.steps.submit(StepOperation::Finish(Arc::clone(&request))).await? {
            Verdict::Done => Ok(CompleteRunOutcome::Completed),
            verdict => carefully(verdict, self.inner.finish_carefully(&request)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<'a, R, F: Future>(_: impl FnOnce(&'a PostgresStore, R) -> F) -> usize {
        size_of::<F>()
    }

    /// Each call of the trait copies its future to the heap, with all of the careful path that is not boxed apart.
    #[test]
    fn the_futures_of_ordinary_operations_are_small() {
        let bytes = [
            future_bytes(PostgresStore::start_runs),
            future_bytes(PostgresStore::begin),
            future_bytes(PostgresStore::complete),
            future_bytes(PostgresStore::finish),
        ];
        assert!(bytes.iter().all(|&bytes| bytes <= 2048), "{bytes:?}");
    }
}
