//! What a case plays in: a database, servers, workers, and a client.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kagzi_testkit::{Proxy, TestDatabase};
use tempfile::TempDir;

use crate::clock::Clock;
use crate::process::Process;
use crate::worker;

/// Whatever went wrong; the text is shown.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Which database the servers stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file of its own.
    Sqlite,
    /// A database of its own on the shared server.
    Postgres,
}

impl Database {
    /// As it stands in a test's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// The database of one case. Dropping it removes it.
#[derive(Debug)]
pub struct World {
    store_url: String,
    directory: TempDir,
    _database: Option<TestDatabase>,
}

impl World {
    /// A fresh, empty database.
    pub async fn new(database: Database) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let (store_url, test_database) = match database {
            Database::Sqlite => (format!("sqlite://{}", directory.path().join("kagzi.db").display()), None),
            Database::Postgres => {
                let database = kagzi_testkit::postgres().await?.fresh_database().await?;
                (database.url(), Some(database))
            }
        };
        Ok(Self { store_url, directory, _database: test_database })
    }

    /// Over a database that somebody else looks after.
    pub fn over(store_url: String) -> Result<Self, Failed> {
        Ok(Self { store_url, directory: tempfile::tempdir()?, _database: None })
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.store_url
    }

    /// The file, if the database is one.
    pub fn file(&self) -> Option<&Path> {
        self.store_url.strip_prefix("sqlite://").map(Path::new)
    }

    /// The same database by way of a proxy.
    pub async fn behind_proxy(&self) -> Result<(Proxy, String), Failed> {
        Ok(kagzi_testkit::behind_proxy(&self.store_url).await?)
    }

    /// The file in which workers note what they execute.
    pub fn effects(&self) -> PathBuf {
        self.directory.path().join("effects")
    }

    /// Starts `kagzi serve` on a port, 0 for any, and waits until it listens.
    pub fn server(&self, port: u16) -> Result<Server, Failed> {
        self.server_with(port, |_| {})
    }

    /// The same, with more said to it.
    pub fn server_with(&self, port: u16, more: impl FnOnce(&mut Command)) -> Result<Server, Failed> {
        Self::server_over(port, &self.store_url, Clock::Right, more)
    }

    /// The same, over another way to the database and by another clock.
    pub fn server_by(store_url: &str, clock: Clock) -> Result<Server, Failed> {
        Self::server_over(0, store_url, clock, |_| {})
    }

    /// The same, over another way to the database, with more said to it.
    pub fn server_by_with(store_url: &str, more: impl FnOnce(&mut Command)) -> Result<Server, Failed> {
        Self::server_over(0, store_url, Clock::Right, more)
    }

    fn server_over(
        port: u16,
        store_url: &str,
        clock: Clock,
        more: impl FnOnce(&mut Command),
    ) -> Result<Server, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.envs(clock.variables()?);
        command.env("KAGZI_STORE", store_url).args(["serve", "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--http-listen", "127.0.0.1:0"]);
        command.env("KAGZI_LOG_LEVEL", "warn");
        more(&mut command);
        let mut process = Process::start("server", &mut command)?;
        let address = process.line("listening on ")?;
        let port = address.rsplit(':').next().unwrap_or_default().parse()?;
        let http = process.line("HTTP on ")?;
        Ok(Server { process, port, http })
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub port: u16,
    /// Where its metrics are.
    http: String,
}

impl Server {
    /// The answer to a GET at its HTTP endpoint, from the status line on.
    pub async fn get(&self, path: &str) -> Result<String, Failed> {
        Ok(kagzi_testkit::http_get(&self.http, path).await?)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// How a worker is started.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSettings {
    /// How long its leases last, in milliseconds.
    pub lease_ms: u64,
    /// Whether its step `hold` waits for a line.
    pub holds: bool,
    /// How many runs it executes at once. With one, it asks for no other while it holds.
    pub runs: u32,
}

/// A worker that holds nothing and executes many runs at once.
pub const fn busy(lease_ms: u64) -> WorkerSettings {
    WorkerSettings { lease_ms, holds: false, runs: 64 }
}

/// Makes a server or a worker export its spans, soon after they end, and log all that it can as JSON into a
/// pipe.
pub fn traced(command: &mut Command, service: &str, collector: &str) {
    command.env("OTEL_SERVICE_NAME", service).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
    command.env("OTEL_BSP_SCHEDULE_DELAY", "20").stderr(Stdio::piped());
    command.env("KAGZI_LOG_LEVEL", "debug").env("KAGZI_LOG_FORMAT", "json");
}

/// Starts a worker process and waits until it is ready.
pub fn start_worker(name: &str, server_url: &str, settings: WorkerSettings) -> Result<Process, Failed> {
    start_worker_with(name, server_url, settings, |_| {})
}

/// The same, of a worker that exports its spans.
pub fn traced_worker(
    name: &str,
    server_url: &str,
    collector: &str,
    settings: WorkerSettings,
) -> Result<Process, Failed> {
    start_worker_with(name, server_url, settings, |command| traced(command, name, collector))
}

/// Starts a worker that notes in a file what it executes, by its own clock.
pub fn start_watched(
    name: &str,
    server_url: &str,
    settings: WorkerSettings,
    effects: &Path,
    clock: Clock,
) -> Result<Process, Failed> {
    let clock = clock.variables()?;
    start_worker_with(name, server_url, settings, |command| {
        command.env(worker::EFFECTS, effects).envs(clock);
    })
}

fn start_worker_with(
    name: &str,
    server_url: &str,
    settings: WorkerSettings,
    more: impl FnOnce(&mut Command),
) -> Result<Process, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .env(worker::ROLE, name)
        .env(worker::SERVER, server_url)
        .env(worker::LEASE, settings.lease_ms.to_string())
        .env(worker::RUNS, settings.runs.to_string());
    if settings.holds {
        command.env(worker::HOLDS, "1");
    }
    more(&mut command);
    let mut process = Process::start(name, &mut command)?;
    process.clock = process.line("clock ")?.parse().ok();
    process.line("ready")?;
    Ok(process)
}
