//! What must hold in every state, and over every transition, of any order.

use std::collections::BTreeMap;

use kagzi_core::{
    Attempt, AttemptState, BeginOutcome, CompleteStepOutcome, Rules, RunState, Then, Timestamp,
};

use super::explore::State;
use super::program::Action;
use crate::history::Rows;
use crate::record::{Answer, Call, Reply};
use crate::scenario::{LEASE, check as holds};
use crate::violation::Verdict;

/// The step and the attempt that a caller was told to execute, if it was.
pub(super) fn told_to_execute(call: &Call, reply: &Reply) -> Option<(String, u32)> {
    match (call, reply) {
        (Call::BeginStep(begin), Reply::Begun(BeginOutcome::Execute { attempt })) => {
            Some((begin.step.step_id.to_string(), *attempt))
        }
        (
            Call::CompleteStep(complete),
            Reply::StepCompleted(CompleteStepOutcome::RecordedAndNext(BeginOutcome::Execute { attempt })),
        ) => match &complete.then {
            Then::Begin(next) => Some((next.step_id.to_string(), *attempt)),
            Then::Nothing | Then::CompleteRun(_) => None,
        },
        _ => None,
    }
}

/// Checks a transition and the state that it leads to.
pub(super) fn check(
    before: &State,
    action: Action,
    sent: Option<&(Call, Answer)>,
    after: &State,
    rules: &Rules,
    now: Timestamp,
) -> Verdict {
    a_state(after, rules, now)?;
    a_transition(&before.rows, &after.rows)?;
    if let Some((call, answer)) = sent {
        an_answer(before, action, call, answer, after)?;
    }
    Ok(())
}

fn a_state(state: &State, rules: &Rules, now: Timestamp) -> Verdict {
    let run = &state.rows.run;
    let held = run.worker_id.is_some() && run.lease_expires_at.is_some() && run.claim_operation.is_some();
    holds(held == (run.state == RunState::Running), "a lease is there exactly while RUNNING [1]", held, run)?;
    let holders = state.actors.workers.iter().filter_map(|worker| worker.lease.as_ref()).filter(|lease| {
        held && lease.fencing_token == run.fencing_token && run.worker_id.as_ref() == Some(&lease.worker_id)
    });
    holds(holders.count() <= 1, "at most one worker holds the run [1]", "0 or 1", &state.actors)?;
    let mut steps: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for attempt in state.rows.attempts() {
        steps.entry(attempt.step_id.as_str()).or_default().push(attempt);
    }
    for attempts in steps.values() {
        let count = |wanted| attempts.iter().filter(|a| a.state == wanted).count();
        let numbers: Vec<u32> = attempts.iter().map(|a| a.attempt).collect();
        let dense: Vec<u32> = (1..).take(numbers.len()).collect();
        holds(numbers == dense, "attempts are numbered from 1 without gaps [5]", dense, numbers)?;
        holds(count(AttemptState::Running) <= 1, "at most one attempt is RUNNING [3]", "0 or 1", attempts)?;
        holds(count(AttemptState::Completed) <= 1, "at most one is COMPLETED [3]", "0 or 1", attempts)?;
        let current =
            |a: &&Attempt| a.state != AttemptState::Running || (held && a.fencing_token == run.fencing_token);
        holds(attempts.iter().all(current), "a RUNNING attempt is its holder's [5]", run, attempts)?;
    }
    if run.state.is_terminal() {
        return Ok(());
    }
    holds(run.lost_leases < rules.poison_after, "a poison run ends [14]", rules.poison_after, run)?;
    // However it came here: once its lease has run out, the run is claimable or has ended.
    let later = now.saturating_add(LEASE * 2);
    let repaired = state.rows.repaired(rules, later);
    let then = repaired.as_ref().map_or(run.state, |rows| rows.run.state);
    holds(then == RunState::Pending || then.is_terminal(), "no run is stuck for ever [10]", "PENDING", then)
}

fn a_transition(before: &Rows, after: &Rows) -> Verdict {
    let (old, new) = (&before.run, &after.run);
    holds(
        new.fencing_token >= old.fencing_token,
        "tokens only grow [1]",
        old.fencing_token,
        new.fencing_token,
    )?;
    let claims = new.claims - old.claims;
    let tokens = new.fencing_token.get() - old.fencing_token.get();
    holds(i64::from(claims) == tokens, "each claim has a token of its own [1]", claims, tokens)?;
    if old.state.is_terminal() {
        let same = old == new && before.attempts().eq(after.attempts());
        holds(same, "terminal states are final, whoever writes next [6]", old, new)?;
    }
    for attempt in before.attempts() {
        let same = |other: &&Attempt| other.step_id == attempt.step_id && other.attempt == attempt.attempt;
        let later = after.attempts().find(same);
        let kept = match attempt.state {
            AttemptState::Running => later.is_some(),
            _ => later == Some(attempt),
        };
        holds(kept, "attempts are only appended, and what ended stays as it is [4, 5]", attempt, later)?;
    }
    Ok(())
}

fn an_answer(before: &State, action: Action, call: &Call, answer: &Answer, after: &State) -> Verdict {
    let unchanged = before.rows == after.rows;
    let accepted = match answer {
        Err(_) => false,
        Ok(Reply::Beats(verdicts)) => verdicts.iter().all(Result::is_ok),
        Ok(_) => true,
    };
    let by = match action {
        Action::GoOn(number) | Action::Beat(number) | Action::Late(number) => number,
        Action::Claim(_) | Action::Crash(_) | Action::Reap | Action::Cancel | Action::Turn => {
            return holds(accepted, "claims, reaps and cancellations are accepted", "an answer", answer);
        }
    };
    holds(accepted || unchanged, "a refusal changes nothing [15]", "the same rows", &after.rows.run)?;
    let run = &before.rows.run;
    let right = crate::history::lease_of(call).is_some_and(|lease| {
        run.state == RunState::Running
            && run.fencing_token == lease.fencing_token
            && run.worker_id.as_ref() == Some(&lease.worker_id)
    });
    holds(unchanged || right, "only the holder writes [2]", run, call)?;
    if let Action::Late(_) = action {
        holds(
            unchanged,
            "what arrives a second time has no second effect [8]",
            "the same rows",
            &after.rows,
        )?;
        let first = before.actors.workers[by].last.as_ref().map(|(_, answer)| answer);
        let same = !matches!(call, Call::CompleteStep(_) | Call::CompleteRun(_)) || first == Some(answer);
        holds(same, "a completion that arrives again gets its first answer [8]", first, answer)?;
    } else if let Ok(reply) = answer
        && let Some(executed) = told_to_execute(call, reply)
    {
        let other = before.told.get(&executed);
        holds(other.is_none(), "of each attempt one is told to execute it, once [3]", executed, other)?;
    }
    Ok(())
}
