//! A standby of a cluster, by streaming replication.

use std::process::Command;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::cluster::{ClusterOptions, PostgresCluster};
use crate::program::run;
use crate::{TestkitError, free_port};

/// How long a standby may take to stream, or to stop.
const LIMIT: Duration = Duration::from_secs(30);

impl PostgresCluster {
    /// Makes a copy of this running cluster and starts it as a standby that follows by streaming, under
    /// `name` (lower-case letters). It stops following when this one is killed and can be
    /// [promoted](Self::promote) then.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Program`] if `pg_basebackup` is missing or fails; [`TestkitError::NotReady`] if the
    /// standby does not answer within 30 s.
    pub async fn standby(&self, name: &str, options: ClusterOptions) -> Result<Self, TestkitError> {
        let mut standby = Self::empty(options, free_port()?)?;
        let source = format!(
            "host=127.0.0.1 port={} user=postgres application_name={name} sslmode=disable",
            self.port()
        );
        let mut words = standby.as_user();
        words.push(self.binaries().join("pg_basebackup").into());
        run(Command::new(&words[0])
            .args(&words[1..])
            .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "-d"])
            .arg(source)
            .arg("-D")
            .arg(standby.data()))?;
        standby.restart().await?;
        Ok(standby)
    }

    /// From when this returns, no commit on this cluster is answered before the standby `name` has it on
    /// its disk, however long that takes.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`]; [`TestkitError::NotReady`] if it does not stream within 30 s.
    pub async fn wait_for_standby(&self, name: &str) -> Result<(), TestkitError> {
        self.set("synchronous_standby_names", &format!("FIRST 1 ({name})")).await?;
        let streams =
            "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'";
        self.until(streams, "no synchronous standby streams from it").await
    }

    /// Waits until this standby has replayed all that its primary has written by now.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`]; [`TestkitError::NotReady`] if it has not within 30 s.
    pub async fn catch_up_with(&self, primary: &Self) -> Result<(), TestkitError> {
        let failed = |source| TestkitError::Database { doing: "asking a primary".to_owned(), source };
        let mut connection = PgConnection::connect(&primary.url()).await.map_err(failed)?;
        let row = connection.fetch_one("SELECT pg_current_wal_lsn()::text").await.map_err(failed)?;
        let written: String = row.try_get(0).map_err(failed)?;
        connection.close().await.map_err(failed)?;
        // Digits and a slash.
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        self.until(&question, "it does not catch up").await
    }

    /// Makes a standby a primary. The old one must be gone: nothing here fences it.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`]; [`TestkitError::NotReady`] if it is no primary within 30 s.
    pub async fn promote(&self) -> Result<(), TestkitError> {
        self.until("SELECT pg_promote()", "it is not promoted").await
    }

    /// Cuts a standby off its primary: it receives nothing any more.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`]; [`TestkitError::NotReady`] if it goes on receiving for 30 s.
    pub async fn stop_following(&self) -> Result<(), TestkitError> {
        self.set("primary_conninfo", "").await?;
        self.until("SELECT count(*) = 0 FROM pg_stat_wal_receiver", "it goes on receiving").await
    }

    /// Runs a statement in the database `postgres`, by itself.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn run(&self, statement: &str) -> Result<(), TestkitError> {
        let failed = |source| TestkitError::Database { doing: format!("running {statement:?}"), source };
        let mut connection = PgConnection::connect(&self.url()).await.map_err(failed)?;
        connection.execute(AssertSqlSafe(statement.to_owned())).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// Changes a setting while the server runs.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn set(&self, name: &str, value: &str) -> Result<(), TestkitError> {
        let set = format!("ALTER SYSTEM SET {name} = '{value}'");
        let failed = |source| TestkitError::Database { doing: format!("setting {name}"), source };
        let mut connection = PgConnection::connect(&self.url()).await.map_err(failed)?;
        // Each by itself: ALTER SYSTEM refuses to stand in a transaction.
        connection.execute(AssertSqlSafe(set)).await.map_err(failed)?;
        connection.execute("SELECT pg_reload_conf()").await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// Asks until the answer is yes.
    async fn until(&self, question: &str, otherwise: &str) -> Result<(), TestkitError> {
        let failed = |source| TestkitError::Database { doing: "asking a cluster".to_owned(), source };
        let mut connection = PgConnection::connect(&self.url()).await.map_err(failed)?;
        let started = Instant::now();
        loop {
            let answer = connection.fetch_one(AssertSqlSafe(question)).await;
            if answer.and_then(|row| row.try_get(0)).map_err(failed)? {
                return connection.close().await.map_err(failed);
            }
            if started.elapsed() > LIMIT {
                return Err(TestkitError::NotReady {
                    url: self.url(),
                    waited_secs: LIMIT.as_secs(),
                    detail: otherwise.to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
