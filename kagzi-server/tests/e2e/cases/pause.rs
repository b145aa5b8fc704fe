//! A worker that freezes past its lease, and wakes up to a run that is no longer its own.

use std::time::Duration;

use kagzi_core::{
    BeginStep, CompleteRun, CompleteStep, FailRun, FailStep, Failure, Heartbeat, Lease, Namespace, NextStep,
    OperationId, Payload, ReleaseRun, Sleep, SleepUntil, StepId, StoreError, Then,
};
use kagzi_sdk::transport::{Grpc, GrpcOptions, Transport};
use kagzi_sdk::{Attempt, Client, RunId, Start};
use rustix::process::Signal;

use super::{audit, expect_eq};
use crate::worker::HELD;
use crate::world::{Failed, WorkerSettings, World, busy, start_worker};

pub async fn worker(world: World) -> Result<(), Failed> {
    let server = world.server(0)?;
    let client = Client::connect(server.url()).await?;
    let mut frozen =
        start_worker("frozen", &server.url(), WorkerSettings { lease_ms: 1_000, holds: true, runs: 1 })?;
    let run = client.start(Start::workflow(HELD).queue("default").input(&())?).await?;
    frozen.line("holding")?;
    let lease = lease_of(&client, run.run_id()).await?;
    frozen.signal(Signal::STOP)?;

    let _other = start_worker("other", &server.url(), busy(60_000))?;
    expect_eq("who executed the held step", &run.result::<String>().await?, &"other".to_owned())?;
    let before = rows(&client, run.run_id()).await?;

    frozen.signal(Signal::CONT)?;
    frozen.say("go on")?;
    refused_whatever_it_writes(&Grpc::connect(&server.url(), &GrpcOptions::default()).await?, &lease).await?;
    // It has heard by now or hears at its next heartbeat; told to go, it says what it lost.
    frozen.signal(Signal::TERM)?;
    expect_eq("leases that the frozen worker lost", &frozen.line("leases lost ")?, &"1".to_owned())?;

    expect_eq("the rows of the run", &rows(&client, run.run_id()).await?, &before)?;
    let audit = audit(&client, &[run.run_id()]).await?;
    expect_eq("abandoned attempts", &audit.abandoned, &1)?;
    expect_eq("steps completed twice", &audit.completed_twice, &0)
}

/// The lease under which the running attempt of the run was begun.
async fn lease_of(client: &Client, run_id: RunId) -> Result<Lease, Failed> {
    let attempts = client.attempts(run_id).await?;
    let held = attempts.iter().find(|a| a.step_id.as_str() == "hold").ok_or("the step was not begun")?;
    Ok(Lease {
        namespace: Namespace::new("default")?,
        run_id,
        worker_id: held.worker_id.clone(),
        fencing_token: held.fencing_token,
    })
}

/// Everything that is kept of the run.
async fn rows(client: &Client, run_id: RunId) -> Result<(kagzi_sdk::RunRecord, Vec<Attempt>), Failed> {
    Ok((client.get(run_id).await?, client.attempts(run_id).await?))
}

/// Sends every write that a worker can send, under the lost lease.
async fn refused_whatever_it_writes(server: &Grpc, lease: &Lease) -> Result<(), Failed> {
    let step = |name: &str| StepId::new(name);
    let operation = OperationId::generate;
    let failure = || Failure::retryable("late", "too late");
    let begin =
        BeginStep { lease: lease.clone(), step: NextStep::new(step("hold")?, 1), operation: operation() };
    lost("begin", server.begin_step(begin).await)?;
    let complete = CompleteStep {
        lease: lease.clone(),
        step_id: step("hold")?,
        attempt: 1,
        output: Payload::json("\"late\""),
        then: Then::CompleteRun(Payload::json("\"late\"")),
        operation: operation(),
    };
    lost("complete step", server.complete_step(complete).await)?;
    let fail = FailStep {
        lease: lease.clone(),
        step_id: step("hold")?,
        attempt: 1,
        failure: failure(),
        operation: operation(),
    };
    lost("fail step", server.fail_step(fail).await)?;
    let sleep = Sleep {
        lease: lease.clone(),
        step_id: step("sleep")?,
        position: 2,
        until: SleepUntil::After(Duration::from_hours(1)),
        operation: operation(),
    };
    lost("sleep", server.sleep(sleep).await)?;
    let output = Payload::json("\"late\"");
    let complete = CompleteRun { lease: lease.clone(), output, operation: operation() };
    lost("complete run", server.complete_run(complete).await)?;
    let fail = FailRun { lease: lease.clone(), failure: failure(), operation: operation() };
    lost("fail run", server.fail_run(fail).await)?;
    lost("release", server.release(ReleaseRun { lease: lease.clone(), operation: operation() }).await)?;
    let beat = Heartbeat { lease: lease.clone(), lease_length: Duration::from_secs(30) };
    for verdict in server.heartbeat(vec![beat]).await? {
        lost("heartbeat", verdict)?;
    }
    Ok(())
}

fn lost<T: std::fmt::Debug>(what: &str, answer: Result<T, StoreError>) -> Result<(), Failed> {
    match answer {
        Err(StoreError::LeaseLost { .. }) => Ok(()),
        other => Err(format!("{what} under a lost lease: expected LeaseLost, got {other:?}").into()),
    }
}
