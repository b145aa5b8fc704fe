//! What an execution of a run writes, each under an operation id of its own and repeated until it arrives.

use kagzi_core::{
    BeginOutcome, BeginStep, CompleteRun, CompleteStep, CompleteStepOutcome, FailRun, FailStep, Failure,
    FailureOutcome, Lease, NextStep, OperationId, Payload, ReleaseRun, Sleep, SleepOutcome, StepId,
    StoreError, Then,
};
use tokio::time::Instant;

use super::journal::{Completion, SleepCall, StepFailed};
use crate::calls::{About, Calls};
use crate::error::fitted;

/// The writes of one lease.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    pub(crate) calls: Calls,
    pub(crate) lease: Lease,
}

/// The store's word on a step, and since when its timeout counts: from before the call that was
/// answered, so that a step's own timeout falls due here before the engine has to enforce it.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) position: u32,
    pub(crate) outcome: BeginOutcome,
    pub(crate) since: Instant,
}

impl Writes {
    fn about(&self, operation: &'static str, step_id: Option<&StepId>) -> About {
        About { operation, run_id: Some(self.lease.run_id), step_id: step_id.cloned() }
    }

    /// Begins a step.
    pub(crate) async fn begin(self, position: u32, step: NextStep) -> Result<Begun, StoreError> {
        let about = self.about("begin_step", Some(&step.step_id));
        let request = BeginStep { lease: self.lease.clone(), step, operation: OperationId::generate() };
        let transport = &self.calls.transport;
        let (outcome, since) =
            self.calls.repeat_timed(about, || transport.begin_step(request.clone())).await?;
        Ok(Begun { position, outcome, since })
    }

    /// Records a completed step, and begins the next one in the same write if there is one.
    pub(crate) async fn complete_step(
        self,
        completion: Completion,
        next: Option<(u32, NextStep)>,
    ) -> Result<Option<Begun>, StoreError> {
        let position = next.as_ref().map(|(position, _)| *position);
        let then = next.map_or(Then::Nothing, |(_, step)| Then::Begin(step));
        let (outcome, since) = self.complete_and(completion, then).await?;
        Ok(match (outcome, position) {
            (CompleteStepOutcome::RecordedAndNext(outcome), Some(position)) => {
                Some(Begun { position, outcome, since })
            }
            _ => None,
        })
    }

    /// Records the last completed step and the output of the run in one write.
    pub(crate) async fn complete_step_and_run(
        self,
        completion: Completion,
        output: Payload,
    ) -> Result<(), StoreError> {
        self.complete_and(completion, Then::CompleteRun(output)).await.map(drop)
    }

    async fn complete_and(
        &self,
        completion: Completion,
        then: Then,
    ) -> Result<(CompleteStepOutcome, Instant), StoreError> {
        let about = self.about("complete_step", Some(&completion.step_id));
        let request = CompleteStep {
            lease: self.lease.clone(),
            step_id: completion.step_id,
            attempt: completion.attempt,
            output: completion.output,
            then,
            operation: OperationId::generate(),
        };
        let transport = &self.calls.transport;
        self.calls.repeat_timed(about, || transport.complete_step(request.clone())).await
    }

    /// Records a failed step; the lease ends.
    pub(crate) async fn fail_step(&self, failed: StepFailed) -> Result<FailureOutcome, StoreError> {
        let about = self.about("fail_step", Some(&failed.step_id));
        let request = FailStep {
            lease: self.lease.clone(),
            step_id: failed.step_id,
            attempt: failed.attempt,
            failure: fitted(failed.failure),
            operation: OperationId::generate(),
        };
        self.calls.repeat(about, || self.calls.transport.fail_step(request.clone())).await
    }

    /// Records a sleep; the lease ends.
    pub(crate) async fn sleep(&self, call: &SleepCall) -> Result<SleepOutcome, StoreError> {
        let about = self.about("sleep", Some(&call.step_id));
        let request = Sleep {
            lease: self.lease.clone(),
            step_id: call.step_id.clone(),
            position: call.position,
            until: call.until,
            operation: OperationId::generate(),
        };
        self.calls.repeat(about, || self.calls.transport.sleep(request.clone())).await
    }

    /// Completes the run.
    pub(crate) async fn complete_run(&self, output: Payload) -> Result<(), StoreError> {
        let about = self.about("complete_run", None);
        let request = CompleteRun { lease: self.lease.clone(), output, operation: OperationId::generate() };
        self.calls.repeat(about, || self.calls.transport.complete_run(request.clone())).await.map(drop)
    }

    /// Records that the run failed; the lease ends.
    pub(crate) async fn fail_run(&self, failure: Failure) -> Result<FailureOutcome, StoreError> {
        let about = self.about("fail_run", None);
        let request = FailRun {
            lease: self.lease.clone(),
            failure: fitted(failure),
            operation: OperationId::generate(),
        };
        self.calls.repeat(about, || self.calls.transport.fail_run(request.clone())).await
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) -> Result<(), StoreError> {
        let about = self.about("release", None);
        let request = ReleaseRun { lease: self.lease.clone(), operation: OperationId::generate() };
        self.calls.repeat(about, || self.calls.transport.release(request.clone())).await.map(drop)
    }
}
