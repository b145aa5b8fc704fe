//! The SQLite backend of kagzi: durable workflows in one file, with group commit.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("kagzi.db");
//! use kagzi_core::{Namespace, Payload, QueueName, StartRun, Store, WorkflowType};
//! use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
//!
//! let store = SqliteStore::open(SqliteOptions::new(path)).await?;
//! let start = StartRun::new(
//!     Namespace::new("default")?,
//!     QueueName::new("default")?,
//!     WorkflowType::new("greet")?,
//!     Payload::json("\"world\""),
//! );
//! store.start(vec![start]).await?;
//! store.close().await?;
//! # Ok::<(), kagzi_core::StoreError>(()) }).unwrap();
//! ```
//!
//! # How it works
//!
//! One thread writes (group commit, WAL mode, `synchronous=FULL`), a few
//! connections read, and every operation loads rows, asks [`kagzi_core::decide`] and writes what it
//! says: this crate carries no rule of its own. Several processes may open one file; a writer that
//! finds it locked waits up to the busy timeout, and while somebody waits for work the writer looks
//! every 25 ms whether another process wrote something.

mod apply;
mod backup;
mod checkpoint;
mod claim;
mod commit;
mod error;
mod examine;
mod held;
mod lease;
mod listing;
mod options;
mod place;
#[cfg(test)]
mod plans;
mod queue;
mod queues;
mod readers;
mod reap;
mod rows;
mod runs;
mod schema;
mod size;
mod steps;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, Clock, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Migration, Namespace, NextDue, Page,
    QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Rules, Run,
    RunFilter, RunId, RunRecord, SchemaPolicy, SetQueueState, Sleep, SleepOutcome, StartRun, Started, Store,
    StoreCounters, StoreError, StoreStats, Timestamp, WakeHub, decide,
};

pub use backup::{Copied, Existing, Restored};
use commit::{Writer, WriterOptions};
pub use options::SqliteOptions;
use readers::Readers;
use runs::Removed;

/// How long a removal keeps the writer to itself at a time.
const REMOVAL_WITHIN: Duration = Duration::from_millis(50);

/// A store in a SQLite file. See the [crate's documentation](crate).
///
/// Reads run on tokio's blocking threads, so the store is used within a tokio runtime. Dropping it
/// without [`close`](Store::close) finishes what is in line, and blocks for as long as that takes.
pub struct SqliteStore {
    path: PathBuf,
    rules: Rules,
    clock: Arc<dyn Clock>,
    hub: WakeHub,
    counters: Arc<StoreCounters>,
    closed: AtomicBool,
    // Dropped before the writer, which tidies the file up when it is the last to go.
    readers: Readers,
    writer: Writer,
}

impl SqliteStore {
    /// Opens the file, makes it if it does not exist, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for an option outside its range, a missing directory or a file
    /// that is not kagzi's; [`StoreError::SchemaMismatch`] for one of a newer version, or of an older one
    /// under [`SchemaPolicy::Require`];
    /// [`StoreError::Unavailable`] for one that is read-only, locked or on a full disk.
    pub async fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        on_a_thread_of_its_own("opening a SQLite store", move || Self::open_now(options)).await
    }

    /// What [`open`](Self::open) would do to the schema. Nothing is changed, and no file made.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn plan_migration(options: SqliteOptions) -> Result<Migration, StoreError> {
        on_a_thread_of_its_own("planning a migration", move || schema::plan(&options)).await
    }

    /// Brings the schema up to date, which makes the file if it does not exist, and does no more.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn migrate(options: SqliteOptions) -> Result<Migration, StoreError> {
        let options = options.schema(SchemaPolicy::Migrate);
        on_a_thread_of_its_own("migrating", move || schema::prepare(&options).map(|(_, done)| done)).await
    }

    /// Copies the store as it is at one moment to the new file `to`, while servers go on working on it. The
    /// copy is checked and flushed to the disk before it gets its name.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if there is no store, or `to` exists; [`StoreError::Unavailable`] if
    /// `to` cannot be written; [`StoreError::Internal`] if the store is damaged.
    pub async fn back_up(options: SqliteOptions, to: &Path) -> Result<Copied, StoreError> {
        let to = to.to_owned();
        on_a_thread_of_its_own("backing up", move || backup::back_up(&options, &to)).await
    }

    /// Makes a store from the backup `from`, which is checked first. Stop servers and workers before: what
    /// was acknowledged after the backup is gone, and steps that ran since will run again. The fencing
    /// tokens of all runs that can go on are raised beyond any that were given out since, so that whoever
    /// still holds a lease from then is refused.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if `from` is no store, or there is a store already and `existing` does
    /// not say that it may be put aside, or somebody has it open; [`StoreError::Internal`] if the backup is
    /// damaged; [`StoreError::Unavailable`] if the store cannot be written. Nothing is changed then.
    pub async fn restore(
        from: &Path,
        options: SqliteOptions,
        existing: Existing,
    ) -> Result<Restored, StoreError> {
        let from = from.to_owned();
        on_a_thread_of_its_own("restoring", move || backup::restore(&from, &options, existing)).await
    }

    fn open_now(options: SqliteOptions) -> Result<Self, StoreError> {
        options.validate()?;
        let connection = schema::open_writer(&options)?;
        let readers =
            (0..options.readers).map(|_| schema::open_reader(&options)).collect::<Result<_, _>>()?;
        let (hub, counters) = (WakeHub::new(), Arc::new(StoreCounters::default()));
        let writer = Writer::start(
            connection,
            WriterOptions {
                rules: options.rules.clone(),
                clock: Arc::clone(&options.clock),
                hub: hub.clone(),
                counters: Arc::clone(&counters),
                max_batch: options.max_batch,
                queue_bound: options.queue_bound,
                queue_bound_bytes: options.queue_bound_bytes,
                busy_timeout: options.busy_timeout,
            },
        )?;
        Ok(Self {
            path: options.path,
            rules: options.rules,
            clock: options.clock,
            hub,
            counters,
            closed: AtomicBool::new(false),
            readers: Readers::new(readers),
            writer,
        })
    }
}

/// Runs what waits for the disk where that harms nobody.
async fn on_a_thread_of_its_own<T: Send + 'static>(
    context: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(StoreError::Internal { context, detail: error.to_string() }))
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    fn wake_hub(&self) -> &WakeHub {
        &self.hub
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            connections: Some(self.readers.stats()),
            batches: Some(self.counters.batches()),
            swept: self.counters.repaired_by_claims(),
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.writer.try_out(|tx| schema::rewrite_version(tx.connection)).await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(error::closed());
        }
        Ok(self.clock.now())
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        decide::check_start_batch(&batch, &self.rules)?;
        self.writer.perform(size::of_starts(&batch), move |tx| runs::start(tx, &batch)).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        let namespace = namespace.clone();
        self.readers.read(move |connection| runs::record(connection, &namespace, run_id)).await
    }

    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        let wanted = wanted.to_vec();
        self.readers.read(move |connection| runs::records(connection, &wanted)).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let place = request.place()?;
        let request = request.clone();
        self.readers.read(move |connection| listing::runs(connection, &request, place)).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        let (namespace, filter) = (namespace.clone(), filter.clone());
        self.readers.read(move |connection| listing::count(connection, &namespace, &filter)).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let place = request.place()?;
        let request = request.clone();
        let read = self.readers.read(move |connection| {
            runs::load(connection, &request.namespace, request.run_id)?;
            listing::attempts(connection, &request, place.as_ref())
        });
        read.await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        request.validate(&self.rules)?;
        self.writer.perform(request.reason.len(), move |tx| runs::cancel(tx, &request)).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.writer.perform(0, move |tx| runs::requeue(tx, &request)).await
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        request.validate()?;
        self.writer.perform(0, move |tx| claim::claim(tx, &request)).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        decide::check_heartbeats(&batch)?;
        self.writer.perform(0, move |tx| lease::heartbeat(tx, &batch)).await
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        request.validate()?;
        self.writer.perform(0, move |tx| steps::begin(tx, &request)).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        request.validate(&self.rules)?;
        self.writer.perform(size::of_completion(&request), move |tx| steps::complete(tx, &request)).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        request.validate(&self.rules)?;
        self.writer.perform(size::of_failure(&request.failure), move |tx| steps::fail(tx, &request)).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        request.validate()?;
        self.writer.perform(0, move |tx| steps::sleep(tx, &request)).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        request.validate(&self.rules)?;
        self.writer.perform(request.output.len_bytes(), move |tx| runs::complete(tx, &request)).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        request.validate(&self.rules)?;
        self.writer.perform(size::of_failure(&request.failure), move |tx| runs::fail(tx, &request)).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.writer.perform(0, move |tx| lease::release(tx, &request)).await
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        decide::check_reap(limit)?;
        self.writer.perform(0, move |tx| reap::reap(tx, limit)).await
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        let due_at = self.readers.read(reap::next_due).await?;
        Ok(NextDue { now: self.clock.now(), due_at })
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        let namespace = namespace.clone();
        self.readers.read(move |connection| listing::depths(connection, &namespace)).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        request.validate()?;
        self.writer.perform(0, move |tx| queues::set_state(tx, &request)).await
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        request.validate()?;
        let mut removed = 0;
        loop {
            let piece = DeleteFinished { limit: request.limit - removed, ..request.clone() };
            let done =
                self.writer.perform(0, move |tx| runs::delete_finished(tx, &piece, REMOVAL_WITHIN)).await;
            match done {
                Ok(Removed { runs, more }) => {
                    removed += runs;
                    if !more || removed >= request.limit {
                        return Ok(removed.into());
                    }
                }
                Err(error) if removed == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(removed, %error, "a removal ended before all were removed");
                    return Ok(removed.into());
                }
            }
        }
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        let path = self.path.clone();
        self.readers.read(move |connection| Ok(examine::examine(connection, &path))).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Err(error::closed());
        }
        self.readers.close().await;
        self.writer.close().await;
        Ok(())
    }
}
