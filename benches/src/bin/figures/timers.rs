//! Many sleepers due at once, with claims going on meanwhile, and many leases that have expired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_benches::workload::{Names, claim_and_hold, reap_all, start_delayed, start_many};
use kagzi_core::{Clock as _, ManualClock, Payload, SharedStore};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How many runs are started, or claimed, in one go.
const BATCH: u32 = 1_000;
/// How many runs of another queue wait to be claimed meanwhile.
const OTHERS: u32 = 20_000;
/// How long after the start all are due.
const LATER: Duration = Duration::from_hours(1);

/// Both. The clock is turned by hand, so that all are due in one moment.
pub async fn measure(backend: Backend, due: u32, metrics: &mut Metrics) -> Result<(), Failed> {
    let place = Place::fresh(backend).await?;
    let clock = Arc::new(ManualClock::default());
    let store = place.open_with(clock.clone()).await?;
    let payload = Payload::json("{}");

    let sleepers = Names::new("sleepers")?;
    for _ in 0..due / BATCH {
        start_delayed(&store, &sleepers, &payload, BATCH as usize, clock.now().saturating_add(LATER)).await?;
    }
    let others = Names::new("others")?;
    for _ in 0..OTHERS / BATCH {
        start_many(&store, &others, &payload, BATCH as usize).await?;
    }
    clock.advance(LATER);
    let awake = CancellationToken::new();
    let claims = tokio::spawn(claim_until(awake.clone(), store.clone(), others));
    let began = Instant::now();
    reap_all(&store).await?;
    metrics.add(backend, "timers.wake_seconds", began.elapsed().as_secs_f64());
    awake.cancel();
    metrics.add(backend, "timers.claim_p99_ms", p99_ms(claims.await??));

    for _ in 0..due / BATCH {
        claim_and_hold(&store, &sleepers, BATCH).await?;
    }
    clock.advance(LATER);
    let began = Instant::now();
    reap_all(&store).await?;
    metrics.add(backend, "timers.reap_seconds", began.elapsed().as_secs_f64());
    store.close().await?;
    Ok(())
}

/// Claims one run after the other from a queue that the timers have nothing to do with.
async fn claim_until(
    awake: CancellationToken,
    store: SharedStore,
    names: Names,
) -> Result<Vec<Duration>, Failed> {
    let mut latencies = Vec::new();
    while !awake.is_cancelled() {
        let began = Instant::now();
        if claim_and_hold(&store, &names, 1).await? == 0 {
            break;
        }
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}

fn p99_ms(mut latencies: Vec<Duration>) -> f64 {
    latencies.sort_unstable();
    let index = (latencies.len() * 99 / 100).min(latencies.len().saturating_sub(1));
    latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
}
