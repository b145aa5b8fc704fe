//! The end-to-end load: five-step workflows from start to result, over gRPC (a `kagzi serve` process, a
//! worker process, and this one as the client) or embedded in this process; beside it what an idle
//! system costs and how soon a start reaches a worker.
//!
//! It is its own worker process: started with `KAGZI_LOAD_WORKER` it becomes one.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to the person who runs it")]

mod grpc;
mod measure;
mod report;
mod work;

use std::process::ExitCode;

use clap::Parser;
use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_sdk::{Client, Worker};
use measure::Figures;
use report::Line;

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which stores.
    #[arg(long, value_delimiter = ',', default_value = "sqlite,postgres")]
    stores: Vec<Backend>,
    /// Which ways to reach the store.
    #[arg(long, value_delimiter = ',', default_value = "grpc,embedded")]
    modes: Vec<Mode>,
    /// How many workflows a throughput run finishes.
    #[arg(long, default_value_t = 20_000)]
    workflows: u32,
    /// How many workflows are under way at once.
    #[arg(long, default_value_t = 256)]
    in_flight: u32,
    /// How many throughput runs; the table shows the median and the spread.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long the idle system is watched, in seconds.
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
}

/// How the client and the worker reach the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Through a server.
    Grpc,
    /// In this process.
    Embedded,
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = if std::env::var_os(grpc::WORKER).is_some() {
        runtime.block_on(grpc::work())
    } else {
        runtime.block_on(measure_all(&Arguments::parse()))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure_all(arguments: &Arguments) -> Result<(), Failed> {
    let mut lines = Vec::new();
    for store in &arguments.stores {
        for mode in &arguments.modes {
            eprintln!("measuring {} {mode:?}", store.name());
            let place = Place::fresh(*store).await?;
            let figures = match mode {
                Mode::Grpc => over_grpc(&place, arguments).await?,
                Mode::Embedded => embedded(&place, arguments).await?,
            };
            lines.push(Line { store: *store, mode: format!("{mode:?}").to_lowercase(), figures });
        }
    }
    println!("{}", report::table(&lines));
    Ok(())
}

async fn over_grpc(place: &Place, arguments: &Arguments) -> Result<Figures, Failed> {
    let server = grpc::Server::start(place)?;
    let client = Client::connect(server.url()).await?;
    let worker = grpc::start_worker(&server.url(), 1)?;
    let mut figures =
        measure::load(&client, arguments.workflows, arguments.in_flight, arguments.rounds).await?;
    drop(worker);
    let _idle = grpc::start_worker(&server.url(), 100)?;
    figures.idle = Some(server.watch_idle(place, arguments.idle_seconds).await?);
    Ok(figures)
}

async fn embedded(place: &Place, arguments: &Arguments) -> Result<Figures, Failed> {
    let store = place.open().await?;
    let client = Client::embedded(store.clone());
    let worker = work::register(Worker::builder(client.clone())).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::spawn(worker.run_until(async move {
        // Either way the load is over.
        stopped.await.ok();
    }));
    let figures = measure::load(&client, arguments.workflows, arguments.in_flight, arguments.rounds).await?;
    drop(stop);
    working.await??;
    store.close().await?;
    Ok(figures)
}
