//! Statements that are a transaction of their own.

use sqlx::Connection as _;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Postgres, query::Query};

use crate::error::{Fault, is_connection_lost};
use crate::{Inner, Pooler};

impl Inner {
    /// Runs a statement that only reads.
    pub(crate) async fn fetch_all(
        &self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Fault> {
        match self.write_all(query).await {
            // Nothing was to be written, so no fate is open.
            Err(Fault::Committing(error)) => Err(Fault::Before(error)),
            other => other,
        }
    }

    /// Runs a statement that writes. If the connection breaks on the way, its fate is open.
    pub(crate) async fn write_all(
        &self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Fault> {
        let mut connection = self.pool.acquire().await?;
        if self.pooler == Pooler::None {
            return query.fetch_all(&mut *connection).await.map_err(|error| {
                if is_connection_lost(&error) { Fault::Committing(error) } else { Fault::Before(error) }
            });
        }
        // Behind a transaction pooler preparing and executing may reach two servers, unless a
        // transaction holds them together.
        let mut tx = connection.begin().await?;
        let rows = query.fetch_all(&mut *tx).await?;
        tx.commit().await.map_err(Fault::Committing)?;
        Ok(rows)
    }
}
