//! Plain workflows over a Citus cluster, one data node of which is killed on the way.
//!
//! It stays away until every run of the other partitions has ended, those too that are started meanwhile; starts of its own
//! partitions wait for it. When all runs have ended everything is killed, the nodes and their coordinator among it, and
//! the judge goes over all that was heard, done and recorded, as it does in any other torture.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    AttemptState, Clock as _, IdempotencyKey, Namespace, OperationId, RunId, RunState, SystemClock, Timestamp,
};
use kagzi_sdk::{Client, RunFilter};
use kagzi_server::{ServerConfig, migrate_store};
use kagzi_testkit::{CitusCluster, why_no_citus};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Failed;
use crate::check::{self, Found, Look, Rule};
use crate::event::{Answer, Call, Moment, now};
use crate::faults::Counts;
use crate::log::{History, Log};
use crate::look;
use crate::plan::{self, PLAIN, PLAIN_STEPS};
use crate::report::Report;
use crate::roles::{NAMESPACES, client};
use crate::world::{SERVERS, Store, WORKERS, World};

const PARTITIONS: u16 = 32;
const DATA_NODES: usize = 2;

/// The data node that is killed.
const KILLED: usize = 0;

/// How many starts of partitions that are there are in flight at most.
const AT_ONCE: usize = 64;

/// How long a start is repeated, and how long everything may take to come to its end.
const PATIENCE: Duration = Duration::from_mins(20);

/// From when to when the node was away, by both clocks.
struct Absence {
    moments: (Moment, Moment),
    times: (Timestamp, Timestamp),
}

/// Gives how many violations there were.
pub async fn torture(runs: u64) -> Result<usize, Failed> {
    if let Some(why) = why_no_citus() {
        return Err(why.into());
    }
    println!(
        "{runs} plain workflows over Citus: a coordinator, {DATA_NODES} data nodes, {PARTITIONS} partitions"
    );
    let started = Instant::now();
    let mut cluster = CitusCluster::start(DATA_NODES).await?;
    let store = format!("{}?partitions={PARTITIONS}", cluster.url());
    migrate_store(&ServerConfig { store: store.clone(), ..ServerConfig::default() }).await?;
    let homes = cluster.homes("runs", PARTITIONS).await?;
    let mut world = World::start(&Store::Url(store)).await?;
    let log = Arc::new(Log::create(&world.logs().join("clients.log"))?);
    let clients = (0..SERVERS)
        .map(|server| Ok(client(&world.client_url(server), NAMESPACES[0], &log)?.with_patience(PATIENCE)))
        .collect::<Result<Vec<_>, Failed>>()?;

    // Seven in ten are started before, and a fifth has ended when the node goes.
    let before = runs * 7 / 10;
    let mut first = start_all(&clients, 0..before);
    wait_for_ends(&clients[0], runs / 5).await?;
    let absence = without_the_node(&mut cluster, &clients, before..runs, &homes).await?;
    while let Some(ended) = first.join_next().await {
        ended??;
    }
    println!("waiting until every run has ended");
    let left = look::drain(&world.client_url(0), PATIENCE).await?;
    println!("{left} runs live; reading everything, killing everything, reading it again");
    let mut ended = world.ended_by_themselves()?;
    for worker in 0..WORKERS {
        world.kill_worker(worker).await?;
    }
    let first = look::look(&world.client_url(0)).await?;
    kill_and_restart(&mut world, &mut cluster).await?;
    let second = look::look(&world.client_url(1)).await?;
    ended.extend(world.ended_by_themselves()?);

    let mut history = History::default();
    for file in world.log_files()? {
        history.read(&file)?;
    }
    history.sort();
    let mut judgement = check::judge(&history, &first, &second);
    judgement.found.extend(ended.into_iter().map(|who| Found {
        rule: Rule::ProcessLives,
        run: None,
        detail: format!("{who} ended"),
    }));
    is_complete(runs, &first, &mut judgement.found);
    let meanwhile = went_on(&absence, &history, &first, &homes, &mut judgement.found);
    let faults = Counts::from([(("data node", "killed"), 1), (("everything", "killed"), 1)]);
    let (lasted, judgement) = (started.elapsed(), &judgement);
    let report = Report { store: "Citus", seed: 0, lasted, faults: &faults, judgement, look: &first };
    print!("{}", report.violations(&history));
    if !judgement.found.is_empty() {
        println!("\nthe logs are kept in {}", world.keep_logs().display());
    }
    print!("{}{meanwhile}", report.table());
    Ok(judgement.found.len())
}

fn key(number: u64) -> String {
    format!("plain-{number}")
}

/// The partition of a run, which its key decides.
fn partition(number: u64) -> Result<u16, Failed> {
    let namespace = Namespace::new(NAMESPACES[0])?;
    let key = IdempotencyKey::new(key(number))?;
    Ok(RunId::for_start(&namespace, OperationId::generate(), Some(&key)).partition(PARTITIONS))
}

type Starts = JoinSet<Result<(), Failed>>;

/// Starts runs by several clients, each start repeated until it is acknowledged.
fn start_all(clients: &[Client], numbers: impl Iterator<Item = u64>) -> Starts {
    let (mut starts, places) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    for (number, client) in numbers.zip(clients.iter().cycle()) {
        let (client, places) = (client.clone(), Arc::clone(&places));
        starts.spawn(async move {
            let _place = places.acquire_owned().await?;
            client.start(plan::start(PLAIN + number)?.idempotency_key(key(number))).await?;
            Ok(())
        });
    }
    starts
}

async fn wait_for_ends(client: &Client, wanted: u64) -> Result<(), Failed> {
    let ended = RunFilter { states: vec![RunState::Completed], ..RunFilter::default() };
    let limit = Instant::now() + PATIENCE;
    while client.count(&ended).await? < wanted {
        if Instant::now() > limit {
            return Err(format!("{wanted} runs have not ended within {PATIENCE:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Kills the node; starts the other runs, waits until all of those ended that do not live on it, and starts it again.
async fn without_the_node(
    cluster: &mut CitusCluster,
    clients: &[Client],
    numbers: std::ops::Range<u64>,
    homes: &[usize],
) -> Result<Absence, Failed> {
    tokio::task::block_in_place(|| cluster.workers()[KILLED].kill())?;
    let (moment, time) = (now(), SystemClock.now());
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for number in 0..numbers.end {
        let is_there = homes[usize::from(partition(number)?)] == KILLED;
        if is_there && number >= numbers.start {
            there.push(number);
        } else if !is_there {
            here.push(number);
        }
    }
    println!("a data node is killed; {} runs live in partitions of the other one", here.len());
    // Those of the node wait for it, so they must not take the places of the others.
    let mut waiting = start_all(clients, there.into_iter());
    // A start that is sent again names the same run; what it is asked for here is its handle.
    let mut awaited = JoinSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for (number, client) in here.into_iter().zip(clients.iter().cycle()) {
        let (client, places) = (client.clone(), Arc::clone(&places));
        awaited.spawn(async move {
            let _place = places.acquire_owned().await?;
            let run = client.start(plan::start(PLAIN + number)?.idempotency_key(key(number))).await?;
            run.finished().await?;
            Ok::<_, Failed>(())
        });
    }
    let all = async {
        while let Some(ended) = awaited.join_next().await {
            ended??;
        }
        Ok::<_, Failed>(())
    };
    let went_on = tokio::time::timeout(PATIENCE, all).await;
    let absence = Absence { moments: (moment, now()), times: (time, SystemClock.now()) };
    println!("the data node is started again");
    cluster.workers()[KILLED].restart().await?;
    while let Some(started) = waiting.join_next().await {
        started??;
    }
    went_on.map_err(|_| "the runs of the other partitions did not end while the node was away")??;
    Ok(absence)
}

/// What is acknowledged survives the death of everything.
async fn kill_and_restart(world: &mut World, cluster: &mut CitusCluster) -> Result<(), Failed> {
    for server in 0..SERVERS {
        world.kill_server(server).await?;
    }
    tokio::task::block_in_place(|| {
        cluster.coordinator().kill()?;
        cluster.workers().iter_mut().try_for_each(kagzi_testkit::PostgresCluster::kill)
    })?;
    for node in cluster.workers() {
        node.restart().await?;
    }
    cluster.coordinator().restart().await?;
    for server in 0..SERVERS {
        world.start_server(server).await?;
    }
    Ok(())
}

/// Every run is there and completed, each of its steps once.
fn is_complete(runs: u64, look: &Look, found: &mut Vec<Found>) {
    if look.len() as u64 != runs {
        let detail = format!("{} runs are there instead of {runs}", look.len());
        found.push(Found { rule: Rule::PlainRunCompletes, run: None, detail });
    }
    for (run, stored) in look {
        let completed = |attempt: &&kagzi_core::Attempt| attempt.state == AttemptState::Completed;
        let steps = stored.attempts.iter().filter(completed).count();
        let state = stored.record.run.state;
        if state != RunState::Completed || steps != PLAIN_STEPS {
            let detail = format!("it is {state} with {steps} completed steps");
            found.push(Found { rule: Rule::PlainRunCompletes, run: Some(*run), detail });
        }
    }
}

/// What was done while the node was away, in words.
fn went_on(
    absence: &Absence,
    history: &History,
    look: &Look,
    homes: &[usize],
    found: &mut Vec<Found>,
) -> String {
    let is_there = |run: &RunId| homes[usize::from(run.partition(PARTITIONS))] == KILLED;
    let within = |moment: Moment| absence.moments.0 < moment && moment < absence.moments.1;
    let started: Vec<RunId> = history
        .heard
        .iter()
        .filter(|heard| matches!(heard.call, Call::Start { .. }) && within(heard.returned))
        .filter_map(|heard| match heard.answer {
            Answer::Started { run, created: true } => Some(run),
            _ => None,
        })
        .collect();
    let ended = look
        .iter()
        .filter(|(_, stored)| {
            let at = stored.record.run.finished_at;
            at.is_some_and(|at| absence.times.0 < at && at < absence.times.1)
        })
        .map(|(run, _)| run);
    let (ended_there, ended_elsewhere): (Vec<&RunId>, Vec<&RunId>) = ended.partition(|run| is_there(run));
    let (started_there, started_elsewhere): (Vec<&RunId>, Vec<&RunId>) =
        started.iter().partition(|run| is_there(run));
    let (there, here) =
        (ended_there.len() + started_there.len(), (started_elsewhere.len(), ended_elsewhere.len()));
    if there > 0 || here.0 == 0 || here.1 == 0 {
        let detail = format!(
            "{} started and {} ended elsewhere; {there} on the node that was away",
            started_elsewhere.len(),
            ended_elsewhere.len()
        );
        found.push(Found { rule: Rule::OthersGoOn, run: None, detail });
    }
    let retried = look.values().filter(|stored| stored.record.run.claims > 1).count();
    let away = Duration::from_nanos(absence.moments.1 - absence.moments.0);
    let of_node = homes.iter().filter(|home| **home == KILLED).count();
    format!(
        "\na data node with {of_node} of {PARTITIONS} partitions was away for {:.1} s; meanwhile {} runs of the other \
         partitions were started and {} ended\n{retried} runs were claimed more than once\n",
        away.as_secs_f64(),
        started_elsewhere.len(),
        ended_elsewhere.len()
    )
}
