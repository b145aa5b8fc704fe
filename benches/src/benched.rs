//! What the author of a backend supplies to have it benched: its name, and how to open it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{Clock, Payload, SharedStore};

use crate::backends::Failed;
use crate::workload::{Names, start_and_cancel};

/// The queue whose finished runs fill a table.
pub const FILLED_QUEUE: &str = "growth";

/// A kind of store, as the benches open it.
#[async_trait]
pub trait Benched: fmt::Debug + Sync {
    /// What the reports call it, and what a filter on the command line finds it by.
    fn name(&self) -> &str;

    /// A fresh, empty store with data of its own, told the time by `clock`, or, without one, as in
    /// production.
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn open(&self, clock: Option<Arc<dyn Clock>>) -> Result<Box<dyn Bed>, Failed>;

    /// The largest table that it is meant to hold; claims are not benched beside more finished runs.
    fn most_finished_runs(&self) -> u32 {
        u32::MAX
    }
}

/// One fresh store. Dropping it removes its data; the store is closed before.
#[async_trait]
pub trait Bed: fmt::Debug + Send + Sync {
    /// The store.
    fn store(&self) -> SharedStore;

    /// Adds finished runs, numbered `from` to `to`, to [`FILLED_QUEUE`]. Through the store's interface
    /// millions of them take long; a database has a quicker way in.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn fill_with_finished_runs(&self, from: u32, to: u32) -> Result<(), Failed> {
        let names = Names::new(FILLED_QUEUE)?;
        let payload = Payload::empty();
        let mut left = (to + 1).saturating_sub(from) as usize;
        while left > 0 {
            let batch = left.min(10_000);
            start_and_cancel(&self.store(), &names, &payload, batch).await?;
            left -= batch;
        }
        Ok(())
    }
}
