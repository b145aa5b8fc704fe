//! The reference store: the contract in memory, written to be read.
//!
//! It keeps every invariant but durability (9): what it holds ends with the process. Tests and
//! models compare other backends with it, and `kagzi` uses it where nothing needs to last.

mod claim;
mod clients;
mod listing;
mod queues;
mod reap;
mod state;
mod workers;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::StoreError;
use crate::id::RunId;
use crate::lease::GrantedLease;
use crate::limits::Rules;
use crate::name::Namespace;
use crate::op::{
    BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteRunOutcome,
    CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome, Heartbeat,
    ListAttempts, ListRuns, NextDue, QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, RunFilter, SetQueueState, Sleep, SleepOutcome, StartRun, Started,
};
use crate::page::Page;
use crate::run::{Run, RunRecord};
use crate::stats::{StoreCounters, StoreStats};
use crate::step::Attempt;
use crate::store::Store;
use crate::wake::WakeHub;
use state::State;

/// A store in memory. Clones share what it holds.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use kagzi_core::memory::MemoryStore;
/// use kagzi_core::{Namespace, Payload, QueueName, RunState, StartRun, Store, WorkflowType};
///
/// let store = MemoryStore::default();
/// let namespace = Namespace::new("default")?;
/// let start = StartRun::new(
///     namespace.clone(),
///     QueueName::new("default")?,
///     WorkflowType::new("greet")?,
///     Payload::json("\"world\""),
/// );
/// let started = store.start(vec![start]).await?;
/// let record = store.get_run(&namespace, started[0].run_id).await?;
/// assert_eq!(record.run.state, RunState::Pending);
/// # Ok::<(), kagzi_core::StoreError>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    rules: Rules,
    hub: WakeHub,
    counters: StoreCounters,
}

impl MemoryStore {
    /// An empty store that goes by `clock` and `rules`.
    pub fn new(clock: Arc<dyn Clock>, rules: Rules) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                clock,
                rules,
                hub: WakeHub::new(),
                counters: StoreCounters::default(),
            }),
        }
    }

    /// The rows, held for one operation: nothing else happens meanwhile, so every operation is
    /// atomic (invariant 15). Closed stores answer no more.
    fn open(&self) -> Result<(MutexGuard<'_, State>, Timestamp), StoreError> {
        // Operations decide before they write and writing cannot fail, so a panic elsewhere never
        // leaves the rows half changed.
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(StoreError::unavailable("the store is closed", Duration::from_secs(1)));
        }
        let now = self.shared.clock.now();
        Ok((state, now))
    }
}

impl Default for MemoryStore {
    /// The machine's clock and the default rules.
    fn default() -> Self {
        Self::new(Arc::new(SystemClock), Rules::default())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn wake_hub(&self) -> &WakeHub {
        &self.shared.hub
    }

    fn stats(&self) -> StoreStats {
        StoreStats { swept: self.shared.counters.repaired_by_claims(), ..StoreStats::default() }
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.open().map(|(_, now)| now)
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.start_runs(&batch)
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.record(namespace, run_id)
    }

    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        self.records(wanted)
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.page_of_runs(request)
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.count(namespace, filter)
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.page_of_attempts(request)
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.cancel_run(&request)
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.requeue_run(&request)
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        self.claim_runs(&request)
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        self.extend_leases(&batch)
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.begin(&request)
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.complete(&request)
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.fail(&request)
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.put_to_sleep(&request)
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.finish(&request)
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.give_up(&request)
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.give_back(&request)
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        self.repair(limit)
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        let (state, now) = self.open()?;
        Ok(NextDue { now, due_at: state.next_due() })
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.depths(namespace)
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.change_queue(&request)
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        self.delete(request)
    }

    async fn close(&self) -> Result<(), StoreError> {
        let (mut state, _) = self.open()?;
        state.closed = true;
        Ok(())
    }
}
