//! What the file stands on, for operators: see [`Store::examine`](kagzi_core::Store::examine).

use std::path::Path;

use kagzi_core::Finding;
use rusqlite::Connection;

use crate::schema::{MIGRATIONS, NEWEST};

/// Below this much room the next busy hour may fill the disk.
const LITTLE_ROOM: u64 = 1 << 30;

/// Below this much room the log alone, at its longest, may fill the disk.
const NO_ROOM: u64 = 128 << 20;

/// The log is brought back at 64 MiB; beyond this somebody keeps it from that.
const LONG_LOG: u64 = 256 << 20;

/// How many damaged places are told.
const PLACES_TOLD: usize = 5;

/// Looks at everything, in a read transaction.
pub(crate) fn examine(connection: &Connection, path: &Path) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("version", format!("SQLite {}", rusqlite::version()))];
    let checks: [(&'static str, Check); 4] =
        [("schema", schema), ("integrity", integrity), ("indexes", indexes), ("durability", durability)];
    for (name, check) in checks {
        findings.push(check(connection).unwrap_or_else(|error| damaged(name, &error.to_string())));
    }
    findings.push(log(path));
    findings.extend(readers(path));
    findings.extend(room(path));
    findings
}

type Check = fn(&Connection) -> rusqlite::Result<Finding>;

fn damaged(check: &'static str, found: &str) -> Finding {
    Finding::fail(
        check,
        found,
        "stop every server on the file, keep a copy of it, and restore a backup with `kagzi restore`, or \
         salvage it with `sqlite3 FILE .recover`",
    )
}

fn schema(connection: &Connection) -> rusqlite::Result<Finding> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(if version == i64::from(NEWEST) {
        Finding::ok("schema", format!("version {version}"))
    } else {
        let found = format!("version {version}, this program knows {NEWEST}");
        Finding::fail("schema", found, "run `kagzi migrate`, or the newer program that migrated the file")
    })
}

/// The quick one, which reads every page and leaves out whether indexes agree with their tables.
fn integrity(connection: &Connection) -> rusqlite::Result<Finding> {
    let told = texts(connection, &format!("PRAGMA quick_check({PLACES_TOLD})"))?;
    Ok(match told.as_slice() {
        [fine] if fine == "ok" => Finding::ok("integrity", "quick_check found no damage"),
        told => damaged("integrity", &told.join("; ")),
    })
}

/// What the migrations make, compared with what is there.
fn indexes(connection: &Connection) -> rusqlite::Result<Finding> {
    const INDEXES: &str = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL";
    let model = Connection::open_in_memory()?;
    for (_, migration) in MIGRATIONS {
        model.execute_batch(migration)?;
    }
    let (expected, present) = (texts(&model, INDEXES)?, texts(connection, INDEXES)?);
    let missing: Vec<&str> =
        expected.iter().filter(|sql| !present.contains(sql)).map(String::as_str).collect();
    Ok(if missing.is_empty() {
        Finding::ok("indexes", format!("all {} are present", expected.len()))
    } else {
        let statements: Vec<String> = missing.iter().map(|sql| format!("{};", in_one_line(sql))).collect();
        Finding::fail(
            "indexes",
            format!("{} of {} missing or of another shape", missing.len(), expected.len()),
            format!("drop those of another shape and run: {}", statements.join(" ")),
        )
    })
}

/// As the connections of the store see it.
fn durability(connection: &Connection) -> rusqlite::Result<Finding> {
    let journal: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    let synchronous: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    let found = format!(
        "journal_mode = {journal}, synchronous = {}",
        ["OFF", "NORMAL", "FULL", "EXTRA"].get(usize::try_from(synchronous).unwrap_or(9)).unwrap_or(&"?")
    );
    Ok(if journal == "wal" && synchronous >= 2 {
        Finding::ok("durability", found)
    } else {
        let remedy = "it needs wal and FULL, which the store asks for when it opens a file: move the file to a \
                      local file system that can share memory between processes";
        Finding::fail("durability", found, remedy)
    })
}

fn log(path: &Path) -> Finding {
    let mut beside = path.as_os_str().to_owned();
    beside.push("-wal");
    let length = Path::new(&beside).metadata().map_or(0, |file| file.len());
    let found = format!("the write-ahead log holds {} MiB", length >> 20);
    if length < LONG_LOG {
        Finding::ok("log", found)
    } else {
        Finding::warn(
            "log",
            found,
            "end whoever reads the file for so long, such as a forgotten sqlite3 shell",
        )
    }
}

/// Who may read the file, and with it every payload.
#[cfg(unix)]
fn readers(path: &Path) -> Option<Finding> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(judge_mode(path.metadata().ok()?.permissions().mode()))
}

#[cfg(not(unix))]
fn readers(_: &Path) -> Option<Finding> {
    None
}

#[cfg(unix)]
fn judge_mode(mode: u32) -> Finding {
    let found = format!("the mode of the file is {:04o}", mode & 0o7777);
    if mode & 0o006 == 0 {
        Finding::ok("privacy", found)
    } else {
        let found = format!("{found}: every user of this machine may read it, payloads included");
        Finding::warn("privacy", found, "chmod 600 the file and those beside it that end in -wal and -shm")
    }
}

#[cfg(unix)]
fn room(path: &Path) -> Option<Finding> {
    let file = path.metadata().map_or(0, |file| file.len());
    let disk = rustix::fs::statvfs(path).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Some(judge_room(file, free))
}

#[cfg(not(unix))]
fn room(_: &Path) -> Option<Finding> {
    None
}

fn judge_room(file: u64, free: u64) -> Finding {
    let found = format!("the file holds {} MiB, its disk has {} MiB left", file >> 20, free >> 20);
    let remedy = "free some space, remove finished runs, or move the file to a larger disk";
    match free {
        _ if free < NO_ROOM => Finding::fail("disk", found, remedy),
        _ if free < LITTLE_ROOM => Finding::warn("disk", found, remedy),
        _ => Finding::ok("disk", found),
    }
}

fn texts(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}

fn in_one_line(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use kagzi_core::Verdict;

    use super::*;
    use crate::{SqliteOptions, schema};

    fn verdicts(findings: &[Finding]) -> Vec<(&'static str, Verdict)> {
        findings.iter().map(|finding| (finding.check, finding.verdict)).collect()
    }

    fn verdict(findings: &[Finding], check: &str) -> Finding {
        findings.iter().find(|finding| finding.check == check).unwrap().clone()
    }

    #[test]
    fn a_new_file_has_all_that_is_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let connection = schema::open_writer(&options).unwrap();
        let mut findings = examine(&connection, options.path());
        // What is left on the disk of this machine is not the file's doing.
        findings.retain(|finding| finding.check != "disk");
        let mut checks = vec!["version", "schema", "integrity", "indexes", "durability", "log"];
        if cfg!(unix) {
            checks.push("privacy");
        }
        let all_well: Vec<_> = checks.into_iter().map(|check| (check, Verdict::Ok)).collect();
        assert_eq!(verdicts(&findings), all_well, "{findings:?}");
    }

    #[test]
    fn a_missing_index_is_told_with_the_statement_that_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let connection = schema::open_writer(&options).unwrap();
        connection.execute_batch("DROP INDEX runs_attention").unwrap();
        let found = verdict(&examine(&connection, options.path()), "indexes");
        assert_eq!(found.verdict, Verdict::Fail);
        let remedy = found.remedy.unwrap();
        let statement = remedy.split_once("run: ").unwrap().1;
        connection.execute_batch(statement).unwrap();
        assert_eq!(verdict(&examine(&connection, options.path()), "indexes").verdict, Verdict::Ok);
    }

    #[test]
    fn another_version_and_a_careless_connection_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        let connection = schema::open_writer(&options).unwrap();
        connection.execute_batch("PRAGMA user_version = 1; PRAGMA synchronous = NORMAL").unwrap();
        let findings = examine(&connection, options.path());
        assert_eq!(verdict(&findings, "schema").verdict, Verdict::Fail);
        assert_eq!(verdict(&findings, "durability").verdict, Verdict::Fail);
    }

    #[test]
    fn a_damaged_page_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("kagzi.db"));
        drop(schema::open_writer(&options).unwrap());
        let mut bytes = std::fs::read(options.path()).unwrap();
        let pages = bytes.len() / 4096;
        bytes[(pages - 1) * 4096..].fill(0xa5);
        std::fs::write(options.path(), bytes).unwrap();
        let connection = schema::open_reader(&options).unwrap();
        let found = verdict(&examine(&connection, options.path()), "integrity");
        assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_everybody_may_read_is_a_warning() {
        assert_eq!(judge_mode(0o100_600).verdict, Verdict::Ok);
        assert_eq!(judge_mode(0o100_640).verdict, Verdict::Ok);
        for open in [0o100_644, 0o100_604, 0o100_602] {
            let found = judge_mode(open);
            assert_eq!(found.verdict, Verdict::Warn);
            assert!(found.remedy.is_some_and(|remedy| remedy.contains("chmod 600")), "{open:o}");
        }
    }

    #[test]
    fn little_room_is_a_warning_and_none_a_failure() {
        assert_eq!(judge_room(0, LITTLE_ROOM).verdict, Verdict::Ok);
        assert_eq!(judge_room(0, LITTLE_ROOM - 1).verdict, Verdict::Warn);
        assert_eq!(judge_room(0, NO_ROOM - 1).verdict, Verdict::Fail);
    }
}
