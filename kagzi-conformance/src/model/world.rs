//! What a random workload knows of the store it plays with, and the next call that it plans.
//!
//! Every id is counted, every choice comes from the dice: the same dice over the same answers plan the
//! same calls, so a seed repeats a failure.

use std::time::Duration;

use fastrand::Rng;
use kagzi_core::{
    AttemptScope, BeginOutcome, BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, CompleteStepOutcome,
    DeleteFinished, FailRun, FailStep, Failure, FencingToken, Heartbeat, IdempotencyKey, Lease, ListAttempts,
    ListRuns, Namespace, NextStep, OperationId, PageRequest, Payload, Priority, QueueChange, QueueName,
    ReleaseRun, RequeueRun, RetryPolicy, RunFilter, RunId, RunState, SetQueueState, Sleep, SleepUntil,
    StartAt, StartRun, StepId, Then, Timestamp, WorkerId, WorkflowType,
};
use uuid::Builder;

use super::theme::{Move, Theme};
use crate::record::{Answer, Call, Reply};
use crate::scenario::{namespace, queue, step_id, worker, workflow_type};
use crate::violation::Violation;

/// How many of the writes that were sent may be sent again.
const REMEMBERED: usize = 24;

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    Send(Box<Call>),
    /// Turn the clock forward.
    Turn(Duration),
}

/// An attempt that somebody was told to execute.
#[derive(Clone, Debug)]
struct Open {
    lease: Lease,
    step_id: StepId,
    attempt: u32,
}

/// The names in use, and what the answers told.
#[derive(Clone, Debug)]
pub(crate) struct World {
    theme: Theme,
    namespaces: Vec<Namespace>,
    queues: Vec<QueueName>,
    types: Vec<WorkflowType>,
    workers: Vec<WorkerId>,
    keys: Vec<IdempotencyKey>,
    tasks: Vec<StepId>,
    sleeps: Vec<StepId>,
    runs: Vec<(Namespace, RunId)>,
    leases: Vec<Lease>,
    open: Vec<Open>,
    sent: Vec<Call>,
    operations: u64,
}

impl World {
    pub(crate) fn new(theme: Theme) -> Result<Self, Violation> {
        let key = |text: &str| {
            IdempotencyKey::new(text).map_err(|error| Violation::refused("making a key", &error))
        };
        Ok(Self {
            theme,
            namespaces: ["acme", "globex"]
                .iter()
                .take(theme.namespaces)
                .map(namespace)
                .collect::<Result<_, _>>()?,
            queues: ["orders", "mail"].iter().map(queue).collect::<Result<_, _>>()?,
            types: ["ship", "bill"].iter().map(workflow_type).collect::<Result<_, _>>()?,
            workers: ["w1", "w2", "w3"].iter().map(worker).collect::<Result<_, _>>()?,
            keys: ["k1", "k2", "k3"].iter().map(|text| key(text)).collect::<Result<_, _>>()?,
            tasks: ["a", "b", "c"].iter().map(step_id).collect::<Result<_, _>>()?,
            sleeps: ["y", "z"].iter().map(step_id).collect::<Result<_, _>>()?,
            runs: Vec::new(),
            leases: Vec::new(),
            open: Vec::new(),
            sent: Vec::new(),
            operations: 0,
        })
    }

    /// Every run that an answer named.
    pub(crate) fn runs(&self) -> &[(Namespace, RunId)] {
        &self.runs
    }

    /// The namespaces in use.
    pub(crate) fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Begins with an empty store, as far as this world knows. Operation ids go on.
    pub(crate) fn forget(&mut self) {
        self.runs.clear();
        self.leases.clear();
        self.open.clear();
        self.sent.clear();
    }

    /// What ends every run that this world knows of and empties the store.
    pub(crate) fn farewell(&mut self) -> Vec<Call> {
        let mut calls: Vec<Call> = Vec::new();
        for (namespace, run_id) in self.runs.clone() {
            let operation = self.operation();
            calls.push(Call::Cancel(CancelRun { namespace, run_id, reason: String::new(), operation }));
        }
        calls.push(Call::DeleteFinished(DeleteFinished {
            namespace: None,
            states: Vec::new(),
            before: Timestamp::MAX,
            limit: 10_000,
        }));
        calls
    }

    /// Takes in what a call answered.
    pub(crate) fn learn(&mut self, call: &Call, answer: &Answer) {
        match (call, answer) {
            (Call::Start(batch), Ok(Reply::Started(started))) => {
                for (start, started) in batch.iter().zip(started) {
                    let run = (start.namespace.clone(), started.run_id);
                    if !self.runs.contains(&run) {
                        self.runs.push(run);
                    }
                }
            }
            (_, Ok(Reply::Claimed(claimed))) => {
                self.leases.extend(claimed.iter().map(|claimed| claimed.lease.lease.clone()));
            }
            (Call::BeginStep(begin), Ok(Reply::Begun(outcome))) => {
                self.opened(&begin.lease, &begin.step.step_id, outcome);
            }
            (
                Call::CompleteStep(CompleteStep { lease, then: Then::Begin(next), .. }),
                Ok(Reply::StepCompleted(CompleteStepOutcome::RecordedAndNext(outcome))),
            ) => self.opened(lease, &next.step_id, outcome),
            _ => {}
        }
    }

    fn opened(&mut self, lease: &Lease, step_id: &StepId, outcome: &BeginOutcome) {
        if let BeginOutcome::Execute { attempt } | BeginOutcome::InProgress { attempt } = outcome {
            self.open.push(Open { lease: lease.clone(), step_id: step_id.clone(), attempt: *attempt });
        }
    }

    /// Plans what comes next at `now`.
    pub(crate) fn plan(&mut self, dice: &mut Rng, now: Timestamp) -> Plan {
        let chosen = self.choose(dice);
        if chosen == Move::Turn {
            const TURNS: [u64; 6] = [1, 1_000_000, 9_999_999, 10_000_000, 31_000_000, 90_000_000];
            return Plan::Turn(Duration::from_micros(any(dice, &TURNS)));
        }
        // What a move needs may not be there yet; then there is something to start or to claim.
        let call = match self.call(chosen, dice, now) {
            Some(call) => call,
            None if self.runs.is_empty() || dice.u8(..4) == 0 => self.start(dice, now),
            None => self.claim(dice),
        };
        let is_write = !matches!(
            call,
            Call::GetRun(..)
                | Call::ListRuns(_)
                | Call::CountRuns(..)
                | Call::ListAttempts(_)
                | Call::NextDue
                | Call::QueueDepths(_)
                | Call::Reap(_)
        );
        if is_write && chosen != Move::Again {
            if self.sent.len() == REMEMBERED {
                self.sent.remove(0);
            }
            self.sent.push(call.clone());
        }
        Plan::Send(Box::new(call))
    }

    fn choose(&self, dice: &mut Rng) -> Move {
        let sum: u32 = self.theme.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = dice.u32(..sum);
        for (chosen, weight) in self.theme.weights {
            if left < *weight {
                return *chosen;
            }
            left -= weight;
        }
        Move::Look
    }

    fn call(&mut self, chosen: Move, dice: &mut Rng, now: Timestamp) -> Option<Call> {
        Some(match chosen {
            Move::Start => self.start(dice, now),
            Move::Claim => self.claim(dice),
            Move::Heartbeat => self.heartbeat(dice)?,
            Move::Begin => {
                let lease = self.lease(dice)?;
                let step = self.next_step(dice);
                Call::BeginStep(BeginStep { lease, step, operation: self.operation() })
            }
            Move::Complete => self.complete(dice, Then::Nothing)?,
            Move::CompleteAndBegin => {
                let next = self.next_step(dice);
                self.complete(dice, Then::Begin(next))?
            }
            Move::CompleteAndFinish => {
                let output = payload(dice);
                self.complete(dice, Then::CompleteRun(output))?
            }
            Move::Fail => {
                let Open { lease, step_id, attempt } = recent(dice, &self.open)?;
                let failure = failure(dice);
                Call::FailStep(FailStep { lease, step_id, attempt, failure, operation: self.operation() })
            }
            Move::Sleep => self.sleep(dice, now)?,
            Move::CompleteRun => {
                let lease = self.lease(dice)?;
                let output = payload(dice);
                Call::CompleteRun(CompleteRun { lease, output, operation: self.operation() })
            }
            Move::FailRun => {
                let lease = self.lease(dice)?;
                let failure = failure(dice);
                Call::FailRun(FailRun { lease, failure, operation: self.operation() })
            }
            Move::Release => {
                Call::Release(ReleaseRun { lease: self.lease(dice)?, operation: self.operation() })
            }
            Move::Cancel => {
                let (namespace, run_id) = self.run(dice)?;
                let reason = any(dice, &["", "no longer wanted"]).to_owned();
                Call::Cancel(CancelRun { namespace, run_id, reason, operation: self.operation() })
            }
            Move::Requeue => {
                let (namespace, run_id) = self.run(dice)?;
                Call::Requeue(RequeueRun { namespace, run_id, operation: self.operation() })
            }
            // With a limit below what is due, which of several runs that are overdue alike are treated
            // is the store's choice; the cases of `reap` ask about limits.
            Move::Reap => Call::Reap(1000),
            Move::Delete => Call::DeleteFinished(DeleteFinished {
                namespace: if dice.bool() { Some(any(dice, &self.namespaces)) } else { None },
                states: if dice.bool() { Vec::new() } else { vec![RunState::Completed] },
                before: now.saturating_sub(Duration::from_secs(any(dice, &[0, 10, 60]))),
                limit: 1000,
            }),
            Move::SetQueue => self.set_queue(dice),
            Move::Look => {
                let (namespace, run_id) = self.run(dice)?;
                if dice.bool() {
                    Call::GetRun(namespace, run_id)
                } else {
                    let scope = if dice.u8(..4) == 0 { AttemptScope::Latest } else { AttemptScope::All };
                    Call::ListAttempts(ListAttempts {
                        namespace,
                        run_id,
                        scope,
                        page: PageRequest::first(1000),
                    })
                }
            }
            Move::List => self.list(dice),
            Move::Again => recent(dice, &self.sent)?,
            Move::Turn => return None,
        })
    }

    fn start(&mut self, dice: &mut Rng, now: Timestamp) -> Call {
        let count = if dice.u8(..6) == 0 { dice.usize(2..4) } else { 1 };
        Call::Start((0..count).map(|_| self.one_start(dice, now)).collect())
    }

    fn one_start(&mut self, dice: &mut Rng, now: Timestamp) -> StartRun {
        let seconds = |dice: &mut Rng| Duration::from_secs(any(dice, &[1, 10, 30]));
        StartRun {
            idempotency_key: if dice.u8(..3) == 0 { Some(any(dice, &self.keys)) } else { None },
            priority: match dice.u8(..8) {
                0 => Priority::MAX,
                1 => Priority::MIN,
                _ => Priority::default(),
            },
            start_at: match dice.u8(..8) {
                0 => StartAt::After(seconds(dice)),
                1 => StartAt::At(now.saturating_add(seconds(dice))),
                _ => StartAt::Now,
            },
            run_timeout: if dice.u8(..5) == 0 { Some(seconds(dice) * 3) } else { None },
            retry: if dice.u8(..4) == 0 { Some(policy(dice)) } else { None },
            operation: self.operation(),
            ..StartRun::new(
                any(dice, &self.namespaces),
                any(dice, &self.queues),
                any(dice, &self.types),
                if dice.u8(..3) == 0 { payload(dice) } else { Payload::json("{}") },
            )
        }
    }

    fn claim(&mut self, dice: &mut Rng) -> Call {
        let both = dice.u8(..2) == 0;
        Call::Claim(Claim {
            namespace: any(dice, &self.namespaces),
            queues: if both { self.queues.clone() } else { vec![any(dice, &self.queues)] },
            workflow_types: if dice.u8(..5) == 0 { vec![any(dice, &self.types)] } else { Vec::new() },
            worker_id: any(dice, &self.workers),
            lease_length: lease_length(dice),
            limit: any(dice, &[1, 1, 2, 10]),
            steps_limit: 1000,
            operation: self.operation(),
        })
    }

    fn heartbeat(&mut self, dice: &mut Rng) -> Option<Call> {
        let count = if dice.u8(..3) == 0 { 2 } else { 1 };
        let batch: Option<Vec<Heartbeat>> = (0..count)
            .map(|_| Some(Heartbeat { lease: self.lease(dice)?, lease_length: lease_length(dice) }))
            .collect();
        batch.map(Call::Heartbeat)
    }

    fn complete(&mut self, dice: &mut Rng, then: Then) -> Option<Call> {
        let Open { lease, step_id, attempt } = recent(dice, &self.open)?;
        let then = match then {
            // A step cannot be its own sequel.
            Then::Begin(next) if next.step_id == step_id => Then::Nothing,
            other => other,
        };
        let output = payload(dice);
        Some(Call::CompleteStep(CompleteStep {
            lease,
            step_id,
            attempt,
            output,
            then,
            operation: self.operation(),
        }))
    }

    fn sleep(&mut self, dice: &mut Rng, now: Timestamp) -> Option<Call> {
        let length = Duration::from_micros(any(dice, &[0, 1, 10_000_000, 60_000_000]));
        let step_id = if dice.u8(..12) == 0 { any(dice, &self.tasks) } else { any(dice, &self.sleeps) };
        Some(Call::Sleep(Sleep {
            lease: self.lease(dice)?,
            step_id,
            position: dice.u32(..6),
            until: if dice.bool() {
                SleepUntil::After(length)
            } else {
                SleepUntil::At(now.saturating_add(length).saturating_sub(Duration::from_secs(5)))
            },
            operation: self.operation(),
        }))
    }

    fn list(&mut self, dice: &mut Rng) -> Call {
        let namespace = any(dice, &self.namespaces);
        let filter = RunFilter {
            states: match dice.u8(..3) {
                0 => vec![any(dice, &RunState::ALL)],
                1 => vec![RunState::Pending, RunState::Running],
                _ => Vec::new(),
            },
            workflow_type: if dice.u8(..4) == 0 { Some(any(dice, &self.types)) } else { None },
            queue: if dice.u8(..4) == 0 { Some(any(dice, &self.queues)) } else { None },
            ..RunFilter::default()
        };
        match dice.u8(..4) {
            0 => Call::CountRuns(namespace, filter),
            1 => Call::NextDue,
            2 => Call::QueueDepths(namespace),
            _ => {
                let page = PageRequest::first(any(dice, &[1, 3, 1000]));
                Call::ListRuns(ListRuns { namespace, filter, page })
            }
        }
    }

    fn set_queue(&mut self, dice: &mut Rng) -> Call {
        let change = if dice.u8(..3) == 0 {
            QueueChange::Pause { reason: any(dice, &["", "away for a while"]).to_owned() }
        } else {
            QueueChange::Resume
        };
        Call::SetQueueState(SetQueueState {
            namespace: any(dice, &self.namespaces),
            queue: any(dice, &self.queues),
            change,
            operation: self.operation(),
        })
    }

    fn next_step(&mut self, dice: &mut Rng) -> NextStep {
        let at = dice.usize(..self.tasks.len());
        let position = u32::try_from(at).unwrap_or_default();
        let step_id = if dice.u8(..16) == 0 { any(dice, &self.sleeps) } else { self.tasks[at].clone() };
        NextStep {
            retry: if dice.u8(..4) == 0 { Some(policy(dice)) } else { None },
            timeout: (dice.u8(..4) == 0).then(|| Duration::from_secs(any(dice, &[1, 10]))),
            ..NextStep::new(step_id, position)
        }
    }

    fn run(&self, dice: &mut Rng) -> Option<(Namespace, RunId)> {
        let (namespace, run_id) = recent_of(dice, &self.runs, self.theme.runs)?;
        // Now and then with a namespace that is not the run's.
        let namespace = if dice.u8(..16) == 0 { any(dice, &self.namespaces) } else { namespace };
        Some((namespace, run_id))
    }

    fn lease(&self, dice: &mut Rng) -> Option<Lease> {
        let mut lease = recent_of(dice, &self.leases, self.theme.runs)?;
        match dice.u8(..40) {
            0 => lease.worker_id = any(dice, &self.workers),
            1 => lease.fencing_token = FencingToken::new(lease.fencing_token.get() + 1).ok()?,
            2 => lease.namespace = any(dice, &self.namespaces),
            _ => {}
        }
        Some(lease)
    }

    /// The next operation id: a `UUIDv7`, later in order than the ones before.
    fn operation(&mut self) -> OperationId {
        const FIRST_MILLIS: u64 = 1_767_225_600_000;
        self.operations += 1;
        let mut rest = [0; 10];
        // Different routing bits, so that the runs spread over the partitions.
        rest[..8].copy_from_slice(&self.operations.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let id = Builder::from_unix_timestamp_millis(FIRST_MILLIS + self.operations, &rest).into_uuid();
        OperationId::from_uuid(id)
    }
}

fn any<T: Clone>(dice: &mut Rng, of: &[T]) -> T {
    of[dice.usize(..of.len())].clone()
}

/// One of the latest few, mostly, so that what was begun is gone on with.
fn recent<T: Clone>(dice: &mut Rng, of: &[T]) -> Option<T> {
    recent_of(dice, of, 6)
}

fn recent_of<T: Clone>(dice: &mut Rng, of: &[T], few: usize) -> Option<T> {
    if of.is_empty() {
        return None;
    }
    let reach = if dice.u8(..16) == 0 { of.len() } else { few.min(of.len()) };
    Some(of[of.len() - 1 - dice.usize(..reach)].clone())
}

fn payload(dice: &mut Rng) -> Payload {
    let bytes: Vec<u8> = (0..dice.usize(..12)).map(|_| dice.u8(..)).collect();
    if dice.bool() { Payload::raw(bytes) } else { Payload::json(dice.u32(..).to_string()) }
}

fn failure(dice: &mut Rng) -> Failure {
    match dice.u8(..6) {
        0 => Failure::non_retryable("fatal", "do not try again"),
        1 => Failure::retryable("never_again", "the code forbids it"),
        _ => Failure { details: Some(payload(dice)), ..Failure::retryable("hiccup", "try again") },
    }
}

fn policy(dice: &mut Rng) -> RetryPolicy {
    RetryPolicy {
        max_attempts: any(dice, &[1, 2, 5]),
        first_delay: Duration::from_secs(any(dice, &[0, 1, 10])),
        factor: any(dice, &[1.0, 2.0]),
        max_delay: Duration::from_secs(30),
        jitter: any(dice, &[0.0, 0.5]),
        non_retryable_codes: Vec::new(),
    }
}

fn lease_length(dice: &mut Rng) -> Duration {
    Duration::from_secs(any(dice, &[1, 10, 30, 60]))
}
