//! Leases: heartbeats, expiry, release.

use std::collections::BTreeSet;
use std::time::Duration;

use kagzi_core::{
    AttemptState, FencingToken, GrantedLease, Heartbeat, LostReason, ReleaseOutcome, RunId, RunState,
    StoreError,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, hiccup, lease_lost, race, run_not_found, under, worker,
};
use crate::violation::{Verdict, Violation};

cases! {
    "lease";
    [1] a_heartbeat_extends_from_now;
    [1] a_heartbeat_never_shortens;
    [1] an_hour_of_heartbeats_leaves_no_more_than_one_length;
    [1] a_heartbeat_changes_nothing_but_the_expiry;
    [2] every_lease_of_a_batch_gets_its_own_verdict_in_order;
    [2] every_lease_of_a_batch_is_extended_by_its_own_length;
    [2] one_lease_twice_in_a_batch_is_extended_twice;
    [15] thousands_of_leases_are_extended_in_one_batch;
    [2] a_heartbeat_with_a_stale_token_is_lost_and_changes_nothing;
    [2] a_heartbeat_of_another_worker_is_lost_and_changes_nothing;
    [2] a_heartbeat_on_a_run_that_does_not_exist_is_not_found;
    [2] an_expired_lease_that_nobody_took_is_revived_by_a_heartbeat;
    [2] the_holder_of_an_expired_lease_may_still_write;
    [1, 2] a_lease_is_held_until_the_microsecond_of_its_expiry;
    [1, 2] a_reap_takes_a_lease_back_at_the_microsecond_of_its_expiry;
    [1, 2] a_heartbeat_against_a_reap_one_wins_and_the_loser_is_told;
    [1, 2] a_heartbeat_against_a_claim_one_wins_and_the_loser_is_told;
    [1, 2] a_heartbeat_against_a_claim_on_another_handle_one_wins needs SecondHandle;
    [10] a_release_makes_the_run_claimable_at_once;
    [4, 5] a_release_keeps_completed_steps_and_abandons_open_ones;
    [8] a_release_sent_again_is_harmless;
    [2, 8] a_release_sent_again_does_not_strip_the_next_holder;
    [2] a_second_release_with_another_operation_is_lost;
    [8] a_release_under_the_id_of_another_operation_is_refused;
    [1] tokens_never_repeat;
    [1, 9] tokens_never_repeat_after_a_reopen needs Reopen;
}

async fn expiry(s: &Scenario, held: &Held) -> Result<kagzi_core::Timestamp, Violation> {
    let expires_at = s.run(held.run_id()).await?.run.lease_expires_at;
    expires_at.ok_or_else(|| Violation::new("a RUNNING run has a lease [1]", "an expiry", "none"))
}

async fn a_heartbeat_extends_from_now(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(Duration::from_secs(20));
    let granted = held.heartbeat().await?;
    let expected = s.now().saturating_add(LEASE);
    equal("a heartbeat counts from now, not from the old expiry [1]", &expected, &granted.expires_at)?;
    equal("and is recorded [1]", &expected, &expiry(&s, &held).await?)?;
    equal("under the same lease [1]", &held.lease, &granted.lease)
}

async fn a_heartbeat_never_shortens(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = expiry(&s, &held).await?;
    let short = Heartbeat { lease_length: Duration::from_micros(1), ..held.heartbeat_request() };
    let granted = held.try_heartbeat(short).await?.map_err(|e| Violation::refused("a heartbeat", &e))?;
    equal("a short heartbeat leaves the expiry where it was [1]", &before, &granted.expires_at)?;
    equal("in the row too [1]", &before, &expiry(&s, &held).await?)
}

async fn an_hour_of_heartbeats_leaves_no_more_than_one_length(s: Scenario) -> Verdict {
    let held = s.held().await?;
    // More often than a backend is tempted to look at once.
    for number in 0..300 {
        held.heartbeat().await?;
        if number % 10 == 0 {
            held.heartbeat().await?;
        }
        s.turn(Duration::from_secs(12));
    }
    held.heartbeat().await?;
    let expected = s.now().saturating_add(LEASE);
    equal(
        "heartbeats do not add up: a crash is noticed within one length [1]",
        &expected,
        &expiry(&s, &held).await?,
    )?;
    s.turn(LEASE);
    equal("and the run is claimable then [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_heartbeat_changes_nothing_but_the_expiry(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "1").await?;
    held.begin("b").await?;
    let mut before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let granted = held.heartbeat().await?;
    before.record.run.lease_expires_at = Some(granted.expires_at);
    before.record.run.updated_at = s.now();
    s.unchanged(&before, "a heartbeat moves the expiry and nothing else [1]").await
}

async fn every_lease_of_a_batch_gets_its_own_verdict_in_order(s: Scenario) -> Verdict {
    s.start_many(4).await?;
    let claimed = s.claim("w1", 4).await?;
    // Not in the order of their ids, which is the one in which a store would lock them.
    let held: Vec<Held> = claimed.into_iter().rev().map(|run| Held::new(s.clone(), run)).collect();
    s.cancel(held[0].run_id()).await?;
    held[2].complete_run("1").await?;
    s.turn(Duration::from_secs(10));
    let batch = held.iter().map(Held::heartbeat_request).collect();
    let verdicts = s.store().heartbeat(batch).await.map_err(|e| Violation::refused("a batch", &e))?;
    equal("each lease gets a verdict", &4, &verdicts.len())?;
    let states = [Some(RunState::Cancelled), None, Some(RunState::Completed), None];
    for ((state, verdict), held) in states.into_iter().zip(&verdicts).zip(&held) {
        if let Some(state) = state {
            let reason = lease_lost(verdict, "a finished run's lease is lost, its neighbours' are not [2]")?;
            equal("and the verdict says why", &LostReason::NotRunning { state }, &reason)?;
            continue;
        }
        let expires_at = s.now().saturating_add(LEASE);
        let expected = GrantedLease { lease: held.lease.clone(), expires_at };
        let granted = verdict.as_ref().map_err(|e| Violation::refused("a good lease's beat", e))?;
        equal("verdicts come in the order of the batch [2]", &expected, granted)?;
        equal("and what is granted is recorded [1]", &expires_at, &expiry(&s, held).await?)?;
    }
    Ok(())
}

async fn one_lease_twice_in_a_batch_is_extended_twice(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let long = Heartbeat { lease_length: LEASE * 2, ..held.heartbeat_request() };
    let batch = vec![long, held.heartbeat_request()];
    let verdicts = s.store().heartbeat(batch).await.map_err(|e| Violation::refused("a batch", &e))?;
    let expected = s.now().saturating_add(LEASE * 2);
    let granted: Vec<_> = verdicts.iter().filter_map(|v| v.as_ref().ok().map(|g| g.expires_at)).collect();
    equal("two beats of one lease behave as one after the other [1]", &vec![expected, expected], &granted)?;
    equal("and never shorten [1]", &expected, &expiry(&s, &held).await?)
}

async fn every_lease_of_a_batch_is_extended_by_its_own_length(s: Scenario) -> Verdict {
    s.start_many(4).await?;
    let held: Vec<Held> = s.claim("w1", 4).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    let lengths = [3, 5, 2, 4].map(|times| LEASE * times);
    let beats = held.iter().zip(lengths);
    let batch = beats.map(|(held, lease_length)| Heartbeat { lease_length, ..held.heartbeat_request() });
    let verdicts = s.store().heartbeat(batch.collect()).await;
    let verdicts = verdicts.map_err(|e| Violation::refused("a batch of heartbeats", &e))?;
    let mut told = Vec::new();
    for verdict in verdicts {
        told.push(verdict.map_err(|e| Violation::refused("a heartbeat", &e))?.expires_at);
    }
    let expected: Vec<_> = lengths.iter().map(|length| s.now().saturating_add(*length)).collect();
    equal("each lease of a batch is extended by its own length [2]", &expected, &told)?;
    for (held, expires_at) in held.iter().zip(expected) {
        let recorded = s.run(held.run_id()).await?.run.lease_expires_at;
        equal("and what was told is recorded [2]", &Some(expires_at), &recorded)?;
    }
    Ok(())
}

async fn thousands_of_leases_are_extended_in_one_batch(s: Scenario) -> Verdict {
    const LEASES: usize = 2_500;
    s.start_many(LEASES).await?;
    let held: Vec<Held> =
        s.claim("w1", 10_000).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    equal("all are held", &LEASES, &held.len())?;
    s.turn(Duration::from_secs(29));
    let batch = held.iter().map(Held::heartbeat_request).collect();
    let verdicts = s.store().heartbeat(batch).await.map_err(|e| Violation::refused("a batch", &e))?;
    equal("all are extended", &LEASES, &verdicts.iter().filter(|verdict| verdict.is_ok()).count())?;
    s.turn(Duration::from_secs(29));
    s.nothing_claimable("and all are held, however many there are [1]").await
}

async fn a_heartbeat_with_a_stale_token_is_lost_and_changes_nothing(s: Scenario) -> Verdict {
    let first = s.held().await?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    let before = second.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let reason =
        lease_lost(&first.try_heartbeat(first.heartbeat_request()).await?, "a stolen lease is lost [2]")?;
    let expected = LostReason::TokenStale { current: second.lease.fencing_token };
    equal("the verdict names the current token [2]", &expected, &reason)?;
    s.unchanged(&before, "a lost heartbeat changes nothing [2]").await
}

async fn a_heartbeat_of_another_worker_is_lost_and_changes_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let mut forged = held.heartbeat_request();
    forged.lease.worker_id = worker("w2")?;
    let reason = lease_lost(&held.try_heartbeat(forged).await?, "a lease is its worker's alone [2]")?;
    equal("the verdict says why [2]", &LostReason::OtherWorker, &reason)?;
    s.unchanged(&before, "a lost heartbeat changes nothing [2]").await
}

async fn a_heartbeat_on_a_run_that_does_not_exist_is_not_found(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let mut nowhere = held.heartbeat_request();
    nowhere.lease.run_id = s.start_request().run_id();
    let batch = vec![nowhere, held.heartbeat_request()];
    let verdicts = s.store().heartbeat(batch).await.map_err(|e| Violation::refused("a batch", &e))?;
    equal("each lease gets a verdict", &2, &verdicts.len())?;
    run_not_found(&verdicts[0], "a run that does not exist is not found")?;
    check(verdicts[1].is_ok(), "and does not harm its neighbour [15]", "extended", &verdicts[1])
}

async fn an_expired_lease_that_nobody_took_is_revived_by_a_heartbeat(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(LEASE * 3);
    let granted = held.heartbeat().await?;
    equal(
        "expiry makes a lease stealable, not invalid [2]",
        &s.now().saturating_add(LEASE),
        &granted.expires_at,
    )?;
    s.nothing_claimable("a revived lease is in force [1]").await?;
    let reaped = s.reap(10).await?;
    equal("and is not taken back [14]", &0, &reaped.total())?;
    held.step("a", "1").await?;
    equal("it was never lost", &0, &s.run(held.run_id()).await?.run.lost_leases)
}

async fn the_holder_of_an_expired_lease_may_still_write(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let attempt = held.begin("a").await?;
    s.turn(LEASE * 100);
    held.complete("a", attempt, "1").await?;
    held.step("b", "2").await?;
    held.complete_run("3").await?;
    equal(
        "safety does not depend on the clock [2]",
        &RunState::Completed,
        &s.run(held.run_id()).await?.run.state,
    )
}

async fn a_lease_is_held_until_the_microsecond_of_its_expiry(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn_almost(LEASE);
    s.nothing_claimable("a microsecond before its expiry a lease is in force [1]").await?;
    s.turn(Duration::from_micros(1));
    equal("at its expiry it can be stolen [2]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_reap_takes_a_lease_back_at_the_microsecond_of_its_expiry(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn_almost(LEASE);
    equal("a lease in force is not reaped [1]", &0, &s.reap(10).await?.total())?;
    s.turn(Duration::from_micros(1));
    equal("at its expiry it is [2]", &1, &s.reap(10).await?.leases_expired)?;
    equal("and the run is PENDING", &RunState::Pending, &s.run(held.run_id()).await?.run.state)
}

/// Holds `count` runs and lets their leases expire.
async fn expired(s: &Scenario, count: u32) -> Result<Vec<Held>, Violation> {
    s.start_many(count as usize).await?;
    let held = s.claim("w1", count).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    s.turn(LEASE);
    Ok(held)
}

/// Beats for every lease, in several tasks, and gives which were granted.
async fn beat(held: &[Held]) -> Result<Vec<bool>, Violation> {
    let batch = held.iter().map(Held::heartbeat_request).collect();
    let verdicts = held[0].store().heartbeat(batch).await;
    let verdicts = verdicts.map_err(|e| Violation::refused("a batch of heartbeats", &e))?;
    for verdict in verdicts.iter().filter(|verdict| verdict.is_err()) {
        lease_lost(verdict, "the loser of a race is told that its lease is lost [2]")?;
    }
    Ok(verdicts.iter().map(Result::is_ok).collect())
}

async fn a_heartbeat_against_a_reap_one_wins_and_the_loser_is_told(s: Scenario) -> Verdict {
    let held = expired(&s, 64).await?;
    let answers = race(16, |number| {
        let (s, mine) = (s.clone(), held[(number / 2) * 8..(number / 2 + 1) * 8].to_vec());
        async move {
            if number % 2 == 0 {
                return Ok((beat(&mine).await?, 0));
            }
            Ok((Vec::new(), s.reap(8).await?.leases_expired))
        }
    })
    .await?;
    let (granted, reaped): (Vec<Vec<bool>>, Vec<u32>) = answers.into_iter().unzip();
    let lost = granted.iter().flatten().filter(|granted| !**granted).count();
    equal(
        "what the reapers were told is what the workers lost [1, 2]",
        &lost,
        &(reaped.iter().sum::<u32>() as usize),
    )?;
    for (held, granted) in held.iter().zip(granted.into_iter().flatten()) {
        let run = s.run(held.run_id()).await?.run;
        let found = (run.state, run.lease_expires_at);
        let expected = if granted {
            (RunState::Running, Some(s.now().saturating_add(LEASE)))
        } else {
            (RunState::Pending, None)
        };
        equal("a heartbeat that was granted held, one that was lost did not [1, 2]", &expected, &found)?;
    }
    Ok(())
}

async fn a_heartbeat_against_a_claim_one_wins_and_the_loser_is_told(s: Scenario) -> Verdict {
    under("of a heartbeat and a claim at one moment one wins [1, 2]", beat_against_claim(&s, &s).await)
}

async fn a_heartbeat_against_a_claim_on_another_handle_one_wins(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    under(
        "of a heartbeat and a claim on another handle at one moment one wins [1, 2]",
        beat_against_claim(&s, &second).await,
    )
}

/// Several rounds, since it is at their start that the two meet.
async fn beat_against_claim(s: &Scenario, thief: &Scenario) -> Verdict {
    for round in 0..6 {
        let queue = format!("round{round}");
        one_beat_against_claim(&s.on_queue(&queue)?, &thief.on_queue(&queue)?).await?;
    }
    Ok(())
}

async fn one_beat_against_claim(s: &Scenario, thief: &Scenario) -> Verdict {
    let held = expired(s, 16).await?;
    let answers = race(16, |number| {
        let (thief, mine) = (thief.clone(), held[(number / 2) * 2..(number / 2 + 1) * 2].to_vec());
        async move {
            if number % 2 == 0 {
                return Ok((beat(&mine).await?, Vec::new()));
            }
            let mut stolen = Vec::new();
            // One by one, so that thefts fall between the heartbeats and not all before them.
            for _ in 0..2 {
                stolen.extend(thief.claim("thief", 1).await?.iter().map(|run| run.run.run_id));
                tokio::task::yield_now().await;
            }
            Ok((Vec::new(), stolen))
        }
    })
    .await?;
    let (granted, stolen): (Vec<Vec<bool>>, Vec<Vec<RunId>>) = answers.into_iter().unzip();
    let stolen: BTreeSet<RunId> = stolen.into_iter().flatten().collect();
    for (held, granted) in held.iter().zip(granted.into_iter().flatten()) {
        let run = s.run(held.run_id()).await?.run;
        let both = granted && stolen.contains(&held.run_id());
        check(!both, "no lease is given to two [1]", "the worker or the thief", &run)?;
        let holder = run.worker_id.as_ref().map_or("nobody", |worker| worker.as_str());
        let token = run.fencing_token.get();
        let (first, later) = ((RunState::Running, "w1", 1), (RunState::Running, "thief", 2));
        // A beat that came first may still be followed by no theft: the lease is in force again. One
        // that came late finds the thief, or, with no claim left for it, an open run.
        let found = (run.state, holder, token);
        let right = if granted {
            found == first
        } else if stolen.contains(&held.run_id()) {
            found == later
        } else {
            found == (RunState::Pending, "nobody", 1)
        };
        check(right, "a granted heartbeat holds, a lost one finds another [1, 2]", granted, &run)?;
    }
    Ok(())
}

async fn a_release_makes_the_run_claimable_at_once(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.release().await?;
    let run = s.run(held.run_id()).await?.run;
    equal("a released run is PENDING", &RunState::Pending, &run.state)?;
    let lease = (run.worker_id, run.lease_expires_at, run.claim_operation);
    equal("and held by nobody [1]", &(None, None, None), &lease)?;
    equal("and claimable at once [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_release_keeps_completed_steps_and_abandons_open_ones(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("open").await?;
    let before = held.snapshot().await?.attempts;
    s.turn(Duration::from_secs(1));
    held.release().await?;
    let after = s.attempts(held.run_id()).await?;
    equal("the history is kept [5]", &2, &after.len())?;
    equal("a completed step stays to the last field [4]", &before[0], &after[0])?;
    equal("an open attempt is abandoned [5]", &AttemptState::Abandoned, &after[1].state)?;
    equal("at the moment of the release", &Some(s.now()), &after[1].finished_at)
}

async fn a_release_sent_again_is_harmless(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.release_request();
    let send =
        async || held.store().release(request.clone()).await.map_err(|e| Violation::refused("a release", &e));
    equal("a release is done", &ReleaseOutcome::Released, &send().await?)?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    equal("a repeat gives the first answer [8]", &ReleaseOutcome::Released, &send().await?)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

async fn a_release_sent_again_does_not_strip_the_next_holder(s: Scenario) -> Verdict {
    let first = s.held().await?;
    let request = first.release_request();
    first.store().release(request.clone()).await.map_err(|e| Violation::refused("a release", &e))?;
    // The same worker takes the run again, so that nothing but the token tells the two leases apart.
    let second = s.claim_one("w1").await?;
    let before = second.snapshot().await?;
    let again = first.store().release(request).await;
    check(again.is_ok(), "a repeat gives the first answer [8]", "Released", &again)?;
    s.unchanged(&before, "a late release does not touch the new lease [2]").await?;
    second.step("a", "1").await
}

async fn a_second_release_with_another_operation_is_lost(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.release().await?;
    let before = held.snapshot().await?;
    let answer = held.store().release(held.release_request()).await;
    lease_lost(&answer, "a lease that was given back is gone [2]")?;
    s.unchanged(&before, "and the refusal changes nothing [15]").await
}

async fn a_release_under_the_id_of_another_operation_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let cancel = s.cancel_request(held.run_id());
    held.begin("a").await?;
    let fail = held.fail_request("a", 1, hiccup())?;
    held.store().fail_step(fail.clone()).await.map_err(|e| Violation::refused("a failure", &e))?;
    let before = held.snapshot().await?;
    let release = kagzi_core::ReleaseRun { operation: fail.operation, ..held.release_request() };
    let answer = held.store().release(release).await;
    crate::scenario::operation_conflict(&answer, "an operation id names one operation [8]")?;
    let cancel = kagzi_core::CancelRun { operation: fail.operation, ..cancel };
    let answer: Result<_, StoreError> = s.store().cancel(cancel).await;
    crate::scenario::operation_conflict(&answer, "whatever kind the operations are of [8]")?;
    s.unchanged(&before, "a refusal changes nothing [15]").await
}

async fn tokens_never_repeat(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let mut tokens: Vec<FencingToken> = Vec::new();
    for round in 0..6 {
        let held = s.claim_one("w1").await?;
        tokens.push(held.lease.fencing_token);
        match round {
            0 => held.release().await?,
            1 => s.turn(LEASE),
            2 => {
                held.sleep("nap", Duration::from_secs(1)).await?;
                s.turn(Duration::from_secs(1));
            }
            3 => {
                held.begin("a").await?;
                held.fail("a", 1, hiccup()).await?;
                s.turn(Duration::from_secs(10));
            }
            4 => {
                held.fail_run(fatal()).await?;
                s.requeue(run_id).await?;
            }
            _ => {
                s.turn(LEASE);
                s.reap(10).await?;
            }
        }
    }
    tokens.push(s.claim_one("w1").await?.lease.fencing_token);
    let growing = tokens.is_sorted() && tokens.iter().collect::<BTreeSet<_>>().len() == tokens.len();
    check(growing, "tokens only grow, whatever ended the lease [1]", "growing tokens", tokens)
}

async fn tokens_never_repeat_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let (run_id, first) = (held.run_id(), held.lease.fencing_token);
    held.release().await?;
    drop(held);
    let s = s.reopen().await?;
    let second = s.claim_one("w1").await?;
    equal("the run is still there [9]", &run_id, &second.run_id())?;
    let tokens = (first, second.lease.fencing_token);
    check(tokens.1 > tokens.0, "tokens grow over a reopen too [1, 9]", "a larger token", tokens)
}
