//! The order of claims, and that nothing starves.

use std::time::Duration;

use kagzi_core::{Claim, OperationId, PRIORITY_LEVEL, Priority, RunId, StartAt, StartRun, WorkflowType};

use crate::case::cases;
use crate::proof;
use crate::scenario::{LEASE, Scenario, check, equal, queue, workflow_type};
use crate::violation::{Verdict, Violation};

cases! {
    "claim";
    [13] higher_priority_goes_first;
    [13] within_a_priority_the_earlier_due_goes_first;
    [13] equal_priority_and_due_time_go_by_run_id;
    [13] the_order_is_by_due_time_and_not_by_creation;
    [13] one_level_of_priority_is_worth_an_hour_of_waiting;
    [13] low_priority_is_not_starved_under_a_stream_of_high;
    [13] a_released_run_keeps_its_place;
    [13] a_run_that_lost_its_lease_goes_behind_those_that_wait;
    [13] a_busy_queue_does_not_starve_another;
    [13] runs_of_one_rank_over_several_queues_are_all_taken;
    [13] the_order_holds_over_several_queues;
    [13] the_order_holds_however_many_queues_and_types_are_asked_for;
    [10, 13] a_type_filter_finds_runs_behind_many_of_another_type;
}

fn with_priority(s: &Scenario, level: i64) -> Result<StartRun, Violation> {
    let priority = Priority::new(level).map_err(|e| Violation::refused("making a priority", &e))?;
    Ok(StartRun { priority, ..s.start_request() })
}

/// Claims one by one until nothing is left.
async fn order(s: &Scenario) -> Result<Vec<RunId>, Violation> {
    let mut order = Vec::new();
    while let Some(run) = s.claim("w1", 1).await?.pop() {
        order.push(run.run.run_id);
    }
    Ok(order)
}

async fn higher_priority_goes_first(s: Scenario) -> Verdict {
    let mut expected = Vec::new();
    for level in [-9, 0, 9, -1, 1] {
        expected.push((level, s.start(with_priority(&s, level)?).await?.run_id));
    }
    expected.sort_unstable_by_key(|(level, _)| -level);
    let expected: Vec<RunId> = expected.into_iter().map(|(_, run_id)| run_id).collect();
    equal("higher priority goes first [13]", &expected, &order(&s).await?)
}

async fn within_a_priority_the_earlier_due_goes_first(s: Scenario) -> Verdict {
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(s.start_one().await?);
        s.turn(Duration::from_micros(1));
    }
    let batch: Vec<RunId> = s.claim("w1", 3).await?.iter().map(|run| run.run.run_id).collect();
    equal("the earlier due goes first, within one claim too [13]", &expected[..3].to_vec(), &batch)?;
    equal("and in the claims after it [13]", &expected[3..].to_vec(), &order(&s).await?)
}

async fn equal_priority_and_due_time_go_by_run_id(s: Scenario) -> Verdict {
    let mut ids = s.start_many(25).await?;
    ids.sort_unstable();
    equal("ties go by run id [13]", &ids, &order(&s).await?)
}

async fn the_order_is_by_due_time_and_not_by_creation(s: Scenario) -> Verdict {
    let delayed =
        |seconds| StartRun { start_at: StartAt::After(Duration::from_secs(seconds)), ..s.start_request() };
    let late = s.start(delayed(30)).await?.run_id;
    let early = s.start(delayed(10)).await?.run_id;
    let middle = s.start(delayed(20)).await?.run_id;
    s.turn(Duration::from_mins(1));
    equal("sleepers go by the time they were due [13]", &vec![early, middle, late], &order(&s).await?)
}

async fn one_level_of_priority_is_worth_an_hour_of_waiting(s: Scenario) -> Verdict {
    let waited = s.start_one().await?;
    s.turn_almost(PRIORITY_LEVEL);
    let urgent = s.start(with_priority(&s, 1)?).await?.run_id;
    s.turn(Duration::from_micros(2));
    let too_late = s.start(with_priority(&s, 1)?).await?.run_id;
    equal(
        "a level is worth an hour, to the microsecond [13]",
        &vec![urgent, waited, too_late],
        &order(&s).await?,
    )
}

async fn low_priority_is_not_starved_under_a_stream_of_high(s: Scenario) -> Verdict {
    let rule = "nothing starves [13]";
    let low = s.start(with_priority(&s, -9)?).await?.run_id;
    // 18 levels lie between the two, so only urgent runs of the first 18 hours stand in front of it,
    // though more of them come in than go out.
    for _ in 0..40 {
        s.start_all(vec![with_priority(&s, 9)?, with_priority(&s, 9)?]).await?;
        let taken = s.claim("w1", 1).await?;
        if taken.iter().any(|run| run.run.run_id == low) {
            proof::kept(rule);
            return Ok(());
        }
        for run in taken {
            crate::scenario::Held::new(s.clone(), run).complete_run("1").await?;
        }
        s.turn(PRIORITY_LEVEL);
    }
    check(false, rule, "the low one within 40 claims", "only urgent ones")
}

async fn a_released_run_keeps_its_place(s: Scenario) -> Verdict {
    let first = s.start_one().await?;
    s.turn(Duration::from_secs(1));
    s.start_one().await?;
    let held = s.claim_one("w1").await?;
    held.release().await?;
    equal("a released run is next again [13]", &first, &s.claim_one("w2").await?.run_id())
}

async fn a_run_that_lost_its_lease_goes_behind_those_that_wait(s: Scenario) -> Verdict {
    let crashing = s.held().await?.run_id();
    let waiting = s.start_one().await?;
    s.turn(LEASE);
    let expected = vec![waiting, crashing];
    equal("a run that takes workers down does not stand in front [13]", &expected, &order(&s).await?)
}

async fn a_busy_queue_does_not_starve_another(s: Scenario) -> Verdict {
    let (busy, quiet) = (s.on_queue("busy")?, s.on_queue("quiet")?);
    busy.start_many(50).await?;
    s.turn(Duration::from_secs(1));
    let only_one = quiet.start_one().await?;
    s.turn(Duration::from_secs(1));
    busy.start_many(50).await?;
    let mut claim = s.claim_request("w1", 51)?;
    claim.queues = vec![busy.start_request().queue, quiet.start_request().queue];
    let taken = s.claim_as(claim).await?;
    let place = taken.iter().position(|run| run.run.run_id == only_one);
    equal("a run of a quiet queue has the place of its due time [13]", &Some(50), &place)
}

async fn runs_of_one_rank_over_several_queues_are_all_taken(s: Scenario) -> Verdict {
    let names = ["a", "b", "c"];
    let mut ids = Vec::new();
    for name in names {
        // One batch has one moment, so all runs of a queue stand at one place in the order of due times.
        ids.extend(s.on_queue(name)?.start_many(8).await?);
    }
    let mut claim = s.claim_request("w1", 24)?;
    claim.queues = names.into_iter().map(queue).collect::<Result<_, _>>()?;
    let mut taken = Vec::new();
    for limit in [5, 3, 16] {
        let request = Claim { limit, operation: OperationId::generate(), ..claim.clone() };
        taken.extend(s.claim_as(request).await?.into_iter().map(|run| run.run.run_id));
    }
    ids.sort_unstable();
    equal("runs of equal rank are taken by id, and none is passed by [13]", &ids, &taken)
}

async fn the_order_holds_however_many_queues_and_types_are_asked_for(s: Scenario) -> Verdict {
    // So many pairs that a store may look at them in another way than at a few.
    const EACH: usize = 40;
    let queues = (0..EACH).map(|n| queue(format!("queue{n:02}"))).collect::<Result<Vec<_>, _>>()?;
    let types = (0..EACH).map(|n| workflow_type(format!("type{n:02}"))).collect::<Result<Vec<_>, _>>()?;
    let start = |at: usize, of: &WorkflowType| StartRun {
        queue: queues[at].clone(),
        workflow_type: of.clone(),
        operation: OperationId::generate(),
        ..s.start_request()
    };
    // All of one rank, most of them in one queue, and among them one that nobody asks for.
    let unwanted = s.start(start(0, &workflow_type("another")?)).await?.run_id;
    let wanted: Vec<StartRun> =
        [(0, 0), (0, 1), (0, 0), (1, 2), (0, 1), (2, 0), (0, 2)].map(|(at, of)| start(at, &types[of])).into();
    let mut ids: Vec<RunId> = s.start_all(wanted).await?.iter().map(|started| started.run_id).collect();
    ids.sort_unstable();
    for expected in [ids.get(..5), ids.get(5..)] {
        let expected = expected.unwrap_or_default();
        let asked = s.claim_request("w1", 5)?;
        let claim = Claim { queues: queues.clone(), workflow_types: types.clone(), ..asked };
        let taken: Vec<RunId> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
        let rule =
            "a claim of more than a thousand pairs of queue and type takes the first of all of them [13]";
        equal(rule, &expected, &taken.as_slice())?;
    }
    let left: Vec<RunId> =
        s.on_queue("queue00")?.claim("w2", 10).await?.iter().map(|run| run.run.run_id).collect();
    equal("and nothing of any other type", &vec![unwanted], &left)
}

async fn a_type_filter_finds_runs_behind_many_of_another_type(s: Scenario) -> Verdict {
    let wanted = workflow_type("wanted")?;
    let start = || StartRun { workflow_type: wanted.clone(), ..s.start_request() };
    let mut expected = vec![s.start(start()).await?.run_id];
    s.turn(Duration::from_micros(1));
    s.start_many(20).await?;
    for _ in 0..5 {
        s.turn(Duration::from_micros(1));
        expected.push(s.start(start()).await?.run_id);
    }
    let claim = Claim { workflow_types: vec![wanted.clone()], ..s.claim_request("w1", 6)? };
    let taken: Vec<RunId> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
    equal("due runs of the asked type are found, whatever stands among them [10, 13]", &expected, &taken)
}

async fn the_order_holds_over_several_queues(s: Scenario) -> Verdict {
    let mut ids = Vec::new();
    for place in 0..6 {
        let queue = s.on_queue(if matches!(place, 1 | 5) { "few" } else { "many" })?;
        ids.push(queue.start_one().await?);
        s.turn(Duration::from_secs(1));
    }
    let queues = vec![queue("few")?, queue("many")?];
    for (limit, expected) in [(4, ids.get(..4)), (1, ids.get(4..5)), (10, ids.get(5..))] {
        let claim = Claim { queues: queues.clone(), ..s.claim_request("w1", limit)? };
        let taken: Vec<RunId> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
        let rule = "a claim over several queues takes the first of all of them, not of each [13]";
        equal(rule, &expected.unwrap_or_default(), &taken.as_slice())?;
    }
    Ok(())
}
