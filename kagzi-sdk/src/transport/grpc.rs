//! An engine behind a kagzi server, over gRPC.

use std::error::Error as _;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, FailureOutcome, GrantedLease,
    Heartbeat, ListAttempts, ListRuns, Namespace, Page, QueueDepth, QueueOutcome, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState, Sleep, SleepOutcome,
    StartRun, Started, StoreError,
};
use kagzi_proto::DEFAULT_MAX_MESSAGE_BYTES;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_proto::v1::{self, CountWorkflowsResponse, GetQueueDepthsRequest};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Request, Response, Status};

use super::stream::{ClientStream, Streamed};
use super::tls::Tls;
use super::token::{Authorize, Token};
use super::{Transport, WorkerScope};
use crate::error::ClientError;
use crate::trace;
use crate::wire::error::error_from_status;
use crate::wire::{
    CountRuns, FromWire, GetRun, IntoWire, Poll, QueueCall, heartbeats_to_wire, read_answer,
    verdicts_from_wire,
};

/// How a connection to a server behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrpcOptions {
    /// How long one call may take; a long poll this much longer than its wait. 30 s by default.
    pub timeout: Duration,
    /// How long connecting may take. 5 s by default.
    pub connect_timeout: Duration,
    /// How often a quiet connection is tested; one that does not answer within the same time is given
    /// up and made anew. 10 s by default.
    pub keep_alive: Duration,
    /// The longest answer that is read, in bytes. 16 MiB by default.
    pub max_message_bytes: usize,
    /// How clients and workers speak with the server. By streams by default.
    pub protocol: Protocol,
    /// Whom to trust and what to show where the address begins with `https://`.
    pub tls: Tls,
    /// What the server knows its caller by. Nothing by default.
    pub token: Option<Token>,
    /// Whether a token may go to another machine without TLS. Refused by default.
    pub plaintext_tokens: PlaintextTokens,
}

/// Whether a token may go over the network as plain text, for whoever listens to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaintextTokens {
    /// To this machine itself, and no other.
    #[default]
    ToLoopback,
    /// Anywhere: something below, such as a service mesh, encrypts.
    Anywhere,
}

/// How clients and workers speak with their server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// What there is much of goes by streams: many times cheaper than calls, and a server that is gone is noticed
    /// at once. A client has one for starts and awaited ends over the connection of its calls, a worker one
    /// over a connection of its own. Where the server has no streams, by calls.
    #[default]
    Streams,
    /// By a call for each request, over one connection: for what lies between and does not let long streams
    /// through, or spreads single calls over several servers.
    Calls,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(10),
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            protocol: Protocol::default(),
            tls: Tls::default(),
            token: None,
            plaintext_tokens: PlaintextTokens::default(),
        }
    }
}

/// A connection whose every request carries the caller's token.
pub(super) type Way = InterceptedService<Channel, Authorize>;

/// A connection to a server. It is shared by all calls and made again by itself after it broke.
#[derive(Clone, Debug)]
pub struct Grpc {
    workflows: WorkflowServiceClient<Way>,
    workers: WorkerServiceClient<Way>,
    /// Nothing where all goes by calls.
    stream: Option<ClientStream>,
    endpoint: Endpoint,
    options: GrpcOptions,
}

impl Grpc {
    /// Connects to the server at `address`, such as `http://127.0.0.1:7474`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if it is not an address, [`ClientError::Connect`] if no server answers.
    pub async fn connect(address: &str, options: &GrpcOptions) -> Result<Self, ClientError> {
        let endpoint = endpoint(address, options)?;
        let channel = endpoint.connect().await.map_err(|error| ClientError::Connect {
            address: without_user(address),
            problem: root_cause(&error),
        })?;
        Ok(Self::over(channel, endpoint, options))
    }

    /// Connects with the first call, so that the server need not be there yet.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if it is not an address.
    pub fn connect_lazy(address: &str, options: &GrpcOptions) -> Result<Self, ClientError> {
        let endpoint = endpoint(address, options)?;
        Ok(Self::over(endpoint.connect_lazy(), endpoint, options))
    }

    fn over(channel: Channel, endpoint: Endpoint, options: &GrpcOptions) -> Self {
        let limit = options.max_message_bytes;
        let way = InterceptedService::new(channel, Authorize(options.token.clone()));
        let stream = match options.protocol {
            Protocol::Calls => None,
            Protocol::Streams => Some(ClientStream::over(way.clone(), options)),
        };
        Self {
            stream,
            workflows: WorkflowServiceClient::new(way.clone()).max_decoding_message_size(limit),
            workers: WorkerServiceClient::new(way).max_decoding_message_size(limit),
            endpoint,
            options: options.clone(),
        }
    }
}

fn endpoint(address: &str, options: &GrpcOptions) -> Result<Endpoint, ClientError> {
    let refuse = |problem: String| ClientError::Address { address: without_user(address), problem };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| refuse(root_cause(&error)))?;
    let endpoint = match endpoint.uri().scheme_str() {
        Some("https") => {
            let tls = options.tls.config(options.connect_timeout);
            endpoint.tls_config(tls).map_err(|error| refuse(root_cause(&error)))?
        }
        Some("http") if options.token.is_none() || may_go_plain(&endpoint, options) => endpoint,
        Some("http") => {
            let problem =
                "a token goes to another machine over https:// only, where nobody can take it on the way";
            return Err(refuse(problem.to_owned()));
        }
        _ => return Err(refuse("it must begin with http:// or https://".to_owned())),
    };
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(options.keep_alive)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024))
}

/// An address as it may be shown: without a user and a password, which people put there although nobody asks for them,
/// and without parameters.
fn without_user(address: &str) -> String {
    let place = address.rsplit_once('@').map_or(address, |(_, place)| place);
    let scheme = ["http://", "https://"].into_iter().find(|scheme| address.starts_with(scheme));
    let (place, hidden) = match (place.len() < address.len(), scheme) {
        (true, scheme) => (place, format!("{}***@", scheme.unwrap_or_default())),
        (false, _) => (place, String::new()),
    };
    let (place, parameters) = place.split_once('?').map_or((place, ""), |(place, _)| (place, "?***"));
    format!("{hidden}{place}{parameters}")
}

fn may_go_plain(endpoint: &Endpoint, options: &GrpcOptions) -> bool {
    let host = endpoint.uri().host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    options.plaintext_tokens == PlaintextTokens::Anywhere
        || host == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What lies at the bottom of an error: its outer layers only say "transport error".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Sends a request and reads the answer.
async fn ask<M, A, T, Fut>(
    message: M,
    timeout: Duration,
    send: impl FnOnce(Request<M>) -> Fut,
) -> Result<T, StoreError>
where
    T: FromWire<A>,
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    read_answer(answer(message, timeout, send).await?)
}

async fn answer<M, A, Fut>(
    message: M,
    timeout: Duration,
    send: impl FnOnce(Request<M>) -> Fut,
) -> Result<A, StoreError>
where
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    trace::into_headers(request.metadata_mut());
    match send(request).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(error_of(&status)),
    }
}

/// What a call came to that has no answer.
///
/// A status with a source was made here, about the way there: no server has spoken. tonic gives it the code that
/// gRPC asks for, UNAVAILABLE where a silent link was given up or INTERNAL where it broke, and neither tells
/// whether the call had been sent. Only where there was no connection it had not.
pub(super) fn error_of(status: &Status) -> StoreError {
    match error_from_status(status) {
        StoreError::Internal { .. } | StoreError::Unavailable { .. }
            if status.source().is_some() && !never_connected(status) =>
        {
            StoreError::outcome_unknown(format!("the connection broke: {}", root_cause(status)))
        }
        error => error,
    }
}

fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[async_trait]
impl Transport for Grpc {
    fn for_worker(&self, scope: WorkerScope) -> Option<Arc<dyn Transport>> {
        match self.options.protocol {
            Protocol::Calls => None,
            Protocol::Streams => {
                let (endpoint, options) = (self.endpoint.clone(), self.options.clone());
                Some(Arc::new(Streamed::new(self.clone(), endpoint, options, scope)))
            }
        }
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let message = match &self.stream {
            None => batch.into_wire(),
            Some(stream) => match stream.start(batch).await {
                Ok(answer) => return answer,
                Err(message) => message,
            },
        };
        let mut client = self.workflows.clone();
        ask(message, self.options.timeout, |request| client.start_workflows(request)).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.await_finished(namespace, run_id, Duration::ZERO).await
    }

    async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError> {
        let get = GetRun { namespace: namespace.clone(), run_id, wait };
        if let Some(stream) = &self.stream
            && let Some(answer) = stream.get(get.clone()).await
        {
            return answer;
        }
        let mut client = self.workflows.clone();
        let timeout = self.options.timeout.saturating_add(wait);
        ask(get.into_wire(), timeout, |request| client.get_workflow(request)).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let mut client = self.workflows.clone();
        ask(request.clone().into_wire(), self.options.timeout, |request| client.list_workflows(request)).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        let mut client = self.workflows.clone();
        let count = CountRuns { namespace: namespace.clone(), filter: filter.clone() };
        let CountWorkflowsResponse { count } =
            answer(count.into_wire(), self.options.timeout, |request| client.count_workflows(request))
                .await?;
        Ok(count)
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let mut client = self.workflows.clone();
        ask(request.clone().into_wire(), self.options.timeout, |request| client.list_step_attempts(request))
            .await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        let mut client = self.workflows.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.cancel_workflow(request)).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        let mut client = self.workflows.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.requeue_workflow(request)).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        let mut client = self.workflows.clone();
        match request.into_wire() {
            QueueCall::Pause(pause) => {
                ask::<_, v1::PauseQueueResponse, _, _>(pause, self.options.timeout, |request| {
                    client.pause_queue(request)
                })
                .await
            }
            QueueCall::Resume(resume) => {
                ask::<_, v1::ResumeQueueResponse, _, _>(resume, self.options.timeout, |request| {
                    client.resume_queue(request)
                })
                .await
            }
        }
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        let mut client = self.workflows.clone();
        let depths = GetQueueDepthsRequest { namespace: namespace.as_str().to_owned() };
        ask(depths, self.options.timeout, |request| client.get_queue_depths(request)).await
    }

    async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError> {
        let mut client = self.workers.clone();
        let timeout = self.options.timeout.saturating_add(wait);
        ask(Poll { claim, wait }.into_wire(), timeout, |request| client.poll_activity(request)).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        let mut client = self.workers.clone();
        let expected = batch.len();
        let verdicts = answer(heartbeats_to_wire(batch), self.options.timeout, |request| {
            client.record_heartbeat(request)
        })
        .await?;
        verdicts_from_wire(verdicts, expected)
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.begin_step(request)).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.complete_step(request)).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.fail_step(request)).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.schedule_sleep(request)).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.complete_workflow(request)).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.fail_workflow(request)).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        let mut client = self.workers.clone();
        ask(request.into_wire(), self.options.timeout, |request| client.release_workflow(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_no_user_of_an_address() {
        let refused = |address: &str| endpoint(address, &GrpcOptions::default()).unwrap_err().to_string();
        for address in ["ftp://u:SECRET@h", "u:SECRET@h:7474", "http://u:SEC/RET@h SECRET@h", "h?key=SECRET"]
        {
            let told = refused(address);
            assert!(!told.contains("SECRET"), "{told}");
        }
        for (address, shown) in [
            ("http://h:7474", "http://h:7474"),
            ("https://u:a/b@c@h:1", "https://***@h:1"),
            ("http://h/?key=k", "http://h/?***"),
        ] {
            assert_eq!(without_user(address), shown);
        }
    }

    #[tokio::test]
    async fn addresses_that_are_none_are_refused_with_the_reason() {
        for (address, reason) in [("127.0.0.1:7474", "http://"), ("ftp://x", "http://"), ("", "http")] {
            let error = Grpc::connect_lazy(address, &GrpcOptions::default()).unwrap_err();
            assert!(error.to_string().contains(reason), "{address:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_token_goes_without_tls_to_this_machine_alone_unless_it_is_said_otherwise() {
        let mut options = GrpcOptions { token: Some(Token::new("t").unwrap()), ..GrpcOptions::default() };
        for near in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://example.org"] {
            Grpc::connect_lazy(near, &options).unwrap();
        }
        for far in ["http://10.0.0.1:1", "http://example.org", "http://localhost.example.org:1"] {
            let error = Grpc::connect_lazy(far, &options).unwrap_err();
            assert!(error.to_string().contains("https://"), "{far}: {error}");
        }
        options.plaintext_tokens = PlaintextTokens::Anywhere;
        Grpc::connect_lazy("http://10.0.0.1:1", &options).unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_by_address() {
        // Port 1 of the loopback is nobody's.
        let error = Grpc::connect("http://127.0.0.1:1", &GrpcOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Connect { address, .. } if address.ends_with(":1")), "{error}");
    }

    #[tokio::test]
    async fn a_call_that_reaches_no_server_may_be_repeated() {
        let grpc = Grpc::connect_lazy("http://127.0.0.1:1", &GrpcOptions::default()).unwrap();
        let namespace = Namespace::new("n").unwrap();
        let error = grpc.queue_depths(&namespace).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    }
}
