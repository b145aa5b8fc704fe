//! Group commit: operations that are in flight together share a statement and its flush.
//!
//! While one batch is being committed the next one gathers. An operation that finds a free lane goes
//! at once, so an idle system pays no added delay. One run is in one batch at a time: a second
//! operation on it waits for the next, so that no batch waits for a row that another one holds. And a
//! namespace that has much to commit does not hold up the others ([`fair`]).

mod fair;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kagzi_core::{ErrorScope, Namespace, RunId, StoreCounters, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::fair::{FOR_OTHERS, Lines, Look, Shares};
use crate::error::RETRY_AFTER;

/// A batch is cut off at this many bytes of payload, however few operations it holds.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// So much payload waits or is in flight at most, in units of a KiB; more callers wait for room.
const MAX_QUEUED_KIB: u32 = 64 * 1024;

/// What can be gathered. Cloning it must be cheap.
pub(crate) trait Gathered: Clone + fmt::Debug + Send + Sync + 'static {
    /// The run it is about.
    fn run_id(&self) -> RunId;
    /// Whose it is.
    fn namespace(&self) -> &Namespace;
    /// About how many bytes it sends.
    fn len_bytes(&self) -> usize;
    /// What becomes of it.
    type Answer: Send + 'static;
    /// What to answer when its lane died, with or after its batch.
    fn unanswered() -> Self::Answer;
}

/// What became of one operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is done and durable.
    Done,
    /// It is not of the ordinary kind. Nothing was changed; take the path that knows all rules.
    NotOrdinary,
    /// The connection broke, so it may be done or not. Ask again on the path that knows repeats.
    FateOpen,
    /// There is no database to be had. Nothing was sent.
    Away {
        /// What happened and what to do, for people.
        reason: String,
        /// How much of the store that is about.
        scope: ErrorScope,
    },
}

/// Who commits a batch of operations on runs of one partition. It gives an answer for each.
#[async_trait]
pub(crate) trait Committer<T: Gathered>: Send + Sync + 'static {
    async fn commit(&self, partition: i16, batch: &[T]) -> Vec<T::Answer>;
    /// The partition of a run.
    fn partition_of(&self, run_id: RunId) -> i16;
}

/// How much is gathered, and by how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of one namespace; all together have one more.
    pub(crate) lanes: usize,
    pub(crate) max_batch: usize,
    pub(crate) max_queued: usize,
}

struct Waiting<T: Gathered> {
    operation: T,
    answer: oneshot::Sender<T::Answer>,
    /// The place in the queue and the room for its payload, given back when the operation is answered.
    _place: [OwnedSemaphorePermit; 2],
}

struct State<T: Gathered> {
    /// By partition.
    waiting: Vec<Lines<Waiting<T>>>,
    /// The partition whose turn it is.
    turn: usize,
    /// The runs of the batches in flight.
    busy: HashSet<RunId>,
    lanes_in_flight: usize,
    /// For whom: a lane works for those of its last batch until it takes the next one, so that those who come
    /// back with their next operation meanwhile find it taken.
    shares: Shares,
}

struct Shared<T: Gathered> {
    state: Mutex<State<T>>,
    committer: Box<dyn Committer<T>>,
    bounds: Bounds,
    counters: Arc<StoreCounters>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

/// Gathers operations of one kind into batches.
pub(crate) struct Gatherer<T: Gathered>(Arc<Shared<T>>);

impl<T: Gathered> fmt::Debug for Gatherer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gatherer").field("bounds", &self.0.bounds).finish_non_exhaustive()
    }
}

impl<T: Gathered> Gatherer<T> {
    pub(crate) fn new(
        partitions: u16,
        bounds: Bounds,
        committer: impl Committer<T>,
        counters: &Arc<StoreCounters>,
    ) -> Self {
        let state = State {
            waiting: (0..partitions).map(|_| Lines::default()).collect(),
            turn: 0,
            busy: HashSet::new(),
            lanes_in_flight: 0,
            shares: Shares::default(),
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            committer: Box::new(committer),
            bounds,
            counters: Arc::clone(counters),
            places: Arc::new(Semaphore::new(bounds.max_queued)),
            room: Arc::new(Semaphore::new(MAX_QUEUED_KIB as usize)),
        }))
    }

    /// Has `operation` committed with others. Cancel safe: dropped before it has a place, it is not
    /// done; dropped later, it is done all the same.
    pub(crate) async fn submit(&self, operation: T) -> Result<T::Answer, StoreError> {
        let closed = || StoreError::unavailable("the store is closed", RETRY_AFTER);
        let place = Arc::clone(&self.0.places).acquire_owned().await.map_err(|_| closed())?;
        let kib = u32::try_from(operation.len_bytes().div_ceil(1024)).unwrap_or(u32::MAX).min(MAX_QUEUED_KIB);
        let room = Arc::clone(&self.0.room).acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let new_lane = {
            let mut state = self.0.lock();
            let partition = usize::try_from(self.0.committer.partition_of(operation.run_id())).unwrap_or(0);
            let new_lane = state.has_lane_for(operation.namespace(), &self.0.bounds).then(|| {
                state.lanes_in_flight += 1;
                let namespaces = state.shares.join(std::iter::once(operation.namespace()));
                Lane(InFlight::new(Arc::clone(&self.0), namespaces))
            });
            if let Some(lines) = state.waiting.get_mut(partition) {
                let namespace = operation.namespace().clone();
                lines.push(&namespace, Waiting { operation, answer, _place: [place, room] });
            }
            new_lane
        };
        if let Some(lane) = new_lane {
            tokio::spawn(lane.run());
        }
        // A lane that dies without an answer had sent its batch, perhaps.
        Ok(answered.await.unwrap_or_else(|_| T::unanswered()))
    }

    /// Takes no more operations and waits until those in flight are answered.
    pub(crate) async fn close(&self) {
        let all = u32::try_from(self.0.bounds.max_queued).unwrap_or(u32::MAX);
        // An error means that it is closed already.
        drop(self.0.places.acquire_many(all).await);
        self.0.places.close();
    }
}

impl<T: Gathered> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is never left half changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the tasks that commit batches, alive as long as there is something to do.
struct Lane<T: Gathered>(InFlight<T>);

impl<T: Gathered> Lane<T> {
    async fn run(self) {
        let Self(mut in_flight) = self;
        while let Some((partition, batch)) = in_flight.take() {
            let operations: Vec<T> = batch.iter().map(|one| one.operation.clone()).collect();
            in_flight.shared.counters.batch(operations.len());
            let answers = in_flight.shared.committer.commit(partition, &operations).await;
            in_flight.release_runs();
            for (waiting, answer) in batch.into_iter().zip(answers) {
                // Whoever asked may have gone; the operation is done all the same.
                waiting.answer.send(answer).ok();
            }
            // Those who were just answered come back with their next operation at once: let them, so
            // that the next batch holds them all.
            tokio::task::yield_now().await;
        }
    }
}

/// What a lane holds, given back however the lane ends.
struct InFlight<T: Gathered> {
    shared: Arc<Shared<T>>,
    runs: Vec<RunId>,
    namespaces: HashSet<Namespace>,
    lane_ended: bool,
}

impl<T: Gathered> InFlight<T> {
    /// The next batch, or nothing: then the lane has ended. Both are decided under one lock, so that
    /// no operation is left behind between two lanes.
    fn take(&mut self) -> Option<(i16, Vec<Waiting<T>>)> {
        let mut state = self.shared.lock();
        state.shares.leave(self.namespaces.drain());
        let partitions = state.waiting.len();
        for offset in 0..partitions {
            let partition = (state.turn + offset) % partitions;
            let batch = state.take_from(partition, &self.shared.bounds);
            if !batch.is_empty() {
                state.turn = (partition + 1) % partitions;
                self.runs = batch.iter().map(|waiting| waiting.operation.run_id()).collect();
                self.namespaces =
                    state.shares.join(batch.iter().map(|waiting| waiting.operation.namespace()));
                return Some((i16::try_from(partition).unwrap_or(i16::MAX), batch));
            }
        }
        state.lanes_in_flight -= 1;
        drop(state);
        self.lane_ended = true;
        None
    }
}

impl<T: Gathered> InFlight<T> {
    /// For a lane that is counted already.
    const fn new(shared: Arc<Shared<T>>, namespaces: HashSet<Namespace>) -> Self {
        Self { shared, runs: Vec::new(), namespaces, lane_ended: false }
    }

    fn release_runs(&mut self) {
        let mut state = self.shared.lock();
        for run in self.runs.drain(..) {
            state.busy.remove(&run);
        }
    }
}

impl<T: Gathered> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.release_runs();
        if self.lane_ended {
            return;
        }
        let mut state = self.shared.lock();
        state.shares.leave(self.namespaces.drain());
        state.lanes_in_flight -= 1;
        if state.lanes_in_flight > 0 {
            // Another lane is alive and takes what waits.
            return;
        }
        let abandoned: Vec<_> = state.waiting.iter_mut().flat_map(Lines::drain).collect();
        drop(state);
        if !abandoned.is_empty() {
            // No lane comes for them until the next operation, which may never come. Let go of, they
            // are answered with an open fate and take the careful path.
            tracing::error!(operations = abandoned.len(), "the last lane died before its operations");
        }
    }
}

impl<T: Gathered> State<T> {
    /// Whether another lane may work for this namespace.
    fn has_lane_for(&self, namespace: &Namespace, bounds: &Bounds) -> bool {
        self.lanes_in_flight < bounds.lanes + FOR_OTHERS && self.shares.of(namespace) < bounds.lanes
    }

    /// Takes operations on runs that are not in flight, of namespaces that have a lane left, in turn; of each the
    /// oldest first, one a run. Sorted by run id.
    ///
    /// What is left waits for a lane that is at work: for a run of its batch, or because its namespace has no more.
    /// When that one is done it takes it.
    fn take_from(&mut self, partition: usize, bounds: &Bounds) -> Vec<Waiting<T>> {
        let Self { waiting, busy, shares, .. } = self;
        let Some(lines) = waiting.get_mut(partition) else { return Vec::new() };
        let (mut count, mut bytes) = (0, 0);
        let look = |waiting: &Waiting<T>| {
            if !busy.insert(waiting.operation.run_id()) {
                return Look::PassBy;
            }
            count += 1;
            bytes += waiting.operation.len_bytes();
            if count >= bounds.max_batch || bytes >= MAX_BATCH_BYTES { Look::TakeLast } else { Look::Take }
        };
        let mut batch = lines.take(|namespace| shares.of(namespace) < bounds.lanes, look);
        batch.sort_unstable_by_key(|waiting| waiting.operation.run_id());
        batch
    }
}
