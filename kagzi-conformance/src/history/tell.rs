//! What a violation says: the shortest sub-history that no order explains, who called what when.

use kagzi_core::RunRecord;

use super::checker::{Duty, Finding, Interval, PLACES, Specification, Unexplained, explain};
use super::recorder::Heard;
use super::slot::{Event, Judged, Part, Slot, SlotRules};
use crate::record::{Describe, Log, Reply};
use crate::violation::Violation;

/// Calls that are still asked for an explanation, and how many are not.
pub(super) struct Shortest {
    pub(super) kept: Vec<Interval<Event>>,
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
    let judged = |interval: &Interval<Event>| interval.duty == Duty::Must;
    let kept: Vec<Interval<Event>> = left.into_iter().filter(judged).collect();
    let dropped = piece.iter().filter(|interval| judged(interval)).count() - kept.len();
    Shortest { kept, dropped }
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

/// The violation for people; its calls replace the log.
pub(super) fn violation<T>(
    log: &Log,
    rules: &SlotRules,
    history: &[(Heard, T)],
    events: &[Interval<Event>],
    unexplained: Unexplained<Slot>,
    found_by: &str,
) -> Violation {
    let Unexplained { piece, trail, finding } = unexplained;
    let (from, before) = with_a_write(rules, events, &trail, piece.end);
    let piece = &events[from..piece.end];
    let Finding::Unexplained { furthest } = finding else {
        return Violation::new(
            format!("the history of a run can be judged\n{found_by}"),
            format!("at most {PLACES} places to search"),
            format!("more, for {} events in one piece", piece.len()),
        );
    };
    let Shortest { kept, dropped } = shortest(rules, before, piece);
    let lines = Log::default();
    for slot in before {
        let state = slot.as_ref().map_or("no run".to_owned(), super::rows::Rows::describe);
        lines.note(format!("before: {state}"));
    }
    for interval in &kept {
        if let Some((heard, _)) = history.get(interval.event.source) {
            let (call, answer) = words(heard, &interval.event.part);
            let entry =
                lines.call(format!("[{}..{}] {}: {call}", interval.called, interval.returned, heard.caller));
            lines.answer(entry, answer);
        }
    }
    log.replace_by(&lines);
    let must = piece.iter().filter(|interval| interval.duty == Duty::Must).count();
    Violation::new(
        format!(
            "some order of these calls, each between its call and its answer, explains what everyone heard\n{found_by}"
        ),
        format!("an order of the {} calls below, called and answered at the stamps in brackets", kept.len()),
        format!(
            "none; of the {must} calls to this run at that time the furthest order explains {furthest}, and \
             {dropped} do not matter whatever they answered"
        ),
    )
}

/// The call and its answer, of a batch only the part that matters.
fn words(heard: &Heard, part: &Part) -> (String, String) {
    let refused = |refusal: &crate::record::Refusal| refusal.describe();
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
            (format!("claim({})", claim.describe()), vec![(**claimed).clone()].describe())
        }
        Part::Ask(asked) => match &asked.1 {
            Ok(Reply::Record(record)) => (heard.call.describe(), row(record)),
            answer => (heard.call.describe(), answer.describe()),
        },
        _ => (heard.call.describe(), heard.answer.describe()),
    }
}

/// What a run's row shows, more of it than a log needs.
fn row(record: &RunRecord) -> String {
    let run = &record.run;
    let held = match (&run.worker_id, run.lease_expires_at) {
        (Some(worker), Some(expires_at)) => format!(" held by {worker} until {expires_at}"),
        _ => String::new(),
    };
    format!("{}{held}, {} claims, changed {}", record.describe(), run.claims, run.updated_at)
}
