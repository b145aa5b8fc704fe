use kagzi_core::{Namespace, OperationId};
use tokio::sync::mpsc;

use super::*;

/// The run, a number to know it by, and its bytes; of this namespace.
#[derive(Clone, Debug)]
struct Op(RunId, u32, usize, Namespace);

impl Gathered for Op {
    fn run_id(&self) -> RunId {
        self.0
    }
    fn namespace(&self) -> &Namespace {
        &self.3
    }
    fn len_bytes(&self) -> usize {
        self.2
    }
    type Answer = Verdict;
    fn unanswered() -> Verdict {
        Verdict::FateOpen
    }
}

/// The numbers of a batch, and what lets it end.
type Begun = (Vec<u32>, oneshot::Sender<()>);

/// Tells of every batch, and ends it when told to.
struct Stage {
    batches: mpsc::UnboundedSender<Begun>,
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

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

fn run() -> RunId {
    RunId::for_start(&namespace("n"), OperationId::generate(), None)
}

fn op(run: RunId, number: u32, bytes: usize) -> Op {
    Op(run, number, bytes, namespace("n"))
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
    let mut callers = vec![submit(op(a, 1, 0))];
    let (first, go) = seen.recv().await.unwrap();
    assert_eq!(first, [1], "an idle lane waits for nobody");
    for later in [op(a, 2, 0), op(b, 3, 0), op(a, 4, 0)] {
        callers.push(submit(later));
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
    assert!(gatherer.submit(op(a, 5, 0)).await.is_err());
}

/// The gatherer of one lane a namespace, and the batches that it commits.
fn gatherer(max_batch: usize) -> (Arc<Gatherer<Op>>, mpsc::UnboundedReceiver<Begun>) {
    let (batches, seen) = mpsc::unbounded_channel();
    let bounds = Bounds { lanes: 1, max_batch, max_queued: 100 };
    (Arc::new(Gatherer::new(1, bounds, Stage { batches }, &Arc::default())), seen)
}

/// The next batch that is committed, in the order of its numbers.
async fn next(seen: &mut mpsc::UnboundedReceiver<Begun>) -> Begun {
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), seen.recv()).await;
    let (mut batch, go) = next.expect("a batch is committed").unwrap();
    batch.sort_unstable();
    (batch, go)
}

/// Submits an operation on a run of its own; it waits or is under way when this answers.
async fn submit_for(gatherer: &Arc<Gatherer<Op>>, of: &str, number: u32) -> tokio::task::JoinHandle<Verdict> {
    let (gatherer, op) = (Arc::clone(gatherer), Op(run(), number, 0, namespace(of)));
    let caller = tokio::spawn(async move { gatherer.submit(op).await.unwrap() });
    tokio::task::yield_now().await;
    caller
}

#[tokio::test]
async fn who_has_nothing_under_way_does_not_wait_for_the_batches_of_another() {
    let (gatherer, mut seen) = gatherer(10);
    let mut callers = vec![submit_for(&gatherer, "noisy", 1).await];
    let (batch, noisy) = next(&mut seen).await;
    assert_eq!(batch, [1]);
    for number in 2..5 {
        callers.push(submit_for(&gatherer, "noisy", number).await);
    }
    callers.push(submit_for(&gatherer, "quiet", 10).await);
    let (batch, quiet) = next(&mut seen).await;
    assert_eq!(batch, [10], "and the noisy one has no more than its lane");
    callers.push(submit_for(&gatherer, "quiet", 11).await);
    quiet.send(()).unwrap();
    let (batch, quiet) = next(&mut seen).await;
    assert_eq!(batch, [11]);
    quiet.send(()).unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(seen.try_recv().is_err(), "what is left is the noisy one's, whose lane is at work");
    noisy.send(()).unwrap();
    let (batch, noisy) = next(&mut seen).await;
    assert_eq!(batch, [2, 3, 4]);
    noisy.send(()).unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Verdict::Done);
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gatherer.0.lock().shares.of(&namespace("noisy")), 0, "nothing is kept of who has gone");
}

#[tokio::test]
async fn namespaces_take_turns_in_a_batch_that_does_not_hold_all() {
    let (gatherer, mut seen) = gatherer(4);
    let mut callers = vec![submit_for(&gatherer, "noisy", 1).await];
    let (_, noisy) = next(&mut seen).await;
    callers.push(submit_for(&gatherer, "third", 100).await);
    let (_, third) = next(&mut seen).await;
    for number in 2..8 {
        callers.push(submit_for(&gatherer, "noisy", number).await);
    }
    for number in 10..12 {
        callers.push(submit_for(&gatherer, "quiet", number).await);
    }
    noisy.send(()).unwrap();
    let (batch, noisy) = next(&mut seen).await;
    assert_eq!(batch, [2, 3, 10, 11]);
    for go in [noisy, third] {
        go.send(()).unwrap();
    }
    let (batch, noisy) = next(&mut seen).await;
    assert_eq!(batch, [4, 5, 6, 7], "in the order in which they came");
    noisy.send(()).unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Verdict::Done);
    }
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
    let huge = submit(op(run(), 1, usize::MAX));
    let (first, go) = seen.recv().await.unwrap();
    assert_eq!(first, [1]);
    let small = submit(op(run(), 2, 1));
    tokio::task::yield_now().await;
    assert!(gatherer.0.lock().waiting[0].drain().is_empty(), "there is no room for it");
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
    let first = submit(op(run(), 1, 0));
    let go = batches.recv().await.unwrap();
    let second = submit(op(run(), 2, 0));
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
    let mut caller = Box::pin(gatherer.submit(op(run(), 1, 0)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(caller.as_mut().poll(&mut context).is_pending());
    drop(entered);
    drop(runtime);
    let answer = caller.as_mut().poll(&mut context);
    assert!(matches!(answer, std::task::Poll::Ready(Ok(Verdict::FateOpen))), "{answer:?}");
}
