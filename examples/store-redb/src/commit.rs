//! Group commit: what waits together is written and made durable together.
//!
//! One thread writes. It takes everything that waits, plays it in one transaction, commits, and only
//! then answers (invariant 9). While one batch is being committed the next one gathers, so an idle store
//! adds no delay and a busy one pays one flush a batch.

use std::sync::Arc;
use std::thread;

use kagzi_core::StoreError;
use redb::{Database, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::Shared;
use crate::error::{Error, Result, unavailable};
use crate::news::News;
use crate::save::Writing;

/// How many operations share a commit at most.
const MAX_BATCH: usize = 256;

/// How many operations may wait before callers do.
const MAX_WAITING: usize = 4096;

/// An operation on its way to the writer.
trait Operation: Send {
    /// Plays it, and keeps its answer. An error that is no refusal undoes the whole transaction, after
    /// which the operation may be played again.
    fn play(&mut self, writing: &mut Writing<'_>) -> Result<()>;

    /// Gives the caller what it kept, or `instead`.
    fn answer(self: Box<Self>, instead: Option<StoreError>);
}

struct Pending<T, F> {
    perform: F,
    answer: Option<std::result::Result<T, StoreError>>,
    caller: oneshot::Sender<std::result::Result<T, StoreError>>,
}

impl<T, F> Operation for Pending<T, F>
where
    T: Send,
    F: FnMut(&mut Writing<'_>) -> Result<T> + Send,
{
    fn play(&mut self, writing: &mut Writing<'_>) -> Result<()> {
        self.answer = match (self.perform)(writing) {
            Ok(answer) => Some(Ok(answer)),
            Err(Error::Refused(error)) => Some(Err(error)),
            Err(broken) => return Err(broken),
        };
        Ok(())
    }

    fn answer(self: Box<Self>, instead: Option<StoreError>) {
        let Self { answer, caller, .. } = *self;
        let kept = || answer.unwrap_or_else(|| Err(unavailable("the operation was not played")));
        // A caller that no longer listens has dropped its future, which it may.
        drop(caller.send(instead.map_or_else(kept, Err)));
    }
}

/// The way to the writer. It ends when the last clone is gone, after what was sent.
#[derive(Clone)]
pub(crate) struct Writer(mpsc::Sender<Box<dyn Operation>>);

impl Writer {
    /// Starts the thread that writes.
    pub(crate) fn start(database: Arc<Database>, shared: Arc<Shared>) -> std::io::Result<(Self, Ended)> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let (ended, when_ended) = oneshot::channel();
        thread::Builder::new().name("kagzi-redb-writer".to_owned()).spawn(move || {
            write(receiver, &database, &shared);
            // The file is let go of before anybody hears that the writer has ended.
            drop(database);
            drop(ended);
        })?;
        Ok((Self(sender), Ended(when_ended)))
    }

    /// Has `perform` played in a transaction, and waits until that is durable. Dropping the future
    /// leaves the operation done or not done, never half.
    pub(crate) async fn submit<T, F>(&self, perform: F) -> std::result::Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Writing<'_>) -> Result<T> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let sent = self.0.send(Box::new(Pending { perform, answer: None, caller })).await;
        sent.map_err(|_| unavailable("the writer of the store has stopped"))?;
        let lost = |_| StoreError::outcome_unknown("the writer of the store has stopped");
        answer.await.map_err(lost)?
    }
}

/// Tells when the writer has ended.
pub(crate) struct Ended(oneshot::Receiver<()>);

impl Ended {
    pub(crate) async fn wait(self) {
        // The sender is dropped, never used: the error is the news.
        self.0.await.ok();
    }
}

fn write(mut waiting: mpsc::Receiver<Box<dyn Operation>>, database: &Database, shared: &Shared) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        commit(batch, database, shared);
    }
}

/// What became of a batch.
enum Fate {
    /// It is durable.
    Durable(News),
    /// Nothing was changed.
    Undone(Error),
    /// The commit itself failed: what reached the disk is not known.
    Unknown(Error),
}

fn commit(mut batch: Vec<Box<dyn Operation>>, database: &Database, shared: &Shared) {
    match play(&mut batch, database, shared) {
        Fate::Durable(news) => {
            news.tell(&shared.hub);
            for operation in batch {
                operation.answer(None);
            }
        }
        // One operation broke it: played alone, it harms nobody else (invariant 15).
        Fate::Undone(_) if batch.len() > 1 => {
            for operation in batch {
                commit(vec![operation], database, shared);
            }
        }
        Fate::Undone(error) => {
            if let Some(operation) = batch.pop() {
                operation.answer(Some(error.into_store_error()));
            }
        }
        Fate::Unknown(error) => {
            for operation in batch {
                operation.answer(Some(StoreError::outcome_unknown(error.to_string())));
            }
        }
    }
}

fn play(batch: &mut [Box<dyn Operation>], database: &Database, shared: &Shared) -> Fate {
    let transaction = match database.begin_write() {
        Ok(transaction) => transaction,
        Err(error) => return Fate::Undone(error.into()),
    };
    let news = match play_in(&transaction, batch, shared) {
        Ok(Played::Written(news)) => news,
        // Answers that change nothing need no flush.
        Ok(Played::NothingWritten) => return Fate::Durable(News::default()),
        // Dropped with the transaction: whatever was written is undone.
        Err(error) => return Fate::Undone(error),
    };
    match transaction.commit() {
        Ok(()) => Fate::Durable(news),
        Err(error) => Fate::Unknown(error.into()),
    }
}

/// What a batch did to its transaction.
enum Played {
    Written(News),
    NothingWritten,
}

fn play_in(
    transaction: &WriteTransaction,
    batch: &mut [Box<dyn Operation>],
    shared: &Shared,
) -> Result<Played> {
    let mut writing = Writing::new(transaction, shared)?;
    batch.iter_mut().try_for_each(|operation| operation.play(&mut writing))?;
    Ok(if writing.wrote { Played::Written(writing.news) } else { Played::NothingWritten })
}
