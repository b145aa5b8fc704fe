//! Each operation of a store, alone and with others in flight.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use kagzi_core::{
    BeginOutcome, BeginStep, CompleteRun, CompleteStep, FailStep, Failure, Heartbeat, Lease, ListRuns,
    NextStep, OperationId, PageRequest, Payload, ReleaseRun, Rules, RunFilter, RunId, SharedStore, Sleep,
    SleepUntil, StartAt, StartRun, StoreError, Then,
};
use tokio::runtime::Runtime;

use super::arena::{Arena, Load, each};
use super::call::Call;
use super::{IN_FLIGHT, group, measured};
use crate::benched::Benched;
use crate::workload::{Names, unexpected};

/// How many runs a page of a listing holds.
const PAGE: u32 = 100;
/// Longer than any bench.
const LONG: Duration = Duration::from_hours(1);

/// An operation of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One run.
    Start,
    /// One run from a queue that holds as many as will be claimed.
    Claim,
    /// The first step of a run.
    Begin,
    /// A step, and nothing more.
    Complete,
    /// A step, and the next one begins.
    CompleteAndBegin,
    /// A step, to be tried again.
    Fail,
    /// For an hour.
    Sleep,
    /// Of one lease.
    Heartbeat,
    /// Of one lease.
    Release,
    /// Of a run without steps.
    CompleteRun,
    /// Of a run that nobody holds.
    Cancel,
    /// With its input.
    GetRun,
    /// The first page of a hundred.
    List,
    /// Of one due sleeper.
    Reap,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Start,
        Self::Claim,
        Self::Begin,
        Self::Complete,
        Self::CompleteAndBegin,
        Self::Fail,
        Self::Sleep,
        Self::Heartbeat,
        Self::Release,
        Self::CompleteRun,
        Self::Cancel,
        Self::GetRun,
        Self::List,
        Self::Reap,
    ];

    /// As it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Claim => "claim",
            Self::Begin => "begin",
            Self::Complete => "complete",
            Self::CompleteAndBegin => "complete_and_begin",
            Self::Fail => "fail",
            Self::Sleep => "sleep",
            Self::Heartbeat => "heartbeat",
            Self::Release => "release",
            Self::CompleteRun => "complete_run",
            Self::Cancel => "cancel",
            Self::GetRun => "get_run",
            Self::List => "list",
            Self::Reap => "reap",
        }
    }

    /// Makes `count` calls, and in the store what each consumes.
    pub async fn prepare(
        self,
        store: &SharedStore,
        names: &Names,
        payload: &Payload,
        count: usize,
    ) -> Result<Vec<Call>, StoreError> {
        let start = || names.start(payload);
        match self {
            Self::Start => Ok((0..count).map(|_| Call::Start(start())).collect()),
            Self::Claim => {
                start_all(store, count, start).await?;
                Ok((0..count).map(|_| Call::Claim(names.claim(1))).collect())
            }
            Self::Cancel => {
                let runs = start_all(store, count, start).await?;
                Ok(runs.into_iter().map(|run_id| Call::Cancel(names.cancel(run_id))).collect())
            }
            Self::GetRun => {
                let runs = start_all(store, count, start).await?;
                Ok(runs.into_iter().map(|run_id| Call::GetRun(names.namespace().clone(), run_id)).collect())
            }
            Self::List => {
                start_all(store, PAGE as usize, start).await?;
                let list = || ListRuns {
                    namespace: names.namespace().clone(),
                    filter: RunFilter::default(),
                    page: PageRequest::first(PAGE),
                };
                Ok((0..count).map(|_| Call::List(list())).collect())
            }
            Self::Reap => {
                let soon = StartAt::After(Duration::from_micros(1));
                start_all(store, count, || StartRun { start_at: soon, ..start() }).await?;
                Ok((0..count).map(|_| Call::Reap).collect())
            }
            Self::Complete | Self::CompleteAndBegin | Self::Fail => {
                let begun = begun(store, lease_all(store, names, payload, count).await?).await?;
                begun.into_iter().map(|(lease, attempt)| self.after_begin(lease, attempt, payload)).collect()
            }
            Self::Begin | Self::Sleep | Self::Heartbeat | Self::Release | Self::CompleteRun => {
                // What the run was started with is not what is measured.
                let leases = lease_all(store, names, &Payload::empty(), count).await?;
                leases.into_iter().map(|lease| self.under(lease, payload)).collect()
            }
        }
    }

    /// The call of a worker that holds a run.
    fn under(self, lease: Lease, payload: &Payload) -> Result<Call, StoreError> {
        let operation = OperationId::generate();
        Ok(match self {
            Self::Sleep => {
                let NextStep { step_id, position, .. } = step(0)?;
                Call::Sleep(Sleep { lease, step_id, position, until: SleepUntil::After(LONG), operation })
            }
            Self::Heartbeat => Call::Heartbeat(Heartbeat { lease, lease_length: LONG }),
            Self::Release => Call::Release(ReleaseRun { lease, operation }),
            Self::CompleteRun => Call::CompleteRun(CompleteRun { lease, output: payload.clone(), operation }),
            _ => Call::Begin(BeginStep { lease, step: step(0)?, operation }),
        })
    }

    /// The call of a worker that executes the first step.
    fn after_begin(self, lease: Lease, attempt: u32, payload: &Payload) -> Result<Call, StoreError> {
        let (step_id, operation) = (step(0)?.step_id, OperationId::generate());
        if self == Self::Fail {
            let failure = Failure::retryable("bench", "to be tried again");
            return Ok(Call::Fail(FailStep { lease, step_id, attempt, failure, operation }));
        }
        let then = if self == Self::CompleteAndBegin { Then::Begin(step(1)?) } else { Then::Nothing };
        let output = payload.clone();
        Ok(Call::CompleteStep(CompleteStep { lease, step_id, attempt, output, then, operation }))
    }
}

fn step(number: u32) -> Result<NextStep, StoreError> {
    Ok(NextStep::new(kagzi_core::StepId::new(format!("step-{number}"))?, number))
}

async fn start_all(
    store: &SharedStore,
    count: usize,
    start: impl Fn() -> StartRun,
) -> Result<Vec<RunId>, StoreError> {
    // As much as a claim hands over, or one gRPC message holds.
    let at_once = (Rules::default().max_claim_bytes / start().input.len_bytes().max(1)).clamp(1, 500);
    let mut runs = Vec::with_capacity(count);
    while runs.len() < count {
        let batch = (0..(count - runs.len()).min(at_once)).map(|_| start()).collect();
        runs.extend(store.start(batch).await?.into_iter().map(|started| started.run_id));
    }
    Ok(runs)
}

async fn lease_all(
    store: &SharedStore,
    names: &Names,
    payload: &Payload,
    count: usize,
) -> Result<Vec<Lease>, StoreError> {
    start_all(store, count, || names.start(payload)).await?;
    let mut leases = Vec::with_capacity(count);
    while leases.len() < count {
        let claimed = store.claim(names.claim(500)).await?;
        leases.extend(claimed.into_iter().map(|run| run.lease.lease));
    }
    Ok(leases)
}

async fn begun(store: &SharedStore, leases: Vec<Lease>) -> Result<Vec<(Lease, u32)>, StoreError> {
    each(leases, async |lease: Lease| {
        let begin = BeginStep { lease: lease.clone(), step: step(0)?, operation: OperationId::generate() };
        match store.begin_step(begin).await? {
            BeginOutcome::Execute { attempt } => Ok((lease, attempt)),
            _ => Err(unexpected()),
        }
    })
    .await
}

/// One group an operation.
pub fn bench(criterion: &mut Criterion, runtime: &Runtime, backend: &dyn Benched) {
    for operation in Operation::ALL {
        let mut arena = Arena::new(runtime, backend);
        let mut group = group(criterion, backend, &format!("operations/{}", operation.name()));
        for in_flight in IN_FLIGHT {
            let payload = Payload::json(r#"{"order":1234567}"#);
            let load = Load { operation, payload, in_flight, queue: None };
            group.throughput(Throughput::Elements(in_flight as u64));
            group.bench_function(in_flight.to_string(), |bencher| {
                bencher.iter_custom(|rounds| measured(arena.time(&load, rounds)));
            });
        }
        group.finish();
        measured(arena.close());
    }
}
