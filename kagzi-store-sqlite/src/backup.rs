//! Backups: a copy of the file as it is at one moment, checked, whole or not there at all.
//!
//! `VACUUM INTO` reads in one transaction, so a server that writes meanwhile is neither disturbed nor seen
//! half way. SQLite's backup API would copy page by page and begin anew whenever another process commits;
//! under load it would never end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kagzi_core::{SchemaPolicy, StoreError};
use rusqlite::Connection;
use tempfile::NamedTempFile;

use crate::SqliteOptions;
use crate::error::{is_busy, nothing_happened, unavailable};
use crate::schema::{cannot_open, check_place, connect, identity_of};

/// What a backup or a restored store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// How long the file is.
    pub bytes: u64,
    /// How many runs are in it.
    pub runs: u64,
    /// The version of its schema.
    pub schema_version: i64,
}

/// What a restore does about a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// It refuses.
    #[default]
    Keep,
    /// It puts it aside under another name, unless somebody has it open.
    PutAside,
}

/// What a restore made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What the restored store holds.
    pub copied: Copied,
    /// Where the file is now that was there before.
    pub put_aside: Option<PathBuf>,
}

/// Copies the store to a new file.
pub(crate) fn back_up(options: &SqliteOptions, to: &Path) -> Result<Copied, StoreError> {
    let connection = open_existing("store", options.path(), options)?;
    refuse_existing("to", to)?;
    let (copy, copied) = copy(&connection, to)?;
    put(copy, to, "to")?;
    Ok(copied)
}

/// Makes a store from a backup.
pub(crate) fn restore(
    from: &Path,
    options: &SqliteOptions,
    existing: Existing,
) -> Result<Restored, StoreError> {
    let backup = open_existing("from", from, options)?;
    check_sound(&backup, from)?;
    let to = options.path();
    check_place(to)?;
    match existing {
        Existing::Keep => refuse_existing("store", to)?,
        Existing::PutAside => refuse_open(to)?,
    }
    let (copy, _) = copy(&backup, to)?;
    let fenced = connect(copy.path(), SchemaPolicy::Require)?;
    fence(&fenced).map_err(|error| nothing_happened(&error))?;
    let copied = measure(&fenced, copy.path())?;
    drop(fenced);
    let put_aside = put_aside(to)?;
    put(copy, to, "store")?;
    Ok(Restored { copied, put_aside })
}

fn open_existing(field: &str, path: &Path, options: &SqliteOptions) -> Result<Connection, StoreError> {
    let got = |what: &str| refused(field, "the file of a store", format!("{}, {what}", path.display()));
    if !path.is_file() {
        return Err(got("where there is none"));
    }
    let connection = connect(path, SchemaPolicy::Require)?;
    connection.busy_timeout(options.busy_timeout).map_err(|error| nothing_happened(&error))?;
    if !identity_of(&connection, path)?.is_ours() {
        return Err(got("which is empty"));
    }
    Ok(connection)
}

/// Copies into a file without a name of its own yet, in the directory of `to`.
fn copy(from: &Connection, to: &Path) -> Result<(NamedTempFile, Copied), StoreError> {
    let failed = |error: io::Error| cannot_write(to, &error);
    let file = tempfile::Builder::new()
        .prefix(".kagzi-")
        .suffix(".partial")
        .tempfile_in(directory(to))
        .map_err(failed)?;
    let Some(name) = file.path().to_str() else {
        return Err(refused("to", "a path in UTF-8", to.display().to_string()));
    };
    from.execute("VACUUM INTO ?1", [name]).map_err(|error| cannot_open(to, &error))?;
    let copy = connect(file.path(), SchemaPolicy::Require)?;
    check_sound(&copy, file.path())?;
    let copied = measure(&copy, file.path())?;
    Ok((file, copied))
}

/// Every page, every index against its table, and every row's run.
fn check_sound(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let check = || -> rusqlite::Result<(String, bool)> {
        let told = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok((told, connection.prepare("PRAGMA foreign_key_check")?.exists([])?))
    };
    let damaged = |detail: String| {
        let detail = format!("{}: {detail}; take another backup", path.display());
        Err(StoreError::Internal { context: "checking a copy", detail })
    };
    match check().map_err(|error| cannot_open(path, &error))? {
        (told, _) if told != "ok" => damaged(told),
        (_, true) => damaged("rows without their run".to_owned()),
        _ => Ok(()),
    }
}

fn measure(connection: &Connection, path: &Path) -> Result<Copied, StoreError> {
    let runs: i64 = connection
        .query_row("SELECT count(*) FROM runs", [], |row| row.get(0))
        .map_err(|error| nothing_happened(&error))?;
    let bytes = path.metadata().map_err(|error| cannot_write(path, &error))?.len();
    let schema_version = identity_of(connection, path)?.version;
    Ok(Copied { bytes, runs: runs.unsigned_abs(), schema_version })
}

/// Workers may still hold leases that were given out after the backup was made, under tokens that the
/// restored store would give out again. So the tokens of all runs that can still be worked on jump beyond
/// whatever was given out: by the milliseconds since 1970, which no run was claimed that often in.
fn fence(connection: &Connection) -> rusqlite::Result<()> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    let jump = i64::try_from(since_1970).unwrap_or(i64::MAX >> 1);
    connection.execute(
        "UPDATE runs SET fencing_token = fencing_token + ?1 WHERE state NOT IN ('COMPLETED', 'CANCELLED')",
        [jump],
    )?;
    Ok(())
}

/// SQLite gives the file to nobody alone while somebody else has it open.
fn refuse_open(path: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Ok(());
    }
    let alone = connect(path, SchemaPolicy::Require).map(|connection| {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
    });
    match alone {
        Ok(Err(error)) if is_busy(&error) => Err(refused(
            "store",
            "a file that nobody has open: stop every server on it first",
            format!("{}, which is open", path.display()),
        )),
        // What cannot be read, such as a damaged file, is put aside as it is.
        _ => Ok(()),
    }
}

/// Gives the file and its log other names; a log that stayed would be taken for the new file's.
fn put_aside(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    let aside = beside(path, &format!(".replaced-{now}"));
    let mut moved = None;
    for suffix in ["-wal", "-shm", ""] {
        let (old, new) = (beside(path, suffix), beside(&aside, suffix));
        match std::fs::rename(&old, new) {
            Ok(()) => moved = Some(aside.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot_write(&old, &error)),
        }
    }
    Ok(moved)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Gives the copy its name, durably, and only if nobody else has taken it.
fn put(copy: NamedTempFile, to: &Path, field: &str) -> Result<(), StoreError> {
    let failed = |error: io::Error| cannot_write(to, &error);
    // The handle that made the file is not the one that SQLite wrote with; syncing is about the file.
    File::open(copy.path()).and_then(|file| file.sync_all()).map_err(failed)?;
    copy.persist_noclobber(to).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => taken(field, to),
        _ => failed(error.error),
    })?;
    File::open(directory(to)).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Nothing is overwritten, a log that was left behind included.
fn refuse_existing(field: &str, path: &Path) -> Result<(), StoreError> {
    match ["", "-wal", "-shm"].map(|suffix| beside(path, suffix)).into_iter().find(|path| path.exists()) {
        Some(there) => Err(taken(field, &there)),
        None => Ok(()),
    }
}

fn taken(field: &str, path: &Path) -> StoreError {
    let expected = match field {
        "store" => "a file that is not there yet; or say that it may be put aside (`kagzi restore --force`)",
        _ => "a file that is not there yet",
    };
    refused(field, expected, format!("{}, which exists", path.display()))
}

fn cannot_write(path: &Path, error: &io::Error) -> StoreError {
    unavailable(format!(
        "{} cannot be written: {error}; check its directory and the room there",
        path.display()
    ))
}

fn refused(field: &str, expected: &str, got: String) -> StoreError {
    StoreError::InvalidArgument { field: field.to_owned(), expected: expected.to_owned(), got }
}
