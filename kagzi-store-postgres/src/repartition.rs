//! Moving a schema that nobody uses to another number of partitions: into a new schema, on the same server or another.
//!
//! A run's partition follows from its id, so every key stays as it is and only the column `partition` is computed anew.
//! **The old schema is only read**, under locks that keep writers out, and marked in the end as one that was moved, so that
//! no server opens it again. **The new one** cannot be opened before all is there and was compared. Both marks are versions that
//! no program knows. Each table is copied and compared in one transaction, so whoever is interrupted goes on with
//! the first table that is empty, and compares those that are full.

use std::time::Duration;

use kagzi_core::{MIGRATE_FIRST, SchemaPolicy, StoreError};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::error::Fault;
use crate::options::PostgresOptions;
use crate::route::{Route, Servers};
use crate::schema::{self, FILLING, MOVED, Settings, VERSION, lock_migrations};
use crate::server;
use crate::statement::{Begin, Tx, query};

mod tables;

use tables::{TABLES, Table};

/// How often, and how far apart, it is looked whether anybody uses the old schema.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a move brought to a new schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Over how many partitions the old schema spreads its runs.
    pub from_partitions: u16,
    /// Over how many the new one does.
    pub partitions: u16,
    /// Each table, in the order in which they were copied.
    pub tables: Vec<MovedTable>,
}

/// What a move brought to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedTable {
    /// Its name.
    pub table: &'static str,
    /// How many rows the old schema has. The new one has as many, of paused queues one for each partition.
    pub rows: u64,
    /// The sum of a digest of each of these rows without its partition, in hexadecimal. It is the same on both sides.
    pub checksum: String,
    /// Whether they were there already, from a move that was interrupted.
    pub was_there: bool,
}

/// What tells whether two tables hold the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Contents {
    rows: u64,
    checksum: u128,
    /// Rows whose partition does not follow from their run's id.
    strays: u64,
}

/// One of the two schemas.
struct Side {
    options: PostgresOptions,
    begin: Begin,
    connection: PgConnection,
}

impl crate::PostgresStore {
    /// Moves all that a schema holds into a new one with as many partitions as the options of `to` say, and compares both by
    /// counts and checksums. All servers over the old schema must be stopped, and their workers may go on afterwards: leases
    /// and fencing tokens stay as they are. The old schema keeps its rows and is never opened again; it can be removed.
    ///
    /// Interrupted, the same call goes on, unless the old schema was written to since.
    ///
    /// Cancel safe: dropped on the way it is as if it had been interrupted.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if a server is still connected, if `to` names no number of partitions, the number
    /// that the old schema has, or a schema that holds other rows; [`StoreError::SchemaMismatch`] if the old one is not of
    /// this program's version, or was moved already; [`StoreError::Unavailable`] if a server cannot be reached, or somebody
    /// holds locks in the old schema.
    pub async fn move_to_partitions(from: PostgresOptions, to: PostgresOptions) -> Result<Moved, StoreError> {
        let (from, from_servers, from_begin) = from.resolve()?;
        let (mut to, to_servers, to_begin) = to.resolve()?;
        to.schema_policy = SchemaPolicy::Migrate;
        let partitions = to.partitions.ok_or_else(|| StoreError::InvalidArgument {
            field: "to".to_owned(),
            expected: "a URL that says how many partitions the new schema is to have, such as \
                       postgres://USER@HOST/DATABASE?schema=NAME&partitions=32"
                .to_owned(),
            got: "one without `partitions`".to_owned(),
        })?;
        let moving = async {
            let mut old = Side::connect(from, from_servers, from_begin).await?;
            let mut new = Side::connect(to, to_servers, to_begin).await?;
            let moved = move_all(&mut old, &mut new, partitions).await?;
            old.connection.close().await?;
            new.connection.close().await?;
            Ok::<_, Fault>(moved)
        };
        // Apart, since it is large and rare.
        Box::pin(moving).await.map_err(|fault| fault.into_store_error("moving a schema to other partitions"))
    }
}

impl Side {
    async fn connect(options: PostgresOptions, servers: Servers, begin: Begin) -> Result<Self, Fault> {
        let mut connection = Route::new(servers).connect().await?;
        server::check(&options, &mut connection, &begin).await?;
        Ok(Self { options, begin, connection })
    }

    /// A transaction that takes as long as it takes, and reads whole tables.
    async fn begin(&mut self) -> Result<Tx<'_>, Fault> {
        let mut tx = self.begin.on(&mut self.connection).await?;
        tx.run(
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; \
             SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on",
        )
        .await?;
        Ok(tx)
    }
}

async fn move_all(old: &mut Side, new: &mut Side, partitions: u16) -> Result<Moved, Fault> {
    let mine = [backend(old).await?, backend(new).await?];
    let mut source = old.begin().await?;
    let settings = open_source(&mut source, mine, partitions).await?;
    open_target(new, settings, partitions).await?;
    let mut tables = Vec::with_capacity(TABLES.len());
    for table in &TABLES {
        table.check_columns(&mut source).await?;
        tables.push(move_table(&mut source, settings.partitions, new, partitions, table).await?);
    }
    // From here on the old one is not opened, and the new one not yet: interrupted here, the same again opens it.
    mark(&mut source, MOVED + VERSION).await?;
    source.commit().await.map_err(Fault::Committing)?;
    let mut target = new.begin().await?;
    target.run("ANALYZE runs; ANALYZE payloads; ANALYZE steps; ANALYZE operations; ANALYZE queues").await?;
    mark(&mut target, VERSION).await?;
    target.commit().await.map_err(Fault::Committing)?;
    Ok(Moved { from_partitions: settings.partitions, partitions, tables })
}

async fn backend(side: &mut Side) -> Result<i32, Fault> {
    let mut tx = side.begin().await?;
    let pid = query("SELECT pg_backend_pid() AS pid").fetch_one(&mut tx).await?.try_get("pid")?;
    tx.rollback().await?;
    Ok(pid)
}

/// Makes sure that the old schema is one to move and that nobody works on it, and keeps writers out.
async fn open_source(source: &mut Tx<'_>, mine: [i32; 2], partitions: u16) -> Result<Settings, Fault> {
    let settings = match schema::look(source).await? {
        Some(settings) if settings.version == VERSION || settings.version == MOVED + VERSION => settings,
        Some(Settings { version, .. }) if version > VERSION => return Err(schema::too_new(version).into()),
        found => {
            let found = found.map_or(0, |settings| settings.version);
            let (supported, remedy) = (VERSION, MIGRATE_FIRST);
            return Err(StoreError::SchemaMismatch { found, supported, remedy }.into());
        }
    };
    if settings.partitions == partitions {
        let expected = format!("another number of partitions than the old schema has, which is {partitions}");
        return Err(refused("partitions", expected, partitions.to_string()));
    }
    let mut looks = 0;
    loop {
        let others = others(source, mine).await?;
        if others == 0 {
            break;
        }
        looks += 1;
        if looks == LOOKS {
            let expected = "a store that nobody uses: stop every server over this database first".to_owned();
            return Err(refused("store", expected, format!("{others} connections of kagzi")));
        }
        // A session ends a moment after its client has left.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // Whoever writes all the same, under another name, ends first, and waits for us from here on.
    source.run("LOCK TABLE runs, payloads, steps, operations, queues IN SHARE MODE").await?;
    Ok(settings)
}

/// How many connections of kagzi there are beside ours.
async fn others(source: &mut Tx<'_>, mine: [i32; 2]) -> Result<i64, Fault> {
    // A transaction sees the sessions as they were when it first looked, unless it is told to forget that.
    query("SELECT pg_stat_clear_snapshot()").execute(source).await?;
    let others = query(
        "SELECT count(*) AS others FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'kagzi' AND pid <> ALL ($1)",
    )
    .bind(mine.to_vec())
    .fetch_one(source)
    .await?;
    Ok(others.try_get("others")?)
}

/// Makes the new schema, or finds the one that an interrupted move left, and keeps others from opening it.
async fn open_target(new: &mut Side, old: Settings, partitions: u16) -> Result<(), Fault> {
    let mut tx = new.begin().await?;
    let found = schema::look(&mut tx).await?;
    tx.rollback().await?;
    let is_left = found.is_some_and(|settings| settings.version == FILLING + VERSION);
    if !is_left {
        schema::prepare(&new.options, &mut new.connection, &new.begin).await?;
    }
    let mut tx = new.begin().await?;
    lock_migrations(&mut tx).await?;
    let settings = schema::look(&mut tx).await?.unwrap_or(Settings { version: 0, partitions: 0 });
    if settings.partitions != partitions {
        let expected = format!("{}, which the new schema was made with", settings.partitions);
        return Err(refused("partitions", expected, partitions.to_string()));
    }
    if settings.version == VERSION {
        if old.version == MOVED + VERSION {
            return Err(schema::too_new(old.version).into());
        }
        for table in &TABLES {
            if table.contents(&mut tx, partitions).await?.rows > 0 {
                let expected = format!("a new schema, or one without rows; {} has some", table.name);
                return Err(refused("to", expected, "a schema that is in use".to_owned()));
            }
        }
        mark(&mut tx, FILLING + VERSION).await?;
    }
    tx.commit().await.map_err(Fault::Committing)
}

async fn move_table(
    source: &mut Tx<'_>,
    from_partitions: u16,
    new: &mut Side,
    partitions: u16,
    table: &'static Table,
) -> Result<MovedTable, Fault> {
    let wanted = table.contents(source, if table.is_of_runs { from_partitions } else { 1 }).await?;
    let copies = if table.is_of_runs { 1 } else { u128::from(partitions) };
    let mut target = new.begin().await?;
    let mut found = table.contents(&mut target, partitions).await?;
    let was_there = found.rows > 0;
    if !was_there && wanted.rows > 0 {
        tracing::info!(table = table.name, rows = wanted.rows, "copying");
        for (out, into) in table.copies(from_partitions, partitions) {
            source.copy_to(&out, &mut target, &into).await?;
        }
        found = table.contents(&mut target, partitions).await?;
    }
    let is_same = u128::from(found.rows) == u128::from(wanted.rows) * copies
        && found.checksum == wanted.checksum.wrapping_mul(copies)
        && found.strays == 0;
    if !is_same {
        let expected = format!(
            "the {} rows of the old schema in {}: if that was written to since the move was interrupted, remove the new \
             schema and begin again",
            wanted.rows, table.name
        );
        let got = format!(
            "{} rows, {} of them in a wrong partition, or of other contents",
            found.rows, found.strays
        );
        return Err(refused("to", expected, got));
    }
    target.commit().await.map_err(Fault::Committing)?;
    let checksum = format!("{:032x}", wanted.checksum);
    Ok(MovedTable { table: table.name, rows: wanted.rows, checksum, was_there })
}

async fn mark(tx: &mut Tx<'_>, version: i64) -> Result<(), Fault> {
    query("UPDATE kagzi_schema SET version = $1, updated_at = clock_timestamp()")
        .bind(version)
        .execute(tx)
        .await?;
    Ok(())
}

fn refused(field: &str, expected: String, got: String) -> Fault {
    StoreError::InvalidArgument { field: field.to_owned(), expected, got }.into()
}

impl Table {
    /// What the table holds, partition by partition.
    async fn contents(&self, tx: &mut Tx<'_>, partitions: u16) -> Result<Contents, Fault> {
        let mut all = Contents::default();
        for partition in 0..partitions {
            let row = query(self.contents)
                .bind(i16::try_from(partition).unwrap_or(i16::MAX))
                .bind(i32::from(partitions))
                .fetch_one(tx)
                .await?;
            let number = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
            all.rows += number("rows")?;
            all.strays += number("strays")?;
            let checksum: String = row.try_get("checksum")?;
            let checksum = checksum.parse().map_err(|_| crate::error::damaged("a checksum is no number"))?;
            all.checksum = all.checksum.wrapping_add(checksum);
        }
        Ok(all)
    }

    /// Refuses a table with columns that this file does not know: they would be lost.
    async fn check_columns(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let rows = query(
            "SELECT attname::text AS name FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'partition'",
        )
        .bind(self.name)
        .fetch_all(tx)
        .await?;
        let mut found = rows.iter().map(|row| row.try_get("name")).collect::<Result<Vec<String>, _>>()?;
        let mut known: Vec<&str> = self.columns.split(", ").collect();
        found.sort_unstable();
        known.sort_unstable();
        if found == known {
            return Ok(());
        }
        let detail = format!("{} has columns {found:?}, and {known:?} are known", self.name);
        Err(StoreError::Internal { context: "moving a schema to other partitions", detail }.into())
    }
}

// Only numbers and names of ours are put into these texts; nothing else can be said in a COPY.
impl Table {
    /// The statements that give rows and take them, one pair for each partition of the old schema.
    fn copies(&self, from_partitions: u16, partitions: u16) -> Vec<(String, String)> {
        let Self { name, columns, .. } = self;
        let into = format!("COPY {name} ({columns}, partition) FROM STDIN");
        if self.is_of_runs {
            let place = tables::PARTITION_OF_RUN;
            let out = |partition| {
                format!(
                    "COPY (SELECT {columns}, ({place} % {partitions})::smallint FROM {name} WHERE partition = \
                     {partition}) TO STDOUT"
                )
            };
            (0..from_partitions).map(|partition| (out(partition), into.clone())).collect()
        } else {
            // Every partition has the same rows.
            let out = format!(
                "COPY (SELECT {columns}, place FROM {name} CROSS JOIN generate_series(0, {partitions} - 1) AS place \
                 WHERE partition = 0) TO STDOUT"
            );
            vec![(out, into)]
        }
    }
}
