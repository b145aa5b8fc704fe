//! Who may hold a connection while it waits for a lock. A stuck session must not drain the pool.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use kagzi_core::{ErrorScope, Namespace, StoreError};
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::error::{Fault, RETRY_AFTER};
use crate::options::PostgresOptions;

/// Operations that lock one run each and may wait for it: together they take half of the connections,
/// and leave the other half to batches, claims and readers. Many at once wait here in turn for longer than
/// for a connection: that there is a queue says nothing of the database.
pub(crate) struct OneByOne {
    places: Semaphore,
    patience: Duration,
}

impl OneByOne {
    pub(crate) fn new(options: &PostgresOptions) -> Self {
        let half = (options.max_connections / 2).max(1);
        Self { places: Semaphore::new(half as usize), patience: options.statement_timeout }
    }

    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Fault> {
        wait(&self.places, self.patience, "operations on one run each").await
    }
}

/// Claims over several partitions: each holds a connection with its lock while it asks the partitions by others. Together
/// they hold a quarter of the connections, so that there are always some to ask by.
pub(crate) struct Claims {
    places: Semaphore,
    patience: Duration,
}

impl Claims {
    pub(crate) fn new(options: &PostgresOptions) -> Self {
        let quarter = (options.max_connections / 4).max(1);
        Self { places: Semaphore::new(quarter as usize), patience: options.statement_timeout }
    }

    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Fault> {
        wait(&self.places, self.patience, "claims over several partitions").await
    }
}

/// Reads of what may be much. Each takes as long as it takes, so together they have a part of the connections, and what is
/// written, and who asks whether the store is well, never wait for them. Many at once wait here in turn, for as long as one
/// of them may take.
pub(crate) struct Reads {
    /// Pages, counts, depths of queues.
    scans: Semaphore,
    /// Runs that are too large to be read with others: no scan waits for those. Nothing where there are too few
    /// connections to tell them apart.
    alone: Option<Semaphore>,
    patience: Duration,
}

impl Reads {
    pub(crate) fn new(options: &PostgresOptions) -> Self {
        let eighth = options.max_connections as usize / 8;
        Self {
            scans: Semaphore::new(options.scans_at_once() as usize),
            alone: (eighth > 0).then(|| Semaphore::new(eighth)),
            patience: options.statement_timeout,
        }
    }

    pub(crate) async fn turn_to_scan(&self) -> Result<SemaphorePermit<'_>, Fault> {
        wait(&self.scans, self.patience, LARGE_READS).await
    }

    pub(crate) async fn turn_alone(&self) -> Result<SemaphorePermit<'_>, Fault> {
        wait(self.alone.as_ref().unwrap_or(&self.scans), self.patience, LARGE_READS).await
    }
}

const LARGE_READS: &str = "large reads";

/// A place among `those`. That there is a queue says nothing of the database, and so little of the store that no other call
/// is to be refused for it.
async fn wait<'a>(
    places: &'a Semaphore,
    patience: Duration,
    those: &str,
) -> Result<SemaphorePermit<'a>, Fault> {
    let busy = |_| {
        let reason = format!(
            "as many {those} are at work as may be, and none has ended in time; ask again, for less at a time, or give the \
             store more connections (`max_connections`)"
        );
        StoreError::unavailable(reason, RETRY_AFTER).within(ErrorScope::Part)
    };
    let place = tokio::time::timeout(patience, places.acquire()).await;
    place.map_err(busy)?.map_err(|_| sqlx::Error::PoolClosed.into())
}

/// How many slots namespaces and partitions share.
const SLOTS: usize = 64;

/// For so long after a sweep of another server was found stuck, claims go without sweeping.
const PAUSE: Duration = Duration::from_secs(1);

/// Sweeps before claims: of the claims that find one namespace and partition overdue, one takes a
/// connection and waits for the sweeps of other servers; the others wait here for it.
pub(crate) struct Sweeps {
    slots: [Mutex<Option<Instant>>; SLOTS],
    hasher: RandomState,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Mutex::new(None)), hasher: RandomState::new() }
    }
}

impl Sweeps {
    /// The turn to sweep, or nothing where another server's sweep was stuck a moment ago.
    pub(crate) async fn turn(&self, partition: i16, namespace: &Namespace) -> Option<Turn<'_>> {
        let slot = self.hasher.hash_one((partition, namespace)) % SLOTS as u64;
        let slot = self.slots.get(usize::try_from(slot).ok()?)?.lock().await;
        let stuck = slot.is_some_and(|until| Instant::now() < until);
        (!stuck).then_some(Turn(slot))
    }
}

/// The right to sweep, until it is dropped.
pub(crate) struct Turn<'a>(MutexGuard<'a, Option<Instant>>);

impl Turn<'_> {
    /// Another server's sweep did not end in time.
    pub(crate) fn found_stuck(mut self) {
        *self.0 = Some(Instant::now() + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::task::unconstrained;

    use super::*;

    #[tokio::test]
    async fn large_reads_never_have_the_last_connection_nor_wait_for_those_of_the_other_kind() {
        for max_connections in 2..=1000 {
            let options = PostgresOptions { max_connections, ..PostgresOptions::new("postgres://h/d") };
            let (reads, one_by_one) = (Reads::new(&options), OneByOne::new(&options));
            let mut held = Vec::new();
            while let Some(turn) = unconstrained(reads.turn_to_scan()).now_or_never() {
                held.push(turn.unwrap());
            }
            assert_eq!(held.len(), options.scans_at_once() as usize);
            while let Some(turn) = unconstrained(reads.turn_alone()).now_or_never() {
                held.push(turn.unwrap());
            }
            assert_eq!(held.len() > options.scans_at_once() as usize, max_connections >= 8);
            assert!(held.len() < max_connections as usize);
            while let Some(turn) = unconstrained(one_by_one.turn()).now_or_never() {
                held.push(turn.unwrap());
            }
            assert!(held.len() < max_connections as usize || max_connections == 2, "{max_connections}");
        }
    }
}
