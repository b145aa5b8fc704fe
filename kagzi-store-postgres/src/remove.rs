//! Removing a schema: for those that were made to be thrown away.

use kagzi_core::StoreError;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::error::Fault;
use crate::options::PostgresOptions;
use crate::route::Route;
use crate::statement::Begin;

impl crate::PostgresStore {
    /// Removes the schema that `options` name, with every run in it. There is no way back; it is meant
    /// for schemas that tests and trials made for themselves. One that does not exist is no error.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if the options name no schema: what a search path happens to
    /// lead to is not removed. [`StoreError::Unavailable`] if the server cannot be reached or refuses.
    pub async fn remove_schema(options: PostgresOptions) -> Result<(), StoreError> {
        let (options, servers, begin) = options.resolve()?;
        let schema = options.schema.ok_or_else(|| StoreError::InvalidArgument {
            field: "schema".to_owned(),
            expected: "the name of the schema to remove".to_owned(),
            got: "none".to_owned(),
        })?;
        let connected = Route::new(servers).connect().await.map_err(Fault::from);
        let removed = match connected {
            Ok(mut connection) => remove(&schema, &mut connection, &begin).await,
            Err(fault) => Err(fault),
        };
        removed.map_err(|fault| fault.into_store_error("removing a schema"))
    }
}

async fn remove(schema: &str, connection: &mut PgConnection, begin: &Begin) -> Result<(), Fault> {
    let mut tx = begin.on(connection).await?;
    tx.run("SET LOCAL client_min_messages = warning").await?;
    // An identifier that `PostgresOptions` has checked letter by letter.
    tx.run(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"))).await?;
    tx.commit().await.map_err(Fault::Committing)
}
