//! Several servers on one database.

use kagzi_sdk::{Client, RunFilter, RunHandle, RunState};

use super::crash::{await_results, start_five_steps};
use super::{audit, expect_eq};
use crate::world::{Failed, World, busy, start_worker};

const RUNS: u64 = 5_000;

pub async fn half_killed(world: World) -> Result<(), Failed> {
    let (doomed, lasting) = (world.server(0)?, world.server(0)?);
    let settings = busy(2_000);
    let _a = start_worker("a", &doomed.url(), settings)?;
    let b = start_worker("b", &doomed.url(), settings)?;
    let c = start_worker("c", &lasting.url(), settings)?;
    let _d = start_worker("d", &lasting.url(), settings)?;
    let through_doomed = Client::connect(doomed.url()).await?;
    let client = Client::connect(lasting.url()).await?;

    let acknowledged = start_five_steps(&through_doomed, RUNS).await?;
    let runs: Vec<RunHandle> = acknowledged.iter().map(|run| client.handle(run.run_id())).collect();
    await_results(&runs[..500], 0).await?;
    b.kill()?;
    doomed.process.kill()?;
    await_results(&runs[500..1_000], 500).await?;
    c.kill()?;

    await_results(&runs, 0).await?;
    let completed = RunFilter { states: vec![RunState::Completed], ..RunFilter::default() };
    expect_eq("completed runs", &client.count(&completed).await?, &RUNS)?;
    expect_eq("runs in all", &client.count(&RunFilter::default()).await?, &RUNS)?;
    let ids: Vec<_> = runs.iter().map(RunHandle::run_id).collect();
    let all = audit(&client, &ids).await?;
    expect_eq("steps completed twice", &all.completed_twice, &0)?;
    expect_eq("completed steps", &all.completed, &25_000)
}
