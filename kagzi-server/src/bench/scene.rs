//! Where a bench plays: a store, and what stands between it and the caller.

use std::path::PathBuf;

use clap::ValueEnum;
use kagzi_core::{Namespace, SharedStore};
use kagzi_sdk::{Client, WorkerError};
use kagzi_server::{ServerConfig, open_store, without_password};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::process::Process;
use super::processor::Watch;
use super::workflow;
use crate::cli::{CliError, ServerAccess, server_failed};
use crate::scratch;

/// How the caller and the worker reach the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Through a server, with workers in processes of their own.
    Grpc,
    /// In this process.
    Embedded,
}

impl Mode {
    /// As it stands in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Embedded => "embedded",
        }
    }
}

/// What a scene is made of.
#[derive(Debug)]
pub struct Plan {
    /// The user's store, or nothing for a fresh SQLite file.
    pub store: Option<String>,
    /// How to reach it.
    pub mode: Mode,
    /// The settings of the server, but for what the scene decides.
    pub config: Option<PathBuf>,
    /// Whom callers trust, and what they show.
    pub access: ServerAccess,
    /// How many workers.
    pub workers: u32,
    /// How many runs each executes at a time.
    pub concurrency: u32,
}

/// A store with a server, or without, and workers.
#[derive(Debug)]
pub struct Scene {
    store: Place,
    namespace: Namespace,
    client: Client,
    cast: Cast,
}

/// The store of a scene.
#[derive(Debug)]
struct Place {
    url: String,
    /// The directory of a file of our own, removed with it.
    directory: Option<TempDir>,
}

/// Who stands between the caller and the store.
#[derive(Debug)]
enum Cast {
    Processes(Processes),
    Embedded { store: SharedStore, workers: Vec<EmbeddedWorker> },
}

#[derive(Debug)]
struct Processes {
    server: Box<Process>,
    workers: Vec<Process>,
}

#[derive(Debug)]
struct EmbeddedWorker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Scene {
    /// Opens the store and starts everyone.
    ///
    /// # Errors
    ///
    /// If any of it is refused.
    pub async fn set_up(plan: &Plan) -> Result<Self, CliError> {
        let store = Place::find(plan.store.as_deref())?;
        let namespace = Namespace::new(scratch::unique_name("bench"))
            .map_err(|why| CliError::failed("could not name the bench", why))?;
        let in_namespace = |client: Client| {
            client
                .in_namespace(&namespace)
                .map_err(|why| CliError::failed("could not use the bench's namespace", why))
        };
        let (client, cast) = match plan.mode {
            Mode::Grpc => {
                let (server, url) = Process::server(&store.url, &namespace, plan.config.as_deref()).await?;
                let mut workers = Vec::new();
                for _ in 0..plan.workers {
                    let access = plan.access.at(&url);
                    workers.push(Process::worker(&access, &namespace, plan.concurrency).await?);
                }
                let client = plan
                    .access
                    .at(&url)
                    .client()
                    .await
                    .map_err(|why| CliError::failed("could not reach the bench's own server", why))?;
                (in_namespace(client)?, Cast::Processes(Processes { server: Box::new(server), workers }))
            }
            Mode::Embedded => {
                let opened = store.open().await?;
                let client = in_namespace(Client::embedded(opened.clone()))?;
                let workers = (0..plan.workers)
                    .map(|_| EmbeddedWorker::start(client.clone(), plan.concurrency))
                    .collect::<Result<_, _>>()?;
                (client, Cast::Embedded { store: opened, workers })
            }
        };
        Ok(Self { store, namespace, client, cast })
    }

    /// The way to the store.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Whose runs the bench's are.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What kind of store it is.
    pub fn kind(&self) -> String {
        self.store.url.split(':').next().unwrap_or_default().to_owned()
    }

    /// The store's URL, without a password.
    pub fn url(&self) -> String {
        without_password(&self.store.url)
    }

    /// The processes whose work the bench causes.
    pub fn watch(&self) -> Watch {
        match &self.cast {
            Cast::Processes(Processes { server, workers }) => Watch::this_process()
                .and("server", server.id().into_iter())
                .and("workers", workers.iter().filter_map(Process::id)),
            Cast::Embedded { .. } => Watch::this_process(),
        }
    }

    /// Ready when a process ends that should not. Cancel safe.
    pub async fn broken(&mut self) -> CliError {
        let Cast::Processes(Processes { server, workers }) = &mut self.cast else {
            return std::future::pending().await;
        };
        let ended = std::iter::once(&mut **server).chain(workers).map(|process| Box::pin(process.ended()));
        futures::future::select_all(ended).await.0
    }

    /// Ends everyone, and leaves the user's store as it was.
    ///
    /// # Errors
    ///
    /// If something could not be ended or removed.
    pub async fn tear_down(self) -> Result<(), CliError> {
        match self.cast {
            Cast::Processes(Processes { server, workers }) => {
                for worker in workers {
                    worker.kill().await?;
                }
                server.kill().await?;
                if self.store.is_the_users() {
                    give_back(self.store.open().await?, &self.namespace).await?;
                }
            }
            Cast::Embedded { store, workers } => {
                for worker in workers {
                    worker.end().await?;
                }
                give_back(store, &self.namespace).await?;
            }
        }
        self.store.remove()
    }
}

async fn give_back(store: SharedStore, namespace: &Namespace) -> Result<(), CliError> {
    let failed = |why| CliError::failed("could not remove the runs of the bench from the store", why);
    scratch::clear(&store, namespace).await.map_err(failed)?;
    store.close().await.map_err(failed)
}

impl Place {
    fn find(url: Option<&str>) -> Result<Self, CliError> {
        if let Some(url) = url {
            return Ok(Self { url: url.to_owned(), directory: None });
        }
        let failed = |why: &dyn std::fmt::Display| {
            CliError::failed("could not make a directory for the database of the bench", why)
                .remedy("name a database with --store, or another directory with TMPDIR")
        };
        let directory =
            tempfile::Builder::new().prefix("kagzi-bench-").tempdir().map_err(|why| failed(&why))?;
        let file: PathBuf = directory.path().join("kagzi.db");
        let text = file
            .to_str()
            .filter(|text| !text.contains(['?', '#']))
            .ok_or_else(|| failed(&format!("{} cannot be written as a URL", file.display())))?;
        Ok(Self { url: format!("sqlite://{text}"), directory: Some(directory) })
    }

    const fn is_the_users(&self) -> bool {
        self.directory.is_none()
    }

    async fn open(&self) -> Result<SharedStore, CliError> {
        let config = ServerConfig { store: self.url.clone(), ..ServerConfig::default() };
        open_store(&config).await.map_err(|error| server_failed("could not open the store", &error))
    }

    fn remove(self) -> Result<(), CliError> {
        let removed = self.directory.map_or(Ok(()), TempDir::close);
        removed.map_err(|why| CliError::failed("could not remove the database of the bench", why))
    }
}

impl EmbeddedWorker {
    fn start(client: Client, concurrency: u32) -> Result<Self, CliError> {
        let worker = workflow::worker(client, concurrency)
            .map_err(|why| CliError::failed("the worker could not be set up", why))?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(worker.run_until(async move {
            // A dropped sender means the same.
            stopped.await.ok();
        }));
        Ok(Self { stop, task })
    }

    async fn end(self) -> Result<(), CliError> {
        // Nobody listens if the worker has ended; then its answer says why.
        self.stop.send(()).ok();
        let ended = self.task.await.map_err(|why| CliError::failed("the worker failed", why))?;
        ended.map_err(|why| CliError::failed("the worker had to stop", why))
    }
}
