//! The start of a run, field by field.

use std::collections::BTreeMap;
use std::time::Duration;

use kagzi_core::{
    IdempotencyKey, Labels, Namespace, OperationId, Payload, Priority, QueueName, RetryPolicy, StartAt,
    StartRun, StoreError, Timestamp, WorkflowType,
};
use serde::Serialize;

use crate::codec::{self, CodecError};

/// A run to start; [`Client::start`](crate::Client::start) starts it.
///
/// ```
/// use std::time::Duration;
/// use kagzi_sdk::Start;
///
/// let start = Start::workflow("greet")
///     .input("world")?
///     .idempotency_key("greeting-1")
///     .label("team", "hello")
///     .run_timeout(Duration::from_secs(60));
/// # drop(start);
/// # Ok::<(), kagzi_sdk::CodecError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Start {
    workflow_type: String,
    queue: String,
    input: Payload,
    idempotency_key: Option<String>,
    priority: i64,
    due: StartAt,
    run_timeout: Option<Duration>,
    retry: Option<RetryPolicy>,
    labels: BTreeMap<String, String>,
    trace_context: Option<String>,
}

impl Start {
    /// A run of this workflow type, in the queue `default`, with input `null`. Names are checked when
    /// the run is started.
    pub fn workflow(workflow_type: impl Into<String>) -> Self {
        Self {
            workflow_type: workflow_type.into(),
            queue: "default".to_owned(),
            input: Payload::json("null"),
            idempotency_key: None,
            priority: 0,
            due: StartAt::Now,
            run_timeout: None,
            retry: None,
            labels: BTreeMap::new(),
            trace_context: None,
        }
    }

    /// The queue in which the run waits for a worker.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = queue.into();
        self
    }

    /// What the workflow is given, as JSON.
    ///
    /// # Errors
    ///
    /// [`CodecError::Encode`] if the value has no JSON form.
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Result<Self, CodecError> {
        self.input = codec::encode(input, || "the input".to_owned())?;
        Ok(self)
    }

    /// What the workflow is given, as it is. Workers of this SDK read JSON.
    pub fn payload(mut self, input: Payload) -> Self {
        self.input = input;
        self
    }

    /// The caller's own name for this start: one key names one run, for ever, so that starting again
    /// gives the same run.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// How urgent the run is, from -9 to 9; 0 by default.
    pub fn priority(mut self, level: i64) -> Self {
        self.priority = level;
        self
    }

    /// The run is due this long after its start.
    pub fn after(mut self, delay: Duration) -> Self {
        self.due = StartAt::After(delay);
        self
    }

    /// The run is due at this moment.
    pub fn at(mut self, moment: Timestamp) -> Self {
        self.due = StartAt::At(moment);
        self
    }

    /// How long the run may take from its due time to its end; no limit by default.
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.run_timeout = Some(timeout);
        self
    }

    /// The retry policy of the run, and of its steps that bring none.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// A label that the run can be found by.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// The trace context that the run and its steps continue: the `traceparent` of W3C, followed by a
    /// space and the `tracestate` if there is one. Needed only to name another than the caller's own,
    /// which is taken with the feature `opentelemetry`.
    pub fn trace_context(mut self, context: impl Into<String>) -> Self {
        self.trace_context = Some(context.into());
        self
    }

    /// The request under a new operation id.
    pub(crate) fn into_request(self, namespace: Namespace) -> Result<StartRun, StoreError> {
        Ok(StartRun {
            namespace,
            queue: QueueName::new(self.queue)?,
            workflow_type: WorkflowType::new(self.workflow_type)?,
            input: self.input,
            idempotency_key: self.idempotency_key.map(IdempotencyKey::new).transpose()?,
            priority: Priority::new(self.priority)?,
            start_at: self.due,
            run_timeout: self.run_timeout,
            retry: self.retry,
            labels: Labels::new(self.labels)?,
            trace_context: self.trace_context,
            operation: OperationId::for_start(),
        })
    }
}
