//! Reading: much at once, and the time.

use std::time::Duration;

use kagzi_core::{Namespace, QueueDepth, RunId, StartRun};

use crate::case::cases;
use crate::scenario::{Scenario, check, equal, queue};
use crate::violation::{Verdict, Violation};

cases! {
    "reading";
    [12] hundreds_of_runs_are_read_in_one_call;
    [13] the_depths_of_hundreds_of_queues_are_all_told;
    [] the_time_that_a_store_tells_is_that_of_its_clock;
}

/// More than a backend is tempted to read or tell at once.
const MANY: usize = 300;

async fn hundreds_of_runs_are_read_in_one_call(s: Scenario) -> Verdict {
    let wanted: Vec<(Namespace, RunId)> =
        s.start_many(MANY).await?.into_iter().map(|run_id| (s.namespace().clone(), run_id)).collect();
    let records = s.store().get_runs(&wanted).await;
    let records = records.map_err(|e| Violation::refused("reading many runs", &e))?;
    let mut read = Vec::new();
    for record in records {
        let record = record.map_err(|e| Violation::refused("reading a run among many", &e))?;
        read.push((record.run.namespace, record.run.run_id));
    }
    check(read == wanted, "of hundreds of runs each is read, in its place [12]", wanted.len(), read.len())
}

async fn the_depths_of_hundreds_of_queues_are_all_told(s: Scenario) -> Verdict {
    let queues = (0..MANY).map(|n| queue(format!("queue{n:03}"))).collect::<Result<Vec<_>, _>>()?;
    let batch = queues.iter().map(|queue| StartRun { queue: queue.clone(), ..s.start_request() });
    s.start_all(batch.collect()).await?;
    let depths = s.store().queue_depths(s.namespace()).await;
    let depths = depths.map_err(|e| Violation::refused("queue depths", &e))?;
    let oldest_due_at = Some(s.now());
    let expected: Vec<QueueDepth> = queues
        .into_iter()
        .map(|queue| QueueDepth { pending: 1, oldest_due_at, ..QueueDepth::empty(queue) })
        .collect();
    check(depths == expected, "the depths of hundreds of queues are all told", expected.len(), depths.len())
}

async fn the_time_that_a_store_tells_is_that_of_its_clock(s: Scenario) -> Verdict {
    const RULE: &str = "a store tells the time of the clock that it writes by";
    for step in [Duration::ZERO, Duration::from_micros(1), Duration::from_hours(10_000)] {
        s.turn(step);
        let told = s.store().now().await.map_err(|e| Violation::refused("asking for the time", &e))?;
        equal(RULE, &s.now(), &told)?;
        let run_id = s.start_one().await?;
        equal("and what is written then takes that time", &told, &s.run(run_id).await?.run.created_at)?;
    }
    Ok(())
}
