//! What a noisy tenant costs a quiet one beside it, with limits and without: the quiet one's latency from
//! start to result, alone and then beside 16 callers of another namespace, who start runs and ask for
//! queues 50 times a second each, whatever they are told.
//!
//!     cargo run --release -p kagzi-server --example quiet-tenant -- [WORKFLOWS] [CALLS_A_SECOND|none]
//!
//! The server, the quiet tenant with its worker, and the noisy one have runtimes of their own in this
//! process; the store is a fresh SQLite file. The figures depend on the machine and what else it does, so
//! no test asks for them; that the noisy one is refused and the quiet one is not, a test does.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kagzi_core::Namespace;
use kagzi_proto::v1;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_sdk::{Client, Context, Start, Worker, WorkflowError};
use kagzi_server::{LoadLimits, RateLimit, Server, ServerConfig};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Endpoint;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NOISY_CALLERS: u32 = 16;
const NOISY_PAUSE: Duration = Duration::from_millis(20);

async fn three_steps(ctx: Context, input: u32) -> Result<u32, WorkflowError> {
    let mut value = input;
    for step in ["one", "two", "three"] {
        value = ctx.step(step, || async move { Ok(value + 1) }).await?;
    }
    Ok(value)
}

/// What the noisy tenant was told.
#[derive(Debug, Default)]
struct Told {
    answered: AtomicU64,
    refused: AtomicU64,
    quiet_again: AtomicBool,
}

async fn make_noise(url: String, told: Arc<Told>) -> Outcome<()> {
    let mut client = WorkflowServiceClient::new(Endpoint::from_shared(url)?.connect().await?);
    while !told.quiet_again.load(Ordering::Relaxed) {
        let start = v1::StartWorkflowRequest {
            namespace: "noisy".to_owned(),
            queue: "noise".to_owned(),
            workflow_type: "noise".to_owned(),
            ..Default::default()
        };
        let look = v1::GetQueueDepthsRequest { namespace: "noisy".to_owned() };
        let answers =
            [client.start_workflow(start).await.map(drop), client.get_queue_depths(look).await.map(drop)];
        for answer in answers {
            match answer {
                Ok(()) => told.answered.fetch_add(1, Ordering::Relaxed),
                Err(status) if status.code() == Code::ResourceExhausted => {
                    told.refused.fetch_add(1, Ordering::Relaxed)
                }
                Err(status) => return Err(status.into()),
            };
        }
        tokio::time::sleep(NOISY_PAUSE).await;
    }
    Ok(())
}

/// Latencies from start to result, one workflow after the other, the shortest first.
async fn measure(client: &Client, workflows: u32) -> Outcome<Vec<Duration>> {
    let mut latencies = Vec::new();
    for number in 0..workflows {
        let began = Instant::now();
        let run = client.start(Start::workflow("three-steps").queue("q").input(&number)?).await?;
        let result: u32 = run.result().await?;
        assert_eq!(result, number + 3);
        latencies.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    latencies.sort();
    Ok(latencies)
}

/// Prints a line; answers the p99 in milliseconds.
fn tell(what: &str, latencies: &[Duration]) -> f64 {
    let at = |part: usize| {
        let place = (latencies.len() * part / 100).min(latencies.len().saturating_sub(1));
        latencies.get(place).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    println!("{what:<16} p50 {:>8.2} ms   p99 {:>8.2} ms", at(50), at(99));
    at(99)
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let workflows: u32 = args.next().map_or(Ok(1000), |text| text.parse())?;
    let rate = match args.next().as_deref() {
        Some("none") => None,
        Some(text) => Some(text.parse()?),
        None => Some(300),
    };
    let directory = tempfile::tempdir()?;
    let namespaces = ["quiet", "noisy"].into_iter().map(Namespace::new).collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store: format!("sqlite://{}", directory.path().join("kagzi.db").display()),
        namespaces: namespaces.clone(),
        load: LoadLimits {
            rate_per_namespace: rate.map(|per_second| RateLimit { per_second, burst: per_second }),
            ..LoadLimits::default()
        },
        ..ServerConfig::default()
    };
    let (serving, quiet, noisy) = (Runtime::new()?, Runtime::new()?, Runtime::new()?);
    let server = serving.block_on(async { Server::bind(config).await.map(Server::spawn) })?;
    let url = server.url();
    let client = quiet.block_on(async { Client::connect(&url).await })?.in_namespace(&namespaces[0])?;
    let worker = Worker::builder(client.clone()).queue("q").register("three-steps", three_steps).build()?;
    let working = quiet.spawn(worker.run());

    quiet.block_on(measure(&client, 50))?;
    let alone = tell("alone", &quiet.block_on(measure(&client, workflows))?);
    let told = Arc::new(Told::default());
    let began = Instant::now();
    let calling: Vec<_> =
        (0..NOISY_CALLERS).map(|_| noisy.spawn(make_noise(url.clone(), Arc::clone(&told)))).collect();
    // The burst is used up first.
    std::thread::sleep(Duration::from_secs(2));
    let beside = tell("beside noise", &quiet.block_on(measure(&client, workflows))?);
    told.quiet_again.store(true, Ordering::Relaxed);
    for caller in calling {
        noisy.block_on(caller)??;
    }
    let rate_of = |count: &AtomicU64| {
        Duration::from_secs(count.load(Ordering::Relaxed)).as_secs_f64() / began.elapsed().as_secs_f64()
    };
    println!(
        "the noisy tenant: {:.0} calls a second answered, {:.0} refused",
        rate_of(&told.answered),
        rate_of(&told.refused)
    );
    println!("p99 beside noise is {:.2} x the p99 alone (limit: {rate:?} calls a second)", beside / alone);
    working.abort();
    serving.block_on(server.shutdown())?;
    Ok(())
}
