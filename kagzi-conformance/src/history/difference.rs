//! Where an answer differs from the one that the rules give, field by field.

use std::fmt::Debug;

use kagzi_core::{Attempt, Claim, ClaimedRun, Started, Timestamp};

use super::slot::{Event, Part, Slot, SlotRules, beaten, started};
use crate::record::{Describe, Refusal, Reply};
use crate::scenario::differ::{Difference, fields};
use crate::scenario::snapshot::{of_attempts, of_records, payload};

/// Where what was heard of `event` differs from what the rules answer in the state `slot`; at whichever of
/// its moments that is least. Nothing if it was answered right, or if it is not known what was heard.
pub(super) fn differences(rules: &SlotRules, slot: &Slot, event: &Event) -> Vec<Difference> {
    let all = event.moments.iter().map(|now| at(rules, slot, &event.part, *now));
    all.min_by_key(Vec::len).unwrap_or_default()
}

fn at(rules: &SlotRules, slot: &Slot, part: &Part, now: Timestamp) -> Vec<Difference> {
    match part {
        Part::Start(start, heard) => {
            let (right, _) = started(slot, start, now);
            answers(&right, heard, describe_start, fields)
        }
        Part::Ask(asked) => {
            let (call, heard) = &**asked;
            let (right, _) = rules.asked(slot, call, now);
            answers(&right, heard, Describe::describe, replies)
        }
        Part::Beat(beat, heard) => {
            let (right, _) = beaten(slot, beat, now);
            let describe = |granted: &kagzi_core::GrantedLease| format!("until {}", granted.expires_at);
            answers(&right, heard, describe, fields)
        }
        Part::Took(claim, Some(claimed)) => took(rules, slot, claim, claimed, now),
        Part::Took(_, None) | Part::Sweep(_) | Part::Reap | Part::Delete(_) => Vec::new(),
    }
}

fn describe_start(started: &Started) -> String {
    vec![*started].describe()
}

/// Two answers: by field where both are of one kind, else each in a line.
fn answers<T: PartialEq + Debug>(
    right: &Result<T, Refusal>,
    heard: &Result<T, Refusal>,
    describe: impl Fn(&T) -> String,
    by_field: impl FnOnce(&T, &T) -> Vec<Difference>,
) -> Vec<Difference> {
    if right == heard {
        return Vec::new();
    }
    let mut all = match (right, heard) {
        (Ok(right), Ok(heard)) => by_field(right, heard),
        _ => Vec::new(),
    };
    if all.is_empty() {
        let line = |answer: &Result<T, Refusal>| match answer {
            Ok(reply) => format!("accepted: {}", describe(reply)),
            Err(refusal) => format!("refused: {}", refusal.describe()),
        };
        all.push(Difference::new("the answer", Some(line(right)), Some(line(heard))));
    }
    all
}

fn replies(right: &Reply, heard: &Reply) -> Vec<Difference> {
    match (right, heard) {
        (Reply::Record(right), Reply::Record(heard)) => of_records(right, heard),
        (Reply::Attempts(right), Reply::Attempts(heard)) => of_attempts(&right.items, &heard.items),
        _ => Vec::new(),
    }
}

fn took(
    rules: &SlotRules,
    slot: &Slot,
    claim: &Claim,
    claimed: &ClaimedRun,
    now: Timestamp,
) -> Vec<Difference> {
    let given = &claimed.lease;
    let handed_over =
        || format!("handed over to {} under token {}", claim.worker_id, given.lease.fencing_token);
    let Some(rows) = slot else {
        let none = "not handed over, there is none".to_owned();
        return vec![Difference::new("the run", Some(none), Some(handed_over()))];
    };
    let Some((rows, lease)) = rows.claimed(claim, &rules.0, now) else {
        let not_to_be_had = format!("not handed over, it is {}", rows.describe());
        return vec![Difference::new("the run", Some(not_to_be_had), Some(handed_over()))];
    };
    let mut all: Vec<Difference> =
        fields(&lease, given).into_iter().map(|one| one.within("the lease")).collect();
    all.extend(fields(&rows.run, &claimed.run));
    all.extend(payload("input", Some(rows.input()), Some(&claimed.input)));
    if all.is_empty() && !rows.handed_over_by(claimed) {
        let right: Vec<Attempt> = rows.latest_of_each().cloned().collect();
        let steps = of_attempts(&right, &claimed.steps);
        all.extend(steps.into_iter().map(|one| one.within("the steps handed over")));
    }
    all
}

/// The same for any answer of a call, for those who only want to know which fields they are.
pub(super) fn names(differences: &[Difference]) -> Vec<(&str, Option<&str>)> {
    differences.iter().map(|one| (&*one.field, one.expected.as_deref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Answer;

    #[test]
    fn what_was_refused_and_should_not_have_been_is_one_line_each() {
        let refusal = Refusal { reason: "LEASE_LOST", detail: String::new(), message: "gone".to_owned() };
        let (right, heard): (Answer, Answer) = (Ok(Reply::Released), Err(refusal));
        let all = answers(&right, &heard, Describe::describe, replies);
        assert_eq!(
            all[0].to_string(),
            "the answer: expected accepted: Released, seen refused: LEASE_LOST: gone"
        );
        assert_eq!(answers(&right, &right, Describe::describe, replies), Vec::new());
    }
}
