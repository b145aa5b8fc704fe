//! What Citus makes of a statement: to how many nodes it sends a part of it.

use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use super::rule::{From, Touched, check};

/// How many tasks a statement is, planned for partition 0; nothing where no distributed table is touched, as on plain
/// Postgres.
pub async fn count(
    connection: &mut PgConnection,
    sql: &str,
    touched: &Touched,
) -> Result<Option<u32>, sqlx::Error> {
    connection.execute("DEALLOCATE ALL; SET plan_cache_mode = force_custom_plan").await?;
    connection.execute(AssertSqlSafe(format!("PREPARE asked AS {sql}"))).await?;
    let parameters = "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'";
    let parameters: i32 = connection.fetch_one(parameters).await?.get(0);
    let value = |number: i32| if touched.names(&format!("${number}")) { "0" } else { "NULL" };
    let values: Vec<&str> = (1..=parameters).map(value).collect();
    let values = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
    let plan = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN EXECUTE asked{values}"))).await?;
    let lines = plan.iter().map(|row| row.get::<String, _>(0));
    Ok(lines.into_iter().find_map(|line| line.trim().strip_prefix("Task Count: ")?.parse().ok()))
}

/// Why statements are not one task on one node of the cluster, one text each; and how many are.
pub async fn judge(url: &str, sent: &[String]) -> Result<(usize, Vec<String>), Box<dyn std::error::Error>> {
    let options = PostgresOptions { partitions: Some(7), ..PostgresOptions::new(url) };
    PostgresStore::connect(options).await?;
    let mut connection = PgConnection::connect(url).await?;
    let (mut kept, mut broken) = (0, Vec::new());
    for sql in sent {
        match count(&mut connection, sql, &check(sql, From::Store)?).await? {
            Some(1) => kept += 1,
            tasks => broken.push(format!("Task Count: {tasks:?} instead of 1\n{sql}")),
        }
    }
    Ok((kept, broken))
}
