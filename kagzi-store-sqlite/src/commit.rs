//! Group commit: one thread writes, and operations that are in flight together share a commit.
//!
//! The writer takes everything that waits, runs it in one `BEGIN IMMEDIATE … COMMIT`, and answers
//! nobody before the commit is durable. While one batch is committed the next one gathers, so an idle
//! system pays no added delay and a busy one pays for one flush a batch. Operations decide before they
//! write, so a refused one leaves its neighbours alone; after an unexpected error the batch is rolled
//! back and its operations run again, each in a transaction of its own, so that the bad one fails alone.

use std::collections::HashSet;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kagzi_core::decide::OverdueKind;
use kagzi_core::{
    Clock, Namespace, QueueName, Reaped, Rules, Run, RunId, RunState, StoreCounters, StoreError, Timestamp,
    Topic, WakeHub,
};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::checkpoint::{Bounds, Checkpoints};
use crate::error::{self, Error, commit_failed, is_busy, nothing_happened};
use crate::held::Held;
use crate::place::Place;
use crate::queue::{Queue, Taken};
use crate::rows::drop_cached_pages;

/// How often the writer looks for commits of other processes while somebody waits for them. Each look costs
/// some 90 µs of a core, most of it for waking up; what this process writes is heard at once.
const LISTEN_EVERY: Duration = Duration::from_millis(25);
/// How often it looks whether somebody waits.
const LOOK_FOR_WAITERS_EVERY: Duration = Duration::from_millis(50);
/// A writer that has waited for so long for another process is kept out: whoever asks whether the store takes writes
/// hears it, although the operations in line wait on, up to the busy timeout.
const KEPT_OUT_AFTER: Duration = Duration::from_millis(300);
/// A batch whose answers hold more than this is committed as far as it got: they wait in memory.
const MOST_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// What an operation works with: the open transaction, the rules, and the moment it happens at.
pub(crate) struct Tx<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) rules: &'c Rules,
    pub(crate) now: Timestamp,
    pub(crate) wakes: &'c mut Wakes,
    pub(crate) held: &'c mut Held,
    /// How many bytes the answers of this batch hold so far.
    pub(crate) answer_bytes: &'c mut usize,
}

/// Whom to wake once the batch is durable.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    queues: HashSet<(Namespace, QueueName)>,
    finished: Vec<RunId>,
    deadline: Option<Timestamp>,
    /// What claims repaired: no wake-up, but it too counts only once it is durable.
    swept: Reaped,
}

impl Wakes {
    /// Takes down what a written run means to those who wait.
    pub(crate) fn note_run(&mut self, run: &Run) {
        if run.state == RunState::Pending {
            self.note_queue(&run.namespace, &run.queue);
        } else if run.state.is_terminal() {
            self.finished.push(run.run_id);
        }
        if let Some(at) = run.attention_at() {
            self.note_deadline(at);
        }
    }

    /// Takes down that a queue may have work.
    pub(crate) fn note_queue(&mut self, namespace: &Namespace, queue: &QueueName) {
        self.queues.insert((namespace.clone(), queue.clone()));
    }

    pub(crate) fn note_deadline(&mut self, at: Timestamp) {
        self.deadline = Some(self.deadline.map_or(at, |earlier| earlier.min(at)));
    }

    /// Takes down that a claim repaired a run.
    pub(crate) const fn note_swept(&mut self, kind: OverdueKind) {
        self.swept.count(kind);
    }

    fn forget(&mut self) {
        self.queues.clear();
        self.finished.clear();
        self.deadline = None;
        self.swept = Reaped::default();
    }

    fn announce(&mut self, hub: &WakeHub) {
        for (namespace, queue) in self.queues.drain() {
            hub.announce(&Topic::Queue(namespace, queue));
        }
        for run_id in self.finished.drain(..) {
            hub.announce(&Topic::Run(run_id));
        }
        if let Some(at) = self.deadline.take() {
            hub.note_deadline(at);
        }
    }
}

/// An operation in line, with the caller who waits for its answer.
trait Job: Send {
    /// Runs the operation and keeps its verdict. An error means that the transaction is spoilt.
    fn perform(&mut self, tx: &mut Tx<'_>) -> Result<(), Error>;
    /// Gives the caller the verdict: what was done is durable.
    fn answer(&mut self);
    /// Gives the caller an error: the operation was not done.
    fn refuse(&mut self, error: StoreError);
}

struct Task<T, F> {
    work: F,
    verdict: Option<Result<T, StoreError>>,
    caller: Option<oneshot::Sender<Result<T, StoreError>>>,
    /// Given back with the task itself: until then its payloads are in memory.
    _room: Option<OwnedSemaphorePermit>,
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send,
{
    fn perform(&mut self, tx: &mut Tx<'_>) -> Result<(), Error> {
        self.verdict = None;
        if self.caller.as_ref().is_none_or(oneshot::Sender::is_closed) {
            // Nobody waits any more: a claim, say, would only lease runs to no one.
            return Ok(());
        }
        let before = tx.connection.total_changes();
        // A panic spoils one operation, not the store: its writes are undone like any other's.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.work)(tx))).unwrap_or_else(|_| {
            let detail = "it panicked".to_owned();
            Err(StoreError::Internal { context: "performing an operation", detail }.into())
        });
        match outcome {
            Ok(answer) => self.verdict = Some(Ok(answer)),
            // Operations decide before they write. One that refuses after a write must be undone.
            Err(Error::Refused(refusal)) if tx.connection.total_changes() == before => {
                self.verdict = Some(Err(refusal));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn answer(&mut self) {
        if let (Some(verdict), Some(caller)) = (self.verdict.take(), self.caller.take()) {
            // A caller who left in the meantime does not want to know.
            drop(caller.send(verdict));
        }
    }

    fn refuse(&mut self, error: StoreError) {
        if let Some(caller) = self.caller.take() {
            drop(caller.send(Err(error)));
        }
    }
}

type Line = Queue<Box<dyn Job>>;

/// What the writer needs to know.
#[derive(Debug)]
pub(crate) struct WriterOptions {
    pub(crate) rules: Rules,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hub: WakeHub,
    pub(crate) counters: Arc<StoreCounters>,
    pub(crate) max_batch: usize,
    pub(crate) queue_bound: usize,
    pub(crate) queue_bound_bytes: u32,
    pub(crate) busy_timeout: Duration,
}

/// The handle on the writer thread.
pub(crate) struct Writer {
    line: Arc<Line>,
    kept_out: watch::Receiver<bool>,
    ended: watch::Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread, which owns `connection` from now on.
    pub(crate) fn start(connection: Connection, options: WriterOptions) -> Result<Self, StoreError> {
        let line = Arc::new(Queue::new(options.queue_bound, options.queue_bound_bytes));
        let (ending, ended) = watch::channel(());
        let (keeping_out, kept_out) = watch::channel(false);
        let scribe = Scribe::new(Arc::clone(&line), connection, keeping_out, options)?;
        let thread = std::thread::Builder::new()
            .name("kagzi-sqlite".to_owned())
            .spawn(move || {
                scribe.run();
                drop(ending);
            })
            .map_err(|error| {
                error::unavailable(format!("no thread for the writer could be started: {error}"))
            })?;
        Ok(Self { line, kept_out, ended, thread: Mutex::new(Some(thread)) })
    }

    /// Runs `work`, which carries `size_bytes` of payloads, in the next batch; answers once that is
    /// durable. `work` may run twice: again, alone, if a neighbour spoilt the batch. Cancel safe: dropped,
    /// the work is done or not done.
    pub(crate) async fn perform<T, F>(&self, size_bytes: usize, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        let room = self.line.room_for(size_bytes).await?;
        let (caller, answer) = oneshot::channel();
        self.line.push(Box::new(Task { work, verdict: None, caller: Some(caller), _room: room })).await?;
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::outcome_unknown("the writer ended before it answered")))
    }

    /// The same for an operation that only shows whether the store takes writes: it is not done, and says so, as
    /// soon as another process keeps the writer out.
    pub(crate) async fn try_out<F>(&self, work: F) -> Result<(), StoreError>
    where
        F: FnMut(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let mut kept_out = self.kept_out.clone();
        let kept_out = async {
            // A writer that has ended answers by itself.
            if kept_out.wait_for(|kept_out| *kept_out).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            answer = self.perform(0, work) => answer,
            () = kept_out => Err(error::kept_out()),
        }
    }

    /// Takes no more work, finishes what is in line, and waits until the file is closed.
    pub(crate) async fn close(&self) {
        self.line.close();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Drop for Writer {
    /// Finishes what is in line: a batch or two, so the wait is short.
    fn drop(&mut self) {
        self.line.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the writer of a SQLite store panicked");
        }
    }
}

/// Why a batch was not committed; it has been rolled back.
enum Spoilt {
    /// By one of its operations.
    ByJob(Error),
    /// As a whole: makes the error for each of its operations.
    AsWhole(Box<dyn Fn() -> StoreError>),
}

/// The thread that writes.
struct Scribe {
    line: Arc<Line>,
    connection: Connection,
    options: WriterOptions,
    wakes: Wakes,
    held: Held,
    data_version: i64,
    place: Place,
    /// True while another process has kept this one waiting for [`KEPT_OUT_AFTER`] or longer.
    kept_out: watch::Sender<bool>,
}

impl Drop for Scribe {
    fn drop(&mut self) {
        // Whatever ended this thread, nobody may wait for it in vain.
        self.line.abandon();
    }
}

impl Scribe {
    fn new(
        line: Arc<Line>,
        connection: Connection,
        kept_out: watch::Sender<bool>,
        options: WriterOptions,
    ) -> Result<Self, StoreError> {
        // Now, before anybody can wait: what others write from here on will be heard.
        let data_version = data_version(&connection).map_err(|error| nothing_happened(&error))?;
        let place = Place::of(&connection)
            .map_err(|error| error::unavailable(format!("the file cannot be looked at: {error}")))?;
        Ok(Self {
            line,
            connection,
            options,
            wakes: Wakes::default(),
            held: Held::default(),
            data_version,
            place,
            kept_out,
        })
    }

    fn run(mut self) {
        let mut checkpoints = Checkpoints::take_over(&self.connection, Bounds::default());
        loop {
            let somebody_waits = self.options.hub.anyone_waits(|_| true);
            let patience = if somebody_waits { LISTEN_EVERY } else { LOOK_FOR_WAITERS_EVERY };
            match self.line.take(self.options.max_batch, patience) {
                Taken::Jobs(jobs) => {
                    self.commit(jobs);
                    checkpoints.after_batch(&self.connection);
                }
                Taken::Nothing => {
                    if somebody_waits {
                        self.hear_others();
                    }
                    checkpoints.when_idle(&self.connection);
                }
                Taken::Closed => return,
            }
        }
    }

    /// Commits a batch, in more than one piece if its answers are large, and answers its callers.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        while !jobs.is_empty() {
            match self.transact(&mut jobs) {
                Ok(done) => {
                    for mut job in jobs.drain(..done) {
                        job.answer();
                    }
                    self.wakes.announce(&self.options.hub);
                    self.options.counters.swept(&take(&mut self.wakes.swept));
                    self.options.counters.batch(done);
                }
                Err(Spoilt::AsWhole(error)) => {
                    for mut job in jobs.drain(..) {
                        job.refuse(error());
                    }
                }
                Err(Spoilt::ByJob(error)) if jobs.len() == 1 => {
                    if let Some(mut job) = jobs.pop() {
                        job.refuse(error.into_store_error());
                    }
                }
                Err(Spoilt::ByJob(error)) => {
                    let operations = jobs.len();
                    tracing::warn!(%error, operations, "a batch is spoilt; its operations run one by one");
                    for job in jobs.drain(..) {
                        self.commit(vec![job]);
                    }
                }
            }
        }
    }

    /// Performs and commits a batch; answers how many of its jobs, from the first, it comprises.
    fn transact(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<usize, Spoilt> {
        if !self.connection.is_autocommit() {
            // What a rollback that failed has left.
            self.roll_back();
        }
        if let Some(path) = self.place.displaced() {
            let path = path.to_owned();
            return Err(Spoilt::AsWhole(Box::new(move || error::displaced(&path))));
        }
        self.begin().map_err(|error| Spoilt::AsWhole(Box::new(move || nothing_happened(&error))))?;
        let committed = self.perform_all(jobs).map_err(Spoilt::ByJob).and_then(|done| {
            run_cached(&self.connection, "COMMIT")
                .map(|()| done)
                .map_err(|error| Spoilt::AsWhole(Box::new(move || commit_failed(&error))))
        });
        if committed.is_err() {
            self.roll_back();
        } else if let Some(path) = self.place.displaced() {
            let path = path.to_owned();
            self.wakes.forget();
            return Err(Spoilt::AsWhole(Box::new(move || error::displaced_meanwhile(&path))));
        }
        committed
    }

    fn perform_all(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<usize, Error> {
        self.hear_others();
        let mut answer_bytes = 0;
        for (before, job) in jobs.iter_mut().enumerate() {
            if answer_bytes > MOST_ANSWER_BYTES {
                return Ok(before);
            }
            job.perform(&mut Tx {
                connection: &self.connection,
                rules: &self.options.rules,
                now: self.options.clock.now(),
                wakes: &mut self.wakes,
                held: &mut self.held,
                answer_bytes: &mut answer_bytes,
            })?;
        }
        Ok(jobs.len())
    }

    /// Takes the write lock, waiting for other processes up to the busy timeout. Shorter and more
    /// regular naps than SQLite's own, which favour whoever came last.
    fn begin(&self) -> rusqlite::Result<()> {
        let started = Instant::now();
        let begun = loop {
            match run_cached(&self.connection, "BEGIN IMMEDIATE") {
                Err(error) if is_busy(&error) && started.elapsed() < self.options.busy_timeout => {
                    self.tell_kept_out(started.elapsed() >= KEPT_OUT_AFTER);
                    std::thread::sleep(Duration::from_millis(1));
                }
                outcome => break outcome,
            }
        };
        // Also if it gave up: whoever asks then waits for the next try.
        self.tell_kept_out(false);
        begun
    }

    fn tell_kept_out(&self, now: bool) {
        self.kept_out.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    fn roll_back(&mut self) {
        self.wakes.forget();
        self.held.forget();
        // After some errors SQLite has rolled back by itself.
        if !self.connection.is_autocommit()
            && let Err(error) = run_cached(&self.connection, "ROLLBACK")
        {
            tracing::error!(%error, "a batch could not be rolled back");
        }
        drop_cached_pages(&self.connection);
    }

    /// Wakes those who wait if another process wrote something since the last look, and forgets what it
    /// may have changed.
    fn hear_others(&mut self) {
        match data_version(&self.connection) {
            Ok(version) if version != self.data_version => {
                self.data_version = version;
                self.held.forget();
                self.options.hub.announce_all();
            }
            Ok(_) => {}
            Err(error) => {
                // What others did meanwhile is not known.
                self.held.forget();
                tracing::debug!(%error, "the file could not be asked for changes");
            }
        }
    }
}

/// A number that changes with the commits of every connection but this one.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

fn run_cached(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

#[cfg(test)]
mod tests;
