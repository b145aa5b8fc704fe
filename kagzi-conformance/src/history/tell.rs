//! What a violation says: the shortest sub-history that no order explains, who called what when, what led
//! there, and where an answer differs.

use std::collections::BTreeSet;

use kagzi_core::{Attempt, Payload, Run, RunRecord};

use super::checker::{Duty, Finding, Interval, Order, PLACES, Specification, Unexplained, explain, nearest};
use super::difference::differences;
use super::led_there::{needed, whole_order};
use super::recorder::Heard;
use super::slot::{Event, Judged, Part, Slot, SlotRules};
use crate::record::{Describe, Log, Refusal, Reply};
use crate::scenario::differ;
use crate::violation::Violation;

/// How many of the calls that led to a violation are told, the latest; those in conflict are told all.
const TOLD: usize = 30;

/// A piece of which only calls that cannot be explained together must be explained.
#[derive(Debug)]
pub(super) struct Shortest {
    /// Every event of the piece that may have had an effect, judged or not.
    pub(super) events: Vec<Interval<Event>>,
    /// How many calls need no explanation.
    pub(super) dropped: usize,
}

/// Drops from a piece what the violation does not need: a read or a refused call altogether, and of any
/// other the answer. What is left unjudged may happen or not, so a violation of the rest is one of the
/// whole.
pub(super) fn shortest(rules: &SlotRules, before: &[Slot], piece: &[Interval<Event>]) -> Shortest {
    let mut left: Vec<Interval<Event>> = piece.to_vec();
    let mut at = left.len();
    // From the end: the last calls that matter are those that show the violation.
    while at > 0 {
        at -= 1;
        let mut tried = left.clone();
        if rules.changes_nothing(&tried[at].event) {
            tried.remove(at);
        } else {
            tried[at].duty = Duty::May;
            tried[at].event.judged = Judged::Not;
        }
        if matches!(explain(rules, before, &tried), Finding::Unexplained { .. }) {
            left = tried;
        }
    }
    let judged = |interval: &&Interval<Event>| interval.duty == Duty::Must;
    let dropped = piece.iter().filter(judged).count() - left.iter().filter(judged).count();
    Shortest { events: left, dropped }
}

/// From where on to tell: a piece that only reads shows what an earlier one did.
fn with_a_write<'t>(
    rules: &SlotRules,
    events: &[Interval<Event>],
    trail: &'t [(usize, Vec<Slot>)],
    end: usize,
) -> (usize, &'t [Slot]) {
    let writes =
        |interval: &Interval<Event>| interval.duty == Duty::Must && !rules.changes_nothing(&interval.event);
    let found = trail.iter().rev().find(|(from, _)| events[*from..end].iter().any(writes));
    found.or_else(|| trail.first()).map_or((0, &[]), |(from, before)| (*from, before))
}

/// The violation for people; its calls replace the log. `again` says how to play the same again.
pub(super) fn violation<T>(
    log: &Log,
    rules: &SlotRules,
    history: &[(Heard, T)],
    events: &[Interval<Event>],
    unexplained: &Unexplained<Slot>,
    again: &str,
) -> Violation {
    let end = unexplained.piece.end;
    let (from, before) = with_a_write(rules, events, &unexplained.trail, end);
    let piece = &events[from..end];
    let Finding::Unexplained { furthest } = unexplained.finding else {
        return too_tangled(piece.len()).found_by(again);
    };
    let Shortest { events: left, dropped } = shortest(rules, before, piece);
    let distance = |slot: &Slot, at: usize| differences(rules, slot, &left[at].event).len();
    let found = nearest(rules, before, &left, distance);
    // What must be explained, and what led to the state in which the nearest order gets stuck.
    let mut told: Vec<(Interval<Event>, Told)> = left
        .iter()
        .filter(|interval| interval.duty == Duty::Must)
        .map(|interval| (interval.clone(), Told::Conflicts))
        .collect();
    let kept = told.len();
    let (mut expected, mut seen) = (String::new(), String::new());
    if let Some((order, stuck)) = found {
        let stuck = left[stuck].clone();
        let all: Vec<Interval<Event>> = events[..from].iter().chain(&left).cloned().collect();
        let whole = whole_order(rules, &all, unexplained, from, order);
        let conflicting: BTreeSet<u64> = told.iter().map(|(interval, _)| interval.called).collect();
        let led_there = needed(rules, &all, &whole, &stuck.event).into_iter().map(|at| all[at].clone());
        let led_there: Vec<_> =
            led_there.filter(|interval| !conflicting.contains(&interval.called)).collect();
        let first = led_there.len().saturating_sub(TOLD);
        told.extend(led_there.into_iter().skip(first).map(|interval| (interval, Told::LedThere)));
        told.sort_by_key(|(interval, _)| interval.called);
        let number =
            told.iter().position(|(interval, _)| interval.called == stuck.called).unwrap_or_default();
        let (right, wrong) = differ::sides(&differences(rules, whole.end(), &stuck.event));
        expected = format!(
            "of call {} in the nearest order, {}\n{right}",
            number + 1,
            numbers(&whole, &all, &told, number)
        );
        seen = format!("{wrong}\n");
    }
    log.replace_by(&lines(history, &told));
    let must = piece.iter().filter(|interval| interval.duty == Duty::Must).count();
    let rule =
        "some order of these calls, each between its call and its answer, explains what everyone heard";
    let marked = if kept == 1 { "call".to_owned() } else { format!("{kept} calls") };
    let seen = format!(
        "{seen}no order explains the {marked} marked with *, called and answered at the stamps in brackets; what is not \
         marked led there, whatever was answered.\nOf the {must} calls to this run at that time the furthest order \
         explains {furthest}; {dropped} need no explanation"
    );
    Violation::new(rule, expected, seen).found_by(again)
}

/// The calls of an order by their numbers in the list, those of them that are told; the last is the one that
/// cannot come next.
fn numbers(
    order: &Order<Slot>,
    all: &[Interval<Event>],
    told: &[(Interval<Event>, Told)],
    last: usize,
) -> String {
    let number = |called: u64| told.iter().position(|(interval, _)| interval.called == called);
    let mut numbers: Vec<usize> = order.events.iter().filter_map(|(at, _)| number(all[*at].called)).collect();
    numbers.push(last);
    numbers.dedup();
    numbers.iter().map(|number| (number + 1).to_string()).collect::<Vec<_>>().join(" ")
}

/// Nothing is known of the store: there are too many orders to try them all.
fn too_tangled(events: usize) -> Violation {
    Violation::new(
        "the suite can judge the history of a run, which says nothing of the store",
        format!("at most {PLACES} places to search in one piece of it"),
        format!("more, for {events} events. Other seeds give other pieces"),
    )
    .undecided()
}

/// Why a call is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It is one of those that no order explains together.
    Conflicts,
    /// Without it something else would be expected.
    LedThere,
}

fn lines<T>(history: &[(Heard, T)], told: &[(Interval<Event>, Told)]) -> Log {
    let lines = Log::of_any_length();
    for (interval, why) in told {
        let Some((heard, _)) = history.get(interval.event.source) else { continue };
        let (call, answer) = words(heard, &interval.event.part);
        let mark = if *why == Told::Conflicts { '*' } else { ' ' };
        let Interval { called, returned, .. } = interval;
        let entry = lines.call(format!("{mark} [{called}..{returned}] {}: {call}", heard.caller));
        lines.answer(entry, answer);
    }
    lines
}

/// The call and its answer, of a batch only the part that matters.
fn words(heard: &Heard, part: &Part) -> (String, String) {
    let refused = Refusal::describe;
    match part {
        Part::Start(start, answer) => {
            let answer = match answer {
                Ok(started) => vec![*started].describe(),
                Err(refusal) => refused(refusal),
            };
            (format!("start({})", vec![(**start).clone()].describe()), answer)
        }
        Part::Beat(beat, verdict) => {
            let answer = match verdict {
                Ok(granted) => format!("until {}", granted.expires_at),
                Err(refusal) => refused(refusal),
            };
            (format!("heartbeat({})", vec![beat.clone()].describe()), answer)
        }
        Part::Took(claim, Some(claimed)) => {
            let steps: Vec<String> = claimed.steps.iter().map(attempt).collect();
            let row = run(&claimed.run);
            (format!("claim({})", claim.describe()), format!("{row}, steps [{}]", steps.join(", ")))
        }
        Part::Ask(asked) => match &asked.1 {
            Ok(Reply::Record(record)) => (heard.call.describe(), row(record)),
            Ok(Reply::Attempts(page)) => {
                let all: Vec<String> = page.items.iter().map(attempt).collect();
                (heard.call.describe(), format!("[{}]", all.join(", ")))
            }
            answer => (heard.call.describe(), answer.describe()),
        },
        _ => (heard.call.describe(), heard.answer.describe()),
    }
}

/// What a run's row shows, more of it than a log needs.
fn row(record: &RunRecord) -> String {
    format!("{}, output {}", run(&record.run), payload(record.output.as_ref()))
}

fn run(run: &Run) -> String {
    let held = match (&run.worker_id, run.lease_expires_at) {
        (Some(worker), Some(expires_at)) => format!(" held by {worker} until {expires_at}"),
        _ => String::new(),
    };
    let failure = run.failure.as_ref().map_or(String::new(), |failure| format!(", failed {}", failure.code));
    format!("{}{held}, {} claims, changed {}{failure}", run.describe(), run.claims, run.updated_at)
}

fn attempt(attempt: &Attempt) -> String {
    let Attempt { step_id, attempt: number, state, fencing_token, output, failure, .. } = attempt;
    let output =
        output.as_ref().map_or(String::new(), |output| format!(", output {}", payload(Some(output))));
    let failure = failure.as_ref().map_or(String::new(), |failure| format!(", failed {}", failure.code));
    format!("{step_id}#{number} {state} under token {fencing_token}{output}{failure}")
}

/// The kind and the size of a payload; no content.
fn payload(payload: Option<&Payload>) -> String {
    payload.map_or_else(|| "none".to_owned(), |payload| format!("{payload:?}"))
}
