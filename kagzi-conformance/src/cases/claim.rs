//! Claiming: which runs a claim takes, and what it hands over.

use std::collections::HashSet;
use std::time::Duration;

use kagzi_core::{
    AttemptState, Claim, DeadLetterReason, FencingToken, Payload, RunId, RunState, StartAt, StartRun, Topic,
};

use super::wake_up::woken;
use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, queue, race, suite_rules, under, worker, workflow_type,
};
use crate::violation::{Verdict, Violation};

cases! {
    "claim";
    [10] an_empty_queue_gives_nothing;
    [1] takes_one_run_and_leaves_the_others_as_they_are;
    [1, 15] sets_worker_token_expiry_state_and_count_together;
    [12, 15] hands_over_the_run_as_it_is_recorded;
    [13] the_limit_is_respected;
    [13] the_limit_holds_over_several_queues_together;
    [13] fewer_runs_than_the_limit_are_all_taken;
    [11] only_the_asked_queue_is_looked_at;
    [11] only_the_asked_namespace_is_looked_at;
    [11] only_the_asked_types_are_taken;
    [10, 13] a_type_filter_does_not_lose_the_runs_it_skipped;
    [13] one_claim_takes_from_several_queues;
    [1] a_queue_named_twice_gives_its_runs_once;
    [10] a_future_run_is_never_taken;
    [6] a_completed_run_is_never_taken;
    [6] a_dead_letter_is_never_taken;
    [6] a_cancelled_run_is_never_taken;
    [1] a_lease_in_force_hides_the_run;
    [1] sixty_four_concurrent_claimers_take_each_of_a_thousand_runs_once;
    [1] claimers_on_two_handles_take_each_run_once needs SecondHandle;
    [1] concurrent_claimers_with_a_type_filter_take_each_run_once;
    [1, 2] an_expired_lease_is_claimable_with_a_larger_token;
    [1, 5] a_steal_abandons_the_open_attempts_of_the_old_lease;
    [1] of_many_thieves_of_one_expired_lease_one_wins;
    [10] a_claim_wakes_a_due_sleeper_without_a_reaper;
    [10] more_expired_leases_than_the_limit_are_no_obstacle;
    [10] one_dead_run_in_front_does_not_hide_the_ones_behind;
    [6] a_run_past_its_deadline_becomes_a_dead_letter_instead;
    [14] a_run_that_lost_too_many_leases_becomes_a_dead_letter_instead;
    [8] the_same_claim_again_gives_the_same_runs;
    [8] the_same_claim_again_gives_only_what_it_still_holds;
    [1, 8] concurrent_repeats_of_one_claim_take_no_run_twice;
    [1, 2] the_same_claim_by_another_worker_takes_its_own;
    [10, 13] inputs_without_room_stay_for_the_next_claim;
}

async fn an_empty_queue_gives_nothing(s: Scenario) -> Verdict {
    s.nothing_claimable("an empty queue gives nothing").await
}

async fn takes_one_run_and_leaves_the_others_as_they_are(s: Scenario) -> Verdict {
    let ids = s.start_many(3).await?;
    let mut before = Vec::new();
    for run_id in &ids {
        before.push(s.snapshot(*run_id).await?);
    }
    s.turn(Duration::from_secs(1));
    let taken = s.claim_one("w1").await?.run_id();
    for snapshot in before.iter().filter(|snapshot| snapshot.record.run.run_id != taken) {
        s.unchanged(snapshot, "a claim touches the runs it takes and no other [1]").await?;
    }
    equal("the others are still to be had [10]", &2, &s.claim("w2", 10).await?.len())
}

async fn sets_worker_token_expiry_state_and_count_together(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    s.turn(Duration::from_secs(3));
    let request = s.claim_request("w1", 1)?;
    let operation = request.operation;
    let claimed = s.claim_as(request).await?;
    equal("the due run is taken", &1, &claimed.len())?;
    let run = s.run(run_id).await?.run;
    let expires_at = s.now().saturating_add(LEASE);
    equal("a claimed run is RUNNING [15]", &RunState::Running, &run.state)?;
    equal("the claim sets the worker [1]", &Some(worker("w1")?), &run.worker_id)?;
    equal("the first token is 1 [1]", &1, &run.fencing_token.get())?;
    equal("the lease lasts as long as asked [1]", &Some(expires_at), &run.lease_expires_at)?;
    equal("the claim is counted [15]", &1, &run.claims)?;
    equal("the claim's operation stands on the run [8]", &Some(operation), &run.claim_operation)?;
    equal("the change takes the store's time", &s.now(), &run.updated_at)?;
    let lease = &claimed[0].lease;
    equal("the answer shows the token [1]", &run.fencing_token, &lease.lease.fencing_token)?;
    equal("the answer shows the worker [1]", &worker("w1")?, &lease.lease.worker_id)?;
    equal("the answer shows the namespace [11]", s.namespace(), &lease.lease.namespace)?;
    equal("the answer shows the expiry [1]", &expires_at, &lease.expires_at)
}

async fn hands_over_the_run_as_it_is_recorded(s: Scenario) -> Verdict {
    let input = Payload::raw(vec![0, 159, 146, 150]);
    s.start(StartRun { input: input.clone(), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    let record = s.run(held.run_id()).await?;
    equal("the claimed run is the recorded one [15]", &record.run, &held.claimed.run)?;
    equal("its input comes to the byte [12]", &input, &held.claimed.input)?;
    equal("a fresh run has no steps", &Vec::new(), &held.claimed.steps)?;
    equal("and no more of them", &None, &held.claimed.more_steps)
}

async fn the_limit_is_respected(s: Scenario) -> Verdict {
    s.start_many(10).await?;
    equal("a claim takes at most its limit", &3, &s.claim("w1", 3).await?.len())?;
    equal("and the next claim the rest", &7, &s.claim("w1", 10).await?.len())
}

async fn the_limit_holds_over_several_queues_together(s: Scenario) -> Verdict {
    for name in ["a", "b", "c"] {
        s.on_queue(name)?.start_many(4).await?;
    }
    let queues = vec![queue("a")?, queue("b")?, queue("c")?];
    let taken = s.claim_as(Claim { queues, ..s.claim_request("w1", 5)? }).await?;
    equal("a limit is of the claim, not of each queue", &5, &taken.len())
}

async fn fewer_runs_than_the_limit_are_all_taken(s: Scenario) -> Verdict {
    let ids: HashSet<RunId> = s.start_many(4).await?.into_iter().collect();
    let taken: HashSet<RunId> = s.claim("w1", 100).await?.iter().map(|run| run.run.run_id).collect();
    equal("a claim takes all there are below its limit [10]", &ids, &taken)
}

async fn only_the_asked_queue_is_looked_at(s: Scenario) -> Verdict {
    let other = s.on_queue("other")?;
    let there = other.start_one().await?;
    s.nothing_claimable("another queue's run is not taken").await?;
    equal("its own queue gives it", &there, &other.claim_one("w1").await?.run_id())
}

async fn only_the_asked_namespace_is_looked_at(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    let there = other.start_one().await?;
    s.nothing_claimable("another namespace's run is not taken, in a queue of the same name [11]").await?;
    equal("its own namespace gives it", &there, &other.claim_one("w1").await?.run_id())
}

fn typed(s: &Scenario, name: &str) -> Result<StartRun, Violation> {
    Ok(StartRun { workflow_type: workflow_type(name)?, ..s.start_request() })
}

fn only(s: &Scenario, types: &[&str], limit: u32) -> Result<Claim, Violation> {
    let workflow_types = types.iter().map(workflow_type).collect::<Result<_, _>>()?;
    Ok(Claim { workflow_types, ..s.claim_request("w1", limit)? })
}

async fn only_the_asked_types_are_taken(s: Scenario) -> Verdict {
    s.start_all(vec![typed(&s, "a")?, typed(&s, "b")?, typed(&s, "c")?]).await?;
    let taken = s.claim_as(only(&s, &["a", "c", "unknown"], 10)?).await?;
    let types: HashSet<&str> = taken.iter().map(|run| run.run.workflow_type.as_str()).collect();
    equal("a type filter takes its types and no other", &HashSet::from(["a", "c"]), &types)
}

async fn a_type_filter_does_not_lose_the_runs_it_skipped(s: Scenario) -> Verdict {
    // Many runs of another type stand in front of the wanted one.
    s.start_all((0..60).map(|_| typed(&s, "front")).collect::<Result<_, _>>()?).await?;
    s.turn(Duration::from_secs(1));
    let wanted = s.start(typed(&s, "wanted")?).await?.run_id;
    let taken = s.claim_as(only(&s, &["wanted"], 5)?).await?;
    let ids: Vec<RunId> = taken.iter().map(|run| run.run.run_id).collect();
    equal("runs of other types in front do not hide the wanted one [10]", &vec![wanted], &ids)?;
    equal("and are not lost [10]", &60, &s.claim("w2", 100).await?.len())
}

async fn one_claim_takes_from_several_queues(s: Scenario) -> Verdict {
    let (a, b) = (s.on_queue("a")?, s.on_queue("b")?);
    let first = b.start_one().await?;
    s.turn(Duration::from_secs(1));
    let second = a.start_one().await?;
    s.turn(Duration::from_secs(1));
    let third = b.start_one().await?;
    s.start_one().await?;
    let queues = vec![queue("a")?, queue("b")?];
    let taken = s.claim_as(Claim { queues, ..s.claim_request("w1", 10)? }).await?;
    let ids: Vec<RunId> = taken.iter().map(|run| run.run.run_id).collect();
    equal("several queues are served together, in one order [13]", &vec![first, second, third], &ids)
}

async fn a_queue_named_twice_gives_its_runs_once(s: Scenario) -> Verdict {
    s.start_many(5).await?;
    let queues = vec![queue("orders")?, queue("orders")?];
    let taken = s.claim_as(Claim { queues, ..s.claim_request("w1", 10)? }).await?;
    let ids: HashSet<RunId> = taken.iter().map(|run| run.run.run_id).collect();
    equal("each run is handed over once [1]", &(5, 5), &(taken.len(), ids.len()))
}

async fn a_future_run_is_never_taken(s: Scenario) -> Verdict {
    let start_at = StartAt::After(Duration::from_micros(1));
    let future = s.start(StartRun { start_at, ..s.start_request() }).await?.run_id;
    let before = s.snapshot(future).await?;
    s.nothing_claimable("a run is not taken before its time [10]").await?;
    s.unchanged(&before, "and a claim leaves it as it is").await
}

async fn stays_finished(s: &Scenario, held: &Held) -> Verdict {
    let before = held.snapshot().await?;
    s.turn(Duration::from_hours(10));
    s.nothing_claimable("a finished run is never taken [6]").await?;
    s.unchanged(&before, "a finished run stays as it is [6]").await
}

async fn a_completed_run_is_never_taken(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.complete_run("1").await?;
    under("a claim takes no completed run [6]", stays_finished(&s, &held).await)
}

async fn a_dead_letter_is_never_taken(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    under("a claim takes no dead letter [6]", stays_finished(&s, &held).await)
}

async fn a_cancelled_run_is_never_taken(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.cancel(held.run_id()).await?;
    under("a claim takes no cancelled run [6]", stays_finished(&s, &held).await)
}

async fn a_lease_in_force_hides_the_run(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    s.nothing_claimable("a run under a lease is not taken [1]").await?;
    s.unchanged(&before, "and a claim leaves it as it is [1]").await
}

/// Claims in small batches until nothing is left.
async fn drain(s: &Scenario, by: usize) -> Result<Vec<(RunId, FencingToken)>, Violation> {
    let mut taken = Vec::new();
    loop {
        let batch = s.claim(&format!("w{by}"), 7).await?;
        if batch.is_empty() {
            return Ok(taken);
        }
        taken.extend(batch.iter().map(|run| (run.run.run_id, run.run.fencing_token)));
    }
}

fn each_once(ids: &[RunId], taken: Vec<Vec<(RunId, FencingToken)>>) -> Verdict {
    let taken: Vec<(RunId, FencingToken)> = taken.into_iter().flatten().collect();
    let distinct: HashSet<RunId> = taken.iter().map(|(run_id, _)| *run_id).collect();
    equal("no run is handed over twice [1]", &distinct.len(), &taken.len())?;
    check(distinct == ids.iter().copied().collect(), "no run is left [10]", ids.len(), distinct.len())?;
    let tokens: HashSet<i64> = taken.iter().map(|(_, token)| token.get()).collect();
    equal("each run was claimed once [1]", &HashSet::from([1]), &tokens)
}

async fn sixty_four_concurrent_claimers_take_each_of_a_thousand_runs_once(s: Scenario) -> Verdict {
    let ids = s.start_many(1000).await?;
    let taken = race(64, |number| {
        let s = s.clone();
        async move { drain(&s, number).await }
    })
    .await?;
    under("concurrent claims take each run once [1]", each_once(&ids, taken))
}

async fn claimers_on_two_handles_take_each_run_once(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    let ids = s.start_many(500).await?;
    let taken = race(16, |number| {
        let s = if number % 2 == 0 { s.clone() } else { second.clone() };
        async move { drain(&s, number).await }
    })
    .await?;
    under("concurrent claims over two handles take each run once [1]", each_once(&ids, taken))
}

async fn concurrent_claimers_with_a_type_filter_take_each_run_once(s: Scenario) -> Verdict {
    let types = ["a", "b", "c"];
    let batch = (0..150).map(|n| typed(&s, types[n % 3])).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<RunId> = batch.iter().map(StartRun::run_id).collect();
    s.start_all(batch).await?;
    let taken = race(12, |number| {
        let s = s.clone();
        async move {
            let mut taken = Vec::new();
            loop {
                let batch = s.claim_as(only(&s, &[types[number % 3]], 4)?).await?;
                if batch.is_empty() {
                    return Ok(taken);
                }
                taken.extend(batch.iter().map(|run| (run.run.run_id, run.run.fencing_token)));
            }
        }
    })
    .await?;
    under("concurrent claims of some types take each run once [1]", each_once(&ids, taken))
}

async fn an_expired_lease_is_claimable_with_a_larger_token(s: Scenario) -> Verdict {
    let first = s.held().await?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    equal("the run of an expired lease is taken [2]", &first.run_id(), &second.run_id())?;
    let tokens = (first.lease.fencing_token, second.lease.fencing_token);
    check(tokens.1 > tokens.0, "tokens only grow [1]", "a larger token", tokens)?;
    let run = s.run(second.run_id()).await?.run;
    equal("the claim is counted", &2, &run.claims)?;
    equal("the lost lease is counted [14]", &1, &run.lost_leases)?;
    equal("the new worker holds it [1]", &Some(worker("w2")?), &run.worker_id)
}

async fn a_steal_abandons_the_open_attempts_of_the_old_lease(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    s.turn(LEASE);
    s.claim_one("w2").await?;
    let attempts = s.attempts(first.run_id()).await?;
    equal("the history keeps the attempt [5]", &1, &attempts.len())?;
    equal("an attempt whose lease was lost is ABANDONED [5]", &AttemptState::Abandoned, &attempts[0].state)?;
    equal("it has an end", &Some(s.now()), &attempts[0].finished_at)
}

async fn of_many_thieves_of_one_expired_lease_one_wins(s: Scenario) -> Verdict {
    let first = s.held().await?;
    s.turn(LEASE);
    let taken = race(32, |number| {
        let s = s.clone();
        async move { s.claim(&format!("thief{number}"), 1).await }
    })
    .await?;
    let winners: Vec<_> = taken.iter().flatten().collect();
    equal("one thief wins [1]", &1, &winners.len())?;
    let run = s.run(first.run_id()).await?.run;
    equal(
        "and the run is the winner's [1]",
        &Some(&winners[0].lease.lease.worker_id),
        &run.worker_id.as_ref(),
    )?;
    equal("the token grew once [1]", &2, &run.fencing_token.get())
}

async fn a_claim_wakes_a_due_sleeper_without_a_reaper(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.sleep("nap", Duration::from_secs(5)).await?;
    s.turn(Duration::from_secs(5));
    equal(
        "a due sleeper is claimable before any reap [10]",
        &held.run_id(),
        &s.claim_one("w2").await?.run_id(),
    )
}

async fn more_expired_leases_than_the_limit_are_no_obstacle(s: Scenario) -> Verdict {
    s.start_many(300).await?;
    equal("all are held", &300, &s.claim("w1", 300).await?.len())?;
    s.turn(LEASE);
    let first = s.claim("w2", 10).await?;
    equal("a claim fills its limit from expired leases [10]", &10, &first.len())?;
    equal("and further claims get the rest [10]", &290, &drain(&s, 2).await?.len())
}

async fn one_dead_run_in_front_does_not_hide_the_ones_behind(s: Scenario) -> Verdict {
    let timeout = Some(Duration::from_secs(1));
    s.start(StartRun { run_timeout: timeout, ..s.start_request() }).await?;
    let behind = s.start_one().await?;
    s.turn(Duration::from_secs(2));
    equal("a dead run takes no place in a claim [10]", &behind, &s.claim_one("w1").await?.run_id())
}

async fn a_run_past_its_deadline_becomes_a_dead_letter_instead(s: Scenario) -> Verdict {
    let timeout = Some(Duration::from_secs(10));
    let run_id = s.start(StartRun { run_timeout: timeout, ..s.start_request() }).await?.run_id;
    s.turn(Duration::from_secs(10));
    s.nothing_claimable("a run past its deadline is not taken [6]").await?;
    s.reap_all().await?;
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter);
    equal("it is a dead letter", &(RunState::Failed, Some(DeadLetterReason::RunTimeout)), &found)
}

async fn a_run_that_lost_too_many_leases_becomes_a_dead_letter_instead(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for number in 0..3 {
        s.claim_one(&format!("w{number}")).await?;
        s.turn(LEASE);
    }
    s.nothing_claimable("a poison run is not taken again [14]").await?;
    s.reap_all().await?;
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter, run.claims);
    equal("it is a dead letter [14]", &(RunState::Failed, Some(DeadLetterReason::Poison), 3), &found)
}

async fn the_same_claim_again_gives_the_same_runs(s: Scenario) -> Verdict {
    s.start_many(6).await?;
    let request = s.claim_request("w1", 3)?;
    let first = s.claim_as(request.clone()).await?;
    s.turn(Duration::from_secs(5));
    equal("a claim sent again gives its first answer [8]", &first, &s.claim_as(request).await?)?;
    equal("and takes no further run [8]", &3, &s.claim("w2", 10).await?.len())
}

async fn the_same_claim_again_gives_only_what_it_still_holds(s: Scenario) -> Verdict {
    s.start_many(2).await?;
    let request = s.claim_request("w1", 2)?;
    let mut first = s.claim_as(request.clone()).await?;
    equal("both are taken", &2, &first.len())?;
    let kept = first.remove(1);
    Held::new(s.clone(), first.remove(0)).complete_run("1").await?;
    let ids: Vec<RunId> = s.claim_as(request).await?.iter().map(|run| run.run.run_id).collect();
    equal("a repeat gives what the claim still holds [8]", &vec![kept.run.run_id], &ids)
}

async fn concurrent_repeats_of_one_claim_take_no_run_twice(s: Scenario) -> Verdict {
    /// The first rounds open connections and make plans, so that repeats hardly meet; the later ones do.
    const ROUNDS: usize = 12;
    const LIMIT: u8 = 3;
    let mut ids = Vec::new();
    for _ in 0..ROUNDS {
        ids.extend(s.start_many(2 * usize::from(LIMIT)).await?);
        let request = s.claim_request("w1", LIMIT.into())?;
        race(8, |_| {
            let (s, request) = (s.clone(), request.clone());
            async move { s.claim_as(request).await }
        })
        .await?;
    }
    let mut taken = 0;
    for run_id in ids {
        let run = s.run(run_id).await?.run;
        let once = run.claims <= 1 && run.fencing_token.get() == i64::from(run.claims);
        check(once, "repeats take no run twice [1]", "at most one claim", (run.claims, run.fencing_token))?;
        taken += usize::from(run.state == RunState::Running);
    }
    equal("and no more than one of them would [8]", &(ROUNDS * usize::from(LIMIT)), &taken)
}

async fn the_same_claim_by_another_worker_takes_its_own(s: Scenario) -> Verdict {
    s.start_many(2).await?;
    let request = s.claim_request("w1", 1)?;
    let first = s.claim_as(request.clone()).await?;
    let second = s.claim_as(Claim { worker_id: worker("w2")?, ..request }).await?;
    for run in &second {
        let rule = "a lease is given to the worker that asked, whatever id its claim has [1]";
        equal(rule, &worker("w2")?, &run.lease.lease.worker_id)?;
    }
    let taken: HashSet<RunId> = first.iter().chain(&second).map(|run| run.run.run_id).collect();
    equal("and to one worker only [1]", &(first.len() + second.len()), &taken.len())
}

async fn inputs_without_room_stay_for_the_next_claim(s: Scenario) -> Verdict {
    let rules = suite_rules();
    let input = Payload::json(format!("\"{}\"", "x".repeat(rules.max_payload_bytes - 2)));
    let fit = rules.max_claim_bytes / input.len_bytes();
    let topic = Topic::Queue(s.namespace().clone(), s.start_request().queue);
    let batch = (0..=2 * fit).map(|_| StartRun { input: input.clone(), ..s.start_request() }).collect();
    let mut ids: Vec<RunId> = s.start_all(batch).await?.iter().map(|started| started.run_id).collect();
    ids.sort_unstable();
    let mut taken = Vec::new();
    for expected in [fit, fit, 1] {
        let waiter = s.store().wake_hub().subscribe([topic.clone()]);
        let claimed = s.claim("w1", 100).await?;
        equal("a claim hands over what there is room for [12]", &expected, &claimed.len())?;
        let left = taken.len() + claimed.len() < ids.len();
        if left {
            woken(waiter, "a claim that leaves runs says that there are more [10]").await?;
        }
        taken.extend(claimed.iter().map(|run| run.run.run_id));
    }
    equal("nothing is left out, and the order holds over the claims [10, 13]", &ids, &taken)
}
