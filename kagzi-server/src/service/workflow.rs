//! `WorkflowService`: runs, from the outside.

use kagzi_core::{
    Attempt, ListAttempts, ListRuns, Namespace, Page, Run, RunRecord, SetQueueState, StartRun, Started,
    StoreError,
};
use kagzi_proto::v1;
use kagzi_proto::v1::workflow_service_server::WorkflowService;
use kagzi_sdk::wire::{CountRuns, GetRun, IntoWire, within};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::limits::check_batch;
use super::page::gather;
use super::stream::Answers;
use super::told::Starts;
use super::{Services, permission, weight};

#[async_trait]
impl WorkflowService for Services {
    async fn start_workflow(
        &self,
        request: Request<v1::StartWorkflowRequest>,
    ) -> Result<Response<v1::StartWorkflowResponse>, Status> {
        self.call("StartWorkflow", request, |start: StartRun| async {
            let started = self.start_told(vec![start]).await?;
            started.into_iter().next().ok_or_else(|| StoreError::Internal {
                context: "starting a run",
                detail: "the store named no run".to_owned(),
            })
        })
        .await
    }

    async fn start_workflows(
        &self,
        request: Request<v1::StartWorkflowsRequest>,
    ) -> Result<Response<v1::StartWorkflowsResponse>, Status> {
        self.call("StartWorkflows", request, |starts| self.start_many(starts)).await
    }

    async fn get_workflow(
        &self,
        request: Request<v1::GetWorkflowRequest>,
    ) -> Result<Response<v1::GetWorkflowResponse>, Status> {
        self.call("GetWorkflow", request, |get| self.get_run(get)).await
    }

    async fn list_workflows(
        &self,
        request: Request<v1::ListWorkflowsRequest>,
    ) -> Result<Response<v1::ListWorkflowsResponse>, Status> {
        self.call("ListWorkflows", request, |list| self.list_runs(list)).await
    }

    async fn count_workflows(
        &self,
        request: Request<v1::CountWorkflowsRequest>,
    ) -> Result<Response<v1::CountWorkflowsResponse>, Status> {
        let origin = self.origin(&request)?;
        let read = kagzi_sdk::wire::FromWire::from_wire(request.into_inner());
        self.answer(&origin, "CountWorkflows", read, |count: CountRuns| async move {
            let count = self.store().count_runs(&count.namespace, &count.filter).await?;
            Ok::<_, StoreError>(v1::CountWorkflowsResponse { count })
        })
        .await
    }

    async fn cancel_workflow(
        &self,
        request: Request<v1::CancelWorkflowRequest>,
    ) -> Result<Response<v1::CancelWorkflowResponse>, Status> {
        self.call("CancelWorkflow", request, |cancel| self.store().cancel(cancel)).await
    }

    async fn requeue_workflow(
        &self,
        request: Request<v1::RequeueWorkflowRequest>,
    ) -> Result<Response<v1::RequeueWorkflowResponse>, Status> {
        self.call("RequeueWorkflow", request, |requeue| self.store().requeue(requeue)).await
    }

    async fn list_step_attempts(
        &self,
        request: Request<v1::ListStepAttemptsRequest>,
    ) -> Result<Response<v1::ListStepAttemptsResponse>, Status> {
        self.call("ListStepAttempts", request, |list| self.list_attempts(list)).await
    }

    async fn get_queue_depths(
        &self,
        request: Request<v1::GetQueueDepthsRequest>,
    ) -> Result<Response<v1::GetQueueDepthsResponse>, Status> {
        let origin = self.origin(&request)?;
        let read = Namespace::new(request.into_inner().namespace);
        let caller = &origin.caller;
        let look = |namespace: Namespace| async move {
            let mut depths = self.store().queue_depths(&namespace).await?;
            depths.retain(|depth| permission::queue(caller, "GetQueueDepths", &namespace, &depth.queue));
            Ok::<_, StoreError>(depths.into_wire())
        };
        self.answer(&origin, "GetQueueDepths", read, look).await
    }

    async fn pause_queue(
        &self,
        request: Request<v1::PauseQueueRequest>,
    ) -> Result<Response<v1::PauseQueueResponse>, Status> {
        self.call("PauseQueue", request, |pause: SetQueueState| self.store().set_queue_state(pause)).await
    }

    async fn resume_queue(
        &self,
        request: Request<v1::ResumeQueueRequest>,
    ) -> Result<Response<v1::ResumeQueueResponse>, Status> {
        self.call("ResumeQueue", request, |resume: SetQueueState| self.store().set_queue_state(resume)).await
    }

    type StreamWorkflowsStream = Answers<v1::StreamWorkflowsResponse>;

    async fn stream_workflows(
        &self,
        request: Request<Streaming<v1::StreamWorkflowsRequest>>,
    ) -> Result<Response<Self::StreamWorkflowsStream>, Status> {
        let origin = self.origin(&request)?;
        Ok(Response::new(self.open_client_stream(origin, request.into_inner())))
    }
}

impl Services {
    pub(super) async fn start_many(&self, starts: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        // The store checks again; here the name of the list and the place in it are known.
        check_batch("starts", starts.len())?;
        for (at, start) in starts.iter().enumerate() {
            within(&format!("starts[{at}]"), start.validate(&self.limits().rules))?;
        }
        self.start_told(starts).await
    }

    async fn start_told(&self, starts: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let lines = Starts::of(&starts);
        let started = self.engine().start(starts).await?;
        lines.started(&started);
        Ok(started)
    }

    pub(super) async fn get_run(&self, get: GetRun) -> Result<RunRecord, StoreError> {
        let wait = self.limits().wait(get.wait);
        if wait.is_zero() {
            return self.store().get_run(&get.namespace, get.run_id).await;
        }
        tokio::select! {
            record = self.engine().await_finished(&get.namespace, get.run_id, wait) => record,
            // A shutdown ends the wait: the run as it stands.
            () = self.0.drain.begun() => self.store().get_run(&get.namespace, get.run_id).await,
        }
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run>, StoreError> {
        let fetch = |page| {
            let part = ListRuns { page, ..list.clone() };
            async move { self.store().list_runs(&part).await }
        };
        gather(self.limits().page(&list.page), fetch, weight::run, |last| list.cursor_after(last)).await
    }

    async fn list_attempts(&self, list: ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let fetch = |page| {
            let part = ListAttempts { page, ..list.clone() };
            async move { self.store().list_attempts(&part).await }
        };
        gather(self.limits().page(&list.page), fetch, weight::attempt, |last| list.cursor_after(last)).await
    }
}
