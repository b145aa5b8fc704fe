//! The tables that a move copies, with all their columns but `partition`.

macro_rules! place {
    () => {
        "((get_byte(uuid_send(run_id), 14) << 8) | get_byte(uuid_send(run_id), 15))"
    };
}

/// What a run's partition is computed from, as [`RunId::partition`](kagzi_core::RunId::partition) does: the last two bytes
/// of its id.
pub(super) const PARTITION_OF_RUN: &str = place!();

/// One table.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Whether a row belongs to one run, and lies in its partition. If not, every partition has the same rows.
    pub(super) is_of_runs: bool,
    pub(super) columns: &'static str,
    /// Counts the rows of the partition `$1` of `$2`, adds up a digest of each, and counts those that lie in a wrong one.
    /// The digest hangs on no setting of a session, since the nodes of a cluster may have others.
    pub(super) contents: &'static str,
}

/// A moment in microseconds.
macro_rules! micros {
    ($column:literal) => {
        concat!("(extract(epoch FROM ", $column, ") * 1000000)::bigint")
    };
}

macro_rules! contents {
    ($table:literal, $stray:expr, $($value:expr),+) => {
        concat!(
            "SELECT count(*) AS rows,
                 COALESCE(sum(('x' || substr(md5(ROW(", $($value, ", ",)+ "true)::text), 1, 15))::bit(60)::bigint), 0)::text
                     AS checksum,
                 count(*) FILTER (WHERE ", $stray, ") AS strays
             FROM ", $table, " WHERE partition = $1"
        )
    };
}

macro_rules! of_runs {
    ($table:literal, $($value:expr),+) => {
        contents!($table, concat!("partition IS DISTINCT FROM ", place!(), " % $2::integer"), $($value),+)
    };
}

/// In this order: what a foreign key leads to comes first.
pub(super) const TABLES: [Table; 5] = [
    Table {
        name: "runs",
        is_of_runs: true,
        columns: "run_id, namespace, queue, workflow_type, state, priority, due_at, deadline_at, \
                  run_timeout_micros, claim_rank, attention_at, fencing_token, worker_id, lease_expires_at, \
                  claim_operation, claims, lost_leases, failures, budget_token, retry, idempotency_key, \
                  labels, trace_context, failure, dead_letter, finish_operation, created_at, updated_at, \
                  finished_at",
        contents: of_runs!(
            "runs",
            "run_id, namespace, queue, workflow_type, state, priority",
            micros!("due_at"),
            micros!("deadline_at"),
            "run_timeout_micros, claim_rank",
            micros!("attention_at"),
            "fencing_token, worker_id",
            micros!("lease_expires_at"),
            "claim_operation, claims, lost_leases, failures, budget_token, retry, idempotency_key, labels, trace_context, failure, dead_letter, finish_operation",
            micros!("created_at"),
            micros!("updated_at"),
            micros!("finished_at")
        ),
    },
    Table {
        name: "payloads",
        is_of_runs: true,
        columns: "run_id, slot, content_type, bytes, created_at, updated_at",
        contents: of_runs!(
            "payloads",
            "run_id, slot, content_type, md5(bytes)",
            micros!("created_at"),
            micros!("updated_at")
        ),
    },
    Table {
        name: "steps",
        is_of_runs: true,
        columns: "run_id, step_id, attempt, position, kind, state, fencing_token, worker_id, retry, \
                  deadline_at, attention_at, begin_operation, end_operation, output_type, output, failure, \
                  created_at, updated_at, finished_at",
        contents: of_runs!(
            "steps",
            "run_id, step_id, attempt, position, kind, state, fencing_token, worker_id, retry",
            micros!("deadline_at"),
            micros!("attention_at"),
            "begin_operation, end_operation, output_type, md5(output), failure",
            micros!("created_at"),
            micros!("updated_at"),
            micros!("finished_at")
        ),
    },
    Table {
        name: "operations",
        is_of_runs: true,
        columns: "run_id, operation_id, answer, created_at, updated_at",
        contents: of_runs!(
            "operations",
            "run_id, operation_id, answer",
            micros!("created_at"),
            micros!("updated_at")
        ),
    },
    Table {
        name: "queues",
        is_of_runs: false,
        columns: "namespace, queue, state, paused_at, reason, operations, created_at, updated_at",
        contents: contents!(
            "queues",
            "partition NOT BETWEEN 0 AND $2::integer - 1",
            "namespace, queue, state",
            micros!("paused_at"),
            "reason, operations",
            micros!("created_at"),
            micros!("updated_at")
        ),
    },
];
