//! Whether the server takes writes now: what health and `kagzi doctor` ask.

use kagzi_core::{Finding, StoreError};
use sqlx::Row as _;

use crate::Inner;
use crate::citus;
use crate::error::{Fault, RETRY_AFTER, is_forbidden, is_full};
use crate::statement::{Tx, query};

/// Takes the locks that every write takes, and lets go of them: who changes the schema writes the row of `kagzi_schema` as
/// a probe does, and neither may wait for the other. It waits for the tables less than who looks at the health has
/// patience for, so that it hears which is locked, and longer than for a lock that somebody takes in passing.
const TRY_LOCKS: &str = "
    SAVEPOINT unlocked;
    SET LOCAL lock_timeout = '150ms';
    LOCK TABLE runs, payloads, steps, operations, queues IN ROW EXCLUSIVE MODE;
    ROLLBACK TO SAVEPOINT unlocked";

/// Takes a mebibyte where the runs lie, and gives it back: a write that finds its place in pages that are there says
/// nothing of a disk that is full. Rows this short are neither compressed nor put apart.
const TAKE_ROOM: &str = "
    SELECT set_config('temp_tablespaces', coalesce(
        (SELECT quote_ident(s.spcname) FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace
         WHERE c.oid = 'runs'::regclass), ''), true);
    CREATE TEMP TABLE kagzi_room ON COMMIT DROP AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 1024);
    ROLLBACK TO SAVEPOINT before_room";

const REMEDY: &str = "see pg_locks and pg_stat_activity for what holds it (CREATE INDEX, ALTER TABLE, VACUUM FULL, LOCK); \
                      let that end, or end it by pg_terminate_backend; make indexes CONCURRENTLY";

/// What keeps the server from taking writes.
#[derive(Debug)]
enum Obstacle {
    ReadOnly,
    /// Somebody has locked a table against writes.
    Locked(String),
}

/// What there is on the disk of the tables.
#[derive(Debug)]
pub(crate) enum Room {
    Some,
    None(Fault),
}

impl Inner {
    /// Whether the server answers and takes writes: one that was promoted over us, or a standby that a URL
    /// of several hosts led to, does not; nor does one whose commits wait for a standby that has gone, or whose tables
    /// are locked.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        let failed = |fault: Fault| fault.into_store_error("looking whether the server takes writes");
        let reason = match self.write_nothing().await.map_err(failed)? {
            None => return Ok(()),
            Some(Obstacle::ReadOnly) => {
                "Postgres is read-only now; point the URL at the primary, or name all servers in it"
                    .to_owned()
            }
            Some(Obstacle::Locked(what)) => format!("{what}, and nothing can be written: {REMEDY}"),
        };
        Err(StoreError::unavailable(reason, RETRY_AFTER))
    }

    /// Whether there is room on the disk, for operators: nothing where that cannot be seen, since the server is a standby or
    /// this user may make no table for a while.
    pub(crate) async fn examine_room(&self) -> Result<Option<Room>, Fault> {
        let mut tx = self.pool.begin().await?;
        let room = if is_read_only(&mut tx).await? { None } else { self.take_room(&mut tx).await? };
        tx.rollback().await?;
        Ok(room)
    }

    /// Nothing where nobody can tell: a role or a trigger forbids what the store itself has no need of, or the tables lie
    /// on the nodes of a cluster.
    async fn take_room(&self, tx: &mut Tx<'_>) -> Result<Option<Room>, Fault> {
        if self.partitions > 1 && citus::is_installed(tx).await? {
            return Ok(None);
        }
        tx.run("SAVEPOINT before_room").await?;
        let room = match tx.run(TAKE_ROOM).await {
            Ok(()) => return Ok(Some(Room::Some)),
            Err(error) if is_full(&error) => Some(Room::None(error.into())),
            Err(sqlx::Error::Database(error)) => {
                tracing::debug!(%error, "whether the disk has room cannot be seen");
                None
            }
            Err(error) => return Err(error.into()),
        };
        tx.run("ROLLBACK TO SAVEPOINT before_room").await?;
        Ok(room)
    }

    /// The same about the tables, for operators. Nothing where nothing can be locked, since the server is a standby.
    pub(crate) async fn examine_locks(&self) -> Result<Option<Finding>, Fault> {
        let mut tx = self.pool.begin().await?;
        if is_read_only(&mut tx).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        Ok(Some(match self.try_locks(&mut tx).await {
            Ok(()) => {
                tx.rollback().await?;
                Finding::ok("locks", "no table is locked against writes")
            }
            Err(fault) if fault.is_locked() => {
                tx.rollback().await?;
                Finding::fail("locks", self.who_locks().await?, REMEDY)
            }
            Err(fault) => return Err(fault),
        }))
    }

    /// Writes what stands there again, and waits until that is as durable as any write. One that waits holds the row,
    /// so that those who look meanwhile give up by the timeout of locks, and do not wait for a commit each.
    async fn write_nothing(&self) -> Result<Option<Obstacle>, Fault> {
        let mut tx = self.pool.begin().await?;
        if is_read_only(&mut tx).await? {
            tx.leave_server();
            tx.rollback().await?;
            return Ok(Some(Obstacle::ReadOnly));
        }
        match self.try_locks(&mut tx).await {
            Ok(()) => {}
            Err(fault) if fault.is_locked() => {
                tx.rollback().await?;
                return Ok(Some(Obstacle::Locked(self.who_locks().await?)));
            }
            Err(fault) => return Err(fault),
        }
        // Not asked where nobody missed it: each time leaves some rows in the catalogue for vacuum.
        if self.pool.is_full() {
            match self.take_room(&mut tx).await? {
                None => {}
                Some(Room::Some) => self.pool.found_room(),
                Some(Room::None(fault)) => return Err(fault),
            }
        }
        match query("UPDATE kagzi_schema SET version = version").execute(&mut tx).await {
            Ok(()) => tx.commit().await.map_err(Fault::Committing)?,
            // Somebody else keeps the schema: whether it takes our writes, our writes tell.
            Err(error) if is_forbidden(&error) => tx.rollback().await?,
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    /// Whether the tables can be locked as every write locks them. Not asked on a cluster: there Citus takes such locks on every
    /// node, which costs, and fails for all of them if one is away.
    async fn try_locks(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        if self.partitions > 1 && citus::is_installed(tx).await? {
            return Ok(());
        }
        Ok(tx.run(TRY_LOCKS).await?)
    }

    /// Which table is locked by whom: by one who has it, or else by one who waits for it and has others wait behind.
    async fn who_locks(&self) -> Result<String, Fault> {
        let rows = self.fetch_all(query(WHO_LOCKS)).await?;
        let Some(row) = rows.first() else { return Ok("a table was locked for a moment".to_owned()) };
        let (table, mode): (String, String) = (row.try_get("name")?, row.try_get("mode")?);
        let (pid, granted): (Option<i32>, bool) = (row.try_get("pid")?, row.try_get("granted")?);
        let pid = pid.map_or_else(|| "a prepared transaction".to_owned(), |pid| format!("process {pid}"));
        Ok(if granted {
            format!("the table {table} is locked ({mode}, by {pid})")
        } else {
            format!("{pid} waits to lock the table {table} ({mode}), and writes wait behind it")
        })
    }
}

async fn is_read_only(tx: &mut Tx<'_>) -> Result<bool, sqlx::Error> {
    let asked = query("SELECT current_setting('transaction_read_only') = 'on' AS read_only");
    asked.fetch_one(tx).await?.try_get("read_only")
}

/// The modes are those that conflict with the one that writes take.
const WHO_LOCKS: &str = "
    SELECT c.relname::text AS name, l.mode, l.pid, l.granted
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.locktype = 'relation' AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'kagzi_schema'::regclass)
      AND c.relname IN ('runs', 'payloads', 'steps', 'operations', 'queues')
    ORDER BY l.granted DESC, c.relname LIMIT 1";
