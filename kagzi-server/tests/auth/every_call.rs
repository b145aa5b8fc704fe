//! Each call of the protocol, made by somebody somewhere.

use kagzi_proto::v1;
use kagzi_proto::v1::heartbeat_verdict::Verdict;
use kagzi_proto::v1::stream_work_request::Request as Asked;
use kagzi_proto::v1::stream_workflows_request::Request as FromClient;
use tonic::{Code, Status};

use crate::support::Caller;

/// What a call is about.
#[derive(Clone, Debug)]
pub struct Place {
    pub namespace: String,
    pub queue: String,
    pub workflow_type: String,
    pub run_id: String,
}

impl Place {
    fn lease(&self) -> v1::Lease {
        v1::Lease {
            namespace: self.namespace.clone(),
            run_id: self.run_id.clone(),
            worker_id: "w".to_owned(),
            fencing_token: 1,
        }
    }

    fn filter(&self) -> v1::RunFilter {
        let (queue, workflow_type) = (self.queue.clone(), self.workflow_type.clone());
        v1::RunFilter { queue, workflow_type, ..Default::default() }
    }

    fn start(&self) -> v1::StartWorkflowRequest {
        crate::support::start(&self.namespace, &self.queue, &self.workflow_type)
    }

    /// What a call with a lease says, as a message of a stream.
    pub fn on_a_stream(&self) -> Vec<(&'static str, Asked)> {
        let (lease, step_id) = (Some(self.lease()), "s".to_owned());
        let failure = Some(failure());
        vec![
            (
                "RecordHeartbeat",
                Asked::Heartbeat(v1::RecordHeartbeatRequest {
                    heartbeats: vec![v1::Heartbeat { lease: lease.clone(), lease_length: None }],
                }),
            ),
            ("BeginStep", Asked::BeginStep(self.begin())),
            (
                "CompleteStep",
                Asked::CompleteStep(v1::CompleteStepRequest {
                    lease: lease.clone(),
                    step_id: step_id.clone(),
                    attempt: 1,
                    ..Default::default()
                }),
            ),
            (
                "FailStep",
                Asked::FailStep(v1::FailStepRequest {
                    lease: lease.clone(),
                    step_id: step_id.clone(),
                    attempt: 1,
                    failure: failure.clone(),
                    ..Default::default()
                }),
            ),
            (
                "ScheduleSleep",
                Asked::ScheduleSleep(v1::ScheduleSleepRequest {
                    lease: lease.clone(),
                    step_id,
                    until: Some(v1::schedule_sleep_request::Until::After(kagzi_proto::Duration::default())),
                    ..Default::default()
                }),
            ),
            (
                "CompleteWorkflow",
                Asked::CompleteWorkflow(v1::CompleteWorkflowRequest {
                    lease: lease.clone(),
                    ..Default::default()
                }),
            ),
            (
                "FailWorkflow",
                Asked::FailWorkflow(v1::FailWorkflowRequest {
                    lease: lease.clone(),
                    failure,
                    ..Default::default()
                }),
            ),
            (
                "ReleaseWorkflow",
                Asked::ReleaseWorkflow(v1::ReleaseWorkflowRequest { lease, ..Default::default() }),
            ),
        ]
    }

    /// What a client asks about, as messages of its stream.
    pub fn on_a_clients_stream(&self) -> [(&'static str, FromClient); 2] {
        let get = v1::GetWorkflowRequest {
            namespace: self.namespace.clone(),
            run_id: self.run_id.clone(),
            wait: None,
        };
        let starts = v1::StartWorkflowsRequest { starts: vec![self.start()] };
        [("StartWorkflows", FromClient::Start(starts)), ("GetWorkflow", FromClient::Get(get))]
    }

    fn begin(&self) -> v1::BeginStepRequest {
        let step = Some(v1::NextStep { step_id: "s".to_owned(), ..Default::default() });
        v1::BeginStepRequest { lease: Some(self.lease()), step, ..Default::default() }
    }

    pub fn open(&self) -> v1::OpenWork {
        v1::OpenWork {
            namespace: self.namespace.clone(),
            queues: vec![self.queue.clone()],
            workflow_types: self.types(),
            worker_id: "w".to_owned(),
            ..Default::default()
        }
    }

    fn types(&self) -> Vec<String> {
        if self.workflow_type.is_empty() { Vec::new() } else { vec![self.workflow_type.clone()] }
    }
}

fn failure() -> v1::Failure {
    v1::Failure { kind: v1::FailureKind::Retryable.into(), ..Default::default() }
}

/// Makes the call of that name.
pub async fn call(method: &str, by: &mut Caller, at: &Place) -> Result<(), Status> {
    if let Some((_, asked)) = at.on_a_stream().into_iter().find(|(name, _)| *name == method) {
        return worker_call(by, asked).await;
    }
    let (namespace, run_id) = (at.namespace.clone(), at.run_id.clone());
    let (workflows, workers, admin) = (&mut by.workflows, &mut by.workers, &mut by.admin);
    match method {
        "StartWorkflow" => workflows.start_workflow(at.start()).await.map(drop),
        "StartWorkflows" => {
            let starts = v1::StartWorkflowsRequest { starts: vec![at.start(), at.start()] };
            workflows.start_workflows(starts).await.map(drop)
        }
        "GetWorkflow" => {
            workflows.get_workflow(v1::GetWorkflowRequest { namespace, run_id, wait: None }).await.map(drop)
        }
        "ListWorkflows" => {
            let list = v1::ListWorkflowsRequest { namespace, filter: Some(at.filter()), page: None };
            workflows.list_workflows(list).await.map(drop)
        }
        "CountWorkflows" => {
            let count = v1::CountWorkflowsRequest { namespace, filter: Some(at.filter()) };
            workflows.count_workflows(count).await.map(drop)
        }
        "CancelWorkflow" => {
            let cancel = v1::CancelWorkflowRequest { namespace, run_id, ..Default::default() };
            workflows.cancel_workflow(cancel).await.map(drop)
        }
        "RequeueWorkflow" => {
            let requeue = v1::RequeueWorkflowRequest { namespace, run_id, ..Default::default() };
            workflows.requeue_workflow(requeue).await.map(drop)
        }
        "ListStepAttempts" => {
            let list = v1::ListStepAttemptsRequest { namespace, run_id, ..Default::default() };
            workflows.list_step_attempts(list).await.map(drop)
        }
        "GetQueueDepths" => {
            workflows.get_queue_depths(v1::GetQueueDepthsRequest { namespace }).await.map(drop)
        }
        "PauseQueue" => {
            // One that nobody else asks for: calls after this one shall still find their runs.
            let queue = format!("{}-to-pause", at.queue);
            let pause = v1::PauseQueueRequest { namespace, queue, ..Default::default() };
            workflows.pause_queue(pause).await.map(drop)
        }
        "ResumeQueue" => {
            let resume = v1::ResumeQueueRequest { namespace, queue: at.queue.clone(), ..Default::default() };
            workflows.resume_queue(resume).await.map(drop)
        }
        "PollActivity" => {
            let poll = v1::PollActivityRequest {
                namespace,
                queues: vec![at.queue.clone()],
                workflow_types: at.types(),
                worker_id: "w".to_owned(),
                ..Default::default()
            };
            workers.poll_activity(poll).await.map(drop)
        }
        "StreamWork" => {
            let first =
                v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(Asked::Open(at.open())) };
            workers.stream_work(tokio_stream::iter([first])).await.map(drop)
        }
        "StreamWorkflows" => workflows.stream_workflows(tokio_stream::iter(Vec::new())).await.map(drop),
        "GetServerInfo" => admin.get_server_info(v1::GetServerInfoRequest {}).await.map(drop),
        "DeleteFinished" => {
            let before = Some(kagzi_proto::Timestamp { seconds: 1, nanos: 0 });
            let delete = v1::DeleteFinishedRequest { namespace, before, ..Default::default() };
            admin.delete_finished(delete).await.map(drop)
        }
        unknown => panic!("{unknown}: this test does not know how to make that call; add it, and its row"),
    }
}

async fn worker_call(by: &mut Caller, asked: Asked) -> Result<(), Status> {
    let workers = &mut by.workers;
    match asked {
        Asked::Heartbeat(request) => {
            let verdicts = workers.record_heartbeat(request).await?.into_inner().verdicts;
            match verdicts[0].verdict.clone().unwrap() {
                Verdict::Granted(_) => Ok(()),
                Verdict::Refused(item) => Err(Status::new(Code::from_i32(item.code), item.message)),
            }
        }
        Asked::BeginStep(request) => workers.begin_step(request).await.map(drop),
        Asked::CompleteStep(request) => workers.complete_step(request).await.map(drop),
        Asked::FailStep(request) => workers.fail_step(request).await.map(drop),
        Asked::ScheduleSleep(request) => workers.schedule_sleep(request).await.map(drop),
        Asked::CompleteWorkflow(request) => workers.complete_workflow(request).await.map(drop),
        Asked::FailWorkflow(request) => workers.fail_workflow(request).await.map(drop),
        Asked::ReleaseWorkflow(request) => workers.release_workflow(request).await.map(drop),
        Asked::Open(_) | Asked::Take(_) => unreachable!("not a call with a lease"),
    }
}
