//! Whole workflows by workers that lose replies.

use std::sync::Arc;

use fastrand::Rng;
use kagzi_core::{
    AttemptState, BeginOutcome, BeginStep, ClaimedRun, CompleteStep, CompleteStepOutcome, ListRuns, NextStep,
    OperationId, PageRequest, Payload, RunFilter, RunState, SharedStore, Then,
};

use super::Connection;
use crate::case::cases;
use crate::record::{Call, Describe, Reply};
use crate::scenario::{Scenario, check, equal, race, step_id, under};
use crate::violation::{Verdict, Violation};

cases! { "fault";
    [3, 8, 15] workflows_over_lines_with_faults_end_as_without;
    [3, 8, 15] workflows_over_two_servers_and_lines_with_faults_end_as_without needs SecondHandle;
}

/// How many steps a workflow has.
const STEPS: u32 = 3;

/// How many operations it costs, about, each sent twice on the average.
const OPERATIONS: usize = 12;

/// How many workers drive them.
const WORKERS: usize = 4;

async fn workflows_over_lines_with_faults_end_as_without(s: Scenario) -> Verdict {
    let store = s.shared_store();
    under(
        "workflows over lines with faults end as without [8]",
        workflows(s, [Arc::clone(&store), store], 31).await,
    )
}

async fn workflows_over_two_servers_and_lines_with_faults_end_as_without(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    let handles = [s.shared_store(), second.shared_store()];
    under(
        "workflows over two servers and lines with faults end as without [8]",
        workflows(s, handles, 32).await,
    )
}

async fn workflows(s: Scenario, handles: [SharedStore; 2], salt: u64) -> Verdict {
    let count = s.settings().fault_operations.div_ceil(OPERATIONS);
    let mut dice = Rng::with_seed(s.settings().seed.wrapping_mul(31).wrapping_add(salt));
    let client = Connection::faulty(Arc::clone(&handles[0]), dice.u64(..));
    for _ in 0..count {
        let start = s.start_request();
        match client.insist(&Call::Start(vec![start])).await? {
            Ok(Reply::Started(_)) => {}
            other => return Err(unexpected("a start", &other)),
        }
    }
    let seeds: Vec<u64> = (0..WORKERS).map(|_| dice.u64(..)).collect();
    race(WORKERS, |number| {
        let line = Connection::faulty(Arc::clone(&handles[number % 2]), seeds[number]);
        let s = s.clone();
        async move { work(&s, &line, &format!("w{number}")).await }
    })
    .await?;
    all_are_as_after_a_clean_run(&s, count).await
}

fn unexpected(what: &str, answer: &impl Describe) -> Violation {
    Violation::new(format!("{what} that is sent again gets its first answer [8]"), "it", answer.describe())
}

/// Claims and executes until nothing is left.
async fn work(s: &Scenario, line: &Connection, name: &str) -> Verdict {
    loop {
        let claimed = match line.insist(&Call::Claim(s.claim_request(name, 2)?)).await? {
            Ok(Reply::Claimed(claimed)) => claimed,
            other => return Err(unexpected("a claim", &other)),
        };
        if claimed.is_empty() {
            return Ok(());
        }
        for run in claimed {
            execute(line, run).await?;
        }
    }
}

fn output(number: u32) -> Payload {
    Payload::json(format!("\"output of step {number}\""))
}

async fn execute(line: &Connection, claimed: ClaimedRun) -> Verdict {
    let lease = claimed.lease.lease;
    let step = |number: u32| -> Result<NextStep, Violation> {
        Ok(NextStep::new(step_id(format!("step{number}"))?, number))
    };
    let request = BeginStep { lease: lease.clone(), step: step(0)?, operation: OperationId::generate() };
    let first = line.insist(&Call::BeginStep(request)).await?;
    if first != Ok(Reply::Begun(BeginOutcome::Execute { attempt: 1 })) {
        return Err(unexpected("a begin", &first));
    }
    for number in 0..STEPS {
        let (then, expected) = if number + 1 < STEPS {
            let begun = BeginOutcome::Execute { attempt: 1 };
            (Then::Begin(step(number + 1)?), CompleteStepOutcome::RecordedAndNext(begun))
        } else {
            (Then::CompleteRun(output(STEPS)), CompleteStepOutcome::RecordedAndRunCompleted)
        };
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(number)?.step_id,
            attempt: 1,
            output: output(number),
            then,
            operation: OperationId::generate(),
        };
        let answer = line.insist(&Call::CompleteStep(complete)).await?;
        if answer != Ok(Reply::StepCompleted(expected)) {
            return Err(unexpected("a completion", &answer));
        }
    }
    Ok(())
}

async fn all_are_as_after_a_clean_run(s: &Scenario, count: usize) -> Verdict {
    let rule = "what replies were lost on the way leaves no trace [8]";
    let runs = s
        .store()
        .list_runs(&ListRuns {
            namespace: s.namespace().clone(),
            filter: RunFilter::default(),
            page: PageRequest::first(10_000),
        })
        .await
        .map_err(|error| Violation::refused("listing runs", &error))?;
    equal("each start made one run [8]", &count, &runs.items.len())?;
    for run in runs.items {
        let record = s.run(run.run_id).await?;
        let seen = (record.run.state, record.run.claims, record.run.fencing_token.get(), record.output);
        equal(rule, &(RunState::Completed, 1, 1, Some(output(STEPS))), &seen)?;
        let attempts = s.attempts(run.run_id).await?;
        equal("each step has one attempt [3]", &(STEPS as usize), &attempts.len())?;
        for (attempt, number) in attempts.into_iter().zip(0..) {
            check(
                attempt.attempt == 1
                    && attempt.state == AttemptState::Completed
                    && attempt.output == Some(output(number)),
                "and its output is the one that was sent [4]",
                "attempt 1, COMPLETED, with its output",
                attempt,
            )?;
        }
    }
    Ok(())
}
