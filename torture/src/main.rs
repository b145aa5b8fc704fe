//! Everything at once: servers, workers and clients under load, while a seeded schedule kills and pauses
//! processes and the database, and cuts, silences and slows the links between them. At the end all is put
//! right, everything must come to its end, and the judge goes over all that was heard, done and recorded.
//!
//! The servers and workers are this program too, in another role.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to the person who runs it")]

mod check;
mod cluster;
mod event;
mod faults;
mod load;
mod log;
mod look;
mod plan;
mod process;
mod recording;
mod report;
mod roles;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::time::Instant;

use check::{Found, Judgement, Rule};
use faults::Faults;
use load::Load;
use log::History;
use report::Report;
use world::{SERVERS, Store, WORKERS, World};

/// Whatever went wrong with the torture itself; the text is shown.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// How often a line of progress is shown.
const PROGRESS: Duration = Duration::from_secs(5);

/// How long everything may take to come to its end once all is well again.
const DRAIN: Duration = Duration::from_mins(3);

#[derive(Debug, Parser)]
#[command(name = "torture", about = "Kills, pauses and partitions a kagzi under load, and judges all of it")]
struct Arguments {
    /// How long faults go on, in minutes
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// sqlite, postgres, or the URL of an empty store
    #[arg(long, default_value = "sqlite")]
    store: Store,
    /// What the schedule of faults follows from; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// How many runs are started a second, about
    #[arg(long, default_value_t = 8.0)]
    rate: f64,
    /// A file for the figures, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What else it can do, and what a child is.
#[derive(Debug, Subcommand)]
enum Role {
    /// Plain workflows of five steps over a Citus cluster of its own, one data node of which is killed on the way and
    /// started again once the runs of all other partitions have ended
    Cluster {
        /// How many workflows
        #[arg(long, default_value_t = 5_000)]
        runs: u64,
    },
    #[command(hide = true)]
    Server {
        #[arg(long)]
        store: String,
    },
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        name: String,
        #[arg(long)]
        server: String,
        #[arg(long)]
        log: PathBuf,
    },
}

/// Ends a process that cannot go on.
pub fn end_process(why: &str) -> ! {
    eprintln!("torture: {why}");
    std::process::exit(3)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => end_process(&error.to_string()),
    };
    // On the main thread, with whom children die: a thread of the runtime may end before.
    let ended = runtime.block_on(async {
        match &arguments.role {
            Some(Role::Server { store }) => roles::server(store.clone()).await.map(|()| 0),
            Some(Role::Worker { name, server, log }) => roles::worker(name, server, log).await.map(|()| 0),
            Some(Role::Cluster { runs }) => cluster::torture(*runs).await,
            None => torture(&arguments).await,
        }
    });
    match ended {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error}");
            ExitCode::from(2)
        }
    }
}

/// Gives how many violations there were.
async fn torture(arguments: &Arguments) -> Result<usize, Failed> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let store = match &arguments.store {
        Store::Sqlite => "sqlite",
        Store::Postgres => "postgres",
        Store::Url(_) => "the store that was named",
    };
    println!("torture over {store}, seed {seed}: {SERVERS} servers, {WORKERS} workers");
    let started = Instant::now();
    let mut world = World::start(&arguments.store).await?;
    let load = Load::begin(&world, seed, arguments.rate)?;
    let mut faults = Faults::new(seed);
    let end = Instant::now() + Duration::from_secs_f64(60.0 * arguments.minutes.max(0.0));
    let mut ended = Vec::new();
    while Instant::now() < end {
        faults.until(end.min(Instant::now() + PROGRESS), &mut world, &load).await?;
        ended.extend(world.ended_by_themselves()?);
        progress(started, &load, &faults);
    }
    faults.end(&mut world).await?;
    load.end().await?;
    println!("all is well again; waiting until every run has ended");
    let left = look::drain(&world.client_url(0), DRAIN).await?;
    ended.extend(world.ended_by_themselves()?);
    println!("{left} runs live; reading everything, killing everything, reading it again");
    for worker in 0..WORKERS {
        world.kill_worker(worker).await?;
    }
    let first = look::look(&world.client_url(0)).await?;
    kill_and_restart(&mut world).await?;
    let second = look::look(&world.client_url(1)).await?;

    let mut history = History::default();
    for file in world.log_files()? {
        history.read(&file)?;
    }
    history.sort();
    println!("judging {} operations on {} runs", history.heard.len(), first.len());
    let mut judgement = check::judge(&history, &first, &second);
    ended.sort();
    ended.dedup();
    judgement.found.extend(ended.into_iter().map(|who| Found {
        rule: Rule::ProcessLives,
        run: None,
        detail: format!("{who} ended"),
    }));
    let lasted = started.elapsed();
    let report = Report { store, seed, lasted, faults: faults.counts(), judgement: &judgement, look: &first };
    show(&report, &history, &judgement, &mut world, arguments)?;
    Ok(judgement.found.len())
}

fn show(
    report: &Report<'_>,
    history: &History,
    judgement: &Judgement,
    world: &mut World,
    arguments: &Arguments,
) -> Result<(), Failed> {
    print!("{}", report.violations(history));
    if !judgement.found.is_empty() {
        println!("\nthe logs are kept in {}", world.keep_logs().display());
    }
    print!("{}", report.table());
    if let Some(file) = &arguments.json {
        std::fs::write(file, format!("{:#}\n", report.json()))?;
    }
    Ok(())
}

fn progress(started: Instant, load: &Load, faults: &Faults) {
    let done = load.done();
    println!(
        "{:>5} s  {:>7} calls of clients, {:>7} acknowledged, {:>5} faults",
        started.elapsed().as_secs(),
        done.calls,
        done.acknowledged,
        faults.counts().values().sum::<u64>()
    );
}

/// What is acknowledged survives the death of everything.
async fn kill_and_restart(world: &mut World) -> Result<(), Failed> {
    for server in 0..SERVERS {
        world.kill_server(server).await?;
    }
    world.kill_database()?;
    world.start_database().await?;
    for server in 0..SERVERS {
        world.start_server(server).await?;
    }
    Ok(())
}
