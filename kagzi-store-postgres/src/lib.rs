//! The Postgres backend of kagzi: durable workflows for production, with set-based batches.
//!
//! [`PostgresStore`] keeps the contract of [`kagzi_core::Store`] on Postgres 14 or newer. Every
//! operation has a path that locks one run, asks the rules of [`kagzi_core::decide`] and writes what
//! they say. The frequent ones have a second path that commits many at once and acts on the ordinary
//! case only; whatever is not ordinary takes the first path, so the rules stay in one place.
//!
//! ```no_run
//! use kagzi_store_postgres::{PostgresOptions, PostgresStore};
//!
//! # async fn open() -> Result<(), kagzi_core::StoreError> {
//! let store = PostgresStore::connect(PostgresOptions::new("postgres://kagzi@localhost/kagzi")).await?;
//! # Ok(())
//! # }
//! ```

mod citus;
mod claim;
mod commit;
mod error;
mod examine;
mod lease;
mod listing;
mod locked;
mod nodes;
mod notify;
mod options;
mod partitions;
mod pool;
mod pools;
mod probe;
mod queues;
mod reads;
mod reap;
mod remove;
mod repartition;
mod route;
mod rows;
mod runs;
mod save;
mod schema;
mod server;
mod statement;
mod steps;
mod told;
mod turns;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::decide::{AttemptWrite, Effects};
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, Clock, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Migration, Namespace, NextDue, Page,
    QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Rules, Run,
    RunFilter, RunId, RunRecord, RunState, SchemaPolicy, SetQueueState, Sleep, SleepOutcome, StartRun,
    Started, Store, StoreCounters, StoreError, StoreStats, Timestamp, Topic, WakeHub,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, Executor as _};

pub use options::{Listen, Pooler, PostgresOptions};
pub use repartition::{Moved, MovedTable};

use crate::commit::{Bounds, Gatherer};
use crate::error::Fault;
use crate::notify::Notifier;
use crate::partitions::Absent;
use crate::pools::Pools;
use crate::reads::{ReadRun, Reader};
use crate::route::Route;
use crate::rows::Moment;
use crate::runs::StartCommitter;
use crate::schema::Prepared;
use crate::statement::{Begin, PIN_DURABILITY, Patience, Sessions};
use crate::steps::{StepCommitter, StepOperation};
use crate::told::TimeTold;
use crate::turns::{Claims, OneByOne, Reads, Sweeps};

/// A store on Postgres.
///
/// Cloning is not needed: share it as a [`SharedStore`](kagzi_core::SharedStore). It spawns tasks on
/// the tokio runtime that it is used from.
pub struct PostgresStore {
    inner: Arc<Inner>,
    steps: Gatherer<StepOperation>,
    starts: Gatherer<Arc<StartRun>>,
    reads: Gatherer<ReadRun>,
}

/// What all operations share.
struct Inner {
    pool: Sessions,
    one_by_one: OneByOne,
    claims: Claims,
    sweeps: Sweeps,
    reads: Reads,
    absent: Absent,
    partitions: u16,
    rules: Rules,
    clock: Option<Arc<dyn Clock>>,
    time_told: TimeTold,
    hub: WakeHub,
    counters: Arc<StoreCounters>,
    notifier: Option<Notifier>,
}

impl PostgresStore {
    /// Connects, brings the schema up to date and starts to listen.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for an option outside its range, a number of partitions that is
    /// not the schema's, a schema with tables of another program, a pooler that was not named, a server older than
    /// Postgres 14, or a user, password or database that the server refuses; [`StoreError::SchemaMismatch`] for a
    /// schema of a newer version, or of an older one under [`SchemaPolicy::Require`];
    /// [`StoreError::Unavailable`] if the server cannot be reached, or cannot work now.
    pub async fn connect(options: PostgresOptions) -> Result<Self, StoreError> {
        let (options, servers, begin) = options.resolve()?;
        let route = Route::new(servers);
        let partitions = prepare(&options, &route, &begin)
            .await
            .map_err(|fault| fault.on_opening("preparing the schema"))?
            .partitions;
        let (hub, counters) = (WakeHub::new(), Arc::new(StoreCounters::default()));
        hub.let_rest(rest_between_looks(partitions));
        let patience = Patience::beyond(options.statement_timeout);
        let notifier = match (options.listen, options.pooler) {
            (Listen::On, Pooler::None) => Some(
                Notifier::start(Arc::clone(&route), options.schema.as_deref(), hub.clone(), patience).await,
            ),
            (Listen::Off, _) | (_, Pooler::Transaction) => None,
        };
        let (lanes, max_batch, max_queued) =
            (lanes(&options, partitions), options.max_batch, options.max_queued);
        let bounds = Bounds { lanes, max_batch, max_queued };
        let inner = Arc::new(Inner {
            one_by_one: OneByOne::new(&options),
            claims: Claims::new(&options),
            sweeps: Sweeps::default(),
            reads: Reads::new(&options),
            absent: Absent::default(),
            pool: Sessions::new(pools(&options, route), begin, patience),
            partitions,
            rules: options.rules,
            clock: options.clock,
            time_told: TimeTold::default(),
            hub,
            counters: Arc::clone(&counters),
            notifier,
        });
        Ok(Self {
            steps: Gatherer::new(partitions, bounds, StepCommitter(Arc::clone(&inner)), &counters),
            starts: Gatherer::new(partitions, bounds, StartCommitter(Arc::clone(&inner)), &counters),
            // Reads are gathered too, and commit nothing.
            reads: Gatherer::new(partitions, bounds, Reader(Arc::clone(&inner)), &Arc::default()),
            inner,
        })
    }

    /// What [`connect`](Self::connect) would do to the schema. Nothing is changed.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    pub async fn plan_migration(options: PostgresOptions) -> Result<Migration, StoreError> {
        let (options, servers, begin) = options.resolve()?;
        let look = async {
            let mut connection = Route::new(servers).connect().await?;
            server::check(&options, &mut connection, &begin).await?;
            let migration = schema::plan(&options, &mut connection, &begin).await?;
            connection.close().await?;
            Ok::<_, Fault>(migration)
        };
        look.await.map_err(|fault| fault.on_opening("planning a migration"))
    }

    /// Brings the schema up to date, all of it or none, and does no more. Whoever does so at the same time
    /// waits for one of them.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    pub async fn migrate(options: PostgresOptions) -> Result<Migration, StoreError> {
        let (mut options, servers, begin) = options.resolve()?;
        options.schema_policy = SchemaPolicy::Migrate;
        let prepared = prepare(&options, &Route::new(servers), &begin).await;
        Ok(prepared.map_err(|fault| fault.on_opening("migrating"))?.migration)
    }

    /// Over how many partitions the schema spreads its runs.
    pub fn partitions(&self) -> u16 {
        self.inner.partitions
    }
}

/// Looks at the server and brings the schema up to date, on a connection for that alone.
async fn prepare(options: &PostgresOptions, route: &Route, begin: &Begin) -> Result<Prepared, Fault> {
    let mut connection = route.connect().await?;
    server::check(options, &mut connection, begin).await?;
    let prepared = schema::prepare(options, &mut connection, begin).await?;
    connection.close().await?;
    Ok(prepared)
}

/// A look for work or for what is due asks each partition once. While looks find nothing and no hint comes they may drift
/// apart, so that those who wait for the same ask about four times a second together, however many partitions there are;
/// but who missed a hint never waits longer than half a minute.
fn rest_between_looks(partitions: u16) -> Duration {
    const ASKED_A_SECOND: u32 = 4;
    const LONGEST: Duration = Duration::from_secs(30);
    if partitions <= 1 {
        return Duration::ZERO;
    }
    (Duration::from_secs(1) * u32::from(partitions) / ASKED_A_SECOND).min(LONGEST)
}

/// A batch goes to one partition. Over several, more are in flight, since each may wait for a flush of its own.
fn lanes(options: &PostgresOptions, partitions: u16) -> usize {
    let spread = usize::from(partitions).min(options.max_connections as usize / 4);
    if partitions <= 1 { options.lanes } else { options.lanes.max(spread) }
}

fn pools(options: &PostgresOptions, route: Arc<Route>) -> Pools {
    let (pooler, max, patience) = (options.pooler, options.max_connections, options.acquire_timeout);
    Pools::new(Arc::clone(&route), move |connect| {
        let route = Arc::clone(&route);
        PgPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(patience)
            .after_connect(move |connection, _| {
                let route = Arc::clone(&route);
                Box::pin(async move {
                    if pooler == Pooler::None {
                        connection.execute(PIN_DURABILITY.in_session).await?;
                    }
                    route.check_for_pool(connection).await
                })
            })
            .connect_lazy_with(connect)
    })
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("partitions", &self.inner.partitions)
            .field("clock", &self.inner.clock)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn partition(&self, run_id: RunId) -> i16 {
        i16::try_from(run_id.partition(self.partitions)).unwrap_or(0)
    }

    fn all_partitions(&self) -> impl Iterator<Item = i16> + use<> {
        (0..self.partitions).filter_map(|partition| i16::try_from(partition).ok())
    }

    /// The moment to hand to statements; nothing where the database tells the time.
    fn clock_now(&self) -> Option<Moment> {
        self.clock.as_ref().map(|clock| Moment(clock.now()))
    }

    /// Tells those who wait what a committed operation changed.
    fn announce(&self, before: &Run, effects: &Effects) {
        if let Some(run) = &effects.run {
            self.announce_run(run, before.state);
        }
        for write in &effects.attempts {
            if let AttemptWrite::Insert(Attempt { deadline_at: Some(at), .. }) = write {
                self.hub.note_deadline(*at);
            }
        }
    }

    fn announce_run(&self, run: &Run, before: RunState) {
        if run.state == RunState::Pending && before != RunState::Pending {
            self.announce_topic(Topic::Queue(run.namespace.clone(), run.queue.clone()));
        } else if run.state.is_terminal() {
            self.announce_topic(Topic::Run(run.run_id));
        }
        if let Some(at) = run.attention_at() {
            self.hub.note_deadline(at);
        }
    }

    fn announce_topic(&self, topic: Topic) {
        self.hub.announce(&topic);
        if let Some(notifier) = &self.notifier {
            notifier.tell(topic);
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn backend(&self) -> &'static str {
        "postgres"
    }

    fn wake_hub(&self) -> &WakeHub {
        &self.inner.hub
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            connections: Some(self.inner.pool.stats()),
            batches: Some(self.inner.counters.batches()),
            swept: self.inner.counters.repaired_by_claims(),
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.inner.now().await
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.start_runs(batch).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.read_run(namespace, run_id).await
    }

    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        // The reads that are in flight together are one statement.
        let reads = wanted.iter().map(|(namespace, run_id)| self.read_run(namespace, *run_id));
        Ok(futures::future::join_all(reads).await)
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.inner.list_runs(request).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.inner.count_runs(namespace, filter).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.inner.list_attempts(request).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.inner.cancel(&request).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.inner.requeue(&request).await
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        self.inner.claim(&request).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        self.inner.heartbeat(&batch).await
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.begin(request).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.complete(request).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.inner.fail_step(&request).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.inner.sleep(&request).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.finish(request).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.inner.fail_run(&request).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.inner.release(&request).await
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        self.inner.reap(limit).await
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        self.inner.next_due().await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.inner.queue_depths(namespace).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.inner.set_queue_state(&request).await
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        self.inner.delete_finished(request).await
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.examine().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.reads.close().await;
        self.starts.close().await;
        self.steps.close().await;
        if let Some(notifier) = &self.inner.notifier {
            notifier.stop().await;
        }
        self.inner.pool.close().await;
        Ok(())
    }
}
