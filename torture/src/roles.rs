//! The processes that are killed: a server and a worker, both this program in another role.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kagzi_sdk::transport::{Grpc, GrpcOptions};
use kagzi_sdk::{Client, Namespace, Worker};
use kagzi_server::{LogFormat, Server, ServerConfig, telemetry};

use crate::Failed;
use crate::log::Log;
use crate::plan::{QUEUE, WORKFLOW, workflow};
use crate::recording::Recording;

/// The tenants.
pub const NAMESPACES: [&str; 2] = ["alpha", "beta"];

/// How long a lease lasts: shorter than most pauses.
pub const LEASE: Duration = Duration::from_secs(2);

/// What a process says before its address, or that it is ready.
pub const READY: &str = "ready ";

/// Dies with its parent, however that ends, also while it is paused.
#[cfg_attr(not(target_os = "linux"), expect(clippy::unnecessary_wraps, reason = "only Linux has it"))]
fn die_with_parent() -> Result<(), Failed> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

/// Serves over the store until it is killed.
pub async fn server(store: String) -> Result<(), Failed> {
    die_with_parent()?;
    telemetry::init(LogFormat::Text, "error")?;
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store,
        namespaces: NAMESPACES.into_iter().map(Namespace::new).collect::<Result<_, _>>()?,
        min_lease: Duration::from_millis(100),
        ..ServerConfig::default()
    };
    let server = Server::bind(config).await?;
    say(&server.local_addr().to_string());
    Ok(server.run(std::future::pending()).await?)
}

/// Works for all namespaces until it is killed.
pub async fn worker(name: &str, server: &str, log: &Path) -> Result<(), Failed> {
    die_with_parent()?;
    let log = Arc::new(Log::create(log)?);
    let mut workers = tokio::task::JoinSet::new();
    for namespace in NAMESPACES {
        let client = client(server, namespace, &log)?;
        let worker = Worker::builder(client)
            .worker_id(name)
            .queue(QUEUE)
            .register(WORKFLOW, workflow(Arc::clone(&log), name))
            .max_concurrent_runs(24)
            .lease(LEASE)
            .poll_wait(Duration::from_secs(5))
            .build()?;
        workers.spawn(worker.run());
    }
    say(name);
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(())
}

/// A client whose calls are on record.
pub fn client(server: &str, namespace: &str, log: &Arc<Log>) -> Result<Client, Failed> {
    let mut options = GrpcOptions::default();
    // A link that is silent is given up after twice this.
    options.keep_alive = Duration::from_secs(2);
    options.connect_timeout = Duration::from_secs(2);
    options.timeout = Duration::from_secs(10);
    let grpc = Arc::new(Grpc::connect_lazy(server, &options)?);
    Ok(Client::over(Arc::new(Recording::new(grpc, Arc::clone(log)))).in_namespace(namespace)?)
}

/// The one line by which its parent hears of it.
fn say(what: &str) {
    println!("{READY}{what}");
}
