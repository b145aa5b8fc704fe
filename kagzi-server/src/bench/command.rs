//! What a bench does, from the warm-up to the figures.

use std::path::PathBuf;

use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kagzi_sdk::Client;

use super::load::{self, Load, Measured};
use super::processor::Watch;
use super::report::{Alone, Report, rate};
use super::scene::{Mode, Plan, Scene};
use crate::cli::{Audience, CliError, Exit, Output, ServerAccess, complain, stop_signal};

/// How many workflows go ahead of the first round, at least, so that connections, caches and statements
/// are warm.
const WARM_UP: u32 = 200;

/// `kagzi bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The store, such as `postgres://user@host/database`. The schema is made if it is not there; runs of
    /// others are left alone, and the bench's own are removed at the end [default: a fresh SQLite file in
    /// the temporary directory].
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// How to reach it: through a server and worker processes, or embedded in this process.
    #[arg(long, value_enum, default_value_t = Mode::Grpc)]
    mode: Mode,
    /// A TOML file as `kagzi serve --config` takes it, to see what TLS, an access file or a limit costs. The
    /// address, the store and the namespace are the bench's; what callers show is told as to any command
    /// (`--tls-ca`, `--token-file`).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many workflows each round finishes.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    workflows: u32,
    /// How many workflows are under way at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// How many rounds; the figure is their median.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// How many workflows then run one at a time, for the latency of an idle system; 0 leaves that out.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    alone: u32,
    /// The size of each input and each step's output, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    payload_bytes: u32,
    /// How many workers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    workers: u32,
    /// How many runs a worker executes at a time.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
}

/// Runs the bench. Ctrl-C ends it at any moment, with its processes and its runs.
///
/// # Errors
///
/// [`CliError`] if a part could not be started or a call failed.
pub async fn bench(args: BenchArgs, access: ServerAccess, output: Output) -> Result<Exit, CliError> {
    if args.mode == Mode::Embedded && args.config.is_some() {
        return Err(CliError::usage("--config is for --mode grpc", "an embedded bench has no server"));
    }
    let plan = Plan {
        config: args.config.clone(),
        access,
        store: args.store.clone(),
        mode: args.mode,
        workers: args.workers,
        concurrency: args.concurrency,
    };
    let mut stop = std::pin::pin!(stop_signal());
    let mut scene = tokio::select! {
        scene = Scene::set_up(&plan) => scene?,
        signal = &mut stop => return Ok(signal.into()),
    };
    output.note(format_args!(
        "{} ({}), {} rounds in namespace {}",
        scene.url(),
        args.mode.as_str(),
        args.rounds,
        scene.namespace()
    ));
    let bar = progress(&args, output.audience());
    let bench = Bench { client: scene.client().clone(), watch: scene.watch(), bar: bar.clone(), args };
    let ended = tokio::select! {
        measured = bench.measure() => measured.map(Ok),
        why = scene.broken() => Err(why),
        signal = &mut stop => Ok(Err(signal.into())),
    };
    bar.finish_and_clear();
    let (kind, url, namespace) = (scene.kind(), scene.url(), scene.namespace().to_string());
    let torn_down = scene.tear_down().await;
    if let (Err(_), Err(why)) = (&ended, &torn_down) {
        complain(why);
    }
    let (report, latency) = match ended? {
        Ok(measured) => measured,
        Err(stopped) => return torn_down.map(|()| stopped),
    };
    torn_down?;
    let report = Report { store: kind, url, namespace, ..report };
    output.show(&report, |report| report.text(&latency))?;
    Ok(Exit::Ok)
}

fn progress(args: &BenchArgs, audience: Audience) -> ProgressBar {
    let target = match audience {
        Audience::People => ProgressDrawTarget::stderr(),
        Audience::Programs => ProgressDrawTarget::hidden(),
    };
    let warm_up = u64::from(warm_up(args).workflows);
    let all = warm_up + u64::from(args.workflows) * u64::from(args.rounds) + u64::from(args.alone);
    let bar = ProgressBar::with_draw_target(Some(all), target);
    let style = ProgressStyle::with_template(
        "[{bar:40}] {human_pos}/{human_len} workflows  {per_sec}  {elapsed}  {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

fn load(args: &BenchArgs) -> Load {
    Load { workflows: args.workflows, in_flight: args.in_flight, payload_bytes: args.payload_bytes as usize }
}

fn warm_up(args: &BenchArgs) -> Load {
    Load { workflows: WARM_UP.max(args.in_flight), ..load(args) }
}

/// A bench under way.
struct Bench {
    args: BenchArgs,
    client: Client,
    watch: Watch,
    bar: ProgressBar,
}

impl Bench {
    async fn measure(&self) -> Result<(Report, Histogram<u64>), CliError> {
        self.put_on("warm-up", warm_up(&self.args)).await?;
        let load = load(&self.args);
        let before = self.watch.times();
        let first = self.put_on("round 1", load).await?;
        let mut rounds = vec![rate(load.workflows, first.elapsed)];
        let mut all = first;
        for round in 2..=self.args.rounds {
            let measured = self.put_on(&format!("round {round}"), load).await?;
            rounds.push(rate(load.workflows, measured.elapsed));
            all.add(&measured)?;
        }
        let after = self.watch.times();
        let finished = f64::from(load.workflows) * f64::from(self.args.rounds);
        let mut report = Report::of_rounds(load, self.args.mode.as_str(), rounds, &all.result);
        report.processor_ms_per_workflow = before.zip(after).map(|(before, after)| {
            let used = before.into_iter().zip(after).map(|((part, before), (_, after))| {
                (part, after.saturating_sub(before).as_secs_f64() * 1000.0 / finished)
            });
            used.collect()
        });
        if self.args.alone > 0 {
            let alone = Load { workflows: self.args.alone, in_flight: 1, ..load };
            report.alone = Some(Alone::from_measured(&self.put_on("one at a time", alone).await?));
        }
        Ok((report, all.result))
    }

    async fn put_on(&self, phase: &str, load: Load) -> Result<Measured, CliError> {
        self.bar.set_message(phase.to_owned());
        load::put_on(&self.client, load, &self.bar).await
    }
}
