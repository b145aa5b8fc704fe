//! The command line: what can be typed, and which module does it.

mod access;
mod act;
mod args;
mod backup;
mod conformance;
mod connection;
mod doctor;
mod error;
mod host;
mod migrate;
mod numbers;
mod output;
mod partitions;
mod queue;
mod read;
mod requeue;
mod start;
mod store;
mod token;
mod utf8;
mod variables;
mod view;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use kagzi_core::Namespace;

use crate::bench::{self, BenchArgs, PartArgs};
use crate::demo::{self, DemoArgs, WorkerArgs};
use access::{DEFAULT_SERVER, shown_password};
use connection::Connection;

pub use access::ServerAccess;
pub use args::duration;
pub use error::{CliError, Exit};
pub use host::{bind, server_failed, sqlite_url, stop_signal};
pub use output::{Audience, Output, complain, one_line, pairs, print};

/// Whose runs are meant unless told otherwise.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Durable workflows: async functions made of steps that survive crashes.
#[derive(Debug, Parser)]
#[command(
    name = "kagzi",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = error::AFTER_HELP
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    #[command(flatten)]
    access: ServerAccess,
    /// Whose runs: the tenant.
    #[arg(long, global = true, env = "KAGZI_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: Namespace,
    /// Answer with one JSON value on the standard output, with stable field names and RFC 3339 times.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server.
    ///
    /// It listens until Ctrl-C or SIGTERM, then drains. A flag comes before its variable, a variable
    /// before the file, the file before the default. Durations are numbers with units (us, ms, s, m, h,
    /// d), such as 250ms or 1h30m, at most 100 years; sizes are in bytes.
    Serve(Box<kagzi_server::ServeArgs>),
    /// Run a server for development on a SQLite file, with nothing to set up.
    Dev(host::DevArgs),
    /// Start a run.
    Start(Box<start::StartArgs>),
    /// Show one run.
    Get(read::GetArgs),
    /// List runs, the youngest first.
    List(read::ListArgs),
    /// Show the history of a run: every attempt of every step.
    Steps(read::StepsArgs),
    /// Cancel a run, whoever is working on it.
    Cancel(act::CancelArgs),
    /// Put dead letters back to work; what they have completed stays completed.
    Requeue(requeue::RequeueArgs),
    /// List the runs that were given up, with the reason.
    DeadLetters(read::DeadLettersArgs),
    /// Show how full the queues are, and which are paused.
    Queues,
    /// Pause a queue, so that workers take nothing from it, or resume it.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Back up a directory durably, crash on purpose, and prove that nothing was lost or done twice.
    Demo(DemoArgs),
    /// The worker of a demo: a process that the demo can kill.
    #[command(hide = true)]
    DemoWorker(WorkerArgs),
    /// Measure how many workflows a second a store carries on this machine.
    Bench(BenchArgs),
    /// A part of a bench: a server or a worker in a process of its own.
    #[command(hide = true)]
    BenchPart(PartArgs),
    /// Judge a store: run the conformance suite against a live database, without touching your data.
    Conformance(conformance::ConformanceArgs),
    /// Examine a store: can it be reached, is it sound, durable and roomy, and what to do if not.
    ///
    /// It changes nothing. On SQLite it reads the whole file. Exit code 0 if nothing has failed, else 1.
    Doctor(store::StoreArgs),
    /// Bring the schema of a store up to date, or say what that would do.
    Migrate(migrate::MigrateArgs),
    /// Move a Postgres store that nobody uses into a new schema with another number of partitions, such as on a cluster.
    ///
    /// Every server over the old store must be stopped first. The old schema keeps its rows and is not opened again; the
    /// new one is opened once counts and checksums of all tables agree. Interrupted, the same command goes on.
    MigratePartitions(partitions::PartitionsArgs),
    /// Copy a SQLite store to a new file, checked and flushed, while servers go on working on it.
    Backup(backup::BackupArgs),
    /// Make a SQLite store from a backup; stop servers and workers first.
    ///
    /// What was acknowledged after the backup is gone, and steps that ran since will run again. Whoever
    /// still holds a lease from before is refused.
    Restore(backup::RestoreArgs),
    /// Make tokens, which servers know their callers by.
    Token(token::TokenArgs),
    /// Write a completion script for a shell to the standard output.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Does what the command line asks for, and answers how the process ends.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            let args: Vec<OsString> = std::env::args_os().collect();
            utf8::refusal(&Cli::command(), &args).unwrap_or(error).exit()
        }
        Err(error) => numbers::refusal(&mut Cli::command(), &error).unwrap_or(error).exit(),
    };
    let done = check_arguments(&cli.command)
        .and_then(|()| check_variables(&cli.command))
        .and_then(|()| runtime(&cli.command))
        .and_then(|runtime| runtime.block_on(dispatch(cli)));
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&error);
            error.exit.into()
        }
    }
}

/// A server that runs for months refuses a password that everybody can read meanwhile; a command that ends
/// soon says what it thinks of it.
fn check_arguments(command: &Command) -> Result<(), CliError> {
    let Some(flag) = shown_password(std::env::args_os()) else { return Ok(()) };
    let why = "a password among the arguments can be read by whoever lists the processes of this machine";
    let field = if flag.is_empty() { String::new() } else { format!("{}: ", flag.replace('-', "_")) };
    let remedy = match flag.as_str() {
        "jwt-keys" => "the URL in KAGZI_JWT_KEYS or the file of --config",
        "otlp-endpoint" => "the URL without it, and credentials in OTEL_EXPORTER_OTLP_HEADERS",
        "server" => "the URL without it, and a token in KAGZI_TOKEN or --token-file",
        _ => {
            "the URL without it, and the password in ~/.pgpass or PGPASSWORD; or the URL in KAGZI_STORE or the file of --config"
        }
    };
    if matches!(command, Command::Serve(_)) {
        return Err(CliError::usage("could not serve", format!("{field}{why}")).remedy(remedy));
    }
    complain(format_args!("note: {field}{why}; better: {remedy}"));
    Ok(())
}

/// A server that runs for months does not start with a setting that nobody reads; see [`variables`].
fn check_variables(command: &Command) -> Result<(), CliError> {
    if !matches!(command, Command::Serve(_)) {
        return Ok(());
    }
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in variables::check(&Cli::command(), set)? {
        complain(format_args!(
            "note: nobody reads the variable {name}; `kagzi serve --help` lists those that are read"
        ));
    }
    Ok(())
}

/// In the environment: how many threads a runtime has. Tokio's own.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// Those who work use every core, and a server half of them, since its store has as much to do as it has. A single
/// question needs no threads, and a part of a bench says what it needs.
fn runtime(command: &Command) -> Result<tokio::runtime::Runtime, CliError> {
    use Command::{Bench, BenchPart, Conformance, Demo, DemoWorker, Dev, Serve};
    let mut builder = match command {
        Serve(_) | Dev(_) => server_threads(),
        BenchPart(part) if part.serves() => server_threads(),
        Demo(_) | DemoWorker(_) | Bench(_) | Conformance(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build().map_err(|why| CliError::failed("could not start the runtime", why))
}

fn server_threads() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // What cannot be told is left to the runtime, as is what somebody has set.
    if let (Ok(cores), None) = (std::thread::available_parallelism(), std::env::var_os(THREADS)) {
        builder.worker_threads(cores.get().div_ceil(2));
    }
    builder
}

async fn dispatch(cli: Cli) -> Result<Exit, CliError> {
    let Global { access, namespace, json } = cli.global;
    let output = Output::new(if json { Audience::Programs } else { Audience::People });
    let open = || Connection::open(&access, &namespace);
    match cli.command {
        Command::Serve(args) => Box::pin(host::serve(*args, output)).await?,
        Command::Dev(args) => Box::pin(host::dev(args, namespace, output)).await?,
        Command::Start(args) => return start::start(*args, &open().await?, output).await,
        Command::Get(args) => read::get(&args, &open().await?, output).await?,
        Command::List(args) => read::list(args, &open().await?, output).await?,
        Command::Steps(args) => read::steps(&args, &open().await?, output).await?,
        Command::Cancel(args) => act::cancel(args, &open().await?, output).await?,
        Command::Requeue(args) => requeue::requeue(args, &open().await?, output).await?,
        Command::DeadLetters(args) => read::dead_letters(args, &open().await?, output).await?,
        Command::Queues => read::queues(&open().await?, output).await?,
        Command::Queue(command) => return queue::change(command, &open().await?, output).await,
        Command::Demo(args) => return demo::demo(args, output).await,
        Command::DemoWorker(args) => demo::work(args, &access.server, &namespace).await?,
        Command::Bench(args) => return bench::bench(args, access, output).await,
        Command::BenchPart(args) => bench::play(args, &access, namespace).await?,
        Command::Conformance(args) => return conformance::conformance(args, output).await,
        Command::Doctor(args) => return doctor::doctor(args, output).await,
        Command::Migrate(args) => migrate::migrate(args, output).await?,
        Command::MigratePartitions(args) => partitions::migrate_partitions(args, output).await?,
        Command::Backup(args) => backup::back_up(args, output).await?,
        Command::Restore(args) => backup::restore(args, output).await?,
        Command::Token(args) => token::token(args, output)?,
        Command::Completions { shell } => completions(shell)?,
    }
    Ok(Exit::Ok)
}

/// The command line without what only this program types: completions would offer it, hidden or not.
fn for_people() -> clap::Command {
    let all = Cli::command();
    let shown: Vec<clap::Command> =
        all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let bare = clap::Command::new("kagzi").version(env!("CARGO_PKG_VERSION"));
    Global::augment_args(bare).subcommands(shown)
}

fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut for_people(), "kagzi", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_people_type_is_understood() {
        let run = "019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11";
        for line in [
            "kagzi serve",
            "kagzi dev",
            "kagzi start greet --input {} --queue q --key k --priority -3 --delay 1h30m --label a=b --wait",
            "kagzi start greet --at 2026-11-24T10:31:20Z --run-timeout 5m --max-attempts 3",
            &format!("kagzi get {run} --show-payloads --json"),
            "kagzi --json list --state failed --type greet --label a=b --since 2026-11-24T10:31:20Z --limit 5",
            &format!("kagzi steps {run} --server http://localhost:1 --namespace n"),
            &format!("kagzi cancel {run} --reason because"),
            &format!("kagzi requeue {run} {run}"),
            "kagzi requeue --all --queue q --type t --label a=b --reason poison --dry-run",
            "kagzi dead-letters --limit 3",
            "kagzi queues",
            "kagzi queue pause mail --reason deploy --wait --timeout 5m",
            "kagzi queue resume mail --json",
            "kagzi demo --keep --json",
            "kagzi backup --store sqlite://kagzi.db --to kagzi-monday.db",
            "kagzi restore --from kagzi-monday.db --store sqlite://kagzi.db --force",
            "kagzi doctor --store sqlite://kagzi.db --json",
            "kagzi migrate --store postgres://localhost/x --dry-run",
            "kagzi migrate-partitions --store postgres://h/old --to postgres://h/new?partitions=32 --json",
            "kagzi demo /some/dir --store postgres://localhost/x --output /out",
            "kagzi conformance --store memory: --group claim --except races lease --json",
            "kagzi conformance --store postgres://u@h/d --markdown",
            "kagzi token new --to /run/secrets/kagzi",
            "kagzi token new --principal billing-worker --json",
            "kagzi list --server https://h:1 --tls-ca a.pem --client-cert c.pem --client-key k.pem",
            "kagzi list --token-file t --plaintext-token",
            "kagzi serve --insecure --access-file a --tls-cert c --tls-key k --tls-client-ca a",
            "kagzi serve --insecure=false",
            "kagzi completions bash",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_exit_code_for_usage() {
        for line in [
            "kagzi",
            "kagzi frobnicate",
            "kagzi get",
            "kagzi get 1234",
            "kagzi get 6f0d5d0e-5d7e-4b53-8d3e-0123456789ab",
            "kagzi start",
            "kagzi start greet --priority 10",
            "kagzi start greet --delay 5",
            "kagzi start greet --delay 5s --at 2026-11-24T10:31:20Z",
            "kagzi start greet --timeout 5s",
            "kagzi list --state done",
            "kagzi list --limit 0",
            "kagzi list --label novalue",
            "kagzi requeue",
            "kagzi requeue --dry-run",
            "kagzi requeue --queue q",
            "kagzi requeue --all 019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11",
            "kagzi requeue --all --reason tired",
            "kagzi conformance",
            "kagzi conformance --store memory: --markdown --json",
            "kagzi queues --namespace bad\u{1}name",
            "kagzi queue",
            "kagzi queue pause",
            "kagzi queue pause mail --timeout 5m",
            "kagzi queue resume mail --wait",
        ] {
            assert_eq!(parse(line).map(|_| ()).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn help_lists_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Exit codes:") && help.contains("no such run"), "{help}");
    }
}
