//! Is there one order of everything that befell a run, each at some moment between call and answer, that
//! explains what everybody heard? The search is the suite's, the rules of a run are those of `run_rules`.

use std::collections::{BTreeMap, HashMap};

use kagzi_conformance::checker::{Duty, Finding, Interval, check};
use kagzi_core::{DeadLetterReason, RunId};

use super::run_rules::{Event, Model, RunRules, What, operation_of};
use super::{Found, Rule, Stored};
use crate::event::{Answer, Call, Heard, Moment, Operation, Seen};
use crate::log::History;
use crate::plan;
use crate::recording::completed;

/// What names a slot: a key of a namespace, or the only run that can be in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Key(String, String),
    Run(RunId),
}

/// Judges every run by itself. Gives how many slots there were.
pub(super) fn judge(history: &History, stored: &BTreeMap<RunId, Stored>, found: &mut Vec<Found>) -> usize {
    let moments = history.heard.iter().flat_map(|heard| [heard.called, heard.returned]);
    let end = moments.filter(|moment| *moment != Moment::MAX).max().unwrap_or_default();
    let mut names: HashMap<RunId, Slot> = HashMap::new();
    for heard in &history.heard {
        if let Call::Start { key: Some(key), .. } = &heard.call {
            names.insert(heard.run, Slot::Key(heard.namespace.as_ref().to_owned(), key.clone()));
        }
    }
    let mut slots: BTreeMap<Slot, Vec<&Heard>> = BTreeMap::new();
    let mut records: BTreeMap<Slot, Vec<&Stored>> = BTreeMap::new();
    let slot = |run: RunId| names.get(&run).cloned().unwrap_or(Slot::Run(run));
    for heard in &history.heard {
        slots.entry(slot(heard.run)).or_default().push(heard);
    }
    for (run, stored) in stored {
        slots.entry(slot(*run)).or_default();
        records.entry(slot(*run)).or_default().push(stored);
    }
    for (name, heard) in &slots {
        let recorded = records.get(name).map(Vec::as_slice).unwrap_or_default();
        judge_slot(heard, recorded, end, found);
    }
    slots.len()
}

fn judge_slot(heard: &[&Heard], recorded: &[&Stored], end: Moment, found: &mut Vec<Found>) {
    let events = in_ranks(events(heard, recorded, end));
    let Err(unexplained) = check(&RunRules, Model::absent(), &events) else { return };
    let run = recorded.first().map(|stored| stored.record.run.run_id);
    let run = run.or_else(|| heard.first().map(|heard| heard.run));
    let before = unexplained.trail.last().and_then(|(_, before)| before.first());
    let (rule, detail) = match unexplained.finding {
        Finding::TooTangled => (Rule::TooTangled, String::new()),
        Finding::Unexplained { furthest } => (
            Rule::SomeOrder,
            format!(
                "no order of events {:?} of {} explains them; the furthest explains {furthest}, from {before:?}; they are {:#?}",
                unexplained.piece,
                events.len(),
                &events[unexplained.piece.clone()],
            ),
        ),
        Finding::Explained(_) => return,
    };
    found.push(Found { rule, run, detail });
}

/// What befell the runs of a slot, in the order of calls.
fn events(heard: &[&Heard], recorded: &[&Stored], end: Moment) -> Vec<Interval<Event>> {
    let mut events = Vec::new();
    let mut operations: BTreeMap<Operation, Vec<&Heard>> = BTreeMap::new();
    for heard in heard {
        match operation_of(&heard.call) {
            Some(operation) => operations.entry(operation).or_default().push(heard),
            None if heard.answer.is_acknowledgement() => {
                events.push(interval(heard, heard.called, heard.returned, Duty::Must, false));
            }
            // A heartbeat that was refused, or of which nobody heard, changed nothing that is asked here.
            None => {}
        }
    }
    for sent in operations.values() {
        events.extend(of_operation(sent));
    }
    for stored in recorded {
        let run = stored.record.run.run_id;
        if may_be_given_up(heard, stored) {
            // Once, and once more each time that it was put back to work.
            let requeued = |heard: &&&Heard| heard.run == run && matches!(heard.call, Call::Requeue { .. });
            for _ in 0..=heard.iter().filter(requeued).count() {
                let event = Event { run, what: What::GivenUp };
                events.push(Interval { called: 0, returned: Moment::MAX, duty: Duty::May, event });
            }
        }
        let seen = Seen::of(&stored.record.run);
        let what = What::Recorded { seen, completed: completed(&stored.attempts) };
        let event = Event { run, what };
        events.push(Interval { called: end + 1, returned: Moment::MAX, duty: Duty::Must, event });
    }
    events
}

/// Whether the engine may have ended the run by itself.
fn may_be_given_up(heard: &[&Heard], stored: &Stored) -> bool {
    let input: Option<plan::Input> = serde_json::from_slice(&stored.record.input.bytes).ok();
    let poison = |reason: Option<DeadLetterReason>| reason == Some(DeadLetterReason::Poison);
    input.is_none_or(|input| plan::Plan::of(input.number).has_timeouts())
        || poison(stored.record.run.dead_letter)
        || heard.iter().any(|heard| matches!(&heard.call, Call::Look { seen } if poison(seen.dead_letter)))
}

/// All sendings of one operation are one event: it happened between the first of them and the first
/// answer that says so. An answer that nothing was done is an event of its own, if it says why.
fn of_operation(sent: &[&Heard]) -> Vec<Interval<Event>> {
    let mut events = Vec::new();
    for heard in sent {
        if matches!(heard.answer, Answer::Conflict { .. } | Answer::WrongState(_)) {
            events.push(interval(heard, heard.called, heard.returned, Duty::Must, false));
        }
    }
    let called = |sent: &[&Heard]| sent.iter().map(|heard| heard.called).min().unwrap_or_default();
    let first =
        sent.iter().filter(|heard| heard.answer.is_acknowledgement()).min_by_key(|heard| heard.returned);
    let unknown: Vec<&Heard> = sent.iter().copied().filter(|heard| heard.answer == Answer::Unknown).collect();
    match (first, unknown.first()) {
        (Some(first), _) => {
            events.push(interval(first, called(sent), first.returned, Duty::Must, sent.len() > 1));
        }
        // It may arrive at any time, as long as somebody holds it up.
        (None, Some(heard)) => {
            events.push(interval(heard, called(&unknown), Moment::MAX, Duty::May, false));
        }
        (None, None) => {}
    }
    events
}

fn interval(heard: &Heard, called: Moment, returned: Moment, duty: Duty, repeated: bool) -> Interval<Event> {
    let what = What::Heard { call: heard.call.clone(), answer: heard.answer.clone(), repeated };
    Interval { called, returned, duty, event: Event { run: heard.run, what } }
}

/// Gives every moment a rank of its own, so that no two are the same, and puts the events in order. What
/// is called at the moment of an answer counts as called before it.
fn in_ranks(mut events: Vec<Interval<Event>>) -> Vec<Interval<Event>> {
    let mut moments: Vec<(Moment, bool, usize)> = Vec::with_capacity(2 * events.len());
    for (at, event) in events.iter().enumerate() {
        moments.push((event.called, false, at));
        moments.push((event.returned, true, at));
    }
    moments.sort_unstable();
    for (rank, (_, returned, at)) in (1..).zip(moments) {
        if returned {
            events[at].returned = rank;
        } else {
            events[at].called = rank;
        }
    }
    events.sort_by_key(|event| event.called);
    events
}
