//! The attempts of steps, and what was acknowledged about them.

use std::collections::{BTreeMap, HashMap};

use kagzi_core::{Attempt, AttemptState, RunId, RunState, StepKind};

use super::{Found, Look, Rule, Stored};
use crate::event::{Answer, Call, Operation, Then, words};
use crate::log::History;
use crate::recording::completed;

pub(super) fn judge(history: &History, stored: &Look, found: &mut Vec<Found>) {
    let mut sent: HashMap<RunId, Vec<&Call>> = HashMap::new();
    for heard in &history.heard {
        if matches!(heard.call, Call::Complete { .. } | Call::Finish { .. } | Call::Sleep { .. }) {
            sent.entry(heard.run).or_default().push(&heard.call);
        }
    }
    for (run, stored) in stored {
        let mut tell = |rule, detail| found.push(Found { rule, run: Some(*run), detail });
        let mut steps: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
        for attempt in &stored.attempts {
            steps.entry(attempt.step_id.as_str()).or_default().push(attempt);
        }
        for (step, attempts) in &mut steps {
            attempts.sort_by_key(|attempt| attempt.attempt);
            history_of_step(stored, step, attempts, &mut tell);
        }
        let sent = sent.get(run).map(Vec::as_slice).unwrap_or_default();
        for attempt in stored.attempts.iter().filter(|attempt| attempt.state == AttemptState::Completed) {
            if !sent.iter().any(|call| is_completion_of(call, attempt)) {
                tell(Rule::CompletionWasSent, format!("{attempt:?}"));
            }
        }
        if stored.record.run.state == RunState::Completed {
            result(stored, sent, &mut tell);
        }
    }
    acknowledged(history, stored, found);
    repeats(history, found);
}

fn history_of_step(stored: &Stored, step: &str, attempts: &[&Attempt], tell: &mut impl FnMut(Rule, String)) {
    let told: Vec<_> = attempts.iter().map(|a| (a.attempt, a.state, a.fencing_token.get())).collect();
    let dense = attempts.iter().zip(1..).all(|(attempt, number)| attempt.attempt == number);
    let grow = attempts.windows(2).all(|two| two[0].fencing_token < two[1].fencing_token);
    let within = attempts.iter().all(|attempt| attempt.fencing_token <= stored.record.run.fencing_token);
    let open = stored.record.run.state.is_terminal()
        && attempts.iter().any(|attempt| attempt.state == AttemptState::Running);
    if !dense || !grow || !within || open {
        tell(Rule::AttemptsAreDense, format!("step {step}: {told:?}"));
    }
    let done = attempts.iter().filter(|attempt| attempt.state == AttemptState::Completed).count();
    let last = attempts.last().is_some_and(|attempt| attempt.state == AttemptState::Completed);
    if done > 1 || done == 1 && !last {
        tell(Rule::CompletedOnce, format!("step {step}: {told:?}"));
    }
}

fn is_completion_of(call: &Call, attempt: &Attempt) -> bool {
    let same =
        |token: i64, step: &str| token == attempt.fencing_token.get() && step == attempt.step_id.as_str();
    match call {
        Call::Complete { token, step, attempt: number, output, .. } => {
            attempt.kind == StepKind::Task
                && same(*token, step)
                && *number == attempt.attempt
                && attempt.output.as_ref().map(words).as_ref() == Some(output)
        }
        Call::Sleep { token, step, .. } => attempt.kind == StepKind::Sleep && same(*token, step),
        _ => false,
    }
}

/// The output of a run that completed.
fn result(stored: &Stored, sent: &[&Call], tell: &mut impl FnMut(Rule, String)) {
    let output = stored.record.output.as_ref().map(words).unwrap_or_default();
    let was_sent = sent.iter().any(|call| match call {
        Call::Finish { output: sent, .. } | Call::Complete { then: Then::Finish(sent), .. } => {
            *sent == output
        }
        _ => false,
    });
    let tasks: Vec<Attempt> =
        stored.attempts.iter().filter(|attempt| attempt.kind == StepKind::Task).cloned().collect();
    let mut expected: Vec<String> = completed(&tasks).into_values().collect();
    let seen: Result<Vec<String>, _> = serde_json::from_str(&output);
    let mut seen: Vec<String> =
        seen.unwrap_or_default().iter().filter_map(|output| serde_json::to_string(output).ok()).collect();
    expected.sort();
    seen.sort();
    if !was_sent || expected != seen {
        tell(Rule::ResultIsKept, format!("recorded {output}, of steps {expected:?}, sent: {was_sent}"));
    }
}

/// What was acknowledged is recorded.
fn acknowledged(history: &History, stored: &Look, found: &mut Vec<Found>) {
    for heard in history.heard.iter().filter(|heard| heard.answer.is_acknowledgement()) {
        let recorded = stored.get(&heard.run);
        let attempts = recorded.map(|stored| stored.attempts.as_slice()).unwrap_or_default();
        let finished_with = |output: &str| {
            recorded.is_some_and(|stored| {
                stored.record.run.state == RunState::Completed
                    && stored.record.output.as_ref().map(words).as_deref() == Some(output)
            })
        };
        let kept = match &heard.call {
            Call::Complete { then, .. } => {
                let completed = attempts.iter().any(|attempt| {
                    attempt.state == AttemptState::Completed && is_completion_of(&heard.call, attempt)
                });
                completed && if let Then::Finish(output) = then { finished_with(output) } else { true }
            }
            Call::Sleep { .. } => attempts.iter().any(|attempt| is_completion_of(&heard.call, attempt)),
            Call::Finish { output, .. } => finished_with(output),
            Call::Fail { token, step, attempt: number, .. } => attempts.iter().any(|attempt| {
                attempt.step_id.as_str() == step
                    && attempt.attempt == *number
                    && attempt.fencing_token.get() == *token
                    && attempt.state == AttemptState::Failed
            }),
            Call::Cancel { .. } if heard.answer == Answer::Done => {
                recorded.is_some_and(|stored| stored.record.run.state == RunState::Cancelled)
            }
            _ => true,
        };
        if !kept {
            let detail = format!("{:?} was answered {:?} to {}", heard.call, heard.answer, heard.who);
            found.push(Found { rule: Rule::CompletionIsKept, run: Some(heard.run), detail });
        }
    }
}

/// Answers to the same operation do not differ.
fn repeats(history: &History, found: &mut Vec<Found>) {
    let mut answers: HashMap<Operation, &Answer> = HashMap::new();
    for heard in history.heard.iter().filter(|heard| heard.answer.is_acknowledgement()) {
        let operation = match &heard.call {
            Call::Cancel { operation }
            | Call::Requeue { operation }
            | Call::Fail { operation, .. }
            | Call::FailRun { operation, .. }
            | Call::Complete { operation, then: Then::Nothing | Then::Finish(_), .. } => *operation,
            _ => continue,
        };
        let first = *answers.entry(operation).or_insert(&heard.answer);
        if *first != heard.answer {
            let detail = format!("{:?} was answered {first:?}, then {:?}", heard.call, heard.answer);
            found.push(Found { rule: Rule::RepeatsAgree, run: Some(heard.run), detail });
        }
    }
}
