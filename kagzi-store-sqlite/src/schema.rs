//! The file: opening connections to it, telling whose it is, and bringing its schema up to date.

use std::path::Path;
use std::time::{Duration, Instant};

use kagzi_core::{MIGRATE_FIRST, Migration, SchemaPolicy, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{Error, is_busy, nothing_happened, unavailable};
use crate::options::SqliteOptions;

/// Marks a file as kagzi's: "kagz".
const APPLICATION_ID: i64 = 0x6b61_677a;

/// Every migration with its name, the first to the newest. Version *n* is the schema after the *n*-th; it
/// stands in `PRAGMA user_version`, written in the transaction of the migration itself.
pub(crate) const MIGRATIONS: [(&str, &str); NEWEST as usize] = [
    ("0001_runs_and_steps", include_str!("migrations/0001_runs_and_steps.sql")),
    ("0002_ready_of_type", include_str!("migrations/0002_ready_of_type.sql")),
    ("0003_queues", include_str!("migrations/0003_queues.sql")),
];

pub(crate) const NEWEST: u32 = 3;

/// What a file says about itself.
pub(crate) struct Identity {
    application_id: i64,
    pub(crate) version: i64,
    tables: i64,
}

/// Opens the connection of the writer, with the schema up to date. Any number of processes may do
/// so at once: one of them migrates, the others wait for it.
pub(crate) fn open_writer(options: &SqliteOptions) -> Result<Connection, StoreError> {
    prepare(options).map(|(connection, _)| connection)
}

/// Opens the connection of the writer, and answers what that did to the schema.
pub(crate) fn prepare(options: &SqliteOptions) -> Result<(Connection, Migration), StoreError> {
    check_place(&options.path)?;
    if options.schema == SchemaPolicy::Require && !options.path.exists() {
        return Err(too_old(0));
    }
    if options.schema == SchemaPolicy::Migrate {
        make_private(&options.path);
    }
    let connection = connect(&options.path, options.schema)?;
    let waiting_for_others = |error: rusqlite::Error| cannot_open(&options.path, &error);
    connection.busy_timeout(options.busy_timeout).map_err(waiting_for_others)?;
    let identity = look(&connection).map_err(waiting_for_others)?;
    check_identity(&options.path, &identity)?;
    if options.schema == SchemaPolicy::Require && identity.version < i64::from(NEWEST) {
        return Err(too_old(identity.version));
    }
    if connection.is_readonly("main").map_err(waiting_for_others)? {
        return Err(read_only(&options.path));
    }
    use_write_ahead_log(&connection, options.busy_timeout).map_err(waiting_for_others)?;
    set_up(&connection).map_err(waiting_for_others)?;
    connection
        .execute_batch(
            // Bigger than the default, since this connection touches every hot page; no bigger, since a commit
            // after a page was split walks over the whole table of the cache. What the log was longer than
            // 64 MiB is cut off when it starts again; see crate::checkpoint.
            "PRAGMA cache_size = -8192; PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(waiting_for_others)?;
    let migration = migrate(&connection, &options.path)?;
    // From here on the writer waits for others in its own way.
    connection.busy_timeout(Duration::ZERO).map_err(waiting_for_others)?;
    Ok((connection, migration))
}

/// What [`prepare`] would do to the schema, without doing it, nor making the file.
pub(crate) fn plan(options: &SqliteOptions) -> Result<Migration, StoreError> {
    check_place(&options.path)?;
    if !options.path.exists() {
        return Ok(migration_from(0));
    }
    let connection = connect(&options.path, SchemaPolicy::Require)?;
    let failed = |error: rusqlite::Error| cannot_open(&options.path, &error);
    connection.busy_timeout(options.busy_timeout).map_err(failed)?;
    Ok(migration_from(identity_of(&connection, &options.path)?.version))
}

/// What the file says about itself, if it is kagzi's, or new, and not of a newer version.
pub(crate) fn identity_of(connection: &Connection, path: &Path) -> Result<Identity, StoreError> {
    let identity = look(connection).map_err(|error| cannot_open(path, &error))?;
    check_identity(path, &identity)?;
    Ok(identity)
}

impl Identity {
    /// Whether kagzi's tables are in it.
    pub(crate) fn is_ours(&self) -> bool {
        self.application_id == APPLICATION_ID
    }
}

fn migration_from(version: i64) -> Migration {
    let done = usize::try_from(version).unwrap_or(0);
    let steps = MIGRATIONS.iter().skip(done).map(|(name, _)| *name).collect();
    Migration { from: version, to: i64::from(NEWEST), steps }
}

fn too_old(found: i64) -> StoreError {
    StoreError::SchemaMismatch { found, supported: i64::from(NEWEST), remedy: MIGRATE_FIRST }
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(options: &SqliteOptions) -> Result<Connection, StoreError> {
    let connection = connect(&options.path, options.schema)?;
    connection
        .busy_timeout(options.busy_timeout)
        .and_then(|()| set_up(&connection))
        .and_then(|()| connection.execute_batch("PRAGMA query_only = ON;"))
        .map_err(|error| cannot_open(&options.path, &error))?;
    Ok(connection)
}

/// SQLite says "unable to open database file" to all of this; people deserve better.
pub(crate) fn check_place(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(refused(
            "a file in an existing directory",
            format!("{}, but {} is not a directory; create it", path.display(), directory.display()),
        ));
    }
    match path.metadata() {
        Ok(file) if file.is_dir() => {
            Err(refused("a file", format!("{}, which is a directory", path.display())))
        }
        Ok(file) if file.permissions().readonly() => Err(read_only(path)),
        _ => Ok(()),
    }
}

/// Makes the file, if there is none, so that only its user can read it: payloads are nobody else's. SQLite gives its
/// log and its shared memory the same mode. A file that is there keeps what it has.
///
/// The file gets its name when nobody has it open any more: who closes a file drops all locks of the process on it.
fn make_private(path: &Path) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".kagzi-").suffix(".new").tempfile_in(directory);
    let made = file.and_then(|file| Ok(file.into_temp_path().persist_noclobber(path)?));
    // Somebody was faster, or the file system cannot do this, or nobody may write here: SQLite makes the file as it
    // can, or says why not, and `kagzi doctor` tells who may read it.
    if let Err(error) = made {
        tracing::debug!(path = %path.display(), %error, "the database file was not made in advance");
    }
}

pub(crate) fn connect(path: &Path, policy: SchemaPolicy) -> Result<Connection, StoreError> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    if policy == SchemaPolicy::Migrate {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// What every connection needs.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    // One plan a statement, whatever is bound: without it SQLite compiles most statements anew each time,
    // to see whether a value bound now would open a partial index.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;
         PRAGMA trusted_schema = OFF;",
    )
}

/// Identifies the file as it is at one moment: while this is read, another opener may migrate.
fn look(connection: &Connection) -> rusqlite::Result<Identity> {
    // Ends with its scope: there is nothing to commit.
    let _moment = connection.unchecked_transaction()?;
    identify(connection)
}

/// Within a transaction.
fn identify(connection: &Connection) -> rusqlite::Result<Identity> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get(0));
    Ok(Identity {
        application_id: number("PRAGMA application_id")?,
        version: number("PRAGMA user_version")?,
        tables: number("SELECT count(*) FROM sqlite_schema")?,
    })
}

/// Refuses files of other programs and of newer versions of this one, before anything is written.
fn check_identity(path: &Path, identity: &Identity) -> Result<(), StoreError> {
    let is_new = identity.application_id == 0 && identity.version == 0 && identity.tables == 0;
    if identity.application_id != APPLICATION_ID && !is_new {
        return Err(refused(
            "a new file or one that kagzi made",
            format!("{}, a SQLite database of another program; choose another path", path.display()),
        ));
    }
    if identity.version > i64::from(NEWEST) {
        return Err(StoreError::SchemaMismatch {
            found: identity.version,
            supported: i64::from(NEWEST),
            remedy: "upgrade this program, or open the file with the version that last wrote it",
        });
    }
    Ok(())
}

/// Two connections that switch at once can meet a lock for which SQLite does not wait by itself.
fn use_write_ahead_log(connection: &Connection, patience: Duration) -> rusqlite::Result<()> {
    let started = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Err(error) if is_busy(&error) && started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(2));
            }
            outcome => return outcome.map(|_| ()),
        }
    }
}

/// Applies what is missing, all of it or none.
fn migrate(connection: &Connection, path: &Path) -> Result<Migration, StoreError> {
    let failed = |error: rusqlite::Error| cannot_open(path, &error);
    connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    let outcome = identify(connection).map_err(failed).and_then(|identity| {
        // Another opener may have migrated since the first look, and be newer.
        check_identity(path, &identity)?;
        let done = usize::try_from(identity.version).unwrap_or(0);
        for (_, migration) in MIGRATIONS.iter().skip(done) {
            connection.execute_batch(migration).map_err(failed)?;
        }
        if done < MIGRATIONS.len() {
            connection
                .execute_batch(&format!(
                    "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {NEWEST};"
                ))
                .map_err(failed)?;
        }
        Ok(migration_from(identity.version))
    });
    match outcome {
        Ok(migration) => connection.execute_batch("COMMIT").map_err(failed).map(|()| migration),
        Err(error) => {
            if let Err(error) = connection.execute_batch("ROLLBACK") {
                tracing::debug!(%error, "a failed migration was rolled back by SQLite itself");
            }
            Err(error)
        }
    }
}

pub(crate) fn cannot_open(path: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => refused(
            "a new file or one that kagzi made",
            format!(
                "{}, which is not a SQLite database; choose another path, or restore a backup if it was one",
                path.display()
            ),
        ),
        Some(ErrorCode::ReadOnly) => read_only(path),
        Some(ErrorCode::CannotOpen) => unavailable(format!(
            "{} cannot be opened; check that this user may read and write it and its directory (SQLite: {error})",
            path.display()
        )),
        _ => nothing_happened(error),
    }
}

fn read_only(path: &Path) -> StoreError {
    unavailable(format!(
        "{} is read-only; make the file and its directory writable for this user",
        path.display()
    ))
}

fn refused(expected: &str, got: String) -> StoreError {
    StoreError::InvalidArgument { field: "path".to_owned(), expected: expected.to_owned(), got }
}

/// Writes the version that stands there again: the smallest write there is, which a file that is locked or
/// read-only does not take, nor one on a full disk once its log has no room left either.
pub(crate) fn rewrite_version(connection: &Connection) -> Result<(), Error> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(connection.pragma_update(None, "user_version", version)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use tempfile::TempDir;

    use super::*;

    fn file() -> (TempDir, SqliteOptions) {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        (directory, options)
    }

    #[test]
    fn eight_openers_at_once_migrate_once() {
        for _ in 0..5 {
            let (_directory, options) = file();
            let barrier = Barrier::new(8);
            std::thread::scope(|scope| {
                let openers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            open_writer(&options)
                        })
                    })
                    .collect();
                for opener in openers {
                    let identity = look(&opener.join().unwrap().unwrap()).unwrap();
                    assert_eq!(identity.application_id, APPLICATION_ID);
                    assert_eq!(identity.version, i64::from(NEWEST));
                }
            });
        }
    }

    #[test]
    fn a_file_of_an_older_version_is_brought_up_to_date_with_its_data() {
        let (_directory, options) = file();
        let old = Connection::open(options.path()).unwrap();
        old.execute_batch(MIGRATIONS[0].1).unwrap();
        old.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;
             INSERT INTO runs (run_id, namespace, queue, workflow_type, state, priority, due_at, claim_rank,
                 fencing_token, claims, lost_leases, failures, budget_token, created_at, updated_at)
             VALUES (zeroblob(16), 'n', 'q', 't', 'PENDING', 0, 1, 1, 0, 0, 0, 0, 0, 1, 1);"
        ))
        .unwrap();
        drop(old);
        let error = open_writer(&options.clone().schema(SchemaPolicy::Require)).unwrap_err();
        assert!(matches!(error, StoreError::SchemaMismatch { found: 1, .. }), "{error}");
        let planned = plan(&options).unwrap();
        assert_eq!(
            (planned.from, planned.steps.as_slice()),
            (1, ["0002_ready_of_type", "0003_queues"].as_slice())
        );
        assert_eq!(plan(&options).unwrap(), planned, "a plan changes nothing");
        let (connection, migration) = prepare(&options).unwrap();
        assert_eq!(migration, planned);
        assert_eq!(look(&connection).unwrap().version, i64::from(NEWEST));
        let by_type = "SELECT count(*) FROM runs INDEXED BY runs_ready_of_type WHERE state = 'PENDING' \
                       AND namespace = 'n' AND queue = 'q' AND workflow_type = 't'";
        assert_eq!(connection.query_row(by_type, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }

    #[test]
    fn every_connection_is_durable_and_keeps_foreign_keys() {
        let (_directory, options) = file();
        for connection in [open_writer(&options).unwrap(), open_reader(&options).unwrap()] {
            let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!(number("PRAGMA synchronous"), 2, "FULL");
            assert_eq!(number("PRAGMA foreign_keys"), 1);
            let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
        }
        assert!(open_reader(&options).unwrap().execute_batch("DELETE FROM runs").is_err(), "readers read");
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused_and_left_alone() {
        let (_directory, options) = file();
        open_writer(&options).unwrap().execute_batch("PRAGMA user_version = 77").unwrap();
        let error = open_writer(&options).unwrap_err();
        assert!(matches!(error, StoreError::SchemaMismatch { found: 77, .. }), "{error}");
    }

    #[test]
    fn a_database_of_another_program_is_refused_and_left_alone() {
        let (_directory, options) = file();
        let foreign = Connection::open(options.path()).unwrap();
        foreign.execute_batch("CREATE TABLE songs (title TEXT)").unwrap();
        let error = open_writer(&options).unwrap_err();
        assert!(error.to_string().contains("of another program"), "{error}");
        let mode: String = foreign.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete", "not even its journal was touched");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_and_left_alone() {
        let (_directory, options) = file();
        let text = "certainly not a database, but a text that is longer than a header ".repeat(20);
        std::fs::write(options.path(), &text).unwrap();
        let error = open_writer(&options).unwrap_err();
        assert!(error.to_string().contains("not a SQLite database"), "{error}");
        assert_eq!(std::fs::read_to_string(options.path()).unwrap(), text);
    }

    #[test]
    fn a_read_only_file_is_refused_with_the_remedy() {
        let (_directory, options) = file();
        drop(open_writer(&options).unwrap());
        let mut permissions = options.path().metadata().unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(options.path(), permissions).unwrap();
        let error = open_writer(&options).unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("read-only"), "{error}");
    }

    #[test]
    fn a_path_that_cannot_be_a_file_is_refused_by_name() {
        let (directory, _) = file();
        for path in [directory.path().join("no/such/directory.db"), directory.path().to_owned()] {
            let error = open_writer(&SqliteOptions::new(path)).unwrap_err();
            assert!(
                matches!(&error, StoreError::InvalidArgument { field, .. } if field == "path"),
                "{error}"
            );
        }
    }
}
