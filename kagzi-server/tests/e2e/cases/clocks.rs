//! Clocks that are wrong: of a worker, and of servers over one database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kagzi_sdk::{Attempt, Client, RunHandle, Start, StepKind};

use super::crash::{await_results, start_five_steps};
use super::{audit, expect_eq};
use crate::clock::Clock;
use crate::process::Process;
use crate::worker::NAPPING;
use crate::world::{Failed, World, busy, start_watched};

const HOUR: i64 = 3_600;

/// Long enough for a busy machine, and far less than the clocks are off by.
const LEASE_MS: u64 = 30_000;

const NAP_MS: u64 = 300;

pub async fn worker(world: World) -> Result<(), Failed> {
    let server = world.server(0)?;
    let ahead = off_by(&world, "ahead", &server.url(), HOUR)?;
    let behind = off_by(&world, "behind", &server.url(), -HOUR)?;
    let client = Client::connect(server.url()).await?;
    all_is_right(&client, &client).await?;
    for mut worker in [ahead, behind] {
        worker.signal(rustix::process::Signal::TERM)?;
        expect_eq("leases lost", &worker.line("leases lost ")?, &"0".to_owned())?;
    }
    Ok(())
}

pub async fn servers(world: World) -> Result<(), Failed> {
    let ahead = World::server_by(world.url(), Clock::Off(HOUR))?;
    let behind = World::server_by(world.url(), Clock::Off(-HOUR))?;
    let _one = off_by(&world, "one", &ahead.url(), -HOUR)?;
    let _two = off_by(&world, "two", &behind.url(), HOUR)?;
    let (one, two) = (Client::connect(ahead.url()).await?, Client::connect(behind.url()).await?);
    all_is_right(&one, &two).await?;
    // What is recorded is the time of the database, which is right.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    for run in one.list(&kagzi_sdk::RunFilter::default(), 1_000, None).await?.items {
        let off = i64::try_from(now.as_secs())? - run.created_at.as_micros() / 1_000_000;
        if off.abs() > HOUR / 2 {
            return Err(format!("{} was started {off} s ago, by the record", run.run_id).into());
        }
    }
    Ok(())
}

/// A worker whose clock is off, which it says itself.
fn off_by(world: &World, name: &str, server: &str, seconds: i64) -> Result<Process, Failed> {
    let worker = start_watched(name, server, busy(LEASE_MS), &world.effects(), Clock::Off(seconds))?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let seen = worker.clock.ok_or("a worker that does not tell the time")?;
    if (seen - now - seconds).abs() > HOUR / 2 {
        return Err(format!("the clock of {name} is off by {} s, not {seconds}", seen - now).into());
    }
    Ok(worker)
}

/// Runs with steps and sleeps, started here and there, are done as if clocks were right.
async fn all_is_right(here: &Client, there: &Client) -> Result<(), Failed> {
    let steps = [start_five_steps(here, 50).await?, start_five_steps(there, 50).await?].concat();
    let mut naps = Vec::new();
    for client in [here, there] {
        for _ in 0..5 {
            naps.push(client.start(Start::workflow(NAPPING).queue("default").input(&NAP_MS)?).await?);
        }
    }
    await_results(&steps[..50], 0).await?;
    await_results(&steps[50..], 0).await?;
    for nap in &naps {
        nap.result::<()>().await?;
        slept_its_time(&nap.attempts().await?)?;
    }
    let ids: Vec<_> = steps.iter().chain(&naps).map(RunHandle::run_id).collect();
    let all = audit(here, &ids).await?;
    expect_eq("abandoned attempts", &all.abandoned, &0)?;
    expect_eq("steps completed twice", &all.completed_twice, &0)?;
    expect_eq("completed steps", &all.completed, &(100 * 5 + 10 * 3))
}

/// By the store's clock the step after the sleep began no earlier than the sleep ended.
fn slept_its_time(attempts: &[Attempt]) -> Result<(), Failed> {
    let sleep = attempts.iter().find(|attempt| attempt.kind == StepKind::Sleep).ok_or("no sleep")?;
    let after = attempts.iter().find(|attempt| attempt.step_id.as_str() == "after").ok_or("no step after")?;
    let slept = after.created_at.as_micros() - sleep.created_at.as_micros();
    let nap = i64::try_from(Duration::from_millis(NAP_MS).as_micros())?;
    if slept < nap { Err(format!("slept {slept} µs of {nap}").into()) } else { Ok(()) }
}
