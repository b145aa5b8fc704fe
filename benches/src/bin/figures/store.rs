//! The stores alone.

use std::time::Instant;

use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_benches::workload::{Names, claim_and_complete, start_many, take_steps};
use kagzi_core::Payload;

use crate::metrics::Metrics;

/// How many runs take steps at once.
const IN_FLIGHT: usize = 64;
/// How many steps each takes.
const STEPS: u32 = 300;
/// How many runs are claimed and completed.
const RUNS: usize = 10_000;
/// How many of them by one claim.
const BATCH: u32 = 50;
/// How many claims are in flight.
const CLAIMERS: usize = 4;

/// Steps and claims.
pub async fn measure(backend: Backend, metrics: &mut Metrics) -> Result<(), Failed> {
    let place = Place::fresh(backend).await?;
    let store = place.open().await?;
    let names = Names::new("store")?;
    let payload = Payload::json(r#"{"order":1234567}"#);

    start_many(&store, &names, &payload, IN_FLIGHT).await?;
    let elapsed = take_steps(&store, &names, &payload, IN_FLIGHT, STEPS).await?;
    metrics.add(backend, "store.steps_per_second", per_second(IN_FLIGHT * STEPS as usize, elapsed));

    for _ in 0..RUNS / 500 {
        start_many(&store, &names, &payload, 500).await?;
    }
    let began = Instant::now();
    let done = claim_and_complete(&store, &names, &payload, CLAIMERS, BATCH).await?;
    metrics.add(backend, "store.claims_per_second", per_second(done, began.elapsed()));
    store.close().await?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^52")]
fn per_second(count: usize, elapsed: std::time::Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}
