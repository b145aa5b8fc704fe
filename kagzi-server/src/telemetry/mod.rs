//! Logs and traces: what is written, how and where to.

mod export;
mod json;

use std::io::IsTerminal as _;

use kagzi_core::SPANS;
use tracing::{Dispatch, Level};
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::auth::AUDIT_TARGET;
use crate::config::{ConfigError, LogFormat};
pub(crate) use export::check_endpoint;
pub use export::{Export, FLUSH_WITHIN, Traces};
use json::JsonLines;

/// Why logging or tracing could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level is neither one of trace, debug, info, warn, error, off nor a list of directives; or what
    /// is said about the export of spans cannot be done.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Something else in this process logs already.
    #[error("logging was set up before: {0}")]
    AlreadySetUp(String),
}

/// Begins to write log lines to standard error, so that standard output stays for results.
///
/// No line of kagzi holds a payload at any level. What operators do is on record whatever the level.
///
/// # Errors
///
/// [`TelemetryError`] for a level that cannot be read, or if a subscriber is set already.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    init_with_traces(format, level, None).map(drop)
}

/// Like [`init`], and begins to export spans of level `INFO` and above, too, if `export` says where to. Call
/// it within a tokio runtime of several threads, and [`end`](Traces::end) what it gives when all is done.
///
/// Where nothing is exported, what is made for export alone costs nothing: no span, no line.
///
/// # Errors
///
/// As for [`init`]; also if the exporter refuses its settings.
pub fn init_with_traces(
    format: LogFormat,
    level: &str,
    export: Option<&Export>,
) -> Result<Traces, TelemetryError> {
    let (dispatch, traces) = dispatch(format, level, export)?;
    dispatch.try_init().map_err(|error| TelemetryError::AlreadySetUp(error.to_string()))?;
    Ok(traces)
}

fn dispatch(
    format: LogFormat,
    level: &str,
    export: Option<&Export>,
) -> Result<(Dispatch, Traces), TelemetryError> {
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError::Invalid {
        key: "log_level".to_owned(),
        expected: "a level such as info, or directives such as info,kagzi_core=debug".to_owned(),
        got: format!("{level:?} ({error})"),
    })?;
    let filter = quiet(filter, level);
    let record = filter_fn(|line| line.target() == AUDIT_TARGET).with_max_level_hint(LevelFilter::INFO);
    let for_lines = filter_fn(|of| of.target() != SPANS);
    let filter = filter.or(record).and(for_lines);
    let lines = match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_filter(filter).boxed()
        }
        LogFormat::Json => JsonLines::to(std::io::stderr).with_filter(filter).boxed(),
    };
    let lines = tracing_subscriber::registry().with(lines);
    let traces = export.map(Traces::begin).transpose()?.unwrap_or_default();
    // No `Option` of a layer: beside one that is not there, every span would be made, for nobody.
    let dispatch = match traces.layer() {
        Some(spans) => {
            let for_export = filter_fn(|of| of.is_span() && *of.level() <= Level::INFO)
                .with_max_level_hint(LevelFilter::INFO);
            Dispatch::new(lines.with(spans.with_filter(for_export)))
        }
        None => Dispatch::new(lines),
    };
    Ok((dispatch, traces))
}

/// Has the library that speaks HTTP/2 tell of errors only, unless somebody asks for more: whoever connects can have it
/// warn of what they do, once for each connection, and the server counts what it refuses itself.
fn quiet(filter: EnvFilter, level: &str) -> EnvFilter {
    let most = filter.max_level_hint();
    let asked = level.contains("h2") || most > Some(LevelFilter::INFO) || most == Some(LevelFilter::OFF);
    match "h2=error".parse() {
        Ok(errors) if !asked => filter.add_directive(errors),
        _ => filter,
    }
}

#[cfg(test)]
mod tests {
    use tracing::info_span;

    use super::*;

    /// What is made at `level` where nothing is exported: a span for export, one for lines.
    fn made(format: LogFormat, level: &str) -> [bool; 2] {
        let (dispatch, _) = dispatch(format, level, None).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            [info_span!(target: SPANS, "call"), info_span!("step")].map(|span| !span.is_disabled())
        })
    }

    #[test]
    fn a_span_that_nobody_wants_is_not_made() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(made(format, "warn"), [false, false]);
            assert_eq!(made(format, "info"), [false, true]);
            assert_eq!(made(format, "debug,kagzi_core=warn"), [false, true]);
        }
    }

    #[test]
    fn the_library_that_speaks_http_tells_of_errors_only_unless_it_is_asked() {
        let told = |level: &str| {
            let (dispatch, _) = dispatch(LogFormat::Text, level, None).unwrap();
            tracing::dispatcher::with_default(&dispatch, || {
                [
                    tracing::enabled!(target: "h2::proto", Level::WARN),
                    tracing::enabled!(target: "h2", Level::ERROR),
                ]
            })
        };
        assert_eq!(told("warn"), [false, true]);
        assert_eq!(told("info"), [false, true]);
        assert_eq!(told("debug"), [true, true]);
        assert_eq!(told("info,h2=warn"), [true, true]);
        assert_eq!(told("off"), [false, false]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_for_export_are_made_whatever_the_level_of_lines() {
        let export = Export::wanted(Some("http://127.0.0.1:9")).unwrap().unwrap();
        let (dispatch, traces) = dispatch(LogFormat::Text, "off", Some(&export)).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            assert!(!info_span!(target: SPANS, "call").is_disabled());
            assert!(!info_span!("step").is_disabled());
        });
        traces.end().await;
    }
}
