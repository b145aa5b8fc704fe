//! A Postgres cluster started from the server binaries on this machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program::{Unprivileged, find_in_path, log_end, run};
use crate::watchdog::Watchdog;
use crate::{TestkitError, database, free_port};

/// Starts the server, waits until the owner's pipe closes, stops the server, and removes the
/// directory unless told to keep it. The postmaster's pid is read from its own file, since what was
/// started may be a `runuser` in front of it.
const SCRIPT: &str = r#"
directory=$1; shift
trap '' INT TERM HUP
"$@" >>"$directory/log" 2>&1 </dev/null &
server=$!
read -r word
postmaster=$(head -n 1 "$directory/data/postmaster.pid" 2>/dev/null)
case "$word" in
    keep) kill -INT "$postmaster" 2>/dev/null || kill -TERM "$server" 2>/dev/null ;;
    *) kill -QUIT "$postmaster" 2>/dev/null || kill -TERM "$server" 2>/dev/null ;;
esac
wait "$server" 2>/dev/null
[ "$word" = keep ] || rm -rf "$directory"
"#;

/// How long a killed process may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many clients may be connected. 300 by default.
    pub max_connections: u32,
    /// Further settings, as `name=value`.
    pub settings: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { max_connections: 300, settings: Vec::new() }
    }
}

/// A cluster of one's own: durable settings on, a socket in its directory and a port on the loopback
/// interface, which stay the same over restarts. It ends with the handle or the process.
#[derive(Debug)]
pub struct PostgresCluster {
    binaries: PathBuf,
    directory: TempDir,
    port: u16,
    user: Unprivileged,
    options: ClusterOptions,
    running: Option<Watchdog>,
}

impl PostgresCluster {
    /// Makes a new cluster and starts it.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if there are no server binaries, or they fail;
    /// [`TestkitError::NotReady`] if the server does not answer within 30 s.
    pub async fn start(options: ClusterOptions) -> Result<Self, TestkitError> {
        let mut cluster = Self::empty(options, free_port()?)?;
        cluster.initdb()?;
        cluster.restart().await?;
        Ok(cluster)
    }

    /// A directory without data in it.
    pub(crate) fn empty(options: ClusterOptions, port: u16) -> Result<Self, TestkitError> {
        let binaries = find_binaries()?;
        let directory = tempfile::Builder::new().prefix("kagzi-postgres-").tempdir()?;
        let user = Unprivileged::find()?;
        user.own(directory.path())?;
        Ok(Self { binaries, directory, port, user, options, running: None })
    }

    /// The words to put in front of a program so that it runs as the server does: `env` at least.
    pub(crate) fn as_user(&self) -> Vec<OsString> {
        let words = self.user.words();
        if words.is_empty() { vec!["env".into()] } else { words }
    }

    /// A URL of the database `postgres`, over TCP.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The directory of the server's Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// The port, the same over restarts.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's programs are.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// Starts the server on its data again, after [`stop`](Self::stop) or [`kill`](Self::kill); a
    /// running one is stopped first.
    ///
    /// # Errors
    ///
    /// [`TestkitError::NotReady`].
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.stop()?;
        let mut arguments = vec![self.directory.path().as_os_str().to_owned()];
        arguments.extend(self.user.words());
        arguments.push(self.binaries.join("postgres").into());
        arguments.push("-D".into());
        arguments.push(self.data().into());
        for setting in self.settings() {
            arguments.extend(["-c".into(), setting.into()]);
        }
        self.running = Some(Watchdog::start(SCRIPT, &arguments)?);
        database::wait_until_ready(&self.url(), 30, || self.log_end()).await
    }

    /// Stops the server in order; its data stay.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`].
    pub fn stop(&mut self) -> Result<(), TestkitError> {
        self.running.take().map_or(Ok(()), |watchdog| watchdog.finish("keep"))
    }

    /// Kills the server and all its backends with SIGKILL, as a crash of the machine would; the data
    /// stay as they are. All of them are gone when this returns, so that the server can be started
    /// again: one that still lived would hold the shared memory, and a new postmaster refuses it.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if it does not run, [`TestkitError::NotReady`] if it does not die.
    pub fn kill(&mut self) -> Result<(), TestkitError> {
        let all = self.signal_all("-KILL")?;
        let started = Instant::now();
        while let Some(alive) = all.iter().find(|pid| is_alive(pid)) {
            if started.elapsed() > DEATH_LIMIT {
                return Err(TestkitError::NotReady {
                    url: self.url(),
                    waited_secs: DEATH_LIMIT.as_secs(),
                    detail: format!("process {alive} does not die"),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.stop()
    }

    /// Stops the server and all its backends with SIGSTOP, as a machine does that hangs: connections stay
    /// and nobody answers.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if it does not run.
    pub fn pause(&self) -> Result<(), TestkitError> {
        self.signal_all("-STOP").map(drop)
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if it does not run.
    pub fn go_on(&self) -> Result<(), TestkitError> {
        self.signal_all("-CONT").map(drop)
    }

    /// Sends the postmaster and its backends a signal; gives their pids.
    fn signal_all(&self, signal: &str) -> Result<Vec<String>, TestkitError> {
        let postmaster = self.postmaster_pid()?;
        // Stopped first, so that it starts no backend between the look and the signal.
        run(Command::new("kill").arg("-STOP").arg(&postmaster))?;
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
        let mut all: Vec<String> = children.split_whitespace().map(str::to_owned).collect();
        all.push(postmaster);
        for pid in &all {
            // A backend may have ended by itself since the look.
            run(Command::new("kill").arg(signal).arg(pid)).ok();
        }
        Ok(all)
    }

    /// The pid of the running postmaster.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if it does not run.
    pub fn postmaster_pid(&self) -> Result<String, TestkitError> {
        let file = self.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).map_err(|error| TestkitError::Program {
            program: "postgres".to_owned(),
            detail: format!("it does not run: {}: {error}", file.display()),
        })?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn initdb(&self) -> Result<(), TestkitError> {
        let mut words = self.user.words();
        words.push(self.binaries.join("initdb").into());
        let (program, arguments) = words.split_first().ok_or_else(|| TestkitError::Program {
            program: "initdb".to_owned(),
            detail: "no program".to_owned(),
        })?;
        run(Command::new(program)
            .args(arguments)
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("-D")
            .arg(self.data()))?;
        Ok(())
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            "fsync=on".to_owned(),
            "synchronous_commit=on".to_owned(),
            "full_page_writes=on".to_owned(),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!("unix_socket_directories={}", self.directory.path().display()),
            format!("max_connections={}", self.options.max_connections),
        ];
        settings.extend(self.options.settings.iter().cloned());
        settings
    }

    fn log_end(&self) -> String {
        log_end(self.directory.path())
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        // The watchdog stops the server and removes the directory; the handle of the directory then
        // finds nothing to do.
        drop(self.running.take());
    }
}

/// Whether a process still has its memory: a zombie that nobody has waited for has none.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// The directory with `initdb` and `postgres`: from PATH, else the newest under `/usr/lib/postgresql`,
/// where Debian puts them.
pub(crate) fn find_binaries() -> Result<PathBuf, TestkitError> {
    let complete =
        |directory: &Path| ["initdb", "postgres"].iter().all(|program| directory.join(program).is_file());
    let from_path = find_in_path("initdb")
        .and_then(|file| file.canonicalize().ok())
        .and_then(|file| file.parent().map(Path::to_owned))
        .filter(|directory| complete(directory));
    if let Some(directory) = from_path {
        return Ok(directory);
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, directory)| complete(directory))
        .collect();
    versions.sort();
    versions.pop().map(|(_, directory)| directory).ok_or_else(|| TestkitError::Program {
        program: "initdb".to_owned(),
        detail: "found neither in PATH nor under /usr/lib/postgresql/*/bin".to_owned(),
    })
}
