//! Postgres with one predicate, lock or order out of place around claims.

use super::postgres::Entry;
use crate::patch::Patch;
use crate::stores::postgres::Tampering;

/// Around what a claim takes.
pub(super) const CLAIMS: &[Entry] = &[
    (
        "a claim does not lock what it takes",
        &[
            "claim::sixty_four",
            "claim::claimers_on_two_handles",
            "claim::concurrent_claimers",
            "claim::of_many_thieves",
        ],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED",
                to: "AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit",
            }],
        ),
    ),
    (
        "a claim goes by age, whatever the priority",
        &["claim::higher_priority", "claim::the_order_is_by_due_time"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED",
                to: "AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED",
            }],
        ),
    ),
    (
        "a claim takes any type",
        &["claim::only_the_asked_types", "claim::a_type_filter"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch { from: "AND r.workflow_type = t.workflow_type AND", to: "AND" }],
        ),
    ),
    (
        "a claim takes from every tenant",
        &["claim::only_the_asked_namespace", "isolation::claim_takes_nothing"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED",
                to: "r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED",
            }],
        ),
    ),
    (
        "a claim waits for the reaper",
        &["claim::an_expired_lease", "claim::a_claim_wakes_a_due_sleeper", "lease::a_lease_is_held"],
        Tampering::Function("kagzi_claim", &[Patch { from: "IF p_sweep THEN", to: "IF false THEN" }]),
    ),
    (
        "a claim gives out the old token",
        &["lease::tokens_never_repeat", "fencing::begin_step_after_a_steal", "claim::sets_worker_token"],
        Tampering::Function(
            "kagzi_claim_take",
            &[Patch {
                from: "fencing_token = r.fencing_token + 1",
                to: "fencing_token = GREATEST(r.fencing_token, 1)",
            }],
        ),
    ),
    (
        "a claim sent again is a new one",
        &["claim::the_same_claim_again", "claim::concurrent_repeats"],
        Tampering::Function("kagzi_claim", &[Patch { from: "IF p_repeat THEN", to: "IF false THEN" }]),
    ),
    (
        "a claim sent again is answered to any worker",
        &["claim::the_same_claim_by_another_worker"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch { from: "\n              AND r.worker_id = p_worker;", to: ";" }],
        ),
    ),
    (
        "a claim sent again is answered to any tenant",
        &["isolation::a_claim_sent_again_for_another_namespace"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.namespace IS NOT DISTINCT FROM p_namespace AND r.state",
                to: "AND r.state",
            }],
        ),
    ),
    (
        "a claim over several queues takes the first of each, not of all",
        &["claim::the_order_holds_over_several_queues", "claim::runs_of_one_rank"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "            ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c;
    ELSE",
                to: "            LIMIT p_limit) c;
    ELSE",
            }],
        ),
    ),
    (
        "the same claim twice at one time takes twice",
        &["claim::concurrent_repeats", "batching::a_dropped_claim"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "PERFORM pg_advisory_xact_lock(hashtextextended(p_operation::text, p_partition));",
                to: "",
            }],
        ),
    ),
    (
        "a claim takes the types that its own match as patterns",
        &["isolation::types_that_are_nearly_the_same_are_claimed_apart"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.workflow_type = t.workflow_type AND",
                to: "AND r.workflow_type LIKE t.workflow_type AND",
            }],
        ),
    ),
    (
        "a claim does not look at the end of a queue's name",
        &["isolation::queues_that_are_nearly_the_same"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)",
                to: "AND left(r.queue, 127) = left(q.queue, 127) AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)",
            }],
        ),
    ),
    (
        "a claim looks for its types among the first two thousand",
        &["claim::a_run_behind_thousands_of_other_types"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.workflow_type = t.workflow_type AND r.partition = p_partition",
                to: "AND r.workflow_type = t.workflow_type AND r.partition = p_partition
                  AND r.run_id IN (
                      SELECT f.run_id FROM runs f
                      WHERE f.namespace = p_namespace AND f.queue = q.queue AND f.partition = p_partition
                        AND f.state = 'PENDING'
                      ORDER BY f.claim_rank, f.run_id LIMIT 2000)",
            }],
        ),
    ),
    (
        "a claim hands out runs past their deadline where a sweep had too many to repair",
        &["claim::more_dead_runs_than_a_claim"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)",
                to: "WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING'",
            }],
        ),
    ),
    (
        "a claim of certain types hands out runs past their deadline where a sweep had too many to repair",
        &["claim::more_dead_runs_than_a_claim"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND r.workflow_type = t.workflow_type AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)",
                to: "AND r.workflow_type = t.workflow_type AND r.partition = p_partition
                  AND r.state = 'PENDING'",
            }],
        ),
    ),
    (
        "an input that is larger than all the room is never handed over",
        &["claim::an_input_larger_than_all_the_room"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch { from: "WHERE i.i = 1 OR i.room <= p_room;", to: "WHERE i.room <= p_room;" }],
        ),
    ),
    (
        "a claim puts a hundred runs in order, however many it asks for",
        &["claim::a_claim_of_hundreds"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "            ORDER BY c.attention_at LIMIT p_limit;",
                to: "            ORDER BY c.attention_at LIMIT LEAST(p_limit, 100);",
            }],
        ),
    ),
    (
        "a claim of more than a thousand pairs takes the first of each, not of all",
        &["claim::the_order_holds_however_many"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "            ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c;
    END IF;",
                to: "            ORDER BY CASE WHEN cardinality(p_queues) * cardinality(p_types) <= 1000
                THEN ready.claim_rank END, CASE WHEN cardinality(p_queues) * cardinality(p_types) <= 1000
                THEN ready.run_id END LIMIT p_limit) c;
    END IF;",
            }],
        ),
    ),
    (
        "a claim sent again gives what its worker holds of what it took once",
        &["claim::a_claim_sent_again_does_not_give_what_its_worker_took_anew"],
        Tampering::FunctionAndScript(
            "kagzi_claim",
            &[Patch {
                from: "WHERE r.claim_operation = p_operation AND r.partition = p_partition",
                to: "WHERE r.run_id IN (SELECT b.run_id FROM saboteur b WHERE b.operation = p_operation)
              AND r.partition = p_partition",
            }],
            "CREATE TABLE saboteur (operation uuid, run_id uuid);
             CREATE FUNCTION saboteur() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO saboteur VALUES (NEW.claim_operation, NEW.run_id);
                 RETURN NULL; END $$;
             CREATE TRIGGER saboteur AFTER UPDATE OF claim_operation ON runs
             FOR EACH ROW WHEN (NEW.claim_operation IS NOT NULL) EXECUTE FUNCTION saboteur()",
        ),
    ),
    (
        "a claim is known by the beginning of its operation",
        &["isolation::operations_that_are"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "WHERE r.claim_operation = p_operation AND r.partition = p_partition",
                to: "WHERE left(r.claim_operation::text, 35) = left(p_operation::text, 35)
              AND r.partition = p_partition",
            }],
        ),
    ),
    (
        "a claim wakes the sleeper that is due longest, and takes it",
        &["claim::a_claim_of_one_takes_the_most_urgent"],
        Tampering::Function(
            "kagzi_overdue",
            &[Patch {
                from: "                ORDER BY r.attention_at LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED) c",
                to: "                ORDER BY r.attention_at LIMIT 1
                FOR NO KEY UPDATE SKIP LOCKED) c",
            }],
        ),
    ),
    (
        "the expiry of a claim hides the deadline of the run",
        &["reap::a_held_run_times_out", "reap::next_due", "reap::a_run_times_out"],
        Tampering::Function(
            "kagzi_claim_take",
            &[Patch {
                from: "attention_at = LEAST(p_expires, r.deadline_at)",
                to: "attention_at = p_expires",
            }],
        ),
    ),
];

/// Around queues that are paused.
pub(super) const PAUSES: &[Entry] = &[
    (
        "a claim takes from paused queues",
        &[
            "pause::a_paused_queue_gives_nothing_and_others",
            "pause::starts_are_kept",
            "pause::a_pause_is_of_one",
        ],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN LATERAL (",
                to: "AND false)
                OFFSET 0) AS q
            CROSS JOIN LATERAL (",
            }],
        ),
    ),
    (
        "a claim of certain types takes from paused queues",
        &["pause::a_paused_queue_gives_nothing_of_the_asked_types"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN UNNEST",
                to: "AND false)
                OFFSET 0) AS q
            CROSS JOIN UNNEST",
            }],
        ),
    ),
    (
        "a queue is paused in every tenant",
        &["pause::a_pause_is_of_one_namespace"],
        Tampering::Function(
            "kagzi_claim",
            &[Patch {
                from: "WHERE z.namespace = p_namespace AND z.queue = u.queue AND z.partition = p_partition
                      AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN LATERAL (",
                to: "WHERE z.queue = u.queue AND z.partition = p_partition
                      AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN LATERAL (",
            }],
        ),
    ),
];
