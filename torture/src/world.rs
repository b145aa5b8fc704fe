//! What is tortured: a database, servers, workers, and the links between them, each a proxy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kagzi_testkit::{ClusterOptions, PostgresCluster, Proxy};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::Failed;
use crate::process::Process;

/// How many servers there are.
pub const SERVERS: usize = 2;

/// How many worker processes there are, divided among the servers.
pub const WORKERS: usize = 4;

/// Which database the servers stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file of its own, removed at the end.
    Sqlite,
    /// A cluster of its own, started from the server binaries on this machine and removed at the end.
    Postgres,
    /// A database that somebody else looks after: it is neither killed nor paused.
    Url(String),
}

impl std::str::FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            "postgres" => Ok(Self::Postgres),
            url if url.contains("://") => Ok(Self::Url(url.to_owned())),
            other => Err(format!("expected sqlite, postgres or the URL of an empty store, got {other:?}")),
        }
    }
}

/// A server and the links to and from it.
#[derive(Debug)]
struct Server {
    /// Nothing while it is dead.
    process: Option<Process>,
    store_url: String,
    /// Between it and its database, where that speaks TCP.
    to_database: Option<Proxy>,
    /// Between clients and it.
    from_clients: Proxy,
}

/// A worker process and its link.
#[derive(Debug)]
struct Worker {
    process: Option<Process>,
    to_server: Proxy,
    /// Which server it works with.
    server: usize,
    /// How many processes there were before in its place.
    incarnation: u32,
}

/// See the module. Dropping it ends all.
#[derive(Debug)]
pub struct World {
    directory: TempDir,
    cluster: Option<PostgresCluster>,
    servers: Vec<Server>,
    workers: Vec<Worker>,
    /// Who was to be killed and had ended by itself.
    ended: Vec<String>,
}

/// An address that nothing listens on, for links that lead nowhere yet.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

impl World {
    /// A fresh database with everything round it, running.
    pub async fn start(store: &Store) -> Result<Self, Failed> {
        let directory = tempfile::Builder::new().prefix("kagzi-torture-").tempdir()?;
        let mut cluster = None;
        let (url, address) = match store {
            Store::Sqlite => (format!("sqlite://{}", directory.path().join("kagzi.db").display()), None),
            Store::Url(url) => (url.clone(), None),
            Store::Postgres => {
                let started = PostgresCluster::start(ClusterOptions::default()).await?;
                let address = SocketAddr::from(([127, 0, 0, 1], started.port()));
                let url = started.url();
                cluster = Some(started);
                (url, Some(address))
            }
        };
        let mut servers = Vec::new();
        for _ in 0..SERVERS {
            let to_database = match address {
                Some(address) => Some(Proxy::to(address).await?),
                None => None,
            };
            let store_url = to_database.as_ref().map_or_else(
                || url.clone(),
                |proxy| format!("postgres://postgres@{}/postgres", proxy.address()),
            );
            let from_clients = Proxy::to(NOWHERE).await?;
            servers.push(Server { process: None, store_url, to_database, from_clients });
        }
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let to_server = Proxy::to(NOWHERE).await?;
            workers.push(Worker { process: None, to_server, server: number % SERVERS, incarnation: 0 });
        }
        let mut world = Self { directory, cluster, servers, workers, ended: Vec::new() };
        for number in 0..SERVERS {
            world.start_server(number).await?;
        }
        for number in 0..WORKERS {
            world.start_worker(number).await?;
        }
        Ok(world)
    }

    /// Where the logs are.
    pub fn logs(&self) -> &Path {
        self.directory.path()
    }

    /// The log files of everybody.
    pub fn log_files(&self) -> Result<Vec<PathBuf>, Failed> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Keeps the logs after the end; gives where.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }

    /// Whether the database is this program's own to kill.
    pub const fn owns_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Where clients reach a server, over its life and death.
    pub fn client_url(&self, server: usize) -> String {
        self.servers[server].from_clients.url()
    }

    /// The link between clients and a server.
    pub fn client_link(&self, server: usize) -> &Proxy {
        &self.servers[server].from_clients
    }

    /// The link between a worker and its server.
    pub fn worker_link(&self, worker: usize) -> &Proxy {
        &self.workers[worker].to_server
    }

    /// The link between a server and the database, where there is one.
    pub fn database_link(&self, server: usize) -> Option<&Proxy> {
        self.servers[server].to_database.as_ref()
    }

    /// Starts a server that is dead.
    pub async fn start_server(&mut self, number: usize) -> Result<(), Failed> {
        let server = &mut self.servers[number];
        let arguments = ["server", "--store", &server.store_url];
        let name = format!("server {number}");
        let (process, address) = Process::start(&name, self.directory.path(), &arguments).await?;
        let address: SocketAddr = address.parse()?;
        server.process = Some(process);
        server.from_clients.lead_to(address);
        for worker in self.workers.iter().filter(|worker| worker.server == number) {
            worker.to_server.lead_to(address);
        }
        Ok(())
    }

    /// Kills a server.
    pub async fn kill_server(&mut self, number: usize) -> Result<(), Failed> {
        let process = self.servers[number].process.take();
        self.end(process).await
    }

    /// Starts a worker that is dead.
    pub async fn start_worker(&mut self, number: usize) -> Result<(), Failed> {
        let server = self.workers[number].server;
        let worker = &mut self.workers[number];
        let name = format!("worker-{number}-{}", worker.incarnation);
        worker.incarnation += 1;
        if worker.incarnation == 1 {
            // Its server was started before.
            worker.to_server.lead_to(self.servers[server].from_clients.server());
        }
        let log = self.directory.path().join(format!("{name}.log"));
        let log = log.display().to_string();
        let url = worker.to_server.url();
        let arguments = ["worker", "--name", &name, "--server", &url, "--log", &log];
        worker.process = Some(Process::start(&name, self.directory.path(), &arguments).await?.0);
        Ok(())
    }

    /// Kills a worker.
    pub async fn kill_worker(&mut self, number: usize) -> Result<(), Failed> {
        let process = self.workers[number].process.take();
        self.end(process).await
    }

    /// Sends a signal to a server, if it lives.
    pub fn signal_server(&self, number: usize, signal: Signal) -> Result<(), Failed> {
        self.servers[number].process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Sends a signal to a worker, if it lives.
    pub fn signal_worker(&self, number: usize, signal: Signal) -> Result<(), Failed> {
        self.workers[number].process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Kills the database with all its backends.
    pub fn kill_database(&mut self) -> Result<(), Failed> {
        match &mut self.cluster {
            Some(cluster) => Ok(tokio::task::block_in_place(|| cluster.kill())?),
            None => Ok(()),
        }
    }

    /// Starts the database again.
    pub async fn start_database(&mut self) -> Result<(), Failed> {
        match &mut self.cluster {
            Some(cluster) => Ok(cluster.restart().await?),
            None => Ok(()),
        }
    }

    /// Pauses the database.
    pub fn pause_database(&self) -> Result<(), Failed> {
        self.cluster.as_ref().map_or(Ok(()), |cluster| Ok(cluster.pause()?))
    }

    /// Lets a paused database go on.
    pub fn continue_database(&self) -> Result<(), Failed> {
        self.cluster.as_ref().map_or(Ok(()), |cluster| Ok(cluster.go_on()?))
    }

    async fn end(&mut self, process: Option<Process>) -> Result<(), Failed> {
        let Some(process) = process else { return Ok(()) };
        let name = process.name().to_owned();
        if !process.kill().await? {
            self.ended.push(name);
        }
        Ok(())
    }

    /// Processes that ended though nobody killed them.
    pub fn ended_by_themselves(&mut self) -> Result<Vec<String>, Failed> {
        let mut ended = std::mem::take(&mut self.ended);
        let servers = self.servers.iter_mut().filter_map(|server| server.process.as_mut());
        let workers = self.workers.iter_mut().filter_map(|worker| worker.process.as_mut());
        for process in servers.chain(workers) {
            if !process.is_alive()? {
                ended.push(process.name().to_owned());
            }
        }
        Ok(ended)
    }
}
