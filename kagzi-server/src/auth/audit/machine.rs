//! What is done to a store by a command on its machine, without a server: on the same record, in the same form, where the
//! configuration names a file for it.

use std::io;

use kagzi_core::{OperationId, StoreError};

use super::file::LogFile;
use super::writer::Sink as _;
use super::{BEGINS, Line, now};
use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::shown::without_password;

/// The outcome of a command that failed for a reason that has no name.
const FAILED: &str = "FAILED";

/// Does what changes or copies a store, announced before and told of when it has ended. A command that cannot be
/// announced is not done. One that was cut off has no second line.
///
/// # Errors
///
/// Those of `act`, and [`ServerError::NotOnRecord`].
pub(crate) async fn on_record<T>(
    config: &ServerConfig,
    command: &str,
    other: &str,
    act: impl Future<Output = Result<T, ServerError>>,
) -> Result<T, ServerError> {
    let Some(path) = &config.audit_log else { return act.await };
    let refused = |source| ServerError::NotOnRecord { path: path.clone(), source };
    let mut file = LogFile::open(path).map_err(refused)?;
    let (principal, store) = (user(), without_password(&config.store));
    let line = Line {
        action: OperationId::generate().to_string(),
        principal: &principal,
        credential: "machine",
        method: command,
        store: Some(store),
        file: Some(other.to_owned()).filter(|other| !other.is_empty()),
        ..Line::default()
    };
    add(&mut file, &line, BEGINS).map_err(refused)?;
    let done = act.await;
    let outcome = match &done {
        Ok(_) => "OK",
        Err(error) => reason(error),
    };
    if let Err(error) = add(&mut file, &line, outcome) {
        // It is done, and its announcement stands.
        tracing::error!(%error, "the audit log could not be written");
    }
    done
}

fn add(file: &mut LogFile, line: &Line<'_>, outcome: &str) -> io::Result<()> {
    let line = Line { time: now(), outcome, ..line.clone() };
    file.add(serde_json::to_string(&line)?).map(drop)
}

fn reason(error: &ServerError) -> &'static str {
    match error {
        ServerError::OpenStore { source, .. } => StoreError::reason(source),
        _ => FAILED,
    }
}

/// Who runs this process, as far as the system tells.
fn user() -> String {
    #[cfg(unix)]
    if let Ok(process) = std::fs::metadata("/proc/self") {
        return format!("uid {}", std::os::unix::fs::MetadataExt::uid(&process));
    }
    let name = ["USER", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}
