//! The [`Store`] trait: the contract that every backend keeps and `kagzi-conformance` proves.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::examine::Finding;
use crate::id::RunId;
use crate::lease::GrantedLease;
use crate::name::Namespace;
use crate::op::{
    BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteRunOutcome,
    CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome, Heartbeat,
    ListAttempts, ListRuns, NextDue, QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, RunFilter, SetQueueState, Sleep, SleepOutcome, StartRun, Started,
};
use crate::page::Page;
use crate::run::{Run, RunRecord};
use crate::stats::StoreStats;
use crate::step::Attempt;
use crate::wake::WakeHub;

/// A store shared by everything that uses it.
pub type SharedStore = Arc<dyn Store>;

/// Records durable workflows.
///
/// # The invariants
///
/// Code, documentation and conformance cases cite them by number.
///
/// 1. **Exclusive lease.** At any moment at most one (worker, token) holds a run; tokens only grow.
/// 2. **Fencing.** Every write on behalf of a worker names its lease. If the token is not the run's
///    current one, or the run is not RUNNING, the write answers [`StoreError::LeaseLost`] and changes
///    nothing. Expiry makes a lease *stealable*, not invalid: until someone takes it, its holder may
///    still write, and a heartbeat revives it. Safety never depends on a clock; only liveness does.
/// 3. **One executor per attempt.** For one (run, step) at most one attempt is RUNNING, and at most one
///    is ever COMPLETED. Of concurrent begins exactly one is told to execute.
/// 4. **Memoization.** Once a step is COMPLETED, every later begin returns the same bytes.
/// 5. **History.** Attempts are only appended; numbers are dense from 1; the highest is the latest. A
///    begin under a new lease that finds a RUNNING attempt of an older one marks it ABANDONED and opens
///    the next number.
/// 6. **Terminal states are final**, whoever writes next and however late. (A requeue of a dead letter
///    is the one way out of FAILED.)
/// 7. **Idempotent start.** (namespace, idempotency key) names one run. The same request again returns
///    it; a different request under the same key is a conflict that says so.
/// 8. **Idempotent retries.** Every write carries an operation id. Sent again after a lost reply, it
///    gives the first answer and no second effect.
/// 9. **Durability.** What was acknowledged survives kill -9 of any process and loss of power.
/// 10. **No lost wake-up, no early wake-up.** A due run is claimable, unless its queue
///     is paused; a sleeper never runs before its time.
/// 11. **Isolation.** No call with one namespace sees or touches another's rows.
/// 12. **Fidelity.** A payload is opaque bytes with a content type, and comes back to the byte. Limits
///     are enforced with a clear error before anything is written.
/// 13. **Order.** Claims within a queue go by [`claim_rank`](crate::claim_rank) (priority, then due
///     time), then run id. Nothing starves.
/// 14. **Bounded reaping.** A reap treats at most its limit of runs; concurrent reapers never treat one
///     run twice. A run whose leases expire again and again without progress ends as a dead letter.
/// 15. **Atomicity.** An operation happens whole or not at all, and an error means not at all.
///
/// # Rules for every method
///
/// - **Time** is the store's own clock, never the caller's.
/// - **Cancel safety**: dropping the future of a call leaves the operation done or not done, never
///   half. Send it again under the same operation id to learn which.
/// - **Errors**: besides what a method lists, every method may answer
///   [`StoreError::InvalidArgument`], [`StoreError::TooLarge`], [`StoreError::Unavailable`],
///   [`StoreError::OutcomeUnknown`] and [`StoreError::Internal`]; methods that name a run also
///   [`StoreError::RunNotFound`], and those that carry an operation id
///   [`StoreError::OperationConflict`]. An error changes nothing. A store whose data lie in parts that fail one
///   without the other says which errors are about a part only: [`ErrorScope`](crate::ErrorScope).
///
/// # How a backend does it
///
/// Load rows, call [`decide`](crate::decide), save what it says: the rules live in core, backends only
/// record. See the reference store, [`memory`](crate::memory), and the guide in `docs/`.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What the store is, for people: `sqlite`, `postgres`, `memory`.
    fn backend(&self) -> &'static str;

    /// The hub through which waiters hear of changes. The store announces, after each commit:
    /// [`Topic::Queue`](crate::Topic) when a run becomes claimable (not when one is started for later),
    /// `Topic::Run` when one finishes, and deadlines that it writes through [`WakeHub::note_deadline`].
    fn wake_hub(&self) -> &WakeHub;

    /// What the store tells of itself for operators: figures that it has at hand, without asking its
    /// database. They carry no promise, no rule depends on them, and a store may tell nothing, as this
    /// default does; a wrapper passes on what the store below tells.
    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }

    /// Whether the store can be read and written now: an error that a caller would get, without a caller.
    /// Changes nothing that any call can see, and is asked rarely, where there is a doubt. The default
    /// only reads.
    async fn probe(&self) -> Result<(), StoreError> {
        self.next_due().await.map(|_| ())
    }

    /// The store's clock.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// Starts runs, all or none, in order (invariants 7, 8, 15). A run that a key or an operation id
    /// of the batch names already is reported as such. 1 to 10,000 runs.
    ///
    /// # Errors
    ///
    /// [`StoreError::IdempotencyConflict`], [`StoreError::OperationConflict`].
    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError>;

    /// One run with its payloads.
    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError>;

    /// Many runs with their payloads, each with its own verdict, in order: what
    /// [`get_run`](Self::get_run) gives of each. A backend that can read them at once should.
    ///
    /// # Errors
    ///
    /// Per run [`StoreError::RunNotFound`].
    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        let mut records = Vec::with_capacity(wanted.len());
        for (namespace, run_id) in wanted {
            records.push(self.get_run(namespace, *run_id).await);
        }
        Ok(records)
    }

    /// A page of runs, the youngest first; see [`ListRuns`].
    ///
    /// # Errors
    ///
    /// [`StoreError::BadCursor`].
    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError>;

    /// How many runs a filter finds.
    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError>;

    /// A page of the history of a run; see [`ListAttempts`].
    ///
    /// # Errors
    ///
    /// [`StoreError::BadCursor`].
    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError>;

    /// Cancels a run at once, whoever holds it; open attempts are abandoned.
    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError>;

    /// Puts a dead letter back to work; see [`RequeueRun`].
    ///
    /// # Errors
    ///
    /// [`StoreError::WrongState`] unless the run is FAILED.
    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError>;

    /// Takes leases on due runs, in the order of invariant 13 within each queue and over the asked
    /// queues together. Due are PENDING runs, sleepers whose time has come and runs whose lease has
    /// expired; a run that is past its deadline or poisoned becomes a dead letter instead. Each claim
    /// gives the run a larger token (invariant 1). What is handed over is bounded in bytes, by
    /// [`decide::ClaimRoom`](crate::decide::ClaimRoom); a claim that left runs for want of room
    /// announces its queues. Queues that are [paused](Self::set_queue_state) give nothing.
    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError>;

    /// Extends leases, each with its own verdict, in order. Never shortens one; revives an expired one
    /// that nobody took (invariant 2). 1 to 10,000 leases.
    ///
    /// # Errors
    ///
    /// Per lease [`StoreError::LeaseLost`] or [`StoreError::RunNotFound`]. A store that extends them in
    /// pieces answers its trouble with one piece per lease too, once another was extended.
    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError>;

    /// Asks to execute a step (invariants 3, 4, 5).
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], [`StoreError::StepKindMismatch`].
    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError>;

    /// Records an attempt's output, and in the same operation begins the next step or completes the
    /// run, if asked to (invariant 15).
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], [`StoreError::AttemptNotRunning`], [`StoreError::StepKindMismatch`].
    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError>;

    /// Records an attempt's failure and does what the retry policy says: the step's own, else the
    /// run's, else the default. The lease ends.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], [`StoreError::AttemptNotRunning`].
    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError>;

    /// Records a sleep, ends the lease and makes the run due when the sleep ends (invariant 10).
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], [`StoreError::StepKindMismatch`].
    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError>;

    /// Completes a run; open attempts are abandoned.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`].
    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError>;

    /// Records that a run failed outside any step and does what its retry policy says.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`].
    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError>;

    /// Gives a lease back; the run is due at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`].
    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError>;

    /// Repairs what time did, the longest overdue first, at most `limit` runs, 1 to 10,000
    /// (invariant 14): wakes due sleepers, takes back expired leases, ends what is past its deadline
    /// or timeout. A store that works in pieces answers what it did even if one of them failed.
    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError>;

    /// The nearest moment at which there is something to reap.
    async fn next_due(&self) -> Result<NextDue, StoreError>;

    /// The queues of a namespace that hold live runs or are paused, by name.
    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError>;

    /// Pauses a queue, so that claims take nothing from it, or resumes it.
    ///
    /// A claim that begins after a pause was answered, on any handle, takes no run of the queue until it is
    /// resumed; one that was under way when the pause became durable may still take some. A claim that is
    /// sent again gives what it took before the pause (invariant 8). Nothing else is held up: leases go on,
    /// with heartbeats and every write, so the queue drains; starts are kept, sleepers come due, retries,
    /// cancellations, requeues and reaps do what they do, claims put in order what is due there, and all that
    /// waits. Deadlines do not stand still.
    ///
    /// Pausing a paused queue puts the new reason in the place of the old one and leaves the moment since
    /// when it is paused; resuming an open queue changes nothing. Resuming announces the queue
    /// (invariant 10). What was paused stays so over a restart (invariant 9). The last
    /// [`REMEMBERED_QUEUE_OPERATIONS`](crate::REMEMBERED_QUEUE_OPERATIONS) operations on a queue can be sent
    /// again (invariant 8).
    ///
    /// # Errors
    ///
    /// [`StoreError::QueueOperationConflict`] for an operation id that stands for the opposite change;
    /// [`StoreError::TooLarge`] or [`StoreError::InvalidArgument`] about the reason.
    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError>;

    /// Removes finished runs, at most the limit; answers how many. Never touches a live run, nor one that is
    /// requeued beside it. A key of a removed run may be used again. A store that works in pieces answers what it
    /// did even if one of them failed.
    ///
    /// A removal forgets all that was promised about the run: its key, its answers, its tokens. A start that is
    /// sent again after it (invariants 7 and 8) makes the run anew, under the id that the start gives it, with tokens
    /// from 1. Nothing is kept of removed runs that would grow for ever, so the token alone does not tell the two
    /// lives apart: a lease of the first is refused in the second by its worker's id, and would fit if the very
    /// same worker, frozen since before the removal, had claimed both lives equally often. So whoever removes runs
    /// leaves them there for longer than starts are repeated and workers may be frozen, and worker ids are never
    /// used again by another process.
    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError>;

    /// Looks at what the store stands on, for operators: version, durability, schema, indexes, room. It
    /// changes nothing, may take long on a large store, and finds nothing unless the backend has
    /// something to look at. Whoever wraps a store passes this on.
    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(Vec::new())
    }

    /// Finishes what is in flight and closes the store. Later calls answer
    /// [`StoreError::Unavailable`]. Dropping a store without closing it loses nothing that was
    /// acknowledged.
    async fn close(&self) -> Result<(), StoreError>;
}
