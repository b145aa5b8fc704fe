//! What the code of workflows did: when it executed, and what it was given.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kagzi_core::RunId;

use super::{Found, Look, Rule};
use crate::event::{Answer, Begun, Call, Deed, Then};
use crate::log::History;
use crate::recording::completed;

/// One execution of a run: who, and the run's so-manieth claim.
type Execution = (RunId, Arc<str>, u32);

pub(super) fn judge(history: &History, stored: &Look, found: &mut Vec<Found>) {
    let tokens = tokens(history, found);
    permissions(history, &tokens, found);
    replays(history, stored, found);
}

/// The token of each execution. No two claims of a run get the same one.
fn tokens(history: &History, found: &mut Vec<Found>) -> HashMap<Execution, i64> {
    let mut tokens = HashMap::new();
    let mut taken: BTreeMap<(RunId, i64), (Arc<str>, u32)> = BTreeMap::new();
    for heard in &history.heard {
        let Call::Claim { token, claims, .. } = heard.call else { continue };
        tokens.insert((heard.run, Arc::clone(&heard.who), claims), token);
        let holder = (Arc::clone(&heard.who), claims);
        let first = taken.entry((heard.run, token)).or_insert_with(|| holder.clone());
        if *first != holder {
            let detail = format!("token {token} was given to {first:?} and to {holder:?}");
            found.push(Found { rule: Rule::TokensDiffer, run: Some(heard.run), detail });
        }
    }
    tokens
}

/// Every execution was permitted, and every permission used once at most.
fn permissions(history: &History, tokens: &HashMap<Execution, i64>, found: &mut Vec<Found>) {
    // By run, token and step: the attempts that somebody was told to execute.
    let mut permitted: HashMap<(RunId, i64, &str), BTreeSet<u32>> = HashMap::new();
    for heard in &history.heard {
        let (token, step, begun) = match (&heard.call, &heard.answer) {
            (Call::Begin { token, step, .. }, Answer::Begun(begun)) => (*token, step, begun),
            (Call::Complete { token, then: Then::Begin(step), .. }, Answer::RecordedAndNext(begun)) => {
                (*token, step, begun)
            }
            _ => continue,
        };
        if let Begun::Execute(attempt) = begun {
            permitted.entry((heard.run, token, step)).or_default().insert(*attempt);
        }
    }
    let mut executed: BTreeMap<(RunId, i64, &str), usize> = BTreeMap::new();
    for deed in history.deeds.iter().filter(|deed| deed.got.is_none()) {
        match tokens.get(&(deed.run, Arc::clone(&deed.who), deed.claims)) {
            Some(token) => *executed.entry((deed.run, *token, deed.step.as_str())).or_default() += 1,
            None => found.push(Found {
                rule: Rule::ExecutedByPermission,
                run: Some(deed.run),
                detail: format!("{deed:?} without a claim"),
            }),
        }
    }
    for ((run, token, step), times) in executed {
        let attempts = permitted.get(&(run, token, step));
        let rule = match attempts.map_or(0, BTreeSet::len) {
            0 => Rule::ExecutedByPermission,
            // A lease has one attempt of a step at most: a failed one ends it.
            permissions if permissions > 1 || times > permissions => Rule::OneExecutionAnAttempt,
            _ => continue,
        };
        let detail =
            format!("{step} was executed {times} times under token {token}, permitted: {attempts:?}");
        found.push(Found { rule, run: Some(run), detail });
    }
}

/// What code got without executing it is what is recorded; what it got at all is recorded before it
/// executes the next step.
fn replays(history: &History, stored: &Look, found: &mut Vec<Found>) {
    let mut executions: BTreeMap<Execution, Vec<&Deed>> = BTreeMap::new();
    for deed in &history.deeds {
        executions.entry((deed.run, Arc::clone(&deed.who), deed.claims)).or_default().push(deed);
    }
    for ((run, who, claims), deeds) in executions {
        let recorded = stored.get(&run).map(|stored| completed(&stored.attempts)).unwrap_or_default();
        let executed: BTreeSet<&str> =
            deeds.iter().filter(|deed| deed.got.is_none()).map(|deed| deed.step.as_str()).collect();
        for (at, deed) in deeds.iter().enumerate() {
            let Some(got) = &deed.got else { continue };
            let replayed = !executed.contains(deed.step.as_str());
            // A step side by side with it was begun before, and may execute all the same.
            let went_on =
                deeds[at..].iter().any(|later| later.got.is_none() && !is_beside(&later.step, &deed.step));
            let expected = recorded.get(&deed.step);
            if (replayed || went_on) && expected != Some(got) {
                let detail = format!(
                    "{who} got {got} of {} in claim {claims} (replayed: {replayed}), recorded is {expected:?}",
                    deed.step
                );
                found.push(Found { rule: Rule::ReplayIsTheRecord, run: Some(run), detail });
            }
        }
    }
}

/// Whether two steps are the two sides of a pair.
fn is_beside(one: &str, other: &str) -> bool {
    let pair = |step: &str| step.strip_suffix("-left").or(step.strip_suffix("-right")).map(str::to_owned);
    pair(one).is_some() && pair(one) == pair(other)
}
