//! Postgres with one predicate, lock or column out of place in the functions that write steps and leases.

use std::sync::Arc;

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
    ALL.into_iter().flatten().copied().map(one).collect()
}

pub(super) type Entry = (&'static str, &'static [&'static str], Tampering);

/// Every entry.
pub(super) const ALL: [&[Entry]; 2] = [STEPS, HEARTBEATS];

/// Looks without a lock, and gives others the time to do the same: a race that is lost once a month is
/// to be lost here each time.
const UNLOCKED: &[Patch] = &[Patch {
    from: "OFFSET 0 FOR NO KEY UPDATE) held ON true;",
    to: "OFFSET 0) held ON true;
    PERFORM pg_sleep(0.15);",
}];

const STEPS: &[Entry] = &[
    (
        "step writes do not look at the token",
        &["fencing::begin_step", "fencing::complete"],
        Tampering::Function("kagzi_steps", &[Patch { from: " AND r.fencing_token = u.token", to: "" }]),
    ),
    (
        "step writes do not look at the worker",
        &["under_the_token_of_another_worker"],
        Tampering::Function("kagzi_steps", &[Patch { from: " AND r.worker_id = u.worker", to: "" }]),
    ),
    (
        "step writes do not look at the tenant",
        &["isolation::begin_step", "isolation::complete"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch { from: " AND r.namespace IS NOT DISTINCT FROM u.namespace", to: "" }],
        ),
    ),
    (
        "step writes do not lock the run",
        &["fencing::beginning_a_step_against", "step::complete_against_fail"],
        Tampering::Function("kagzi_steps", UNLOCKED),
    ),
    (
        "a begin does not look whether the step is there",
        &["step::the_same_begin_again", "step::another_begin", "step::begin_after_complete"],
        Tampering::FunctionAndScript(
            "kagzi_steps",
            &[Patch { from: " AND begun.found IS NULL", to: "" }],
            "ALTER TABLE steps DROP CONSTRAINT steps_pkey",
        ),
    ),
    (
        "finishing a run leaves its open attempts open",
        &["finish::the_open_attempts_of_a_completed_run", "step::complete_and_finish_run_abandons"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch { from: "IF v_abandon IS NOT NULL THEN", to: "IF false THEN" }],
        ),
    ),
    (
        "a completion forgets which operation it was",
        &["step::the_same_complete_again", "step::concurrent_repeats"],
        Tampering::Function(
            "kagzi_steps_complete",
            &[Patch { from: "end_operation = u.operation, ", to: "" }],
        ),
    ),
    (
        "the end of a run forgets which operation it was",
        &["finish::completing_again_with_the_same_operation"],
        Tampering::Function(
            "kagzi_steps_finish",
            &[Patch { from: "finish_operation = u.operation,", to: "" }],
        ),
    ),
    (
        "a step that is begun by a completion never times out",
        &["reap::a_step_that_a_completion_begins"],
        Tampering::Function(
            "kagzi_steps",
            &[
                Patch {
                    from: "p_next, p_position, p_retry, p_timeout_micros)",
                    to: "p_next, p_position, p_retry, p_timeout_micros, p_step)",
                },
                Patch {
                    from: "next, place, retry, timeout_micros)\n    -- LEAST",
                    to: "next, place, retry, timeout_micros, step)\n    -- LEAST",
                },
                Patch {
                    from: "u.worker, u.retry, d.deadline_at, d.deadline_at,",
                    to: "u.worker, u.retry, d.deadline_at, CASE WHEN u.step IS NULL THEN d.deadline_at END,",
                },
            ],
        ),
    ),
    (
        "a completed run keeps its lost leases",
        &["reap::a_completion_resets"],
        Tampering::Function("kagzi_steps_finish", &[Patch { from: " lost_leases = 0,", to: "" }]),
    ),
    (
        "a completed attempt still has a timeout",
        &["reap::next_due_forgets_the_timeout"],
        Tampering::Function("kagzi_steps_complete", &[Patch { from: ", attention_at = NULL", to: "" }]),
    ),
    (
        "the timeout of a step reaches past the end of time",
        &["input::a_step_timeout_stops"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch {
                from: "LEAST(v_now + u.timeout_micros * interval '1 microsecond', kagzi_end_of_time())",
                to: "v_now + u.timeout_micros * interval '1 microsecond'",
            }],
        ),
    ),
    (
        "the output of a run is the output of its last step",
        &["step::complete_and_finish_run_does_both"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch {
                from: "FROM UNNEST(v_finish, p_run, p_run_type, p_run_output)",
                to: "FROM UNNEST(v_finish, p_run, COALESCE(p_output_type, p_run_type), p_output)",
            }],
        ),
    ),
    (
        "a begun step forgets its place",
        &["step::the_place_of_the_first_begin", "claim::carries_the_memoized", "input::the_largest_place"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch { from: "p_partition, u.place, 'TASK'", to: "p_partition, 0, 'TASK'" }],
        ),
    ),
    (
        "a begin reads before it writes, with no key to stop it",
        &["step::thirty_two_concurrent_begins_of_one_step", "step::never_more", "step::begin_after"],
        Tampering::FunctionAndScript(
            "kagzi_steps",
            &[UNLOCKED[0], Patch { from: " AND begun.found IS NULL", to: "" }],
            "ALTER TABLE steps DROP CONSTRAINT steps_pkey",
        ),
    ),
];

const HEARTBEATS: &[Entry] = &[
    (
        "a heartbeat may shorten a lease",
        &["lease::a_heartbeat_never_shortens"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch {
                from: "SET lease_expires_at = GREATEST(r.lease_expires_at, v_wanted)",
                to: "SET lease_expires_at = v_wanted",
            }],
        ),
    ),
    (
        "a heartbeat adds to the old expiry",
        &["lease::a_heartbeat_extends", "lease::an_hour_of_heartbeats"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch {
                from: "SET lease_expires_at = GREATEST(r.lease_expires_at, v_wanted)",
                to: "SET lease_expires_at = r.lease_expires_at + (v_wanted - v_now)",
            }],
        ),
    ),
    (
        "a heartbeat does not look at the token",
        &["fencing::heartbeat", "lease::a_heartbeat"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch { from: " AND r.fencing_token = beat.token", to: "" }],
        ),
    ),
    (
        "a heartbeat does not look at the worker",
        &["fencing::heartbeat", "lease::a_heartbeat_of_another_worker"],
        Tampering::Function("kagzi_heartbeat", &[Patch { from: " AND r.worker_id = beat.worker", to: "" }]),
    ),
    (
        "a step is taken from a worker of the same name in other case",
        &["isolation::workers_whose_names"],
        Tampering::Function(
            "kagzi_steps",
            &[Patch { from: "AND r.worker_id = u.worker", to: "AND lower(r.worker_id) = lower(u.worker)" }],
        ),
    ),
    (
        "a heartbeat is taken from a worker of the same name in other case",
        &["isolation::workers_whose_names"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch {
                from: "AND r.worker_id = beat.worker",
                to: "AND lower(r.worker_id) = lower(beat.worker)",
            }],
        ),
    ),
    (
        "a heartbeat does not look at the tenant",
        &["isolation::heartbeat"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch { from: "AND r.namespace IS NOT DISTINCT FROM beat.namespace ", to: "" }],
        ),
    ),
    (
        "a heartbeat puts off the run's deadline",
        &["reap::a_held_run_that_beats_times_out", "reap::next_due"],
        Tampering::Function(
            "kagzi_heartbeat",
            &[Patch {
                from: "attention_at = LEAST(GREATEST(r.lease_expires_at, v_wanted), r.deadline_at)",
                to: "attention_at = GREATEST(r.lease_expires_at, v_wanted)",
            }],
        ),
    ),
];
