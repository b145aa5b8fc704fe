//! Scripts: what is done to one run, a function of the seed and a number.

use std::time::Duration;

use kagzi_core::{
    AttemptScope, BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, FailRun, FailStep, Failure,
    FencingToken, Heartbeat, IdempotencyKey, Lease, ListAttempts, Namespace, NextStep, OperationId,
    PageRequest, Payload, QueueName, ReleaseRun, RequeueRun, RetryPolicy, Rules, RunId, Sleep, SleepUntil,
    StartRun, StepId, Store, StoreError, Then, WorkerId, WorkflowType,
};
use uuid::Builder;

use crate::scenario::Snapshot;

/// The moment in front of every id, in milliseconds: that of the default [`ManualClock`](kagzi_core::ManualClock).
pub(super) const MILLIS: u64 = 1_767_225_600_000;

const LEASE: Duration = Duration::from_secs(30);

/// The largest output, in bytes: several pages of any database.
const LARGEST: usize = 12_000;

/// The rules of crash rounds: failures are retried at once, so that no clock needs to be turned for scripts.
pub(super) fn rules() -> Rules {
    let default_retry = RetryPolicy { first_delay: Duration::ZERO, ..RetryPolicy::default() };
    Rules { default_retry, ..Rules::default() }
}

/// One operation of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Starts the run and two siblings in one batch.
    Start,
    Claim,
    Heartbeat,
    Begin(&'static str, u32),
    Complete(&'static str, u32),
    /// Completes the first step and begins the second.
    CompleteThenBegin(&'static str, u32, &'static str),
    CompleteThenFinish(&'static str, u32),
    Fail(&'static str, u32),
    Sleep(&'static str),
    Release,
    Cancel,
    FailRun,
    Requeue,
    CompleteRun,
}

use Operation as Op;

const PLAYS: [&[Operation]; 6] = [
    &[
        Op::Start,
        Op::Claim,
        Op::Begin("a", 1),
        Op::CompleteThenBegin("a", 1, "b"),
        Op::CompleteThenFinish("b", 1),
    ],
    &[
        Op::Start,
        Op::Claim,
        Op::Begin("a", 1),
        Op::Fail("a", 1),
        Op::Claim,
        Op::Begin("a", 2),
        Op::Complete("a", 2),
        Op::CompleteRun,
    ],
    &[
        Op::Start,
        Op::Claim,
        Op::Sleep("nap"),
        Op::Claim,
        Op::Begin("a", 1),
        Op::Release,
        Op::Claim,
        Op::Begin("a", 2),
        Op::CompleteThenFinish("a", 2),
    ],
    &[Op::Start, Op::Claim, Op::Begin("a", 1), Op::Cancel],
    &[
        Op::Start,
        Op::Claim,
        Op::Begin("a", 1),
        Op::Complete("a", 1),
        Op::FailRun,
        Op::Requeue,
        Op::Claim,
        Op::CompleteRun,
    ],
    &[
        Op::Start,
        Op::Claim,
        Op::Heartbeat,
        Op::Begin("a", 1),
        Op::CompleteThenBegin("a", 1, "b"),
        Op::Release,
    ],
];

/// How many operations the script of this number has.
pub(super) fn length(number: usize) -> usize {
    PLAYS[number % PLAYS.len()].len()
}

/// What happens to one run, from its start to its end, and to the siblings that are started with it.
#[derive(Clone, Debug)]
pub(super) struct Script {
    namespace: Namespace,
    /// Its own queue, so that its claims take its own run.
    queue: QueueName,
    seed: u64,
    play: &'static [Operation],
}

/// The rows of runs, each if it is there.
pub(super) type Rows = Vec<Option<Snapshot>>;

impl Script {
    /// The script of this number in a round.
    pub(super) fn new(round: &str, seed: u64, number: usize) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(round)?,
            queue: QueueName::new(format!("queue-{number}"))?,
            seed: seed.wrapping_mul(1_000_003).wrapping_add(number as u64),
            play: PLAYS[number % PLAYS.len()],
        })
    }

    /// How many operations it has.
    pub(super) fn len(&self) -> usize {
        self.play.len()
    }

    /// What it does, for people; `acknowledged` of it have been answered.
    pub(super) fn describe(&self, acknowledged: usize) -> String {
        let (done, rest) = self.play.split_at(acknowledged.min(self.play.len()));
        format!(
            "{}/{}: acknowledged {done:?}, in flight {:?}, never sent {:?}",
            self.namespace,
            self.queue,
            rest.first(),
            rest.get(1..).unwrap_or_default()
        )
    }

    fn random(&self, place: usize) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(31).wrapping_add(place as u64))
    }

    fn operation(&self, place: usize) -> OperationId {
        let mut random = self.random(place);
        let bytes: [u8; 10] = std::array::from_fn(|_| random.u8(..));
        OperationId::from_uuid(Builder::from_unix_timestamp_millis(MILLIS, &bytes).into_uuid())
    }

    fn payload(&self, place: usize) -> Payload {
        let mut random = self.random(place);
        let length = if random.u8(..4) == 0 { random.usize(..LARGEST) } else { random.usize(..200) };
        Payload::raw((0..length).map(|_| random.u8(..)).collect::<Vec<_>>())
    }

    /// The run, then its siblings, which wait in a queue that nobody claims from.
    pub(super) fn starts(&self) -> Result<Vec<StartRun>, StoreError> {
        let mut starts = Vec::new();
        for number in 0..3 {
            let queue = if number == 0 { self.queue.clone() } else { QueueName::new("siblings")? };
            let key = IdempotencyKey::new(format!("{}-{number}", self.queue))?;
            starts.push(StartRun {
                idempotency_key: (number != 1).then_some(key),
                operation: self.operation(1000 + number),
                ..StartRun::new(
                    self.namespace.clone(),
                    queue,
                    WorkflowType::new("crash")?,
                    self.payload(1000 + number),
                )
            });
        }
        Ok(starts)
    }

    /// The ids of the run and its siblings.
    pub(super) fn runs(&self) -> Result<Vec<RunId>, StoreError> {
        Ok(self.starts()?.iter().map(StartRun::run_id).collect())
    }

    /// The lease that the last claim before `place` gave: each claim makes the token larger by one.
    fn lease(&self, place: usize) -> Result<Lease, StoreError> {
        let claims = self.play[..place].iter().filter(|operation| **operation == Op::Claim).count();
        Ok(Lease {
            namespace: self.namespace.clone(),
            run_id: self.runs()?[0],
            worker_id: WorkerId::new("w")?,
            fencing_token: FencingToken::new(i64::try_from(claims).unwrap_or(i64::MAX))?,
        })
    }

    fn claim(&self, place: usize) -> Result<Claim, StoreError> {
        Ok(Claim {
            namespace: self.namespace.clone(),
            queues: vec![self.queue.clone()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w")?,
            lease_length: LEASE,
            limit: 10,
            steps_limit: 100,
            operation: self.operation(place),
        })
    }

    fn complete_step(&self, place: usize, step: &str, attempt: u32) -> Result<CompleteStep, StoreError> {
        Ok(CompleteStep {
            lease: self.lease(place)?,
            step_id: StepId::new(step)?,
            attempt,
            output: self.payload(place),
            then: Then::Nothing,
            operation: self.operation(place),
        })
    }

    /// Sends the operation at `place`, and gives the answer as text.
    pub(super) async fn send(&self, store: &dyn Store, place: usize) -> Result<String, StoreError> {
        let operation = self.operation(place);
        let (lease, failure) = (self.lease(place)?, Failure::retryable("crash", "on purpose"));
        let (namespace, run_id) = (self.namespace.clone(), lease.run_id);
        let text = match self.play[place] {
            Op::Start => format!("{:?}", store.start(self.starts()?).await?),
            Op::Claim => format!("{:?}", store.claim(self.claim(place)?).await?),
            Op::Heartbeat => {
                let verdicts = store.heartbeat(vec![Heartbeat { lease, lease_length: 2 * LEASE }]).await?;
                format!("{:?}", verdicts.into_iter().collect::<Result<Vec<_>, _>>()?)
            }
            Op::Begin(step, _) => {
                let step = NextStep::new(StepId::new(step)?, 0);
                format!("{:?}", store.begin_step(BeginStep { lease, step, operation }).await?)
            }
            Op::Complete(step, attempt) => {
                format!("{:?}", store.complete_step(self.complete_step(place, step, attempt)?).await?)
            }
            Op::CompleteThenBegin(step, attempt, next) => {
                let then = Then::Begin(NextStep::new(StepId::new(next)?, 1));
                let request = CompleteStep { then, ..self.complete_step(place, step, attempt)? };
                format!("{:?}", store.complete_step(request).await?)
            }
            Op::CompleteThenFinish(step, attempt) => {
                let then = Then::CompleteRun(self.payload(place + 500));
                let request = CompleteStep { then, ..self.complete_step(place, step, attempt)? };
                format!("{:?}", store.complete_step(request).await?)
            }
            Op::Fail(step, attempt) => {
                let step_id = StepId::new(step)?;
                let request = FailStep { lease, step_id, attempt, failure, operation };
                format!("{:?}", store.fail_step(request).await?)
            }
            Op::Sleep(step) => {
                let (step_id, until) = (StepId::new(step)?, SleepUntil::After(Duration::ZERO));
                let request = Sleep { lease, step_id, position: 0, until, operation };
                format!("{:?}", store.sleep(request).await?)
            }
            Op::Release => format!("{:?}", store.release(ReleaseRun { lease, operation }).await?),
            Op::Cancel => {
                let request = CancelRun { namespace, run_id, reason: "crash".to_owned(), operation };
                format!("{:?}", store.cancel(request).await?)
            }
            Op::FailRun => {
                let failure = Failure::non_retryable("crash", "on purpose");
                format!("{:?}", store.fail_run(FailRun { lease, failure, operation }).await?)
            }
            Op::Requeue => {
                format!("{:?}", store.requeue(RequeueRun { namespace, run_id, operation }).await?)
            }
            Op::CompleteRun => {
                let output = self.payload(place);
                format!("{:?}", store.complete_run(CompleteRun { lease, output, operation }).await?)
            }
        };
        Ok(text)
    }

    /// What the store holds of the run and its siblings.
    pub(super) async fn rows(&self, store: &dyn Store) -> Result<Rows, StoreError> {
        snapshots(store, &self.namespace, &self.runs()?).await
    }

    /// Where its runs are: the round's own namespace.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// What the store holds of runs.
pub(super) async fn snapshots(
    store: &dyn Store,
    namespace: &Namespace,
    runs: &[RunId],
) -> Result<Rows, StoreError> {
    let mut rows = Vec::new();
    for &run_id in runs {
        let record = match store.get_run(namespace, run_id).await {
            Ok(record) => record,
            Err(StoreError::RunNotFound { .. }) => {
                rows.push(None);
                continue;
            }
            Err(error) => return Err(error),
        };
        let (namespace, scope) = (namespace.clone(), AttemptScope::All);
        let request = ListAttempts { namespace, run_id, scope, page: PageRequest::first(1000) };
        let attempts = store.list_attempts(&request).await?.items;
        rows.push(Some(Snapshot { record, attempts }));
    }
    Ok(rows)
}
