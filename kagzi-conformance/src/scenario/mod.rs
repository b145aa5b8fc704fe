//! What a case plays with: a fresh store, a clock to turn, and terse ways to get a run somewhere.

mod check;
pub(crate) mod differ;
mod held;
mod race;
pub(crate) mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptScope, CancelOutcome, CancelRun, Claim, ClaimedRun, Clock, ListAttempts, ManualClock,
    MoreDue, Namespace, OperationId, PageRequest, Payload, QueueName, Reaped, RequeueOutcome, RequeueRun,
    RetryPolicy, Rules, RunId, RunRecord, SharedStore, StartRun, Started, StepId, Store, Timestamp, WorkerId,
    WorkflowType,
};
use tokio::sync::RwLock;

pub(crate) use check::{
    check, equal, invalid, lease_lost, operation_conflict, refused, run_not_found, too_large, under,
};
pub(crate) use held::{Held, fatal, hiccup};
pub(crate) use race::{in_turn, pausing, race};
pub(crate) use snapshot::Snapshot;

use crate::fixture::{Fixture, FixtureError, Instance};
use crate::record::{Log, Recorded};
use crate::settings::Settings;
use crate::violation::{Verdict, Violation};

/// How long leases last in the suite unless a case says otherwise.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// The rules with which the suite opens every store: smaller than the defaults, so that limits are
/// cheap to reach, and different from them, so that a store that ignores its rules is found out.
pub fn suite_rules() -> Rules {
    Rules {
        max_payload_bytes: 4096,
        max_message_bytes: 512,
        default_retry: RetryPolicy {
            max_attempts: 3,
            first_delay: Duration::from_secs(10),
            factor: 3.0,
            max_delay: Duration::from_mins(1),
            jitter: 0.0,
            non_retryable_codes: vec!["never_again".to_owned()],
        },
        poison_after: 3,
        max_claim_bytes: 64 * 1024,
    }
}

/// A name that is valid as it stands in the source of a case.
macro_rules! names {
    ($($function:ident: $name:ident),*) => {$(
        pub(crate) fn $function(text: impl AsRef<str>) -> Result<$name, Violation> {
            $name::new(text.as_ref()).map_err(|error| Violation::refused("making a name", &error))
        }
    )*};
}
names!(
    namespace: Namespace,
    queue: QueueName,
    workflow_type: WorkflowType,
    worker: WorkerId,
    step_id: StepId
);

/// A store in the hands of a case. Clones share everything; hand them to tasks.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    store: Arc<Recorded>,
    clock: ManualClock,
    log: Log,
    stage: Stage,
    namespace: Namespace,
    queue: QueueName,
    workflow_type: WorkflowType,
}

/// What stays when the case has ended: the instance, to be discarded, and the log.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    fixture: Arc<dyn Fixture>,
    settings: Settings,
    instance: Arc<RwLock<Option<Box<dyn Instance>>>>,
    log: Log,
}

impl Stage {
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) async fn discard(self) -> Result<(), FixtureError> {
        match self.instance.write().await.take() {
            Some(instance) => instance.discard().await,
            None => Ok(()),
        }
    }
}

impl Scenario {
    /// Opens a fresh store with a clock of its own.
    pub(crate) async fn open(
        fixture: &Arc<dyn Fixture>,
        settings: Settings,
    ) -> Result<(Self, Stage), Violation> {
        Self::open_under(suite_rules(), fixture, settings, Log::default()).await
    }

    async fn open_under(
        rules: Rules,
        fixture: &Arc<dyn Fixture>,
        settings: Settings,
        log: Log,
    ) -> Result<(Self, Stage), Violation> {
        let clock = ManualClock::default();
        let instance = fixture
            .open(Arc::new(clock.clone()), rules)
            .await
            .map_err(|error| Violation::of_fixture("open a store", &error))?;
        let store = Arc::new(Recorded::new(instance.store(), log.clone(), ""));
        let stage = Stage {
            fixture: Arc::clone(fixture),
            settings,
            instance: Arc::new(RwLock::new(Some(instance))),
            log: log.clone(),
        };
        let scenario = Self {
            store,
            clock,
            log,
            stage: stage.clone(),
            namespace: namespace("acme")?,
            queue: queue("orders")?,
            workflow_type: workflow_type("ship")?,
        };
        Ok((scenario, stage))
    }

    /// Another fresh store of the same fixture, which shares nothing with this one. Whoever asks for
    /// it discards its stage.
    pub(crate) async fn fresh(&self) -> Result<(Self, Stage), Violation> {
        Self::open(&self.stage.fixture, self.stage.settings).await
    }

    /// Plays on a fresh store of the same fixture that keeps other rules, its calls in the log of this one.
    pub(crate) async fn under_rules<F>(&self, rules: Rules, play: impl FnOnce(Self) -> F) -> Verdict
    where
        F: Future<Output = Verdict>,
    {
        let (fresh, stage) =
            Self::open_under(rules, &self.stage.fixture, self.stage.settings, self.log.clone()).await?;
        let verdict = play(fresh).await;
        let discarded = stage.discard().await;
        verdict.and(discarded.map_err(|error| Violation::of_fixture("discard a store", &error)))
    }

    /// The store, every call logged.
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The store, every call logged, to be handed on.
    pub(crate) fn shared_store(&self) -> SharedStore {
        Arc::clone(&self.store) as SharedStore
    }

    /// How much the random cases play, and with which dice.
    pub(crate) fn settings(&self) -> &Settings {
        &self.stage.settings
    }

    /// The clock that the store goes by.
    pub(crate) fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// What was called and answered so far.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The namespace that everything happens in unless a case says otherwise.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The same scenario in another namespace.
    pub(crate) fn in_namespace(&self, name: &str) -> Result<Self, Violation> {
        Ok(Self { namespace: namespace(name)?, ..self.clone() })
    }

    /// The same scenario with another queue.
    pub(crate) fn on_queue(&self, name: &str) -> Result<Self, Violation> {
        Ok(Self { queue: queue(name)?, ..self.clone() })
    }

    /// The same scenario over a second handle on the same data.
    pub(crate) async fn second_handle(&self) -> Result<Self, Violation> {
        // Shared, so that several may be opened at one time.
        let instance = self.stage.instance.read().await;
        let opened: SharedStore = match instance.as_ref() {
            Some(instance) => instance
                .second_handle()
                .await
                .map_err(|e| Violation::of_fixture("open a second handle", &e))?,
            None => return Err(Violation::new("the instance is there", "an instance", "none")),
        };
        self.log.note("a second handle is opened".to_owned());
        Ok(Self { store: Arc::new(Recorded::new(opened, self.log.clone(), "second: ")), ..self.clone() })
    }

    /// The same data, opened again after this scenario let go of its handle without closing it. No
    /// clone of the scenario may be left.
    pub(crate) async fn reopen(self) -> Result<Self, Violation> {
        let Self { store, clock, log, stage, namespace, queue, workflow_type } = self;
        drop(store);
        let mut instance = stage.instance.write().await;
        let reopened = match instance.as_mut() {
            Some(instance) => {
                instance.reopen().await.map_err(|e| Violation::of_fixture("reopen its data", &e))?;
                instance.store()
            }
            None => return Err(Violation::new("the instance is there", "an instance", "none")),
        };
        drop(instance);
        log.note("the store is dropped and opened again".to_owned());
        let store = Arc::new(Recorded::new(reopened, log.clone(), ""));
        Ok(Self { store, clock, log, stage, namespace, queue, workflow_type })
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Turns the clock forward.
    pub(crate) fn turn(&self, by: Duration) {
        self.clock.advance(by);
        self.log.note(format!("the clock is turned by {by:?}"));
    }

    /// Turns the clock forward by all but a microsecond of `by`.
    pub(crate) fn turn_almost(&self, by: Duration) {
        self.turn(by.saturating_sub(Duration::from_micros(1)));
    }

    /// Sets the clock, also back.
    pub(crate) fn set_clock(&self, to: Timestamp) {
        self.clock.set(to);
        self.log.note(format!("the clock is set to {to}"));
    }

    /// A plain start, to be changed at will.
    pub(crate) fn start_request(&self) -> StartRun {
        StartRun::new(
            self.namespace.clone(),
            self.queue.clone(),
            self.workflow_type.clone(),
            Payload::json("{\"order\":1}"),
        )
    }

    /// Starts one run as asked.
    pub(crate) async fn start(&self, request: StartRun) -> Result<Started, Violation> {
        let started = self.start_all(vec![request]).await?;
        started.first().copied().ok_or_else(|| Violation::new("a start answers for each run", "1", "0"))
    }

    /// Starts runs in one batch.
    pub(crate) async fn start_all(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, Violation> {
        let asked = batch.len();
        let started = self.store.start(batch).await.map_err(|error| Violation::refused("a start", &error))?;
        equal("a start answers for each run, in order [15]", &asked, &started.len())?;
        Ok(started)
    }

    /// Starts a plain run.
    pub(crate) async fn start_one(&self) -> Result<RunId, Violation> {
        Ok(self.start(self.start_request()).await?.run_id)
    }

    /// Starts `count` plain runs in one batch.
    pub(crate) async fn start_many(&self, count: usize) -> Result<Vec<RunId>, Violation> {
        let batch = (0..count).map(|_| self.start_request()).collect();
        Ok(self.start_all(batch).await?.into_iter().map(|started| started.run_id).collect())
    }

    /// A plain claim, to be changed at will.
    pub(crate) fn claim_request(&self, by: &str, limit: u32) -> Result<Claim, Violation> {
        Ok(Claim {
            namespace: self.namespace.clone(),
            queues: vec![self.queue.clone()],
            workflow_types: Vec::new(),
            worker_id: worker(by)?,
            lease_length: LEASE,
            limit,
            steps_limit: 1000,
            operation: OperationId::generate(),
        })
    }

    /// Claims as asked.
    pub(crate) async fn claim_as(&self, request: Claim) -> Result<Vec<ClaimedRun>, Violation> {
        self.store.claim(request).await.map_err(|error| Violation::refused("a claim", &error))
    }

    /// Claims up to `limit` runs.
    pub(crate) async fn claim(&self, by: &str, limit: u32) -> Result<Vec<ClaimedRun>, Violation> {
        self.claim_as(self.claim_request(by, limit)?).await
    }

    /// Claims exactly one run.
    pub(crate) async fn claim_one(&self, by: &str) -> Result<Held, Violation> {
        let mut claimed = self.claim(by, 1).await?;
        match (claimed.pop(), claimed.len()) {
            (Some(run), 0) => Ok(Held::new(self.clone(), run)),
            (run, more) => Err(Violation::new(
                "a due run is claimable [10]",
                "1 claimed run",
                format!("{} claimed runs", more + usize::from(run.is_some())),
            )),
        }
    }

    /// Asserts that a claim finds nothing.
    pub(crate) async fn nothing_claimable(&self, rule: &str) -> Result<(), Violation> {
        let claimed = self.claim("nobody", 100).await?;
        equal(rule, &Vec::<RunId>::new(), &claimed.iter().map(|run| run.run.run_id).collect())
    }

    /// A plain run, started and claimed by worker `w1`.
    pub(crate) async fn held(&self) -> Result<Held, Violation> {
        self.start_one().await?;
        self.claim_one("w1").await
    }

    /// One run with its payloads.
    pub(crate) async fn run(&self, run_id: RunId) -> Result<RunRecord, Violation> {
        self.store
            .get_run(&self.namespace, run_id)
            .await
            .map_err(|error| Violation::refused("reading a run", &error))
    }

    /// The whole history of a run.
    pub(crate) async fn attempts(&self, run_id: RunId) -> Result<Vec<Attempt>, Violation> {
        self.attempts_in(run_id, AttemptScope::All).await
    }

    /// The attempts of a run in a scope, over all pages.
    pub(crate) async fn attempts_in(
        &self,
        run_id: RunId,
        scope: AttemptScope,
    ) -> Result<Vec<Attempt>, Violation> {
        let mut request =
            ListAttempts { namespace: self.namespace.clone(), run_id, scope, page: PageRequest::first(1000) };
        let mut attempts = Vec::new();
        loop {
            let page = self
                .store
                .list_attempts(&request)
                .await
                .map_err(|error| Violation::refused("listing attempts", &error))?;
            attempts.extend(page.items);
            match page.next {
                Some(next) => request.page.cursor = Some(next),
                None => return Ok(attempts),
            }
        }
    }

    /// Everything that is recorded about a run.
    pub(crate) async fn snapshot(&self, run_id: RunId) -> Result<Snapshot, Violation> {
        Ok(Snapshot { record: self.run(run_id).await?, attempts: self.attempts(run_id).await? })
    }

    /// Asserts that every row of a run is as it was.
    pub(crate) async fn unchanged(&self, before: &Snapshot, rule: &str) -> Result<(), Violation> {
        before.compare(&self.snapshot(before.record.run.run_id).await?, rule)
    }

    /// A cancellation, to be changed at will.
    pub(crate) fn cancel_request(&self, run_id: RunId) -> CancelRun {
        CancelRun {
            namespace: self.namespace.clone(),
            run_id,
            reason: "no longer wanted".to_owned(),
            operation: OperationId::generate(),
        }
    }

    /// Cancels a run.
    pub(crate) async fn cancel(&self, run_id: RunId) -> Result<CancelOutcome, Violation> {
        self.store
            .cancel(self.cancel_request(run_id))
            .await
            .map_err(|error| Violation::refused("a cancellation", &error))
    }

    /// A requeue, to be changed at will.
    pub(crate) fn requeue_request(&self, run_id: RunId) -> RequeueRun {
        RequeueRun { namespace: self.namespace.clone(), run_id, operation: OperationId::generate() }
    }

    /// Puts a dead letter back to work.
    pub(crate) async fn requeue(&self, run_id: RunId) -> Result<RequeueOutcome, Violation> {
        self.store
            .requeue(self.requeue_request(run_id))
            .await
            .map_err(|error| Violation::refused("a requeue", &error))
    }

    /// Reaps at most `limit` runs.
    pub(crate) async fn reap(&self, limit: u32) -> Result<Reaped, Violation> {
        let reaped = self.store.reap(limit).await.map_err(|error| Violation::refused("a reap", &error))?;
        check(reaped.total() <= limit, "a reap treats at most its limit [14]", limit, &reaped)?;
        Ok(reaped)
    }

    /// Reaps until nothing is due, and adds up.
    pub(crate) async fn reap_all(&self) -> Result<Reaped, Violation> {
        let mut sum = Reaped::default();
        loop {
            let reaped = self.reap(100).await?;
            sum.woken += reaped.woken;
            sum.leases_expired += reaped.leases_expired;
            sum.poisoned += reaped.poisoned;
            sum.runs_timed_out += reaped.runs_timed_out;
            sum.steps_timed_out += reaped.steps_timed_out;
            sum.steps_given_up.retries_exhausted += reaped.steps_given_up.retries_exhausted;
            sum.steps_given_up.non_retryable += reaped.steps_given_up.non_retryable;
            sum.steps_given_up.run_timeout += reaped.steps_given_up.run_timeout;
            if reaped.more == MoreDue::No {
                return Ok(sum);
            }
            check(reaped.total() > 0, "a reap that says more is due treats some [14]", "> 0", &reaped)?;
        }
    }

    /// The nearest moment at which there is something to reap.
    pub(crate) async fn next_due(&self) -> Result<Option<Timestamp>, Violation> {
        let next = self.store.next_due().await.map_err(|error| Violation::refused("next_due", &error))?;
        equal("next_due tells the store's own time", &self.now(), &next.now)?;
        Ok(next.due_at)
    }
}
