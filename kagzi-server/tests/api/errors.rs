//! Bad input: each gets an error that names the field or the thing, and leaves no trace.

use kagzi_proto::v1;
use kagzi_proto::v1::complete_step_request::Then;
use kagzi_proto::v1::start_workflow_request::Start;
use kagzi_server::ServerConfig;
use tonic::{Code, Status};

use crate::support::*;

#[tokio::test]
async fn malformed_fields_of_a_start_are_named() {
    let mut server = serve(Backend::Memory).await;
    let long = "x".repeat(129);
    let cases: [(&str, v1::StartWorkflowRequest); 11] = [
        ("queue", v1::StartWorkflowRequest { queue: String::new(), ..start() }),
        ("workflow_type", v1::StartWorkflowRequest { workflow_type: long, ..start() }),
        ("namespace", v1::StartWorkflowRequest { namespace: "a\nb".to_owned(), ..start() }),
        ("priority", v1::StartWorkflowRequest { priority: 10, ..start() }),
        ("run_timeout", v1::StartWorkflowRequest { run_timeout: Some(seconds(-1)), ..start() }),
        ("run_timeout", v1::StartWorkflowRequest { run_timeout: Some(seconds(0)), ..start() }),
        (
            "start_after",
            v1::StartWorkflowRequest { start: Some(Start::StartAfter(seconds(i64::MAX))), ..start() },
        ),
        ("operation_id", v1::StartWorkflowRequest { operation_id: "17".to_owned(), ..start() }),
        ("operation_id", v1::StartWorkflowRequest { operation_id: uuid::Uuid::nil().to_string(), ..start() }),
        (
            "labels[k]",
            v1::StartWorkflowRequest { labels: [("k".to_owned(), "v".repeat(256))].into(), ..start() },
        ),
        (
            "retry_policy.max_attempts",
            v1::StartWorkflowRequest {
                retry_policy: Some(v1::RetryPolicy { max_attempts: Some(0), ..Default::default() }),
                ..start()
            },
        ),
    ];
    for (expected, request) in cases {
        let alone = server.workflows.start_workflow(request.clone()).await.unwrap_err();
        assert_eq!((alone.code(), field(&alone).as_str()), (Code::InvalidArgument, expected));
        let starts = v1::StartWorkflowsRequest { starts: vec![start(), request] };
        let together = server.workflows.start_workflows(starts).await.unwrap_err();
        assert_eq!(field(&together), format!("starts[1].{expected}"));
    }
    let count = v1::CountWorkflowsRequest { namespace: "default".to_owned(), filter: None };
    assert_eq!(server.workflows.count_workflows(count).await.unwrap().into_inner().count, 0, "no trace");
}

#[tokio::test]
async fn malformed_fields_of_worker_calls_are_named() {
    let mut server = serve(Backend::Memory).await;
    let polls = [
        ("queues[1]", v1::PollActivityRequest { queues: vec!["q".to_owned(), String::new()], ..poll() }),
        ("queues", v1::PollActivityRequest { queues: Vec::new(), ..poll() }),
        ("worker_id", v1::PollActivityRequest { worker_id: " w".to_owned(), ..poll() }),
        ("limit", v1::PollActivityRequest { limit: 10_001, ..poll() }),
        ("lease_length", v1::PollActivityRequest { lease_length: Some(seconds(0)), ..poll() }),
        ("lease_length", v1::PollActivityRequest { lease_length: Some(seconds(3601)), ..poll() }),
        ("wait", v1::PollActivityRequest { wait: Some(seconds(-5)), ..poll() }),
    ];
    for (expected, request) in polls {
        let refused = server.workers.poll_activity(request).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, expected));
    }
    server.start().await;
    let claimed = server.claim().await;
    let begin = |lease, step| v1::BeginStepRequest { lease, step, operation_id: String::new() };
    let bad_lease = v1::Lease { run_id: "42".to_owned(), ..lease(&claimed).unwrap() };
    let cases = [
        ("lease", begin(None, Some(next("s", 0)))),
        ("lease.run_id", begin(Some(bad_lease), Some(next("s", 0)))),
        ("step", begin(lease(&claimed), None)),
        ("step.step_id", begin(lease(&claimed), Some(next("", 0)))),
        ("step.position", begin(lease(&claimed), Some(next("s", u32::MAX)))),
    ];
    for (expected, request) in cases {
        let refused = server.workers.begin_step(request).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, expected));
    }
    let same = v1::CompleteStepRequest {
        lease: lease(&claimed),
        step_id: "s".to_owned(),
        attempt: 1,
        then: Some(Then::Begin(next("s", 1))),
        ..Default::default()
    };
    assert_eq!(field(&server.workers.complete_step(same).await.unwrap_err()), "begin.step_id");
    let nothing = v1::FailWorkflowRequest { lease: lease(&claimed), ..Default::default() };
    assert_eq!(field(&server.workers.fail_workflow(nothing).await.unwrap_err()), "failure");
    let unspecified = v1::FailWorkflowRequest {
        lease: lease(&claimed),
        failure: Some(failure(v1::FailureKind::Unspecified)),
        ..Default::default()
    };
    assert_eq!(field(&server.workers.fail_workflow(unspecified).await.unwrap_err()), "failure.kind");
    let endless =
        v1::ScheduleSleepRequest { lease: lease(&claimed), step_id: "s".to_owned(), ..Default::default() };
    assert_eq!(field(&server.workers.schedule_sleep(endless).await.unwrap_err()), "until");
}

#[tokio::test]
async fn an_unknown_namespace_is_not_found_with_the_field_and_the_remedy() {
    let mut server = serve(Backend::Memory).await;
    let elsewhere = || "sales".to_owned();
    let polled = server
        .workers
        .poll_activity(v1::PollActivityRequest { namespace: elsewhere(), ..poll() })
        .await
        .unwrap_err();
    let started = server
        .workflows
        .start_workflow(v1::StartWorkflowRequest { namespace: elsewhere(), ..start() })
        .await
        .unwrap_err();
    let looked = server
        .workflows
        .get_queue_depths(v1::GetQueueDepthsRequest { namespace: elsewhere() })
        .await
        .unwrap_err();
    for refused in [polled, started, looked] {
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::NotFound, "namespace"));
        assert_eq!(info(&refused).reason, "NAMESPACE_NOT_FOUND");
        assert!(refused.message().contains("`namespaces`"), "{refused:?}");
    }
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_with_both_sizes_and_without_a_byte_of_it() {
    for backend in BACKENDS {
        let mut config = ServerConfig::default();
        config.rules.max_payload_bytes = 10;
        let mut server = serve_with(backend, config).await;
        let secret = payload(b"confidential");
        let refused = server
            .workflows
            .start_workflow(v1::StartWorkflowRequest { input: Some(secret), ..start() })
            .await
            .unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "input"));
        let info = info(&refused);
        assert_eq!(info.reason, "TOO_LARGE");
        assert_eq!(
            (info.metadata["limit_bytes"].as_str(), info.metadata["actual_bytes"].as_str()),
            ("10", "12")
        );
        assert!(!format!("{refused:?}").contains("confidential"));
    }
}

#[tokio::test]
async fn bad_cursors_are_refused() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        for _ in 0..3 {
            server.start().await;
        }
        let list = |limit, cursor: &str, filter| v1::ListWorkflowsRequest {
            namespace: "default".to_owned(),
            filter,
            page: Some(v1::PageRequest { limit, cursor: cursor.to_owned() }),
        };
        let page = server.workflows.list_workflows(list(1, "", None)).await.unwrap().into_inner();
        let other = Some(v1::RunFilter { queue: "q".to_owned(), ..Default::default() });
        for request in [list(1, "nonsense", None), list(1, &page.next_cursor, other)] {
            let refused = server.workflows.list_workflows(request).await.unwrap_err();
            assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "page.cursor"));
            assert_eq!(info(&refused).reason, "BAD_CURSOR");
        }
        let refused = server.workflows.list_workflows(list(10_001, "", None)).await.unwrap_err();
        assert_eq!(field(&refused), "page.limit");
    }
}

#[tokio::test]
async fn refusals_of_the_store_carry_their_reason_and_particulars() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let run_id = server.start().await;
        let about =
            |run_id: String| v1::GetWorkflowRequest { namespace: "default".to_owned(), run_id, wait: None };
        let absent = uuid::Uuid::now_v7().to_string();
        let refused = server.workflows.get_workflow(about(absent.clone())).await.unwrap_err();
        assert_refused(&refused, Code::NotFound, "RUN_NOT_FOUND", &[("run_id", &absent)]);

        let requeue = v1::RequeueWorkflowRequest {
            namespace: "default".to_owned(),
            run_id: run_id.clone(),
            operation_id: String::new(),
        };
        let refused = server.workflows.requeue_workflow(requeue).await.unwrap_err();
        assert_refused(&refused, Code::FailedPrecondition, "WRONG_STATE", &[("state", "PENDING")]);

        let claimed = server.claim().await;
        let complete = v1::CompleteStepRequest {
            lease: lease(&claimed),
            step_id: "never begun".to_owned(),
            attempt: 1,
            ..Default::default()
        };
        let refused = server.workers.complete_step(complete).await.unwrap_err();
        assert_refused(
            &refused,
            Code::FailedPrecondition,
            "ATTEMPT_NOT_RUNNING",
            &[("step_id", "never begun")],
        );

        let stolen = v1::Lease { worker_id: "thief".to_owned(), ..lease(&claimed).unwrap() };
        let release = v1::ReleaseWorkflowRequest { lease: Some(stolen), ..Default::default() };
        let refused = server.workers.release_workflow(release).await.unwrap_err();
        let particulars = [("run_id", run_id.as_str()), ("lost_reason", "OTHER_WORKER")];
        assert_refused(&refused, Code::FailedPrecondition, "LEASE_LOST", &particulars);

        let keyed = v1::StartWorkflowRequest { idempotency_key: Some("k".to_owned()), ..start() };
        server.workflows.start_workflow(keyed.clone()).await.unwrap();
        let other = v1::StartWorkflowRequest { queue: "r".to_owned(), priority: 3, ..keyed };
        let refused = server.workflows.start_workflow(other).await.unwrap_err();
        let differs = [("differs", "queue,priority")];
        assert_refused(&refused, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT", &differs);
    }
}

fn assert_refused(refused: &Status, code: Code, reason: &str, particulars: &[(&str, &str)]) {
    assert_eq!(refused.code(), code, "{refused:?}");
    let info = info(refused);
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("kagzi", reason));
    for (name, value) in particulars {
        assert_eq!(info.metadata[*name], *value);
    }
}
