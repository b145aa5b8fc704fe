//! Where a demo plays: its output directory, a server over its store, and the way to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kagzi_core::{Namespace, QueueName};
use kagzi_sdk::Client;
use kagzi_server::{Server, ServerConfig, ServerHandle};

use super::batch::Batch;
use super::child::WorkerPlan;
use super::hold::Hold;
use super::summary::shell_quoted;
use super::workspace::{Keep, Workspace};
use crate::cli::{CliError, DEFAULT_NAMESPACE, complain, server_failed, sqlite_url};
use crate::scratch::{self, unique_name};

/// How long the leases of the first worker last: short, so that its files are taken up soon.
const LEASE_OF_THE_DOOMED: Duration = Duration::from_millis(1500);

/// How long the leases of the later ones last: they are not meant to lose any, also on a busy machine.
const LEASE: Duration = Duration::from_secs(15);

/// How many files a worker has in work at a time. They wait for the disk and for the store's commits
/// most of the time.
const CONCURRENCY: u32 = 32;

/// How long the server waits for calls in flight at the end. There are none but polls.
const DRAIN: Duration = Duration::from_secs(2);

/// A server and everything around it.
#[derive(Debug)]
pub struct Stage {
    workspace: Workspace,
    namespace: Namespace,
    queue: QueueName,
    client: Client,
    server: ServerHandle,
    store: StoreKind,
}

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreKind {
    /// A file in the output directory.
    Own,
    /// A database that others use, too: nothing of the demo may stay there unasked.
    Shared,
}

impl Stage {
    /// Makes the output directory, opens the store and starts a server on a free port of the loopback.
    ///
    /// # Errors
    ///
    /// If any of it is refused.
    pub async fn set_up(output: Option<&Path>, store: Option<String>, keep: Keep) -> Result<Self, CliError> {
        let demo = unique_name("demo");
        let name_refused = |why| CliError::failed("could not name the demo", why);
        let workspace = Workspace::create(&demo, output, keep)?;
        let (kind, store, namespace) = match store {
            Some(url) => (StoreKind::Shared, url, demo.as_str()),
            None => (
                StoreKind::Own,
                sqlite_url(&workspace.database(), "name another directory with --output")?,
                DEFAULT_NAMESPACE,
            ),
        };
        let namespace = Namespace::new(namespace).map_err(name_refused)?;
        let config = ServerConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string(),
            store,
            namespaces: vec![namespace.clone()],
            drain_timeout: DRAIN,
            start_timeout: Duration::ZERO,
            ..ServerConfig::default()
        };
        let server = Server::bind(config).await;
        let server =
            server.map_err(|error| server_failed("could not start the server of the demo", &error))?.spawn();
        let client = Client::connect(&server.url()).await.and_then(|client| client.in_namespace(&namespace));
        let client = client.map_err(|why| CliError::failed("could not reach the demo's own server", why))?;
        let queue = QueueName::new(&demo).map_err(name_refused)?;
        Ok(Self { workspace, namespace, queue, client, server, store: kind })
    }

    /// The server, for people: what is behind it, and where it is.
    pub fn server(&self) -> String {
        format!("{} at {}", self.server.store().backend(), self.server.local_addr())
    }

    /// The output directory.
    pub const fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// The runs of this demo.
    pub fn batch(&self) -> Batch {
        Batch::new(self.client.clone(), self.queue.clone())
    }

    /// What a worker is told; `hold` is where the first one waits to be killed. That one gets few of the
    /// `files` at a time where there are few, so that it is really half way through them.
    pub fn worker_plan(&self, root: &Path, files: u64, hold: Option<Hold>) -> WorkerPlan {
        let (lease, concurrency) = match hold {
            Some(_) => {
                (LEASE_OF_THE_DOOMED, u32::try_from(files / 8).unwrap_or(CONCURRENCY).clamp(1, CONCURRENCY))
            }
            None => (LEASE, CONCURRENCY),
        };
        WorkerPlan {
            server: self.server.url(),
            namespace: self.namespace.clone(),
            queue: self.queue.clone(),
            root: root.to_owned(),
            output: self.workspace.directory().to_owned(),
            lease,
            concurrency,
            hold,
        }
    }

    /// Stops the server and takes away what is not to stay. What does stay, and how to look at it, is
    /// said by the text.
    ///
    /// # Errors
    ///
    /// If the server did not end well, or something could not be taken away.
    pub async fn finish(self) -> Result<Option<String>, CliError> {
        let everything_stays = self.workspace.keep() == Keep::Everything;
        let hint = everything_stays.then(|| self.where_to_look());
        if self.store == StoreKind::Shared && !everything_stays {
            let cleared = scratch::clear(self.server.store(), &self.namespace).await;
            cleared.map_err(|why| {
                CliError::failed("could not remove the runs of the demo from the store", why)
            })?;
        }
        let stopped = self.server.shutdown().await;
        stopped.map_err(|error| server_failed("the server did not end well", &error))?;
        self.workspace
            .finish()
            .map_err(|why| CliError::failed("could not tidy up the output directory", why))?;
        Ok(hint)
    }

    /// Stops at once. What could not be taken away is said, and no more: something else went wrong before.
    pub async fn abandon(self) {
        if self.store == StoreKind::Shared
            && self.workspace.keep() == Keep::Manifest
            && let Err(why) = scratch::clear(self.server.store(), &self.namespace).await
        {
            complain(format_args!("runs of the demo are left in namespace {}: {why}", self.namespace));
        }
        if let Err(why) = self.server.shutdown().await {
            complain(format_args!("the server did not end well: {why}"));
        }
        if self.workspace.keep() == Keep::Everything {
            complain(format_args!(
                "what there is of the output is in {}",
                self.workspace.directory().display()
            ));
        }
    }

    /// What people can do when nothing moves any more.
    pub fn how_to_help(&self) -> String {
        let directory = self.workspace.directory().display();
        match self.store {
            StoreKind::Own => {
                format!("free some space on the disk of {directory}, or name another directory with --output")
            }
            StoreKind::Shared => {
                format!("see that the store is up and has space, and that {directory} can be written")
            }
        }
    }

    fn where_to_look(&self) -> String {
        let directory = self.workspace.directory().display();
        let database = self.workspace.database();
        let (serve, list) = match self.store {
            StoreKind::Own => (format!("--store sqlite://{}", shell_quoted(&database)), String::new()),
            StoreKind::Shared => (
                format!("--store URL --namespaces {}", self.namespace),
                format!(" --namespace {}", self.namespace),
            ),
        };
        format!(
            "\nEverything is kept in {directory}. Look around:\n  kagzi serve {serve} &\n  kagzi{list} list\n  \
             kagzi{list} steps RUN\n  kagzi{list} dead-letters\nEach file in objects/ is one content, named by \
             its SHA-256; zstd -dc restores it."
        )
    }
}
