//! What claims and reaps repair in passing: in part, untold, or by what a handle thinks that it knows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kagzi_core::{
    BeginOutcome, BeginStep, Claim, ClaimedRun, MoreDue, Reaped, RunFilter, RunId, RunState, SharedStore,
    StartAt, StartRun, Started, StoreError, Timestamp, Topic, WakeHub,
};

use super::Bug;

/// Takes the first moment for which it starts something to be the first at which anything comes due, and does not look
/// for what comes due before.
#[derive(Debug, Default)]
pub struct KnowsItsOwnStarts(Mutex<Option<Timestamp>>);

impl KnowsItsOwnStarts {
    fn note(&self, first: Option<Timestamp>) {
        let mut quiet = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *quiet = quiet.into_iter().chain(first).min();
    }
}

#[async_trait]
impl Bug for KnowsItsOwnStarts {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let now = store.now().await?;
        let later = batch.iter().filter_map(|start| match start.start_at {
            StartAt::Now => None,
            StartAt::After(length) => Some(now.saturating_add(length)),
            StartAt::At(moment) => Some(moment),
        });
        self.note(later.min());
        store.start(batch).await
    }

    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let quiet = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = store.now().await?;
        let pending = RunFilter { states: vec![RunState::Pending], ..RunFilter::default() };
        if quiet.is_some_and(|until| now < until) && store.count_runs(&it.namespace, &pending).await? == 0 {
            return Ok(Vec::new());
        }
        store.claim(it).await
    }
}

/// Has its claims tell nobody of what they repair: whoever begins to wait after something was started that a claim
/// may find waits where nobody tells of anything.
#[derive(Debug)]
pub struct SweepsTellNobody {
    /// Of the ends of runs, or of runs that are due again.
    of_ends: bool,
    nobody: WakeHub,
    started: AtomicBool,
}

impl SweepsTellNobody {
    /// Of runs whose end a claim finds.
    pub fn of_ends() -> Self {
        Self { of_ends: true, nobody: WakeHub::default(), started: AtomicBool::new(false) }
    }

    /// Of sleepers that a claim wakes.
    pub fn of_sleepers() -> Self {
        Self { of_ends: false, ..Self::of_ends() }
    }
}

#[async_trait]
impl Bug for SweepsTellNobody {
    fn wake_hub<'a>(&'a self, store: &'a SharedStore) -> &'a WakeHub {
        if self.started.load(Ordering::SeqCst) { &self.nobody } else { store.wake_hub() }
    }

    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let found = |start: &StartRun| {
            if self.of_ends { start.run_timeout.is_some() } else { start.start_at != StartAt::Now }
        };
        if batch.iter().any(found) {
            self.started.store(true, Ordering::SeqCst);
        }
        store.start(batch).await
    }
}

/// Has a claim that had no room for all tell the first of its queues alone; of nothing else anybody is told.
#[derive(Debug, Default)]
pub struct TellsItsFirstQueue(WakeHub);

#[async_trait]
impl Bug for TellsItsFirstQueue {
    fn wake_hub<'a>(&'a self, _store: &'a SharedStore) -> &'a WakeHub {
        &self.0
    }

    async fn claim(&self, store: &SharedStore, it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        if let Some(first) = it.queues.first() {
            self.0.announce(&Topic::Queue(it.namespace.clone(), first.clone()));
        }
        store.claim(it).await
    }
}

/// Counts each late step as one that a reap treats, also where several are of one run, and says that nothing is left.
#[derive(Debug, Default)]
pub struct LateStepsTakePlaces(Mutex<Vec<(Timestamp, RunId)>>);

#[async_trait]
impl Bug for LateStepsTakePlaces {
    async fn begin_step(&self, store: &SharedStore, it: BeginStep) -> Result<BeginOutcome, StoreError> {
        if let Some(timeout) = it.step.timeout {
            let late_at = store.now().await?.saturating_add(timeout);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((late_at, it.lease.run_id));
        }
        store.begin_step(it).await
    }

    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        let now = store.now().await?;
        let mut late = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        late.retain(|(late_at, _)| *late_at <= now);
        late.sort_unstable();
        late.truncate(limit as usize);
        let steps = late.len();
        late.dedup_by_key(|(_, run_id)| *run_id);
        let taken = u32::try_from(steps - late.len()).unwrap_or(0);
        if taken == 0 {
            return store.reap(limit).await;
        }
        let reaped = store.reap(limit - taken).await?;
        Ok(Reaped { more: MoreDue::No, ..reaped })
    }
}

/// Looks, where a claim names more than a thousand pairs of queue and type, at the queues alone.
#[derive(Debug)]
pub struct ManyTypesAreAny;

#[async_trait]
impl Bug for ManyTypesAreAny {
    async fn claim(&self, store: &SharedStore, mut it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        if it.queues.len() * it.workflow_types.len() > 1000 {
            it.workflow_types.clear();
        }
        store.claim(it).await
    }
}
