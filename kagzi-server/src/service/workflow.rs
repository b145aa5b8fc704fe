//! `WorkflowService`: runs, from the outside.

use kagzi_core::{
    Attempt, ListAttempts, ListRuns, Namespace, Page, PageRequest, Run, RunRecord, StartRun, Started,
    StoreError,
};
use kagzi_proto::v1;
use kagzi_proto::v1::workflow_service_server::WorkflowService;
use kagzi_sdk::wire::{CountRuns, GetRun, IntoWire, within};
use tonic::{Request, Response, Status, async_trait};

use super::{Services, weight};

#[async_trait]
impl WorkflowService for Services {
    async fn start_workflow(
        &self,
        request: Request<v1::StartWorkflowRequest>,
    ) -> Result<Response<v1::StartWorkflowResponse>, Status> {
        self.call("StartWorkflow", request, |start: StartRun| async {
            let started = self.store().start(vec![start]).await?;
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
        let read = kagzi_sdk::wire::FromWire::from_wire(request.into_inner());
        self.answer("CountWorkflows", read, |count: CountRuns| async move {
            let count = self.store().count_runs(&count.namespace, &count.filter).await?;
            Ok(v1::CountWorkflowsResponse { count })
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
        let read = Namespace::new(request.into_inner().namespace);
        self.answer("GetQueueDepths", read, |namespace| async move {
            self.store().queue_depths(&namespace).await.map(IntoWire::into_wire)
        })
        .await
    }
}

impl Services {
    async fn start_many(&self, starts: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.limits().check_batch("starts", starts.len())?;
        // The store checks again; here the place in the batch is known.
        for (at, start) in starts.iter().enumerate() {
            within(&format!("starts[{at}]"), start.validate(&self.limits().rules))?;
        }
        self.store().start(starts).await
    }

    async fn get_run(&self, get: GetRun) -> Result<RunRecord, StoreError> {
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
        self.limits().check_batch("page.limit", list.page.limit as usize)?;
        let mut page = self.store().list_runs(&list).await?;
        let kept = weight::fitting(&page.items, weight::run);
        if kept < page.items.len() {
            page.items.truncate(kept);
            page.next = page.items.last().map(|last| list.cursor_after(last));
        }
        Ok(page)
    }

    /// Outputs may be large, so the store is asked for a few attempts at a time, until the page or the
    /// response is full.
    async fn list_attempts(&self, list: ListAttempts) -> Result<Page<Attempt>, StoreError> {
        const AT_A_TIME: u32 = 50;
        self.limits().check_batch("page.limit", list.page.limit as usize)?;
        let mut items: Vec<Attempt> = Vec::new();
        let mut cursor = list.page.cursor.clone();
        let mut left = list.page.limit;
        loop {
            let page = PageRequest { limit: left.min(AT_A_TIME), cursor };
            let part = self.store().list_attempts(&ListAttempts { page, ..list.clone() }).await?;
            left = left.saturating_sub(u32::try_from(part.items.len()).unwrap_or(u32::MAX));
            items.extend(part.items);
            let kept = weight::fitting(&items, weight::attempt);
            if kept < items.len() {
                items.truncate(kept);
                let next = items.last().map(|last| list.cursor_after(last));
                return Ok(Page { items, next });
            }
            if left == 0 || part.next.is_none() {
                return Ok(Page { items, next: part.next });
            }
            cursor = part.next;
        }
    }
}
