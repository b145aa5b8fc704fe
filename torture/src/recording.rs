//! A transport that notes in a log what goes out and what comes back.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, AttemptState, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, FailureOutcome, GrantedLease,
    Heartbeat, Lease, ListAttempts, ListRuns, Namespace, OperationId, Page, QueueDepth, QueueOutcome,
    ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState,
    Sleep, SleepOutcome, StartRun, Started, StoreError,
};
use kagzi_sdk::transport::{Transport, WorkerScope};

use crate::event::{Answer, Call, Line, Moment, Operation, Seen, Then, now, words};
use crate::log::Log;

/// See the module.
#[derive(Debug)]
pub struct Recording {
    inner: Arc<dyn Transport>,
    log: Arc<Log>,
    /// When a claim was first sent: a repeat is answered with what the first one took.
    claims: Mutex<HashMap<OperationId, Moment>>,
}

impl Recording {
    /// Notes in `log` what goes through `inner`.
    pub fn new(inner: Arc<dyn Transport>, log: Arc<Log>) -> Self {
        Self { inner, log, claims: Mutex::default() }
    }

    async fn noted<T>(
        &self,
        namespace: &Namespace,
        run: RunId,
        call: Call,
        sent: impl Future<Output = Result<T, StoreError>> + Send,
        tell: impl FnOnce(&T) -> Answer + Send,
    ) -> Result<T, StoreError> {
        let id = self.log.called(namespace.as_str(), run, call);
        let answer = sent.await;
        self.log.answered(id, answer.as_ref().map_or_else(Answer::from, tell));
        answer
    }

    async fn under<T>(
        &self,
        lease: Lease,
        call: Call,
        sent: impl Future<Output = Result<T, StoreError>> + Send,
        tell: impl FnOnce(&T) -> Answer + Send,
    ) -> Result<T, StoreError> {
        self.noted(&lease.namespace, lease.run_id, call, sent, tell).await
    }

    fn saw(&self, called: Moment, namespace: &Namespace, run: RunId, call: Call) {
        let namespace = namespace.as_str().to_owned();
        self.log.note(&Line::Saw { called, at: now(), namespace, run, call });
    }
}

fn token(lease: &Lease) -> i64 {
    lease.fencing_token.get()
}

/// The steps of a run that are completed, with their outputs.
pub fn completed(attempts: &[Attempt]) -> BTreeMap<String, String> {
    attempts
        .iter()
        .filter(|attempt| attempt.state == AttemptState::Completed)
        .map(|attempt| {
            (attempt.step_id.as_str().to_owned(), attempt.output.as_ref().map(words).unwrap_or_default())
        })
        .collect()
}

#[async_trait]
impl Transport for Recording {
    fn for_worker(&self, scope: WorkerScope) -> Option<Arc<dyn Transport>> {
        let inner = self.inner.for_worker(scope)?;
        Some(Arc::new(Self::new(inner, Arc::clone(&self.log))))
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let calls: Vec<u64> = batch
            .iter()
            .map(|start| {
                let key = start.idempotency_key.as_ref().map(|key| key.as_str().to_owned());
                let operation = Operation(start.operation);
                let call = Call::Start { operation, key, input: words(&start.input) };
                self.log.called(start.namespace.as_str(), start.run_id(), call)
            })
            .collect();
        let single = calls.len() == 1;
        let started = self.inner.start(batch).await;
        for (at, id) in calls.into_iter().enumerate() {
            let answer = match &started {
                Ok(started) => started.get(at).map_or(Answer::Unknown, Answer::from),
                // Of a batch that is refused it is not said which start was at fault.
                Err(error @ StoreError::IdempotencyConflict { .. }) if !single => {
                    Answer::Refused(error.reason().to_owned())
                }
                Err(error) => Answer::from(error),
            };
            self.log.answered(id, answer);
        }
        started
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        let called = now();
        let record = self.inner.get_run(namespace, run_id).await?;
        self.saw(called, namespace, run_id, Call::Look { seen: Seen::of(&record.run) });
        Ok(record)
    }

    async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError> {
        let called = now();
        let record = self.inner.await_finished(namespace, run_id, wait).await?;
        self.saw(called, namespace, run_id, Call::Look { seen: Seen::of(&record.run) });
        Ok(record)
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let called = now();
        let page = self.inner.list_runs(request).await?;
        for run in &page.items {
            self.saw(called, &request.namespace, run.run_id, Call::Look { seen: Seen::of(run) });
        }
        Ok(page)
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.inner.count_runs(namespace, filter).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.inner.list_attempts(request).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        let (namespace, run) = (request.namespace.clone(), request.run_id);
        let call = Call::Cancel { operation: Operation(request.operation) };
        self.noted(&namespace, run, call, self.inner.cancel(request), |outcome| outcome.into()).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        let (namespace, run) = (request.namespace.clone(), request.run_id);
        let call = Call::Requeue { operation: Operation(request.operation) };
        self.noted(&namespace, run, call, self.inner.requeue(request), |_| Answer::Done).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.inner.queue_depths(namespace).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.inner.set_queue_state(request).await
    }

    async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError> {
        let (operation, namespace) = (claim.operation, claim.namespace.clone());
        let called = {
            // A map of moments is never left half changed.
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            *claims.entry(operation).or_insert_with(now)
        };
        let claimed = self.inner.poll(claim, wait).await?;
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(&operation);
        for taken in &claimed {
            let call = Call::Claim {
                token: token(&taken.lease.lease),
                claims: taken.run.claims,
                completed: completed(&taken.steps),
                all: taken.more_steps.is_none(),
            };
            // The namespace that was asked for; the run is to be of it.
            self.saw(called, &namespace, taken.run.run_id, call);
        }
        Ok(claimed)
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        let calls: Vec<u64> = batch
            .iter()
            .map(|beat| {
                let call = Call::Beat { token: token(&beat.lease) };
                self.log.called(beat.lease.namespace.as_str(), beat.lease.run_id, call)
            })
            .collect();
        let verdicts = self.inner.heartbeat(batch).await;
        for (at, id) in calls.into_iter().enumerate() {
            let answer = match &verdicts {
                Ok(verdicts) => match verdicts.get(at) {
                    Some(Ok(_)) => Answer::Done,
                    Some(Err(error)) => Answer::from(error),
                    None => Answer::Unknown,
                },
                Err(error) => Answer::from(error),
            };
            self.log.answered(id, answer);
        }
        verdicts
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let call = Call::Begin {
            token: token(&request.lease),
            step: request.step.step_id.as_str().to_owned(),
            operation: Operation(request.operation),
        };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.begin_step(request), |begun| Answer::Begun(begun.into())).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        let call = Call::Complete {
            token: token(&request.lease),
            step: request.step_id.as_str().to_owned(),
            attempt: request.attempt,
            output: words(&request.output),
            then: match &request.then {
                kagzi_core::Then::Nothing => Then::Nothing,
                kagzi_core::Then::Begin(next) => Then::Begin(next.step_id.as_str().to_owned()),
                kagzi_core::Then::CompleteRun(output) => Then::Finish(words(output)),
            },
            operation: Operation(request.operation),
        };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.complete_step(request), |outcome| outcome.into()).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        let call = Call::Fail {
            token: token(&request.lease),
            step: request.step_id.as_str().to_owned(),
            attempt: request.attempt,
            operation: Operation(request.operation),
        };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.fail_step(request), |outcome| outcome.into()).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        let call = Call::Sleep {
            token: token(&request.lease),
            step: request.step_id.as_str().to_owned(),
            operation: Operation(request.operation),
        };
        let lease = request.lease.clone();
        let tell = |outcome: &SleepOutcome| match outcome {
            SleepOutcome::Sleeping { .. } => Answer::Done,
            SleepOutcome::AlreadySlept => Answer::Refused("ALREADY_SLEPT".to_owned()),
        };
        self.under(lease, call, self.inner.sleep(request), tell).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        let call = Call::Finish {
            token: token(&request.lease),
            output: words(&request.output),
            operation: Operation(request.operation),
        };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.complete_run(request), |_| Answer::Done).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        let call = Call::FailRun { token: token(&request.lease), operation: Operation(request.operation) };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.fail_run(request), |outcome| outcome.into()).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        let call = Call::Release { token: token(&request.lease), operation: Operation(request.operation) };
        let lease = request.lease.clone();
        self.under(lease, call, self.inner.release(request), |_| Answer::Done).await
    }
}
