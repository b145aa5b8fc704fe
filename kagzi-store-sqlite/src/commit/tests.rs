//! Tests: what a batch owes to each of its operations. The batches are made by hand, so that nothing
//! depends on who comes when.

use kagzi_core::{
    BeginOutcome, BeginStep, Claim, ClaimedRun, Lease, NextStep, OperationId, Payload, StartRun, Started,
    StepId, SystemClock, WorkerId, WorkflowType,
};
use rusqlite::params;
use tempfile::TempDir;
use tokio::sync::oneshot::Receiver;

use super::*;
use crate::options::SqliteOptions;
use crate::{claim, runs, schema, steps};

struct Bench {
    scribe: Scribe,
    directory: TempDir,
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let options =
        SqliteOptions::new(directory.path().join("kagzi.db")).busy_timeout(Duration::from_millis(20));
    let scribe = Scribe::new(
        Arc::new(Queue::new(100, 1 << 20)),
        schema::open_writer(&options).unwrap(),
        watch::Sender::new(false),
        WriterOptions {
            rules: Rules::default(),
            clock: Arc::new(SystemClock),
            hub: WakeHub::new(),
            counters: Arc::default(),
            max_batch: 100,
            queue_bound: 100,
            queue_bound_bytes: 1 << 20,
            busy_timeout: options.busy_timeout,
        },
    )
    .unwrap();
    Bench { scribe, directory }
}

impl Bench {
    fn runs(&self) -> i64 {
        // On another connection: only what is committed counts.
        let connection = Connection::open(self.directory.path().join("kagzi.db")).unwrap();
        connection.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap()
    }
}

type Answer<T> = Receiver<Result<T, StoreError>>;

fn job<T: Send + 'static>(
    work: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
) -> (Box<dyn Job>, Answer<T>) {
    let (caller, answer) = oneshot::channel();
    (Box::new(Task { work, verdict: None, caller: Some(caller), _room: None }), answer)
}

fn a_start() -> StartRun {
    StartRun::new(
        Namespace::new("n").unwrap(),
        QueueName::new("q").unwrap(),
        WorkflowType::new("t").unwrap(),
        Payload::empty(),
    )
}

fn start() -> (Box<dyn Job>, Answer<Vec<Started>>) {
    let batch = vec![a_start()];
    job(move |tx| runs::start(tx, &batch))
}

fn no_such_run() -> Error {
    Error::Refused(StoreError::RunNotFound { run_id: a_start().run_id() })
}

#[test]
fn a_refused_operation_leaves_its_neighbours_alone() {
    let mut bench = bench();
    let ((first, mut one), (second, mut two), (third, mut three)) =
        (start(), job(|_| Err::<(), _>(no_such_run())), start());
    bench.scribe.commit(vec![first, second, third]);
    assert!(one.try_recv().unwrap().is_ok());
    assert!(matches!(two.try_recv().unwrap(), Err(StoreError::RunNotFound { .. })));
    assert!(three.try_recv().unwrap().is_ok());
    assert_eq!(bench.runs(), 2);
}

#[test]
fn an_operation_that_breaks_half_way_fails_alone_and_leaves_nothing() {
    let breaks: [fn() -> Result<(), Error>; 3] = [
        || Err(rusqlite::Error::InvalidQuery.into()),
        // A refusal after a write is no refusal.
        || Err(no_such_run()),
        || panic!("an operation of the test panics, as it should"),
    ];
    for broken in breaks {
        let mut bench = bench();
        let batch = vec![a_start()];
        let ((first, mut one), (third, mut three)) = (start(), start());
        let (second, mut two) = job(move |tx| {
            runs::start(tx, &batch)?;
            broken()
        });
        bench.scribe.commit(vec![first, second, third]);
        assert!(one.try_recv().unwrap().is_ok());
        assert!(two.try_recv().unwrap().is_err());
        assert!(three.try_recv().unwrap().is_ok());
        assert_eq!(bench.runs(), 2);
    }
}

#[test]
fn a_commit_that_fails_answers_an_error_to_all() {
    let mut bench = bench();
    let ((first, mut one), (second, mut two)) = (start(), start());
    bench.scribe.connection.commit_hook(Some(|| true)).unwrap();
    bench.scribe.commit(vec![first, second]);
    assert!(one.try_recv().unwrap().is_err());
    assert!(two.try_recv().unwrap().is_err());
    assert_eq!(bench.runs(), 0);

    bench.scribe.connection.commit_hook(None::<fn() -> bool>).unwrap();
    let (third, mut three) = start();
    bench.scribe.commit(vec![third]);
    assert!(three.try_recv().unwrap().is_ok(), "the next batch is not harmed");
    assert_eq!(bench.runs(), 1);
}

#[test]
fn nobody_is_woken_by_a_batch_that_failed() {
    let mut bench = bench();
    let start = a_start();
    let topic = Topic::Queue(start.namespace.clone(), start.queue.clone());
    let mut waiter = bench.scribe.options.hub.subscribe([topic]);
    let mut is_woken = || {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(waiter.wait()).as_mut().poll(&mut context).is_ready()
    };
    bench.scribe.connection.commit_hook(Some(|| true)).unwrap();
    let (lost, mut answer) = self::start();
    bench.scribe.commit(vec![lost]);
    assert!(answer.try_recv().unwrap().is_err());
    assert!(!is_woken());
    bench.scribe.connection.commit_hook(None::<fn() -> bool>).unwrap();
    let (kept, mut answer) = self::start();
    bench.scribe.commit(vec![kept]);
    assert!(answer.try_recv().unwrap().is_ok());
    assert!(is_woken());
}

#[test]
fn a_full_disk_is_told_with_its_remedy_and_ends_when_there_is_room() {
    let mut bench = bench();
    let pages: i64 = bench.scribe.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let limit = |scribe: &Scribe, pages: i64| {
        scribe.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    };
    limit(&bench.scribe, pages);
    let mut large = a_start();
    large.input = Payload::raw(vec![7; 100_000]);
    let large = vec![large];
    let again = large.clone();
    let ((first, mut one), (second, mut two)) = (job(move |tx| runs::start(tx, &large)), start());
    bench.scribe.commit(vec![first, second]);
    let error = one.try_recv().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.to_string().contains("free some space"));
    assert!(two.try_recv().unwrap().is_ok(), "what fits is written");
    assert_eq!(bench.runs(), 1);

    limit(&bench.scribe, pages + 1000);
    let (third, mut three) = job(move |tx| runs::start(tx, &again));
    bench.scribe.commit(vec![third]);
    assert!(three.try_recv().unwrap().is_ok());
}

#[test]
fn a_file_locked_by_another_process_is_unavailable_and_nothing_was_done() {
    let mut bench = bench();
    let other = Connection::open(bench.directory.path().join("kagzi.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (first, mut one) = start();
    bench.scribe.commit(vec![first]);
    let error = one.try_recv().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bench.runs(), 0);
    let (second, mut two) = start();
    bench.scribe.commit(vec![second]);
    assert!(two.try_recv().unwrap().is_ok());
}

#[test]
fn an_operation_whose_caller_has_left_is_not_done() {
    let mut bench = bench();
    let ((first, one), (second, mut two)) = (start(), start());
    drop(one);
    bench.scribe.commit(vec![first, second]);
    assert!(two.try_recv().unwrap().is_ok());
    assert_eq!(bench.runs(), 1);
}

#[test]
fn two_operations_on_one_run_in_one_batch_follow_each_other() {
    let mut bench = bench();
    let batch = vec![a_start()];
    let run_id = batch[0].run_id();
    let (first, mut one) = job(move |tx| runs::start(tx, &batch));
    let (second, mut two) = job(move |tx| Ok(runs::find(tx.connection, run_id)?.is_some()));
    bench.scribe.commit(vec![first, second]);
    assert!(one.try_recv().unwrap().is_ok());
    assert!(two.try_recv().unwrap().unwrap());
}

#[test]
fn a_run_goes_with_everything_that_belongs_to_it() {
    let mut bench = bench();
    let batch = vec![a_start()];
    let run_id = batch[0].run_id();
    let (first, _one) = job(move |tx| runs::start(tx, &batch));
    let (second, mut two) = job(move |tx| {
        crate::rows::execute(tx.connection, runs::DELETE, params![crate::rows::bytes(run_id.as_uuid())])
    });
    bench.scribe.commit(vec![first, second]);
    assert_eq!(two.try_recv().unwrap().unwrap(), 1);
    let left = "SELECT count(*) FROM payloads";
    assert_eq!(bench.scribe.connection.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

fn claim_one() -> (Box<dyn Job>, Answer<Vec<ClaimedRun>>) {
    let start = a_start();
    let request = Claim {
        namespace: start.namespace,
        queues: vec![start.queue],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    job(move |tx| claim::claim(tx, &request))
}

fn a_begin(lease: &Lease) -> BeginStep {
    BeginStep {
        lease: lease.clone(),
        step: NextStep::new(StepId::new("s").unwrap(), 0),
        operation: OperationId::generate(),
    }
}

#[test]
fn what_was_rolled_back_is_not_remembered() {
    let mut bench = bench();
    let ((first, _one), (second, mut two)) = (start(), claim_one());
    bench.scribe.commit(vec![first, second]);
    let lease = two.try_recv().unwrap().unwrap().remove(0).lease.lease;

    let begin = a_begin(&lease);
    let (third, mut three) = job(move |tx| {
        steps::begin(tx, &begin)?;
        Err::<(), _>(rusqlite::Error::InvalidQuery.into())
    });
    bench.scribe.commit(vec![third]);
    assert!(three.try_recv().unwrap().is_err());

    let begin = a_begin(&lease);
    let (fourth, mut four) = job(move |tx| steps::begin(tx, &begin));
    bench.scribe.commit(vec![fourth]);
    assert_eq!(four.try_recv().unwrap().unwrap(), BeginOutcome::Execute { attempt: 1 });
}

#[test]
fn a_batch_is_cut_where_its_answers_grow_large_and_all_of_it_is_done() {
    let mut bench = bench();
    let commits = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = Arc::clone(&commits);
    let count = move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        false
    };
    bench.scribe.connection.commit_hook(Some(count)).unwrap();
    let large = |size: usize| {
        let batch = vec![a_start()];
        job(move |tx| {
            *tx.answer_bytes += size;
            runs::start(tx, &batch)
        })
    };
    let (jobs, answers): (Vec<_>, Vec<_>) = [MOST_ANSWER_BYTES, 1, 1, 1].map(large).into_iter().unzip();
    bench.scribe.commit(jobs);
    for mut answer in answers {
        assert!(answer.try_recv().unwrap().is_ok());
    }
    assert_eq!(bench.runs(), 4);
    assert_eq!(commits.load(std::sync::atomic::Ordering::SeqCst), 2, "two answers each");
}
