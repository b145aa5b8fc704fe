//! What a store tells of itself for operators: figures that it has at hand.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::op::Reaped;

/// What [`Store::stats`](crate::Store::stats) tells. Counts are of this process, since the store was
/// opened; a part that a store does not know says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Its connections now, where it has any.
    pub connections: Option<ConnectionStats>,
    /// Its group commits.
    pub batches: Option<BatchStats>,
    /// What its claims repaired before they took runs. What reaps repair is in their own answers.
    pub swept: SweptStats,
}

/// Connections to a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Open and at work.
    pub in_use: u32,
    /// Open and at rest.
    pub idle: u32,
    /// How many there may be.
    pub limit: u32,
}

/// Group commits. `operations / commits` is the mean size of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Batches that were sent.
    pub commits: u64,
    /// Operations in them.
    pub operations: u64,
}

/// Overdue runs that claims repaired, each in one of them; as in [`Reaped`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptStats {
    /// Sleepers whose time had come.
    pub woken: u64,
    /// Runs whose lease had expired.
    pub leases_expired: u64,
    /// Runs that lost too many leases in a row: dead letters.
    pub poisoned: u64,
    /// Runs past their deadline: dead letters.
    pub runs_timed_out: u64,
}

/// What a backend counts for its [`StoreStats`]. Any number of threads may count at once.
#[derive(Debug, Default)]
pub struct StoreCounters {
    commits: AtomicU64,
    operations: AtomicU64,
    woken: AtomicU64,
    leases_expired: AtomicU64,
    poisoned: AtomicU64,
    runs_timed_out: AtomicU64,
}

impl StoreCounters {
    /// Counts a batch of so many operations.
    pub fn batch(&self, operations: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(operations as u64, Ordering::Relaxed);
    }

    /// Counts what a claim repaired, once that is durable.
    pub fn swept(&self, swept: &Reaped) {
        for (counter, count) in [
            (&self.woken, swept.woken),
            (&self.leases_expired, swept.leases_expired),
            (&self.poisoned, swept.poisoned),
            (&self.runs_timed_out, swept.runs_timed_out),
        ] {
            counter.fetch_add(count.into(), Ordering::Relaxed);
        }
    }

    /// How many batches, of how many operations.
    pub fn batches(&self) -> BatchStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BatchStats { commits: read(&self.commits), operations: read(&self.operations) }
    }

    /// What claims repaired.
    pub fn repaired_by_claims(&self) -> SweptStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SweptStats {
            woken: read(&self.woken),
            leases_expired: read(&self.leases_expired),
            poisoned: read(&self.poisoned),
            runs_timed_out: read(&self.runs_timed_out),
        }
    }
}
