//! Processes that die, and processes that are asked to go.

use kagzi_sdk::{AttemptState, Client, RunHandle, Start};

use super::{audit, expect_eq};
use crate::process::Process;
use crate::worker::{FIVE, HELD};
use crate::world::{Failed, WorkerSettings, World, busy, start_worker};

/// How many runs are started in one call: a server takes 1,000 unless configured otherwise.
const START_AT_ONCE: usize = 500;

/// Starts runs of five steps, with the numbers from 0 as inputs.
pub async fn start_five_steps(client: &Client, count: u64) -> Result<Vec<RunHandle>, Failed> {
    let mut runs = Vec::new();
    let mut numbers = 0..count;
    while !numbers.is_empty() {
        let starts = numbers
            .by_ref()
            .take(START_AT_ONCE)
            .map(|number| Start::workflow(FIVE).queue("default").input(&number))
            .collect::<Result<Vec<_>, _>>()?;
        runs.extend(client.start_many(starts).await?);
    }
    Ok(runs)
}

/// Waits for the results of runs that [`start_five_steps`] started, the first of them being `first`.
pub async fn await_results(runs: &[RunHandle], first: u64) -> Result<(), Failed> {
    for (number, run) in (first..).zip(runs) {
        expect_eq("the result of a run of five steps", &run.result::<u64>().await?, &(number + 5))?;
    }
    Ok(())
}

pub async fn start_held(client: &Client) -> Result<RunHandle, Failed> {
    Ok(client.start(Start::workflow(HELD).queue("default").input(&())?).await?)
}

pub fn holding_worker(name: &str, url: &str, lease_ms: u64) -> Result<Process, Failed> {
    start_worker(name, url, WorkerSettings { lease_ms, holds: true, runs: 64 })
}

pub async fn worker(world: World) -> Result<(), Failed> {
    let server = world.server(0)?;
    let client = Client::connect(server.url()).await?;
    let mut first = holding_worker("first", &server.url(), 1_000)?;
    let held = start_held(&client).await?;
    first.line("holding")?;
    let runs = start_five_steps(&client, 200).await?;
    await_results(&runs[..20], 0).await?;
    first.kill()?;

    let _second = start_worker("second", &server.url(), busy(10_000))?;
    expect_eq("who executed the held step", &held.result::<String>().await?, &"second".to_owned())?;
    await_results(&runs, 0).await?;
    let held_audit = audit(&client, &[held.run_id()]).await?;
    expect_eq("abandoned attempts of the held run", &held_audit.abandoned, &1)?;
    expect_eq("completed steps of the held run", &held_audit.completed, &3)?;
    let ids: Vec<_> = runs.iter().map(RunHandle::run_id).collect();
    let all = audit(&client, &ids).await?;
    expect_eq("steps completed twice", &(all.completed_twice + held_audit.completed_twice), &0)?;
    expect_eq("completed steps", &all.completed, &1_000)
}

pub async fn server(world: World) -> Result<(), Failed> {
    let first = world.server(0)?;
    let port = first.port;
    let client = Client::connect(first.url()).await?;
    let mut worker = holding_worker("worker", &first.url(), 60_000)?;
    let held = start_held(&client).await?;
    worker.line("holding")?;
    let runs = start_five_steps(&client, 100).await?;
    await_results(&runs[..10], 0).await?;
    first.process.kill()?;

    // The step finishes while there is nobody to tell.
    worker.say("go on")?;
    let _second = world.server(port)?;
    expect_eq("who executed the held step", &held.result::<String>().await?, &"worker".to_owned())?;
    await_results(&runs, 0).await?;
    let mut ids: Vec<_> = runs.iter().map(RunHandle::run_id).collect();
    ids.push(held.run_id());
    let all = audit(&client, &ids).await?;
    expect_eq("steps completed twice", &all.completed_twice, &0)?;
    expect_eq(
        "attempts of the held run that were abandoned",
        &audit(&client, &[held.run_id()]).await?.abandoned,
        &0,
    )?;
    expect_eq("completed steps", &all.completed, &503)
}

pub async fn terminated(world: World) -> Result<(), Failed> {
    let server = world.server(0)?;
    let client = Client::connect(server.url()).await?;
    let mut first = holding_worker("first", &server.url(), 60_000)?;
    let held = start_held(&client).await?;
    first.line("holding")?;
    // Its step in flight finishes and is recorded, then the run is given back: nothing waits for the
    // lease to expire.
    first.signal(rustix::process::Signal::TERM)?;
    first.say("go on")?;
    first.terminate()?;
    let second = start_worker("second", &server.url(), busy(60_000))?;
    expect_eq("who executed the held step", &held.result::<String>().await?, &"first".to_owned())?;
    // The step after it may have been begun and given back unexecuted; the one in flight was not.
    let attempts = client.attempts(held.run_id()).await?;
    let in_flight: Vec<_> =
        attempts.iter().filter(|a| a.step_id.as_str() == "hold").map(|a| a.state).collect();
    expect_eq("attempts of the step in flight", &in_flight, &vec![AttemptState::Completed])?;
    second.terminate()?;
    server.process.terminate()
}
