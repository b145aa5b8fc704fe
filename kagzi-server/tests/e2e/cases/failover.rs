//! The primary dies under load, and its standby is promoted.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kagzi_core::StoreError;
use kagzi_sdk::{Client, ClientError, RunId, Start};
use kagzi_testkit::{ClusterOptions, PostgresCluster};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_check_response::ServingStatus;

use super::away::Day;
use super::expect_eq;
use crate::worker::FIVE;
use crate::world::{Failed, World};

/// The name under which the standby follows.
const SECOND: &str = "second";

/// How many callers start runs without waiting for them.
const STARTERS: usize = 4;

/// So many starts are acknowledged before something happens.
const SOME: usize = 100;

pub async fn followed(_world: World) -> Result<(), Failed> {
    let mut pair = Pair::start().await?;
    pair.primary.wait_for_standby(SECOND).await?;
    let world = World::over(pair.url())?;
    let mut day = Day::begin(&world).await?;
    let mut starters = Starters::begin(&day.client);
    starters.until_more(SOME).await?;
    block_in_place(|| pair.primary.kill())?;
    let killed = Instant::now();
    day.while_it_is_away().await?;
    let noticed = killed.elapsed();
    pair.standby.promote().await?;
    let promoted = Instant::now();
    day.until(ServingStatus::Serving).await?;
    starters.until_more(1).await?;
    let took = promoted.elapsed();
    writeln!(
        std::io::stderr(),
        "failover: refused calls {noticed:?} after the kill, took them {took:?} after the promotion"
    )?;
    // First of all: callers whose runs are lost would be waited for in vain.
    expect_eq("acknowledged runs that are lost", &starters.lost(&day.client).await?, &Vec::new())?;
    day.finish_the_held_step()?;
    day.goes_on().await?;
    stays_away_from_the_old_primary(&mut pair, &day).await?;
    day.ends_well().await
}

/// The old primary is started again as what it was, takes writes, and is first in the URL.
async fn stays_away_from_the_old_primary(pair: &mut Pair, day: &Day) -> Result<(), Failed> {
    pair.primary.restart().await?;
    pair.primary.set("synchronous_standby_names", "").await?;
    let before = runs(&pair.primary).await?;
    // Whoever loses a connection asks all servers again.
    let mut new = PgConnection::connect(&pair.standby.url()).await?;
    new.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
    .await?;
    day.goes_on().await?;
    expect_eq("runs in the old primary", &runs(&pair.primary).await?, &before)?;
    // Nor if it is the only one.
    pair.standby.set("default_transaction_read_only", "on").await?;
    day.until(ServingStatus::NotServing).await?;
    pair.standby.set("default_transaction_read_only", "off").await?;
    day.until(ServingStatus::Serving).await?;
    day.goes_on().await?;
    expect_eq("runs in the old primary", &runs(&pair.primary).await?, &before)
}

pub async fn asynchronous(_world: World) -> Result<(), Failed> {
    let mut pair = Pair::start().await?;
    let world = World::over(pair.url())?;
    let server = world.server(0)?;
    let client = Client::connect(server.url()).await?.with_patience(Duration::from_mins(5));
    pair.standby.catch_up_with(&pair.primary).await?;
    pair.standby.stop_following().await?;
    let mut starters = Starters::begin(&client);
    starters.until_more(SOME).await?;
    block_in_place(|| pair.primary.kill())?;
    pair.standby.promote().await?;
    // What is acknowledged from here on is on the new primary.
    starters.until_more(SOME).await?;
    let acknowledged = starters.acknowledged();
    let lost = starters.lost(&client).await?.len();
    if lost < SOME || lost > acknowledged {
        return Err(format!("{lost} of {acknowledged} acknowledged runs are lost").into());
    }
    Ok(())
}

/// The standby is cut off its primary, which dies then: what was acknowledged in between would be lost.
pub async fn cut_off(_world: World) -> Result<(), Failed> {
    let mut pair = Pair::start().await?;
    pair.primary.wait_for_standby(SECOND).await?;
    let world = World::over(pair.url())?;
    let server = world.server(0)?;
    let client = Client::connect(server.url()).await?.with_patience(Duration::from_mins(5));
    let mut starters = Starters::begin(&client);
    starters.until_more(SOME).await?;
    pair.standby.stop_following().await?;
    tokio::select! {
        waits = commits_wait(&pair.primary) => waits?,
        // So it would go on if they did not wait.
        acknowledged = starters.until_more(SOME) => acknowledged?,
    }
    block_in_place(|| pair.primary.kill())?;
    pair.standby.promote().await?;
    starters.until_more(SOME).await?;
    expect_eq("acknowledged runs that are lost", &starters.lost(&client).await?, &Vec::new())
}

/// Waits until commits wait for a standby.
async fn commits_wait(primary: &PostgresCluster) -> Result<(), Failed> {
    let mut connection = PgConnection::connect(&primary.url()).await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while connection.fetch_one(waiting).await?.try_get::<i64, _>(0)? == 0 {}
    Ok(())
}

/// The only synchronous standby stops: reads are answered, writes wait.
pub async fn standby_away(_world: World) -> Result<(), Failed> {
    let mut pair = Pair::start().await?;
    pair.primary.wait_for_standby(SECOND).await?;
    let world = World::over(pair.primary.url())?;
    let mut day = Day::begin(&world).await?;
    block_in_place(|| pair.standby.stop())?;
    day.while_it_is_away().await?;
    // Nobody is told that it is well, though it is read from all the time.
    let unready = day.until(ServingStatus::Serving);
    let reads = async {
        for _ in 0..200 {
            runs(&pair.primary).await?;
        }
        Ok::<_, Failed>(())
    };
    tokio::select! {
        ended = unready => return Err(format!("well without a standby: {ended:?}").into()),
        read = reads => read?,
    }
    day.finish_the_held_step()?;
    pair.standby.restart().await?;
    day.ends_well().await
}

/// A primary, and a standby that follows it.
struct Pair {
    primary: PostgresCluster,
    standby: PostgresCluster,
}

impl Pair {
    async fn start() -> Result<Self, Failed> {
        let primary = PostgresCluster::start(ClusterOptions::default()).await?;
        let standby = primary.standby(SECOND, ClusterOptions::default()).await?;
        Ok(Self { primary, standby })
    }

    fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
            self.primary.port(),
            self.standby.port()
        )
    }
}

async fn runs(server: &PostgresCluster) -> Result<i64, Failed> {
    let mut connection = PgConnection::connect(&server.url()).await?;
    Ok(connection.fetch_one("SELECT count(*) FROM runs").await?.try_get(0)?)
}

/// Callers who start runs one after the other, and remember what was acknowledged. Nobody executes them.
struct Starters {
    enough: CancellationToken,
    acknowledged: Arc<Mutex<Vec<RunId>>>,
    callers: JoinSet<Result<(), Failed>>,
}

impl Starters {
    fn begin(client: &Client) -> Self {
        let (enough, acknowledged, mut callers) = (CancellationToken::new(), Arc::default(), JoinSet::new());
        for _ in 0..STARTERS {
            callers.spawn(start(client.clone(), Arc::clone(&acknowledged), enough.clone()));
        }
        Self { enough, acknowledged, callers }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until so many more starts were acknowledged.
    async fn until_more(&mut self, count: usize) -> Result<(), Failed> {
        let enough = self.acknowledged() + count;
        while self.acknowledged() < enough {
            match self.callers.try_join_next() {
                Some(ended) => ended??,
                None => tokio::task::yield_now().await,
            }
        }
        Ok(())
    }

    /// Ends it, and looks for every run that was acknowledged.
    async fn lost(mut self, client: &Client) -> Result<Vec<RunId>, Failed> {
        self.enough.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended??;
        }
        let acknowledged =
            std::mem::take(&mut *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lost = Vec::new();
        for run_id in acknowledged {
            match client.get(run_id).await {
                Ok(_) => {}
                Err(ClientError::Call(StoreError::RunNotFound { .. })) => lost.push(run_id),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(lost)
    }
}

async fn start(
    client: Client,
    acknowledged: Arc<Mutex<Vec<RunId>>>,
    enough: CancellationToken,
) -> Result<(), Failed> {
    while !enough.is_cancelled() {
        let run = client.start(Start::workflow(FIVE).queue("left to itself").input(&7)?).await?;
        acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(run.run_id());
    }
    Ok(())
}
