//! What a workflow function is given: its steps, its sleeps, and what it may know of its run.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Labels, Namespace, QueueName, Run, RunId, SleepUntil, Timestamp, WorkflowType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::error::StepError;
use crate::payload_codec::RunPayloads;
use crate::run::journal::Journal;
use crate::step::{self, Step, StepFuture};
use crate::trace::RunTrace;

/// The name under which sleeps are recorded.
const SLEEP: &str = "sleep";

/// The hands of a workflow: everything durable that it does goes through its context.
///
/// # The rules of workflow code
///
/// A run is executed again from its first line after a crash, a sleep or a retry, with the results of
/// its finished steps put in. So the code **between** steps must do the same each time: branch on step
/// results and on the input, and put what may differ (time, chance, other services) inside steps. The
/// order of calls is checked on every replay; a run whose code has changed fails with code
/// `nondeterminism` rather than being replayed wrongly.
///
/// Steps may run side by side with `tokio::join!` or `futures::join_all`; with `tokio::select!`, write
/// `biased;`, since its branches otherwise start in random order. Await them within the workflow
/// function, not in spawned tasks, whose order nobody knows. Clones share one run.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    run: Run,
    journal: Arc<Journal>,
    payloads: RunPayloads,
    trace: Arc<RunTrace>,
    cancelled: CancellationToken,
}

impl Context {
    pub(crate) fn new(
        run: Run,
        journal: Arc<Journal>,
        payloads: RunPayloads,
        trace: Arc<RunTrace>,
        cancelled: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner { run, journal, payloads, trace, cancelled }))
    }

    pub(crate) fn run(&self) -> &Run {
        &self.0.run
    }

    pub(crate) fn payloads(&self) -> &RunPayloads {
        &self.0.payloads
    }

    /// Executes a step once and records what it gave; on replay, gives what was recorded.
    ///
    /// The function runs only after the store has recorded the beginning of its attempt, and only
    /// ever on one worker at a time. The returned future gives the step's result or nothing: its errors
    /// are those of the code, a name or a setting outside the rule (codes `invalid_step_name`,
    /// `invalid_step`) or a recorded output of another type (`decode`). A recorded output that the client's
    /// payload codec refuses ends this execution of the run with that failure; the code does not see it.
    ///
    /// # When a step fails
    ///
    /// If the function fails, panics or takes longer than its timeout, the failure is recorded and this
    /// execution of the run ends there: the engine takes the run up again by the retry policy, and
    /// once that is used up, or at once if the error is [non-retryable](StepError::non_retryable), the
    /// run ends FAILED: a dead letter, kept with its reason, which
    /// [`requeue`](crate::Client::requeue) puts back to work at this very step. **A step that failed for
    /// good ends the run; no code after it is executed**, neither an `if let Err(..)` nor a destructor.
    ///
    /// So what the workflow is to answer itself, above all by undoing earlier steps (compensation), is
    /// returned as data: a step that gives a `Result` of its own has succeeded as a step, and what it
    /// says is recorded and replayed like any other output.
    ///
    /// ```
    /// # use kagzi_sdk::{Client, Context, MemoryStore, Start, StepError, Worker, WorkflowError};
    /// # async fn charge(_card: &str) -> Result<u64, std::io::Error> { Ok(7) }
    /// # async fn refund(payment: u64) -> Result<(), std::io::Error> { assert_eq!(payment, 7); Ok(()) }
    /// # enum Shipping { NoStock, Network(std::io::Error) }
    /// # async fn ship() -> Result<String, Shipping> { Err(Shipping::NoStock) }
    /// # impl From<Shipping> for StepError {
    /// #     fn from(error: Shipping) -> Self {
    /// #         match error {
    /// #             Shipping::NoStock => StepError::non_retryable("no_stock", "no stock"),
    /// #             Shipping::Network(error) => error.into(),
    /// #         }
    /// #     }
    /// # }
    /// async fn order(ctx: Context, card: String) -> Result<String, WorkflowError> {
    ///     // A failure is retried, and ends the run when the policy says so: there is nothing to undo yet.
    ///     let payment = ctx.step("charge", || async { Ok(charge(&card).await?) }).await?;
    ///     let shipped: Result<String, String> = ctx
    ///         .step("ship", || async {
    ///             match ship().await {
    ///                 Ok(parcel) => Ok(Ok(parcel)),
    ///                 // Final, and ours to answer: data.
    ///                 Err(Shipping::NoStock) => Ok(Err("out of stock".to_owned())),
    ///                 // May pass: an error, for the retry policy.
    ///                 Err(other) => Err(other.into()),
    ///             }
    ///         })
    ///         .await?;
    ///     match shipped {
    ///         Ok(parcel) => Ok(parcel),
    ///         Err(reason) => {
    ///             ctx.step("refund", || async move { Ok(refund(payment).await?) }).await?;
    ///             Ok(format!("refunded: {reason}"))
    ///         }
    ///     }
    /// }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let client = Client::embedded(std::sync::Arc::new(MemoryStore::default()));
    /// # let worker = Worker::builder(client.clone()).queue("default").register("order", order).build()?;
    /// # tokio::spawn(worker.run());
    /// # let run = client.start(Start::workflow("order").input("card")?).await?;
    /// # assert_eq!(run.result::<String>().await?, "refunded: out of stock");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # One write
    ///
    /// The result is handed over before it is recorded, so that its record and the beginning of the
    /// next step are one write; nothing else of the run executes until that write is durable.
    ///
    /// # Side by side
    ///
    /// The call counts at once, in program order; the step begins when the future is first polled.
    ///
    /// ```
    /// # use kagzi_sdk::{Context, WorkflowError};
    /// async fn total(ctx: Context, prices: Vec<u64>) -> Result<u64, WorkflowError> {
    ///     let (net, tax) = tokio::join!(
    ///         ctx.step("net", || async { Ok(prices.iter().sum::<u64>()) }),
    ///         ctx.step("tax", || async { Ok(prices.len() as u64) }),
    ///     );
    ///     Ok(net? + tax?)
    /// }
    /// ```
    pub fn step<'a, T, F, Fut>(&self, step: impl Into<Step>, function: F) -> StepFuture<'a, T>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnOnce() -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, StepError>> + Send + 'a,
    {
        step::task(&self.0.journal, &self.0.payloads, &self.0.trace, step.into(), function)
    }

    /// Sleeps at least this long, by the store's clock, down to a microsecond. The run gives its worker
    /// up meanwhile, so a sleep of a year costs one row.
    ///
    /// Steps running beside the sleep go on first: the run sleeps when nothing else of it can go on. The
    /// time that takes counts. So a sleep is no timeout for a step beside it; give the step a
    /// [`timeout`](Step::timeout) for that.
    pub fn sleep(&self, duration: Duration) -> StepFuture<'static, ()> {
        step::sleep(&self.0.journal, SLEEP, SleepUntil::After(duration))
    }

    /// Sleeps until this moment, by the store's clock; a moment that has passed is no sleep at all,
    /// but is recorded like one.
    pub fn sleep_until(&self, moment: Timestamp) -> StepFuture<'static, ()> {
        step::sleep(&self.0.journal, SLEEP, SleepUntil::At(moment))
    }

    /// The run's id.
    pub fn run_id(&self) -> RunId {
        self.0.run.run_id
    }

    /// Which execution of the run this is, from 1: how often the run has been claimed. It differs
    /// between replays, so do not branch on it outside a step.
    pub fn attempt(&self) -> u32 {
        self.0.run.claims
    }

    /// The run's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.0.run.namespace
    }

    /// The queue that the run was taken from.
    pub fn queue(&self) -> &QueueName {
        &self.0.run.queue
    }

    /// The run's workflow type.
    pub fn workflow_type(&self) -> &WorkflowType {
        &self.0.run.workflow_type
    }

    /// What the run can be found by.
    pub fn labels(&self) -> &Labels {
        &self.0.run.labels
    }

    /// When the run was started, by the store's clock: the same in every execution.
    pub fn started_at(&self) -> Timestamp {
        self.0.run.created_at
    }

    /// The trace context of the start, if it had one, as
    /// [`Start::trace_context`](crate::Start::trace_context) takes it.
    pub fn trace_context(&self) -> Option<&str> {
        self.0.run.trace_context.as_deref()
    }

    /// Resolves when this execution must stop: the run was cancelled, or its lease was lost. A step
    /// that watches it can break off early; what it then returns is not recorded.
    ///
    /// After a cancellation, steps in flight have the worker's
    /// [`cancel_grace`](crate::WorkerBuilder::cancel_grace) before they are dropped; after a lost
    /// lease they are dropped at once, since another worker may be executing them already.
    pub async fn cancelled(&self) {
        self.0.cancelled.cancelled().await;
    }

    /// The token behind [`cancelled`](Self::cancelled), for threads and tasks that a step starts.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.0.cancelled.clone()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("run_id", &self.0.run.run_id)
            .field("workflow_type", &self.0.run.workflow_type)
            .field("attempt", &self.0.run.claims)
            .finish_non_exhaustive()
    }
}
