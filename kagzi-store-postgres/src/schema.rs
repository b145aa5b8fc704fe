//! The schema: embedded migrations, applied once however many servers start at one time.

use kagzi_core::StoreError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Postgres, Row as _, Transaction};

use crate::error::Fault;
use crate::options::PostgresOptions;

/// Applied in order, each once. A migration that was released is never changed.
const MIGRATIONS: [(i64, &str); 2] = [
    (1, include_str!("../migrations/0001_tables.sql")),
    (2, include_str!("../migrations/0002_functions.sql")),
];

/// The newest version that this program knows.
const VERSION: i64 = 2;

/// What the advisory lock of migrations is called: "kagzi" in ASCII.
const MIGRATION_LOCK: i64 = 0x006b_6167_7a69;

const CREATE_SETTINGS: &str = "
    CREATE TABLE IF NOT EXISTS kagzi_schema (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version bigint NOT NULL,
        partitions smallint NOT NULL CHECK (partitions > 0),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )";

/// What a schema was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    version: i64,
    partitions: u16,
}

/// Brings the schema up to date and answers its number of partitions.
pub(crate) async fn prepare(
    options: &PostgresOptions,
    connect: &PgConnectOptions,
) -> Result<u16, StoreError> {
    let work = async {
        let mut connection = PgConnection::connect_with(connect).await?;
        let found = match look(&mut connection).await? {
            // The usual start: nothing to do, so nobody is locked out.
            Some(settings) if settings.version == VERSION => settings,
            _ => migrate(&mut connection, options).await?,
        };
        connection.close().await?;
        Ok::<_, Fault>(found)
    };
    let settings = work.await.map_err(|fault| fault.into_store_error("preparing the schema"))?;
    if settings.version > VERSION {
        return Err(too_new(settings.version));
    }
    match options.partitions {
        Some(wanted) if wanted != settings.partitions => Err(StoreError::InvalidArgument {
            field: "partitions".to_owned(),
            expected: format!(
                "{}, which the schema was made with and keeps; name that, or none",
                settings.partitions
            ),
            got: wanted.to_string(),
        }),
        _ => Ok(settings.partitions),
    }
}

fn too_new(found: i64) -> StoreError {
    StoreError::SchemaMismatch {
        found,
        supported: VERSION,
        remedy: "a newer kagzi has migrated this database; run that version or a later one",
    }
}

async fn look(connection: &mut PgConnection) -> Result<Option<Settings>, Fault> {
    let row = connection.fetch_one("SELECT to_regclass('kagzi_schema') IS NOT NULL AS present").await?;
    if row.try_get("present")? { read(connection).await } else { Ok(None) }
}

async fn read(connection: &mut PgConnection) -> Result<Option<Settings>, Fault> {
    let row = connection.fetch_optional("SELECT version, partitions FROM kagzi_schema").await?;
    row.map(|row| {
        let partitions: i16 = row.try_get("partitions")?;
        Ok(Settings { version: row.try_get("version")?, partitions: partitions.unsigned_abs() })
    })
    .transpose()
}

async fn migrate(connection: &mut PgConnection, options: &PostgresOptions) -> Result<Settings, Fault> {
    let mut tx = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *tx).await?;
    if let Some(schema) = &options.schema {
        // An identifier that `PostgresOptions` has checked letter by letter.
        tx.execute(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"))).await?;
    }
    tx.execute(CREATE_SETTINGS).await?;
    // Somebody else may have been here while we waited for the lock.
    let before =
        read(&mut tx).await?.unwrap_or(Settings { version: 0, partitions: options.partitions.unwrap_or(1) });
    if before.version > VERSION {
        return Err(too_new(before.version).into());
    }
    let after = apply(&mut tx, before).await?;
    tx.commit().await.map_err(Fault::Committing)?;
    Ok(after)
}

async fn apply(tx: &mut Transaction<'_, Postgres>, before: Settings) -> Result<Settings, Fault> {
    for (_, sql) in MIGRATIONS.into_iter().filter(|(version, _)| *version > before.version) {
        tx.execute(sqlx::raw_sql(sql)).await?;
    }
    sqlx::query(
        "INSERT INTO kagzi_schema (version, partitions) VALUES ($1, $2)
         ON CONFLICT (only_row) DO UPDATE SET version = $1, updated_at = clock_timestamp()",
    )
    .bind(VERSION)
    .bind(i16::try_from(before.partitions).unwrap_or(i16::MAX))
    .execute(&mut **tx)
    .await?;
    tracing::info!(from = before.version, to = VERSION, partitions = before.partitions, "schema migrated");
    Ok(Settings { version: VERSION, ..before })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_gaps_up_to_the_version() {
        let numbers: Vec<i64> = MIGRATIONS.iter().map(|(version, _)| *version).collect();
        assert_eq!(numbers, (1..=VERSION).collect::<Vec<_>>());
    }
}
