//! Messages from outside: any bytes that are a message at all are read into the domain, and are then
//! the same after a way out and back, or refused with an error that names the field. Never a panic.
//! `PROPTEST_CASES` says how many are tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Debug;
use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptScope, AttemptState, BeginOutcome, BeginStep, CancelRun, CompleteRun, CompleteStep,
    DeleteFinished, FailRun, FailStep, Failure, FailureKind, FencingToken, IdempotencyKey, Labels, Lease,
    ListAttempts, ListRuns, Namespace, NextStep, OperationId, PageRequest, Payload, ReleaseRun, RequeueRun,
    RetryPolicy, Run, RunFilter, RunId, RunRecord, RunState, Sleep, SleepUntil, StartAt, StartRun, StepId,
    StepKind, StoreError, Then, Timestamp, WorkerId, decide,
};
use kagzi_proto::v1;
use kagzi_sdk::wire::error::{error_from_item, error_from_status};
use kagzi_sdk::wire::{FromWire, GetRun, IntoWire, heartbeats_from_wire, poll_from_wire};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

/// A message has many bytes and few of them matter to any one rule: 5,000 cases, which take a second in
/// all, find what 256 miss.
fn config() -> ProptestConfig {
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if told { default } else { ProptestConfig { cases: 5000, ..default } }
}

/// One change to the bytes of a message.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let byte = || prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    let change = prop_oneof![
        8 => (any::<Index>(), byte()).prop_map(|(at, to)| Change::Set(at, to)),
        2 => (any::<Index>(), byte()).prop_map(|(at, to)| Change::Insert(at, to)),
        2 => any::<Index>().prop_map(Change::Remove),
        1 => any::<Index>().prop_map(Change::Cut),
    ];
    vec(change, 0..5)
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        match change {
            Change::Set(at, to) => bytes[at.index(length)] = *to,
            Change::Insert(at, to) => bytes.insert(at.index(length), *to),
            Change::Remove(at) => drop(bytes.remove(at.index(length))),
            Change::Cut(at) => bytes.truncate(at.index(length)),
        }
    }
    bytes
}

fn named(error: &StoreError) -> bool {
    match error {
        StoreError::InvalidArgument { field, expected, .. } => !field.is_empty() && !expected.is_empty(),
        StoreError::TooLarge { field, .. } => !field.is_empty(),
        StoreError::BadCursor { .. } => true,
        _ => false,
    }
}

/// Reads `bytes`, and what is read must come back the same.
fn read<T, M>(bytes: &[u8]) -> Result<(), TestCaseError>
where
    T: FromWire<M> + IntoWire<M> + Clone + PartialEq + Debug,
    M: Message + Default,
{
    let Ok(message) = M::decode(bytes) else { return Ok(()) };
    match T::from_wire(message) {
        Ok(value) => {
            let again = M::decode(value.clone().into_wire().encode_to_vec().as_slice()).unwrap();
            prop_assert_eq!(T::from_wire(again).unwrap(), value);
        }
        Err(error) => prop_assert!(named(&error), "{:?}", error),
    }
    Ok(())
}

fn namespace() -> Namespace {
    Namespace::new("acme").unwrap()
}

fn start() -> StartRun {
    let labels = [("team".to_owned(), "billing".to_owned())].into();
    StartRun {
        idempotency_key: Some(IdempotencyKey::new("order-1").unwrap()),
        start_at: StartAt::After(Duration::from_secs(3)),
        run_timeout: Some(Duration::from_mins(5)),
        retry: Some(RetryPolicy {
            non_retryable_codes: vec!["declined".to_owned()],
            ..RetryPolicy::default()
        }),
        labels: Labels::new(labels).unwrap(),
        trace_context: Some("00-trace".to_owned()),
        ..StartRun::new(namespace(), "q".parse().unwrap(), "greet".parse().unwrap(), Payload::json("{}"))
    }
}

fn run() -> Run {
    decide::new_run(&start(), Timestamp::UNIX_EPOCH)
}

fn lease() -> Lease {
    Lease {
        namespace: namespace(),
        run_id: RunId::for_start(&namespace(), OperationId::generate(), None),
        worker_id: WorkerId::new("w").unwrap(),
        fencing_token: FencingToken::new(7).unwrap(),
    }
}

fn step() -> StepId {
    StepId::new("charge").unwrap()
}

fn next() -> NextStep {
    NextStep { timeout: Some(Duration::from_secs(9)), retry: start().retry, ..NextStep::new(step(), 3) }
}

fn failure() -> Failure {
    Failure { details: Some(Payload::raw("x")), ..Failure::new(FailureKind::Panic, "code", "message") }
}

fn attempt() -> Attempt {
    Attempt {
        run_id: lease().run_id,
        step_id: step(),
        position: 1,
        kind: StepKind::Task,
        attempt: 2,
        state: AttemptState::Completed,
        fencing_token: lease().fencing_token,
        worker_id: lease().worker_id,
        retry: None,
        deadline_at: Some(Timestamp::MAX),
        begin_operation: OperationId::generate(),
        end_operation: Some(OperationId::generate()),
        output: Some(Payload::raw(vec![0, 0xff])),
        failure: None,
        created_at: Timestamp::MIN,
        updated_at: Timestamp::UNIX_EPOCH,
        finished_at: Some(Timestamp::UNIX_EPOCH),
    }
}

/// Tests of the same form: a message made of a value, changed, and read.
macro_rules! readings {
    ($($test:ident: $value:expr => $domain:ty, $message:ty;)*) => {
        proptest! {
            #![proptest_config(config())]
            $(
            #[test]
            fn $test(changes in changes()) {
                let value: $domain = $value;
                let bytes = IntoWire::<$message>::into_wire(value).encode_to_vec();
                read::<$domain, $message>(&changed(bytes, &changes))?;
            }
            )*
        }
    };
}

readings! {
    starts: start() => StartRun, v1::StartWorkflowRequest;
    batches_of_starts: vec![start(), start()] => Vec<StartRun>, v1::StartWorkflowsRequest;
    runs: run() => Run, v1::Run;
    records: RunRecord { run: run(), input: Payload::empty(), output: Some(Payload::json("1")) } => RunRecord, v1::RunRecord;
    attempts: attempt() => Attempt, v1::Attempt;
    leases: lease() => Lease, v1::Lease;
    begins: BeginStep { lease: lease(), step: next(), operation: OperationId::generate() } => BeginStep, v1::BeginStepRequest;
    outcomes: BeginOutcome::Memoized { attempt: 1, output: Payload::raw("o") } => BeginOutcome, v1::BeginStepResponse;
    completions: CompleteStep { lease: lease(), step_id: StepId::new("a").unwrap(), attempt: 1, output: Payload::raw("o"), then: Then::Begin(next()), operation: OperationId::generate() } => CompleteStep, v1::CompleteStepRequest;
    failures: FailStep { lease: lease(), step_id: step(), attempt: 1, failure: failure(), operation: OperationId::generate() } => FailStep, v1::FailStepRequest;
    sleeps: Sleep { lease: lease(), step_id: step(), position: 0, until: SleepUntil::At(Timestamp::MAX), operation: OperationId::generate() } => Sleep, v1::ScheduleSleepRequest;
    ends: CompleteRun { lease: lease(), output: Payload::raw("o"), operation: OperationId::generate() } => CompleteRun, v1::CompleteWorkflowRequest;
    failures_of_runs: FailRun { lease: lease(), failure: failure(), operation: OperationId::generate() } => FailRun, v1::FailWorkflowRequest;
    releases: ReleaseRun { lease: lease(), operation: OperationId::generate() } => ReleaseRun, v1::ReleaseWorkflowRequest;
    cancellations: CancelRun { namespace: namespace(), run_id: lease().run_id, reason: "no".to_owned(), operation: OperationId::generate() } => CancelRun, v1::CancelWorkflowRequest;
    requeues: RequeueRun { namespace: namespace(), run_id: lease().run_id, operation: OperationId::generate() } => RequeueRun, v1::RequeueWorkflowRequest;
    gets: GetRun { namespace: namespace(), run_id: lease().run_id, wait: Duration::from_secs(1) } => GetRun, v1::GetWorkflowRequest;
    listings: ListRuns { namespace: namespace(), filter: RunFilter { states: RunState::ALL.to_vec(), labels: start().labels, created_from: Some(Timestamp::MIN), ..RunFilter::default() }, page: PageRequest::first(10) } => ListRuns, v1::ListWorkflowsRequest;
    listings_of_attempts: ListAttempts { namespace: namespace(), run_id: lease().run_id, scope: AttemptScope::Latest, page: PageRequest::first(10) } => ListAttempts, v1::ListStepAttemptsRequest;
    removals: DeleteFinished { namespace: Some(namespace()), states: vec![RunState::Failed], before: Timestamp::MAX, limit: 5 } => DeleteFinished, v1::DeleteFinishedRequest;
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn bytes_of_no_message_at_all_are_survived(bytes in vec(any::<u8>(), 0..200)) {
        read::<StartRun, v1::StartWorkflowRequest>(&bytes)?;
        read::<Run, v1::Run>(&bytes)?;
        read::<CompleteStep, v1::CompleteStepRequest>(&bytes)?;
        read::<ListRuns, v1::ListWorkflowsRequest>(&bytes)?;
    }

    #[test]
    fn polls_and_heartbeats_are_read_or_refused(
        texts in vec(any::<String>(), 0..4), limit in any::<u32>(), steps_limit in any::<u32>(),
        seconds in any::<i64>(), nanos in any::<i32>(), fencing_token in any::<i64>()
    ) {
        let length = kagzi_proto::Duration { seconds, nanos };
        let text = |at: usize| texts.get(at).cloned().unwrap_or_else(|| "name".to_owned());
        let poll = v1::PollActivityRequest {
            namespace: text(0),
            queues: vec![text(1), text(2)],
            workflow_types: texts.clone(),
            worker_id: text(3),
            lease_length: Some(length),
            limit,
            steps_limit,
            wait: Some(length),
            operation_id: OperationId::generate().to_string(),
        };
        if let Err(error) = poll_from_wire(poll, Duration::from_secs(30)) {
            prop_assert!(named(&error), "{:?}", error);
        }
        let lease = v1::Lease { fencing_token, ..lease().into_wire() };
        let heartbeat = v1::Heartbeat { lease: Some(lease), lease_length: Some(length) };
        let batch = v1::RecordHeartbeatRequest { heartbeats: vec![heartbeat] };
        if let Err(error) = heartbeats_from_wire(batch, Duration::from_secs(30)) {
            prop_assert!(named(&error), "{:?}", error);
        }
    }

    /// A client reads the errors of servers it knows nothing about.
    #[test]
    fn errors_of_any_server_are_read(
        code in -20_i32..40, message in any::<String>(), details in vec(any::<u8>(), 0..200)
    ) {
        let status = tonic::Status::with_details(tonic::Code::from(code), message.clone(), details.clone().into());
        let read = error_from_status(&status).to_string();
        prop_assert!(!read.is_empty());
        if let Ok(item) = v1::ItemError::decode(details.as_slice()) {
            prop_assert!(!error_from_item(&item).to_string().is_empty());
        }
    }
}
