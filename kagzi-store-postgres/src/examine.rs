//! What the database stands on, for operators: see [`Store::examine`](kagzi_core::Store::examine).

use kagzi_core::{Finding, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::Inner;
use crate::error::Fault;
use crate::nodes;
use crate::probe::Room;
use crate::schema::{MIGRATIONS, VERSION};
use crate::statement::query;

/// The primary keys, which the migrations make without naming them.
const PRIMARY_KEYS: [&str; 4] = ["runs_pkey", "payloads_pkey", "steps_pkey", "operations_pkey"];

impl Inner {
    pub(crate) async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.look_at_everything().await.map_err(|fault| fault.into_store_error("examining the database"))
    }

    async fn look_at_everything(&self) -> Result<Vec<Finding>, Fault> {
        let rows = self.fetch_all(query(SETTINGS)).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let mut findings = vec![
            Finding::ok("version", format!("Postgres {}", text(row, "version")?)),
            writable(row)?,
            self.schema().await?,
            self.indexes().await?,
        ];
        findings.extend(self.examine_locks().await?);
        findings.extend([durability(row)?, standbys(row)?]);
        findings.extend(self.nodes().await?);
        findings.extend([
            self.connections(row)?,
            autovacuum(row)?,
            judge_disk(row.try_get("bytes")?, self.examine_room().await?),
        ]);
        Ok(findings)
    }

    async fn schema(&self) -> Result<Finding, Fault> {
        let rows = self.fetch_all(query("SELECT version FROM kagzi_schema")).await?;
        let version: i64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("version")?;
        let found = format!("version {version}, {} partitions", self.partitions);
        Ok(if version == VERSION {
            Finding::ok("schema", found)
        } else {
            let remedy = "run `kagzi migrate`, or the newer program that migrated the database";
            Finding::fail("schema", format!("{found}; this program knows version {VERSION}"), remedy)
        })
    }

    async fn indexes(&self) -> Result<Finding, Fault> {
        let rows = self.fetch_all(query(INDEXES)).await?;
        let mut present = Vec::with_capacity(rows.len());
        for row in &rows {
            present.push((row.try_get::<String, _>("name")?, row.try_get::<bool, _>("valid")?));
        }
        Ok(judge_indexes(&present))
    }

    async fn nodes(&self) -> Result<Option<Finding>, Fault> {
        let mut tx = self.pool.begin().await?;
        let found = nodes::examine(&mut tx, self.partitions).await?;
        tx.rollback().await?;
        Ok(found)
    }

    fn connections(&self, row: &PgRow) -> Result<Finding, Fault> {
        let listening = if self.notifier.is_some() { 2 } else { 0 };
        let wanted = i64::from(self.pool.most()) + listening;
        let number = |name: &str| row.try_get::<i32, _>(name).map(i64::from);
        let limits = [
            number("max_connections")? - number("reserved_connections")?,
            number("role_limit")?,
            number("database_limit")?,
        ];
        // -1: no limit.
        let room = limits.into_iter().filter(|limit| *limit >= 0).min().unwrap_or(0);
        if self.pool.is_pooled() {
            let found =
                format!("a pooler deals out the server's {room}; this store asks it for {wanted} at most");
            return Ok(Finding::ok("connections", found));
        }
        Ok(judge_connections(wanted, room, row.try_get("used")?))
    }
}

const SETTINGS: &str = "
    SELECT current_setting('server_version') AS version,
        pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only') AS read_only,
        current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
        current_setting('synchronous_commit') AS synchronous_commit,
        (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS default_synchronous_commit,
        current_setting('synchronous_standby_names') AS standbys,
        (SELECT count(*) FROM pg_stat_replication) AS following,
        (SELECT count(*) FROM pg_stat_activity
         WHERE wait_event = 'SyncRep' AND query_start < clock_timestamp() - interval '1 second') AS held_up,
        current_setting('max_connections')::integer AS max_connections,
        current_setting('superuser_reserved_connections')::integer
            + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved_connections,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role_limit,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
        (SELECT count(*) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS used,
        current_setting('autovacuum') AS autovacuum, current_setting('track_counts') AS track_counts,
        (SELECT coalesce(string_agg(relname::text, ', ' ORDER BY relname), '') FROM pg_class
         WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'kagzi_schema'::regclass)
           AND array_to_string(reloptions, ',') LIKE '%autovacuum_enabled=false%') AS never_vacuumed,
        pg_database_size(current_database()) AS bytes";

const INDEXES: &str = "
    SELECT i.relname::text AS name, x.indisvalid AND x.indisready AS valid
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
    WHERE t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'kagzi_schema'::regclass)
      AND t.relname IN ('runs', 'payloads', 'steps', 'operations', 'queues')";

fn text(row: &PgRow, name: &str) -> Result<String, sqlx::Error> {
    row.try_get(name)
}

fn writable(row: &PgRow) -> Result<Finding, Fault> {
    Ok(if row.try_get("standby")? {
        let remedy = "name the primary, or several hosts and target_session_attrs=read-write";
        Finding::fail("writable", "this server is a standby", remedy)
    } else if text(row, "read_only")? == "on" {
        let remedy = "set default_transaction_read_only = off for this role and database";
        Finding::fail("writable", "transactions are read-only unless they say otherwise", remedy)
    } else {
        Finding::ok("writable", "this server takes writes")
    })
}

fn durability(row: &PgRow) -> Result<Finding, Fault> {
    let names = ["fsync", "full_page_writes", "synchronous_commit", "default_synchronous_commit", "standbys"];
    let [fsync, pages, commit, default, standbys] = names.map(|name| text(row, name));
    Ok(judge_durability(&Durability {
        fsync: fsync?,
        full_page_writes: pages?,
        synchronous_commit: commit?,
        default: default?,
        standbys: standbys?,
    }))
}

struct Durability {
    fsync: String,
    full_page_writes: String,
    /// As the store's own sessions have it.
    synchronous_commit: String,
    /// As a session has it that asks for nothing.
    default: String,
    standbys: String,
}

fn judge_durability(set: &Durability) -> Finding {
    let found = format!(
        "fsync = {}, full_page_writes = {}, synchronous_commit = {}",
        set.fsync, set.full_page_writes, set.synchronous_commit
    );
    let fail = |remedy: &str| Finding::fail("durability", found.clone(), remedy);
    let warn = |found: String, remedy: &str| Finding::warn("durability", found, remedy);
    if set.fsync == "off" || set.full_page_writes == "off" {
        return fail(
            "set fsync = on and full_page_writes = on in postgresql.conf and restart: as it is, a crash of \
             the machine loses or damages what was acknowledged",
        );
    }
    if set.synchronous_commit == "off" {
        return fail("set synchronous_commit = on for this role and database");
    }
    if set.default == "off" {
        let remedy = "set synchronous_commit = on, so that other programs' writes are as safe";
        return warn(format!("{found} (off by default; the store turns it on for itself)"), remedy);
    }
    if !set.standbys.is_empty() && set.synchronous_commit == "local" {
        let remedy = "set synchronous_commit = on if a fail-over to a standby may lose nothing";
        return warn(format!("{found}: standbys are not waited for"), remedy);
    }
    Finding::ok("durability", found)
}

fn standbys(row: &PgRow) -> Result<Finding, Fault> {
    Ok(judge_standbys(&text(row, "standbys")?, row.try_get("following")?, row.try_get("held_up")?))
}

/// Of other users' sessions nobody can see what they wait for; the store's are its own. What follows may be a backup, which
/// nobody can see either.
fn judge_standbys(names: &str, following: i64, held_up: i64) -> Finding {
    if names.is_empty() && following > 0 {
        let remedy = "name the standbys in synchronous_standby_names; if only backups follow, or a fail-over may \
                      lose the last moments, leave it";
        let found = format!(
            "commits wait for none, while {following} follow this server: a fail-over to one may lose what was \
             acknowledged"
        );
        Finding::warn("standbys", found, remedy)
    } else if names.is_empty() {
        Finding::ok("standbys", "none follows this server, and commits wait for none")
    } else if held_up > 0 {
        let remedy = "see by pg_stat_replication that these standbys stream; start what is missing, or take it out \
                      of synchronous_standby_names";
        let found = format!("{held_up} commits have waited for `{names}` for more than a second");
        Finding::warn("standbys", found, remedy)
    } else {
        Finding::ok("standbys", format!("commits wait for `{names}`"))
    }
}

fn judge_connections(wanted: i64, room: i64, used: i64) -> Finding {
    let found = format!("{room} at most, {used} in use; this store opens up to {wanted}");
    let remedy = "lower store_connections, raise max_connections (or the limit of the role or database), or put \
                  a pooler between (`?pooler=transaction`); every server opens as many";
    if wanted > room {
        Finding::fail("connections", found, remedy)
    } else if used + wanted > room {
        Finding::warn("connections", found, remedy)
    } else {
        Finding::ok("connections", found)
    }
}

fn autovacuum(row: &PgRow) -> Result<Finding, Fault> {
    let (on, counts) = (text(row, "autovacuum")?, text(row, "track_counts")?);
    let never = text(row, "never_vacuumed")?;
    let found = format!("autovacuum = {on}, track_counts = {counts}");
    Ok(if on == "off" || counts == "off" {
        let remedy = "set both to on in postgresql.conf: without vacuum the tables grow with every write";
        Finding::warn("autovacuum", found, remedy)
    } else if never.is_empty() {
        Finding::ok("autovacuum", found)
    } else {
        let remedy = "for each: ALTER TABLE ... RESET (autovacuum_enabled)";
        Finding::warn("autovacuum", format!("{found}, but switched off for {never}"), remedy)
    })
}

/// Only the server's machine can see its disk.
fn judge_disk(bytes: i64, room: Option<Room>) -> Finding {
    let mebibytes = bytes >> 20;
    match room {
        None => Finding::ok(
            "disk",
            format!("the database holds {mebibytes} MiB; what is left on its disk cannot be seen from here"),
        ),
        Some(Room::Some) => Finding::ok(
            "disk",
            format!("the database holds {mebibytes} MiB and can grow; by how much cannot be seen from here"),
        ),
        Some(Room::None(fault)) => Finding::fail(
            "disk",
            format!("the database holds {mebibytes} MiB and cannot grow: {fault}"),
            "free some disk space, or enlarge the disk: writes fail until there is room",
        ),
    }
}

/// The indexes that the migrations make, each with its statement.
fn expected_indexes() -> Vec<(String, String)> {
    let statements = MIGRATIONS.iter().flat_map(|(.., sql)| sql.split(';'));
    statements
        .filter_map(|statement| {
            let lines = statement.lines().filter(|line| !line.trim_start().starts_with("--"));
            let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
            let name = match words.as_slice() {
                ["CREATE", "INDEX", name, ..] | ["CREATE", "UNIQUE", "INDEX", name, ..] => *name,
                _ => return None,
            };
            Some((name.to_owned(), words.join(" ").replacen("INDEX", "INDEX CONCURRENTLY", 1)))
        })
        .collect()
}

fn judge_indexes(present: &[(String, bool)]) -> Finding {
    let made = expected_indexes();
    let keys = PRIMARY_KEYS.map(|name| {
        let remedy = format!("restore the primary key {name}, as migrations/0001_tables.sql has it");
        (name.to_owned(), remedy)
    });
    let (mut trouble, mut remedies) = (Vec::new(), Vec::new());
    for (name, statement) in made.iter().chain(&keys) {
        match present.iter().find(|(other, _)| other == name) {
            Some((_, true)) => {}
            Some((_, false)) => {
                trouble.push(format!("{name} is invalid"));
                remedies.push(format!("REINDEX INDEX CONCURRENTLY {name};"));
            }
            None => {
                trouble.push(format!("{name} is missing"));
                remedies.push(format!("{statement};"));
            }
        }
    }
    if trouble.is_empty() {
        Finding::ok("indexes", format!("all {} are present and valid", made.len() + keys.len()))
    } else {
        Finding::fail(
            "indexes",
            trouble.join(", "),
            format!("run in the store's schema: {}", remedies.join(" ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use kagzi_core::Verdict;

    use super::*;

    fn all_present() -> Vec<(String, bool)> {
        let made = expected_indexes().into_iter().map(|(name, _)| name);
        made.chain(PRIMARY_KEYS.map(str::to_owned)).map(|name| (name, true)).collect()
    }

    #[test]
    fn a_missing_or_invalid_index_is_told_with_what_mends_it() {
        let mut present = all_present();
        assert_eq!(judge_indexes(&present).verdict, Verdict::Ok);
        present.retain(|(name, _)| name != "runs_idempotency_key");
        present.iter_mut().find(|(name, _)| name == "runs_ready").unwrap().1 = false;
        let found = judge_indexes(&present);
        assert_eq!(found.verdict, Verdict::Fail);
        let remedy = found.remedy.unwrap();
        for part in [
            "REINDEX INDEX CONCURRENTLY runs_ready;",
            "CREATE UNIQUE INDEX CONCURRENTLY runs_idempotency_key ON runs (namespace, idempotency_key, partition) \
             WHERE idempotency_key IS NOT NULL;",
        ] {
            assert!(remedy.contains(part), "{remedy}");
        }
    }

    #[test]
    fn commits_that_wait_for_a_standby_are_told() {
        assert_eq!(judge_standbys("", 0, 0).verdict, Verdict::Ok);
        let followed = judge_standbys("", 2, 0);
        assert_eq!(followed.verdict, Verdict::Warn);
        assert!(followed.found.contains("2 follow") && followed.found.contains("may lose"), "{followed:?}");
        assert_eq!(judge_standbys("ANY 1 (a, b)", 2, 0).verdict, Verdict::Ok);
        assert_eq!(judge_standbys("ANY 1 (a, b)", 2, 2).verdict, Verdict::Warn);
    }

    #[test]
    fn connections_are_judged_by_what_the_server_has_left() {
        assert_eq!(judge_connections(18, 97, 3).verdict, Verdict::Ok);
        assert_eq!(judge_connections(18, 97, 80).verdict, Verdict::Warn);
        assert_eq!(judge_connections(100, 97, 0).verdict, Verdict::Fail);
    }

    #[test]
    fn what_a_crash_would_lose_is_a_failure() {
        let set = |fsync: &str, commit: &str, default: &str, standbys: &str| {
            let set = Durability {
                fsync: fsync.to_owned(),
                full_page_writes: "on".to_owned(),
                synchronous_commit: commit.to_owned(),
                default: default.to_owned(),
                standbys: standbys.to_owned(),
            };
            judge_durability(&set).verdict
        };
        assert_eq!(set("on", "on", "on", ""), Verdict::Ok);
        assert_eq!(set("off", "on", "on", ""), Verdict::Fail);
        assert_eq!(set("on", "off", "off", ""), Verdict::Fail);
        assert_eq!(set("on", "on", "off", ""), Verdict::Warn);
        assert_eq!(set("on", "local", "local", "*"), Verdict::Warn);
        assert_eq!(set("on", "local", "local", ""), Verdict::Ok);
    }
}
