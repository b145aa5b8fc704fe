//! `kagzi migrate-partitions`: moving a store that nobody uses to another number of partitions.

use clap::Args;
use kagzi_server::{Moved, move_to_partitions, without_password};
use serde::Serialize;

use super::error::CliError;
use super::host::server_failed;
use super::output::Output;
use super::store::ChangeArgs;

/// `kagzi migrate-partitions`.
#[derive(Args, Debug)]
pub struct PartitionsArgs {
    #[command(flatten)]
    store: ChangeArgs,
    /// The new schema, on the same server or another, made if it does not exist: a URL with `partitions=`, and with
    /// `schema=` if it is to stand beside the old one.
    #[arg(long, env = "KAGZI_MOVE_TO", value_name = "URL", hide_env_values = true)]
    to: String,
}

#[derive(Serialize)]
struct PartitionsView {
    store: String,
    to: String,
    from_partitions: u16,
    partitions: u16,
    tables: Vec<TableView>,
}

#[derive(Serialize)]
struct TableView {
    table: &'static str,
    rows: u64,
    checksum: String,
    was_there: bool,
}

/// Moves, and says what was moved.
pub async fn migrate_partitions(args: PartitionsArgs, output: Output) -> Result<(), CliError> {
    let what = "could not move the store to other partitions";
    let config = args.store.into_config(what)?;
    let moved = move_to_partitions(&config, &args.to).await.map_err(|error| server_failed(what, &error))?;
    let store = without_password(&config.store);
    let Some(Moved { from_partitions, partitions, tables }) = moved else {
        return Err(CliError::usage(
            what,
            format!("store: expected postgres://USER@HOST/DATABASE, got {store}"),
        )
        .remedy("only a Postgres store has partitions"));
    };
    let tables = tables
        .into_iter()
        .map(|one| TableView {
            table: one.table,
            rows: one.rows,
            checksum: one.checksum,
            was_there: one.was_there,
        })
        .collect();
    let view = PartitionsView { store, to: without_password(&args.to), from_partitions, partitions, tables };
    output.show(&view, |view| {
        let mut lines: Vec<String> = view
            .tables
            .iter()
            .map(|one| {
                let how = if one.was_there { "was there already, compared" } else { "copied and compared" };
                format!("{:<10} {:>12} rows  {}  {how}", one.table, one.rows, one.checksum)
            })
            .collect();
        lines.push(format!(
            "moved from {} to {} partitions; name {} from now on\nthe old schema is not opened again, and can be removed",
            view.from_partitions, view.partitions, view.to
        ));
        lines.join("\n")
    })
}
