//! Each write of the trait, by itself, under each fault.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    AttemptScope, BeginStep, CancelRun, CompleteRun, CompleteStep, DeleteFinished, FailRun, FailStep,
    Failure, Heartbeat, IdempotencyKey, Lease, ListAttempts, ListRuns, NextStep, OperationId, PageRequest,
    Payload, QueueChange, ReleaseRun, RequeueRun, RunFilter, RunId, SetQueueState, Sleep, SleepUntil,
    StartRun, Then, Timestamp,
};

use super::connection::{Connection, Fault};
use crate::case::Case;
use crate::proof;
use crate::record::{Answer, Call, Reply};
use crate::scenario::{LEASE, Scenario, equal, fatal, hiccup, step_id, suite_rules};
use crate::violation::{Verdict, Violation};

/// What stands before the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing.
    Nothing,
    /// A run that is due.
    Due,
    /// A run that a worker holds, at step `a`.
    Held,
    /// A dead letter.
    DeadLetter,
    /// A run that is completed.
    Completed,
    /// A run whose lease has expired.
    Expired,
}

/// Whether a repeat gives the first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    SameAnswer,
    /// It has no operation id: a repeat does what is left to do and counts that.
    SameRows,
}

/// What an operation is about.
struct Stage<'a> {
    s: &'a Scenario,
    run_id: RunId,
    lease: Lease,
}

type Make = fn(&Stage<'_>) -> Result<Call, Violation>;

const OPERATIONS: [(&str, Before, Repeat, Make); 21] = [
    ("start", Before::Nothing, Repeat::SameAnswer, |stage| Ok(Call::Start(vec![stage.s.start_request()]))),
    ("a_start_with_a_key", Before::Nothing, Repeat::SameAnswer, |stage| {
        let key = IdempotencyKey::new("k").map_err(|error| Violation::refused("making a key", &error))?;
        let start = StartRun { idempotency_key: Some(key), ..stage.s.start_request() };
        Ok(Call::Start(vec![start]))
    }),
    ("a_batch_of_starts", Before::Nothing, Repeat::SameAnswer, |stage| {
        Ok(Call::Start((0..3).map(|_| stage.s.start_request()).collect()))
    }),
    ("claim", Before::Due, Repeat::SameAnswer, |stage| Ok(Call::Claim(stage.s.claim_request("w2", 1)?))),
    ("a_claim_of_an_expired_lease", Before::Expired, Repeat::SameAnswer, |stage| {
        Ok(Call::Claim(stage.s.claim_request("w2", 1)?))
    }),
    ("heartbeat", Before::Held, Repeat::SameAnswer, |stage| {
        Ok(Call::Heartbeat(vec![Heartbeat { lease: stage.lease.clone(), lease_length: LEASE * 2 }]))
    }),
    ("begin_step", Before::Held, Repeat::SameAnswer, |stage| {
        let (lease, step) = (stage.lease.clone(), NextStep::new(step_id("b")?, 1));
        Ok(Call::BeginStep(BeginStep { lease, step, operation: OperationId::generate() }))
    }),
    ("complete_step", Before::Held, Repeat::SameAnswer, |stage| stage.complete(Then::Nothing)),
    ("a_completion_that_begins_the_next", Before::Held, Repeat::SameAnswer, |stage| {
        stage.complete(Then::Begin(NextStep::new(step_id("b")?, 1)))
    }),
    ("a_completion_that_finishes_the_run", Before::Held, Repeat::SameAnswer, |stage| {
        stage.complete(Then::CompleteRun(Payload::json("9")))
    }),
    ("fail_step", Before::Held, Repeat::SameAnswer, |stage| stage.fail(hiccup())),
    ("a_failure_that_ends_the_run", Before::Held, Repeat::SameAnswer, |stage| stage.fail(fatal())),
    ("sleep", Before::Held, Repeat::SameAnswer, |stage| {
        Ok(Call::Sleep(Sleep {
            lease: stage.lease.clone(),
            step_id: step_id("z")?,
            position: 1,
            until: SleepUntil::After(Duration::from_mins(1)),
            operation: OperationId::generate(),
        }))
    }),
    ("complete_run", Before::Held, Repeat::SameAnswer, |stage| {
        let (lease, output) = (stage.lease.clone(), Payload::json("9"));
        Ok(Call::CompleteRun(CompleteRun { lease, output, operation: OperationId::generate() }))
    }),
    ("fail_run", Before::Held, Repeat::SameAnswer, |stage| {
        let (lease, failure) = (stage.lease.clone(), hiccup());
        Ok(Call::FailRun(FailRun { lease, failure, operation: OperationId::generate() }))
    }),
    ("release", Before::Held, Repeat::SameAnswer, |stage| {
        Ok(Call::Release(ReleaseRun { lease: stage.lease.clone(), operation: OperationId::generate() }))
    }),
    ("cancel", Before::Held, Repeat::SameAnswer, |stage| {
        Ok(Call::Cancel(CancelRun {
            namespace: stage.s.namespace().clone(),
            run_id: stage.run_id,
            reason: "enough".to_owned(),
            operation: OperationId::generate(),
        }))
    }),
    ("requeue", Before::DeadLetter, Repeat::SameAnswer, |stage| {
        let (namespace, run_id) = (stage.s.namespace().clone(), stage.run_id);
        Ok(Call::Requeue(RequeueRun { namespace, run_id, operation: OperationId::generate() }))
    }),
    ("set_queue_state", Before::Due, Repeat::SameAnswer, |stage| {
        let StartRun { namespace, queue, .. } = stage.s.start_request();
        let change = QueueChange::Pause { reason: "the mail server is away".to_owned() };
        Ok(Call::SetQueueState(SetQueueState {
            namespace,
            queue,
            change,
            operation: OperationId::generate(),
        }))
    }),
    ("reap", Before::Expired, Repeat::SameRows, |_| Ok(Call::Reap(100))),
    ("delete_finished", Before::Completed, Repeat::SameRows, |_| {
        let (namespace, states, before) = (None, Vec::new(), Timestamp::MAX);
        Ok(Call::DeleteFinished(DeleteFinished { namespace, states, before, limit: 100 }))
    }),
];

/// One case for each write of the trait.
pub(super) fn cases() -> Vec<Case> {
    OPERATIONS
        .into_iter()
        .map(|(what, before, repeat, make)| {
            let name = format!("{what}_over_a_line_with_faults_has_its_effect_once");
            Case::new("fault", name, &[8, 15], &[], move |s| {
                Box::pin(async move {
                    under_each_fault(&s, before, repeat, make).await?;
                    proof::kept(&format!("{what} over a line with faults has its effect once [8]"));
                    Ok(())
                })
            })
        })
        .collect()
}

impl Stage<'_> {
    fn complete(&self, then: Then) -> Result<Call, Violation> {
        Ok(Call::CompleteStep(CompleteStep {
            lease: self.lease.clone(),
            step_id: step_id("a")?,
            attempt: 1,
            output: Payload::json("1"),
            then,
            operation: OperationId::generate(),
        }))
    }

    fn fail(&self, failure: Failure) -> Result<Call, Violation> {
        let (lease, step_id, operation) = (self.lease.clone(), step_id("a")?, OperationId::generate());
        Ok(Call::FailStep(FailStep { lease, step_id, attempt: 1, failure, operation }))
    }
}

/// The store and the reference, which hears everything once and at once.
struct Both<'a> {
    s: &'a Scenario,
    reference: MemoryStore,
    line: Connection,
}

impl Both<'_> {
    async fn send(&self, call: Call) -> Result<Reply, Violation> {
        let expected = call.send(&self.reference).await;
        let seen = call.send(self.s.store()).await;
        equal("what comes before the fault is answered as by the reference", &expected, &seen)?;
        seen.map_err(|refusal| {
            Violation::new("what comes before the fault is accepted", "yes", refusal.reason)
        })
    }

    /// Brings a run to where the operation begins.
    async fn prepare(&self, before: Before) -> Result<(RunId, Lease), Violation> {
        let s = self.s;
        let start = s.start_request();
        let run_id = start.run_id();
        let claim = s.claim_request("w1", 1)?;
        let mut lease = Lease {
            namespace: s.namespace().clone(),
            run_id,
            worker_id: claim.worker_id.clone(),
            fencing_token: kagzi_core::FencingToken::NONE,
        };
        if before == Before::Nothing {
            return Ok((run_id, lease));
        }
        self.send(Call::Start(vec![start])).await?;
        if before == Before::Due {
            return Ok((run_id, lease));
        }
        if let Reply::Claimed(claimed) = self.send(Call::Claim(claim)).await?
            && let [claimed] = &*claimed
        {
            lease = claimed.lease.lease.clone();
        }
        let stage = Stage { s, run_id, lease: lease.clone() };
        let step = NextStep::new(step_id("a")?, 0);
        let begin = BeginStep { lease: lease.clone(), step, operation: OperationId::generate() };
        self.send(Call::BeginStep(begin)).await?;
        match before {
            Before::DeadLetter => drop(self.send(stage.fail(fatal())?).await?),
            Before::Completed => {
                let call = stage.complete(Then::CompleteRun(Payload::empty()))?;
                drop(self.send(call).await?);
            }
            Before::Expired => s.turn(LEASE),
            Before::Nothing | Before::Due | Before::Held => {}
        }
        Ok((run_id, lease))
    }

    async fn rows(&self) -> Result<(Vec<Answer>, Vec<Answer>), Violation> {
        let namespace = self.s.namespace().clone();
        let page = PageRequest::first(1000);
        let list = Call::ListRuns(ListRuns {
            namespace: namespace.clone(),
            filter: RunFilter::default(),
            page: page.clone(),
        });
        let mut calls = vec![list.clone(), Call::NextDue, Call::QueueDepths(namespace.clone())];
        if let Ok(Reply::Runs(runs)) = list.send(&self.reference).await {
            for run in runs.items {
                calls.push(Call::GetRun(namespace.clone(), run.run_id));
                calls.push(Call::ListAttempts(ListAttempts {
                    namespace: namespace.clone(),
                    run_id: run.run_id,
                    scope: AttemptScope::All,
                    page: page.clone(),
                }));
            }
        }
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        for call in calls {
            expected.push(call.send(&self.reference).await);
            seen.push(call.send(self.s.store()).await);
        }
        Ok((expected, seen))
    }
}

async fn under_each_fault(s: &Scenario, before: Before, repeat: Repeat, make: Make) -> Verdict {
    use Fault::{Late, LeftAlone, None, ReplyLost, Unsent};
    one(s, before, repeat, make, &[Unsent, ReplyLost, ReplyLost, None]).await?;
    for faults in [vec![LeftAlone, None], vec![LeftAlone, ReplyLost, Late]] {
        let (fresh, stage) = s.fresh().await?;
        let told = one(&fresh, before, repeat, make, &faults).await;
        if told.is_err() {
            s.log().replace_by(fresh.log());
        }
        drop(fresh);
        stage.discard().await.map_err(|error| {
            Violation::new("the fixture can discard a store", "no error", error.to_string())
        })?;
        told?;
    }
    Ok(())
}

/// Plays the operation through `faults`, one a try; of the last one the answer comes through.
async fn one(s: &Scenario, before: Before, repeat: Repeat, make: Make, faults: &[Fault]) -> Verdict {
    let reference = MemoryStore::new(Arc::new(s.clock().clone()), suite_rules());
    let both = Both { s, reference, line: Connection::reliable(s.shared_store()) };
    let (run_id, lease) = both.prepare(before).await?;
    let call = make(&Stage { s, run_id, lease })?;
    let expected = call.send(&both.reference).await;
    let mut heard = None;
    for fault in faults {
        heard = both.line.attempt(&call, *fault).await;
    }
    let rule = format!("a call that met {faults:?} gets the first answer when it is sent again [8]");
    if repeat == Repeat::SameAnswer {
        equal(&rule, &Some(expected), &heard)?;
    }
    let (expected, seen) = both.rows().await?;
    equal(&format!("a call that met {faults:?} has its effect once [8]"), &expected, &seen)
}
