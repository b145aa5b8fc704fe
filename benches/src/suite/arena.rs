//! The store of a group, opened when the first bench of it runs, and rounds of operations on it.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kagzi_core::{Payload, SharedStore, StoreError};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::call::Call;
use super::operation::Operation;
use crate::backends::Failed;
use crate::benched::{Bed, Benched};
use crate::workload::{Names, joined};

/// How many operations are prepared at once.
const PREPARED: usize = 4_096;
/// How many bytes of payloads they have together.
const PREPARED_BYTES: usize = 64 * 1024 * 1024;

/// How many rounds are made and forgotten when a store was opened.
const WARMING_ROUNDS: u64 = 8;

/// What the operations of a bench have in common.
#[derive(Clone, Debug)]
pub struct Load {
    /// Which.
    pub operation: Operation,
    /// What they carry.
    pub payload: Payload,
    /// How many at once.
    pub in_flight: usize,
    /// The queue, which they must leave without due runs; nothing: a new one whenever some are prepared.
    pub queue: Option<&'static str>,
}

/// The store of a group.
#[derive(Debug)]
pub struct Arena<'a> {
    runtime: &'a Runtime,
    backend: &'a dyn Benched,
    bed: Option<Box<dyn Bed>>,
    queues: u32,
}

impl<'a> Arena<'a> {
    /// Not opened yet.
    pub const fn new(runtime: &'a Runtime, backend: &'a dyn Benched) -> Self {
        Self { runtime, backend, bed: None, queues: 0 }
    }

    /// Opened, if it was not.
    pub fn bed(&mut self) -> Result<&dyn Bed, Failed> {
        let bed = match self.bed.take() {
            Some(bed) => bed,
            None => self.runtime.block_on(self.backend.open(None))?,
        };
        Ok(&**self.bed.insert(bed))
    }

    /// How long `rounds` of the load take, without what is made before.
    pub fn time(&mut self, load: &Load, rounds: u64) -> Result<Duration, Failed> {
        if self.bed.is_none() {
            // The first operations open connections and prepare statements.
            self.bed()?;
            self.time(load, WARMING_ROUNDS)?;
        }
        let store = self.bed()?.store();
        let rounds = usize::try_from(rounds)?;
        let at_once = PREPARED.min(PREPARED_BYTES / load.payload.len_bytes().max(1)) / load.in_flight;
        let mut left = rounds;
        let mut elapsed = Duration::ZERO;
        while left > 0 {
            let now = left.min(at_once.max(1));
            let names = self.names(load)?;
            elapsed += self.runtime.block_on(async {
                let count = now * load.in_flight;
                let calls = load.operation.prepare(&store, &names, &load.payload, count).await?;
                in_flight(&store, calls, load.in_flight).await
            })?;
            left -= now;
        }
        Ok(elapsed)
    }

    /// Closes the store, if it was opened.
    pub fn close(self) -> Result<(), Failed> {
        let Some(bed) = self.bed else { return Ok(()) };
        self.runtime.block_on(async {
            bed.store().close().await?;
            drop(bed);
            Ok(())
        })
    }

    fn names(&mut self, load: &Load) -> Result<Names, StoreError> {
        if let Some(queue) = load.queue {
            return Names::new(queue);
        }
        self.queues += 1;
        Names::new(&format!("queue-{}", self.queues))
    }
}

/// How long the calls take with so many tasks, each of which makes one after the other.
async fn in_flight(store: &SharedStore, calls: Vec<Call>, tasks: usize) -> Result<Duration, Failed> {
    let mut shares: Vec<Vec<Call>> = (0..tasks).map(|_| Vec::new()).collect();
    for (at, call) in calls.into_iter().enumerate() {
        shares[at % tasks].push(call);
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for share in shares {
        let store = SharedStore::clone(store);
        running.spawn(async move {
            for call in share {
                call.make(&store).await?;
            }
            Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        joined(done)?;
    }
    Ok(began.elapsed())
}

/// Asks the store about each item, many at a time, and gives the answers in order.
pub async fn each<I, T, F>(items: Vec<I>, ask: impl Fn(I) -> F) -> Result<Vec<T>, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    futures::stream::iter(items.into_iter().map(ask)).buffered(256).try_collect().await
}
