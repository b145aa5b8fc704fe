//! The commands that run a server: `serve`, `dev`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kagzi_core::{Namespace, StoreError};
use kagzi_server::telemetry::{self, Export, TelemetryError, Traces};
use kagzi_server::{Exposure, Reload, ServeArgs, Server, ServerConfig, ServerError};
use serde::Serialize;
use tokio::sync::Notify;

use super::error::{CliError, Exit};
use super::output::Output;

/// `kagzi dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, env = "KAGZI_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7474")]
    listen: String,
    /// Listen beyond loopback, although this server lets in whoever comes.
    #[arg(long)]
    insecure: bool,
    /// The database file [default: kagzi/dev.db among your application data].
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
}

#[derive(Serialize)]
struct ServeView {
    address: String,
    /// Where `/metrics` and its neighbours are, if anywhere.
    http: Option<String>,
}

#[derive(Serialize)]
struct DevView {
    server: String,
    database: String,
    namespace: String,
}

/// What a server's failure means for a command.
pub fn server_failed(what: &str, error: &ServerError) -> CliError {
    let exit = match &error {
        ServerError::Config(_)
        | ServerError::Access(_)
        | ServerError::Exposed { .. }
        | ServerError::UnknownStore { .. } => Exit::Usage,
        ServerError::OpenStore { source, .. } => match source {
            StoreError::InvalidArgument { .. } => Exit::Usage,
            StoreError::Unavailable { .. } => Exit::Unavailable,
            _ => Exit::Failed,
        },
        ServerError::StoreStayedAway { .. } => Exit::Unavailable,
        _ => Exit::Failed,
    };
    CliError { exit, ..CliError::failed(what, error) }
}

/// Runs a server until it is told to stop.
///
/// Once it listens, it says where on standard output, one line an address, for whoever started it on port 0.
pub async fn serve(args: ServeArgs, output: Output) -> Result<(), CliError> {
    let refused = |error| server_failed("could not serve", &error);
    let config = args.into_config().map_err(|error| refused(error.into()))?;
    let traces = log(&config)?;
    // Before anything takes its time, and before anybody hears that it listens.
    let (hangups, mut stop) = (Hangups::new(), Box::pin(stop_signal()));
    let server = bind(config, &mut stop).await?.map_err(refused)?;
    let reload = server.reload();
    let http = server.http_addr().map(|address| address.to_string());
    let view = ServeView { address: server.local_addr().to_string(), http };
    output.show(&view, |view| {
        let http = view.http.as_ref().map(|address| format!("\nHTTP on {address}")).unwrap_or_default();
        format!("listening on {}{http}", view.address)
    })?;
    tokio::select! {
        ended = run_until_told(server, traces, stop) => ended,
        never = hangups.reload(&reload) => never,
    }
}

/// Runs a server with nothing to set up, and says what to do next.
pub async fn dev(args: DevArgs, namespace: Namespace, output: Output) -> Result<(), CliError> {
    let database = match args.db {
        Some(path) => path,
        None => default_database()?,
    };
    let config = ServerConfig {
        listen: args.listen,
        store: sqlite_url(&database, "name another file with --db")?,
        namespaces: vec![namespace.clone()],
        exposure: if args.insecure { Exposure::Insecure } else { Exposure::Guarded },
        // Whoever sits before it sees at once what is wrong, and starts it again.
        start_timeout: Duration::ZERO,
        log_level: "warn".to_owned(),
        ..ServerConfig::default()
    };
    let traces = log(&config)?;
    let refused = |error| server_failed("could not start the server", &error);
    let mut stop = Box::pin(stop_signal());
    let server = bind(config, &mut stop).await?.map_err(refused)?;
    let view = DevView {
        server: format!("http://{}", server.local_addr()),
        database: database.display().to_string(),
        namespace: namespace.to_string(),
    };
    output.show(&view, welcome)?;
    run_until_told(server, traces, stop).await
}

fn welcome(view: &DevView) -> String {
    // Only what differs from the defaults has to be typed.
    let option = |name: &str, value: &str, default: &str| {
        if value == default { String::new() } else { format!(" {name} {value}") }
    };
    let kagzi = format!(
        "kagzi{}{}",
        option("--server", &view.server, super::DEFAULT_SERVER),
        option("--namespace", &view.namespace, super::DEFAULT_NAMESPACE)
    );
    let next = [
        (format!("{kagzi} start greet --input '\"world\"'"), "start a run; it waits for a worker"),
        (format!("{kagzi} list"), "look at the runs"),
        ("kagzi demo".to_owned(), "watch durable execution survive a crash"),
    ];
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let next = next.map(|(command, what)| format!("  {command:<width$}   {what}\n")).concat();
    format!(
        "kagzi {} is ready at {}\n  database   {}\n  namespace  {}\n\nIn another terminal:\n{next}\nCtrl-C stops.",
        env!("CARGO_PKG_VERSION"),
        view.server,
        view.database,
        view.namespace,
    )
}

/// `kagzi/dev.db` where applications keep their data.
fn default_database() -> Result<PathBuf, CliError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
    };
    // Without a home, the working directory has to do.
    let directory = data.map_or_else(PathBuf::new, |data| data.join("kagzi"));
    if !directory.as_os_str().is_empty() {
        std::fs::create_dir_all(&directory).map_err(|why| {
            CliError::failed("could not make the data directory", format!("{}: {why}", directory.display()))
                .remedy("name a database file with --db")
        })?;
    }
    Ok(directory.join("dev.db"))
}

/// The URL of a SQLite store in `file`; `remedy` says how to name another one.
///
/// # Errors
///
/// If the path cannot be written as one.
pub fn sqlite_url(file: &Path, remedy: &str) -> Result<String, CliError> {
    match file.to_str() {
        Some(text) if !text.contains(['?', '#']) => Ok(format!("sqlite://{text}")),
        _ => Err(CliError::usage(
            "could not name the database",
            format!("{} cannot be written in a URL: it is not UTF-8, or has a ? or # in it", file.display()),
        )
        .remedy(remedy)),
    }
}

fn log(config: &ServerConfig) -> Result<Traces, CliError> {
    let refused = |why: TelemetryError| CliError::usage("could not log", why);
    let export = Export::wanted(config.otlp_endpoint.as_deref()).map_err(|why| refused(why.into()))?;
    telemetry::init_with_traces(config.log_format, &config.log_level, export.as_ref()).map_err(refused)
}

/// Binds a server, unless it is told to stop before: to open a store may take as long as somebody locks its tables.
///
/// # Errors
///
/// If it was told to stop.
pub async fn bind(
    config: ServerConfig,
    stop: &mut (impl Future<Output = StopSignal> + Unpin),
) -> Result<Result<Server, ServerError>, CliError> {
    tokio::select! {
        server = Server::bind(config) => Ok(server),
        signal = stop => Err(CliError {
            exit: signal.into(),
            ..CliError::failed("the server did not start", "it was told to stop")
        }),
    }
}

/// One press of Ctrl-C, or one `timeout`, may arrive twice: from the terminal, and from whoever started us.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Serves until told to stop, drains, and exports the last spans; told a second time, it ends at once.
async fn run_until_told(
    server: Server,
    traces: Traces,
    stop: impl Future<Output = StopSignal> + Send + 'static,
) -> Result<(), CliError> {
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    let work = async {
        let ended = server.run(async move {
            stop.await;
            tell.notify_one();
        });
        let ended = ended.await;
        traces.end().await;
        ended
    };
    let told_again = async {
        told.notified().await;
        tokio::time::sleep(SAME_SIGNAL).await;
        stop_signal().await
    };
    tokio::select! {
        ended = work => ended.map_err(|error| match error {
            ServerError::StoreStayedAway { .. } | ServerError::OpenStore { .. } => {
                server_failed("could not serve", &error)
            }
            error => server_failed("could not go on serving", &error),
        }),
        signal = told_again => Err(CliError {
            exit: signal.into(),
            ..CliError::failed("the server did not drain", "it was told to stop a second time")
        }),
    }
}

/// How a process is asked to read its files again: by SIGHUP, as those who rotate logs send it.
struct Hangups(#[cfg(unix)] std::io::Result<tokio::signal::unix::Signal>);

impl Hangups {
    #[cfg(unix)]
    fn new() -> Self {
        Self(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()))
    }

    #[cfg(not(unix))]
    const fn new() -> Self {
        Self()
    }

    /// Passes each of them on. Never returns.
    #[cfg_attr(not(unix), expect(unused_variables, reason = "nothing hangs up there"))]
    async fn reload<T>(self, reload: &Reload) -> T {
        #[cfg(unix)]
        match self.0 {
            Ok(mut hangups) => {
                while hangups.recv().await.is_some() {
                    tracing::info!("SIGHUP: the files are read again, and the audit log is opened anew");
                    reload.now();
                }
            }
            Err(error) => tracing::warn!(%error, "SIGHUP cannot be heard, and would end this process"),
        }
        std::future::pending().await
    }
}

/// How a process is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// By Ctrl-C.
    Interrupt,
    /// By SIGTERM.
    Terminate,
}

impl From<StopSignal> for Exit {
    fn from(signal: StopSignal) -> Self {
        match signal {
            StopSignal::Interrupt => Self::Interrupted,
            StopSignal::Terminate => Self::Terminated,
        }
    }
}

/// Ready when the process is asked to stop, by Ctrl-C or SIGTERM, from this call on, awaited or not (on Unix; elsewhere from
/// when it is awaited). Before the first call either ends the process by itself.
pub fn stop_signal() -> impl Future<Output = StopSignal> {
    #[cfg(unix)]
    let (interrupt, terminate) = {
        use tokio::signal::unix::SignalKind;
        (heard(SignalKind::interrupt()), heard(SignalKind::terminate()))
    };
    #[cfg(not(unix))]
    let (interrupt, terminate) = {
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        (interrupt, std::future::pending::<()>())
    };
    async {
        tokio::select! {
            () = terminate => StopSignal::Terminate,
            () = interrupt => StopSignal::Interrupt,
        }
    }
}

/// Ready when a signal has come since the call.
#[cfg(unix)]
fn heard(kind: tokio::signal::unix::SignalKind) -> impl Future<Output = ()> {
    let heard = tokio::signal::unix::signal(kind);
    async {
        match heard {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // Without a handler the signal ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    }
}
