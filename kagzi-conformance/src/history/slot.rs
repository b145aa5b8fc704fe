//! Takes a history apart, run by run, and says what each part may do to its run.
//!
//! Runs do not know of each other, so the history of each can be judged by itself, which keeps the
//! search small. A call about several runs (a claim, a reap, a batch) becomes one event for each of
//! them. Runs that a key may name share a **slot**, since of them only one exists at a time.

use std::collections::{BTreeMap, HashMap};

use kagzi_core::{
    Claim, ClaimedRun, DeleteFinished, GrantedLease, Heartbeat, IdempotencyKey, Namespace, Rules, RunId,
    StartOutcome, StartRun, Started, Timestamp, decide,
};

use super::checker::{Duty, Interval, Specification};
use super::recorder::Heard;
use super::rows::{Rows, about};
use crate::record::{Answer, Call, Refusal, Reply};

/// What happened to one slot.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// A start of a run of this slot.
    Start(Box<StartRun>, Result<Started, Refusal>),
    /// A call about one run.
    Ask(Box<(Call, Answer)>),
    /// A heartbeat of a batch.
    Beat(Heartbeat, Result<GrantedLease, Refusal>),
    /// A claim that took the run, and what it gave if that is known.
    Took(Claim, Option<Box<ClaimedRun>>),
    /// A claim puts overdue runs of its queues in order, whichever it takes.
    Sweep(Claim),
    /// A reap may have repaired the run.
    Reap,
    /// A removal may have removed it.
    Delete(DeleteFinished),
}

/// Whether an answer must be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// To the last field.
    Exactly,
    /// Any answer will do: only what the call does counts.
    Not,
}

/// A part of a call, and the moments that it may have happened at.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) part: Part,
    pub(super) moments: Vec<Timestamp>,
    pub(super) judged: Judged,
    /// The place of its call in the history.
    pub(super) source: usize,
}

/// The run of a slot, if there is one now.
pub(super) type Slot = Option<Rows>;

/// The rules, over slots.
#[derive(Debug)]
pub(super) struct SlotRules(pub(super) Rules);

impl Specification for SlotRules {
    type State = Slot;
    type Event = Event;

    fn fingerprint(&self, slot: &Slot) -> u64 {
        slot.as_ref().map_or(0, Rows::fingerprint)
    }

    fn changes_nothing(&self, event: &Event) -> bool {
        if event.judged == Judged::Not {
            return false;
        }
        match &event.part {
            Part::Start(_, answer) => answer.is_err(),
            Part::Ask(asked) => matches!(&asked.1, Err(_) | Ok(Reply::Record(_) | Reply::Attempts(_))),
            Part::Beat(_, answer) => answer.is_err(),
            Part::Took(..) | Part::Sweep(_) | Part::Reap | Part::Delete(_) => false,
        }
    }

    fn after(&self, slot: &Slot, event: &Event) -> Vec<Slot> {
        let mut states: Vec<Slot> = Vec::new();
        for now in &event.moments {
            for state in self.at(slot, &event.part, event.judged, *now) {
                if !states.contains(&state) {
                    states.push(state);
                }
            }
        }
        states
    }
}

impl SlotRules {
    /// The states that a part may lead to from `slot`, if it happened at `now`.
    pub(super) fn at(&self, slot: &Slot, part: &Part, judged: Judged, now: Timestamp) -> Vec<Slot> {
        let fits = |right: bool| right || judged == Judged::Not;
        match part {
            Part::Start(start, answer) => {
                let (seen, after) = started(slot, start, now);
                if fits(seen == *answer) { vec![after] } else { Vec::new() }
            }
            Part::Ask(asked) => {
                let (call, answer) = &**asked;
                let (seen, after) = self.asked(slot, call, now);
                if fits(seen == *answer) { vec![after] } else { Vec::new() }
            }
            Part::Beat(beat, answer) => {
                let (seen, after) = beaten(slot, beat, now);
                if fits(seen == *answer) { vec![after] } else { Vec::new() }
            }
            Part::Took(claim, claimed) => {
                let Some((rows, lease)) = slot.as_ref().and_then(|rows| rows.claimed(claim, &self.0, now))
                else {
                    return Vec::new();
                };
                let right = claimed
                    .as_ref()
                    .is_none_or(|claimed| lease == claimed.lease && rows.handed_over_by(claimed));
                if fits(right) { vec![Some(rows)] } else { Vec::new() }
            }
            Part::Sweep(claim) => slot
                .iter()
                .filter(|rows| rows.waits_for(claim))
                .filter_map(|rows| rows.repaired(&self.0, now))
                .map(Some)
                .collect(),
            Part::Reap => slot
                .iter()
                .flat_map(|rows| rows.repaired(&self.0, now).into_iter().chain(rows.timed_out(&self.0, now)))
                .map(Some)
                .collect(),
            Part::Delete(delete) => {
                let gone = slot.as_ref().is_some_and(|Rows { run, .. }| {
                    delete.matches(&run.namespace, run.state, run.finished_at)
                });
                if gone { vec![None] } else { Vec::new() }
            }
        }
    }

    /// What a call about one run answers.
    pub(super) fn asked(&self, slot: &Slot, call: &Call, now: Timestamp) -> (Answer, Slot) {
        let asked = match (slot, about(call)) {
            (None, Some((_, run_id))) => Err(kagzi_core::StoreError::RunNotFound { run_id }),
            (None, None) => return (Ok(Reply::Count(0)), None),
            (Some(rows), _) => rows.ask(call, &self.0, now),
        };
        match asked {
            Ok((reply, rows)) => (Ok(reply), Some(rows)),
            Err(error) => (Err(Refusal::from(error)), slot.clone()),
        }
    }
}

/// What a heartbeat answers.
pub(super) fn beaten(slot: &Slot, beat: &Heartbeat, now: Timestamp) -> (Result<GrantedLease, Refusal>, Slot) {
    let asked = match slot {
        Some(rows) => rows.beat(beat, now),
        None => Err(kagzi_core::StoreError::RunNotFound { run_id: beat.lease.run_id }),
    };
    match asked {
        Ok((granted, rows)) => (Ok(granted), Some(rows)),
        Err(error) => (Err(Refusal::from(error)), slot.clone()),
    }
}

/// What a start answers.
pub(super) fn started(slot: &Slot, start: &StartRun, now: Timestamp) -> (Result<Started, Refusal>, Slot) {
    match slot {
        None => {
            let started = Started { run_id: start.run_id(), outcome: StartOutcome::Created };
            (Ok(started), Some(Rows::started(start, now)))
        }
        Some(rows) => {
            let again = decide::existing_run(start, &rows.run, rows.input());
            (again.map_err(Refusal::from), slot.clone())
        }
    }
}

/// What names a slot: a key, or the only run that can be in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SlotName {
    Key(Namespace, IdempotencyKey),
    Run(RunId),
}

/// The history of each slot, in the order of calls.
pub(super) fn take_apart(history: &[(Heard, Vec<Timestamp>)]) -> BTreeMap<SlotName, Vec<Interval<Event>>> {
    let mut names: HashMap<RunId, SlotName> = HashMap::new();
    for (heard, _) in history {
        if let Call::Start(batch) = &heard.call {
            names.extend(batch.iter().map(|start| (start.run_id(), name_of(start))));
        }
    }
    let name = |run_id: RunId| names.get(&run_id).cloned().unwrap_or(SlotName::Run(run_id));
    let mut slots: BTreeMap<SlotName, Vec<Interval<Event>>> =
        names.values().map(|name| (name.clone(), Vec::new())).collect();
    for (source, (heard, moments)) in history.iter().enumerate() {
        let interval = |part: Part, duty: Duty| {
            let open = heard.answer.as_ref().is_err_and(Refusal::leaves_open);
            let (duty, judged) = if open { (Duty::May, Judged::Not) } else { (duty, Judged::Exactly) };
            let event = Event { part, moments: moments.clone(), judged, source };
            Interval { called: heard.called, returned: heard.returned, duty, event }
        };
        for (run, part) in parts_of_runs(heard) {
            let (name, part) = match run {
                Of::Slot(slot) => (slot, part),
                Of::Run(run_id) => (name(run_id), part),
            };
            slots.entry(name).or_default().push(interval(part, Duty::Must));
        }
        for part in parts_of_all(heard) {
            for events in slots.values_mut() {
                events.push(interval(part.clone(), Duty::May));
            }
        }
    }
    slots
}

fn name_of(start: &StartRun) -> SlotName {
    match &start.idempotency_key {
        Some(key) => SlotName::Key(start.namespace.clone(), key.clone()),
        None => SlotName::Run(start.run_id()),
    }
}

enum Of {
    Slot(SlotName),
    Run(RunId),
}

/// What a call certainly did to certain runs.
fn parts_of_runs(heard: &Heard) -> Vec<(Of, Part)> {
    match (&heard.call, &heard.answer) {
        // Nothing was changed, and why the store was not there is not the run's doing.
        (_, Err(refusal)) if refusal.reason == "UNAVAILABLE" => Vec::new(),
        (Call::Start(batch), answer) => starts(batch, answer),
        (Call::Heartbeat(batch), Ok(Reply::Beats(verdicts))) => batch
            .iter()
            .zip(verdicts)
            .map(|(beat, verdict)| (Of::Run(beat.lease.run_id), Part::Beat(beat.clone(), verdict.clone())))
            .collect(),
        (Call::Heartbeat(batch), Err(refusal)) if refusal.leaves_open() => batch
            .iter()
            .map(|beat| (Of::Run(beat.lease.run_id), Part::Beat(beat.clone(), Err(refusal.clone()))))
            .collect(),
        (Call::Claim(claim), Ok(Reply::Claimed(claimed))) => claimed
            .iter()
            .map(|taken| {
                (Of::Run(taken.run.run_id), Part::Took(claim.clone(), Some(Box::new(taken.clone()))))
            })
            .collect(),
        (call, answer) => match about(call) {
            Some((_, run_id)) => vec![(Of::Run(run_id), Part::Ask(Box::new((call.clone(), answer.clone()))))],
            None => Vec::new(),
        },
    }
}

fn starts(batch: &[StartRun], answer: &Answer) -> Vec<(Of, Part)> {
    let verdicts: Vec<Result<Started, Refusal>> = match answer {
        Ok(Reply::Started(started)) => started.iter().map(|started| Ok(*started)).collect(),
        Err(refusal) if batch.len() == 1 || refusal.leaves_open() => {
            batch.iter().map(|_| Err(refusal.clone())).collect()
        }
        // A refused batch changed nothing, and which of its starts was at fault it does not say.
        _ => Vec::new(),
    };
    let part = |(start, verdict): (&StartRun, Result<Started, Refusal>)| {
        (Of::Slot(name_of(start)), Part::Start(Box::new(start.clone()), verdict))
    };
    batch.iter().zip(verdicts).map(part).collect()
}

/// What a call may have done to any run.
fn parts_of_all(heard: &Heard) -> Vec<Part> {
    match (&heard.call, &heard.answer) {
        (Call::Claim(claim), Err(refusal)) if refusal.leaves_open() => {
            vec![Part::Sweep(claim.clone()), Part::Took(claim.clone(), None)]
        }
        (Call::Claim(claim), _) => vec![Part::Sweep(claim.clone())],
        (Call::Reap(_), _) => vec![Part::Reap],
        (Call::DeleteFinished(delete), _) => vec![Part::Delete(delete.clone())],
        _ => Vec::new(),
    }
}
