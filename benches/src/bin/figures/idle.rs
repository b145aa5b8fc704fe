//! What an idle server costs with a hundred idle workers, how soon one is ready, and its memory when the
//! store is full.

use std::time::{Duration, Instant};

use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_benches::workload::{Names, claim_and_hold, start_many};
use kagzi_core::Payload;

use crate::metrics::Metrics;
use crate::processes::{Process, kagzi};

const WORKERS: u32 = 100;
const PENDING: usize = 100_000;
const LEASED: u32 = 1_000;

/// All of it. A store in memory has no server of its own to watch.
pub async fn measure(backend: Backend, seconds: u64, metrics: &mut Metrics) -> Result<(), Failed> {
    if backend == Backend::Memory {
        return Ok(());
    }
    let place = Place::fresh(backend).await?;
    let began = Instant::now();
    let server = Process::server(&place)?;
    metrics.add(backend, "idle.ready_ms", began.elapsed().as_secs_f64() * 1000.0);
    metrics.add(backend, "idle.binary_mib", mib(std::fs::metadata(kagzi()?)?.len()));

    let workers = (0..WORKERS).map(|_| Process::idle_worker(&server)).collect::<Result<Vec<_>, _>>()?;
    // Let what the start left behind settle: an idle Postgres session tells what it did 10 s later.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (time, transactions, began) = (server.processor_time()?, ended(&place).await?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used = server.processor_time()?.saturating_sub(time).as_secs_f64();
    metrics.add(backend, "idle.core_percent", used / elapsed * 100.0);
    if let Some((before, after)) = transactions.zip(ended(&place).await?) {
        metrics.add(backend, "idle.transactions_per_second", (after - before) / elapsed);
    }
    metrics.add(backend, "idle.mib", server.resident_mib()?);
    drop(workers);

    let store = place.open().await?;
    let names = Names::new("full")?;
    let payload = Payload::json("{}");
    for _ in 0..PENDING / 1_000 {
        start_many(&store, &names, &payload, 1_000).await?;
    }
    claim_and_hold(&store, &names, LEASED).await?;
    // The server looks around by itself; give it the time to.
    tokio::time::sleep(Duration::from_secs(10)).await;
    metrics.add(backend, "idle.full_mib", server.resident_mib()?);
    store.close().await?;
    Ok(())
}

/// Transactions that the Postgres database has ended so far.
async fn ended(place: &Place) -> Result<Option<f64>, Failed> {
    let Some(database) = place.database() else { return Ok(None) };
    Ok(Some(f64::from(i32::try_from(database.ended_transactions().await?)?)))
}

#[expect(clippy::cast_precision_loss, reason = "files of a bench are far below 2^52 bytes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
