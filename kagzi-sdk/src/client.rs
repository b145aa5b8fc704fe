//! The client: start runs, look at them, cancel and requeue them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::engine::EngineOptions;
use kagzi_core::{
    Attempt, AttemptScope, CancelOutcome, CancelRun, Cursor, ListAttempts, ListRuns, Namespace, OperationId,
    Page, PageRequest, QueueChange, QueueDepth, QueueName, QueueOutcome, RequeueOutcome, RequeueRun, Run,
    RunFilter, RunId, RunRecord, SetQueueState, SharedStore, StoreError,
};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::calls::asked_for;
use crate::error::ClientError;
use crate::handle::RunHandle;
use crate::payload_codec::{PayloadCodec, Payloads};
use crate::start::Start;
use crate::transport::{Embedded, Grpc, GrpcOptions, Transport};

/// The namespace of a client that was not told another.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Starts runs and looks after them, on a server or in the same process. Cloning is cheap.
///
/// Calls that fail for a reason that may pass are repeated under the same operation id, with backoff
/// and jitter, for as long as the client's [`patience`](Client::with_patience).
#[derive(Clone, Debug)]
pub struct Client {
    transport: Arc<dyn Transport>,
    namespace: Namespace,
    backoff: Backoff,
    patience: Duration,
    payloads: Payloads,
}

impl Client {
    /// A client with an engine of its own over `store`, in this process: no server is needed. The
    /// engine's reaper runs as long as the client or one of its clones lives. Call it, and everything
    /// else, from within a tokio runtime.
    pub fn embedded(store: SharedStore) -> Self {
        Self::embedded_with(store, EngineOptions::default())
    }

    /// Like [`embedded`](Self::embedded), with other intervals than the default ones.
    pub fn embedded_with(store: SharedStore, options: EngineOptions) -> Self {
        Self::over(Arc::new(Embedded::new(store, options)))
    }

    /// A client of the server at `address`, such as `http://127.0.0.1:7474`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if it is not an address, [`ClientError::Connect`] if no server answers.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ClientError> {
        Ok(Self::over(Arc::new(Grpc::connect(address.as_ref(), &GrpcOptions::default()).await?)))
    }

    /// Like [`connect`](Self::connect), with options of its own: a token, TLS, timeouts.
    ///
    /// ```no_run
    /// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
    /// use kagzi_sdk::Client;
    /// use kagzi_sdk::transport::{GrpcOptions, Tls, Token};
    ///
    /// let mut options = GrpcOptions::default();
    /// options.token = Some(Token::from_file("/run/secrets/kagzi-token")?);
    /// options.tls = Tls::default().authorities_file("/etc/kagzi/ca.pem")?;
    /// let client = Client::connect_with("https://kagzi.internal:7474", &options).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub async fn connect_with(address: impl AsRef<str>, options: &GrpcOptions) -> Result<Self, ClientError> {
        Ok(Self::over(Arc::new(Grpc::connect(address.as_ref(), options).await?)))
    }

    /// Like [`connect`](Self::connect), but connects with the first call: for programs that may be up
    /// before their server is.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if it is not an address.
    pub fn connect_lazy(address: impl AsRef<str>) -> Result<Self, ClientError> {
        Ok(Self::over(Arc::new(Grpc::connect_lazy(address.as_ref(), &GrpcOptions::default())?)))
    }

    /// A client over any transport, such as a [`Grpc`] with options of its own.
    pub fn over(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            namespace: default_namespace(),
            backoff: Backoff::default(),
            patience: Duration::from_secs(15),
            payloads: Payloads::default(),
        }
    }

    /// The same client for another namespace.
    ///
    /// # Errors
    ///
    /// [`ClientError::Call`] with [`StoreError::InvalidArgument`] if the name is outside the rule.
    pub fn in_namespace(mut self, namespace: impl AsRef<str>) -> Result<Self, ClientError> {
        self.namespace = Namespace::new(namespace)?;
        Ok(self)
    }

    /// The same client with another patience: for how long a call that fails for a reason that may pass
    /// is repeated before its error is given back. 15 s by default.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same client with a codec between its payloads and the engine, such as
    /// [`Encryption`](crate::Encryption). Workers built with the client inherit it.
    #[must_use]
    pub fn with_payload_codec(mut self, codec: Arc<dyn PayloadCodec>) -> Self {
        self.payloads = Payloads::through(codec);
        self
    }

    /// The namespace that the client works in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(crate) const fn payloads(&self) -> &Payloads {
        &self.payloads
    }

    /// Starts a run. A run that the idempotency key names already is given back instead.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] or [`StoreError::TooLarge`] naming the field,
    /// [`StoreError::IdempotencyConflict`] if the key names a run of another request;
    /// [`ClientError::Codec`] if a payload codec refuses the input.
    pub async fn start(&self, start: Start) -> Result<RunHandle, ClientError> {
        let mut handles = self.start_many(vec![start]).await?;
        handles.pop().ok_or_else(|| {
            let detail = "the engine answered a start with nothing".to_owned();
            StoreError::Internal { context: "starting a run", detail }.into()
        })
    }

    /// Starts many runs in one commit, all or none; handles come in the order of the starts.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn start_many(&self, starts: Vec<Start>) -> Result<Vec<RunHandle>, ClientError> {
        let batch = starts
            .into_iter()
            .map(|start| start.into_request(self.namespace.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let started = self.start_encoded(batch).await?;
        Ok(started.into_iter().map(|started| RunHandle::new(self.clone(), started)).collect())
    }

    /// One run with its payloads.
    ///
    /// # Errors
    ///
    /// [`StoreError::RunNotFound`]; [`ClientError::Codec`] if a payload codec refuses one of its payloads.
    pub async fn get(&self, run_id: RunId) -> Result<RunRecord, ClientError> {
        let record = self.patiently(|| self.transport.get_run(&self.namespace, run_id)).await?;
        Ok(self.payloads.decode_record(&self.namespace, run_id, record)?)
    }

    /// A handle on a run whose id is known.
    pub fn handle(&self, run_id: RunId) -> RunHandle {
        RunHandle::existing(self.clone(), run_id)
    }

    /// A page of at most `limit` runs (1 to 10,000), the youngest first; go on with the page's `next`.
    /// The details of failures come as they are stored, whatever the client's payload codec.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadCursor`] for a cursor that this listing did not give.
    pub async fn list(
        &self,
        filter: &RunFilter,
        limit: u32,
        cursor: Option<Cursor>,
    ) -> Result<Page<Run>, ClientError> {
        let request = ListRuns {
            namespace: self.namespace.clone(),
            filter: filter.clone(),
            page: PageRequest { limit, cursor },
        };
        Ok(self.patiently(|| self.transport.list_runs(&request)).await?)
    }

    /// How many runs a filter finds.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub async fn count(&self, filter: &RunFilter) -> Result<u64, ClientError> {
        Ok(self.patiently(|| self.transport.count_runs(&self.namespace, filter)).await?)
    }

    /// The whole history of a run: every attempt of every step, in the order of the workflow's code.
    ///
    /// # Errors
    ///
    /// [`StoreError::RunNotFound`]; [`ClientError::Codec`] if a payload codec refuses one of the payloads.
    pub async fn attempts(&self, run_id: RunId) -> Result<Vec<Attempt>, ClientError> {
        let mut request = ListAttempts {
            namespace: self.namespace.clone(),
            run_id,
            scope: AttemptScope::All,
            page: PageRequest::first(1000),
        };
        let mut attempts = Vec::new();
        loop {
            let page = self.patiently(|| self.transport.list_attempts(&request)).await?;
            for attempt in page.items {
                attempts.push(self.payloads.decode_attempt(&self.namespace, run_id, attempt)?);
            }
            match page.next {
                Some(cursor) => request.page.cursor = Some(cursor),
                None => return Ok(attempts),
            }
        }
    }

    /// Cancels a run at once, whatever it is doing; its worker is told with the next heartbeat.
    ///
    /// # Errors
    ///
    /// [`StoreError::RunNotFound`]; [`StoreError::TooLarge`] for an over-long reason.
    pub async fn cancel(
        &self,
        run_id: RunId,
        reason: impl Into<String>,
    ) -> Result<CancelOutcome, ClientError> {
        let request = CancelRun {
            namespace: self.namespace.clone(),
            run_id,
            reason: reason.into(),
            operation: OperationId::generate(),
        };
        Ok(self.patiently(|| self.transport.cancel(request.clone())).await?)
    }

    /// Puts a dead letter back to work: its completed steps stay, its retry budgets start afresh.
    ///
    /// # Errors
    ///
    /// [`StoreError::WrongState`] unless the run is FAILED, [`StoreError::RunNotFound`].
    pub async fn requeue(&self, run_id: RunId) -> Result<RequeueOutcome, ClientError> {
        let request =
            RequeueRun { namespace: self.namespace.clone(), run_id, operation: OperationId::generate() };
        Ok(self.patiently(|| self.transport.requeue(request.clone())).await?)
    }

    /// Has workers take nothing from a queue until it is [resumed](Self::resume_queue): none that asks after
    /// the answer gets a run of it. What they hold goes on, so the queue drains; see
    /// [`queue_depths`](Self::queue_depths) for how far it has. Starts are kept. The reason is for people; it
    /// takes the place of an earlier one if the queue is paused already.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if the name is outside the rule, or the reason holds control
    /// characters; [`StoreError::TooLarge`] if it is over 512 bytes.
    pub async fn pause_queue(
        &self,
        queue: impl AsRef<str>,
        reason: impl Into<String>,
    ) -> Result<QueueOutcome, ClientError> {
        self.change_queue(queue.as_ref(), QueueChange::Pause { reason: reason.into() }).await
    }

    /// Has workers take from a queue again, at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if the name is outside the rule.
    pub async fn resume_queue(&self, queue: impl AsRef<str>) -> Result<QueueOutcome, ClientError> {
        self.change_queue(queue.as_ref(), QueueChange::Resume).await
    }

    async fn change_queue(&self, queue: &str, change: QueueChange) -> Result<QueueOutcome, ClientError> {
        let (namespace, queue) = (self.namespace.clone(), QueueName::new(queue)?);
        let request = SetQueueState { namespace, queue, change, operation: OperationId::generate() };
        Ok(self.patiently(|| self.transport.set_queue_state(request.clone())).await?)
    }

    /// The queues that hold live runs or are paused, by name.
    ///
    /// # Errors
    ///
    /// Those of every call.
    pub async fn queue_depths(&self) -> Result<Vec<QueueDepth>, ClientError> {
        Ok(self.patiently(|| self.transport.queue_depths(&self.namespace)).await?)
    }

    /// Sends until the answer is final or the client's patience is at its end. Whoever hears that the outcome is
    /// unknown, and then that the store is away, still does not know it: the last answer is about the last try.
    pub(crate) async fn patiently<T, F, Fut>(&self, mut send: F) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        let began = Instant::now();
        let mut failures = 0;
        let mut unknown = None;
        loop {
            let error = match send().await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            failures += 1;
            let delay = self.backoff.delay(failures, asked_for(&error));
            let away = matches!(error, StoreError::Unavailable { .. });
            if !error.is_retryable() || began.elapsed() + delay > self.patience {
                return Err(unknown.filter(|_| away).unwrap_or(error));
            }
            tracing::debug!(reason = error.reason(), %error, failures, ?delay, "a call failed and is repeated");
            if !away {
                unknown = Some(error);
            }
            tokio::time::sleep(delay).await;
        }
    }
}

fn default_namespace() -> Namespace {
    // Checked by a test; there is no way to name it without a check.
    #[expect(clippy::expect_used, reason = "the constant is within the rule of names")]
    Namespace::new(DEFAULT_NAMESPACE).expect("a valid name")
}
