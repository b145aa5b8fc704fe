//! Group commit: operations that are in flight together share a statement and its flush.
//!
//! While one batch is being committed the next one gathers. An operation that finds a free lane goes
//! at once, so an idle system pays no added delay. One run is in one batch at a time: a second
//! operation on it waits for the next, so that no batch waits for a row that another one holds.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kagzi_core::{RunId, StoreCounters, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::RETRY_AFTER;

/// A batch is cut off at this many bytes of payload, however few operations it holds.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// So much payload waits or is in flight at most, in units of a KiB; more callers wait for room.
const MAX_QUEUED_KIB: u32 = 64 * 1024;

/// What can be gathered. Cloning it must be cheap.
pub(crate) trait Gathered: Clone + fmt::Debug + Send + Sync + 'static {
    /// The run it is about.
    fn run_id(&self) -> RunId;
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
    waiting: Vec<VecDeque<Waiting<T>>>,
    /// The partition whose turn it is.
    turn: usize,
    /// The runs of the batches in flight.
    busy: HashSet<RunId>,
    lanes_in_flight: usize,
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
            waiting: (0..partitions).map(|_| VecDeque::new()).collect(),
            turn: 0,
            busy: HashSet::new(),
            lanes_in_flight: 0,
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
        let closed =
            || StoreError::Unavailable { reason: "the store is closed".to_owned(), retry_after: RETRY_AFTER };
        let place = Arc::clone(&self.0.places).acquire_owned().await.map_err(|_| closed())?;
        let kib = u32::try_from(operation.len_bytes().div_ceil(1024)).unwrap_or(u32::MAX).min(MAX_QUEUED_KIB);
        let room = Arc::clone(&self.0.room).acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let new_lane = {
            let mut state = self.0.lock();
            let partition = usize::try_from(self.0.committer.partition_of(operation.run_id())).unwrap_or(0);
            if let Some(queue) = state.waiting.get_mut(partition) {
                queue.push_back(Waiting { operation, answer, _place: [place, room] });
            }
            let free = state.lanes_in_flight < self.0.bounds.lanes;
            state.lanes_in_flight += usize::from(free);
            free.then(|| Lane(InFlight::new(Arc::clone(&self.0))))
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
    lane_ended: bool,
}

impl<T: Gathered> InFlight<T> {
    /// The next batch, or nothing: then the lane has ended. Both are decided under one lock, so that
    /// no operation is left behind between two lanes.
    fn take(&mut self) -> Option<(i16, Vec<Waiting<T>>)> {
        let mut state = self.shared.lock();
        let partitions = state.waiting.len();
        for offset in 0..partitions {
            let partition = (state.turn + offset) % partitions;
            let batch = state.take_from(partition, &self.shared.bounds);
            if !batch.is_empty() {
                state.turn = (partition + 1) % partitions;
                self.runs = batch.iter().map(|waiting| waiting.operation.run_id()).collect();
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
    const fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, runs: Vec::new(), lane_ended: false }
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
        state.lanes_in_flight -= 1;
        if state.lanes_in_flight > 0 {
            // Another lane is alive and takes what waits.
            return;
        }
        let abandoned: Vec<_> = state.waiting.iter_mut().flat_map(std::mem::take).collect();
        drop(state);
        if !abandoned.is_empty() {
            // No lane comes for them until the next operation, which may never come. Let go of, they
            // are answered with an open fate and take the careful path.
            tracing::error!(operations = abandoned.len(), "the last lane died before its operations");
        }
    }
}

impl<T: Gathered> State<T> {
    /// Takes operations on runs that are not in flight, oldest first, one a run, sorted by run id.
    fn take_from(&mut self, partition: usize, bounds: &Bounds) -> Vec<Waiting<T>> {
        let Some(queue) = self.waiting.get_mut(partition) else { return Vec::new() };
        let (mut batch, mut bytes, mut left) = (Vec::new(), 0, VecDeque::new());
        while let Some(waiting) = queue.pop_front() {
            if self.busy.insert(waiting.operation.run_id()) {
                bytes += waiting.operation.len_bytes();
                batch.push(waiting);
                if batch.len() >= bounds.max_batch || bytes >= MAX_BATCH_BYTES {
                    break;
                }
            } else {
                left.push_back(waiting);
            }
        }
        left.append(queue);
        *queue = left;
        batch.sort_unstable_by_key(|waiting| waiting.operation.run_id());
        batch
    }
}

#[cfg(test)]
mod tests {
    use kagzi_core::{Namespace, OperationId};
    use tokio::sync::mpsc;

    use super::*;

    #[derive(Clone, Debug)]
    struct Op(RunId, u32, usize);

    impl Gathered for Op {
        fn run_id(&self) -> RunId {
            self.0
        }
        fn len_bytes(&self) -> usize {
            self.2
        }
        type Answer = Verdict;
        fn unanswered() -> Verdict {
            Verdict::FateOpen
        }
    }

    /// Tells of every batch, and ends it when told to.
    struct Stage {
        batches: mpsc::UnboundedSender<(Vec<u32>, oneshot::Sender<()>)>,
    }

    #[async_trait]
    impl Committer<Op> for Stage {
        async fn commit(&self, _: i16, batch: &[Op]) -> Vec<Verdict> {
            let (go, gone) = oneshot::channel();
            self.batches.send((batch.iter().map(|op| op.1).collect(), go)).unwrap();
            gone.await.unwrap();
            vec![Verdict::Done; batch.len()]
        }
        fn partition_of(&self, _: RunId) -> i16 {
            0
        }
    }

    /// Dies on its first batch, once told to.
    struct Mine {
        reached: mpsc::UnboundedSender<oneshot::Sender<()>>,
    }

    #[async_trait]
    impl Committer<Op> for Mine {
        async fn commit(&self, _: i16, _: &[Op]) -> Vec<Verdict> {
            let (go, gone) = oneshot::channel();
            self.reached.send(go).unwrap();
            gone.await.unwrap();
            panic!("the batch of this test dies");
        }
        fn partition_of(&self, _: RunId) -> i16 {
            0
        }
    }

    fn run() -> RunId {
        RunId::for_start(&Namespace::new("n").unwrap(), OperationId::generate(), None)
    }

    #[tokio::test]
    async fn what_comes_while_a_batch_is_in_flight_goes_together_and_one_run_never_twice() {
        let (batches, mut seen) = mpsc::unbounded_channel();
        let bounds = Bounds { lanes: 1, max_batch: 10, max_queued: 10 };
        let gatherer = Arc::new(Gatherer::new(1, bounds, Stage { batches }, &Arc::default()));
        let mut runs = [run(), run()];
        runs.sort();
        let [a, b] = runs;
        let submit = |op| {
            let gatherer = Arc::clone(&gatherer);
            tokio::spawn(async move { gatherer.submit(op).await.unwrap() })
        };
        let mut callers = vec![submit(Op(a, 1, 0))];
        let (first, go) = seen.recv().await.unwrap();
        assert_eq!(first, [1], "an idle lane waits for nobody");
        for op in [Op(a, 2, 0), Op(b, 3, 0), Op(a, 4, 0)] {
            callers.push(submit(op));
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        let (second, go) = seen.recv().await.unwrap();
        assert_eq!(second, [2, 3], "one operation a run");
        go.send(()).unwrap();
        let (third, go) = seen.recv().await.unwrap();
        assert_eq!(third, [4]);
        go.send(()).unwrap();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Verdict::Done);
        }
        gatherer.close().await;
        assert!(gatherer.submit(Op(a, 5, 0)).await.is_err());
    }

    #[tokio::test]
    async fn payloads_wait_for_room_and_one_of_any_size_gets_it() {
        let (batches, mut seen) = mpsc::unbounded_channel();
        let bounds = Bounds { lanes: 1, max_batch: 10, max_queued: 10 };
        let gatherer = Arc::new(Gatherer::new(1, bounds, Stage { batches }, &Arc::default()));
        let submit = |op| {
            let gatherer = Arc::clone(&gatherer);
            tokio::spawn(async move { gatherer.submit(op).await.unwrap() })
        };
        let huge = submit(Op(run(), 1, usize::MAX));
        let (first, go) = seen.recv().await.unwrap();
        assert_eq!(first, [1]);
        let small = submit(Op(run(), 2, 1));
        tokio::task::yield_now().await;
        assert!(gatherer.0.lock().waiting[0].is_empty(), "there is no room for it");
        go.send(()).unwrap();
        let (second, go) = seen.recv().await.unwrap();
        assert_eq!(second, [2]);
        go.send(()).unwrap();
        assert_eq!([huge.await.unwrap(), small.await.unwrap()], [Verdict::Done, Verdict::Done]);
    }

    #[tokio::test]
    async fn a_lane_that_dies_leaves_nobody_waiting() {
        let (reached, mut batches) = mpsc::unbounded_channel();
        let bounds = Bounds { lanes: 1, max_batch: 10, max_queued: 10 };
        let gatherer = Arc::new(Gatherer::new(1, bounds, Mine { reached }, &Arc::default()));
        let submit = |op| {
            let gatherer = Arc::clone(&gatherer);
            tokio::spawn(async move { gatherer.submit(op).await.unwrap() })
        };
        let first = submit(Op(run(), 1, 0));
        let go = batches.recv().await.unwrap();
        let second = submit(Op(run(), 2, 0));
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        let long = std::time::Duration::from_secs(20);
        for caller in [first, second] {
            let verdict = tokio::time::timeout(long, caller).await.expect("it is answered").unwrap();
            assert_eq!(verdict, Verdict::FateOpen);
        }
        tokio::time::timeout(long, gatherer.close()).await.expect("it closes");
    }

    #[test]
    fn a_runtime_that_ends_before_its_lane_began_leaves_nobody_waiting() {
        let (batches, _seen) = mpsc::unbounded_channel();
        let bounds = Bounds { lanes: 1, max_batch: 10, max_queued: 10 };
        let gatherer = Gatherer::new(1, bounds, Stage { batches }, &Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let entered = runtime.enter();
        let mut caller = Box::pin(gatherer.submit(Op(run(), 1, 0)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(caller.as_mut().poll(&mut context).is_pending());
        drop(entered);
        drop(runtime);
        let answer = caller.as_mut().poll(&mut context);
        assert!(matches!(answer, std::task::Poll::Ready(Ok(Verdict::FateOpen))), "{answer:?}");
    }
}
