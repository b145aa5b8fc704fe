//! The schema: embedded migrations, applied once however many servers start at one time.

use kagzi_core::{MIGRATE_FIRST, Migration, SchemaPolicy, StoreError};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::citus;
use crate::error::Fault;
use crate::nodes;
use crate::options::PostgresOptions;
use crate::statement::{Begin, Tx, query};

/// Applied in order, each once. A migration that was released is never changed.
pub(crate) const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "0001_tables", include_str!("../migrations/0001_tables.sql")),
    (
        2,
        "0002_functions",
        concat!(
            include_str!("../migrations/0002_functions.sql"),
            include_str!("../migrations/0002_reaping.sql")
        ),
    ),
    (3, "0003_queues", include_str!("../migrations/0003_queues.sql")),
    (4, "0004_look", include_str!("../migrations/0004_look.sql")),
    (5, "0005_cluster", include_str!("../migrations/0005_cluster.sql")),
];

/// The newest version that this program knows.
pub(crate) const VERSION: i64 = 5;

/// What is added to the version of a schema whose rows were moved to another one, and of one that a move fills: no
/// program knows such a version, so none opens it.
pub(crate) const MOVED: i64 = 1_000_000;
pub(crate) const FILLING: i64 = 2_000_000;

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
pub(crate) struct Settings {
    pub(crate) version: i64,
    pub(crate) partitions: u16,
}

impl Settings {
    /// Those of a schema that is not there yet.
    fn wanted(options: &PostgresOptions) -> Self {
        Self { version: 0, partitions: options.partitions.unwrap_or(1) }
    }
}

/// What opening a store did, or would do, to the schema.
pub(crate) struct Prepared {
    pub(crate) partitions: u16,
    pub(crate) migration: Migration,
}

/// What [`prepare`] would do, without doing it.
pub(crate) async fn plan(
    options: &PostgresOptions,
    connection: &mut PgConnection,
    begin: &Begin,
) -> Result<Migration, Fault> {
    let mut tx = begin.on(connection).await?;
    let found = look(&mut tx).await?.unwrap_or_else(|| Settings::wanted(options));
    if found.version > VERSION {
        return Err(too_new(found.version).into());
    }
    if found.version == 0 {
        check_vacant(&mut tx).await?;
    }
    let mut migration = migration_from(found.version);
    if citus::is_undone(&mut tx, found.partitions).await? {
        migration.steps.push(citus::STEP);
    }
    tx.rollback().await?;
    Ok(migration)
}

fn migration_from(version: i64) -> Migration {
    let steps =
        MIGRATIONS.iter().filter(|(number, ..)| *number > version).map(|(_, name, _)| *name).collect();
    Migration { from: version, to: VERSION, steps }
}

/// Brings the schema up to date, unless the options want it left as it is.
pub(crate) async fn prepare(
    options: &PostgresOptions,
    connection: &mut PgConnection,
    begin: &Begin,
) -> Result<Prepared, Fault> {
    let mut tx = begin.on(connection).await?;
    let found = look(&mut tx).await?;
    let partitions = found.unwrap_or_else(|| Settings::wanted(options)).partitions;
    citus::check(&mut tx, partitions).await?;
    nodes::check(&mut tx, partitions).await?;
    tx.rollback().await?;
    let (from, settings) = match found {
        // The usual start: nothing to do, so nobody is locked out.
        Some(settings) if settings.version == VERSION => (VERSION, settings),
        Some(Settings { version, .. }) if version > VERSION => return Err(too_new(version).into()),
        _ if options.schema_policy == SchemaPolicy::Require => {
            let found = found.map_or(0, |settings| settings.version);
            return Err(
                StoreError::SchemaMismatch { found, supported: VERSION, remedy: MIGRATE_FIRST }.into()
            );
        }
        _ => migrate(begin.on(connection).await?, options).await?,
    };
    check_partitions(options, settings)?;
    let (partitions, mut migration) = (settings.partitions, migration_from(from));
    if options.schema_policy == SchemaPolicy::Require {
        citus::require(connection, begin, partitions).await?;
    } else if citus::distribute(connection, begin, partitions).await? {
        migration.steps.push(citus::STEP);
    }
    Ok(Prepared { partitions, migration })
}

fn check_partitions(options: &PostgresOptions, settings: Settings) -> Result<(), StoreError> {
    match options.partitions {
        Some(wanted) if wanted != settings.partitions => Err(StoreError::InvalidArgument {
            field: "partitions".to_owned(),
            expected: format!(
                "{}, which the schema was made with and keeps; name that, or none",
                settings.partitions
            ),
            got: wanted.to_string(),
        }),
        _ => Ok(()),
    }
}

pub(crate) fn too_new(found: i64) -> StoreError {
    let remedy = if found > FILLING {
        "`kagzi migrate-partitions` fills this schema and has not ended; run it again, and it goes on"
    } else if found > MOVED {
        "`kagzi migrate-partitions` has moved all runs of this schema to another one; name that"
    } else {
        "a newer kagzi has migrated this database; run that version or a later one"
    };
    StoreError::SchemaMismatch { found, supported: VERSION, remedy }
}

pub(crate) async fn look(tx: &mut Tx<'_>) -> Result<Option<Settings>, Fault> {
    let row = query("SELECT to_regclass('kagzi_schema') IS NOT NULL AS present").fetch_one(tx).await?;
    if row.try_get("present")? { read(tx).await } else { Ok(None) }
}

async fn read(tx: &mut Tx<'_>) -> Result<Option<Settings>, Fault> {
    let row = query("SELECT version, partitions FROM kagzi_schema").fetch_optional(tx).await?;
    row.map(|row| {
        let partitions: i16 = row.try_get("partitions")?;
        Ok(Settings { version: row.try_get("version")?, partitions: partitions.unsigned_abs() })
    })
    .transpose()
}

/// Waits until nobody else changes the schema, and keeps others from it until the transaction ends. Whoever waits
/// here waits for another server's migration, which takes what it takes.
pub(crate) async fn lock_migrations(tx: &mut Tx<'_>) -> Result<(), Fault> {
    tx.run("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL client_min_messages = warning").await?;
    query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(tx).await?;
    Ok(())
}

/// Answers the version before, and what the schema is like now.
async fn migrate(mut tx: Tx<'_>, options: &PostgresOptions) -> Result<(i64, Settings), Fault> {
    lock_migrations(&mut tx).await?;
    if let Some(schema) = &options.schema {
        // An identifier that `PostgresOptions` has checked letter by letter.
        tx.run(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"))).await?;
    }
    tx.run(CREATE_SETTINGS).await?;
    // Somebody else may have been here while we waited for the lock.
    let before = read(&mut tx).await?.unwrap_or_else(|| Settings::wanted(options));
    if before.version == VERSION {
        tx.rollback().await?;
        return Ok((VERSION, before));
    }
    if before.version > VERSION {
        return Err(too_new(before.version).into());
    }
    if before.version == 0 {
        check_vacant(&mut tx).await?;
    }
    let after = apply(&mut tx, before).await?;
    citus::settle(&mut tx, after.partitions).await?;
    tx.commit().await.map_err(Fault::Committing)?;
    tracing::info!(
        from = before.version,
        to = after.version,
        partitions = after.partitions,
        "schema migrated"
    );
    Ok((before.version, after))
}

/// Refuses to move in where another program's tables stand.
async fn check_vacant(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let row = query(
        "SELECT current_schema() AS schema, min(relname) AS taken FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace
           AND relname IN ('runs', 'payloads', 'steps', 'operations', 'queues')",
    )
    .fetch_one(tx)
    .await?;
    let Some(taken) = row.try_get::<Option<String>, _>("taken")? else { return Ok(()) };
    let schema: Option<String> = row.try_get("schema")?;
    Err(StoreError::InvalidArgument {
        field: "schema".to_owned(),
        expected: "one without tables of other programs: name another, which is made if it does not exist \
                   (`?schema=kagzi` in the URL), or another database"
            .to_owned(),
        got: format!("{:?}, which has a relation {taken:?} that is not kagzi's", schema.unwrap_or_default()),
    }
    .into())
}

async fn apply(tx: &mut Tx<'_>, before: Settings) -> Result<Settings, Fault> {
    for (.., sql) in MIGRATIONS.into_iter().filter(|(version, ..)| *version > before.version) {
        tx.run(sql).await?;
    }
    query(
        "INSERT INTO kagzi_schema (version, partitions) VALUES ($1, $2)
         ON CONFLICT (only_row) DO UPDATE SET version = $1, updated_at = clock_timestamp()",
    )
    .bind(VERSION)
    .bind(i16::try_from(before.partitions).unwrap_or(i16::MAX))
    .execute(tx)
    .await?;
    Ok(Settings { version: VERSION, ..before })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_gaps_up_to_the_version() {
        let numbers: Vec<i64> = MIGRATIONS.iter().map(|(version, ..)| *version).collect();
        assert_eq!(numbers, (1..=VERSION).collect::<Vec<_>>());
    }
}
