//! What the server must be like, looked at once when the store connects.

use kagzi_core::StoreError;
use sqlx::{PgConnection, Row as _};

use crate::error::Fault;
use crate::options::{Listen, Pooler, PostgresOptions};
use crate::statement::{Begin, query};

/// The oldest Postgres that the statements of the store run on, as `server_version_num` says it.
const OLDEST: i32 = 140_000;

/// Refuses a server that is too old, a way to the server that swallows the store's settings, and speaks up where durability
/// depends on them or is not to be had at all.
pub(crate) async fn check(
    options: &PostgresOptions,
    connection: &mut PgConnection,
    begin: &Begin,
) -> Result<(), Fault> {
    let mut tx = begin.on(connection).await?;
    let row = query(
        "SELECT current_setting('server_version') AS version,
             current_setting('server_version_num')::integer AS version_number,
             current_setting('enable_seqscan') AS seqscan,
             (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit,
             current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes",
    )
    .fetch_one(&mut tx)
    .await?;
    tx.rollback().await?;
    let setting = |name: &str| row.try_get::<String, _>(name);
    check_version(row.try_get("version_number")?, &setting("version")?)?;
    if setting("seqscan")? != "off" {
        return Err(StoreError::InvalidArgument {
            field: "pooler".to_owned(),
            expected: "transaction, since what stands between here and Postgres ignores the settings that \
                       a connection asks for: add `?pooler=transaction` to the URL"
                .to_owned(),
            got: "none".to_owned(),
        }
        .into());
    }
    if setting("synchronous_commit")? == "off" {
        tracing::warn!("synchronous_commit is off on this server; the store turns it on for its own writes");
    }
    for name in ["fsync", "full_page_writes"] {
        if setting(name)? == "off" {
            tracing::warn!(
                setting = name,
                "NOT DURABLE: this Postgres server runs with {name} = off, so a crash of its machine can \
                 lose or damage what was acknowledged; set {name} = on in postgresql.conf"
            );
        }
    }
    if (options.pooler, options.listen) == (Pooler::Transaction, Listen::On) {
        tracing::info!(
            "LISTEN does not work through a transaction pooler: workers of this server hear of other \
             servers' changes when they poll"
        );
    }
    Ok(())
}

fn check_version(number: i32, version: &str) -> Result<(), StoreError> {
    if number >= OLDEST {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: "server_version".to_owned(),
        expected: "Postgres 14 or newer: upgrade the server (pg_upgrade), or name another".to_owned(),
        got: version.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_older_than_14_is_refused_by_its_version() {
        let error = check_version(130_014, "13.14 (Debian 13.14-1)").unwrap_err().to_string();
        for part in ["server_version", "expected Postgres 14 or newer", "got 13.14"] {
            assert!(error.contains(part), "{error}");
        }
        check_version(140_000, "14.0").unwrap();
        check_version(150_006, "15.6").unwrap();
    }
}
