//! Where tests get a Citus cluster from: one that `KAGZI_TEST_CITUS_URL` names, or three servers started from the binaries on
//! this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

use crate::cluster::{ClusterOptions, PostgresCluster, find_binaries};
use crate::database::{Leftovers, TestDatabase};
use crate::{TestkitError, database};

/// Names the coordinator of a cluster on which tests may create databases, on all nodes by the same user.
pub const CITUS_URL_VARIABLE: &str = "KAGZI_TEST_CITUS_URL";

/// A coordinator and workers of one's own. They end with the handle or the process.
#[derive(Debug)]
pub struct CitusCluster {
    coordinator: PostgresCluster,
    workers: Vec<PostgresCluster>,
}

impl CitusCluster {
    /// Starts a coordinator and so many workers, and makes them known to each other.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if the extension is not installed, or the servers fail;
    /// [`TestkitError::NotReady`] if one does not answer; [`TestkitError::Database`] if Citus refuses.
    pub async fn start(workers: usize) -> Result<Self, TestkitError> {
        let coordinator = server().await?;
        let mut cluster = Self { coordinator, workers: Vec::with_capacity(workers) };
        for _ in 0..workers {
            cluster.workers.push(server().await?);
        }
        let urls: Vec<String> = cluster.workers.iter().map(PostgresCluster::url).collect();
        join(&cluster.coordinator.url(), &urls).await?;
        Ok(cluster)
    }

    /// A URL of the database `postgres` of the coordinator.
    pub fn url(&self) -> String {
        self.coordinator.url()
    }

    /// The workers, to be killed and started again.
    pub fn workers(&mut self) -> &mut [PostgresCluster] {
        &mut self.workers
    }

    /// The coordinator, to be killed and started again.
    pub const fn coordinator(&mut self) -> &mut PostgresCluster {
        &mut self.coordinator
    }

    /// Which of the workers, by its place among them, each of so many partitions of a distributed table is on.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`] if the table is not distributed by a `smallint`.
    pub async fn homes(&self, table: &str, partitions: u16) -> Result<Vec<usize>, TestkitError> {
        let failed =
            |source| TestkitError::Database { doing: "asking for the places of shards".to_owned(), source };
        let mut connection = PgConnection::connect(&self.url()).await.map_err(failed)?;
        let mut homes = Vec::with_capacity(partitions.into());
        for partition in 0..partitions {
            let port: i32 = sqlx::query_scalar(
                "SELECT nodeport::integer FROM pg_dist_shard_placement
                 WHERE shardid = get_shard_id_for_distribution_column($1::text::regclass, $2::smallint)",
            )
            .bind(table)
            .bind(i32::from(partition))
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
            let home = self.workers.iter().position(|worker| i32::from(worker.port()) == port);
            homes.push(home.ok_or(sqlx::Error::RowNotFound).map_err(failed)?);
        }
        connection.close().await.map_err(failed)?;
        Ok(homes)
    }
}

async fn server() -> Result<PostgresCluster, TestkitError> {
    let settings = [
        "shared_preload_libraries=citus",
        // Transactions over several nodes are prepared on each.
        "max_prepared_transactions=300",
        "citus.node_conninfo=sslmode=disable",
    ];
    let settings = settings.map(str::to_owned).to_vec();
    PostgresCluster::start(ClusterOptions { settings, ..ClusterOptions::default() }).await
}

/// Why no cluster can be started from the binaries on this machine, and what to do; nothing if one can.
pub fn why_no_citus() -> Option<String> {
    let binaries = match find_binaries() {
        Ok(binaries) => binaries,
        Err(error) => return Some(error.to_string()),
    };
    if extensions(&binaries).iter().any(|directory| directory.join("citus.control").is_file()) {
        return None;
    }
    Some(format!(
        "the Citus extension is not installed for the server binaries in {}. One of these helps: (1) install it (the \
         packages of Citus: https://docs.citusdata.com/en/stable/installation/multi_node.html; from source: \
         ./configure && make install with this pg_config); (2) set {CITUS_URL_VARIABLE} to the coordinator of a cluster on \
         which databases may be created",
        binaries.display()
    ))
}

/// Where servers look for extensions: as their `pg_config` says, or where Debian has them.
fn extensions(binaries: &Path) -> Vec<PathBuf> {
    let told = Command::new(binaries.join("pg_config")).arg("--sharedir").output().ok();
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let version = binaries.parent().and_then(Path::file_name);
    let debian = version.map(|version| Path::new("/usr/share/postgresql").join(version));
    told.into_iter().chain(debian).map(|share| share.join("extension")).collect()
}

/// A database of one's own on all nodes of a cluster. Dropping the handle drops it on all of them.
#[derive(Debug)]
pub struct CitusDatabase {
    coordinator: TestDatabase,
    _workers: Vec<TestDatabase>,
}

impl CitusDatabase {
    /// Makes it on the cluster whose coordinator `url` leads to.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn create(url: &str) -> Result<Self, TestkitError> {
        let name = database::fresh_name();
        let make = async |url: String| TestDatabase::named(&url, name.clone(), Leftovers::Dropped).await;
        let coordinator = make(url.to_owned()).await?;
        let mut workers = Vec::new();
        for url in workers_of(url).await? {
            workers.push(make(url).await?);
        }
        let urls: Vec<String> = workers.iter().map(TestDatabase::url).collect();
        join(&coordinator.url(), &urls).await?;
        Ok(Self { coordinator, _workers: workers })
    }

    /// The database on the coordinator.
    pub const fn database(&self) -> &TestDatabase {
        &self.coordinator
    }
}

fn options(url: &str) -> Result<PgConnectOptions, TestkitError> {
    let failed = |source| TestkitError::Database { doing: "reading the URL of a node".to_owned(), source };
    url.parse().map_err(failed)
}

/// URLs of the workers of a cluster, by the coordinator's user and database.
async fn workers_of(coordinator: &str) -> Result<Vec<String>, TestkitError> {
    let failed =
        |source| TestkitError::Database { doing: "asking for the nodes of the cluster".to_owned(), source };
    let options = options(coordinator)?;
    let mut connection = PgConnection::connect_with(&options).await.map_err(failed)?;
    let nodes =
        "SELECT nodename, nodeport FROM pg_dist_node WHERE isactive AND shouldhaveshards AND groupid > 0";
    let rows = connection.fetch_all(nodes).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    let url = |row: &sqlx::postgres::PgRow| {
        let (host, port): (String, i32) = (row.try_get("nodename")?, row.try_get("nodeport")?);
        let port = u16::try_from(port).unwrap_or_default();
        Ok::<_, sqlx::Error>(options.clone().host(&host).port(port).to_url_lossy().to_string())
    };
    rows.iter().map(url).collect::<Result<_, _>>().map_err(failed)
}

/// Makes databases on several servers one cluster.
async fn join(coordinator: &str, workers: &[String]) -> Result<(), TestkitError> {
    let failed =
        |source| TestkitError::Database { doing: "joining the nodes of a cluster".to_owned(), source };
    for url in workers {
        let mut worker = PgConnection::connect(url).await.map_err(failed)?;
        worker.execute("CREATE EXTENSION IF NOT EXISTS citus").await.map_err(failed)?;
        worker.close().await.map_err(failed)?;
    }
    let mut connection = PgConnection::connect(coordinator).await.map_err(failed)?;
    connection.execute("CREATE EXTENSION IF NOT EXISTS citus").await.map_err(failed)?;
    // Hosts and ports out of URLs that were read; a quote in a host could only break the statement.
    let call = |function: &str, url: &str| -> Result<String, TestkitError> {
        let options = options(url)?;
        let host = options.get_host().replace('\'', "");
        Ok(format!("SELECT {function}('{host}', {})", options.get_port()))
    };
    let first = [call("citus_set_coordinator_host", coordinator)];
    for sql in first.into_iter().chain(workers.iter().map(|url| call("citus_add_node", url))) {
        connection.execute(AssertSqlSafe(sql?)).await.map_err(failed)?;
    }
    connection.close().await.map_err(failed)
}
