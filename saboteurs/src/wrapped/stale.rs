//! What is remembered too long, or under too small a key, and hints that are forgotten.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kagzi_core::{
    BeginOutcome, BeginStep, CancelRun, Claim, ClaimedRun, Clock as _, CompleteStep, CompleteStepOutcome,
    DeleteFinished, FailRun, FailStep, FailureOutcome, FencingToken, Heartbeat, ListRuns, Namespace,
    OperationId, PageRequest, RequeueOutcome, RequeueRun, RunFilter, RunId, RunRecord, RunState, SharedStore,
    StartOutcome, StartRun, Started, StoreError, SystemClock, Then, Timestamp, WakeHub, WorkerId,
};

use super::{Beats, Bug, meanwhile};

/// Remembers, once a claim found nothing, until when nothing comes due, and does not look for what came due before.
/// It forgets that when it starts something itself; of what other handles start it hears nothing.
#[derive(Debug, Default)]
pub struct QuietUntil(Mutex<Option<Timestamp>>);

impl QuietUntil {
    fn set(&self, until: Option<Timestamp>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

#[async_trait]
impl Bug for QuietUntil {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.set(None);
        store.start(batch).await
    }

    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = store.now().await?;
        if until.is_some_and(|until| now < until) {
            let filter = RunFilter { states: vec![RunState::Pending], ..RunFilter::default() };
            if store.count_runs(&it.namespace, &filter).await? == 0 {
                return Ok(Vec::new());
            }
        }
        let claimed = store.claim(it).await?;
        let until = if claimed.is_empty() {
            Some(store.next_due().await?.due_at.unwrap_or(Timestamp::MAX))
        } else {
            None
        };
        self.set(until);
        Ok(claimed)
    }
}

/// Has an index that grows by an entry at each heartbeat, of which a claim looks through the first 256 only: then it
/// takes what is PENDING, and wakes nobody.
#[derive(Debug, Default)]
pub struct BeatsBuryTheDue(AtomicUsize);

#[async_trait]
impl Bug for BeatsBuryTheDue {
    async fn heartbeat(&self, store: &SharedStore, batch: Vec<Heartbeat>) -> Beats {
        self.0.fetch_add(batch.len(), Ordering::Relaxed);
        store.heartbeat(batch).await
    }

    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let filter = RunFilter { states: vec![RunState::Pending], ..RunFilter::default() };
        if self.0.load(Ordering::Relaxed) > 256 && store.count_runs(&it.namespace, &filter).await? == 0 {
            return Ok(Vec::new());
        }
        store.claim(it).await
    }
}

/// Remembers whom it gave each token of a run to, and takes their heartbeats for the holder's: also in the run's next
/// life, in which tokens begin anew.
#[derive(Debug, Default)]
pub struct HoldersOutliveRuns(Mutex<HashMap<(RunId, FencingToken), WorkerId>>);

#[async_trait]
impl Bug for HoldersOutliveRuns {
    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let claimed = store.claim(it).await?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in claimed.iter().map(|run| &run.lease.lease) {
            known.entry((lease.run_id, lease.fencing_token)).or_insert_with(|| lease.worker_id.clone());
        }
        Ok(claimed)
    }

    async fn heartbeat(&self, store: &SharedStore, mut batch: Vec<Heartbeat>) -> Beats {
        for beat in &mut batch {
            let lease = &mut beat.lease;
            let key = (lease.run_id, lease.fencing_token);
            let first = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
            if first.as_ref() != Some(&lease.worker_id) {
                continue;
            }
            let run = store.get_run(&lease.namespace, lease.run_id).await;
            if let Some(holder) = run.ok().and_then(|record| record.run.worker_id) {
                lease.worker_id = holder;
            }
        }
        store.heartbeat(batch).await
    }
}

/// Makes its list of what to remove, and removes what is on it even if it was requeued meanwhile.
#[derive(Debug)]
pub struct RemovesByItsList;

#[async_trait]
impl Bug for RemovesByItsList {
    async fn delete_finished(&self, store: &SharedStore, it: &DeleteFinished) -> Result<u64, StoreError> {
        let lists = it.states.is_empty() && (1..=1000).contains(&it.limit);
        let (Some(namespace), true) = (&it.namespace, lists) else {
            return store.delete_finished(it).await;
        };
        let filter = RunFilter { states: vec![RunState::Failed], ..RunFilter::default() };
        let page = PageRequest { limit: it.limit, cursor: None };
        let list = ListRuns { namespace: namespace.clone(), filter, page };
        let listed = store.list_runs(&list).await?.items;
        meanwhile().await;
        let mut removed = 0;
        for run in listed.iter().filter(|run| run.finished_at.is_some_and(|at| at < it.before)) {
            let run_id = run.run_id;
            let requeued = store.get_run(namespace, run_id).await;
            if requeued.is_ok_and(|record| record.run.state == RunState::Pending) {
                let (reason, operation) = (String::new(), OperationId::generate());
                store.cancel(CancelRun { namespace: namespace.clone(), run_id, reason, operation }).await?;
                let states = vec![RunState::Cancelled];
                let all = DeleteFinished { states, before: Timestamp::MAX, limit: 10_000, ..it.clone() };
                removed += store.delete_finished(&all).await?;
            }
        }
        Ok(removed + store.delete_finished(it).await?)
    }
}

/// Tells the system's time, whatever clock it writes by.
#[derive(Debug)]
pub struct TellsSystemTime;

#[async_trait]
impl Bug for TellsSystemTime {
    async fn now(&self, _: &SharedStore) -> Result<Timestamp, StoreError> {
        Ok(SystemClock.now())
    }
}

/// Breaks off where one operation comes twice in a batch of starts.
#[derive(Debug)]
pub struct StumblesOverTwins;

#[async_trait]
impl Bug for StumblesOverTwins {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let mut seen = HashMap::new();
        let twin = batch.iter().any(|start| {
            // A different request under the id is refused as it should be.
            seen.insert(start.run_id(), &start.input).is_some_and(|input| *input == start.input)
        });
        if twin {
            let detail = "a row is there already".to_owned();
            return Err(StoreError::Internal { context: "starting runs", detail });
        }
        store.start(batch).await
    }
}

/// Takes the last of several starts of one operation in a batch for the one that is meant.
#[derive(Debug)]
pub struct LastTwinWins;

#[async_trait]
impl Bug for LastTwinWins {
    async fn start(&self, store: &SharedStore, mut batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let last: HashMap<RunId, StartRun> =
            batch.iter().map(|start| (start.run_id(), start.clone())).collect();
        for start in &mut batch {
            if let Some(last) = last.get(&start.run_id()) {
                *start = last.clone();
            }
        }
        store.start(batch).await
    }
}

/// Tells a completion that is sent again that its next step is in progress, though it is known.
#[derive(Debug, Default)]
pub struct RepeatsAreInProgress(Mutex<Vec<OperationId>>);

#[async_trait]
impl Bug for RepeatsAreInProgress {
    async fn complete_step(
        &self,
        store: &SharedStore,
        request: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        let operation = request.operation;
        let answer = store.complete_step(request).await?;
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = sent.contains(&operation);
        sent.push(operation);
        Ok(match answer {
            CompleteStepOutcome::RecordedAndNext(BeginOutcome::Memoized { attempt, .. }) if again => {
                CompleteStepOutcome::RecordedAndNext(BeginOutcome::InProgress { attempt })
            }
            other => other,
        })
    }
}

/// What nobody tells the reaper of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaperMisses {
    /// The timeout of a step that a completion begins.
    NextSteps,
    /// Retries.
    Retries,
    /// The deadlines of requeued runs.
    Requeues,
}

/// Lets no deadline reach whoever waits for one during `call`; afterwards any does.
async fn untold<T>(store: &SharedStore, call: impl Future<Output = T> + Send) -> T {
    store.wake_hub().arm(Timestamp::MIN);
    let answer = call.await;
    store.wake_hub().arm(Timestamp::MAX);
    answer
}

#[async_trait]
impl Bug for ReaperMisses {
    async fn complete_step(
        &self,
        store: &SharedStore,
        request: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        if *self == Self::NextSteps && matches!(request.then, Then::Begin(_)) {
            return untold(store, store.complete_step(request)).await;
        }
        store.complete_step(request).await
    }
    async fn fail_step(&self, store: &SharedStore, request: FailStep) -> Result<FailureOutcome, StoreError> {
        if *self == Self::Retries {
            return untold(store, store.fail_step(request)).await;
        }
        store.fail_step(request).await
    }
    async fn fail_run(&self, store: &SharedStore, request: FailRun) -> Result<FailureOutcome, StoreError> {
        if *self == Self::Retries {
            return untold(store, store.fail_run(request)).await;
        }
        store.fail_run(request).await
    }
    async fn requeue(&self, store: &SharedStore, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        if *self == Self::Requeues {
            return untold(store, store.requeue(request)).await;
        }
        store.requeue(request).await
    }
}

/// Hears nothing of timeouts: whoever begins to wait after a step was begun that may time out, and then be retried
/// or not, waits where nobody tells of anything.
#[derive(Debug)]
pub struct TimeoutsTellNobody {
    /// Whether it is of steps that may be retried, or of those that may not.
    retried: bool,
    nobody: WakeHub,
    begun: AtomicBool,
}

impl TimeoutsTellNobody {
    /// Of steps that may be retried, or of those that may not.
    pub fn of(retried: bool) -> Self {
        Self { retried, nobody: WakeHub::default(), begun: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Bug for TimeoutsTellNobody {
    fn wake_hub<'a>(&'a self, store: &'a SharedStore) -> &'a WakeHub {
        if self.begun.load(Ordering::SeqCst) { &self.nobody } else { store.wake_hub() }
    }
    async fn begin_step(&self, store: &SharedStore, it: BeginStep) -> Result<BeginOutcome, StoreError> {
        let attempts = it.step.retry.as_ref().map(|retry| retry.max_attempts);
        if it.step.timeout.is_some() && attempts.is_some_and(|most| (most > 1) == self.retried) {
            self.begun.store(true, Ordering::SeqCst);
        }
        store.begin_step(it).await
    }
}

/// Writes the first thousand heartbeats of a batch, and answers the others as if it had.
#[derive(Debug)]
pub struct BeatsAPiece;

#[async_trait]
impl Bug for BeatsAPiece {
    async fn heartbeat(&self, store: &SharedStore, mut batch: Vec<Heartbeat>) -> Beats {
        let rest = if batch.len() > 10_000 { Vec::new() } else { batch.split_off(batch.len().min(1000)) };
        let mut verdicts = store.heartbeat(batch).await?;
        let now = store.now().await?;
        verdicts.extend(rest.into_iter().map(|beat| {
            Ok(kagzi_core::GrantedLease {
                lease: beat.lease,
                expires_at: now.saturating_add(beat.lease_length),
            })
        }));
        Ok(verdicts)
    }
}

/// Reads no more than a hundred runs at once.
#[derive(Debug)]
pub struct ReadsAHundred;

#[async_trait]
impl Bug for ReadsAHundred {
    async fn get_runs(
        &self,
        store: &SharedStore,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        store.get_runs(wanted.get(..100).unwrap_or(wanted)).await
    }
}

/// Tells of no more than a hundred queues.
#[derive(Debug)]
pub struct TellsOfAHundredQueues;

#[async_trait]
impl Bug for TellsOfAHundredQueues {
    async fn queue_depths(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
    ) -> Result<Vec<kagzi_core::QueueDepth>, StoreError> {
        let mut depths = store.queue_depths(namespace).await?;
        depths.truncate(100);
        Ok(depths)
    }
}

/// Remembers the steps that it did of a run that is held, and when they are many thinks that the first are new.
#[derive(Debug)]
pub struct RemembersTheLastSteps;

#[async_trait]
impl Bug for RemembersTheLastSteps {
    async fn begin_step(&self, store: &SharedStore, it: BeginStep) -> Result<BeginOutcome, StoreError> {
        let list = kagzi_core::ListAttempts {
            namespace: it.lease.namespace.clone(),
            run_id: it.lease.run_id,
            scope: kagzi_core::AttemptScope::Latest,
            page: PageRequest::first(10_000),
        };
        let known = store.list_attempts(&list).await.map(|page| page.items).unwrap_or_default();
        let forgotten = known.len().saturating_sub(256);
        let first = known.iter().take(forgotten).any(|attempt| attempt.step_id == it.step.step_id);
        let answer = store.begin_step(it).await?;
        Ok(match answer {
            BeginOutcome::Memoized { attempt, .. } if first => BeginOutcome::InProgress { attempt },
            other => other,
        })
    }
}

/// Takes the first of several starts under one key in a batch for all of them, whatever they ask for.
#[derive(Debug)]
pub struct FirstOfAKeyWins;

#[async_trait]
impl Bug for FirstOfAKeyWins {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let mut kept: Vec<StartRun> = Vec::new();
        let mut places = Vec::new();
        for start in batch {
            let of_one_key = |other: &StartRun| {
                other.idempotency_key.is_some()
                    && (&other.namespace, &other.idempotency_key)
                        == (&start.namespace, &start.idempotency_key)
            };
            let first = kept.iter().position(of_one_key);
            places.push((first.unwrap_or(kept.len()), first.is_some()));
            if first.is_none() {
                kept.push(start);
            }
        }
        let started = store.start(kept).await?;
        let answer = |(at, again): (usize, bool)| {
            let started = started.get(at).copied()?;
            Some(if again { Started { outcome: StartOutcome::Existing, ..started } } else { started })
        };
        Ok(places.into_iter().filter_map(answer).collect())
    }
}

/// Tells the time of its clock even when it is closed.
#[derive(Debug)]
pub struct TellsTimeWhenClosed;

#[async_trait]
impl Bug for TellsTimeWhenClosed {
    async fn now(&self, store: &SharedStore) -> Result<Timestamp, StoreError> {
        Ok(store.now().await.unwrap_or(Timestamp::MIN))
    }
}
