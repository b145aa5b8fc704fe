//! pgbench, on the server that kagzi is measured on.

use std::path::PathBuf;

use kagzi_benches::backends::{Backend, Failed, Place};
use tokio::process::Command;

use crate::metrics::Metrics;

/// A table of steps and one of runs, as plain as they can be for the job.
const SCHEMA: &str = "
    CREATE TABLE yard_steps (
        run_id uuid NOT NULL, step_id text NOT NULL, attempt integer NOT NULL, state text NOT NULL,
        output bytea, created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (run_id, step_id, attempt)
    );
    CREATE INDEX ON yard_steps (created_at);
    CREATE TABLE yard_runs (
        run_id uuid PRIMARY KEY, state text NOT NULL, rank bigint NOT NULL, token bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 70);
    INSERT INTO yard_runs (run_id, state, rank)
        SELECT gen_random_uuid(), 'PENDING', n FROM generate_series(1, 200000) n;
    CREATE INDEX ON yard_runs (rank) WHERE state = 'PENDING';
    ANALYZE;";

/// One row a transaction.
const INSERT: &str = "
    INSERT INTO yard_steps (run_id, step_id, attempt, state, output)
        VALUES (gen_random_uuid(), 'step', 1, 'COMPLETED', '\\x22616263646566676822');\n";

/// One run a transaction.
const CLAIM: &str = "
    UPDATE yard_runs SET state = 'RUNNING', token = token + 1 WHERE run_id = (
        SELECT run_id FROM yard_runs WHERE state = 'PENDING'
            ORDER BY rank LIMIT 1 FOR UPDATE SKIP LOCKED);\n";

const SECONDS: &str = "5";

/// Single-row inserts from 64 clients, and single claims from 16.
pub async fn measure(metrics: &mut Metrics) -> Result<(), Failed> {
    let place = Place::fresh(Backend::Postgres).await?;
    let Some(database) = place.database() else { return Err("no database".into()) };
    database.run(SCHEMA).await?;
    for (name, script, clients) in [("inserts", INSERT, "64"), ("claims", CLAIM, "16")] {
        let file = place.directory().join(format!("{name}.sql"));
        std::fs::write(&file, script)?;
        let mut command = Command::new(program()?);
        command.args(["-n", "-M", "prepared", "-c", clients, "-j", "2", "-T", SECONDS, "-f"]);
        command.arg(&file).arg(place.url()).kill_on_drop(true);
        let output = command.output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|rest| rest.split_whitespace().next()).ok_or_else(|| {
            format!("pgbench: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
        })?;
        metrics.add(Backend::Postgres, &format!("pgbench.{name}_per_second"), rate.parse()?);
    }
    Ok(())
}

/// From PATH, else the newest under `/usr/lib/postgresql`, where Debian puts it.
fn program() -> Result<PathBuf, Failed> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    debian.sort();
    std::env::split_paths(&on_path)
        .chain(debian.into_iter().rev())
        .map(|directory| directory.join("pgbench"))
        .find(|file| file.is_file())
        .ok_or_else(|| "pgbench, the yardstick, is missing (Debian: apt-get install postgresql)".into())
}
