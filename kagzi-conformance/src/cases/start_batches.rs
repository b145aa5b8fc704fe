//! Starting several runs in one batch: all of them or none.

use std::collections::HashSet;
use std::time::Duration;

use kagzi_core::{Payload, RunFilter, StartOutcome, StartRun, Started};

use crate::case::cases;
use crate::scenario::{Scenario, check, equal, race, refused, under};
use crate::violation::{Verdict, Violation};

use super::start::{again, keyed};

cases! {
    "start";
    [15] a_batch_answers_in_order;
    [7] a_key_twice_in_one_batch_makes_one_run_and_reports_the_duplicate;
    [7, 15] a_key_twice_in_one_batch_for_other_things_is_refused;
    [8, 15] an_operation_twice_in_one_batch_makes_one_run_and_is_reported_as_such;
    [8, 15] an_operation_twice_in_one_batch_for_other_things_is_refused;
    [7, 15] a_batch_reports_which_of_its_runs_existed;
    [15] a_batch_with_a_conflict_starts_nothing;
    [15] a_large_batch_with_a_conflict_at_its_end_starts_nothing;
    [15] a_batch_with_an_invalid_run_starts_nothing;
    [8, 15] a_batch_sent_again_gives_the_same_answers;
    [15] a_batch_of_a_thousand_runs_starts_them_all;
    [15] two_concurrent_batches_with_the_same_keys_in_opposite_order_both_end;
    [15] an_empty_batch_is_refused;
}

async fn a_batch_answers_in_order(s: Scenario) -> Verdict {
    let batch: Vec<StartRun> = (0..50)
        .map(|number| StartRun { input: Payload::json(number.to_string()), ..s.start_request() })
        .collect();
    let asked: Vec<_> = batch.iter().map(StartRun::run_id).collect();
    let started = s.start_all(batch.clone()).await?;
    let answered: Vec<_> = started.iter().map(|started| started.run_id).collect();
    equal("answers come in the order of the batch", &asked, &answered)?;
    for start in batch.iter().step_by(7) {
        equal("each run has its own input", &start.input, &s.run(start.run_id()).await?.input)?;
    }
    Ok(())
}

async fn a_key_twice_in_one_batch_makes_one_run_and_reports_the_duplicate(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let started = s.start_all(vec![request.clone(), s.start_request(), again(&request)]).await?;
    let outcomes: Vec<_> = started.iter().map(|started| started.outcome).collect();
    let expected = vec![StartOutcome::Created, StartOutcome::Created, StartOutcome::Existing];
    equal("the duplicate is reported, in its place [7]", &expected, &outcomes)?;
    equal("and names the same run [7]", &started[0].run_id, &started[2].run_id)?;
    equal("two runs were made", &2, &s.claim("w1", 10).await?.len())
}

async fn an_operation_twice_in_one_batch_makes_one_run_and_is_reported_as_such(s: Scenario) -> Verdict {
    for known in [false, true] {
        let request = if known { keyed(&s, "k")? } else { s.start_request() };
        let batch = vec![request.clone(), s.start_request(), request.clone()];
        let expected: Vec<_> = batch
            .iter()
            .map(|start| Started { run_id: start.run_id(), outcome: StartOutcome::Created })
            .collect();
        // Sent again, all of them are known, and the answers are the same.
        for _ in 0..2 {
            let started = s.start_all(batch.clone()).await?;
            equal("an operation twice in a batch is told of its one run twice [8]", &expected, &started)?;
        }
        equal("and made it once [8]", &2, &s.claim("w1", 10).await?.len())?;
    }
    Ok(())
}

async fn a_key_twice_in_one_batch_for_other_things_is_refused(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let other = StartRun { input: Payload::empty(), ..again(&request) };
    under(
        "a key that stands for two different runs of a batch starts neither [7, 15]",
        starts_nothing(&s, vec![s.start_request(), request, other], "IDEMPOTENCY_CONFLICT").await,
    )
}

async fn an_operation_twice_in_one_batch_for_other_things_is_refused(s: Scenario) -> Verdict {
    let request = s.start_request();
    let other = StartRun { input: Payload::empty(), ..request.clone() };
    under(
        "an operation that stands for two different runs of a batch starts neither [8, 15]",
        starts_nothing(&s, vec![s.start_request(), request, other], "OPERATION_CONFLICT").await,
    )
}

async fn a_batch_reports_which_of_its_runs_existed(s: Scenario) -> Verdict {
    let known = keyed(&s, "known")?;
    let first = s.start(known.clone()).await?;
    let started = s.start_all(vec![keyed(&s, "new")?, again(&known), s.start_request()]).await?;
    let outcomes: Vec<_> = started.iter().map(|started| started.outcome).collect();
    let expected = vec![StartOutcome::Created, StartOutcome::Existing, StartOutcome::Created];
    equal("each run of a batch is told apart [7]", &expected, &outcomes)?;
    equal("and the known one is found [7]", &first.run_id, &started[1].run_id)
}

async fn starts_nothing(s: &Scenario, batch: Vec<StartRun>, reason: &str) -> Verdict {
    let ids: Vec<_> = batch.iter().map(StartRun::run_id).collect();
    let answer = s.store().start(batch).await;
    refused(&answer, reason, "a batch with one bad run is refused [15]")?;
    for run_id in ids {
        let read = s.store().get_run(s.namespace(), run_id).await;
        refused(&read, "RUN_NOT_FOUND", "a refused batch starts none of its runs [15]")?;
    }
    Ok(())
}

async fn a_batch_with_a_conflict_starts_nothing(s: Scenario) -> Verdict {
    let known = keyed(&s, "known")?;
    let first = s.start(known.clone()).await?;
    s.cancel(first.run_id).await?;
    let conflicting = StartRun { input: Payload::empty(), ..again(&known) };
    let batch = vec![s.start_request(), keyed(&s, "new")?, conflicting, s.start_request()];
    starts_nothing(&s, batch, "IDEMPOTENCY_CONFLICT").await?;
    s.nothing_claimable("a refused batch leaves no run behind [15]").await?;
    let later = s.start(keyed(&s, "new")?).await?;
    equal("its keys are still free [15]", &StartOutcome::Created, &later.outcome)
}

async fn a_large_batch_with_a_conflict_at_its_end_starts_nothing(s: Scenario) -> Verdict {
    /// More than a backend writes in one piece.
    const RUNS: usize = 3_000;
    let known = keyed(&s, "known")?;
    let first = s.start(known.clone()).await?;
    s.cancel(first.run_id).await?;
    let mut batch: Vec<StartRun> = (0..RUNS).map(|_| s.start_request()).collect();
    batch.push(StartRun { input: Payload::empty(), ..again(&known) });
    let rule = "a batch is refused for the last of it [15]";
    refused(&s.store().start(batch).await, "IDEMPOTENCY_CONFLICT", rule)?;
    let left = s.store().count_runs(s.namespace(), &RunFilter::default()).await;
    let left = left.map_err(|e| Violation::refused("a count", &e))?;
    equal("however large it is, a refused batch leaves no run behind [15]", &1, &left)
}

async fn a_batch_with_an_invalid_run_starts_nothing(s: Scenario) -> Verdict {
    let huge = StartRun { input: Payload::raw(vec![7; 4097]), ..s.start_request() };
    let batch = vec![s.start_request(), huge, s.start_request()];
    under("a batch with an invalid run starts nothing [15]", starts_nothing(&s, batch, "TOO_LARGE").await)
}

async fn a_batch_sent_again_gives_the_same_answers(s: Scenario) -> Verdict {
    let known = keyed(&s, "known")?;
    s.start(known.clone()).await?;
    let batch = vec![s.start_request(), again(&known), keyed(&s, "new")?];
    let first = s.start_all(batch.clone()).await?;
    s.turn(Duration::from_secs(1));
    equal("a batch sent again gets its first answers [8]", &first, &s.start_all(batch).await?)?;
    equal("and makes no further run [8]", &3, &s.claim("w1", 10).await?.len())
}

async fn a_batch_of_a_thousand_runs_starts_them_all(s: Scenario) -> Verdict {
    let ids: HashSet<_> = s.start_many(1000).await?.into_iter().collect();
    let claimed: HashSet<_> = s.claim("w1", 1000).await?.iter().map(|run| run.run.run_id).collect();
    check(claimed == ids, "a large batch is a batch [15]", ids.len(), claimed.len())
}

async fn two_concurrent_batches_with_the_same_keys_in_opposite_order_both_end(s: Scenario) -> Verdict {
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    let batch = keys.iter().map(|key| keyed(&s, key)).collect::<Result<Vec<_>, _>>()?;
    let answers = race(8, |number| {
        let s = s.clone();
        let mut batch: Vec<_> = batch.iter().map(again).collect();
        if number % 2 == 1 {
            batch.reverse();
        }
        async move { s.start_all(batch).await }
    })
    .await?;
    let runs: HashSet<_> = answers.iter().flatten().map(|started| started.run_id).collect();
    equal("each key names one run, in whatever order batches come [7]", &40, &runs.len())?;
    let created = answers.iter().flatten().filter(|s| s.outcome == StartOutcome::Created).count();
    equal("and each was created once [7]", &40, &created)
}

async fn an_empty_batch_is_refused(s: Scenario) -> Verdict {
    crate::scenario::invalid(&s.store().start(Vec::new()).await, "runs", "a batch holds 1 to 10,000 runs")
}
