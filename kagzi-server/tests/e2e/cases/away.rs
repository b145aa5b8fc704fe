//! The database goes away under load, and comes back.

use std::process::Command;
use std::time::{Duration, Instant};

use kagzi_proto::v1;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_sdk::{Client, RunHandle};
use kagzi_testkit::{ClusterOptions, PostgresCluster};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::crash::{holding_worker, start_held};
use super::load::{CALLERS, Load, done, goes_on, of_the_load};
use super::{audit, expect_eq};
use crate::disk::SmallDisk;
use crate::process::Process;
use crate::worker::FIVE;
use crate::world::{Failed, Server, World, busy, start_worker};

/// Longer than any of these days: no lease expires on them.
const LEASE_MS: u64 = 600_000;

/// What a call is given once the server knows.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the first call is given, whose server does not know yet: as long again as the slowest of these days takes, on
/// a machine that does nothing else. Without the breaker it would wait for a connection, or for a lock, for five seconds.
const FIRST: Duration = Duration::from_millis(2500);

/// Far above what any of these days takes: only what never happens is waited for so long.
const NEVER: Duration = Duration::from_mins(3);

pub async fn killed(_world: World) -> Result<(), Failed> {
    let mut cluster = PostgresCluster::start(ClusterOptions::default()).await?;
    let world = World::over(cluster.url())?;
    let mut day = Day::begin(&world).await?;
    tokio::task::block_in_place(|| cluster.kill())?;
    day.while_it_is_away().await?;
    day.finish_the_held_step()?;
    cluster.restart().await?;
    day.ends_well().await
}

pub async fn stopped(_world: World) -> Result<(), Failed> {
    let mut cluster = PostgresCluster::start(ClusterOptions::default()).await?;
    let world = World::over(cluster.url())?;
    let mut day = Day::begin(&world).await?;
    for _ in 0..2 {
        tokio::task::block_in_place(|| cluster.stop())?;
        day.while_it_is_away().await?;
        cluster.restart().await?;
        day.until(ServingStatus::Serving).await?;
        day.goes_on().await?;
    }
    day.finish_the_held_step()?;
    day.ends_well().await
}

pub async fn not_there_yet(_world: World) -> Result<(), Failed> {
    let mut cluster = PostgresCluster::start(ClusterOptions::default()).await?;
    let world = World::over(cluster.url())?;
    tokio::task::block_in_place(|| cluster.stop())?;
    let server = world.server_with(0, |command| {
        command.args(["--start-timeout", "1h"]);
    })?;
    let channel = Channel::from_shared(server.url())?.connect().await?;
    until_refused(&channel, FIRST).await?;
    until(&channel, ServingStatus::NotServing).await?;
    let (alive, ready) = (server.get("/livez").await?, server.get("/readyz").await?);
    if !alive.starts_with("HTTP/1.1 200") || !ready.starts_with("HTTP/1.1 503") || !ready.contains("store: ")
    {
        return Err(format!("it is alive and not ready, and says: {alive} {ready}").into());
    }
    cluster.restart().await?;
    until(&channel, ServingStatus::Serving).await?;
    let client = Client::connect(&server.url()).await?.with_patience(Duration::from_mins(5));
    let _busy = start_worker("busy", &server.url(), busy(LEASE_MS))?;
    let mut load = Load::begin(&client);
    goes_on(&client, CALLERS).await?;
    load.end().await?;
    server.process.terminate()
}

pub async fn locked(world: World) -> Result<(), Failed> {
    let mut day = Day::begin(&world).await?;
    let other = rusqlite::Connection::open(world.file().ok_or("a store without a file")?)?;
    other.execute_batch("PRAGMA busy_timeout = 60000; BEGIN IMMEDIATE")?;
    day.while_it_is_away().await?;
    day.finish_the_held_step()?;
    other.execute_batch("ROLLBACK")?;
    day.ends_well().await
}

pub async fn full(_world: World) -> Result<(), Failed> {
    let disk = SmallDisk::mount("32m")?;
    let world = World::over(format!("sqlite://{}", disk.path().join("kagzi.db").display()))?;
    let mut day = Day::begin(&world).await?;
    disk.fill()?;
    day.while_it_is_away().await?;
    day.finish_the_held_step()?;
    disk.make_room()?;
    day.ends_well().await
}

/// The disk of the tables is full, that of the log is not: the server goes on, and writes that find their place in pages that are
/// there succeed.
pub async fn full_postgres(_world: World) -> Result<(), Failed> {
    let disk = SmallDisk::mount("64m")?;
    // Vacuum would give back some room now and then.
    let settings = vec!["autovacuum=off".to_owned()];
    let cluster = PostgresCluster::start(ClusterOptions { settings, ..ClusterOptions::default() }).await?;
    let place = disk.path().join("tables");
    // The server's user has to own it.
    cluster.run(&format!("COPY (SELECT 1) TO PROGRAM 'mkdir {}'", place.display())).await?;
    cluster.run(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display())).await?;
    cluster.run("CREATE DATABASE kagzi TABLESPACE small").await?;
    let url = cluster.url();
    let world = World::over(format!("{}/kagzi", url.strip_suffix("/postgres").unwrap_or(&url)))?;
    let mut day = Day::begin(&world).await?;
    disk.fill()?;
    day.while_it_is_away().await?;
    day.stays_away().await?;
    let doctor = Command::new(env!("CARGO_BIN_EXE_kagzi"))
        .args(["doctor", "--json"])
        .env("KAGZI_STORE", world.url())
        .output()?;
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    if !found.contains("No space left on device") || doctor.status.success() {
        return Err(format!("the doctor does not tell of the disk: {found}").into());
    }
    day.finish_the_held_step()?;
    disk.make_room()?;
    day.ends_well().await
}

pub async fn read_only(_world: World) -> Result<(), Failed> {
    let cluster = PostgresCluster::start(ClusterOptions::default()).await?;
    let world = World::over(cluster.url())?;
    let mut day = Day::begin(&world).await?;
    cluster.set("default_transaction_read_only", "on").await?;
    day.while_it_is_away().await?;
    day.finish_the_held_step()?;
    cluster.set("default_transaction_read_only", "off").await?;
    day.ends_well().await
}

/// A server and workers under load.
pub(super) struct Day {
    server: Server,
    pub(super) client: Client,
    channel: Channel,
    load: Load,
    holding: Process,
    held: RunHandle,
    _busy: Process,
}

impl Day {
    /// Everything runs, and one worker holds a step.
    pub(super) async fn begin(world: &World) -> Result<Self, Failed> {
        let server = world.server(0)?;
        let client = Client::connect(server.url()).await?.with_patience(Duration::from_mins(5));
        let channel = Channel::from_shared(server.url())?.connect().await?;
        let mut holding = holding_worker("holding", &server.url(), LEASE_MS)?;
        let held = start_held(&client).await?;
        holding.line("holding")?;
        let busy = start_worker("busy", &server.url(), busy(LEASE_MS))?;
        let load = Load::begin(&client);
        let day = Self { server, client, channel, load, holding, held, _busy: busy };
        day.goes_on().await?;
        Ok(day)
    }

    /// Waits until more runs are done.
    pub(super) async fn goes_on(&self) -> Result<(), Failed> {
        goes_on(&self.client, 2 * CALLERS).await
    }

    /// Calls are refused with a delay, the first one in time and then at once; health, the breaker and
    /// `/readyz` say so.
    pub(super) async fn while_it_is_away(&mut self) -> Result<(), Failed> {
        self.until_refused(FIRST).await?;
        self.until(ServingStatus::NotServing).await?;
        // On a disk that is full a small write may still succeed, and large ones are tried again then.
        loop {
            self.until_refused(AT_ONCE).await?;
            let ready = self.server.get("/readyz").await?;
            if ready.starts_with("HTTP/1.1 503") && ready.contains("store: ") {
                break;
            }
        }
        let metrics = self.server.get("/metrics").await?;
        if !metrics.contains("kagzi_breaker_opened_total") || metrics.contains("kagzi_breaker_opened_total 0")
        {
            return Err(format!("the breaker did not open: {metrics}").into());
        }
        if !self.server.get("/livez").await?.starts_with("HTTP/1.1 200") {
            return Err("a server without its database is alive all the same".into());
        }
        Ok(())
    }

    /// It was found away once, and every look since has found it so.
    async fn stays_away(&self) -> Result<(), Failed> {
        let until = Instant::now() + NEVER;
        let failed_looks =
            r#"kagzi_store_operation_duration_seconds_count{operation="probe",outcome="unavailable"} "#;
        loop {
            let metrics = self.server.get("/metrics").await?;
            let figure = |name: &str| -> Option<u64> {
                metrics.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
            };
            expect_eq("times the breaker opened", &figure("kagzi_breaker_opened_total "), &Some(1))?;
            if figure(failed_looks).is_some_and(|looks| looks >= 5) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("no look failed five times: {metrics}").into());
            }
            self.until_refused(AT_ONCE).await?;
        }
    }

    /// The held step finishes, whoever is there to record it.
    pub(super) fn finish_the_held_step(&mut self) -> Result<(), Failed> {
        self.holding.say("go on")
    }

    /// Without anybody's doing all is done: what was acknowledged is there, complete, and nothing twice.
    pub(super) async fn ends_well(mut self) -> Result<(), Failed> {
        self.until(ServingStatus::Serving).await?;
        self.goes_on().await?;
        if !self.server.get("/readyz").await?.starts_with("HTTP/1.1 200") {
            return Err("/readyz did not follow".into());
        }
        let runs = self.load.end().await?;
        let by = self.held.result::<String>().await?;
        expect_eq("who executed the held step", &by, &"holding".to_owned())?;
        let mut ids: Vec<_> = runs.iter().map(RunHandle::run_id).collect();
        ids.push(self.held.run_id());
        let all = audit(&self.client, &ids).await?;
        expect_eq("steps completed twice", &all.completed_twice, &0)?;
        expect_eq("completed steps", &all.completed, &(5 * runs.len() + 3))?;
        // A start that was not acknowledged was repeated under its id until it was: none is left over.
        let every = self.client.count(&of_the_load()?).await?;
        expect_eq("completed runs", &done(&self.client).await?, &(ids.len() as u64))?;
        expect_eq("runs in all", &every, &(ids.len() as u64))
    }

    async fn until_refused(&self, deadline: Duration) -> Result<(), Failed> {
        until_refused(&self.channel, deadline).await
    }

    /// Waits until the server's health is as expected.
    pub(super) async fn until(&self, status: ServingStatus) -> Result<(), Failed> {
        until(&self.channel, status).await
    }
}

/// Starts runs that nobody waits for, until the server refuses one for now.
async fn until_refused(channel: &Channel, deadline: Duration) -> Result<(), Failed> {
    let mut client = WorkflowServiceClient::new(channel.clone());
    loop {
        let start = v1::StartWorkflowRequest {
            namespace: "default".to_owned(),
            queue: "left alone".to_owned(),
            workflow_type: FIVE.to_owned(),
            input: Some(v1::Payload { content_type: String::new(), data: vec![7; 10_000].into() }),
            ..v1::StartWorkflowRequest::default()
        };
        let mut request = tonic::Request::new(start);
        request.set_timeout(deadline);
        if let Err(status) = client.start_workflow(request).await {
            return is_for_now(&status);
        }
    }
}

/// Waits until a server's health is as expected.
async fn until(channel: &Channel, status: ServingStatus) -> Result<(), Failed> {
    let mut health = HealthClient::new(channel.clone());
    let mut updates = health.watch(HealthCheckRequest::default()).await?.into_inner();
    let watching = async {
        while let Some(update) = updates.message().await? {
            if update.status() == status {
                return Ok(());
            }
        }
        Err(format!("the server ended without being {status:?}").into())
    };
    tokio::time::timeout(NEVER, watching)
        .await
        .unwrap_or_else(|_| Err(format!("the server never was {status:?}").into()))
}

fn is_for_now(status: &Status) -> Result<(), Failed> {
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    if status.code() == Code::Unavailable && delay.is_some_and(|delay| !delay.is_zero()) {
        return Ok(());
    }
    Err(format!("expected UNAVAILABLE with a delay, got {status:?}").into())
}
