//! The write-ahead log: back into the file in time, so that it stays bounded under continuous load.
//!
//! The writer does it between batches, when the callers of the last one have their answers. As a rule
//! it disturbs nobody ([`Mode::Passive`]) and the log starts again from its beginning with the next
//! batch. If reads overlap one another all the time the log never has a moment to start again and would
//! grow for as long as that goes on; over a bound the writer waits for the reads in flight to end.

use std::cell::Cell;
use std::time::Duration;

use rusqlite::Connection;

thread_local! {
    /// How many pages the log held after the last commit of the writer on this thread.
    static LOG_PAGES: Cell<u32> = const { Cell::new(0) };
}

/// When the log is brought back, in pages of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// While nothing is to be done: at this length.
    pub(crate) idle: u32,
    /// Between two batches: 16 MiB. Less often than SQLite's own 4, since each costs two flushes.
    pub(crate) soft: u32,
    /// Waiting for readers: 64 MiB.
    pub(crate) hard: u32,
    /// How long the writer waits for them at a time.
    pub(crate) patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { idle: 1024, soft: 4096, hard: 16384, patience: Duration::from_millis(500) }
    }
}

/// Keeps the log of one writer short.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    bounds: Bounds,
    /// Not before the log is this long: what cannot be brought back now cannot be with the next batch.
    next: u32,
}

enum Mode {
    Passive,
    WaitForReaders,
}

impl Checkpoints {
    /// From here on this connection's log is brought back by [`after_batch`](Self::after_batch) alone.
    /// To be called on the thread that writes.
    pub(crate) fn take_over(connection: &Connection, bounds: Bounds) -> Self {
        connection.wal_hook(Some(|_, pages| {
            LOG_PAGES.set(pages.unsigned_abs());
            Ok(())
        }));
        Self { bounds, next: bounds.soft }
    }

    /// After a batch, whose callers have their answers.
    pub(crate) fn after_batch(&mut self, connection: &Connection) {
        let pages = LOG_PAGES.get();
        if pages < self.bounds.soft {
            // It started again from its beginning.
            self.next = self.bounds.soft;
        } else if pages >= self.next {
            let mode = if pages < self.bounds.hard { Mode::Passive } else { Mode::WaitForReaders };
            self.bring_back(connection, &mode);
            self.next = pages.saturating_add(self.bounds.soft / 4);
        }
    }

    /// While nothing is to be done.
    pub(crate) fn when_idle(&self, connection: &Connection) {
        if LOG_PAGES.get() >= self.bounds.idle {
            self.bring_back(connection, &Mode::Passive);
        }
    }

    fn bring_back(&self, connection: &Connection, mode: &Mode) {
        let outcome = match mode {
            Mode::Passive => run(connection, "PRAGMA wal_checkpoint(PASSIVE)"),
            Mode::WaitForReaders => {
                let outcome = connection
                    .busy_timeout(self.bounds.patience)
                    .and_then(|()| run(connection, "PRAGMA wal_checkpoint(RESTART)"));
                connection.busy_timeout(Duration::ZERO).and(outcome)
            }
        };
        match outcome {
            // Nothing new to bring back until the next commit.
            Ok((pages, done)) if pages == done => LOG_PAGES.set(0),
            Ok((pages, done)) => tracing::debug!(pages, done, "readers keep the log from starting again"),
            // Nothing is lost: what was committed stands in the log.
            Err(error) => tracing::warn!(%error, "the write-ahead log could not be brought back"),
        }
    }
}

/// How many pages the log holds, and how many of them were brought back.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<(i64, i64)> {
    connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, mpsc};

    use kagzi_core::{Namespace, Payload, QueueName, StartRun, Store as _, WorkflowType};

    use super::*;
    use crate::{SqliteOptions, SqliteStore, schema};

    /// Reads that overlap one another: at each moment at least one is in flight, until it is told to end.
    fn overlapping_reads(options: &SqliteOptions, over: &AtomicBool) {
        let (one, two) = (schema::open_reader(options).unwrap(), schema::open_reader(options).unwrap());
        let (to_two, from_one) = mpsc::sync_channel::<()>(0);
        let (to_one, from_two) = mpsc::sync_channel::<()>(0);
        let read =
            |connection: &Connection, other_began: &mpsc::Receiver<()>, began: &mpsc::SyncSender<()>| {
                while !over.load(Ordering::SeqCst) {
                    connection.execute_batch("BEGIN").unwrap();
                    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap();
                    // The other may end only now, and this one only when the other has begun again.
                    if began.send(()).is_err() || other_began.recv().is_err() {
                        return;
                    }
                    connection.execute_batch("COMMIT").unwrap();
                }
            };
        std::thread::scope(|scope| {
            scope.spawn(move || read(&one, &from_two, &to_two));
            scope.spawn(move || {
                from_one.recv().unwrap();
                read(&two, &from_one, &to_one);
            });
        });
    }

    fn log_bytes(path: &Path) -> u64 {
        path.with_extension("db-wal").metadata().unwrap().len()
    }

    /// Writes 40 MiB in batches of 64 KiB; answers how long the log was at its longest.
    fn longest_log(options: &SqliteOptions, bounds: Bounds) -> u64 {
        let connection = schema::open_writer(options).unwrap();
        let mut checkpoints = Checkpoints::take_over(&connection, bounds);
        connection.execute_batch("CREATE TABLE IF NOT EXISTS ballast (bytes BLOB NOT NULL)").unwrap();
        let mut longest = 0;
        for _ in 0..640 {
            connection.execute("INSERT INTO ballast VALUES (zeroblob(65536))", []).unwrap();
            checkpoints.after_batch(&connection);
            longest = longest.max(log_bytes(options.path()));
        }
        longest
    }

    const BOUNDS: Bounds = Bounds { idle: 64, soft: 128, hard: 512, patience: Duration::from_secs(10) };

    #[test]
    fn the_log_stays_short_under_continuous_writes() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let longest = longest_log(&options, BOUNDS);
        assert!(longest < 1 << 20, "{longest} bytes: the soft bound is 512 KiB, a batch about 70 KiB");
    }

    #[test]
    fn the_log_stays_bounded_under_continuous_writes_and_overlapping_reads() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        drop(schema::open_writer(&options).unwrap());
        let over = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            scope.spawn(|| overlapping_reads(&options, &over));
            let longest = longest_log(&options, BOUNDS);
            over.store(true, Ordering::SeqCst);
            longest
        });
        assert!(longest < 3 << 20, "{longest} bytes: the hard bound is 2 MiB");
    }

    /// What is promised of a store as it is opened by default: the hard bound, and as much again as comes in
    /// while the writer waits for readers in vain, or in one batch.
    const MOST_LOG_BYTES: u64 = 96 << 20;

    /// Through the store itself: 256 MiB of inputs, started by four callers at once in pieces of a MiB.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_log_of_a_store_stays_bounded_under_load_while_reads_overlap() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let store = Arc::new(SqliteStore::open(options.clone()).await.unwrap());
        let over = Arc::new(AtomicBool::new(false));
        let (ours, until) = (options.clone(), Arc::clone(&over));
        let reads = std::thread::spawn(move || overlapping_reads(&ours, &until));
        let longest = Arc::new(AtomicU64::new(0));
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (store, longest, path) =
                    (Arc::clone(&store), Arc::clone(&longest), options.path().to_owned());
                tokio::spawn(async move {
                    for _ in 0..64 {
                        store.start((0..16).map(|_| start_of(64 << 10)).collect()).await.unwrap();
                        longest.fetch_max(log_bytes(&path), Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        over.store(true, Ordering::SeqCst);
        reads.join().unwrap();
        store.close().await.unwrap();
        let longest = longest.load(Ordering::SeqCst);
        eprintln!("the log was {} MiB at its longest", longest >> 20);
        assert!(longest < MOST_LOG_BYTES, "{longest} bytes of log");
    }

    fn start_of(bytes: usize) -> StartRun {
        StartRun::new(
            Namespace::new("n").unwrap(),
            QueueName::new("q").unwrap(),
            WorkflowType::new("w").unwrap(),
            Payload::raw(vec![7; bytes]),
        )
    }

    #[test]
    fn an_idle_writer_brings_the_log_back() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let connection = schema::open_writer(&options).unwrap();
        let checkpoints = Checkpoints::take_over(&connection, BOUNDS);
        connection.execute_batch("CREATE TABLE ballast (bytes BLOB NOT NULL)").unwrap();
        for _ in 0..10 {
            connection.execute("INSERT INTO ballast VALUES (zeroblob(65536))", []).unwrap();
        }
        assert!(LOG_PAGES.get() > BOUNDS.idle);
        let before = options.path().metadata().unwrap().len();
        checkpoints.when_idle(&connection);
        assert!(options.path().metadata().unwrap().len() > before + 600_000);
        assert_eq!(LOG_PAGES.get(), 0, "and is not asked again before the next commit");
    }
}
