//! Reaping: what time did to leases and sleepers, repaired in bounded pieces.

use std::time::Duration;

use kagzi_core::{
    AttemptState, Claim, DeadLetterReason, FailureKind, MoreDue, Payload, Reaped, RunState, StartAt,
    StartRun, StepsGivenUp, Then,
};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, hiccup, invalid, race, under};
use crate::violation::{Verdict, Violation};

cases! {
    "reap";
    [14] an_empty_store_has_nothing_to_reap;
    [14] an_expired_lease_returns_its_run_due_at_once;
    [5, 14] the_open_attempts_of_an_expired_lease_are_abandoned;
    [1, 14] live_leases_are_untouched;
    [14] pending_runs_are_untouched;
    [14] at_most_the_limit_is_treated_the_longest_overdue_first;
    [14] the_longest_overdue_come_first_whatever_their_ids;
    [14] repeated_reaps_drain_everything;
    [14] a_large_reap_treats_all_or_says_that_more_is_due;
    [14] a_reap_that_did_all_says_no_more_is_due;
    [14] the_numbers_reported_are_the_numbers_done;
    [14] eight_concurrent_reapers_treat_each_of_a_thousand_once;
    [14] reapers_on_two_handles_treat_each_run_once needs SecondHandle;
    [1, 14] reapers_against_claimers_each_run_goes_to_one;
    [14] a_reap_treats_every_namespace;
    [14] a_poison_run_becomes_a_dead_letter;
    [14] a_finished_step_resets_the_poison_count;
    [14] a_sleep_resets_the_poison_count;
    [14] a_retry_resets_the_poison_count;
    [14] a_release_resets_the_poison_count;
    [14] a_completion_resets_the_poison_count;
    [14] a_step_that_finished_under_an_older_lease_is_no_progress;
    [14] a_limit_of_zero_is_refused;
}

/// `count` runs held by `w1` whose leases have expired.
async fn expired(s: &Scenario, count: u32) -> Result<Vec<Held>, Violation> {
    s.start_many(count as usize).await?;
    let held = s.claim("w1", count).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    s.turn(LEASE);
    Ok(held)
}

async fn an_empty_store_has_nothing_to_reap(s: Scenario) -> Verdict {
    equal("nothing is due in an empty store", &Reaped::default(), &s.reap(100).await?)?;
    s.turn(Duration::from_hours(1000));
    equal("nor later", &Reaped::default(), &s.reap(100).await?)
}

async fn an_expired_lease_returns_its_run_due_at_once(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(LEASE + Duration::from_secs(5));
    let mut expected = held.snapshot().await?;
    let run = &mut expected.record.run;
    run.state = RunState::Pending;
    (run.worker_id, run.lease_expires_at, run.claim_operation) = (None, None, None);
    run.lost_leases = 1;
    run.due_at = s.now();
    run.updated_at = s.now();
    equal("one lease is taken back", &1, &s.reap(10).await?.leases_expired)?;
    s.unchanged(&expected, "an expired lease returns its run, due now, and changes nothing else [14]")
        .await?;
    equal("and it is claimable [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn the_open_attempts_of_an_expired_lease_are_abandoned(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("a").await?;
    held.begin("b").await?;
    s.turn(LEASE);
    s.reap(10).await?;
    let attempts = s.attempts(held.run_id()).await?;
    let states: Vec<_> = attempts.iter().map(|a| (a.step_id.as_str(), a.state)).collect();
    let (abandoned, completed) = (AttemptState::Abandoned, AttemptState::Completed);
    let expected = vec![("a", abandoned), ("b", abandoned), ("done", completed)];
    equal("no attempt is left running for nobody [5]", &expected, &states)?;
    equal("they end when they are reaped", &Some(s.now()), &attempts[0].finished_at)
}

async fn live_leases_are_untouched(s: Scenario) -> Verdict {
    let dead = s.held().await?;
    s.turn(Duration::from_secs(10));
    let live = s.held().await?;
    live.begin("a").await?;
    let before = live.snapshot().await?;
    s.turn(Duration::from_secs(20));
    equal("the expired one is treated", &1, &s.reap(10).await?.total())?;
    equal("and no other", &RunState::Pending, &s.run(dead.run_id()).await?.run.state)?;
    s.unchanged(&before, "a live lease is untouched [1]").await
}

async fn pending_runs_are_untouched(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    s.turn(Duration::from_hours(100));
    equal("a run that waits for a worker is not overdue", &0, &s.reap(10).await?.total())?;
    s.unchanged(&before, "and stays as it is").await
}

async fn at_most_the_limit_is_treated_the_longest_overdue_first(s: Scenario) -> Verdict {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(s.held().await?.run_id());
        s.turn(Duration::from_secs(1));
    }
    s.turn(LEASE);
    for treated in [2, 4, 5] {
        let reaped = s.reap(2).await?;
        let expected = if treated == 5 { 1 } else { 2 };
        equal("a reap treats its limit of what is due [14]", &expected, &reaped.leases_expired)?;
        for (place, run_id) in ids.iter().enumerate() {
            let state = s.run(*run_id).await?.run.state;
            let expected = if place < treated { RunState::Pending } else { RunState::Running };
            equal("the longest overdue come first [14]", &expected, &state)?;
        }
    }
    Ok(())
}

async fn the_longest_overdue_come_first_whatever_their_ids(s: Scenario) -> Verdict {
    let ids = s.start_many(6).await?;
    let held: Vec<Held> = s.claim("w1", 6).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    // The youngest run expires first.
    for one in held.iter().rev() {
        s.turn(Duration::from_secs(1));
        one.heartbeat().await?;
    }
    s.turn(LEASE);
    for treated in 1..=ids.len() {
        equal("a reap treats its limit [14]", &1, &s.reap(1).await?.leases_expired)?;
        for (place, one) in held.iter().rev().enumerate() {
            let expected = if place < treated { RunState::Pending } else { RunState::Running };
            equal("the longest overdue come first [14]", &expected, &s.run(one.run_id()).await?.run.state)?;
        }
    }
    Ok(())
}

async fn a_large_reap_treats_all_or_says_that_more_is_due(s: Scenario) -> Verdict {
    /// More than a backend treats in one piece.
    const RUNS: u32 = 1_500;
    expired(&s, RUNS).await?;
    let mut treated = 0;
    loop {
        let reaped = s.reap(10_000).await?;
        treated += reaped.total();
        if reaped.more == MoreDue::No || reaped.total() == 0 {
            break;
        }
    }
    equal("who asks again as long as more is due treats all, in however large steps [14]", &RUNS, &treated)
}

async fn repeated_reaps_drain_everything(s: Scenario) -> Verdict {
    expired(&s, 95).await?;
    let mut sizes = Vec::new();
    loop {
        let reaped = s.reap(20).await?;
        sizes.push(reaped.total());
        if reaped.more == MoreDue::No {
            break;
        }
    }
    equal("full reaps until the rest [14]", &vec![20, 20, 20, 20, 15], &sizes)?;
    equal("nothing is left", &0, &s.reap(20).await?.total())?;
    equal("and all is claimable [10]", &95, &s.claim("w2", 1000).await?.len())
}

async fn a_reap_that_did_all_says_no_more_is_due(s: Scenario) -> Verdict {
    expired(&s, 3).await?;
    equal("a full reap says that more may be due", &MoreDue::Maybe, &s.reap(2).await?.more)?;
    equal("one that did all says that there is no more", &MoreDue::No, &s.reap(2).await?.more)?;
    equal("as does one that found nothing", &MoreDue::No, &s.reap(2).await?.more)
}

async fn the_numbers_reported_are_the_numbers_done(s: Scenario) -> Verdict {
    let after = Duration::from_secs(20);
    // Two poison runs: two leases lost before, the third at the reap.
    let poison = s.on_queue("poison")?;
    poison.start_many(2).await?;
    for _ in 0..2 {
        equal("both are held", &2, &poison.claim("w1", 2).await?.len())?;
        s.turn(LEASE);
    }
    poison.claim("w1", 2).await?;
    // Three sleepers, four runs with a deadline, five with a step timeout, six plain leases.
    let asleep = StartRun { start_at: StartAt::After(after), ..s.start_request() };
    let bounded = StartRun { run_timeout: Some(after), ..s.start_request() };
    for (request, count) in [(asleep, 3), (bounded, 4)] {
        let fresh = |_| StartRun { operation: kagzi_core::OperationId::generate(), ..request.clone() };
        s.start_all((0..count).map(fresh).collect()).await?;
    }
    let steps = s.on_queue("steps")?;
    steps.start_many(5).await?;
    for run in steps.claim_as(Claim { lease_length: LEASE * 9, ..steps.claim_request("w1", 5)? }).await? {
        let mut begin = Held::new(s.clone(), run).begin_request("a")?;
        begin.step.timeout = Some(after);
        s.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
    }
    let leases = s.on_queue("leases")?;
    leases.start_many(6).await?;
    leases.claim("w1", 6).await?;
    s.turn(LEASE);
    let reaped = s.reap(1000).await?;
    let expected = Reaped {
        woken: 3,
        leases_expired: 6,
        poisoned: 2,
        runs_timed_out: 4,
        steps_timed_out: 5,
        steps_given_up: StepsGivenUp::default(),
        more: MoreDue::No,
    };
    equal("the numbers reported are the numbers done [14]", &expected, &reaped)
}

async fn each_was_reaped_once(s: &Scenario, held: &[Held]) -> Verdict {
    for held in held.iter().step_by(13) {
        let run = s.run(held.run_id()).await?.run;
        let found = (run.state, run.lost_leases, run.fencing_token.get());
        equal("each run is treated once [14]", &(RunState::Pending, 1, 1), &found)?;
    }
    equal("and each is claimable once [1]", &held.len(), &s.claim("w2", 10_000).await?.len())
}

async fn eight_concurrent_reapers_treat_each_of_a_thousand_once(s: Scenario) -> Verdict {
    let held = expired(&s, 1000).await?;
    let reaped = race(8, |_| {
        let s = s.clone();
        async move { Ok(s.reap_all().await?.leases_expired) }
    })
    .await?;
    equal("together they treated each once [14]", &1000, &reaped.iter().sum::<u32>())?;
    under("concurrent reapers treat each run once [14]", each_was_reaped_once(&s, &held).await)
}

async fn reapers_on_two_handles_treat_each_run_once(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    let held = expired(&s, 400).await?;
    let reaped = race(8, |number| {
        let s = if number % 2 == 0 { s.clone() } else { second.clone() };
        async move { Ok(s.reap_all().await?.leases_expired) }
    })
    .await?;
    equal("together they treated each once [14]", &400, &reaped.iter().sum::<u32>())?;
    under(
        "concurrent reapers over two handles treat each run once [14]",
        each_was_reaped_once(&s, &held).await,
    )
}

async fn reapers_against_claimers_each_run_goes_to_one(s: Scenario) -> Verdict {
    let held = expired(&s, 200).await?;
    race(8, |number| {
        let s = s.clone();
        async move {
            if number % 2 == 0 {
                s.reap_all().await?;
                return Ok(());
            }
            while !s.claim("w2", 9).await?.is_empty() {}
            Ok(())
        }
    })
    .await?;
    s.claim("w2", 1000).await?;
    for held in &held {
        let run = s.run(held.run_id()).await?.run;
        let found = (run.state, run.lost_leases, run.fencing_token.get(), run.claims);
        equal("a lease is lost once and its run taken once [1, 14]", &(RunState::Running, 1, 2, 2), &found)?;
    }
    Ok(())
}

async fn a_reap_treats_every_namespace(s: Scenario) -> Verdict {
    s.held().await?;
    s.in_namespace("globex")?.held().await?;
    s.on_queue("other")?.held().await?;
    s.turn(LEASE);
    equal("one reaper serves all [14]", &3, &s.reap(10).await?.leases_expired)
}

/// Loses the lease of the next run, by a reap.
async fn lose(s: &Scenario) -> Result<Held, Violation> {
    let held = s.claim_one("w1").await?;
    s.turn(LEASE);
    Ok(held)
}

async fn a_poison_run_becomes_a_dead_letter(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for lost in 1..=2 {
        lose(&s).await?;
        equal("a lost lease is reaped", &1, &s.reap(10).await?.leases_expired)?;
        equal("and counted [14]", &lost, &s.run(run_id).await?.run.lost_leases)?;
    }
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    s.turn(LEASE);
    let reaped = s.reap(10).await?;
    equal("the one too many is the last [14]", &(0, 1), &(reaped.leases_expired, reaped.poisoned))?;
    let run = s.run(run_id).await?.run;
    equal(
        "the run is a dead letter",
        &(RunState::Failed, Some(DeadLetterReason::Poison)),
        &(run.state, run.dead_letter),
    )?;
    equal("that says why", &Some(FailureKind::LeaseLost), &run.failure.map(|failure| failure.kind))?;
    equal("its attempt is closed", &AttemptState::Abandoned, &s.attempts(run_id).await?[0].state)?;
    s.nothing_claimable("and nobody takes it again [14]").await
}

/// Loses two leases, lets `progress` happen under the third, and loses two more: one less than too
/// many in a row, had the row not been broken.
async fn survives<F>(s: &Scenario, progress: impl FnOnce(Held) -> F) -> Verdict
where
    F: Future<Output = Verdict>,
{
    let run_id = s.start_one().await?;
    for _ in 0..2 {
        lose(s).await?;
    }
    progress(s.claim_one("w1").await?).await?;
    s.turn(LEASE * 3);
    for _ in 0..2 {
        lose(s).await?;
    }
    s.reap_all().await?;
    let run = s.run(run_id).await?.run;
    check(
        run.state == RunState::Pending,
        "progress breaks the row of lost leases [14]",
        RunState::Pending,
        &run,
    )
}

async fn a_finished_step_resets_the_poison_count(s: Scenario) -> Verdict {
    under(
        "a finished step resets the poison count [14]",
        survives(&s, |held| async move { held.step("a", "1").await }).await,
    )
}

async fn a_sleep_resets_the_poison_count(s: Scenario) -> Verdict {
    under(
        "a sleep resets the poison count [14]",
        survives(&s, |held| async move { held.sleep("nap", LEASE).await.map(drop) }).await,
    )
}

async fn a_retry_resets_the_poison_count(s: Scenario) -> Verdict {
    under(
        "a failure to be retried resets the poison count [14]",
        survives(&s, |held| async move {
            held.begin("a").await?;
            held.fail("a", 1, hiccup()).await.map(drop)
        })
        .await,
    )
}

async fn a_release_resets_the_poison_count(s: Scenario) -> Verdict {
    under(
        "a release resets the poison count [14]",
        survives(&s, |held| async move { held.release().await }).await,
    )
}

async fn a_step_that_finished_under_an_older_lease_is_no_progress(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let held = s.claim_one("w1").await?;
    held.step("a", "1").await?;
    s.turn(LEASE);
    for _ in 0..3 {
        lose(&s).await?;
    }
    s.reap_all().await?;
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter);
    equal(
        "only a step of its own lease is progress [14]",
        &(RunState::Failed, Some(DeadLetterReason::Poison)),
        &found,
    )
}

async fn a_limit_of_zero_is_refused(s: Scenario) -> Verdict {
    for limit in [0, 10_001, u32::MAX] {
        invalid(&s.store().reap(limit).await, "limit", "a reap treats 1 to 10,000 runs [14]")?;
    }
    Ok(())
}

async fn a_completion_resets_the_poison_count(s: Scenario) -> Verdict {
    for with_a_step in [false, true] {
        let run_id = s.start_one().await?;
        lose(&s).await?;
        equal("a lost lease is reaped", &1, &s.reap(10).await?.leases_expired)?;
        let held = s.claim_one("w2").await?;
        if with_a_step {
            held.begin("a").await?;
            held.complete_then("a", 1, "1", Then::CompleteRun(Payload::json("1"))).await?;
        } else {
            held.complete_run("1").await?;
        }
        let lost = s.run(run_id).await?.run.lost_leases;
        equal("a run that completed has no lost leases to its name [14]", &0, &lost)?;
    }
    Ok(())
}
