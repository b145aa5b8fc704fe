//! The processes of kagzi that are watched: the binary built beside this program.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use kagzi_benches::backends::{Failed, Place};

/// Where the binary is.
pub fn kagzi() -> Result<PathBuf, Failed> {
    let path = std::env::current_exe()?.with_file_name("kagzi");
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is missing; build it: cargo build --release --bin kagzi", path.display()).into())
}

/// A child that ends with its handle.
#[derive(Debug)]
pub struct Process {
    child: Child,
    address: String,
    // Held open: the process ends when it closes.
    _stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; either way nothing of it is left.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Process {
    /// A `kagzi serve` over the place's store, ready.
    pub fn server(place: &Place) -> Result<Self, Failed> {
        Self::server_with(place, &[])
    }

    /// The same with more settings, by the names of their variables.
    pub fn server_with(place: &Place, settings: &[(&str, String)]) -> Result<Self, Failed> {
        let mut command = Command::new(kagzi()?);
        command.arg("serve").current_dir(place.directory());
        command
            .env("KAGZI_STORE", place.url())
            .env("KAGZI_LISTEN", "127.0.0.1:0")
            .env("KAGZI_LOG_LEVEL", "warn")
            .envs(settings.iter().map(|(name, value)| (name, value)));
        Self::spawn(command, "listening on ")
    }

    /// A worker of `kagzi bench` on this server, which finds no work in its namespace.
    pub fn idle_worker(server: &Self) -> Result<Self, Failed> {
        Self::part(server, &["--role", "worker"])
    }

    /// A worker of `kagzi bench` in a namespace of this server.
    pub fn worker(server: &Self, namespace: &str, concurrency: u32) -> Result<Self, Failed> {
        let concurrency = concurrency.to_string();
        Self::part(server, &["--role", "worker", "--namespace", namespace, "--concurrency", &concurrency])
    }

    /// Callers of `kagzi bench` in a namespace of this server, each with one workflow after the other under way.
    pub fn callers(server: &Self, namespace: &str, callers: u32) -> Result<Self, Failed> {
        let callers = callers.to_string();
        Self::part(server, &["--role", "callers", "--namespace", namespace, "--concurrency", &callers])
    }

    /// Readers of `kagzi bench` in a namespace of this server, and a worker that waits in many empty queues.
    pub fn readers(server: &Self, namespace: &str, readers: u32) -> Result<Self, Failed> {
        let readers = readers.to_string();
        Self::part(server, &["--role", "readers", "--namespace", namespace, "--concurrency", &readers])
    }

    fn part(server: &Self, arguments: &[&str]) -> Result<Self, Failed> {
        let mut command = Command::new(kagzi()?);
        command.args(["bench-part", "--server", &server.url()]).args(arguments);
        Self::spawn(command, "ready ")
    }

    fn spawn(mut command: Command, prefix: &str) -> Result<Self, Failed> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("a child without standard output")?;
        let stdin = child.stdin.take();
        let mut process = Self { child, address: String::new(), _stdin: stdin };
        // It says one line and no more, so that its pipe never fills.
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.strip_prefix(prefix).ok_or_else(|| format!("{command:?} said {line:?}"))?;
        address.trim().clone_into(&mut process.address);
        Ok(process)
    }

    /// An error if it has ended by itself.
    pub fn still_there(&mut self) -> Result<(), Failed> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("a part of the bench ended with {status}").into()),
        }
    }

    /// Where a server listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The processor time that it has used so far.
    pub fn processor_time(&self) -> Result<Duration, Failed> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may hold blanks; the fields after it do not.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| -> Result<u64, Failed> {
            Ok(fields.get(index).ok_or("an unknown form of /proc/PID/stat")?.parse()?)
        };
        // User and system time, in the hundredths of a second that Linux shows everywhere.
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
    }

    /// Its resident memory.
    pub fn resident_mib(&self) -> Result<f64, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}
