//! Claims in a queue with and without many finished runs beside it.

use std::time::Instant;

use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_benches::workload::{Names, claim_and_complete, start_many};
use kagzi_core::{Payload, SharedStore};

use crate::metrics::Metrics;

/// How many runs are claimed for each figure.
const RUNS: usize = 5_000;
/// How many pieces of one claim.
const BATCH: u32 = 50;
/// How often the empty and the large table are measured in turn.
const TURNS: usize = 3;

/// Both, in turn. A store in memory is not meant to grow.
pub async fn measure(backend: Backend, finished_runs: u32, metrics: &mut Metrics) -> Result<(), Failed> {
    if backend == Backend::Memory {
        return Ok(());
    }
    let (empty, large) = (Place::fresh(backend).await?, Place::fresh(backend).await?);
    let (empty_store, large_store) = (empty.open().await?, large.open().await?);
    large.fill_with_finished_runs(finished_runs).await?;
    for _ in 0..TURNS {
        for (store, name) in [(&empty_store, "empty"), (&large_store, "large")] {
            metrics.add(
                backend,
                &format!("growth.{name}_claims_per_second"),
                claims_per_second(store).await?,
            );
        }
    }
    empty_store.close().await?;
    large_store.close().await?;
    Ok(())
}

async fn claims_per_second(store: &SharedStore) -> Result<f64, Failed> {
    let names = Names::new("growth")?;
    let payload = Payload::json("{}");
    for _ in 0..RUNS / 500 {
        start_many(store, &names, &payload, 500).await?;
    }
    let began = Instant::now();
    let done = claim_and_complete(store, &names, &payload, 4, BATCH).await?;
    Ok(f64::from(u32::try_from(done)?) / began.elapsed().as_secs_f64())
}
