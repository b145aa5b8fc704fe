//! The small world whose orders are all tried: two workers, a reaper, a client, a clock, one run of two
//! steps.

use std::hash::{DefaultHasher, Hash, Hasher};

use kagzi_core::{
    BeginOutcome, BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, CompleteStepOutcome, Heartbeat,
    Lease, NextStep, OperationId, Payload, StartRun, StepId, Then, WorkerId,
};
use uuid::Builder;

use crate::record::{Answer, Call, Reply};
use crate::scenario::{LEASE, Scenario, step_id, worker};
use crate::violation::Violation;

/// One move of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Action {
    /// A worker asks for a run.
    Claim(usize),
    /// A worker goes on with what it holds.
    GoOn(usize),
    /// A worker extends its lease.
    Beat(usize),
    /// What a worker sent last arrives a second time.
    Late(usize),
    /// A worker dies and comes back under its name, knowing nothing.
    Crash(usize),
    Reap,
    Cancel,
    /// The clock is turned by the length of a lease.
    Turn,
}

/// How often each move may come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) claims: u8,
    pub(super) beats: u8,
    pub(super) crashes: u8,
    pub(super) reaps: u8,
    pub(super) turns: u8,
}

/// The names in use. Each play has its own, so that many can share a store.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) start: StartRun,
    workers: [WorkerId; 2],
    steps: [StepId; 2],
    play: u64,
}

impl Names {
    pub(super) fn new(s: &Scenario, play: u64) -> Result<Self, Violation> {
        Self::of(s.start_request(), play)
    }

    pub(super) fn of(start: StartRun, play: u64) -> Result<Self, Violation> {
        Ok(Self {
            start: StartRun { operation: operation(play, 0), ..start },
            workers: [worker("w1")?, worker("w2")?],
            steps: [step_id("a")?, step_id("b")?],
            play,
        })
    }

    fn id(&self, number: u8) -> OperationId {
        operation(self.play, number)
    }
}

fn operation(play: u64, number: u8) -> OperationId {
    const FIRST_MILLIS: u64 = 1_767_225_600_000;
    let mut rest = [0; 10];
    rest[0] = number;
    rest[1..9].copy_from_slice(&play.to_be_bytes());
    OperationId::from_uuid(Builder::from_unix_timestamp_millis(FIRST_MILLIS + play, &rest).into_uuid())
}

/// Where a worker stands in the program `a`, then `b`, then the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Begin(usize),
    Complete(usize, u32),
    Finish,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    pub(super) lease: Option<Lease>,
    at: At,
    /// What it sent last, and the answer, for [`Action::Late`].
    pub(super) last: Option<(Call, Answer)>,
    claims: u8,
    beats: u8,
    crashes: u8,
}

/// Everything but the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Actors {
    pub(super) workers: [Worker; 2],
    reaps: u8,
    pub(super) turns: u8,
    cancelled: bool,
    /// How many operation ids were used.
    ids: u8,
}

impl Actors {
    pub(super) fn new() -> Self {
        let worker = Worker { lease: None, at: At::Begin(0), last: None, claims: 0, beats: 0, crashes: 0 };
        Self { workers: [worker.clone(), worker], reaps: 0, turns: 0, cancelled: false, ids: 0 }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Worker { lease, at, last, claims, beats, crashes } in &self.workers {
            (lease.as_ref().map(|lease| lease.fencing_token), at, last.is_some()).hash(&mut hasher);
            (claims, beats, crashes).hash(&mut hasher);
        }
        (self.reaps, self.turns, self.cancelled, self.ids).hash(&mut hasher);
        hasher.finish()
    }

    /// What may come next.
    pub(super) fn actions(&self, bounds: Bounds) -> Vec<Action> {
        let mut actions = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            if worker.lease.is_some() {
                actions.push(Action::GoOn(number));
                actions.extend((worker.beats < bounds.beats).then_some(Action::Beat(number)));
                actions.extend((worker.crashes < bounds.crashes).then_some(Action::Crash(number)));
            } else if worker.claims < bounds.claims {
                actions.push(Action::Claim(number));
            }
            actions.extend(worker.last.is_some().then_some(Action::Late(number)));
        }
        actions.extend((self.reaps < bounds.reaps).then_some(Action::Reap));
        actions.extend((!self.cancelled).then_some(Action::Cancel));
        actions.extend((self.turns < bounds.turns).then_some(Action::Turn));
        actions
    }

    /// The call that an action makes, if it makes one.
    pub(super) fn call(&self, names: &Names, action: Action) -> Option<Call> {
        let fresh = names.id(self.ids + 1);
        match action {
            Action::Claim(number) => Some(Call::Claim(Claim {
                namespace: names.start.namespace.clone(),
                queues: vec![names.start.queue.clone()],
                workflow_types: Vec::new(),
                worker_id: names.workers[number].clone(),
                lease_length: LEASE,
                limit: 1,
                steps_limit: 100,
                operation: fresh,
            })),
            Action::GoOn(number) => self.workers[number].next_call(names, fresh),
            Action::Beat(number) => {
                let lease = self.workers[number].lease.clone()?;
                Some(Call::Heartbeat(vec![Heartbeat { lease, lease_length: LEASE }]))
            }
            Action::Late(number) => self.workers[number].last.as_ref().map(|(call, _)| call.clone()),
            Action::Reap => Some(Call::Reap(10)),
            Action::Cancel => Some(Call::Cancel(CancelRun {
                namespace: names.start.namespace.clone(),
                run_id: names.start.run_id(),
                reason: String::new(),
                operation: fresh,
            })),
            Action::Crash(_) | Action::Turn => None,
        }
    }

    /// Takes in what came of an action.
    pub(super) fn learn(&mut self, action: Action, sent: Option<(Call, Answer)>) {
        match action {
            Action::Claim(number) | Action::GoOn(number) => {
                self.ids += 1;
                let worker = &mut self.workers[number];
                if let Some((call, answer)) = sent {
                    worker.heard(&call, &answer);
                    // A claim that is carried out again when its worker has forgotten it only leases a
                    // run to nobody; that is what a crash is.
                    worker.last =
                        (answer.is_ok() && action != Action::Claim(number)).then_some((call, answer));
                }
                worker.claims += u8::from(action == Action::Claim(number));
            }
            Action::Beat(number) => {
                let worker = &mut self.workers[number];
                worker.beats += 1;
                if let Some((_, Ok(Reply::Beats(verdicts)))) = sent
                    && verdicts.iter().any(Result::is_err)
                {
                    worker.lease = None;
                }
            }
            Action::Late(number) => self.workers[number].last = None,
            Action::Crash(number) => {
                let worker = &mut self.workers[number];
                worker.lease = None;
                worker.crashes += 1;
            }
            Action::Reap => self.reaps += 1,
            Action::Cancel => {
                self.ids += 1;
                self.cancelled = true;
            }
            Action::Turn => self.turns += 1,
        }
    }
}

impl Worker {
    fn next_call(&self, names: &Names, operation: OperationId) -> Option<Call> {
        let lease = self.lease.clone()?;
        let step = |number: usize| NextStep::new(names.steps[number].clone(), u32::from(number > 0));
        let output = |text: &'static str| Payload::json(format!("\"{text} of {}\"", lease.fencing_token));
        Some(match self.at {
            At::Begin(number) => Call::BeginStep(BeginStep { step: step(number), operation, lease }),
            At::Complete(number, attempt) => Call::CompleteStep(CompleteStep {
                step_id: names.steps[number].clone(),
                attempt,
                output: output("output"),
                then: match number {
                    0 => Then::Begin(step(1)),
                    _ => Then::CompleteRun(output("result")),
                },
                operation,
                lease,
            }),
            At::Finish => Call::CompleteRun(CompleteRun { output: output("result"), operation, lease }),
        })
    }

    fn heard(&mut self, call: &Call, answer: &Answer) {
        match (call, answer) {
            (Call::Claim(_), Ok(Reply::Claimed(claimed))) => {
                self.lease = claimed.first().map(|claimed| claimed.lease.lease.clone());
                self.at = At::Begin(0);
            }
            (Call::BeginStep(_), Ok(Reply::Begun(outcome))) => {
                let number = if let At::Begin(number) = self.at { number } else { 0 };
                self.begun(number, outcome);
            }
            (
                Call::CompleteStep(_),
                Ok(Reply::StepCompleted(CompleteStepOutcome::RecordedAndNext(outcome))),
            ) => self.begun(1, outcome),
            // The run is finished, or the lease is lost.
            _ => self.lease = None,
        }
    }

    fn begun(&mut self, number: usize, outcome: &BeginOutcome) {
        match outcome {
            BeginOutcome::Execute { attempt } => self.at = At::Complete(number, *attempt),
            BeginOutcome::Memoized { .. } if number == 0 => self.at = At::Begin(1),
            BeginOutcome::Memoized { .. } => self.at = At::Finish,
            // Told so, a worker waits for whoever is at it, which here is its own late call.
            BeginOutcome::InProgress { .. } => self.lease = None,
        }
    }
}
