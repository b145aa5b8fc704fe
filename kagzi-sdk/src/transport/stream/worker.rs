//! A worker's own way to a server: one stream that carries its claims, heartbeats and writes.
//!
//! It has a connection of its own. What is no worker's business goes the client's way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, Failure, FailureOutcome,
    GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, Page, Payload, QueueDepth, QueueOutcome,
    ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState,
    Sleep, SleepOutcome, StartRun, Started, StoreError, Then,
};
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use super::super::grpc::{Grpc, GrpcOptions, root_cause};
use super::super::token::{Authorize, Token};
use super::super::{Transport, WorkerScope};
use super::connection::{Connection, Opened};
use super::line::Line;
use super::protocol::{Protocol as _, Work};
use super::{LARGE_BYTES, of_kind};
use crate::wire::{IntoWire, Poll, heartbeats_to_wire, open_to_wire, take_to_wire, verdicts_from_wire};

/// See the module.
#[derive(Debug)]
pub(in super::super) struct Streamed {
    /// For everything that is no worker's business, and for servers without streams.
    calls: Grpc,
    endpoint: Endpoint,
    max_message_bytes: usize,
    timeout: Duration,
    token: Option<Token>,
    scope: WorkerScope,
    line: Line<Work>,
}

impl Streamed {
    pub(in super::super) fn new(
        calls: Grpc,
        endpoint: Endpoint,
        options: GrpcOptions,
        scope: WorkerScope,
    ) -> Self {
        Self {
            calls,
            endpoint,
            max_message_bytes: options.max_message_bytes,
            timeout: options.timeout,
            token: options.token,
            line: Line::new(scope.backoff),
            scope,
        }
    }

    /// The stream, opened if need be; nothing if the server has none, or no place for it.
    async fn connection(&self) -> Result<Option<Arc<Connection<Work>>>, StoreError> {
        self.line.connection(self.timeout, || self.open()).await
    }

    async fn open(&self) -> Result<Opened<Work>, StoreError> {
        let away = |error| StoreError::unavailable(root_cause(&error), Duration::ZERO);
        let channel = self.endpoint.connect().await.map_err(away)?;
        let way = InterceptedService::new(channel, Authorize(self.token.clone()));
        let open = Request::Open(open_to_wire(&self.scope.claim));
        Connection::open(way, Some(Work::write(0, open, None)), self.max_message_bytes).await
    }

    /// The stream, for a write with payloads of so many bytes; nothing if it is to go by a call.
    ///
    /// A write must not fail because the stream was refused: whether the worker is allowed to work is
    /// for its next claim to learn.
    async fn for_write(&self, payload_bytes: usize) -> Result<Option<Arc<Connection<Work>>>, StoreError> {
        if payload_bytes > LARGE_BYTES {
            return Ok(None);
        }
        self.connection().await.map_err(|error| {
            if error.is_retryable() {
                return error;
            }
            let reason = format!("the server refuses the worker's stream: {error}");
            StoreError::unavailable(reason, Duration::ZERO)
        })
    }
}

fn completion_bytes(request: &CompleteStep) -> usize {
    let run_output = match &request.then {
        Then::CompleteRun(output) => output.len_bytes(),
        Then::Nothing | Then::Begin(_) => 0,
    };
    request.output.len_bytes() + run_output
}

fn failure_bytes(failure: &Failure) -> usize {
    failure.message.len() + failure.details.as_ref().map_or(0, Payload::len_bytes)
}

#[async_trait]
impl Transport for Streamed {
    async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError> {
        let Some(connection) = self.connection().await? else { return self.calls.poll(claim, wait).await };
        let take = Request::Take(take_to_wire(&Poll { claim, wait }));
        connection.ask(take, self.timeout.saturating_add(wait), of_kind!(Runs)).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        let Some(connection) = self.for_write(0).await? else { return self.calls.heartbeat(batch).await };
        let expected = batch.len();
        let beat = Request::Heartbeat(heartbeats_to_wire(batch));
        let verdicts = connection.answer(beat, self.timeout, of_kind!(Heartbeat)).await?;
        verdicts_from_wire(verdicts, expected)
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let Some(connection) = self.for_write(0).await? else { return self.calls.begin_step(request).await };
        connection.ask(Request::BeginStep(request.into_wire()), self.timeout, of_kind!(BeginStep)).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        let Some(connection) = self.for_write(completion_bytes(&request)).await? else {
            return self.calls.complete_step(request).await;
        };
        let complete = Request::CompleteStep(request.into_wire());
        connection.ask(complete, self.timeout, of_kind!(CompleteStep)).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        let Some(connection) = self.for_write(failure_bytes(&request.failure)).await? else {
            return self.calls.fail_step(request).await;
        };
        connection.ask(Request::FailStep(request.into_wire()), self.timeout, of_kind!(FailStep)).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        let Some(connection) = self.for_write(0).await? else { return self.calls.sleep(request).await };
        let sleep = Request::ScheduleSleep(request.into_wire());
        connection.ask(sleep, self.timeout, of_kind!(ScheduleSleep)).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        let Some(connection) = self.for_write(request.output.len_bytes()).await? else {
            return self.calls.complete_run(request).await;
        };
        let complete = Request::CompleteWorkflow(request.into_wire());
        connection.ask(complete, self.timeout, of_kind!(CompleteWorkflow)).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        let Some(connection) = self.for_write(failure_bytes(&request.failure)).await? else {
            return self.calls.fail_run(request).await;
        };
        let fail = Request::FailWorkflow(request.into_wire());
        connection.ask(fail, self.timeout, of_kind!(FailWorkflow)).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        let Some(connection) = self.for_write(0).await? else { return self.calls.release(request).await };
        let release = Request::ReleaseWorkflow(request.into_wire());
        connection.ask(release, self.timeout, of_kind!(ReleaseWorkflow)).await
    }

    // The rest is no worker's business, or rare.

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.calls.start(batch).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.calls.get_run(namespace, run_id).await
    }

    async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError> {
        self.calls.await_finished(namespace, run_id, wait).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.calls.list_runs(request).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.calls.count_runs(namespace, filter).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.calls.list_attempts(request).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.calls.cancel(request).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.calls.requeue(request).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.calls.set_queue_state(request).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.calls.queue_depths(namespace).await
    }
}
