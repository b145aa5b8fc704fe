//! `kagzi backup` and `kagzi restore`: SQLite stores as files.

use std::path::PathBuf;

use clap::Args;
use kagzi_server::{Existing, ServerConfig, back_up_store, restore_store, without_password};
use serde::Serialize;

use super::error::CliError;
use super::host::server_failed;
use super::output::Output;
use super::store::ChangeArgs;

/// `kagzi backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(flatten)]
    store: ChangeArgs,
    /// The file to write, which must not exist yet.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// `kagzi restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    store: ChangeArgs,
    /// The backup.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Put a store that is there already aside, under another name. One that is open is refused all the same.
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct BackupView {
    store: String,
    file: String,
    bytes: u64,
    runs: u64,
    schema_version: i64,
}

#[derive(Serialize)]
struct RestoreView {
    store: String,
    file: String,
    bytes: u64,
    runs: u64,
    schema_version: i64,
    put_aside: Option<String>,
}

/// Backs a store up.
pub async fn back_up(args: BackupArgs, output: Output) -> Result<(), CliError> {
    let what = "could not back the store up";
    let config = args.store.into_config(what)?;
    let copied = back_up_store(&config, &args.to).await.map_err(|error| server_failed(what, &error))?;
    let copied = copied.ok_or_else(|| not_a_file(what, &config))?;
    let view = BackupView {
        store: without_password(&config.store),
        file: args.to.display().to_string(),
        bytes: copied.bytes,
        runs: copied.runs,
        schema_version: copied.schema_version,
    };
    output.show(&view, |view| {
        format!("backed up to {}: {} runs, {} bytes, checked", view.file, view.runs, view.bytes)
    })
}

/// Restores a store.
pub async fn restore(args: RestoreArgs, output: Output) -> Result<(), CliError> {
    let what = "could not restore the store";
    let config = args.store.into_config(what)?;
    let existing = if args.force { Existing::PutAside } else { Existing::Keep };
    let made =
        restore_store(&config, &args.from, existing).await.map_err(|error| server_failed(what, &error))?;
    let made = made.ok_or_else(|| not_a_file(what, &config))?;
    let view = RestoreView {
        store: without_password(&config.store),
        file: args.from.display().to_string(),
        bytes: made.copied.bytes,
        runs: made.copied.runs,
        schema_version: made.copied.schema_version,
        put_aside: made.put_aside.map(|path| path.display().to_string()),
    };
    output.show(&view, |view| {
        let restored = format!("restored {} from {}: {} runs, checked", view.store, view.file, view.runs);
        match &view.put_aside {
            Some(path) => format!("{restored}\nwhat was there before is now {path}"),
            None => restored,
        }
    })
}

fn not_a_file(what: &str, config: &ServerConfig) -> CliError {
    let got = without_password(&config.store);
    CliError::usage(what, format!("store: expected sqlite://PATH, got {got}"))
        .remedy("for Postgres, pg_dump or pg_basebackup: docs/operations.md says what matters")
}
