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

/// Over tables of up to `finished_runs`, each beside an empty one, in turn. A store in memory is not meant
/// to grow.
pub async fn measure(backend: Backend, finished_runs: u32, metrics: &mut Metrics) -> Result<(), Failed> {
    if backend == Backend::Memory {
        return Ok(());
    }
    let (empty, large) = (Place::fresh(backend).await?, Place::fresh(backend).await?);
    let (empty_store, large_store) = (empty.open().await?, large.open().await?);
    let mut filled = 0;
    for size in [finished_runs / 10, finished_runs] {
        let began = Instant::now();
        large.fill_with_finished_runs(filled + 1, size).await?;
        eprintln!("  {size} finished runs after {:.0} s", began.elapsed().as_secs_f64());
        filled = size;
        for _ in 0..TURNS {
            let (small, big) =
                (claims_per_second(&empty_store).await?, claims_per_second(&large_store).await?);
            metrics.add(backend, "growth.curve.0000000000.claims_per_second", small);
            metrics.add(backend, &format!("growth.curve.{size:010}.claims_per_second"), big);
            if size == finished_runs {
                metrics.add(backend, "growth.empty_claims_per_second", small);
                metrics.add(backend, "growth.large_claims_per_second", big);
            }
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
