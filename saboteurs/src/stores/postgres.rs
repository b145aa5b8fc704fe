//! The Postgres store, as it is or over a schema that somebody has tampered with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{Schemas, TestDatabase, TestSchema};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;

use crate::patch::{Patch, patched};

/// The functions that the store works with; of one that was replaced, the last is meant.
const FUNCTIONS: &str = concat!(
    include_str!("../../../kagzi-store-postgres/migrations/0002_functions.sql"),
    include_str!("../../../kagzi-store-postgres/migrations/0002_reaping.sql"),
    include_str!("../../../kagzi-store-postgres/migrations/0003_queues.sql"),
    include_str!("../../../kagzi-store-postgres/migrations/0004_look.sql"),
    include_str!("../../../kagzi-store-postgres/migrations/0005_cluster.sql")
);

/// What is done to the schema of a store, once the store has made it.
#[derive(Clone, Copy, Debug)]
pub enum Tampering {
    /// Nothing.
    None,
    /// This is run on it.
    Script(&'static str),
    /// This function is changed.
    Function(&'static str, &'static [Patch]),
    /// This function is changed, and this is run.
    FunctionAndScript(&'static str, &'static [Patch], &'static str),
}

impl Tampering {
    /// What is run on a fresh schema.
    ///
    /// # Errors
    ///
    /// If a patch no longer fits the function it is for.
    pub fn script(self) -> Result<String, FixtureError> {
        match self {
            Self::None => Ok(String::new()),
            Self::Script(script) => Ok(script.to_owned()),
            Self::Function(name, patches) => function(name, patches),
            Self::FunctionAndScript(name, patches, script) => {
                Ok(format!("{}{script}", function(name, patches)?))
            }
        }
    }
}

/// The definition of a function with the patches.
fn function(name: &str, patches: &[Patch]) -> Result<String, FixtureError> {
    let begins = FUNCTIONS
        .rfind(&format!(" FUNCTION {name}("))
        .ok_or_else(|| format!("there is no function {name}"))?;
    let rest = FUNCTIONS.get(begins..).unwrap_or_default();
    let ends = rest.find("END $$;").ok_or_else(|| format!("the function {name} does not end"))?;
    let replaced = format!("CREATE OR REPLACE{}END $$;\n", rest.get(..ends).unwrap_or_default());
    patches.iter().try_fold(replaced, |function, patch| patched(&function, patch))
}

/// One database for all saboteurs, made when the first needs it. No two cases are in one schema at a
/// time, and no saboteur has a schema that another one tampered with.
#[derive(Clone, Debug, Default)]
pub struct Database(Arc<OnceCell<TestDatabase>>);

impl Database {
    async fn get(&self) -> Result<&TestDatabase, FixtureError> {
        let make =
            || async { Ok::<_, FixtureError>(kagzi_testkit::postgres().await?.fresh_database().await?) };
        self.0.get_or_try_init(make).await
    }

    /// Drops the database, if it was made, with every schema in it; nothing may use it any more.
    ///
    /// # Errors
    ///
    /// Whatever the server says.
    pub async fn remove(&self) -> Result<(), FixtureError> {
        let Some(database) = self.0.get() else { return Ok(()) };
        let mut connection = PgConnection::connect(kagzi_testkit::postgres().await?.url()).await?;
        // The name is the testkit's own: letters, digits and underscores.
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", database.name());
        connection.execute(AssertSqlSafe(drop)).await?;
        Ok(connection.close().await?)
    }
}

/// The store over a schema that was tampered with.
#[derive(Debug)]
pub struct Postgres {
    database: Database,
    tampering: Tampering,
    partitions: u16,
    schemas: Arc<Schemas>,
}

impl Postgres {
    /// The store with its runs spread over so many partitions.
    pub fn new(database: &Database, tampering: Tampering, partitions: u16) -> Self {
        Self { database: database.clone(), tampering, partitions, schemas: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_patched_and_replaced() {
        const PATCH: &[Patch] = &[Patch { from: "WHERE n.abandon;", to: "WHERE false;" }];
        let script = Tampering::Function("kagzi_save_runs", PATCH).script().unwrap_or_default();
        assert!(
            script.starts_with("CREATE OR REPLACE FUNCTION kagzi_save_runs(")
                && script.contains("WHERE false;")
        );
        assert!(Tampering::Function("kagzi_steps", PATCH).script().is_err(), "it is another function's");
    }
}

#[derive(Debug)]
struct Opened {
    store: SharedStore,
    options: PostgresOptions,
    schemas: Arc<Schemas>,
    schema: String,
    /// Whether somebody else may still hold a store in the schema.
    shared: AtomicBool,
}

async fn handle(options: &PostgresOptions) -> Result<SharedStore, FixtureError> {
    Ok(Arc::new(PostgresStore::connect(options.clone()).await?))
}

async fn tamper(url: &str, schema: &str, script: &str) -> Result<(), FixtureError> {
    let mut connection = PgConnection::connect(url).await?;
    // The schema's name and the scripts are our own.
    connection.execute(AssertSqlSafe(format!("SET search_path TO {schema}"))).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(script.to_owned()))).await?;
    Ok(connection.close().await?)
}

#[async_trait::async_trait]
impl Fixture for Postgres {
    fn name(&self) -> String {
        match self.partitions {
            1 => "postgres".to_owned(),
            partitions => format!("postgres, {partitions} partitions"),
        }
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::SecondHandle, Capability::Reopen]
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        let script = self.tampering.script()?;
        let TestSchema { name, url, fresh } = self.schemas.take(self.database.get().await?).await?;
        let options = PostgresOptions {
            partitions: Some(self.partitions),
            schema: Some(name.clone()),
            clock: Some(clock),
            rules,
            // A machine with much else to do is slow to connect, and no defect of the store.
            acquire_timeout: Duration::from_mins(1),
            ..PostgresOptions::new(&url)
        };
        let store = handle(&options).await?;
        if fresh && !script.is_empty() {
            tamper(&url, &name, &script).await?;
        }
        // What a script leaves in a schema (a trigger, say) may be in the way of emptying it.
        let shared = AtomicBool::new(!matches!(self.tampering, Tampering::None | Tampering::Function(..)));
        Ok(Box::new(Opened { store, options, schemas: Arc::clone(&self.schemas), schema: name, shared }))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        self.shared.store(true, Ordering::Relaxed);
        handle(&self.options).await
    }

    async fn reopen(&mut self) -> Result<(), FixtureError> {
        self.shared.store(true, Ordering::Relaxed);
        // Let go of, without closing it, before the data are opened again.
        self.store = Arc::new(MemoryStore::default());
        self.store = handle(&self.options).await?;
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), FixtureError> {
        self.store.close().await?;
        if !self.shared.load(Ordering::Relaxed) {
            self.schemas.give_back(self.schema).await;
        }
        // The others go with the database.
        Ok(())
    }
}
