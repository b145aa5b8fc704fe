//! Where tests get a real Postgres from, a free port, the answer of an HTTP endpoint, and a network that
//! fails ([`Proxy`]).
//!
//! [`postgres`] gives every test of a process the same server, whichever of three answers first: the
//! one that `KAGZI_TEST_POSTGRES_URL` names, one started from the server binaries on this machine, one
//! in Docker (cargo feature `containers`). Each test then takes a database of its own with
//! [`PostgresServer::fresh_database`]. Tests that kill servers start a [`PostgresCluster`] for themselves,
//! with a standby beside it if they fail over.
//!
//! Nothing outlives the process that asked: a small shell holds a pipe from it, and stops the server
//! and removes its directory when that pipe closes, however the process ended.

mod citus;
mod cluster;
#[cfg(feature = "containers")]
mod container;
mod database;
mod http;
mod pgbouncer;
mod program;
mod proxy;
mod schemas;
mod server;
mod standby;
mod watchdog;

pub use citus::{CITUS_URL_VARIABLE, CitusCluster, CitusDatabase, why_no_citus};
pub use cluster::{ClusterOptions, PostgresCluster};
pub use database::{TestDatabase, behind_proxy};
pub use http::http_get;
pub use pgbouncer::PgBouncer;
pub use proxy::{Direction, Proxy};
pub use schemas::{Schemas, TestSchema};
pub use server::{POSTGRES_URL_VARIABLE, PostgresServer, Source, postgres};

/// Why no Postgres could be had, or what went wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestkitError {
    /// None of the three ways led to a Postgres.
    #[error(
        "tests need a Postgres and found none. Three ways to help: (1) set KAGZI_TEST_POSTGRES_URL to a server on which databases may be created, such as postgres://postgres@localhost/postgres; (2) install the server binaries (Debian: apt-get install postgresql), so that initdb and postgres are in PATH or under /usr/lib/postgresql; (3) start Docker and build with the feature `containers`. What was tried: {tried}"
    )]
    NoPostgres {
        /// What each way answered.
        tried: String,
    },
    /// A program of the server could not be run, or failed.
    #[error("{program}: {detail}")]
    Program {
        /// Which one.
        program: String,
        /// What it said.
        detail: String,
    },
    /// The server did not answer in time.
    #[error("the Postgres at {url} did not accept connections within {waited_secs} s: {detail}")]
    NotReady {
        /// Where it was expected.
        url: String,
        /// How long.
        waited_secs: u64,
        /// The last answer, and the end of the server's log.
        detail: String,
    },
    /// A statement failed.
    #[error("while {doing}: {source}")]
    Database {
        /// What was being done.
        doing: String,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// A file or a socket could not be used.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A TCP port on the loopback interface that nobody listens on now. Somebody else may take it before
/// you do, so bind it at once and ask for another if that fails.
///
/// # Errors
///
/// [`TestkitError::Io`] if the machine has none left.
pub fn free_port() -> Result<u16, TestkitError> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
