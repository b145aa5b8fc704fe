//! The server that all tests of a process share.

use std::fmt;

use tokio::sync::OnceCell;

use crate::cluster::{ClusterOptions, PostgresCluster};
use crate::database::{Leftovers, TestDatabase};
use crate::{TestkitError, database};

/// Names a server that exists already and is used before anything else is tried.
pub const POSTGRES_URL_VARIABLE: &str = "KAGZI_TEST_POSTGRES_URL";

/// Where the server came from.
#[derive(Debug)]
#[non_exhaustive]
pub enum Source {
    /// From `KAGZI_TEST_POSTGRES_URL`.
    Environment,
    /// Started from the server binaries on this machine; it ends with this process.
    Binaries(PostgresCluster),
    /// Started in Docker; it ends with this process.
    #[cfg(feature = "containers")]
    Container(crate::container::Container),
}

/// A Postgres server on which tests create databases of their own.
#[derive(Debug)]
pub struct PostgresServer {
    url: String,
    source: Source,
}

impl PostgresServer {
    /// A server that others use too, as `KAGZI_TEST_POSTGRES_URL` names one.
    ///
    /// # Errors
    ///
    /// [`TestkitError::NotReady`] if it does not answer within 10 s.
    pub async fn at(url: String) -> Result<Self, TestkitError> {
        database::wait_until_ready(&url, 10, String::new).await?;
        Ok(Self { url, source: Source::Environment })
    }

    /// A URL of the maintenance database of the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the server came from.
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// A database of its own for one test.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn fresh_database(&self) -> Result<TestDatabase, TestkitError> {
        let leftovers = match self.source {
            Source::Environment => Leftovers::Dropped,
            _ => Leftovers::GoWithTheServer,
        };
        TestDatabase::create(&self.url, leftovers).await
    }
}

/// One line for people: which server, and why this one.
impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Environment => {
                write!(f, "Postgres named by {POSTGRES_URL_VARIABLE} (KAGZI_TEST_POSTGRES_URL is set)")
            }
            Source::Binaries(cluster) => {
                write!(f, "Postgres started from {}, port {}", cluster.binaries().display(), cluster.port())
            }
            #[cfg(feature = "containers")]
            Source::Container(container) => write!(f, "Postgres started in Docker, {container}"),
        }
    }
}

/// The server that all tests of this process share; found or started by the first who asks. Show
/// people the handle's `Display`, which says where it came from.
///
/// # Errors
///
/// [`TestkitError::NoPostgres`], which tells the three ways to help. A server that was named but does
/// not answer is an error too: tests never turn to another server in silence.
pub async fn postgres() -> Result<&'static PostgresServer, TestkitError> {
    static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
    SHARED.get_or_try_init(find).await
}

async fn find() -> Result<PostgresServer, TestkitError> {
    if let Some(url) = std::env::var(POSTGRES_URL_VARIABLE).ok().filter(|url| !url.is_empty()) {
        return PostgresServer::at(url).await;
    }
    let mut tried = vec![format!("{POSTGRES_URL_VARIABLE} is not set")];
    match PostgresCluster::start(ClusterOptions::default()).await {
        Ok(cluster) => {
            return Ok(PostgresServer { url: cluster.url(), source: Source::Binaries(cluster) });
        }
        Err(error) => tried.push(format!("server binaries: {error}")),
    }
    #[cfg(feature = "containers")]
    match crate::container::Container::start().await {
        Ok(container) => {
            return Ok(PostgresServer { url: container.url(), source: Source::Container(container) });
        }
        Err(error) => tried.push(format!("Docker: {error}")),
    }
    #[cfg(not(feature = "containers"))]
    tried.push("Docker: not tried, built without the feature `containers`".to_owned());
    Err(TestkitError::NoPostgres { tried: tried.join("; ") })
}
