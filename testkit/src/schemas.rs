//! Schemas that tests have one after the other, so that not each has to make its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::Mutex;

use crate::{TestDatabase, TestkitError};

/// A schema whose relations have grown beyond this is left behind: a new one costs less than emptying it.
const TOO_LARGE_BYTES: i64 = 8 * 1024 * 1024;

/// The schemas of one database. Making kagzi's tables and functions costs a server more than most cases
/// do, so a schema that a case is done with is emptied and had by another one.
///
/// Each schema's URL names the schema as the application. That is how [`take`](Self::take) knows that no
/// session of the last holder is left, not even one whose client went away in the middle of a statement.
#[derive(Debug, Default)]
pub struct Schemas {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The connection that looks and empties.
    broom: Option<PgConnection>,
    /// Given back, the longest first.
    resting: VecDeque<String>,
}

/// A schema that one test has to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestSchema {
    /// Its name: letters, digits and underscores.
    pub name: String,
    /// A URL of its database, to be used together with the name.
    pub url: String,
    /// It does not exist yet: whoever opens a store in it makes it.
    pub fresh: bool,
}

impl Schemas {
    /// A schema without a row: one that was given back and has no session left, or else a new one.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Database`].
    pub async fn take(&self, database: &TestDatabase) -> Result<TestSchema, TestkitError> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let used = self.emptied(database).await.map_err(|source| TestkitError::Database {
            doing: "emptying the schema of a test".to_owned(),
            source,
        })?;
        let fresh = used.is_none();
        let name = used.unwrap_or_else(|| format!("case_{}", MADE.fetch_add(1, Ordering::Relaxed)));
        let url = database.url();
        let sign = if url.contains('?') { '&' } else { '?' };
        Ok(TestSchema { url: format!("{url}{sign}application_name={name}"), name, fresh })
    }

    /// Lets another test have a schema. Nobody may hold a store in it any more, closed ones apart.
    pub async fn give_back(&self, name: String) {
        self.state.lock().await.resting.push_back(name);
    }

    async fn emptied(&self, database: &TestDatabase) -> Result<Option<String>, sqlx::Error> {
        let mut state = self.state.lock().await;
        let State { broom, resting } = &mut *state;
        for _ in 0..resting.len() {
            let Some(name) = resting.pop_front() else { break };
            let connection = match broom {
                Some(connection) => connection,
                None => broom.insert(PgConnection::connect(&database.url()).await?),
            };
            match look(connection, &name).await? {
                Condition::Busy => resting.push_back(name),
                Condition::Spent => {}
                Condition::Idle => {
                    empty(connection, &name).await?;
                    return Ok(Some(name));
                }
            }
        }
        Ok(None)
    }
}

/// What a schema that was given back is good for.
enum Condition {
    /// A session of its last holder has not ended yet.
    Busy,
    /// Nothing: it was never made, or has grown large.
    Spent,
    /// Another test.
    Idle,
}

async fn look(connection: &mut PgConnection, name: &str) -> Result<Condition, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = $1) AS sessions,
                (SELECT sum(pg_relation_size(oid))::bigint FROM pg_class
                 WHERE relnamespace = to_regnamespace($1)) AS bytes",
    )
    .bind(name)
    .fetch_one(connection)
    .await?;
    let bytes: Option<i64> = row.try_get("bytes")?;
    Ok(match (row.try_get::<i64, _>("sessions")?, bytes) {
        (0, Some(bytes)) if bytes <= TOO_LARGE_BYTES => Condition::Idle,
        (0, _) => Condition::Spent,
        _ => Condition::Busy,
    })
}

/// Deletes every row but that of the settings. `TRUNCATE` would make each file anew, which is what costs.
async fn empty(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    // The name is our own: letters, digits and underscores.
    let script = format!(
        "DO $$ DECLARE place text; BEGIN
             FOR place IN SELECT tablename FROM pg_tables
                          WHERE schemaname = '{name}' AND tablename <> 'kagzi_schema' LOOP
                 EXECUTE format('DELETE FROM {name}.%I', place);
             END LOOP;
         END $$"
    );
    connection.execute(AssertSqlSafe(script)).await?;
    Ok(())
}
