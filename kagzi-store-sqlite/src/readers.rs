//! Readers: a few connections of their own for reads, so that a long one stands in nobody's way.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use kagzi_core::{ConnectionStats, StoreError};
use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::error::{Error, closed};
use crate::rows::drop_cached_pages;

/// A pool of connections that only read.
pub(crate) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    free: Arc<Semaphore>,
    size: u32,
}

impl Readers {
    pub(crate) fn new(connections: Vec<Connection>) -> Self {
        let count = connections.len();
        Self {
            idle: Arc::new(Mutex::new(connections)),
            free: Arc::new(Semaphore::new(count)),
            size: u32::try_from(count).unwrap_or(u32::MAX),
        }
    }

    /// How many of them are at work.
    pub(crate) fn stats(&self) -> ConnectionStats {
        let idle = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX).min(self.size);
        ConnectionStats { in_use: self.size - idle, idle, limit: self.size }
    }

    /// Runs `work` in a read transaction, so that all it sees is of one moment, on a thread where
    /// waiting for the disk harms nobody.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let turn = Arc::clone(&self.free).acquire_owned().await.map_err(|_| closed())?;
        let idle = Arc::clone(&self.idle);
        let reading = tokio::task::spawn_blocking(move || {
            let connection = lock(&idle).pop().ok_or_else(closed)?;
            let found = catch_unwind(AssertUnwindSafe(|| in_transaction(&connection, work)));
            if !matches!(found, Ok(Ok(_) | Err(Error::Refused(_)))) {
                drop_cached_pages(&connection);
            }
            // Whatever became of the work, and even if the caller has long gone: first the connection
            // comes back, then the next may have a turn.
            lock(&idle).push(connection);
            drop(turn);
            found.unwrap_or_else(|panic| resume_unwind(panic)).map_err(Error::into_store_error)
        });
        reading.await.unwrap_or_else(|error| {
            Err(StoreError::Internal { context: "reading", detail: error.to_string() })
        })
    }

    /// Lets the reads in flight finish, then closes every connection.
    pub(crate) async fn close(&self) {
        // Fails only if they were closed before.
        if let Ok(all) = self.free.acquire_many(self.size).await {
            all.forget();
            self.free.close();
            lock(&self.idle).clear();
        }
    }
}

fn in_transaction<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    // Rolled back when it goes out of scope: there is nothing to commit.
    let _transaction = connection.unchecked_transaction()?;
    work(connection)
}

fn lock(idle: &Mutex<Vec<Connection>>) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    // A push or a pop that panicked would have lost a connection, not spoilt the rest.
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
