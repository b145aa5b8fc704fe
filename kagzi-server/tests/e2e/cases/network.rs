//! Bad links under load. Whatever the network does, each step is to be executed exactly once where no lease is
//! lost.

use std::collections::BTreeMap;
use std::time::Duration;

use kagzi_sdk::{Client, RunHandle};
use kagzi_testkit::{Direction, Proxy};
use rustix::process::Signal;

use super::load::{CALLERS, Load, done, goes_on, of_the_load};
use super::{audit, expect_eq};
use crate::clock::Clock;
use crate::process::Process;
use crate::world::{Failed, Server, World, busy, start_watched};

/// Longer than any of these days: no lease expires on them.
const LEASE_MS: u64 = 600_000;

/// A server that hands runs to a link which is dead already cannot know, until the link is given up: for these
/// runs the end of the lease is the remedy. Long enough for a worker to come back by another connection.
const SHORT_LEASE_MS: u64 = 5_000;

/// How often answers are lost on the way to workers.
const LOST_TO_WORKERS: u64 = 20;

/// How often answers of the database are lost. The server takes a while to come back from each.
const LOST_TO_SERVERS: u64 = 6;

/// A slow link: as long as from one continent to another, and as broad as a poor line.
const LATENCY: Duration = Duration::from_millis(15);
const BYTES_PER_SECOND: u32 = 200_000;

/// Far longer than a server takes to end. One that waited for its database would take a minute more.
const LONG: Duration = Duration::from_secs(30);

pub async fn answers_to_workers_lost(world: World) -> Result<(), Failed> {
    let day = Day::with_a_link_to_workers(world, LEASE_MS).await?;
    for number in 0..LOST_TO_WORKERS {
        day.lose_answers(number * 97).await?;
    }
    day.ends_well().await
}

pub async fn links_to_workers_half_open(world: World) -> Result<(), Failed> {
    let mut day = Day::with_a_link_to_workers(world, SHORT_LEASE_MS).await?;
    for _ in 0..2 {
        day.link.half_open();
        day.goes_on().await?;
    }
    // A lease that ran out beside a step that was begun costs an execution, never a result.
    day.ends().await.map(drop)
}

pub async fn link_to_workers_slow(world: World) -> Result<(), Failed> {
    let day = Day::with_a_link_to_workers(world, LEASE_MS).await?;
    day.link.slow(LATENCY, BYTES_PER_SECOND);
    day.goes_on().await?;
    day.ends_well().await
}

pub async fn answers_of_the_database_lost(world: World) -> Result<(), Failed> {
    let day = Day::with_a_link_to_the_database(world).await?;
    for number in 0..LOST_TO_SERVERS {
        day.lose_answers(number * 97).await?;
    }
    day.ends_well().await
}

pub async fn database_silent(world: World) -> Result<(), Failed> {
    let day = Day::with_a_link_to_the_database(world).await?;
    for _ in 0..2 {
        day.link.black_hole();
        // The breaker opens, since nothing is answered.
        while day.server.get("/readyz").await?.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
        day.link.open();
        day.goes_on().await?;
    }
    day.ends_well().await
}

pub async fn database_silent_at_the_end(world: World) -> Result<(), Failed> {
    let (link, store_url) = world.behind_proxy().await?;
    let server = World::server_by_with(&store_url, |command| {
        command.args(["--drain-timeout", "100ms"]);
    })?;
    let client = Client::connect(server.url()).await?;
    let load = Load::begin(&client);
    // What is under way is never answered, and the connection that listens hears nothing of its end.
    link.black_hole();
    while server.get("/readyz").await?.starts_with("HTTP/1.1 200") {
        tokio::task::yield_now().await;
    }
    server.process.signal(Signal::TERM)?;
    // It tells that it ends, as long as it is there.
    while server.get("/readyz").await.is_ok_and(|said| !said.contains("draining")) {
        tokio::task::yield_now().await;
    }
    if server.get("/livez").await.is_ok_and(|said| !said.starts_with("HTTP/1.1 200")) {
        return Err("a server that drains is alive".into());
    }
    let ended = server.process.ends_within(LONG).await;
    drop(load);
    ended
}

pub async fn link_to_database_slow(world: World) -> Result<(), Failed> {
    let day = Day::with_a_link_to_the_database(world).await?;
    day.link.slow(LATENCY, BYTES_PER_SECOND);
    day.goes_on().await?;
    day.ends_well().await
}

/// A server and workers under load, with one link that can be spoilt.
struct Day {
    world: World,
    server: Server,
    client: Client,
    link: Proxy,
    load: Load,
    _workers: [Process; 2],
}

impl Day {
    async fn with_a_link_to_workers(world: World, lease_ms: u64) -> Result<Self, Failed> {
        let server = world.server(0)?;
        let link = Proxy::to(([127, 0, 0, 1], server.port).into()).await?;
        let url = link.url();
        Self::begin(world, server, link, &url, lease_ms).await
    }

    async fn with_a_link_to_the_database(world: World) -> Result<Self, Failed> {
        let (link, store_url) = world.behind_proxy().await?;
        let server = World::server_by(&store_url, Clock::Right)?;
        let url = server.url();
        Self::begin(world, server, link, &url, LEASE_MS).await
    }

    async fn begin(
        world: World,
        server: Server,
        link: Proxy,
        workers_url: &str,
        lease_ms: u64,
    ) -> Result<Self, Failed> {
        let client = Client::connect(server.url()).await?.with_patience(Duration::from_mins(5));
        let start = |name| start_watched(name, workers_url, busy(lease_ms), &world.effects(), Clock::Right);
        let workers = [start("one")?, start("two")?];
        let load = Load::begin(&client);
        let day = Self { world, server, client, link, load, _workers: workers };
        day.goes_on().await?;
        Ok(day)
    }

    async fn goes_on(&self) -> Result<(), Failed> {
        goes_on(&self.client, 2 * CALLERS).await
    }

    /// Cuts the connections so many bytes into the next answers. What they answer has happened.
    async fn lose_answers(&self, bytes: u64) -> Result<(), Failed> {
        let before = self.link.connections();
        self.link.cut_after(Direction::Down, bytes);
        self.link.accepted(before + 1).await;
        self.link.open();
        goes_on(&self.client, CALLERS).await
    }

    /// All that was acknowledged is there and complete, each step once, and nothing else is. Tells how many
    /// steps that makes, and how many attempts were abandoned.
    async fn ends(&mut self) -> Result<(usize, usize), Failed> {
        self.link.open();
        let runs = self.load.end().await?;
        let ids: Vec<_> = runs.iter().map(RunHandle::run_id).collect();
        let all = audit(&self.client, &ids).await?;
        expect_eq("steps completed twice", &all.completed_twice, &0)?;
        expect_eq("completed steps", &all.completed, &(5 * runs.len()))?;
        let every = self.client.count(&of_the_load()?).await?;
        expect_eq("completed runs", &done(&self.client).await?, &(ids.len() as u64))?;
        expect_eq("runs in all", &every, &(ids.len() as u64))?;
        Ok((5 * runs.len(), all.abandoned))
    }

    /// As [`ends`](Self::ends), and each step was executed exactly once.
    async fn ends_well(mut self) -> Result<(), Failed> {
        let (steps, abandoned) = self.ends().await?;
        expect_eq("abandoned attempts", &abandoned, &0)?;
        let mut executions: BTreeMap<&str, usize> = BTreeMap::new();
        let effects = std::fs::read_to_string(self.world.effects())?;
        for effect in effects.lines() {
            *executions.entry(effect).or_default() += 1;
        }
        expect_eq("steps that were executed", &executions.len(), &steps)?;
        let more: Vec<_> = executions.iter().filter(|(_, times)| **times != 1).collect();
        expect_eq("steps that were executed more than once", &more, &Vec::new())
    }
}
