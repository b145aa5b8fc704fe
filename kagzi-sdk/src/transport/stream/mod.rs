//! A worker's own way to a server: one stream that carries its claims, heartbeats and writes.
//!
//! The stream is opened with the first request that needs it, over a connection of its own, and again
//! after it broke, not more often than the worker's backoff allows. A request whose answer the break
//! took is told [`StoreError::OutcomeUnknown`]; the worker sends it again under its operation id, so
//! that it gets the first answer. Everything else goes by calls, and so does all the work with a server
//! that knows no streams. So does a request with large payloads: it would hold up all that comes behind
//! it, and one that is too long for the server is then refused alone, and not together with the stream.

mod connection;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, Failure, FailureOutcome,
    GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, Page, Payload, QueueDepth, ReleaseOutcome,
    ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, Sleep, SleepOutcome, StartRun,
    Started, StoreError, Then,
};
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use tokio::time::Instant;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use super::grpc::{Grpc, GrpcOptions, error_of};
use super::token::{Authorize, Token};
use super::{Transport, WorkerScope};
use crate::calls::asked_for;
use crate::wire::{IntoWire, Poll, heartbeats_to_wire, open_to_wire, take_to_wire, verdicts_from_wire};
use connection::Connection;

/// Payloads of more than this go by a call. Every server reads messages of this length.
const LARGE_BYTES: usize = 512 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Streamed {
    /// For everything that is no worker's business, and for servers without streams.
    calls: Grpc,
    endpoint: Endpoint,
    max_message_bytes: usize,
    timeout: Duration,
    token: Option<Token>,
    scope: WorkerScope,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Whoever opens the stream holds it.
    opening: tokio::sync::Mutex<Failures>,
    /// The server has no streams.
    unary: AtomicBool,
}

/// The attempts to open the stream since it last succeeded.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    not_before: Option<Instant>,
}

impl Streamed {
    pub(super) fn new(calls: Grpc, endpoint: Endpoint, options: GrpcOptions, scope: WorkerScope) -> Self {
        Self {
            calls,
            endpoint,
            max_message_bytes: options.max_message_bytes,
            timeout: options.timeout,
            token: options.token,
            scope,
            connection: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            unary: AtomicBool::new(false),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Connection>> {
        self.slot().as_ref().filter(|connection| !connection.is_broken()).cloned()
    }

    /// The stream, opened if need be; nothing if the server has none.
    async fn connection(&self) -> Result<Option<Arc<Connection>>, StoreError> {
        if let Some(connection) = self.current() {
            return Ok(Some(connection));
        }
        if self.unary.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut failures = self.opening.lock().await;
        // Meanwhile another request may have found out.
        if self.unary.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(connection) = self.current() {
            return Ok(Some(connection));
        }
        failures.wait_over()?;
        let opened = tokio::time::timeout(self.timeout, self.open()).await.unwrap_or_else(|_| {
            Err(StoreError::OutcomeUnknown { reason: format!("no stream within {:?}", self.timeout) })
        });
        match opened {
            Ok(connection) => {
                *failures = Failures::default();
                self.slot().clone_from(&connection);
                Ok(connection)
            }
            Err(error) => {
                failures.count += 1;
                let delay = self.scope.backoff.delay(failures.count, asked_for(&error));
                failures.not_before = Some(Instant::now() + delay);
                Err(error)
            }
        }
    }

    async fn open(&self) -> Result<Option<Arc<Connection>>, StoreError> {
        let channel = self.endpoint.connect().await.map_err(|error| StoreError::Unavailable {
            reason: super::grpc::root_cause(&error),
            retry_after: Duration::ZERO,
        })?;
        let way = InterceptedService::new(channel, Authorize(self.token.clone()));
        match Connection::open(way, open_to_wire(&self.scope.claim), self.max_message_bytes).await {
            Ok(connection) => Ok(Some(Arc::new(connection))),
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::info!("the server has no worker streams: working by calls");
                self.unary.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(status) => Err(error_of(&status)),
        }
    }

    /// The stream, for a write with payloads of so many bytes; nothing if it is to go by a call.
    ///
    /// A write must not fail because the stream was refused: whether the worker is allowed to work is
    /// for its next claim to learn.
    async fn for_write(&self, payload_bytes: usize) -> Result<Option<Arc<Connection>>, StoreError> {
        if payload_bytes > LARGE_BYTES {
            return Ok(None);
        }
        self.connection().await.map_err(|error| {
            if error.is_retryable() {
                return error;
            }
            let reason = format!("the server refuses the worker's stream: {error}");
            StoreError::Unavailable { reason, retry_after: Duration::ZERO }
        })
    }
}

impl Failures {
    /// Refuses to open the stream again before its time.
    fn wait_over(&self) -> Result<(), StoreError> {
        let left = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            None => Ok(()),
            Some(retry_after) => {
                let reason = "the worker's stream is down and not opened again yet".to_owned();
                Err(StoreError::Unavailable { reason, retry_after })
            }
        }
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

/// The answer to one kind of request.
macro_rules! of_kind {
    ($kind:ident) => {
        |response| match response {
            Response::$kind(message) => Some(message),
            _ => None,
        }
    };
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

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.calls.queue_depths(namespace).await
    }
}
