//! The parts that a bench over gRPC gives to processes of their own.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use kagzi_core::Namespace;
use kagzi_server::{LogFormat, ServeArgs, ServerConfig};

use super::load::{self, Load};
use super::reading;
use super::workflow;
use crate::cli::{CliError, ServerAccess, bind, print, server_failed, stop_signal};
use crate::lifeline::end_with_the_parent;

/// In the environment of a server: its store. A URL may hold a password, and arguments can be read by
/// every user of the machine.
pub const STORE: &str = "KAGZI_BENCH_STORE";

/// The size of the payloads of callers that are a part of their own.
const PAYLOAD_BYTES: usize = 16;

/// For how long such a caller tries to start what the server refuses.
const PATIENCE: Duration = Duration::from_hours(1);

/// What precedes the URL or name of a part in the line that says that it is ready.
pub const READY: &str = "ready ";

/// How a part is told what to do.
#[derive(Debug, Args)]
pub struct PartArgs {
    /// Which part.
    #[arg(long, value_enum)]
    role: Role,
    /// The settings of a server, but for its address, store and namespace.
    #[arg(long)]
    config: Option<PathBuf>,
    /// How many runs a worker executes at a time, or how many callers there are.
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
}

impl PartArgs {
    /// Whether it is a server. Steps that only wait, and callers, have a message now and then each, and it costs more
    /// to wake another thread for one than to answer it.
    pub fn serves(&self) -> bool {
        self.role == Role::Server
    }
}

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A server on a free port of the loopback.
    Server,
    /// A worker of the server that `--server` names.
    Worker,
    /// Callers of that server, each with one workflow after the other, as fast as the server lets them.
    Callers,
    /// Callers of that server who only read, one page, count and look at the queues after the other, and a worker that
    /// waits for work in many queues which are empty.
    Readers,
}

impl Role {
    /// As it stands on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Worker => "worker",
            Self::Callers => "callers",
            Self::Readers => "readers",
        }
    }
}

/// Plays a part until the bench ends.
///
/// # Errors
///
/// If the store or the server cannot be reached.
pub async fn play(args: PartArgs, access: &ServerAccess, namespace: Namespace) -> Result<(), CliError> {
    end_with_the_parent();
    kagzi_server::telemetry::init(LogFormat::Text, "warn")
        .map_err(|why| CliError::failed("could not log", why))?;
    match args.role {
        Role::Server => serve(args.config, namespace).await,
        Role::Worker => work(access, &namespace, args.concurrency).await,
        Role::Callers => call(access, &namespace, args.concurrency).await,
        Role::Readers => read(access, &namespace, args.concurrency).await,
    }
}

async fn serve(config: Option<PathBuf>, namespace: Namespace) -> Result<(), CliError> {
    let store =
        std::env::var(STORE).map_err(|why| CliError::usage(format!("could not read {STORE}"), why))?;
    let given = ServeArgs { config, ..ServeArgs::default() }
        .into_config()
        .map_err(|why| CliError::usage("could not use the settings of the bench's server", why))?;
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store,
        namespaces: vec![namespace],
        start_timeout: Duration::ZERO,
        ..given
    };
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let failed = |error| server_failed("could not start the server of the bench", &error);
    let mut stop = Box::pin(stop_signal());
    let server = bind(config, &mut stop).await?.map_err(failed)?;
    print(&format!("{READY}{scheme}://{}", server.local_addr()))?;
    let told = async {
        stop.await;
    };
    server.run(told).await.map_err(failed)
}

async fn work(access: &ServerAccess, namespace: &Namespace, concurrency: u32) -> Result<(), CliError> {
    let client = access.client().await.and_then(|client| client.in_namespace(namespace));
    let client = client.map_err(|why| CliError::failed("the worker could not reach the server", why))?;
    let worker = workflow::worker(client, concurrency)
        .map_err(|why| CliError::failed("the worker could not be set up", why))?;
    print(&format!("{READY}{}", worker.worker_id()))?;
    worker.run().await.map_err(|why| CliError::failed("the worker had to stop", why))
}

async fn call(access: &ServerAccess, namespace: &Namespace, callers: u32) -> Result<(), CliError> {
    let client = access.client().await.and_then(|client| client.in_namespace(namespace));
    let client = client.map_err(|why| CliError::failed("the callers could not reach the server", why))?;
    print(&format!("{READY}{namespace}"))?;
    let load = Load { workflows: u32::MAX, in_flight: callers, payload_bytes: PAYLOAD_BYTES };
    // Whom the server refuses waits as it is told to.
    load::put_on(&client.with_patience(PATIENCE), load, &ProgressBar::hidden()).await.map(drop)
}

async fn read(access: &ServerAccess, namespace: &Namespace, readers: u32) -> Result<(), CliError> {
    let client = access.client().await.and_then(|client| client.in_namespace(namespace));
    let client = client.map_err(|why| CliError::failed("the readers could not reach the server", why))?;
    print(&format!("{READY}{namespace}"))?;
    reading::put_on(&client.with_patience(PATIENCE), readers).await
}
