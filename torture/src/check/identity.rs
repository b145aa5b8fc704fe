//! Which runs there are, whose they are, and how they ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kagzi_core::{AttemptState, DeadLetterReason, RunId, RunState};

use super::{Found, Look, Rule, Stored};
use crate::event::{Answer, Call, Operation, words};
use crate::log::History;
use crate::plan;

/// How many leases in a row must expire before a run is poison, unless configured otherwise.
const POISON_AFTER: u32 = 5;

/// A start, as far as it matters which run it makes.
struct Asked<'h> {
    namespace: &'h str,
    key: Option<&'h str>,
    input: &'h str,
}

/// Judges that the runs that exist are those that were asked for.
pub(super) fn judge(history: &History, stored: &Look, found: &mut Vec<Found>) {
    let mut asked: HashMap<RunId, Asked<'_>> = HashMap::new();
    let mut answers: BTreeMap<Operation, &Answer> = BTreeMap::new();
    let mut named: BTreeMap<(&str, &str), BTreeSet<RunId>> = BTreeMap::new();
    for heard in &history.heard {
        let Call::Start { operation, key, input } = &heard.call else { continue };
        let namespace = heard.namespace.as_ref();
        asked.entry(heard.run).or_insert(Asked { namespace, key: key.as_deref(), input });
        let Answer::Started { run, created } = heard.answer else { continue };
        if let Some(key) = key {
            named.entry((namespace, key.as_str())).or_default().insert(run);
        }
        if *answers.entry(*operation).or_insert(&heard.answer) != &heard.answer {
            let detail = format!("start {operation:?}: {:?}, then {:?}", answers[operation], heard.answer);
            found.push(Found { rule: Rule::RepeatsAgree, run: Some(run), detail });
        }
        let kept = stored.get(&run).is_some_and(|stored| {
            stored.namespace == namespace
                && words(&stored.record.input) == *input
                && stored.record.run.idempotency_key.as_ref().map(kagzi_core::IdempotencyKey::as_str)
                    == key.as_deref()
                && (!created || run == heard.run)
        });
        if !kept {
            let detail =
                format!("expected {run} with input {input} and key {key:?}, as {} was told", heard.who);
            found.push(Found { rule: Rule::StartIsKept, run: Some(run), detail });
        }
    }
    for (run, stored) in stored {
        if asked.get(run).is_none_or(|asked| asked.namespace != stored.namespace) {
            let detail = format!("nobody asked for {run} in {}", stored.namespace);
            found.push(Found { rule: Rule::RunWasAskedFor, run: Some(*run), detail });
        }
        if let Some(key) = asked.get(run).and_then(|asked| asked.key) {
            named.entry((stored.namespace.as_str(), key)).or_default().insert(*run);
        }
        if let Some(asked) = asked.get(run)
            && words(&stored.record.input) != asked.input
        {
            let detail = format!("expected the input {}, got {}", asked.input, words(&stored.record.input));
            found.push(Found { rule: Rule::StartIsKept, run: Some(*run), detail });
        }
    }
    for ((namespace, key), runs) in named.into_iter().filter(|(_, runs)| runs.len() > 1) {
        let detail = format!("key {key} of {namespace} names {runs:?}");
        found.push(Found { rule: Rule::KeyNamesOneRun, run: runs.first().copied(), detail });
    }
    foreign(history, &asked, found);
}

/// Whoever was answered about a run was of its namespace.
fn foreign(history: &History, asked: &HashMap<RunId, Asked<'_>>, found: &mut Vec<Found>) {
    for heard in &history.heard {
        let of = asked.get(&heard.run).map(|asked| asked.namespace);
        if heard.answer.is_acknowledgement() && of.is_some_and(|of| of != heard.namespace.as_ref()) {
            let detail = format!("{:?} by {} for {}, of {of:?}", heard.call, heard.who, heard.namespace);
            found.push(Found { rule: Rule::NamespaceKept, run: Some(heard.run), detail });
        }
    }
}

/// Judges how runs ended.
pub(super) fn ends(history: &History, first: &Look, second: &Look, found: &mut Vec<Found>) {
    for (run, stored) in first {
        let state = stored.record.run.state;
        if !state.is_terminal() {
            let detail = format!("it is {state}, due {}", stored.record.run.due_at);
            found.push(Found { rule: Rule::RunEnded, run: Some(*run), detail });
        }
        match second.get(run) {
            Some(later) if later == stored => {}
            later => {
                let detail = format!("first {stored:?}, later {later:?}");
                found.push(Found { rule: Rule::EndIsFinal, run: Some(*run), detail });
            }
        }
        if state == RunState::Failed && !is_explained(stored) {
            let detail = format!("its reason is {:?}", stored.record.run.dead_letter);
            found.push(Found { rule: Rule::EndIsExplained, run: Some(*run), detail });
        }
    }
    for run in second.keys().filter(|run| !first.contains_key(run)) {
        let detail = "it was not there at the first look".to_owned();
        found.push(Found { rule: Rule::EndIsFinal, run: Some(*run), detail });
    }
    let cancelled: BTreeSet<RunId> = history
        .heard
        .iter()
        .filter(|heard| matches!(heard.call, Call::Cancel { .. }))
        .map(|heard| heard.run)
        .collect();
    for (run, stored) in first {
        if stored.record.run.state == RunState::Cancelled && !cancelled.contains(run) {
            let detail = "nobody cancelled it".to_owned();
            found.push(Found { rule: Rule::EndIsExplained, run: Some(*run), detail });
        }
    }
}

/// Whether the reason of a dead letter is borne out by its record.
fn is_explained(stored: &Stored) -> bool {
    let run = &stored.record.run;
    let failed = |wanted: u32| {
        let fresh = stored.attempts.iter().filter(|attempt| {
            attempt.state == AttemptState::Failed && attempt.fencing_token > run.budget_token
        });
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for attempt in fresh {
            *counts.entry(attempt.step_id.as_str()).or_default() += 1;
        }
        counts.values().any(|count| *count >= wanted)
    };
    match run.dead_letter {
        Some(DeadLetterReason::RetriesExhausted) => {
            let most = run.retry.as_ref().map_or(1, |policy| policy.max_attempts);
            failed(most) || run.failures >= most
        }
        Some(DeadLetterReason::NonRetryable) => failed(1),
        Some(DeadLetterReason::RunTimeout) => {
            let input: Option<plan::Input> = serde_json::from_slice(&stored.record.input.bytes).ok();
            input.is_some_and(|input| plan::Plan::of(input.number).run_timeout.is_some())
        }
        Some(DeadLetterReason::Poison) => run.claims >= POISON_AFTER,
        None => false,
    }
}
