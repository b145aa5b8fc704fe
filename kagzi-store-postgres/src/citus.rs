//! Citus: spreading the tables of a schema over the nodes of a cluster, by their column `partition`.
//!
//! Citus runs a function on the node of its partition if the function is marked as distributed by that argument, after
//! the tables it names. A call is sent there in one round trip in the form `SELECT ... FROM function($1, ...)`, with no
//! other source, no condition and no query around it; within a transaction of several statements only if
//! delegation is *forced*, and then the function may touch its own partition alone, as all of ours do.
//!
//! The body of a function names tables without their schema, and on a node nobody has set the search path for it; and what
//! it asks of tables must be planned with the partition as a constant, which a kept plan has not. So each function brings
//! both settings along ([`settle`]).
//!
//! **Each step is a transaction of its own**, under the lock of migrations, and what is left to do is read from Citus'
//! own catalogue: so whoever was killed half way is followed by whoever opens the schema next, and of many servers
//! that start at once each step is done by one. In one transaction with the migrations it would not work: a type that was
//! made in the same transaction may be missing where shards are made over other connections.

use kagzi_core::StoreError;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::error::Fault;
use crate::schema::lock_migrations;
use crate::statement::{Begin, Tx, query};

/// What it is called among the steps of a migration.
pub(crate) const STEP: &str = "citus_distribution";

/// The oldest that keeps its catalogue on all nodes and can force delegation.
const OLDEST_MAJOR: u32 = 11;

/// In this order: a foreign key leads to a table that is distributed already.
pub(crate) const TABLES: [&str; 5] = ["runs", "payloads", "steps", "operations", "queues"];

/// The functions that the store calls, each with its partition as the first argument. Those that they call among
/// themselves need only stand on every node.
pub(crate) const DELEGATED: [&str; 11] = [
    "kagzi_claim",
    "kagzi_heartbeat",
    "kagzi_look",
    "kagzi_moments_due",
    "kagzi_overdue",
    "kagzi_paused_queues",
    "kagzi_queue_depths",
    "kagzi_queue_lock",
    "kagzi_save_runs",
    "kagzi_start",
    "kagzi_steps",
];

/// One thing that is left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Left {
    Table(String),
    /// The settings of functions.
    Settings,
    /// By its signature, as Postgres writes it.
    Delegated(String),
    Everywhere(String),
}

/// Whether something is left to do for a schema of so many partitions. Where there is one partition, or no Citus, all
/// stays on the server that the URL names.
pub(crate) async fn is_undone(tx: &mut Tx<'_>, partitions: u16) -> Result<bool, Fault> {
    Ok(next(tx, partitions).await?.is_some())
}

/// Refuses to open a schema that is not spread, for whoever must not change it.
pub(crate) async fn require(
    connection: &mut PgConnection,
    begin: &Begin,
    partitions: u16,
) -> Result<(), Fault> {
    let mut tx = begin.on(connection).await?;
    let left = next(&mut tx, partitions).await?;
    tx.rollback().await?;
    match left {
        None => Ok(()),
        Some(left) => Err(StoreError::InvalidArgument {
            field: "schema".to_owned(),
            expected: "one whose tables and functions Citus has spread over its nodes: run `kagzi migrate`, which goes \
                       on where it was interrupted"
                .to_owned(),
            got: match left {
                Left::Table(name) => format!("the table {name}, which is not distributed"),
                Left::Settings => "functions without the settings that they need on the nodes".to_owned(),
                Left::Delegated(name) | Left::Everywhere(name) => {
                    format!("the function {name}, which is not distributed")
                }
            },
        }
        .into()),
    }
}

/// Refuses a Citus that is too old, and a cluster without a node that takes shards, before anything is changed.
pub(crate) async fn check(tx: &mut Tx<'_>, partitions: u16) -> Result<(), Fault> {
    if partitions <= 1 || !is_installed(tx).await? {
        return Ok(());
    }
    let row = query("SELECT count(*) AS nodes FROM pg_dist_node WHERE isactive AND shouldhaveshards")
        .fetch_one(tx)
        .await?;
    if row.try_get::<i64, _>("nodes")? > 0 {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: "citus".to_owned(),
        expected: "at least one active node that takes shards: `SELECT citus_add_node('HOST', 5432)` on the \
                   coordinator for each"
            .to_owned(),
        got: "none".to_owned(),
    }
    .into())
}

/// Does what is left to do, step by step; answers whether there was anything.
pub(crate) async fn distribute(
    connection: &mut PgConnection,
    begin: &Begin,
    partitions: u16,
) -> Result<bool, Fault> {
    let mut tx = begin.on(connection).await?;
    let is_done = next(&mut tx, partitions).await?.is_none();
    tx.rollback().await?;
    if is_done {
        // The usual start, which locks nobody out.
        return Ok(false);
    }
    loop {
        let mut tx = begin.on(connection).await?;
        lock_migrations(&mut tx).await?;
        let Some(left) = next(&mut tx, partitions).await? else {
            tx.rollback().await?;
            tracing::info!(partitions, "the schema is spread over the nodes of the Citus cluster");
            return Ok(true);
        };
        tracing::info!(step = ?left, "spreading the schema over the nodes of the Citus cluster");
        left.do_it(&mut tx, partitions).await?;
        tx.commit().await.map_err(Fault::Committing)?;
    }
}

impl Left {
    async fn do_it(self, tx: &mut Tx<'_>, partitions: u16) -> Result<(), Fault> {
        match self {
            // As many shards as partitions, so that each can go to another node.
            Self::Table(table) if table == "runs" => {
                query(
                    "SELECT create_distributed_table($1::text::regclass, 'partition', colocate_with => 'none',
                         shard_count => $2)",
                )
                .bind(table)
                .bind(i32::from(partitions))
                .execute(tx)
                .await?;
            }
            Self::Table(table) => {
                query("SELECT create_distributed_table($1::text::regclass, 'partition', colocate_with => 'runs')")
                    .bind(table)
                    .execute(tx)
                    .await?;
            }
            Self::Settings => settle(tx, partitions).await?,
            Self::Delegated(function) => {
                query(
                    "SELECT create_distributed_function($1::text::regprocedure, 'p_partition',
                         colocate_with => 'runs', force_delegation => true)",
                )
                .bind(function)
                .execute(tx)
                .await?;
            }
            Self::Everywhere(function) => {
                query("SELECT create_distributed_function($1::text::regprocedure)")
                    .bind(function)
                    .execute(tx)
                    .await?;
            }
        }
        Ok(())
    }
}

/// The first thing that is left to do.
async fn next(tx: &mut Tx<'_>, partitions: u16) -> Result<Option<Left>, Fault> {
    if partitions <= 1 || !is_installed(tx).await? {
        return Ok(None);
    }
    let rows = query(
        "SELECT c.relname::text AS spread FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid
         WHERE p.partmethod = 'h'
           AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kagzi_schema'))",
    )
    .fetch_all(tx)
    .await?;
    let spread = rows.iter().map(|row| row.try_get("spread")).collect::<Result<Vec<String>, _>>()?;
    let is_left = |table: &&str| !spread.iter().any(|one| one == table);
    if let Some(table) = TABLES.into_iter().find(is_left) {
        return Ok(Some(Left::Table(table.to_owned())));
    }
    if !unsettled(tx).await?.is_empty() {
        return Ok(Some(Left::Settings));
    }
    let function = query(
        "SELECT p.oid::regprocedure::text AS signature, p.proname = ANY ($1) AS delegated
         FROM pg_proc p
         LEFT JOIN pg_dist_object o ON o.classid = 'pg_proc'::regclass AND o.objid = p.oid
         WHERE p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kagzi_schema'))
           AND p.proname LIKE 'kagzi\\_%'
           AND (o.objid IS NULL OR p.proname = ANY ($1) AND o.distribution_argument_index IS NULL)
         ORDER BY 2, 1 LIMIT 1",
    )
    .bind(DELEGATED.to_vec());
    let Some(row) = function.fetch_optional(tx).await? else { return Ok(None) };
    let signature = row.try_get("signature")?;
    Ok(Some(if row.try_get("delegated")? { Left::Delegated(signature) } else { Left::Everywhere(signature) }))
}

/// Gives every function the settings that it needs on the nodes. A migration that replaces a function takes them from it,
/// and so gives them again before anybody sees it.
pub(crate) async fn settle(tx: &mut Tx<'_>, partitions: u16) -> Result<(), Fault> {
    if partitions <= 1 || !is_installed(tx).await? {
        return Ok(());
    }
    for alter in unsettled(tx).await? {
        // Of names that Postgres itself has put together and quoted.
        tx.run(AssertSqlSafe(alter)).await?;
    }
    Ok(())
}

/// What is to be run for the settings that functions lack, one statement for each.
async fn unsettled(tx: &mut Tx<'_>) -> Result<Vec<String>, Fault> {
    let rows = query(
        "SELECT format('ALTER FUNCTION %s SET search_path = %I SET plan_cache_mode = force_custom_plan',
                    p.oid::regprocedure, n.nspname) AS alter
         FROM pg_proc p
         JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'plpgsql'
         JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kagzi_schema'))
           AND p.proname LIKE 'kagzi\\_%'
           AND NOT COALESCE(p.proconfig @> ARRAY[format('search_path=%I', n.nspname),
                                                 'plan_cache_mode=force_custom_plan'], false)
         ORDER BY 1",
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.iter().map(|row| row.try_get("alter")).collect::<Result<_, _>>()?)
}

/// Whether this database is one of a cluster. A Citus that is too old is refused.
pub(crate) async fn is_installed(tx: &mut Tx<'_>) -> Result<bool, Fault> {
    let extension = query("SELECT extversion FROM pg_extension WHERE extname = 'citus'");
    let Some(row) = extension.fetch_optional(tx).await? else { return Ok(false) };
    check_version(row.try_get("extversion")?)?;
    Ok(true)
}

fn check_version(found: &str) -> Result<(), StoreError> {
    let major = found.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= OLDEST_MAJOR) {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: "citus".to_owned(),
        expected: format!(
            "Citus {OLDEST_MAJOR} or newer: upgrade its packages on every node and run `ALTER EXTENSION citus UPDATE`, \
             or make the schema with one partition, which needs no Citus"
        ),
        got: found.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema::MIGRATIONS;

    #[test]
    fn a_citus_that_is_too_old_is_refused_by_its_version() {
        for old in ["10.2-4", "9.5-1", "unknown"] {
            let told = check_version(old).unwrap_err().to_string();
            assert!(told.contains("citus: expected Citus 11 or newer") && told.contains(old), "{told}");
        }
        for new in ["11.0-1", "12.1-1", "13.0-1"] {
            check_version(new).unwrap();
        }
    }

    fn words(text: &str) -> BTreeSet<&str> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
    }

    #[test]
    fn every_table_of_the_migrations_is_distributed() {
        let made: BTreeSet<&str> = MIGRATIONS
            .iter()
            .flat_map(|(.., sql)| sql.lines())
            .filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split_whitespace().next())
            .collect();
        assert_eq!(made, BTreeSet::from(TABLES));
    }

    #[test]
    fn what_is_delegated_are_functions_of_the_migrations_with_a_partition_in_front() {
        let all: String = MIGRATIONS.iter().map(|(.., sql)| *sql).collect();
        for name in DELEGATED {
            let (_, rest) = all.split_once(&format!("FUNCTION {name}(")).unwrap();
            assert!(rest.trim_start().starts_with("p_partition smallint"), "{name}");
        }
        assert!(words(&all).is_superset(&BTreeSet::from(DELEGATED)));
    }
}
