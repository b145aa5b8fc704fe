//! A database of its own for each test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::{Proxy, TestkitError};

/// A database that one test has to itself. On a server that others use too, dropping the handle drops
/// the database, whoever is still connected to it; on one that ends with this process it goes with it.
#[derive(Debug)]
pub struct TestDatabase {
    server_url: String,
    name: String,
    leftovers: Leftovers,
}

/// What becomes of a test's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// It is dropped with its handle.
    Dropped,
    /// It goes with its server: dropping thousands of tables one by one would only cost time.
    GoWithTheServer,
}

/// A name that no other database has.
pub(crate) fn fresh_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("kagzi_test_{}_{number}", Uuid::now_v7().simple())
}

impl TestDatabase {
    pub(crate) async fn create(server_url: &str, leftovers: Leftovers) -> Result<Self, TestkitError> {
        Self::named(server_url, fresh_name(), leftovers).await
    }

    /// With a name of [`fresh_name`].
    pub(crate) async fn named(
        server_url: &str,
        name: String,
        leftovers: Leftovers,
    ) -> Result<Self, TestkitError> {
        // The name is our own: letters, digits and underscores. `template0` has no other user that
        // could be in the way of copying it.
        let sql = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'");
        execute(server_url, sql, "creating a database for a test").await?;
        Ok(Self { server_url: server_url.to_owned(), name, leftovers })
    }

    /// A URL of the database.
    pub fn url(&self) -> String {
        let (before, query) = match self.server_url.split_once('?') {
            Some((before, query)) => (before, format!("?{query}")),
            None => (self.server_url.as_str(), String::new()),
        };
        let (scheme, rest) = before.split_once("://").unwrap_or(("postgres", before));
        let authority = rest.split('/').next().unwrap_or(rest);
        format!("{scheme}://{authority}/{}{query}", self.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs statements in it, without arguments.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn run(&self, script: impl Into<String>) -> Result<(), TestkitError> {
        let failed = |source| TestkitError::Database { doing: "running a script".to_owned(), source };
        let mut connection = PgConnection::connect(&self.url()).await.map_err(failed)?;
        sqlx::raw_sql(AssertSqlSafe(script.into())).execute(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// How many transactions it has ended so far, as the server counts them (a little behind).
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn ended_transactions(&self) -> Result<i64, TestkitError> {
        let failed = |source| TestkitError::Database { doing: "counting transactions".to_owned(), source };
        // Asked of another database, so that asking does not count.
        let mut connection = PgConnection::connect(&self.server_url).await.map_err(failed)?;
        let count: Option<i64> =
            sqlx::query_scalar("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1")
                .bind(&self.name)
                .fetch_optional(&mut connection)
                .await
                .map_err(failed)?;
        connection.close().await.map_err(failed)?;
        Ok(count.unwrap_or_default())
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if self.leftovers == Leftovers::GoWithTheServer {
            return;
        }
        let (url, sql) =
            (self.server_url.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        // A runtime cannot be entered twice on one thread, and the test's may be gone already.
        let worker = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(execute(&url, sql, "dropping the database of a test"))
        });
        // A server that was killed on purpose takes its databases along; nobody is left to tell.
        drop(worker.join());
    }
}

async fn execute(url: &str, sql: String, doing: &str) -> Result<(), TestkitError> {
    let failed = |source| TestkitError::Database { doing: doing.to_owned(), source };
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    connection.execute(AssertSqlSafe(sql)).await.map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// A proxy in front of the server of a Postgres URL, and the URL that leads to the same database by way of
/// it.
///
/// # Errors
///
/// [`TestkitError::Database`] for a URL that cannot be read or that does not lead over TCP.
pub async fn behind_proxy(url: &str) -> Result<(Proxy, String), TestkitError> {
    let failed = |source| TestkitError::Database { doing: "reading the server's URL".to_owned(), source };
    let options: PgConnectOptions = url.parse().map_err(failed)?;
    let host = options.get_host().to_owned();
    let mut addresses = tokio::net::lookup_host((host, options.get_port())).await?;
    let server = addresses.next().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    let proxy = Proxy::to(server).await?;
    let address = proxy.address();
    let options = options.host(&address.ip().to_string()).port(address.port());
    Ok((proxy, options.to_url_lossy().to_string()))
}

/// Waits until the server at `url` accepts connections; `log` gives the end of its log for the error.
pub(crate) async fn wait_until_ready(
    url: &str,
    limit_secs: u64,
    log: impl Fn() -> String,
) -> Result<(), TestkitError> {
    let limit = Duration::from_secs(limit_secs);
    let started = Instant::now();
    let invalid = |source| TestkitError::Database { doing: "reading the server's URL".to_owned(), source };
    // A pooler refuses settings that it does not know.
    let options: PgConnectOptions = url.parse().map_err(invalid)?;
    let options = options.extra_float_digits(None);
    loop {
        match PgConnection::connect_with(&options).await {
            Ok(connection) => {
                return connection.close().await.map_err(|source| TestkitError::Database {
                    doing: "closing the first connection".to_owned(),
                    source,
                });
            }
            Err(error) if started.elapsed() >= limit => {
                return Err(TestkitError::NotReady {
                    url: url.to_owned(),
                    waited_secs: limit_secs,
                    detail: format!("{error}{}", log()),
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}
