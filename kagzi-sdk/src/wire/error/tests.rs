//! Every error comes back as it went.

use kagzi_core::{
    AttemptState, FencingToken, IdempotencyKey, Namespace, OperationId, QueueName, RunId, RunState, StepId,
};

use super::*;
use kagzi_core::LostReason;

fn run_id() -> RunId {
    RunId::for_start(&Namespace::new("n").unwrap(), OperationId::generate(), None)
}

/// One of every variant, and of every shape inside one.
fn samples() -> Vec<StoreError> {
    let run_id = run_id();
    let step_id = StepId::new("Schritt ü \"quoted\"").unwrap();
    let token = |n| FencingToken::new(n).unwrap();
    let text = |text: &str| text.to_owned();
    let mut samples = vec![
        StoreError::InvalidArgument { field: text("starts[3].queue"), expected: text("x"), got: text("é") },
        StoreError::TooLarge { field: text("input"), limit_bytes: 1, actual_bytes: usize::MAX },
        StoreError::RunNotFound { run_id },
        StoreError::StepKindMismatch { run_id, step_id: step_id.clone() },
        StoreError::IdempotencyConflict {
            key: IdempotencyKey::new("order, 1").unwrap(),
            run_id,
            differs: vec!["queue", "input", "labels"],
        },
        StoreError::OperationConflict { run_id, operation: OperationId::generate() },
        StoreError::QueueOperationConflict {
            queue: QueueName::new("mail, urgent").unwrap(),
            operation: OperationId::generate(),
        },
        StoreError::BadCursor { got: "one of another listing, or a damaged one" },
        StoreError::unavailable("disk full", Duration::from_micros(1_500_001)),
        StoreError::outcome_unknown("the connection broke"),
    ];
    let reasons = RunState::ALL.map(|state| LostReason::NotRunning { state });
    let more = [LostReason::OtherWorker, LostReason::TokenStale { current: token(i64::MAX) }];
    for reason in reasons.into_iter().chain(more) {
        samples.push(StoreError::LeaseLost { run_id, presented: token(3), reason });
    }
    for state in AttemptState::ALL.map(Some).into_iter().chain([None]) {
        let step_id = step_id.clone();
        samples.push(StoreError::AttemptNotRunning { run_id, step_id, attempt: 7, state });
    }
    for state in RunState::ALL {
        samples.push(StoreError::WrongState { run_id, state, expected: "FAILED (a dead letter)" });
    }
    samples
}

#[test]
fn every_error_comes_back_from_a_status_as_it_went() {
    for error in samples() {
        let back = error_from_status(&error_to_status(&error));
        assert_eq!(format!("{back:?}"), format!("{error:?}"));
    }
}

#[test]
fn every_error_comes_back_from_an_item_as_it_went() {
    for error in samples() {
        assert_eq!(format!("{:?}", error_from_item(&error_to_item(&error))), format!("{error:?}"));
    }
}

#[test]
fn server_side_errors_keep_their_kind_and_particulars() {
    let internal = StoreError::Internal { context: "claiming", detail: "no such column".to_owned() };
    let back = error_from_status(&error_to_status(&internal));
    assert!(back.to_string().contains("claiming: no such column"), "{back}");
    let schema = StoreError::SchemaMismatch { found: 9, supported: 2, remedy: "upgrade" };
    let back = error_from_status(&error_to_status(&schema));
    assert!(matches!(back, StoreError::SchemaMismatch { found: 9, supported: 2, .. }), "{back:?}");
}

#[test]
fn codes_and_typed_details_are_the_documented_ones() {
    for error in samples() {
        let status = error_to_status(&error);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (error.reason(), "kagzi"));
        assert_eq!(status.code(), code_of(&error));
        let violations = status.get_details_bad_request().map(|bad| bad.field_violations);
        assert_eq!(violations.is_some(), status.code() == Code::InvalidArgument, "{error}");
        let delay = status.get_details_retry_info().is_some();
        assert_eq!(delay, status.code() == Code::Unavailable, "{error}");
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let error = StoreError::outcome_unknown("ü".repeat(100_000));
    let status = error_to_status(&error);
    assert!(status.details().len() < 3 * MAX_TEXT_BYTES, "{} bytes", status.details().len());
    assert!(error_from_status(&status).is_retryable());
}

#[test]
fn a_namespace_that_is_not_served_is_an_invalid_argument_of_the_client() {
    let status = namespace_not_found("sales").into_status();
    assert_eq!(status.code(), Code::NotFound);
    let error = error_from_status(&status);
    assert!(
        matches!(&error, StoreError::InvalidArgument { field, got, .. } if field == "namespace" && got == "sales"),
        "{error:?}"
    );
    assert!(error.to_string().contains("`namespaces`"), "{error}");
}

#[test]
fn refused_credentials_are_an_invalid_argument_of_the_client() {
    for (refusal, code) in [
        (unauthenticated("none"), Code::Unauthenticated),
        (permission_denied("CancelWorkflow"), Code::PermissionDenied),
    ] {
        let status = refusal.into_status();
        assert_eq!(status.code(), code);
        let error = error_from_status(&status);
        assert!(
            matches!(&error, StoreError::InvalidArgument { field, .. } if field == "credentials"),
            "{error:?}"
        );
        assert!(!error.is_retryable() && error.to_string() == status.message(), "{error}");
    }
}

#[test]
fn a_server_that_takes_nothing_now_is_unavailable_for_the_delay_it_names() {
    let delay = Duration::from_secs(3);
    for refusal in [
        shutting_down,
        overloaded,
        |delay| unavailable("no keys", delay),
        |delay| limit_reached("some_limit", delay),
    ] {
        for error in
            [error_from_status(&refusal(delay).into_status()), error_from_item(&refusal(delay).into_item())]
        {
            assert!(
                matches!(error, StoreError::Unavailable { retry_after, .. } if retry_after == delay),
                "{error:?}"
            );
        }
    }
}

#[test]
fn foreign_statuses_become_errors_that_behave_right() {
    let retryable = [
        Code::Unavailable,
        Code::Unknown,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Aborted,
        Code::Internal,
    ];
    for code in (0..=16).map(Code::from_i32) {
        let error = error_from_status(&Status::new(code, "from a proxy"));
        let expected = retryable.contains(&code) || code == Code::ResourceExhausted;
        assert_eq!(error.is_retryable(), expected, "{code:?}: {error}");
        assert!(error.to_string().contains("from a proxy"), "{error}");
    }
}

#[test]
fn what_lies_between_cannot_say_that_nothing_was_done() {
    for status in [
        Status::unavailable("upstream reset before headers"),
        Status::internal("h2 protocol error: error reading a body from connection"),
        Status::internal("Unexpected EOF decoding stream."),
        Status::internal("Missing response message."),
    ] {
        let error = error_from_status(&status);
        assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{status:?}: {error:?}");
    }
}

#[test]
fn an_answer_that_would_be_no_better_another_time_is_not_asked_for_again() {
    for message in [
        "grpc-status header missing, mapped from HTTP status code 400",
        "protocol error: received message with invalid compression flag: 72 (valid flags are 0 and 1)",
        "Error decompressing: corrupt deflate stream, while receiving response with status: 200 OK",
    ] {
        let error = error_from_status(&Status::internal(message));
        assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    }
    // Nor is what a kagzi server says is wrong inside it.
    let said = StoreError::Internal { context: "reading a row", detail: "damaged".to_owned() };
    let error = error_from_status(&error_to_status(&said));
    assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
}

#[test]
fn a_description_without_its_particulars_still_behaves_like_its_code() {
    let described = Refusal {
        code: Code::Unavailable,
        reason: "LEASE_LOST".to_owned(),
        message: "cut off".to_owned(),
        metadata: BTreeMap::new(),
        retry_delay: None,
    };
    assert!(error_from_status(&described.into_status()).is_retryable());
}

/// The texts that a `StoreError` holds as `&'static str` are listed here and in core: they must agree.
#[test]
fn the_fixed_texts_of_core_are_known_here() {
    use kagzi_core::{
        Cursor, Labels, Payload, Priority, RequeueRun, RetryPolicy, StartRun, Timestamp, WorkflowType, decide,
    };

    let (queue, workflow_type) = (QueueName::new("q").unwrap(), WorkflowType::new("t").unwrap());
    let key = |key| Some(IdempotencyKey::new(key).unwrap());
    let namespace = Namespace::new("n").unwrap();
    let mut first = StartRun::new(namespace.clone(), queue, workflow_type, Payload::empty());
    first.idempotency_key = key("k");
    let run = decide::new_run(&first, Timestamp::UNIX_EPOCH);
    let second = StartRun {
        queue: QueueName::new("other").unwrap(),
        workflow_type: WorkflowType::new("other").unwrap(),
        input: Payload::json("1"),
        idempotency_key: key("another"),
        priority: Priority::MAX,
        run_timeout: Some(Duration::from_secs(1)),
        retry: Some(RetryPolicy::never()),
        labels: Labels::new([("k".to_owned(), "v".to_owned())].into()).unwrap(),
        operation: OperationId::generate(),
        ..first.clone()
    };
    let conflict = decide::existing_run(&second, &run, &first.input).unwrap_err();
    let operation = OperationId::generate();
    let requeue = RequeueRun { namespace, run_id: run.run_id, operation };
    let requeue = decide::requeue(&run, None, &requeue, Timestamp::UNIX_EPOCH).unwrap_err();
    let not_a_cursor = Cursor::from_text("!").open("a").unwrap_err();
    let of_another = Cursor::seal("a", b"place").open("b").unwrap_err();
    for error in [conflict, requeue, not_a_cursor, of_another] {
        let back = error_from_status(&error_to_status(&error));
        assert_eq!(format!("{back:?}"), format!("{error:?}"));
        assert!(!format!("{back:?}").contains("another field"), "{back:?}");
    }
}
