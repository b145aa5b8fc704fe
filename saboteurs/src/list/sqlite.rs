//! SQLite over tampered files: a trigger that undoes one write, or a schema that lacks one word.
//!
//! The store writes a row first, and the trigger then changes it; triggers do not set each other off.

use std::sync::Arc;

use super::{Kind, Saboteur};
use crate::patch::Patch;
use crate::stores::sqlite::{Sqlite, Tampering};

pub(super) fn one(name: &'static str, meant: &'static [&'static str], tampering: Tampering) -> Saboteur {
    Saboteur { name, kind: Kind::Sqlite, meant, fixture: Arc::new(Sqlite(tampering)) }
}

/// A trigger after an event that does something to the row it was about.
macro_rules! after {
    ($event:literal, $what:literal) => {
        Tampering::Script(concat!("CREATE TRIGGER saboteur AFTER ", $event, " BEGIN ", $what, "; END"))
    };
}

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    [leases(), waiting(), history(), keeping(), schema()].into_iter().flatten().collect()
}

fn leases() -> Vec<Saboteur> {
    vec![
        one(
            "a token is used again after a release",
            &["lease::tokens_never_repeat", "by_the_same_worker_id"],
            after!(
                "UPDATE OF state ON runs WHEN old.state = 'RUNNING' AND new.state = 'PENDING'",
                "UPDATE runs SET fencing_token = new.fencing_token - 1 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a heartbeat adds to the old expiry",
            &["lease::an_hour_of_heartbeats", "lease::a_heartbeat_extends"],
            after!(
                "UPDATE OF lease_expires_at ON runs WHEN old.state = 'RUNNING' AND new.state = 'RUNNING'",
                "UPDATE runs SET lease_expires_at = old.lease_expires_at + new.lease_expires_at - new.updated_at,
                     attention_at = old.lease_expires_at + new.lease_expires_at - new.updated_at
                 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a heartbeat is answered and not written",
            &["lease::a_heartbeat_extends", "reap::next_due_moves"],
            after!(
                "UPDATE OF lease_expires_at ON runs WHEN old.state = 'RUNNING' AND new.state = 'RUNNING'",
                "UPDATE runs SET lease_expires_at = old.lease_expires_at, attention_at = old.attention_at
                 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a claim does not count",
            &["claim::sets_worker_token", "claim::an_expired_lease"],
            after!(
                "UPDATE OF claims ON runs WHEN new.claims > old.claims",
                "UPDATE runs SET claims = old.claims WHERE run_id = new.run_id"
            ),
        ),
        one(
            "claims go by due time, whatever the priority",
            &["claim::higher_priority", "claim::one_level_of_priority"],
            after!("INSERT ON runs", "UPDATE runs SET claim_rank = due_at WHERE run_id = new.run_id"),
        ),
    ]
}

fn waiting() -> Vec<Saboteur> {
    vec![
        one(
            "a sleeper wakes a microsecond early",
            &["sleep::a_sleeper_is_claimable", "sleep::a_reap_wakes"],
            after!(
                "UPDATE OF state ON runs WHEN new.state = 'SLEEPING'",
                "UPDATE runs SET due_at = new.due_at - 1, attention_at = new.attention_at - 1
                 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a sleep of less than a second never wakes",
            &["sleep::a_sleep_of_a_millisecond"],
            after!(
                "UPDATE OF state ON runs WHEN new.state = 'SLEEPING' AND new.due_at - new.updated_at < 1000000",
                "UPDATE runs SET attention_at = NULL WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a sleep keeps the lease",
            &["sleep::a_sleeper", "sleep::the_old_lease", "fencing::sleep"],
            after!(
                "UPDATE OF state ON runs WHEN new.state = 'SLEEPING'",
                "UPDATE runs SET state = 'RUNNING', worker_id = old.worker_id,
                     lease_expires_at = old.lease_expires_at, claim_operation = old.claim_operation
                 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "the retry of a cancelled run still comes",
            &["finish::a_run_that_waits_for_a_retry", "sleep::a_cancelled_sleeper"],
            after!(
                "UPDATE OF state ON runs WHEN old.state = 'SLEEPING' AND new.state = 'CANCELLED'",
                "UPDATE runs SET state = 'SLEEPING', finished_at = NULL, attention_at = old.attention_at
                 WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a run that nobody claims never times out",
            &["reap::a_pending_run_times_out", "reap::next_due_names_the_nearest_deadline"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON runs WHEN new.state = 'PENDING' BEGIN
                     UPDATE runs SET attention_at = NULL WHERE run_id = new.run_id; END;
                 CREATE TRIGGER accomplice AFTER UPDATE OF state ON runs WHEN new.state = 'PENDING' BEGIN
                     UPDATE runs SET attention_at = NULL WHERE run_id = new.run_id; END",
            ),
        ),
        one(
            "no step times out",
            &["reap::a_step_times_out", "reap::a_timed_out_step"],
            after!(
                "INSERT ON steps",
                "UPDATE steps SET deadline_at = NULL
                 WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt"
            ),
        ),
        one(
            "the poison count never grows",
            &["reap::a_poison_run", "claim::a_run_that_lost_too_many"],
            after!(
                "UPDATE OF lost_leases ON runs WHEN new.lost_leases > old.lost_leases",
                "UPDATE runs SET lost_leases = old.lost_leases WHERE run_id = new.run_id"
            ),
        ),
        one(
            "the poison count is never reset",
            &["resets_the_poison_count"],
            after!(
                "UPDATE OF lost_leases ON runs WHEN new.lost_leases < old.lost_leases",
                "UPDATE runs SET lost_leases = old.lost_leases WHERE run_id = new.run_id"
            ),
        ),
        one(
            "steps beyond the fortieth are no progress of their lease",
            &["claim::progress_late_in_a_long_run"],
            after!(
                "UPDATE OF state ON steps WHEN new.state = 'COMPLETED'
                     AND (SELECT count(*) FROM steps WHERE run_id = new.run_id) > 40",
                "UPDATE steps SET fencing_token = 0
                 WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt"
            ),
        ),
    ]
}

fn history() -> Vec<Saboteur> {
    vec![
        one(
            "abandoned attempts are deleted, and their numbers used again",
            &["step::begin_under_a_new_lease", "claim::a_steal_abandons"],
            after!(
                "UPDATE OF state ON steps WHEN new.state = 'ABANDONED'",
                "DELETE FROM steps
                 WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt"
            ),
        ),
        one(
            "a failure forgets which operation it was",
            &["step::fail_then_begin"],
            after!(
                "UPDATE OF state ON steps WHEN new.state = 'FAILED'",
                "UPDATE steps SET end_operation = NULL
                 WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt"
            ),
        ),
        one(
            "outputs end at their first NUL",
            &["step::outputs_come_back"],
            after!(
                "UPDATE OF output ON steps WHEN instr(new.output, x'00') > 0",
                "UPDATE steps SET output = substr(new.output, 1, instr(new.output, x'00') - 1)
                 WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt"
            ),
        ),
        one(
            "the open attempts of a cancelled run go on",
            &["finish::the_open_attempts_of_a_cancelled_run"],
            after!(
                "UPDATE OF state ON runs WHEN new.state = 'CANCELLED'",
                "UPDATE steps SET state = 'RUNNING', finished_at = NULL
                 WHERE run_id = new.run_id AND state = 'ABANDONED' AND updated_at = new.updated_at"
            ),
        ),
        one(
            "the answers of rare operations are forgotten",
            &["sent_again", "_again_", "durability::answers_are_remembered"],
            after!("INSERT ON operations", "DELETE FROM operations WHERE operation_id = new.operation_id"),
        ),
    ]
}

fn keeping() -> Vec<Saboteur> {
    vec![
        one(
            "a key is free again once its run has finished",
            &["start::a_key_stays_bound"],
            after!(
                "UPDATE OF state ON runs WHEN new.finished_at IS NOT NULL",
                "UPDATE runs SET idempotency_key = NULL WHERE run_id = new.run_id"
            ),
        ),
        one(
            "a removal takes what another tenant finished too",
            &["isolation::delete_finished", "reading::a_removal"],
            after!("DELETE ON runs", "DELETE FROM runs WHERE finished_at = old.finished_at"),
        ),
        one(
            "a queue is paused in every tenant",
            &["pause::a_pause_is_of_one_namespace"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON queues BEGIN
                     INSERT OR IGNORE INTO queues SELECT 'globex', queue, partition, state, paused_at, reason,
                         operations, created_at, updated_at
                     FROM queues WHERE namespace = new.namespace AND queue = new.queue; END",
            ),
        ),
        one(
            "a queue remembers no operation",
            &[
                "pause::a_pause_sent_again",
                "pause::a_resumption_sent_again",
                "pause::an_operation_that_paused",
            ],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON queues BEGIN
                     UPDATE queues SET operations = '[]'
                     WHERE namespace = new.namespace AND queue = new.queue; END;
                 CREATE TRIGGER accomplice AFTER UPDATE OF operations ON queues BEGIN
                     UPDATE queues SET operations = '[]'
                     WHERE namespace = new.namespace AND queue = new.queue; END",
            ),
        ),
        one(
            "a second pause begins anew",
            &["pause::a_second_pause"],
            after!(
                "UPDATE OF paused_at ON queues WHEN old.state = 'PAUSED' AND new.state = 'PAUSED'",
                "UPDATE queues SET paused_at = new.updated_at
                 WHERE namespace = new.namespace AND queue = new.queue"
            ),
        ),
        one(
            "a moment is kept as seconds with a fraction",
            &["sleep::", "retry::"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER UPDATE OF due_at ON runs WHEN new.state = 'SLEEPING' BEGIN
                     UPDATE runs SET due_at = CAST(new.due_at / 1000000.0 * 1000000.0 AS INTEGER),
                         attention_at = CAST(new.attention_at / 1000000.0 * 1000000.0 AS INTEGER)
                     WHERE run_id = new.run_id; END",
            ),
        ),
        one(
            "answers go by the operation id, whatever the run",
            &["batching::an_operation_id_stands"],
            after!(
                "INSERT ON operations",
                "INSERT OR IGNORE INTO operations
                     SELECT r.run_id, new.operation_id, r.partition, new.answer, new.created_at, new.updated_at
                     FROM runs r WHERE r.run_id <> new.run_id"
            ),
        ),
        one("the last commit was not flushed when the power failed", &["durability::"], Tampering::TornLog),
    ]
}

fn schema() -> Vec<Saboteur> {
    vec![
        one(
            "tenants whose names differ by case are one",
            &["isolation::namespaces_differ"],
            Tampering::Schema(&[Patch {
                from: "namespace         TEXT    NOT NULL,",
                to: "namespace         TEXT    NOT NULL COLLATE NOCASE,",
            }]),
        ),
        one(
            "types whose names differ by case are one",
            &["isolation::types_that_are_nearly_the_same"],
            Tampering::Schema(&[Patch {
                from: "workflow_type     TEXT    NOT NULL,",
                to: "workflow_type     TEXT    NOT NULL COLLATE NOCASE,",
            }]),
        ),
        one(
            "keys that differ by case are one",
            &["isolation::keys_that_are_nearly_the_same"],
            Tampering::Schema(&[Patch {
                from: "idempotency_key   TEXT,",
                to: "idempotency_key   TEXT COLLATE NOCASE,",
            }]),
        ),
        one(
            "steps whose names differ by case are one",
            &["step::step_ids_of_every_script", "step::steps_at_one_place"],
            Tampering::Schema(&[Patch {
                from: "step_id          TEXT    NOT NULL,",
                to: "step_id          TEXT    NOT NULL COLLATE NOCASE,",
            }]),
        ),
        one(
            "a removed run leaves its history behind",
            &["reading::a_removed_run_that_is_started_again", "reading::a_removal_takes_runs"],
            Tampering::Schema(&[Patch {
                from: "    PRIMARY KEY (run_id, step_id, attempt, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE,
",
                to: "    PRIMARY KEY (run_id, step_id, attempt, partition),
",
            }]),
        ),
        one(
            "a removed run leaves the answers of its operations behind",
            &["reading::a_removed_run_leaves_no_answers"],
            Tampering::Schema(&[Patch {
                from: "    PRIMARY KEY (run_id, operation_id, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE
",
                to: "    PRIMARY KEY (run_id, operation_id, partition)
",
            }]),
        ),
        one(
            "a removed run leaves its output behind",
            &["reading::a_removed_run_that_is_started_again"],
            Tampering::Schema(&[Patch {
                from: "    PRIMARY KEY (run_id, slot, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
",
                to: "    PRIMARY KEY (run_id, slot, partition)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER saboteur AFTER DELETE ON runs BEGIN
    DELETE FROM payloads WHERE run_id = old.run_id AND slot = 'INPUT'; END;
",
            }]),
        ),
    ]
}
