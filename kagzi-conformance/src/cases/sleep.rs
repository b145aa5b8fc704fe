//! Sleeping: giving the lease up, and being due again at the right moment.

use std::collections::HashSet;
use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptState, CancelOutcome, MAX_DURATION, Payload, RunId, RunState, Sleep, SleepOutcome,
    SleepUntil, StartAt, StartRun, StepKind, Timestamp,
};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, lease_lost, race, step_id, under};
use crate::violation::{Verdict, Violation};

cases! {
    "sleep";
    [10] a_sleeper_gives_up_its_lease_and_is_not_claimable;
    [10] a_sleeper_is_claimable_at_its_time_and_not_a_microsecond_earlier;
    [10] a_reap_wakes_a_sleeper_at_its_time_and_not_a_microsecond_earlier;
    [2] the_old_lease_is_lost_after_the_sleep;
    [10] a_sleep_of_zero_is_due_at_once;
    [10] a_sleep_until_the_past_is_due_at_once;
    [10] a_sleep_of_a_millisecond_wakes;
    [10] moments_are_kept_to_the_microsecond;
    [10] a_sleep_to_the_end_of_time_is_kept;
    [15] a_sleep_is_recorded_as_a_completed_step;
    [4] a_sleep_is_memoized_and_not_slept_again;
    [4] each_sleep_of_a_loop_is_slept;
    [5] a_sleep_abandons_the_open_attempts;
    [8] the_same_sleep_again_gives_the_same_answer;
    [8] the_same_sleep_again_after_waking_gives_the_same_answer;
    [13] a_woken_sleeper_has_the_place_of_its_due_time;
    [10] ten_thousand_sleepers_due_at_one_time_all_wake_once;
    [10] concurrent_sleeps_of_many_runs_all_wake;
    [6] sleep_against_cancel_cancelled_stays;
    [6] a_cancelled_sleeper_does_not_wake;
    [6] a_sleeper_past_its_deadline_does_not_wake;
    [10] a_clock_set_back_wakes_nobody_early;
    [9] reopen_during_a_sleep_loses_nothing needs Reopen;
}

const NAP: Duration = Duration::from_mins(1);

/// A run that sleeps for a minute.
async fn asleep(s: &Scenario) -> Result<Held, Violation> {
    let held = s.held().await?;
    held.sleep("nap", NAP).await?;
    Ok(held)
}

async fn sleep_until(held: &Held, until: SleepUntil) -> Result<SleepOutcome, Violation> {
    let request = held.sleep_request("nap", until)?;
    held.store().sleep(request).await.map_err(|e| Violation::refused("a sleep", &e))
}

async fn a_sleeper_gives_up_its_lease_and_is_not_claimable(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let due_at = s.now().saturating_add(NAP);
    equal(
        "the answer says when it ends",
        &SleepOutcome::Sleeping { due_at },
        &held.sleep("nap", NAP).await?,
    )?;
    let run = s.run(held.run_id()).await?.run;
    equal("a sleeper is SLEEPING until then [10]", &(RunState::Sleeping, due_at), &(run.state, run.due_at))?;
    let lease = (run.worker_id, run.lease_expires_at, run.claim_operation);
    equal("and held by nobody [1]", &(None, None, None), &lease)?;
    s.nothing_claimable("and not claimable [10]").await
}

async fn a_sleeper_is_claimable_at_its_time_and_not_a_microsecond_earlier(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    s.turn_almost(NAP);
    s.nothing_claimable("not a microsecond before its time [10]").await?;
    s.turn(Duration::from_micros(1));
    under(
        "a claim finds a sleeper at its time and not a microsecond earlier [10]",
        equal("at its time [10]", &held.run_id(), &s.claim_one("w2").await?.run_id()),
    )
}

async fn a_reap_wakes_a_sleeper_at_its_time_and_not_a_microsecond_earlier(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    let due_at = s.now().saturating_add(NAP);
    s.turn_almost(NAP);
    equal("not a microsecond before its time [10]", &0, &s.reap(10).await?.total())?;
    s.turn(Duration::from_micros(1));
    equal("at its time [10]", &1, &s.reap(10).await?.woken)?;
    let run = s.run(held.run_id()).await?.run;
    equal(
        "a woken run is PENDING and due since then",
        &(RunState::Pending, due_at),
        &(run.state, run.due_at),
    )?;
    equal("and claimable [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn the_old_lease_is_lost_after_the_sleep(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    s.turn(NAP);
    let answer = held.store().begin_step(held.begin_request("a")?).await;
    lease_lost(&answer, "a due sleeper is not its old worker's [2]")?;
    let woken = s.claim_one("w1").await?;
    let answer = held.store().begin_step(held.begin_request("a")?).await;
    lease_lost(&answer, "not even if the same worker took it again [2]")?;
    woken.step("a", "1").await
}

async fn due_at_once(s: &Scenario, held: &Held, until: SleepUntil) -> Verdict {
    let answer = sleep_until(held, until).await?;
    equal("it is over at once [10]", &SleepOutcome::Sleeping { due_at: s.now() }, &answer)?;
    equal("so the run is PENDING", &RunState::Pending, &s.run(held.run_id()).await?.run.state)?;
    equal("and claimable at once [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_sleep_of_zero_is_due_at_once(s: Scenario) -> Verdict {
    under(
        "a sleep of zero is over at once [10]",
        due_at_once(&s, &s.held().await?, SleepUntil::After(Duration::ZERO)).await,
    )
}

async fn a_sleep_until_the_past_is_due_at_once(s: Scenario) -> Verdict {
    under(
        "a sleep until the past is over at once [10]",
        due_at_once(&s, &s.held().await?, SleepUntil::At(Timestamp::MIN)).await,
    )
}

async fn a_sleep_of_a_millisecond_wakes(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.sleep("nap", Duration::from_millis(1)).await?;
    s.nothing_claimable("a short sleep is a sleep [10]").await?;
    s.turn(Duration::from_millis(1));
    equal("and it ends [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_sleep_to_the_end_of_time_is_kept(s: Scenario) -> Verdict {
    let first = s.held().await?;
    sleep_until(&first, SleepUntil::At(Timestamp::MAX)).await?;
    equal("the last moment is kept", &Timestamp::MAX, &s.run(first.run_id()).await?.run.due_at)?;
    let second = s.held().await?;
    sleep_until(&second, SleepUntil::After(MAX_DURATION)).await?;
    let expected = s.now().saturating_add(MAX_DURATION);
    equal("so is the longest sleep", &expected, &s.run(second.run_id()).await?.run.due_at)
}

async fn a_sleep_is_recorded_as_a_completed_step(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(Duration::from_secs(1));
    let request = Sleep { position: 4, ..held.sleep_request("nap", SleepUntil::After(NAP))? };
    let operation = request.operation;
    held.store().sleep(request).await.map_err(|e| Violation::refused("a sleep", &e))?;
    let expected = Attempt {
        run_id: held.run_id(),
        step_id: step_id("nap")?,
        position: 4,
        kind: StepKind::Sleep,
        attempt: 1,
        state: AttemptState::Completed,
        fencing_token: held.lease.fencing_token,
        worker_id: held.lease.worker_id.clone(),
        retry: None,
        deadline_at: None,
        begin_operation: operation,
        end_operation: Some(operation),
        output: Some(Payload::empty()),
        failure: None,
        created_at: s.now(),
        updated_at: s.now(),
        finished_at: Some(s.now().saturating_add(NAP)),
    };
    equal("a sleep is a step of the history [4, 15]", &vec![expected], &s.attempts(held.run_id()).await?)
}

async fn a_sleep_is_memoized_and_not_slept_again(s: Scenario) -> Verdict {
    asleep(&s).await?;
    s.turn(NAP);
    let again = s.claim_one("w2").await?;
    equal("the claim carries the sleep [4]", &1, &again.claimed.steps.len())?;
    let before = again.snapshot().await?;
    equal("on replay it is over [4]", &SleepOutcome::AlreadySlept, &again.sleep("nap", NAP).await?)?;
    s.unchanged(&before, "the lease is kept and nothing changes [1, 4]").await?;
    again.step("a", "1").await
}

async fn each_sleep_of_a_loop_is_slept(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for round in 0..5 {
        let held = s.claim_one("w1").await?;
        for before in 0..round {
            let answer = held.sleep(&format!("nap#{before}"), NAP).await?;
            equal("earlier sleeps are over [4]", &SleepOutcome::AlreadySlept, &answer)?;
        }
        let due_at = s.now().saturating_add(NAP);
        let answer = held.sleep(&format!("nap#{round}"), NAP).await?;
        equal("a sleep with an id of its own is slept [4]", &SleepOutcome::Sleeping { due_at }, &answer)?;
        s.turn(NAP);
    }
    equal("each is recorded", &5, &s.attempts(run_id).await?.len())
}

async fn a_sleep_abandons_the_open_attempts(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    held.sleep("nap", NAP).await?;
    let attempts = s.attempts(held.run_id()).await?;
    let states: Vec<_> = attempts.iter().map(|a| (a.step_id.as_str(), a.state)).collect();
    let expected = vec![("a", AttemptState::Abandoned), ("nap", AttemptState::Completed)];
    equal("no attempt runs on while the run sleeps [5]", &expected, &states)
}

async fn the_same_sleep_again_gives_the_same_answer(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.sleep_request("nap", SleepUntil::After(NAP))?;
    let send =
        async || held.store().sleep(request.clone()).await.map_err(|e| Violation::refused("a sleep", &e));
    let first = send().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(10));
    equal("a sleep sent again gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and does not sleep longer [8]").await
}

async fn the_same_sleep_again_after_waking_gives_the_same_answer(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.sleep_request("nap", SleepUntil::After(NAP))?;
    let send =
        async || held.store().sleep(request.clone()).await.map_err(|e| Violation::refused("a sleep", &e));
    let first = send().await?;
    s.turn(NAP);
    let woken = s.claim_one("w2").await?;
    woken.begin("a").await?;
    let before = woken.snapshot().await?;
    equal("a sleep sent again gets the first answer, however late [8]", &first, &send().await?)?;
    s.unchanged(&before, "and does not put the next holder to sleep [2, 8]").await
}

async fn a_woken_sleeper_has_the_place_of_its_due_time(s: Scenario) -> Verdict {
    let sleeper = asleep(&s).await?.run_id();
    s.turn(Duration::from_secs(59));
    let before = s.start_one().await?;
    s.turn(Duration::from_secs(2));
    let after = s.start_one().await?;
    let order: Vec<RunId> = s.claim("w2", 10).await?.iter().map(|run| run.run.run_id).collect();
    equal(
        "it waits since its sleep ended, not since it was woken [13]",
        &vec![before, sleeper, after],
        &order,
    )
}

async fn ten_thousand_sleepers_due_at_one_time_all_wake_once(s: Scenario) -> Verdict {
    let sleeping = || StartRun { start_at: StartAt::After(NAP), ..s.start_request() };
    let ids: HashSet<RunId> =
        s.start_all((0..10_000).map(|_| sleeping()).collect()).await?.iter().map(|run| run.run_id).collect();
    equal("all are started", &10_000, &ids.len())?;
    s.turn(NAP);
    let woken = race(4, |_| {
        let s = s.clone();
        async move { Ok(s.reap_all().await?.woken) }
    })
    .await?;
    equal("each is woken once [10, 14]", &10_000, &woken.iter().sum::<u32>())?;
    // A claim hands over as many as there is room for, so it takes a few.
    let mut taken: HashSet<RunId> = HashSet::new();
    loop {
        let claimed = s.claim("w1", 10_000).await?;
        if claimed.is_empty() {
            break;
        }
        taken.extend(claimed.iter().map(|run| run.run.run_id));
    }
    check(taken == ids, "and all are claimable [10]", ids.len(), taken.len())
}

async fn concurrent_sleeps_of_many_runs_all_wake(s: Scenario) -> Verdict {
    s.start_many(100).await?;
    let held: Vec<Held> =
        s.claim("w1", 100).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    race(100, |number| {
        let held = held[number].clone();
        async move { held.sleep("nap", NAP).await }
    })
    .await?;
    s.nothing_claimable("all sleep [10]").await?;
    s.turn(NAP);
    equal("all wake [10]", &100, &s.claim("w2", 1000).await?.len())
}

async fn sleep_against_cancel_cancelled_stays(s: Scenario) -> Verdict {
    s.start_many(24).await?;
    let held: Vec<Held> = s.claim("w1", 24).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    race(48, |number| {
        let (s, held) = (s.clone(), held[number / 2].clone());
        async move {
            if number % 2 == 0 {
                equal("a live run is cancelled", &CancelOutcome::Cancelled, &s.cancel(held.run_id()).await?)?;
                return Ok(());
            }
            let answer = held.store().sleep(held.sleep_request("nap", SleepUntil::After(NAP))?).await;
            if answer.is_err() {
                lease_lost(&answer, "a sleep that came late is told [2]")?;
            }
            Ok(())
        }
    })
    .await?;
    s.turn(NAP);
    s.reap_all().await?;
    s.nothing_claimable("a cancelled run never wakes, whichever came first [6]").await?;
    for held in held {
        equal("cancelled stays [6]", &RunState::Cancelled, &s.run(held.run_id()).await?.run.state)?;
    }
    Ok(())
}

async fn a_cancelled_sleeper_does_not_wake(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    s.cancel(held.run_id()).await?;
    let before = held.snapshot().await?;
    s.turn(NAP);
    equal("there is nothing to wake [6]", &0, &s.reap(10).await?.total())?;
    s.nothing_claimable("nor to claim [6]").await?;
    s.unchanged(&before, "cancelled stays [6]").await
}

async fn a_sleeper_past_its_deadline_does_not_wake(s: Scenario) -> Verdict {
    s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    held.sleep("nap", NAP).await?;
    s.turn(LEASE);
    let reaped = s.reap(10).await?;
    equal("the deadline ends a sleep [6]", &(0, 1), &(reaped.woken, reaped.runs_timed_out))?;
    s.turn(NAP);
    s.nothing_claimable("and it never wakes [6]").await
}

async fn a_clock_set_back_wakes_nobody_early(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    let due_at = s.now().saturating_add(NAP);
    s.set_clock(s.now().saturating_sub(Duration::from_hours(24)));
    s.nothing_claimable("a clock that goes back makes nothing due [10]").await?;
    equal("nor anything to reap", &0, &s.reap(10).await?.total())?;
    s.set_clock(due_at);
    equal("and when the time comes it is due [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn reopen_during_a_sleep_loses_nothing(s: Scenario) -> Verdict {
    let held = asleep(&s).await?;
    let before = held.snapshot().await?;
    drop(held);
    let s = s.reopen().await?;
    s.unchanged(&before, "a sleeper survives a restart [9]").await?;
    s.nothing_claimable("and sleeps on [10]").await?;
    s.turn(NAP);
    equal("until its time [10]", &before.record.run.run_id, &s.claim_one("w2").await?.run_id())
}

async fn moments_are_kept_to_the_microsecond(s: Scenario) -> Verdict {
    s.turn(Duration::from_micros(1_234_567));
    let held = s.held().await?;
    let length = Duration::from_micros(1_111_111);
    let due_at = s.now().saturating_add(length);
    held.sleep("nap", length).await?;
    equal("a sleep ends at its microsecond [10]", &due_at, &s.run(held.run_id()).await?.run.due_at)?;
    equal("which is when there is something to do", &Some(due_at), &s.next_due().await?)?;
    s.turn_almost(length);
    s.nothing_claimable("not one earlier [10]").await?;
    s.turn(Duration::from_micros(1));
    let again = s.claim_one("w1").await?;
    let run = s.run(again.run_id()).await?.run;
    equal(
        "and a lease lasts to its microsecond",
        &Some(s.now().saturating_add(LEASE)),
        &run.lease_expires_at,
    )?;
    equal("changed at this one", &s.now(), &run.updated_at)
}
