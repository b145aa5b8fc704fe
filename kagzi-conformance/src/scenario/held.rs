//! A run in the hands of a worker.

use std::time::Duration;

use kagzi_core::{
    BeginOutcome, BeginStep, ClaimedRun, CompleteRun, CompleteStep, CompleteStepOutcome, FailRun, FailStep,
    Failure, FailureOutcome, GrantedLease, Heartbeat, Lease, NextStep, OperationId, Payload, ReleaseRun,
    RunId, Sleep, SleepOutcome, SleepUntil, Store, StoreError, Then,
};

use super::{LEASE, Scenario, Snapshot, step_id};
use crate::violation::Violation;

/// A lease and the scenario it was claimed in. The methods named after operations expect them to be
/// accepted; those ending in `_request` give a request to send by way of [`store`](Held::store).
#[derive(Clone, Debug)]
pub(crate) struct Held {
    scenario: Scenario,
    /// What the claim gave.
    pub(crate) claimed: ClaimedRun,
    /// What every write shows; change it to forge one.
    pub(crate) lease: Lease,
}

/// A failure that may be retried.
pub(crate) fn hiccup() -> Failure {
    Failure::retryable("hiccup", "try again")
}

/// A failure that must not be retried.
pub(crate) fn fatal() -> Failure {
    Failure::non_retryable("fatal", "do not try again")
}

impl Held {
    pub(crate) fn new(scenario: Scenario, claimed: ClaimedRun) -> Self {
        let lease = claimed.lease.lease.clone();
        Self { scenario, claimed, lease }
    }

    /// The store, every call logged.
    pub(crate) fn store(&self) -> &dyn Store {
        self.scenario.store()
    }

    /// The run.
    pub(crate) fn run_id(&self) -> RunId {
        self.lease.run_id
    }

    /// Everything that is recorded about the run.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Violation> {
        self.scenario.snapshot(self.run_id()).await
    }

    pub(crate) fn begin_request(&self, step: &str) -> Result<BeginStep, Violation> {
        Ok(BeginStep {
            lease: self.lease.clone(),
            step: NextStep::new(step_id(step)?, 0),
            operation: OperationId::generate(),
        })
    }

    /// Begins a step and gives what the store said.
    pub(crate) async fn begin_any(&self, step: &str) -> Result<BeginOutcome, Violation> {
        let request = self.begin_request(step)?;
        self.store().begin_step(request).await.map_err(|error| Violation::refused("a begin", &error))
    }

    /// Begins a step that nobody is at, and gives the number of the attempt.
    pub(crate) async fn begin(&self, step: &str) -> Result<u32, Violation> {
        match self.begin_any(step).await? {
            BeginOutcome::Execute { attempt } => Ok(attempt),
            other => {
                Err(Violation::new("an open step is to be executed [3]", "Execute", format!("{other:?}")))
            }
        }
    }

    pub(crate) fn complete_request(
        &self,
        step: &str,
        attempt: u32,
        output: &str,
    ) -> Result<CompleteStep, Violation> {
        Ok(CompleteStep {
            lease: self.lease.clone(),
            step_id: step_id(step)?,
            attempt,
            output: Payload::json(output.to_owned()),
            then: Then::Nothing,
            operation: OperationId::generate(),
        })
    }

    /// Completes an attempt with what follows.
    pub(crate) async fn complete_then(
        &self,
        step: &str,
        attempt: u32,
        output: &str,
        then: Then,
    ) -> Result<CompleteStepOutcome, Violation> {
        let request = CompleteStep { then, ..self.complete_request(step, attempt, output)? };
        self.store().complete_step(request).await.map_err(|e| Violation::refused("completing a step", &e))
    }

    /// Completes an attempt.
    pub(crate) async fn complete(&self, step: &str, attempt: u32, output: &str) -> Result<(), Violation> {
        self.complete_then(step, attempt, output, Then::Nothing).await.map(drop)
    }

    /// Begins and completes a step.
    pub(crate) async fn step(&self, step: &str, output: &str) -> Result<(), Violation> {
        let attempt = self.begin(step).await?;
        self.complete(step, attempt, output).await
    }

    pub(crate) fn fail_request(
        &self,
        step: &str,
        attempt: u32,
        failure: Failure,
    ) -> Result<FailStep, Violation> {
        let operation = OperationId::generate();
        Ok(FailStep { lease: self.lease.clone(), step_id: step_id(step)?, attempt, failure, operation })
    }

    /// Fails an attempt.
    pub(crate) async fn fail(
        &self,
        step: &str,
        attempt: u32,
        failure: Failure,
    ) -> Result<FailureOutcome, Violation> {
        let request = self.fail_request(step, attempt, failure)?;
        self.store().fail_step(request).await.map_err(|e| Violation::refused("failing a step", &e))
    }

    pub(crate) fn sleep_request(&self, step: &str, until: SleepUntil) -> Result<Sleep, Violation> {
        Ok(Sleep {
            lease: self.lease.clone(),
            step_id: step_id(step)?,
            position: 0,
            until,
            operation: OperationId::generate(),
        })
    }

    /// Sleeps, and gives what the store said.
    pub(crate) async fn sleep(&self, step: &str, length: Duration) -> Result<SleepOutcome, Violation> {
        let request = self.sleep_request(step, SleepUntil::After(length))?;
        self.store().sleep(request).await.map_err(|e| Violation::refused("a sleep", &e))
    }

    pub(crate) fn complete_run_request(&self, output: &str) -> CompleteRun {
        CompleteRun {
            lease: self.lease.clone(),
            output: Payload::json(output.to_owned()),
            operation: OperationId::generate(),
        }
    }

    /// Completes the run.
    pub(crate) async fn complete_run(&self, output: &str) -> Result<(), Violation> {
        let request = self.complete_run_request(output);
        let done = self.store().complete_run(request).await;
        done.map(drop).map_err(|e| Violation::refused("completing a run", &e))
    }

    pub(crate) fn fail_run_request(&self, failure: Failure) -> FailRun {
        FailRun { lease: self.lease.clone(), failure, operation: OperationId::generate() }
    }

    /// Fails the run.
    pub(crate) async fn fail_run(&self, failure: Failure) -> Result<FailureOutcome, Violation> {
        let request = self.fail_run_request(failure);
        self.store().fail_run(request).await.map_err(|e| Violation::refused("failing a run", &e))
    }

    pub(crate) fn release_request(&self) -> ReleaseRun {
        ReleaseRun { lease: self.lease.clone(), operation: OperationId::generate() }
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) -> Result<(), Violation> {
        let released = self.store().release(self.release_request()).await;
        released.map(drop).map_err(|e| Violation::refused("a release", &e))
    }

    pub(crate) fn heartbeat_request(&self) -> Heartbeat {
        Heartbeat { lease: self.lease.clone(), lease_length: LEASE }
    }

    /// Sends one heartbeat and gives its verdict.
    pub(crate) async fn try_heartbeat(
        &self,
        beat: Heartbeat,
    ) -> Result<Result<GrantedLease, StoreError>, Violation> {
        let mut verdicts = self
            .store()
            .heartbeat(vec![beat])
            .await
            .map_err(|e| Violation::refused("a batch of heartbeats", &e))?;
        match (verdicts.pop(), verdicts.len()) {
            (Some(verdict), 0) => Ok(verdict),
            (_, rest) => {
                Err(Violation::new("each lease gets a verdict", "1 verdict", format!("not 1 ({rest})")))
            }
        }
    }

    /// Extends the lease.
    pub(crate) async fn heartbeat(&self) -> Result<GrantedLease, Violation> {
        let verdict = self.try_heartbeat(self.heartbeat_request()).await?;
        verdict.map_err(|e| Violation::refused("a heartbeat", &e))
    }
}
