//! The processes of the load over gRPC: a server, and workers.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kagzi_benches::backends::{Failed, Place};
use kagzi_sdk::{Client, Worker};
use tokio::task::JoinSet;

use crate::measure::Idle;
use crate::work;

/// Set in the environment of a worker process: how many workers it runs.
pub const WORKER: &str = "KAGZI_LOAD_WORKER";
const SERVER: &str = "KAGZI_LOAD_SERVER";

/// A child that ends with its handle.
#[derive(Debug)]
pub struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may be gone already; either way nothing of it is left.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A `kagzi serve` process.
#[derive(Debug)]
pub struct Server {
    process: Guarded,
    address: String,
}

impl Server {
    /// Starts the `kagzi` that was built beside this program.
    pub fn start(place: &Place) -> Result<Self, Failed> {
        let mut command = Command::new(beside("kagzi")?);
        command.args(["serve", "--store", place.url(), "--listen", "127.0.0.1:0"]);
        command.current_dir(place.directory()).env("KAGZI_LOG_LEVEL", "warn");
        let (process, address) = spawn(&mut command, "listening on ")?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Watches it for a while.
    pub async fn watch_idle(&self, place: &Place, seconds: u64) -> Result<Idle, Failed> {
        let pid = self.process.0.id();
        // Let what the load left behind settle: an idle Postgres session tells what it did 10 s later.
        tokio::time::sleep(Duration::from_secs(12)).await;
        let (cpu, transactions, began) =
            (cpu_seconds(pid)?, ended_transactions(place).await?, Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
        let elapsed = began.elapsed().as_secs_f64();
        let after = ended_transactions(place).await?;
        Ok(Idle {
            cpu_percent: (cpu_seconds(pid)? - cpu) / elapsed * 100.0,
            transactions: transactions.zip(after).map(|(before, after)| (after - before) / elapsed),
            resident_mib: resident_mib(pid)?,
        })
    }
}

fn beside(program: &str) -> Result<PathBuf, Failed> {
    let path = std::env::current_exe()?.with_file_name(program);
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is missing; build it: cargo build --release --bin {program}", path.display()).into())
}

/// Starts a child and reads its lines up to the one that begins with `prefix`.
fn spawn(command: &mut Command, prefix: &str) -> Result<(Guarded, String), Failed> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let stdout: ChildStdout = child.stdout.take().ok_or("a child without standard output")?;
    let guarded = Guarded(child);
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next().transpose()? {
        if let Some(rest) = line.strip_prefix(prefix) {
            let rest = rest.trim().to_owned();
            // Whatever else it says is read and dropped, so that its pipe never fills.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok((guarded, rest));
        }
    }
    Err(format!("{command:?} ended without a line {prefix:?}").into())
}

/// Starts a process with this many workers.
pub fn start_worker(server_url: &str, workers: u32) -> Result<Guarded, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(WORKER, workers.to_string()).env(SERVER, server_url);
    spawn(&mut command, "ready").map(|(guarded, _)| guarded)
}

/// The worker process: works until it is killed.
pub async fn work() -> Result<(), Failed> {
    let workers: u32 = std::env::var(WORKER)?.parse()?;
    let client = Client::connect(std::env::var(SERVER)?).await?;
    let mut running = JoinSet::new();
    for _ in 0..workers {
        running.spawn(work::register(Worker::builder(client.clone())).build()?.run());
    }
    println!("ready");
    while let Some(worker) = running.join_next().await {
        worker??;
    }
    Ok(())
}

fn cpu_seconds(pid: u32) -> Result<f64, Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold blanks; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64, Failed> {
        Ok(fields.get(index).ok_or("an unknown form of /proc/PID/stat")?.parse()?)
    };
    // User and system time, in the hundredths of a second that Linux shows everywhere.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn resident_mib(pid: u32) -> Result<f64, Failed> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// Transactions that the Postgres database of the load has ended so far.
async fn ended_transactions(place: &Place) -> Result<Option<f64>, Failed> {
    let Some(database) = place.database() else { return Ok(None) };
    let count = database.ended_transactions().await?;
    Ok(Some(f64::from(i32::try_from(count)?)))
}
