//! A complete backend of kagzi over [redb](https://docs.rs/redb), a key-value store in pure Rust: the
//! one to copy. It knows `kagzi-core` and nothing else of ours, and `kagzi-conformance` judges it as it
//! judges every other (`tests/conformance.rs`). The guide that walks through it is
//! `docs/write-your-own-backend.md`.
//!
//! - `tables`: what is kept, and the indexes by which it is found
//! - `row`, `load`, `save`: rows to bytes and back, and every index kept true
//! - `commit`: one thread writes, and what waits together becomes durable together
//! - `runs`, `steps`, `lease`, `claim`, `reap`, `queues`: an operation each: load, ask
//!   [`decide`](kagzi_core::decide), record
//! - `listing`: reading
//!
//! The file may be open in any number of processes. Wake-ups reach waiters of the same process at once,
//! and those of others at their next poll, as the contract allows.

mod claim;
mod commit;
mod error;
mod lease;
mod listing;
mod load;
mod news;
mod queues;
mod reap;
mod row;
mod runs;
mod save;
mod steps;
mod tables;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, Clock, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth, QueueOutcome,
    Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Rules, Run, RunFilter, RunId, RunRecord,
    SetQueueState, Sleep, SleepOutcome, StartRun, Started, Store, StoreError, Timestamp, WakeHub,
};
use redb::{ConcurrencyMode, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};
use tokio::task::spawn_blocking;

use commit::{Ended, Writer};
use error::unavailable;
use tables::{Tables, VERSION};

/// How much of the file redb may keep in memory.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// What reads and writes share.
pub(crate) struct Shared {
    clock: Arc<dyn Clock>,
    rules: Rules,
    hub: WakeHub,
}

/// A store in one file of redb.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
///
/// use kagzi_core::{Namespace, Rules, Store, SystemClock};
/// use kagzi_store_redb::RedbStore;
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("kagzi.redb");
/// let store = RedbStore::open(path, Arc::new(SystemClock), Rules::default()).await?;
/// assert!(store.queue_depths(&Namespace::new("default")?).await?.is_empty());
/// # Ok::<(), kagzi_core::StoreError>(()) }).unwrap();
/// ```
pub struct RedbStore {
    shared: Arc<Shared>,
    open: Mutex<Option<Open>>,
}

/// What a closed store no longer has.
struct Open {
    database: Arc<Database>,
    writer: Writer,
    writer_ended: Ended,
}

impl RedbStore {
    /// Opens the file at `path`, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for bad rules, [`StoreError::SchemaMismatch`] if a newer program
    /// wrote the file, [`StoreError::Unavailable`] if it cannot be opened.
    pub async fn open(
        path: impl Into<PathBuf>,
        clock: Arc<dyn Clock>,
        rules: Rules,
    ) -> Result<Self, StoreError> {
        rules.validate()?;
        let path = path.into();
        let database = blocking(move || open_file(path)).await?;
        let database = Arc::new(database);
        let shared = Arc::new(Shared { clock, rules, hub: WakeHub::new() });
        let started = Writer::start(Arc::clone(&database), Arc::clone(&shared));
        let (writer, writer_ended) = started.map_err(|error| unavailable(format!("no writer: {error}")))?;
        Ok(Self { shared, open: Mutex::new(Some(Open { database, writer, writer_ended })) })
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        // It is only ever taken whole, so a panic elsewhere leaves nothing half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an operation played by the writer, and waits until it is durable.
    async fn write<T, F>(&self, perform: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut save::Writing<'_>) -> error::Result<T> + Send + 'static,
    {
        let writer = self.state().as_ref().map(|open| open.writer.clone());
        writer.ok_or_else(closed)?.submit(perform).await
    }

    /// Reads in a snapshot of the last commit, on a thread that may wait for the disk.
    async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction) -> error::Result<T> + Send + 'static,
    {
        let database = self.state().as_ref().map(|open| Arc::clone(&open.database));
        let database = database.ok_or_else(closed)?;
        blocking(move || look(&database.begin_read()?)).await
    }
}

fn closed() -> StoreError {
    unavailable("the store is closed")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> error::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    match spawn_blocking(work).await {
        Ok(done) => done.map_err(error::Error::into_store_error),
        Err(error) => Err(StoreError::Internal { context: "reading", detail: error.to_string() }),
    }
}

/// Opens the file, makes what is missing, and checks who wrote it.
fn open_file(path: PathBuf) -> error::Result<Database> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_concurrency_mode(ConcurrencyMode::MultiWriter)
        .create(path)?;
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    let found = tables.meta.get("version")?.map(|version| version.value());
    match found {
        Some(VERSION) => {}
        // Older layouts lack tables only, which are made by now.
        None | Some(..VERSION) => drop(tables.meta.insert("version", VERSION)?),
        Some(other) => {
            return Err(error::Error::Refused(StoreError::SchemaMismatch {
                found: i64::try_from(other).unwrap_or(i64::MAX),
                supported: i64::try_from(VERSION).unwrap_or(i64::MAX),
                remedy: "run a newer kagzi",
            }));
        }
    }
    drop(tables);
    if found == Some(VERSION) {
        transaction.abort()?;
    } else {
        transaction.commit()?;
    }
    Ok(database)
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedbStore")
    }
}

#[async_trait]
impl Store for RedbStore {
    fn backend(&self) -> &'static str {
        "redb"
    }

    fn wake_hub(&self) -> &WakeHub {
        &self.shared.hub
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        if self.state().is_some() { Ok(self.shared.clock.now()) } else { Err(closed()) }
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.write(move |writing| runs::start(writing, &batch)).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        let namespace = namespace.clone();
        self.read(move |reading| listing::get_run(reading, &namespace, run_id)).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let request = request.clone();
        self.read(move |reading| listing::list_runs(reading, &request)).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        let (namespace, filter) = (namespace.clone(), filter.clone());
        self.read(move |reading| listing::count_runs(reading, &namespace, &filter)).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let request = request.clone();
        self.read(move |reading| listing::list_attempts(reading, &request)).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.write(move |writing| runs::cancel(writing, &request)).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.write(move |writing| runs::requeue(writing, &request)).await
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        self.write(move |writing| claim::claim(writing, &request)).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        self.write(move |writing| lease::heartbeat(writing, &batch)).await
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.write(move |writing| steps::begin(writing, &request)).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.write(move |writing| steps::complete(writing, &request)).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.write(move |writing| steps::fail(writing, &request)).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.write(move |writing| steps::sleep(writing, &request)).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.write(move |writing| lease::complete_run(writing, &request)).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.write(move |writing| lease::fail_run(writing, &request)).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.write(move |writing| lease::release(writing, &request)).await
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        self.write(move |writing| reap::reap(writing, limit)).await
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        let now = self.shared.clock.now();
        self.read(move |reading| reap::next_due(reading, now)).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        let namespace = namespace.clone();
        self.read(move |reading| listing::queue_depths(reading, &namespace)).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.write(move |writing| queues::set_state(writing, &request)).await
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        let request = request.clone();
        self.write(move |writing| runs::delete_finished(writing, &request)).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        let Some(Open { database, writer, writer_ended }) = self.state().take() else { return Err(closed()) };
        drop((database, writer));
        writer_ended.wait().await;
        Ok(())
    }
}
