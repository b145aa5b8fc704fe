//! A PgBouncer in front of the server of the tests.

use std::path::{Path, PathBuf};

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use crate::program::{Unprivileged, find_in_path, log_end};
use crate::watchdog::Watchdog;
use crate::{PostgresServer, TestDatabase, TestkitError, database, free_port};

/// Starts the pooler, waits until the owner's pipe closes, stops it and removes its directory. What was
/// started may be a `setpriv` or `runuser` in front of it, so it is found by its own pid file.
const SCRIPT: &str = r#"
directory=$1; shift
trap '' INT TERM HUP
"$@" >>"$directory/log" 2>&1 </dev/null &
started=$!
read -r word
kill -TERM "$(cat "$directory/pid" 2>/dev/null)" 2>/dev/null || kill -TERM "$started" 2>/dev/null
wait "$started" 2>/dev/null
rm -rf "$directory"
"#;

/// A PgBouncer that deals out a handful of server connections for each database by the transaction. It
/// ends with the handle or the process.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    _running: Watchdog,
    /// Removed by the watchdog; kept for its name.
    _directory: TempDir,
}

impl PgBouncer {
    /// Starts one in front of `server`, with `server_connections` for each database.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if the program is not on this machine;
    /// [`TestkitError::NotReady`] if it does not answer within 30 s.
    pub async fn start(server: &PostgresServer, server_connections: u32) -> Result<Self, TestkitError> {
        let program = find_program()?;
        let directory = tempfile::Builder::new().prefix("kagzi-pgbouncer-").tempdir()?;
        let user = Unprivileged::find()?;
        let port = free_port()?;
        let ini = directory.path().join("pgbouncer.ini");
        std::fs::write(&ini, configuration(server, port, server_connections, directory.path())?)?;
        user.own(&ini)?;
        user.own(directory.path())?;
        let mut arguments = vec![directory.path().as_os_str().to_owned()];
        arguments.extend(user.words());
        arguments.extend([program.into_os_string(), ini.into_os_string()]);
        let running = Watchdog::start(SCRIPT, &arguments)?;
        let url = format!("postgres://kagzi@127.0.0.1:{port}/postgres");
        database::wait_until_ready(&url, 30, || log_end(directory.path())).await?;
        Ok(Self { port, _running: running, _directory: directory })
    }

    /// The URL of a database of the server, by way of the pooler.
    pub fn url(&self, database: &TestDatabase) -> String {
        format!("postgres://kagzi@127.0.0.1:{}/{}", self.port, database.name())
    }
}

fn find_program() -> Result<PathBuf, TestkitError> {
    // Debian puts it where the PATH of ordinary users does not lead.
    let debian = PathBuf::from("/usr/sbin/pgbouncer");
    find_in_path("pgbouncer").or_else(|| debian.is_file().then_some(debian)).ok_or_else(|| {
        TestkitError::Program {
            program: "pgbouncer".to_owned(),
            detail: "found neither in PATH nor in /usr/sbin; install it (Debian: apt-get install pgbouncer)"
                .to_owned(),
        }
    })
}

fn configuration(
    server: &PostgresServer,
    port: u16,
    server_connections: u32,
    directory: &Path,
) -> Result<String, TestkitError> {
    let failed = |source| TestkitError::Database { doing: "reading the server's URL".to_owned(), source };
    let to: PgConnectOptions = server.url().parse().map_err(failed)?;
    let host =
        to.get_socket().map_or_else(|| to.get_host().to_owned(), |socket| socket.display().to_string());
    // A password with characters that a URL must escape is more than a test server needs.
    let password =
        to.to_url_lossy().password().map(|password| format!(" password={password}")).unwrap_or_default();
    Ok(format!(
        "[databases]\n* = host={host} port={} user={}{password}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = any\npool_mode = transaction\ndefault_pool_size = {server_connections}\n\
         max_client_conn = 1000\nlog_connections = 0\nlog_disconnections = 0\npidfile = {}\n",
        to.get_port(),
        to.get_username(),
        directory.join("pid").display()
    ))
}
