//! The rules of one run, without a clock: what time did (expired leases, timeouts, the end of sleeps) may have happened
//! at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kagzi_conformance::checker::Specification;
use kagzi_core::{DeadLetterReason, RunId, RunState};

use crate::event::{Answer, Begun, Call, Operation, Seen, Then};

/// One thing that befell a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) run: RunId,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// A call and what it answered.
    Heard {
        call: Call,
        answer: Answer,
        /// It was sent more than once, so what was begun by it may have gone on before it was answered.
        repeated: bool,
    },
    /// The engine gave the run up, for a timeout or as poison.
    GivenUp,
    /// What is recorded in the end.
    Recorded { seen: Seen, completed: BTreeMap<String, String> },
}

/// Where a run is, as far as no clock is needed to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Absent,
    Live,
    Ended(RunState),
}

/// The latest attempt of a step.
#[derive(Clone, Debug, PartialEq, Hash)]
enum Latest {
    Running {
        attempt: u32,
        token: i64,
    },
    Completed {
        attempt: u32,
        output: String,
    },
    /// Failed or abandoned.
    Closed {
        attempt: u32,
    },
}

/// A run as its rules see it.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Model {
    run: Option<RunId>,
    input: String,
    phase: Phase,
    token: i64,
    /// Whether the holder of the token may write, unless its lease has expired unseen.
    held: bool,
    /// It ended without a holder's word (cancelled, given up), so claims of which nobody heard may have come before.
    ended_unheld: bool,
    steps: BTreeMap<String, Latest>,
    /// Operations of which nobody heard, and which have happened: none happens twice.
    happened: BTreeSet<Operation>,
}

impl Model {
    pub(super) const fn absent() -> Self {
        Self {
            run: None,
            input: String::new(),
            phase: Phase::Absent,
            token: 0,
            held: false,
            ended_unheld: false,
            steps: BTreeMap::new(),
            happened: BTreeSet::new(),
        }
    }

    fn completed(&self) -> BTreeMap<String, String> {
        let outputs = self.steps.iter().filter_map(|(step, latest)| match latest {
            Latest::Completed { output, .. } => Some((step.clone(), output.clone())),
            Latest::Running { .. } | Latest::Closed { .. } => None,
        });
        outputs.collect()
    }

    /// Whether a write under this token is accepted.
    fn accepts(&self, token: i64) -> bool {
        self.phase == Phase::Live && self.held && self.token == token
    }

    /// The run ends, whoever holds it.
    fn ended_by_others(self, ended: RunState) -> Self {
        Self { ended_unheld: true, ..self.left(Phase::Ended(ended)) }
    }

    /// The lease ends, and with it every attempt that is open.
    fn left(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self.held = false;
        self.ended_unheld = false;
        for latest in self.steps.values_mut() {
            if let Latest::Running { attempt, .. } = latest {
                *latest = Latest::Closed { attempt: *attempt };
            }
        }
        self
    }

    /// Begins a step under the current token.
    fn begun(mut self, step: &str) -> (Self, Begun) {
        let attempt = match self.steps.get(step) {
            None => 1,
            Some(Latest::Completed { attempt, output }) => {
                let told = Begun::Memoized(*attempt, output.clone());
                return (self, told);
            }
            Some(Latest::Running { attempt, token }) if *token == self.token => {
                let told = Begun::InProgress(*attempt);
                return (self, told);
            }
            Some(Latest::Running { attempt, .. } | Latest::Closed { attempt }) => attempt + 1,
        };
        self.steps.insert(step.to_owned(), Latest::Running { attempt, token: self.token });
        (self, Begun::Execute(attempt))
    }

    fn is_running(&self, step: &str, number: u32) -> bool {
        self.steps.get(step) == Some(&Latest::Running { attempt: number, token: self.token })
    }
}

/// The rules of one run, or of the runs that one key may name.
#[derive(Debug)]
pub(super) struct RunRules;

impl Specification for RunRules {
    type State = Model;
    type Event = Event;

    fn fingerprint(&self, state: &Model) -> u64 {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        hasher.finish()
    }

    fn changes_nothing(&self, event: &Event) -> bool {
        match &event.what {
            What::Heard { call, answer, .. } => {
                matches!(call, Call::Beat { .. })
                    || matches!(
                        answer,
                        Answer::AlreadyFinished(_) | Answer::WrongState(_) | Answer::Conflict { .. }
                    )
            }
            What::GivenUp | What::Recorded { .. } => false,
        }
    }

    fn after(&self, state: &Model, event: &Event) -> Vec<Model> {
        let is_start = matches!(event.what, What::Heard { call: Call::Start { .. }, .. });
        if !is_start && state.run != Some(event.run) {
            return Vec::new();
        }
        match &event.what {
            What::GivenUp if state.phase == Phase::Live => {
                vec![state.clone().ended_by_others(RunState::Failed)]
            }
            What::GivenUp => Vec::new(),
            What::Recorded { seen, completed } => {
                looked(state, seen).filter(|state| state.completed() == *completed).into_iter().collect()
            }
            What::Heard { call, answer: Answer::Unknown, .. } => unheard(state, event.run, call),
            What::Heard { call, answer, repeated } => {
                heard(state, event.run, call, answer, *repeated).into_iter().collect()
            }
        }
    }
}

/// The run after a look, if it can have looked so.
fn looked(state: &Model, seen: &Seen) -> Option<Model> {
    let mut state = state.clone();
    if seen.token < state.token {
        return None;
    }
    let claimed_unseen = seen.token > state.token;
    state.token = seen.token;
    match (state.phase, seen.state) {
        (Phase::Ended(ended), seen) => {
            let explained = ended == seen && (state.ended_unheld || !claimed_unseen);
            state.ended_unheld = false;
            explained.then_some(state)
        }
        (Phase::Live, RunState::Running) => {
            state.held |= claimed_unseen;
            state.held.then_some(state)
        }
        (Phase::Live, RunState::Pending | RunState::Sleeping) => {
            state.held = false;
            Some(state)
        }
        _ => None,
    }
}

/// Whether what was told of the next step is what is expected.
fn told(expected: &Begun, answer: &Begun, repeated: bool) -> bool {
    expected == answer
        || repeated
            && matches!((expected, answer), (Begun::InProgress(one), Begun::Memoized(other, _)) if one == other)
}

/// The run after a call that was answered so; nothing if that cannot be.
fn heard(state: &Model, run: RunId, call: &Call, answer: &Answer, repeated: bool) -> Option<Model> {
    let live = || state.phase == Phase::Live;
    match (call, answer) {
        (Call::Start { input, .. }, Answer::Started { run: named, created: true }) => {
            (state.phase == Phase::Absent && *named == run).then(|| started(state, run, input))
        }
        (Call::Start { input, .. }, Answer::Started { run: named, created: false }) => {
            (state.run == Some(*named) && state.input == *input).then(|| state.clone())
        }
        (Call::Start { input, .. }, Answer::Conflict { run: named }) => {
            (state.run == Some(*named) && state.input != *input).then(|| state.clone())
        }
        (Call::Cancel { .. }, Answer::Done) => {
            live().then(|| state.clone().ended_by_others(RunState::Cancelled))
        }
        (Call::Cancel { .. }, Answer::AlreadyFinished(ended)) => {
            (state.phase == Phase::Ended(*ended)).then(|| state.clone())
        }
        (Call::Requeue { .. }, Answer::Done) => {
            (state.phase == Phase::Ended(RunState::Failed)).then(|| state.clone().left(Phase::Live))
        }
        (Call::Requeue { .. }, Answer::WrongState(seen)) => {
            let right = if seen.is_terminal() {
                state.phase == Phase::Ended(*seen) && *seen != RunState::Failed
            } else {
                live()
            };
            right.then(|| state.clone())
        }
        (Call::Claim { token, completed, all, .. }, _) => {
            let recorded = state.completed();
            let right = live()
                && *token > state.token
                && if *all {
                    recorded == *completed
                } else {
                    completed.iter().all(|(step, output)| recorded.get(step) == Some(output))
                };
            right.then(|| Model { token: *token, held: true, ..state.clone() })
        }
        (Call::Look { seen }, _) => looked(state, seen),
        (Call::Beat { token }, _) => state.accepts(*token).then(|| state.clone()),
        (Call::Begin { token, step, .. }, Answer::Begun(begun)) => {
            let (after, expected) = state.accepts(*token).then(|| state.clone().begun(step))?;
            told(&expected, begun, repeated).then_some(after)
        }
        (Call::Complete { then, .. }, answer) => {
            let after = complete(state, call)?;
            match (then, answer) {
                (Then::Nothing, Answer::Done) => Some(after),
                (Then::Finish(_), Answer::Done) => Some(after.left(Phase::Ended(RunState::Completed))),
                (Then::Begin(next), Answer::RecordedAndNext(begun)) => {
                    let (after, expected) = after.begun(next);
                    told(&expected, begun, repeated).then_some(after)
                }
                _ => None,
            }
        }
        (Call::Fail { token, step, attempt, .. }, answer) => {
            let right = state.accepts(*token) && state.is_running(step, *attempt);
            right.then(|| state.clone().left(failed(answer)))
        }
        (Call::FailRun { token, .. }, answer) => {
            state.accepts(*token).then(|| state.clone().left(failed(answer)))
        }
        (Call::Sleep { token, step, .. }, Answer::Done) => slept(state, *token, step),
        (Call::Finish { token, .. }, Answer::Done) => {
            state.accepts(*token).then(|| state.clone().left(Phase::Ended(RunState::Completed)))
        }
        (Call::Release { token, .. }, Answer::Done) => {
            state.accepts(*token).then(|| state.clone().left(Phase::Live))
        }
        _ => None,
    }
}

const fn failed(answer: &Answer) -> Phase {
    match answer {
        Answer::DeadLetter(_) => Phase::Ended(RunState::Failed),
        _ => Phase::Live,
    }
}

fn started(state: &Model, run: RunId, input: &str) -> Model {
    Model { run: Some(run), input: input.to_owned(), phase: Phase::Live, ..state.clone() }
}

fn complete(state: &Model, call: &Call) -> Option<Model> {
    let Call::Complete { token, step, attempt, output, .. } = call else { return None };
    let right = state.accepts(*token) && state.is_running(step, *attempt);
    right.then(|| {
        let mut state = state.clone();
        let latest = Latest::Completed { attempt: *attempt, output: output.clone() };
        state.steps.insert(step.clone(), latest);
        state
    })
}

fn slept(state: &Model, token: i64, step: &str) -> Option<Model> {
    let right = state.accepts(token) && !state.steps.contains_key(step);
    right.then(|| {
        let mut state = state.clone().left(Phase::Live);
        state.steps.insert(step.to_owned(), Latest::Completed { attempt: 1, output: String::new() });
        state
    })
}

/// The runs that there may be after a call of which nobody heard, and which did something.
fn unheard(state: &Model, run: RunId, call: &Call) -> Vec<Model> {
    let Some(operation) = operation_of(call) else { return Vec::new() };
    if state.happened.contains(&operation) {
        return Vec::new();
    }
    let told = |answer: Answer| heard(state, run, call, &answer, false);
    let outcomes = match call {
        Call::Start { .. } => vec![told(Answer::Started { run, created: true })],
        Call::Begin { token, step, .. } => {
            let begun = state.accepts(*token).then(|| state.clone().begun(step));
            vec![begun.and_then(|(state, begun)| matches!(begun, Begun::Execute(_)).then_some(state))]
        }
        Call::Complete { then: Then::Begin(next), .. } => {
            vec![complete(state, call).map(|state| state.begun(next).0)]
        }
        Call::Fail { .. } | Call::FailRun { .. } => {
            vec![told(Answer::Retry), told(Answer::DeadLetter(DeadLetterReason::RetriesExhausted))]
        }
        _ => vec![told(Answer::Done)],
    };
    let note = |mut state: Model| {
        state.happened.insert(operation);
        state
    };
    outcomes.into_iter().flatten().map(note).collect()
}

/// The operation of a call that has one.
pub(super) const fn operation_of(call: &Call) -> Option<Operation> {
    match call {
        Call::Start { operation, .. }
        | Call::Cancel { operation }
        | Call::Requeue { operation }
        | Call::Begin { operation, .. }
        | Call::Complete { operation, .. }
        | Call::Fail { operation, .. }
        | Call::Sleep { operation, .. }
        | Call::Finish { operation, .. }
        | Call::FailRun { operation, .. }
        | Call::Release { operation, .. } => Some(*operation),
        Call::Claim { .. } | Call::Look { .. } | Call::Beat { .. } => None,
    }
}
