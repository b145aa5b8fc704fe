//! Every call does what it says, over every store.

use kagzi_core::Topic;
use kagzi_proto::v1;
use kagzi_proto::v1::begin_outcome::Outcome as Begun;
use kagzi_proto::v1::complete_step_request::Then;
use kagzi_proto::v1::complete_step_response::Then as Done;
use kagzi_proto::v1::failure_outcome::Outcome as Failed;
use kagzi_proto::v1::heartbeat_verdict::Verdict;
use kagzi_proto::v1::schedule_sleep_request::Until;
use kagzi_proto::v1::schedule_sleep_response::Outcome as Slept;
use kagzi_proto::v1::start_workflow_response::Outcome as Started;
use kagzi_server::ServerConfig;

use crate::support::*;

#[tokio::test]
async fn a_run_of_two_steps_goes_through_start_poll_steps_and_end() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let run_id = server.start().await;
        let claimed = server.claim().await;
        assert_eq!(claimed.run.as_ref().unwrap().run_id, run_id);
        assert_eq!(claimed.input, Some(payload(b"in")));

        let begin =
            v1::BeginStepRequest { lease: lease(&claimed), step: Some(next("one", 0)), ..Default::default() };
        let told = server.workers.begin_step(begin.clone()).await.unwrap().into_inner().outcome.unwrap();
        assert!(matches!(told.outcome, Some(Begun::Execute(execute)) if execute.attempt == 1));
        let again = server.workers.begin_step(begin.clone()).await.unwrap().into_inner().outcome.unwrap();
        assert!(matches!(again.outcome, Some(Begun::InProgress(_))), "{again:?}");

        let complete = v1::CompleteStepRequest {
            lease: lease(&claimed),
            step_id: "one".to_owned(),
            attempt: 1,
            output: Some(payload(b"\0\xfe")),
            then: Some(Then::Begin(next("two", 1))),
            operation_id: String::new(),
        };
        let done = server.workers.complete_step(complete).await.unwrap().into_inner().then;
        assert!(
            matches!(&done, Some(Done::Begun(v1::BeginOutcome { outcome: Some(Begun::Execute(_)) }))),
            "{done:?}"
        );
        let memo = server.workers.begin_step(begin).await.unwrap().into_inner().outcome.unwrap();
        let Some(Begun::Memoized(memo)) = memo.outcome else { panic!("{memo:?}") };
        assert_eq!(memo.output, Some(payload(b"\0\xfe")), "to the byte");

        let last = v1::CompleteStepRequest {
            lease: lease(&claimed),
            step_id: "two".to_owned(),
            attempt: 1,
            output: None,
            then: Some(Then::RunOutput(payload(b"out"))),
            operation_id: String::new(),
        };
        let done = server.workers.complete_step(last).await.unwrap().into_inner().then;
        assert!(matches!(done, Some(Done::RunCompleted(_))), "{done:?}");
        let record = server.get(&run_id).await;
        assert_eq!(record.run.unwrap().state(), v1::RunState::Completed);
        assert_eq!(record.output, Some(payload(b"out")));
    }
}

#[tokio::test]
async fn starts_are_idempotent_alone_and_together() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let mut keyed = start();
        keyed.idempotency_key = Some("order-1".to_owned());
        let first = server.workflows.start_workflow(keyed.clone()).await.unwrap().into_inner();
        assert_eq!(first.outcome(), Started::Created);
        let starts = v1::StartWorkflowsRequest { starts: vec![keyed, start()] };
        let both = server.workflows.start_workflows(starts).await.unwrap().into_inner().started;
        assert_eq!((both[0].outcome(), &both[0].run_id), (Started::Existing, &first.run_id));
        assert_eq!(both[1].outcome(), Started::Created);
        assert_ne!(both[1].run_id, first.run_id);
    }
}

#[tokio::test]
async fn heartbeats_answer_each_lease_with_its_own_verdict() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        server.start().await;
        let claimed = server.claim().await;
        let stale = v1::Lease { fencing_token: 99, ..lease(&claimed).unwrap() };
        let heartbeats = [lease(&claimed), Some(stale)]
            .map(|lease| v1::Heartbeat { lease, lease_length: Some(seconds(600)) })
            .to_vec();
        let request = v1::RecordHeartbeatRequest { heartbeats };
        let verdicts = server.workers.record_heartbeat(request).await.unwrap().into_inner().verdicts;
        let Some(Verdict::Granted(granted)) = &verdicts[0].verdict else { panic!("{verdicts:?}") };
        let before = claimed.lease.unwrap().expires_at.unwrap();
        assert!(granted.expires_at.unwrap().seconds > before.seconds + 300);
        let Some(Verdict::Refused(refused)) = &verdicts[1].verdict else { panic!("{verdicts:?}") };
        assert_eq!(refused.reason, "LEASE_LOST");
        assert_eq!(refused.metadata["presented_token"], "99");
    }
}

#[tokio::test]
async fn a_failed_step_is_retried_and_a_hopeless_one_is_a_dead_letter_that_can_be_requeued() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let run_id = server.start().await;
        let claimed = server.claim().await;
        let begin =
            v1::BeginStepRequest { lease: lease(&claimed), step: Some(next("one", 0)), ..Default::default() };
        server.workers.begin_step(begin).await.unwrap();
        let fail = v1::FailStepRequest {
            lease: lease(&claimed),
            step_id: "one".to_owned(),
            attempt: 1,
            failure: Some(failure(v1::FailureKind::NonRetryable)),
            operation_id: String::new(),
        };
        let outcome = server.workers.fail_step(fail).await.unwrap().into_inner().outcome.unwrap();
        let reason = v1::DeadLetterReason::NonRetryable;
        assert_eq!(outcome.outcome, Some(Failed::DeadLetter(reason.into())));
        let run = server.get(&run_id).await.run.unwrap();
        assert_eq!((run.state(), run.dead_letter_reason()), (v1::RunState::Failed, reason));
        assert_eq!(run.failure, Some(failure(v1::FailureKind::NonRetryable)), "to the byte");

        let requeue = v1::RequeueWorkflowRequest {
            namespace: "default".to_owned(),
            run_id: run_id.clone(),
            operation_id: String::new(),
        };
        server.workflows.requeue_workflow(requeue).await.unwrap();
        let claimed = server.claim().await;
        let fail = v1::FailWorkflowRequest {
            lease: lease(&claimed),
            failure: Some(failure(v1::FailureKind::Retryable)),
            operation_id: String::new(),
        };
        let outcome = server.workers.fail_workflow(fail).await.unwrap().into_inner().outcome.unwrap();
        assert!(matches!(outcome.outcome, Some(Failed::RetryAt(_))), "{outcome:?}");
        assert_eq!(server.state(&run_id).await, v1::RunState::Sleeping);

        let list =
            v1::ListStepAttemptsRequest { namespace: "default".to_owned(), run_id, ..Default::default() };
        let attempts = server.workflows.list_step_attempts(list).await.unwrap().into_inner().attempts;
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].state(), v1::AttemptState::Failed);
    }
}

#[tokio::test]
async fn sleep_release_complete_and_cancel_end_a_lease() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let slept = server.start().await;
        let claimed = server.claim().await;
        let sleep = v1::ScheduleSleepRequest {
            lease: lease(&claimed),
            step_id: "nap".to_owned(),
            position: 0,
            until: Some(Until::After(seconds(3600))),
            operation_id: String::new(),
        };
        let outcome = server.workers.schedule_sleep(sleep).await.unwrap().into_inner().outcome;
        assert!(matches!(outcome, Some(Slept::Sleeping(_))), "{outcome:?}");
        assert_eq!(server.state(&slept).await, v1::RunState::Sleeping);

        let run_id = server.start().await;
        let claimed = server.claim().await;
        let release = v1::ReleaseWorkflowRequest { lease: lease(&claimed), ..Default::default() };
        server.workers.release_workflow(release).await.unwrap();
        assert_eq!(server.state(&run_id).await, v1::RunState::Pending);

        let claimed = server.claim().await;
        let complete = v1::CompleteWorkflowRequest {
            lease: lease(&claimed),
            run_output: Some(payload(b"done")),
            operation_id: String::new(),
        };
        server.workers.complete_workflow(complete).await.unwrap();
        assert_eq!(server.state(&run_id).await, v1::RunState::Completed);

        for (run_id, outcome, state) in [
            (&slept, v1::cancel_workflow_response::Outcome::Cancelled, v1::RunState::Cancelled),
            (&run_id, v1::cancel_workflow_response::Outcome::AlreadyFinished, v1::RunState::Completed),
        ] {
            let cancel = v1::CancelWorkflowRequest {
                namespace: "default".to_owned(),
                run_id: run_id.clone(),
                reason: "not needed".to_owned(),
                operation_id: String::new(),
            };
            let answer = server.workflows.cancel_workflow(cancel).await.unwrap().into_inner();
            assert_eq!((answer.outcome(), answer.state()), (outcome, state));
        }
    }
}

#[tokio::test]
async fn lists_go_page_by_page_and_agree_with_counts_and_depths() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        for label in ["a", "b", "a", "b", "a"] {
            let mut labelled = start();
            labelled.labels.insert("kind".to_owned(), label.to_owned());
            server.workflows.start_workflow(labelled).await.unwrap();
        }
        let filter = v1::RunFilter {
            states: vec![v1::RunState::Pending.into()],
            labels: [("kind".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        };
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let list = v1::ListWorkflowsRequest {
                namespace: "default".to_owned(),
                filter: Some(filter.clone()),
                page: Some(v1::PageRequest { limit: 2, cursor }),
            };
            let page = server.workflows.list_workflows(list).await.unwrap().into_inner();
            seen.extend(page.runs.into_iter().map(|run| run.run_id));
            cursor = page.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        seen.dedup();
        let count = v1::CountWorkflowsRequest { namespace: "default".to_owned(), filter: Some(filter) };
        let count = server.workflows.count_workflows(count).await.unwrap().into_inner().count;
        assert_eq!((seen.len() as u64, count), (3, 3));
        let depths = v1::GetQueueDepthsRequest { namespace: "default".to_owned() };
        let queues = server.workflows.get_queue_depths(depths).await.unwrap().into_inner().queues;
        assert_eq!((queues[0].queue.as_str(), queues[0].pending), ("q", 5));
        assert!(queues[0].oldest_due_at.is_some());
    }
}

#[tokio::test]
async fn admin_calls_tell_of_the_server_and_remove_finished_runs() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let info = server.admin.get_server_info(v1::GetServerInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.backend, format!("{backend:?}").to_lowercase());
        assert_eq!((info.max_payload_bytes, info.max_batch), (2 << 20, 1000));

        let run_id = server.start().await;
        let cancel =
            v1::CancelWorkflowRequest { namespace: "default".to_owned(), run_id, ..Default::default() };
        server.workflows.cancel_workflow(cancel).await.unwrap();
        let kept = server.start().await;
        let before = info.now.map(|now| kagzi_proto::Timestamp { seconds: now.seconds + 3600, ..now });
        let delete =
            v1::DeleteFinishedRequest { namespace: "default".to_owned(), before, ..Default::default() };
        assert_eq!(server.admin.delete_finished(delete).await.unwrap().into_inner().deleted, 1);
        assert_eq!(server.state(&kept).await, v1::RunState::Pending);
    }
}

#[tokio::test]
async fn a_write_sent_again_under_its_operation_id_gets_the_first_answer() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let mut named = start();
        named.operation_id = uuid::Uuid::now_v7().to_string();
        let first = server.workflows.start_workflow(named.clone()).await.unwrap().into_inner();
        assert_eq!(server.workflows.start_workflow(named).await.unwrap().into_inner(), first);

        let mut claim = poll();
        claim.operation_id = uuid::Uuid::now_v7().to_string();
        let once = server.workers.poll_activity(claim.clone()).await.unwrap().into_inner();
        let twice = server.workers.poll_activity(claim).await.unwrap().into_inner();
        assert_eq!(once.runs[0].lease.as_ref().unwrap().lease, twice.runs[0].lease.as_ref().unwrap().lease);
    }
}

#[tokio::test]
async fn a_wait_for_a_run_ends_when_it_finishes() {
    for backend in BACKENDS {
        let hour = std::time::Duration::from_hours(1);
        let mut config = ServerConfig { max_poll_wait: hour, ..ServerConfig::default() };
        config.engine.poll_interval = hour;
        let mut server = serve_with(backend, config).await;
        let run_id = server.start().await;
        let get = v1::GetWorkflowRequest {
            namespace: "default".to_owned(),
            run_id: run_id.clone(),
            wait: Some(seconds(3600)),
        };
        let mut waiting = server.workflows.clone();
        let wait = tokio::spawn(async move { waiting.get_workflow(get).await });
        soon(async {
            while !server.handle.store().wake_hub().anyone_waits(|topic| matches!(topic, Topic::Run(_))) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let cancel =
            v1::CancelWorkflowRequest { namespace: "default".to_owned(), run_id, ..Default::default() };
        server.workflows.cancel_workflow(cancel).await.unwrap();
        let record = soon(wait).await.unwrap().unwrap().into_inner().record.unwrap();
        assert_eq!(record.run.unwrap().state(), v1::RunState::Cancelled);
    }
}

#[tokio::test]
async fn an_idle_poll_is_woken_by_a_start() {
    for backend in BACKENDS {
        let hour = std::time::Duration::from_hours(1);
        let mut config = ServerConfig { max_poll_wait: hour, ..ServerConfig::default() };
        config.engine.poll_interval = hour;
        let mut server = serve_with(backend, config).await;
        let mut polling = server.workers.clone();
        let long = v1::PollActivityRequest { wait: Some(seconds(3600)), ..poll() };
        let call = tokio::spawn(async move { polling.poll_activity(long).await });
        soon(async {
            while !server.handle.store().wake_hub().anyone_waits(|topic| matches!(topic, Topic::Queue(..))) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let run_id = server.start().await;
        let runs = soon(call).await.unwrap().unwrap().into_inner().runs;
        assert_eq!(runs[0].run.as_ref().unwrap().run_id, run_id);
    }
}
