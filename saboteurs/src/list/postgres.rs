//! Postgres with one predicate, lock, index or constraint out of place around reaping and rows.

use std::sync::Arc;

use super::postgres_claims::{CLAIMS, PAUSES};
use super::{Kind, Saboteur};
use crate::patch::Patch;
use crate::stores::postgres::{Database, Postgres, Tampering};

/// All of them.
pub(super) fn saboteurs(database: &Database) -> Vec<Saboteur> {
    let one = |(name, meant, tampering)| Saboteur {
        name,
        kind: Kind::Postgres,
        meant,
        fixture: Arc::new(Postgres::new(database, tampering, 1)),
    };
    let spread = |(name, meant, tampering)| Saboteur {
        name,
        kind: Kind::PostgresSpread,
        meant,
        fixture: Arc::new(Postgres::new(database, tampering, 7)),
    };
    let together = CLAIMS.iter().chain(PAUSES).chain(REAPING).chain(ROWS).copied().map(one);
    together.chain(SPREAD.iter().copied().map(spread)).collect()
}

/// A bug, the cases that are there to catch it, and what it does to the schema.
pub(super) type Entry = (&'static str, &'static [&'static str], Tampering);

const REAPING: &[Entry] = &[
    (
        "a piece of a sweep knows no limit",
        &["reap::at_most_the_limit", "reap::the_limit_holds"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "ORDER BY r.attention_at LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
                to: "ORDER BY r.attention_at
            FOR NO KEY UPDATE SKIP LOCKED;",
            }],
        ),
    ),
    (
        "a reap takes the youngest first",
        &["reap::at_most_the_limit"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "ORDER BY r.attention_at LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
                to: "ORDER BY r.attention_at DESC LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
            }],
        ),
    ),
    (
        "a reap takes the smallest ids first",
        &["reap::the_longest_overdue_come_first"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "ORDER BY r.attention_at LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
                to: "ORDER BY r.run_id LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
            }],
        ),
    ),
    (
        "a reap treats overdue runs before steps that are overdue longer",
        &["reap::the_longest_overdue_is_treated_first"],
        Tampering::Function(
            "kagzi_moments_due",
            &[Patch {
                from: "SELECT s.attention_at, true FROM steps s",
                to: "SELECT kagzi_end_of_time(), true FROM steps s",
            }],
        ),
    ),
    (
        "two reapers treat one run twice",
        &["reap::eight_concurrent_reapers", "reap::reapers_on_two_handles", "reap::reapers_against"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "ORDER BY r.attention_at LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;",
                to: "ORDER BY r.attention_at LIMIT p_limit;",
            }],
        ),
    ),
    (
        "a run is due after its moment, not at it",
        &["reap::a_run_times_out_at_the_microsecond", "sleep::a_reap_wakes", "lease::a_reap_takes"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch { from: "WHERE r.attention_at <= v_now", to: "WHERE r.attention_at < v_now" }],
        ),
    ),
    (
        "a claim repairs the runs of every tenant",
        &["isolation::a_claim_that_repairs_its_own"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "WHERE r.namespace = p_namespace AND r.queue = q.queue",
                to: "WHERE r.queue = q.queue",
            }],
        ),
    ),
    (
        "a claim puts its first queue in order only",
        &["claim::a_claim_finds_the_due_sleepers"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "SELECT c.* FROM UNNEST(p_queues) AS q(queue)",
                to: "SELECT c.* FROM UNNEST(p_queues[1:1]) AS q(queue)",
            }],
        ),
    ),
    (
        "an expired lease leaves its attempts open",
        &["reap::the_open_attempts_of_an_expired_lease", "claim::a_steal_abandons"],
        Tampering::Function("kagzi_save_runs", &[Patch { from: "WHERE n.abandon;", to: "WHERE false;" }]),
    ),
    (
        "the poison count never grows",
        &["reap::a_poison_run", "claim::a_run_that_lost_too_many"],
        Tampering::Function(
            "kagzi_save_runs_write",
            &[Patch { from: "lost_leases = n.lost_leases,", to: "" }],
        ),
    ),
    (
        "a requeue gives no fresh budget",
        &["dead_letters::a_requeue_gives_the_step_a_fresh_budget"],
        Tampering::Function(
            "kagzi_save_runs_write",
            &[Patch { from: "budget_token = n.budget_token,", to: "" }],
        ),
    ),
    (
        "a run that fails is retried for ever",
        &["retry::a_run_uses_up_its_own_failures"],
        Tampering::Function("kagzi_save_runs_write", &[Patch { from: "failures = n.failures,", to: "" }]),
    ),
    (
        "a requeue leaves the old deadline",
        &["dead_letters::a_requeue_gives_a_fresh_deadline"],
        Tampering::Function(
            "kagzi_save_runs_write",
            &[Patch { from: "deadline_at = n.deadline_at,", to: "" }],
        ),
    ),
    (
        "a requeued run keeps its old place in the line",
        &[
            "claim::a_run_that_lost_its_lease_goes_behind",
            "claim::a_released_run",
            "dead_letters::a_requeued",
        ],
        Tampering::Function(
            "kagzi_save_runs_write",
            &[Patch { from: "claim_rank = n.claim_rank, ", to: "" }],
        ),
    ),
];

const ROWS: &[Entry] = &[
    (
        "a key is looked up and not enforced",
        &["start::the_same_key", "start::thirty_two", "start::concurrent"],
        Tampering::Script("DROP INDEX runs_idempotency_key"),
    ),
    (
        "a removed run leaves its history behind",
        &["reading::a_removed_run_that_is_started_again", "reading::a_removal_takes_runs"],
        Tampering::Script("CREATE RULE saboteur AS ON DELETE TO steps DO INSTEAD NOTHING"),
    ),
    (
        "a removed run leaves the answers of its operations behind",
        &["reading::a_removed_run_leaves_no_answers"],
        Tampering::Script("ALTER TABLE operations DROP CONSTRAINT operations_run_id_partition_fkey"),
    ),
    (
        "a removed run leaves its input and output behind",
        &["reading::a_removed_run_that_is_started_again"],
        Tampering::Script("CREATE RULE saboteur AS ON DELETE TO payloads DO INSTEAD NOTHING"),
    ),
    (
        "moments are kept to the millisecond",
        &["sleep::moments_are_kept"],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 NEW.due_at := date_trunc('milliseconds', NEW.due_at);
                 NEW.attention_at := date_trunc('milliseconds', NEW.attention_at);
                 RETURN NEW; END $$;
             CREATE TRIGGER saboteur BEFORE INSERT OR UPDATE ON runs
             FOR EACH ROW EXECUTE FUNCTION saboteur()",
        ),
    ),
    (
        "the end of a cancelled run is overwritten by a late completion",
        &[
            "finish::cancel_against_complete",
            "fencing::complete_run_after_a_cancel",
            "finish::a_running_run_is_cancelled",
        ],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF OLD.state = 'RUNNING' AND NEW.state = 'CANCELLED' THEN
                     NEW.state := 'RUNNING'; NEW.worker_id := OLD.worker_id; NEW.finished_at := NULL;
                     NEW.lease_expires_at := OLD.lease_expires_at; NEW.claim_operation := OLD.claim_operation;
                     NEW.attention_at := OLD.attention_at;
                 END IF;
                 RETURN NEW; END $$;
             CREATE TRIGGER saboteur BEFORE UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION saboteur()",
        ),
    ),
    (
        "names are sorted as people sort them, not by their bytes",
        &["step::steps_at_one_place"],
        Tampering::Script("ALTER TABLE steps ALTER COLUMN step_id TYPE text COLLATE \"und-x-icu\""),
    ),
    (
        "the answers of rare operations are forgotten",
        &["lease::a_release_sent_again", "durability::answers_are_remembered"],
        Tampering::Script("CREATE RULE saboteur AS ON INSERT TO operations DO INSTEAD NOTHING"),
    ),
    (
        "answers are kept for an hour",
        &["durability::an_answer_is_remembered_however_long_ago"],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 DELETE FROM operations o
                 WHERE o.partition = NEW.partition AND o.created_at < NEW.created_at - interval '1 hour';
                 RETURN NEW; END $$;
             CREATE TRIGGER saboteur BEFORE INSERT ON operations FOR EACH ROW EXECUTE FUNCTION saboteur()",
        ),
    ),
    (
        "a key is free again a day after its run finished",
        &["durability::a_key_names_its_run"],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE runs r SET idempotency_key = NULL
                 WHERE r.partition = NEW.partition AND r.namespace = NEW.namespace
                     AND r.idempotency_key = NEW.idempotency_key
                     AND r.finished_at < NEW.created_at - interval '1 day';
                 RETURN NEW; END $$;
             CREATE TRIGGER saboteur BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION saboteur()",
        ),
    ),
    (
        "a heartbeat lets a finished run live on",
        &["finish::a_reap_moves_no_finished_run"],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 NEW.attention_at := COALESCE(NEW.attention_at, OLD.attention_at);
                 RETURN NEW; END $$;
             CREATE TRIGGER saboteur BEFORE UPDATE ON runs FOR EACH ROW
             WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION saboteur()",
        ),
    ),
];

/// Where the runs are spread, a claim first looks into every partition.
const SPREAD: &[Entry] = &[
    (
        "the order of claims holds within a partition only",
        &["claim::higher_priority", "claim::within_a_priority", "claim::the_order_is_by_due_time"],
        Tampering::Function(
            "kagzi_peek",
            &[Patch {
                from: "OFFSET 0) AS q
                CROSS JOIN LATERAL (
                    SELECT r.run_id, r.claim_rank FROM runs r",
                to: "OFFSET 0) AS q
                CROSS JOIN LATERAL (
                    SELECT r.run_id, 0::bigint AS claim_rank FROM runs r",
            }],
        ),
    ),
    (
        "a claim over partitions takes any type",
        &["claim::a_type_filter_finds"],
        Tampering::Function(
            "kagzi_peek",
            &[Patch { from: "AND r.workflow_type = t.workflow_type AND", to: "AND" }],
        ),
    ),
    (
        "a claim over partitions that is sent again is a new one",
        &["claim::the_same_claim_again", "claim::concurrent_repeats"],
        Tampering::Function(
            "kagzi_look",
            &[Patch {
                from: "IF FOUND THEN
        RETURN QUERY SELECT 'AGAIN'",
                to: "IF false THEN
        RETURN QUERY SELECT 'AGAIN'",
            }],
        ),
    ),
    (
        "a claim over partitions waits for the reaper",
        &["claim::an_expired_lease", "claim::a_claim_wakes_a_due_sleeper", "lease::a_lease_is_held"],
        Tampering::Function("kagzi_look", &[Patch { from: "IF p_sweep THEN", to: "IF false THEN" }]),
    ),
    (
        "late steps of several partitions go by the second alone",
        &["reap::the_steps_that_are_late_longest"],
        Tampering::Function(
            "kagzi_moments_due",
            &[Patch {
                from: "SELECT s.attention_at, true FROM steps s",
                to: "SELECT date_trunc('second', s.attention_at), true FROM steps s",
            }],
        ),
    ),
    (
        "a pause reaches the first partition alone",
        &[
            "pause::a_paused_queue_gives_nothing",
            "pause::no_claim_that_begins_after",
            "pause::starts_are_kept",
        ],
        Tampering::Script(
            "CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 new.state := 'OPEN'; new.paused_at := NULL; new.reason := NULL; RETURN new; END $$;
             CREATE TRIGGER saboteur BEFORE INSERT OR UPDATE ON queues
             FOR EACH ROW WHEN (new.partition > 0) EXECUTE FUNCTION saboteur()",
        ),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_fits_the_functions_as_they_are() {
        let here = [CLAIMS, PAUSES, REAPING, ROWS, SPREAD];
        let all = here.into_iter().chain(super::super::postgres_steps::ALL).flatten();
        for (name, _, tampering) in all {
            assert!(tampering.script().is_ok(), "{name}: {:?}", tampering.script().err());
        }
    }
}
