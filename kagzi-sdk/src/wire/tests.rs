//! Everything that crosses the wire comes back as it went.

use std::fmt::Debug;
use std::time::Duration;

use kagzi_core::*;
use kagzi_proto::v1;

use super::field::WireEnum;
use super::*;

fn round_trip<T: IntoWire<M> + FromWire<M> + Clone + PartialEq + Debug, M>(value: &T) {
    assert_eq!(&T::from_wire(value.clone().into_wire()).unwrap(), value);
}

fn namespace() -> Namespace {
    Namespace::new("Mandant/ü").unwrap()
}

fn run_id() -> RunId {
    RunId::for_start(&namespace(), OperationId::generate(), None)
}

fn step_id() -> StepId {
    StepId::new("charge 'card'").unwrap()
}

fn worker_id() -> WorkerId {
    WorkerId::new("w-1").unwrap()
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).unwrap()
}

fn payload() -> Payload {
    Payload::new(ContentType::new("text/x").unwrap(), vec![0, 0xff, b'\n'])
}

fn token(number: i64) -> FencingToken {
    FencingToken::new(number).unwrap()
}

fn lease() -> Lease {
    Lease { namespace: namespace(), run_id: run_id(), worker_id: worker_id(), fencing_token: token(i64::MAX) }
}

fn retry() -> RetryPolicy {
    RetryPolicy { non_retryable_codes: vec!["declined".to_owned()], ..RetryPolicy::default() }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { details: Some(payload()), ..Failure::new(kind, "code", "message\nof two lines") }
}

fn labels() -> Labels {
    Labels::new([("team".to_owned(), "à la carte".to_owned()), ("empty".to_owned(), String::new())].into())
        .unwrap()
}

/// With everything that can be there, or with nothing that can be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    Fully,
    Barely,
}

impl Filled {
    fn some<T>(self, value: T) -> Option<T> {
        (self == Self::Fully).then_some(value)
    }
}

const FILLINGS: [Filled; 2] = [Filled::Fully, Filled::Barely];

fn run(state: RunState, filled: Filled) -> Run {
    Run {
        run_id: run_id(),
        namespace: namespace(),
        queue: QueueName::new("q").unwrap(),
        workflow_type: WorkflowType::new("t").unwrap(),
        state,
        priority: Priority::MIN,
        due_at: at(-1),
        deadline_at: filled.some(Timestamp::MAX),
        run_timeout: filled.some(MAX_DURATION),
        fencing_token: token(4),
        worker_id: filled.some(worker_id()),
        lease_expires_at: filled.some(at(5)),
        claim_operation: filled.some(OperationId::generate()),
        claims: u32::MAX,
        lost_leases: 2,
        failures: 3,
        budget_token: token(1),
        retry: filled.some(retry()),
        idempotency_key: filled.some(IdempotencyKey::new("k").unwrap()),
        labels: if filled == Filled::Fully { labels() } else { Labels::default() },
        trace_context: filled.some("00-trace".to_owned()),
        failure: filled.some(failure(FailureKind::Panic)),
        dead_letter: filled.some(DeadLetterReason::Poison),
        finish_operation: filled.some(OperationId::generate()),
        created_at: Timestamp::MIN,
        updated_at: at(1),
        finished_at: filled.some(at(2)),
    }
}

fn attempt(state: AttemptState, kind: StepKind, filled: Filled) -> Attempt {
    Attempt {
        run_id: run_id(),
        step_id: step_id(),
        position: u32::MAX,
        kind,
        attempt: 7,
        state,
        fencing_token: token(0),
        worker_id: worker_id(),
        retry: filled.some(retry()),
        deadline_at: filled.some(at(9)),
        begin_operation: OperationId::generate(),
        end_operation: filled.some(OperationId::generate()),
        output: filled.some(payload()),
        failure: filled.some(failure(FailureKind::Timeout)),
        created_at: at(1),
        updated_at: at(2),
        finished_at: filled.some(at(3)),
    }
}

fn next_step(filled: Filled) -> NextStep {
    NextStep {
        step_id: StepId::new("next").unwrap(),
        position: 3,
        retry: filled.some(retry()),
        timeout: filled.some(Duration::from_micros(1)),
    }
}

#[test]
fn enums_have_the_same_names_on_both_sides_and_refuse_the_unspecified() {
    fn check<E: WireEnum + PartialEq + Debug>(all: &[E]) {
        for value in all {
            assert_eq!(E::from_number("x", value.number()).unwrap(), *value);
        }
        for number in [0, -1, 1 + i32::try_from(all.len()).unwrap()] {
            let error = E::from_number("filter.states[0]", number).unwrap_err();
            assert!(error.to_string().starts_with("filter.states[0]: "), "{error}");
        }
    }
    check(&RunState::ALL);
    check(&DeadLetterReason::ALL);
    check(&FailureKind::ALL);
    check(&StepKind::ALL);
    check(&AttemptState::ALL);
    for state in RunState::ALL {
        let wire: v1::RunState = state.into_wire();
        assert_eq!(wire.as_str_name(), format!("RUN_STATE_{state}"));
    }
}

#[test]
fn runs_and_attempts_round_trip() {
    for filled in FILLINGS {
        for state in RunState::ALL {
            let run = run(state, filled);
            round_trip::<Run, v1::Run>(&run);
            let record = RunRecord { run, input: payload(), output: filled.some(payload()) };
            round_trip::<RunRecord, v1::RunRecord>(&record);
            round_trip::<RunRecord, v1::GetWorkflowResponse>(&record);
        }
        for state in AttemptState::ALL {
            for kind in StepKind::ALL {
                round_trip::<Attempt, v1::Attempt>(&attempt(state, kind, filled));
            }
        }
    }
    for kind in FailureKind::ALL {
        round_trip::<Failure, v1::Failure>(&failure(kind));
    }
}

#[test]
fn requests_of_clients_round_trip() {
    for filled in FILLINGS {
        for start_at in [StartAt::Now, StartAt::After(Duration::from_millis(1)), StartAt::At(at(77))] {
            let start = StartRun {
                namespace: namespace(),
                queue: QueueName::new("q").unwrap(),
                workflow_type: WorkflowType::new("t").unwrap(),
                input: payload(),
                idempotency_key: filled.some(IdempotencyKey::new("k").unwrap()),
                priority: Priority::MAX,
                start_at,
                run_timeout: filled.some(Duration::from_micros(1)),
                retry: filled.some(retry()),
                labels: labels(),
                trace_context: filled.some("00-trace".to_owned()),
                operation: OperationId::generate(),
            };
            round_trip::<StartRun, v1::StartWorkflowRequest>(&start);
            round_trip::<Vec<StartRun>, v1::StartWorkflowsRequest>(&vec![start.clone(), start]);
        }
        let filter = RunFilter {
            states: if filled == Filled::Fully { RunState::ALL.to_vec() } else { Vec::new() },
            workflow_type: filled.some(WorkflowType::new("t").unwrap()),
            queue: filled.some(QueueName::new("q").unwrap()),
            labels: labels(),
            created_from: filled.some(at(1)),
            created_before: filled.some(at(2)),
        };
        let page = PageRequest { limit: 9, cursor: filled.some(Cursor::from_text("c")) };
        let count = CountRuns { namespace: namespace(), filter: filter.clone() };
        round_trip::<CountRuns, v1::CountWorkflowsRequest>(&count);
        let list = ListRuns { namespace: namespace(), filter, page: page.clone() };
        round_trip::<ListRuns, v1::ListWorkflowsRequest>(&list);
        for scope in [AttemptScope::All, AttemptScope::Latest] {
            let list = ListAttempts { namespace: namespace(), run_id: run_id(), scope, page: page.clone() };
            round_trip::<ListAttempts, v1::ListStepAttemptsRequest>(&list);
        }
    }
    let (namespace, run_id, operation) = (namespace(), run_id(), OperationId::generate());
    for wait in [Duration::ZERO, Duration::from_secs(9)] {
        let get = GetRun { namespace: namespace.clone(), run_id, wait };
        round_trip::<GetRun, v1::GetWorkflowRequest>(&get);
    }
    let cancel = CancelRun { namespace: namespace.clone(), run_id, reason: "why".to_owned(), operation };
    round_trip::<CancelRun, v1::CancelWorkflowRequest>(&cancel);
    let requeue = RequeueRun { namespace: namespace.clone(), run_id, operation };
    round_trip::<RequeueRun, v1::RequeueWorkflowRequest>(&requeue);
    let states = vec![RunState::Failed];
    let delete = DeleteFinished { namespace: Some(namespace), states, before: at(3), limit: 10 };
    round_trip::<DeleteFinished, v1::DeleteFinishedRequest>(&delete);
}

#[test]
fn answers_to_clients_round_trip() {
    for outcome in [StartOutcome::Created, StartOutcome::Existing] {
        let started = Started { run_id: run_id(), outcome };
        round_trip::<Started, v1::StartWorkflowResponse>(&started);
        round_trip::<Vec<Started>, v1::StartWorkflowsResponse>(&vec![started; 3]);
    }
    round_trip::<CancelOutcome, v1::CancelWorkflowResponse>(&CancelOutcome::Cancelled);
    for state in RunState::ALL {
        let outcome = CancelOutcome::AlreadyFinished(state);
        round_trip::<CancelOutcome, v1::CancelWorkflowResponse>(&outcome);
    }
    round_trip::<RequeueOutcome, v1::RequeueWorkflowResponse>(&RequeueOutcome::Requeued);
    for outcome in [QueueOutcome::Changed, QueueOutcome::Unchanged] {
        round_trip::<QueueOutcome, v1::PauseQueueResponse>(&outcome);
        round_trip::<QueueOutcome, v1::ResumeQueueResponse>(&outcome);
    }
    for filled in FILLINGS {
        let next = filled.some(Cursor::from_text("next"));
        let runs = Page { items: vec![run(RunState::Running, filled)], next: next.clone() };
        round_trip::<Page<Run>, v1::ListWorkflowsResponse>(&runs);
        let items = vec![attempt(AttemptState::Failed, StepKind::Task, filled)];
        round_trip::<Page<Attempt>, v1::ListStepAttemptsResponse>(&Page { items, next });
        let depth = QueueDepth {
            queue: QueueName::new("q").unwrap(),
            pending: u64::MAX,
            sleeping: 0,
            running: 3,
            oldest_due_at: filled.some(at(4)),
            pause: filled.some(Pause { reason: "because".to_owned(), since: at(5) }),
        };
        round_trip::<Vec<QueueDepth>, v1::GetQueueDepthsResponse>(&vec![depth]);
    }
}

#[test]
fn polls_and_heartbeats_round_trip() {
    let length = Duration::from_secs(7);
    for filled in FILLINGS {
        let claim = Claim {
            namespace: namespace(),
            queues: vec![QueueName::new("a").unwrap(), QueueName::new("b").unwrap()],
            workflow_types: filled.some(WorkflowType::new("t").unwrap()).into_iter().collect(),
            worker_id: worker_id(),
            lease_length: length,
            limit: 5,
            steps_limit: 6,
            operation: OperationId::generate(),
        };
        let poll = Poll { claim, wait: filled.some(length).unwrap_or_default() };
        assert_eq!(poll_from_wire(poll.clone().into_wire(), Duration::MAX).unwrap(), poll);

        let granted = GrantedLease { lease: lease(), expires_at: at(8) };
        let claimed = ClaimedRun {
            lease: granted.clone(),
            run: run(RunState::Running, filled),
            input: payload(),
            steps: vec![attempt(AttemptState::Completed, StepKind::Sleep, filled)],
            more_steps: filled.some(Cursor::from_text("more")),
        };
        round_trip::<Vec<ClaimedRun>, v1::PollActivityResponse>(&vec![claimed]);

        let batch = vec![Heartbeat { lease: lease(), lease_length: length }];
        let back = heartbeats_from_wire(heartbeats_to_wire(batch.clone()), Duration::MAX).unwrap();
        assert_eq!(back, batch);
        let lost = StoreError::RunNotFound { run_id: run_id() };
        let wire = verdicts_to_wire(vec![Ok(granted.clone()), Err(lost)]);
        let back = verdicts_from_wire(wire.clone(), 2).unwrap();
        assert_eq!(back[0].as_ref().unwrap(), &granted);
        assert!(matches!(back[1], Err(StoreError::RunNotFound { .. })));
        assert!(verdicts_from_wire(wire, 3).is_err(), "one verdict for each heartbeat");
    }
}

#[test]
fn what_a_poll_leaves_out_is_filled_in() {
    let wire = v1::PollActivityRequest {
        namespace: "n".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    };
    let poll = poll_from_wire(wire, Duration::from_secs(30)).unwrap();
    assert_eq!((poll.claim.limit, poll.claim.steps_limit), (1, DEFAULT_STEPS_LIMIT));
    assert_eq!((poll.claim.lease_length, poll.wait), (Duration::from_secs(30), Duration::ZERO));
}

#[test]
fn calls_about_steps_round_trip() {
    let (lease, step_id, operation) = (lease(), step_id(), OperationId::generate());
    for filled in FILLINGS {
        let begin = BeginStep { lease: lease.clone(), step: next_step(filled), operation };
        round_trip::<BeginStep, v1::BeginStepRequest>(&begin);
        for then in [Then::Nothing, Then::Begin(next_step(filled)), Then::CompleteRun(payload())] {
            let (lease, step_id) = (lease.clone(), step_id.clone());
            let complete = CompleteStep { lease, step_id, attempt: 2, output: payload(), then, operation };
            round_trip::<CompleteStep, v1::CompleteStepRequest>(&complete);
        }
    }
    let begun = [
        BeginOutcome::Execute { attempt: 1 },
        BeginOutcome::Memoized { attempt: 2, output: payload() },
        BeginOutcome::InProgress { attempt: 3 },
    ];
    for outcome in begun {
        round_trip::<BeginOutcome, v1::BeginStepResponse>(&outcome);
        let done = CompleteStepOutcome::RecordedAndNext(outcome);
        round_trip::<CompleteStepOutcome, v1::CompleteStepResponse>(&done);
    }
    for done in [CompleteStepOutcome::Recorded, CompleteStepOutcome::RecordedAndRunCompleted] {
        round_trip::<CompleteStepOutcome, v1::CompleteStepResponse>(&done);
    }
    let failure = failure(FailureKind::Retryable);
    let fail = FailStep { lease: lease.clone(), step_id: step_id.clone(), attempt: 2, failure, operation };
    round_trip::<FailStep, v1::FailStepRequest>(&fail);
    for until in [SleepUntil::After(Duration::ZERO), SleepUntil::At(at(6))] {
        let sleep = Sleep { lease: lease.clone(), step_id: step_id.clone(), position: 4, until, operation };
        round_trip::<Sleep, v1::ScheduleSleepRequest>(&sleep);
    }
    for outcome in [SleepOutcome::Sleeping { due_at: at(6) }, SleepOutcome::AlreadySlept] {
        round_trip::<SleepOutcome, v1::ScheduleSleepResponse>(&outcome);
    }
}

#[test]
fn the_ends_of_runs_and_leases_round_trip() {
    let (lease, operation) = (lease(), OperationId::generate());
    let complete = CompleteRun { lease: lease.clone(), output: payload(), operation };
    round_trip::<CompleteRun, v1::CompleteWorkflowRequest>(&complete);
    round_trip::<CompleteRunOutcome, v1::CompleteWorkflowResponse>(&CompleteRunOutcome::Completed);
    let fail = FailRun { lease: lease.clone(), failure: failure(FailureKind::Cancelled), operation };
    round_trip::<FailRun, v1::FailWorkflowRequest>(&fail);
    let dead = DeadLetterReason::ALL.map(FailureOutcome::DeadLetter);
    for outcome in dead.into_iter().chain([FailureOutcome::RetryAt(at(1))]) {
        round_trip::<FailureOutcome, v1::FailStepResponse>(&outcome);
        round_trip::<FailureOutcome, v1::FailWorkflowResponse>(&outcome);
    }
    round_trip::<ReleaseRun, v1::ReleaseWorkflowRequest>(&ReleaseRun { lease, operation });
    round_trip::<ReleaseOutcome, v1::ReleaseWorkflowResponse>(&ReleaseOutcome::Released);
}

#[test]
fn an_answer_that_cannot_be_read_blames_the_server() {
    let error = read_answer::<RunRecord, _>(v1::GetWorkflowResponse::default()).unwrap_err();
    assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    assert!(error.to_string().contains("record: "), "{error}");
}
