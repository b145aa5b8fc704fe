//! Fencing: every write under a lease that is lost is refused and changes nothing.
//!
//! Each worker operation meets each way of losing a lease, as a case of its own.

use std::time::Duration;

use kagzi_core::{
    CompleteStep, FencingToken, Lease, LostReason, NextStep, Payload, Run, RunState, SleepUntil, StartRun,
    StoreError, Then,
};

use crate::case::Case;
use crate::scenario::{Held, LEASE, Scenario, check, equal, fatal, hiccup, lease_lost, step_id, worker};
use crate::violation::{Verdict, Violation};

/// Everything that a worker may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Begin,
    Complete,
    CompleteAndBegin,
    CompleteAndFinish,
    Fail,
    Sleep,
    CompleteRun,
    FailRun,
    Heartbeat,
    Release,
}

impl Operation {
    pub(super) const ALL: [Self; 10] = [
        Self::Begin,
        Self::Complete,
        Self::CompleteAndBegin,
        Self::CompleteAndFinish,
        Self::Fail,
        Self::Sleep,
        Self::CompleteRun,
        Self::FailRun,
        Self::Heartbeat,
        Self::Release,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin_step",
            Self::Complete => "complete_step",
            Self::CompleteAndBegin => "complete_and_begin_next",
            Self::CompleteAndFinish => "complete_and_finish_run",
            Self::Fail => "fail_step",
            Self::Sleep => "sleep",
            Self::CompleteRun => "complete_run",
            Self::FailRun => "fail_run",
            Self::Heartbeat => "heartbeat",
            Self::Release => "release",
        }
    }

    /// Sends the operation under the lease of `held`, which has begun attempt 1 of step `open`.
    pub(super) async fn send(self, held: &Held) -> Result<Result<(), StoreError>, Violation> {
        let store = held.store();
        let complete = held.complete_request("open", 1, "\"late\"")?;
        let next = NextStep::new(step_id("next")?, 1);
        Ok(match self {
            Self::Begin => store.begin_step(held.begin_request("next")?).await.map(drop),
            Self::Complete => store.complete_step(complete).await.map(drop),
            Self::CompleteAndBegin => {
                store.complete_step(CompleteStep { then: Then::Begin(next), ..complete }).await.map(drop)
            }
            Self::CompleteAndFinish => {
                let then = Then::CompleteRun(Payload::json("\"late\""));
                store.complete_step(CompleteStep { then, ..complete }).await.map(drop)
            }
            Self::Fail => store.fail_step(held.fail_request("open", 1, hiccup())?).await.map(drop),
            Self::Sleep => {
                let until = SleepUntil::After(Duration::from_secs(1));
                store.sleep(held.sleep_request("nap", until)?).await.map(drop)
            }
            Self::CompleteRun => store.complete_run(held.complete_run_request("\"late\"")).await.map(drop),
            Self::FailRun => store.fail_run(held.fail_run_request(fatal())).await.map(drop),
            Self::Heartbeat => held.try_heartbeat(held.heartbeat_request()).await?.map(drop),
            Self::Release => store.release(held.release_request()).await.map(drop),
        })
    }
}

/// The ways to lose a lease, and to pretend to have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Steal,
    StealBySameWorker,
    Reap,
    Cancel,
    Requeue,
    RequeueAndClaim,
    RunTimeout,
    StepTimeout,
    Sleep,
    Retry,
    Release,
    ReleaseAndClaim,
    Complete,
    DeadLetter,
    ForgedLargerToken,
    ForgedZeroToken,
    ForgedWorker,
    OtherRun,
}

impl Loss {
    const ALL: [Self; 18] = [
        Self::Steal,
        Self::StealBySameWorker,
        Self::Reap,
        Self::Cancel,
        Self::Requeue,
        Self::RequeueAndClaim,
        Self::RunTimeout,
        Self::StepTimeout,
        Self::Sleep,
        Self::Retry,
        Self::Release,
        Self::ReleaseAndClaim,
        Self::Complete,
        Self::DeadLetter,
        Self::ForgedLargerToken,
        Self::ForgedZeroToken,
        Self::ForgedWorker,
        Self::OtherRun,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Steal => "after_a_steal",
            Self::StealBySameWorker => "after_a_steal_by_the_same_worker_id",
            Self::Reap => "after_a_reap",
            Self::Cancel => "after_a_cancel",
            Self::Requeue => "after_a_requeue",
            Self::RequeueAndClaim => "after_a_requeue_and_another_claim",
            Self::RunTimeout => "after_a_run_timeout",
            Self::StepTimeout => "after_a_step_timeout",
            Self::Sleep => "after_a_sleep",
            Self::Retry => "after_a_failure_to_be_retried",
            Self::Release => "after_a_release",
            Self::ReleaseAndClaim => "after_a_release_and_another_claim_by_the_same_worker_id",
            Self::Complete => "after_the_run_completed",
            Self::DeadLetter => "after_the_run_became_a_dead_letter",
            Self::ForgedLargerToken => "under_a_forged_larger_token",
            Self::ForgedZeroToken => "under_a_forged_token_of_zero",
            Self::ForgedWorker => "under_the_token_of_another_worker",
            Self::OtherRun => "under_the_lease_of_another_run",
        }
    }

    /// Takes the lease of `held` away, or changes it into one that was never given.
    async fn happen(self, s: &Scenario, held: &mut Held) -> Verdict {
        match self {
            Self::Steal => {
                s.turn(LEASE);
                s.claim_one("w2").await?;
            }
            Self::StealBySameWorker => {
                s.turn(LEASE);
                s.claim_one("w1").await?;
            }
            Self::Reap => {
                s.turn(LEASE);
                equal("the lease is reaped", &1, &s.reap(10).await?.leases_expired)?;
            }
            Self::Cancel => drop(s.cancel(held.run_id()).await?),
            Self::Requeue | Self::RequeueAndClaim => {
                held.fail_run(fatal()).await?;
                s.requeue(held.run_id()).await?;
                if self == Self::RequeueAndClaim {
                    s.claim_one("w1").await?;
                }
            }
            Self::RunTimeout => {
                s.turn(RUN_TIMEOUT);
                equal("the run is timed out", &1, &s.reap(10).await?.runs_timed_out)?;
            }
            Self::StepTimeout => {
                s.turn(STEP_TIMEOUT);
                equal("the step is timed out", &1, &s.reap(10).await?.steps_timed_out)?;
            }
            Self::Sleep => drop(held.sleep("first nap", Duration::from_mins(1)).await?),
            Self::Retry => drop(held.fail("open", 1, hiccup()).await?),
            Self::Release => held.release().await?,
            Self::ReleaseAndClaim => {
                held.release().await?;
                s.claim_one("w1").await?;
            }
            Self::Complete => held.complete_run("\"first\"").await?,
            Self::DeadLetter => drop(held.fail_run(fatal()).await?),
            Self::ForgedLargerToken => held.lease.fencing_token = held.lease.fencing_token.next(),
            Self::ForgedZeroToken => held.lease.fencing_token = FencingToken::NONE,
            Self::ForgedWorker => held.lease.worker_id = worker("w2")?,
            Self::OtherRun => {
                let other = s.held().await?;
                other.release().await?;
                let other = s.claim_one("w2").await?;
                held.lease = Lease { run_id: held.run_id(), ..other.lease };
            }
        }
        Ok(())
    }
}

const STEP_TIMEOUT: Duration = Duration::from_secs(10);
const RUN_TIMEOUT: Duration = Duration::from_secs(25);

/// Each worker operation after each way of losing a lease.
pub(super) fn cases() -> Vec<Case> {
    let pairs = Loss::ALL.into_iter().flat_map(|loss| Operation::ALL.map(|operation| (loss, operation)));
    pairs
        .map(|(loss, operation)| {
            let name = format!("{}_{}_is_refused", operation.name(), loss.name());
            Case::new("fencing", name, &[2, 15], &[], move |s| Box::pin(is_refused(s, loss, operation)))
        })
        .collect()
}

/// A run held by `w1` with a completed step `done` and an open attempt of step `open`.
async fn in_flight(s: &Scenario, loss: Loss) -> Result<Held, Violation> {
    let run_timeout = (loss == Loss::RunTimeout).then_some(RUN_TIMEOUT);
    s.start(StartRun { run_timeout, ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    held.step("done", "\"first\"").await?;
    let mut begin = held.begin_request("open")?;
    begin.step.timeout = (loss == Loss::StepTimeout).then_some(STEP_TIMEOUT);
    held.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
    Ok(held)
}

async fn is_refused(s: Scenario, loss: Loss, operation: Operation) -> Verdict {
    let mut held = in_flight(&s, loss).await?;
    loss.happen(&s, &mut held).await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_micros(1));
    let answer = operation.send(&held).await?;
    let rule = format!("{} {} answers LeaseLost [2]", operation.name(), loss.name());
    let reason = lease_lost(&answer, &rule.replace('_', " "))?;
    equal(
        "the answer says what became of the lease [2]",
        &expected(&before.record.run, &held.lease),
        &reason,
    )?;
    if let Err(StoreError::LeaseLost { run_id, presented, .. }) = answer {
        let shown = (held.run_id(), held.lease.fencing_token);
        equal("the answer names the run and the token that was shown [2]", &shown, &(run_id, presented))?;
    }
    s.unchanged(&before, "a write under a lost lease leaves every row as it was [2, 15]").await?;
    if before.record.run.state == RunState::Running {
        let seen = before.record.run.lease_expires_at;
        check(seen.is_some(), "the lease in force stays in force [1]", "an expiry", seen)?;
    }
    Ok(())
}

fn expected(run: &Run, shown: &Lease) -> LostReason {
    if run.state != RunState::Running {
        LostReason::NotRunning { state: run.state }
    } else if run.fencing_token == shown.fencing_token {
        LostReason::OtherWorker
    } else {
        LostReason::TokenStale { current: run.fencing_token }
    }
}
