//! How the SDK reaches an engine: over gRPC, or in the same process.

mod embedded;
mod grpc;
mod stream;
mod tls;
mod token;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, FailureOutcome, GrantedLease,
    Heartbeat, ListAttempts, ListRuns, Namespace, Page, QueueDepth, QueueOutcome, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState, Sleep, SleepOutcome,
    StartRun, Started, StoreError,
};

pub use embedded::Embedded;
pub use grpc::{Grpc, GrpcOptions, PlaintextTokens, Protocol};
pub use tls::Tls;
pub use token::Token;

use crate::backoff::Backoff;

/// A worker as a transport knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerScope {
    /// What it claims; the limit and the operation are those of no claim in particular.
    pub claim: Claim,
    /// How long it waits between attempts to reach the engine.
    pub backoff: Backoff,
}

/// The operations of an engine that clients and workers use, in the words of the domain.
///
/// Each method means what the method of the same name of [`Store`](kagzi_core::Store) means, with the
/// same outcomes and errors; `poll` and `await_finished` are those of
/// [`Engine`](kagzi_core::engine::Engine). What a transport adds to it is the way there, so:
///
/// - where the engine cannot be reached, the answer is [`StoreError::Unavailable`] or, if the call may
///   have arrived, [`StoreError::OutcomeUnknown`];
/// - every method is sent once: repeating is up to the caller, who holds the operation id;
/// - every method is cancel safe as the store's is.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// A way to the same engine for one worker alone, which will send all its requests there; its polls
    /// are those of `scope`. Nothing, the default, if workers go the same way as everybody.
    fn for_worker(&self, scope: WorkerScope) -> Option<Arc<dyn Transport>> {
        drop(scope);
        None
    }

    /// Starts runs, all or none.
    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError>;

    /// One run with its payloads.
    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError>;

    /// The run as it is when it finishes, or as it is after `wait`.
    async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError>;

    /// A page of runs.
    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError>;

    /// How many runs a filter finds.
    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError>;

    /// A page of the history of a run.
    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError>;

    /// Cancels a run.
    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError>;

    /// Puts a dead letter back to work.
    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError>;

    /// Pauses or resumes a queue.
    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError>;

    /// The queues of a namespace that hold live runs or are paused.
    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError>;

    /// Claims due runs, waiting for them up to `wait`.
    async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError>;

    /// Extends leases, each with its own verdict, in order.
    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError>;

    /// Asks to execute a step.
    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError>;

    /// Records an attempt's output, and what happens with it.
    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError>;

    /// Records an attempt's failure; the lease ends.
    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError>;

    /// Records a sleep; the lease ends.
    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError>;

    /// Completes a run.
    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError>;

    /// Records that a run failed outside any step; the lease ends.
    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError>;

    /// Gives a lease back.
    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError>;
}
