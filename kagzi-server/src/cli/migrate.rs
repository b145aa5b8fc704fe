//! `kagzi migrate`: bringing the schema of a store up to date.

use clap::Args;
use kagzi_core::Migration;
use kagzi_server::{migrate_store, plan_migration, without_password};
use serde::Serialize;

use super::error::CliError;
use super::host::server_failed;
use super::output::Output;
use super::store::{ChangeArgs, StoreSource};

/// `kagzi migrate`.
#[derive(Args, Debug)]
pub struct MigrateArgs {
    #[command(flatten)]
    store: ChangeArgs,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct MigrateView {
    store: String,
    store_source: StoreSource,
    dry_run: bool,
    from: i64,
    to: i64,
    migrations: Vec<&'static str>,
}

/// Migrates, or says what that would do.
pub async fn migrate(args: MigrateArgs, output: Output) -> Result<(), CliError> {
    let what = "could not migrate the store";
    let told = args.store.into_told(what)?;
    let (config, shown, is_new) = (&told.config, told.shown(), told.is_new());
    let done = if args.dry_run { plan_migration(config).await } else { migrate_store(config).await };
    let Migration { from, to, steps } = done.map_err(|error| server_failed(what, &error))?;
    let store = without_password(&config.store);
    let store_source = told.source;
    let view = MigrateView { store, store_source, dry_run: args.dry_run, from, to, migrations: steps };
    output.show(&view, |view| {
        let (from, to) = (view.from, view.to);
        let made = match (is_new, view.dry_run) {
            (false, _) => "",
            (true, false) => " (a new file, made just now)",
            (true, true) => " (there is no such file; it would be made)",
        };
        let store = format!("store {shown}{made}");
        if view.migrations.is_empty() {
            return format!("{store}\nthe schema is up to date: version {to}");
        }
        let migrations = view.migrations.join(", ");
        if view.dry_run {
            format!("{store}\nwould migrate from version {from} to {to}: {migrations}; nothing was changed")
        } else {
            format!("{store}\nmigrated from version {from} to {to}: {migrations}")
        }
    })
}
