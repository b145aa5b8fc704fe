//! SQLite over files whose triggers keep things for a time only, in part, or in an order of their own.

use super::Saboteur;
use super::sqlite::one;
use crate::stores::sqlite::Tampering;

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    [cut(), forgotten(), in_another_order()].into_iter().flatten().collect()
}

fn cut() -> Vec<Saboteur> {
    vec![
        one(
            "inputs and outputs of runs are cut at 64 KiB",
            &["input::payloads_as_large"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON payloads WHEN length(new.bytes) > 65535 BEGIN
                     UPDATE payloads SET bytes = substr(new.bytes, 1, 65535)
                     WHERE run_id = new.run_id AND slot = new.slot; END",
            ),
        ),
        one(
            "outputs of steps are cut at 64 KiB",
            &["input::payloads_as_large"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER UPDATE OF output ON steps WHEN length(new.output) > 65535 BEGIN
                     UPDATE steps SET output = substr(new.output, 1, 65535)
                     WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt; END",
            ),
        ),
        one(
            "a large failure of a step is kept without its details",
            &["input::failures_as_large"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER UPDATE OF failure ON steps WHEN length(new.failure) > 65535 BEGIN
                     UPDATE steps SET failure = json_remove(new.failure, '$.details')
                     WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt; END",
            ),
        ),
        one(
            "a long message of a run that failed is cut",
            &["input::failures_as_large"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER UPDATE OF failure ON runs WHEN length(new.failure) > 65535 BEGIN
                     UPDATE runs SET failure = json_set(new.failure, '$.message',
                         substr(json_extract(new.failure, '$.message'), 1, 4096))
                     WHERE run_id = new.run_id; END",
            ),
        ),
    ]
}

fn forgotten() -> Vec<Saboteur> {
    vec![
        one(
            "answers are kept for an hour",
            &["durability::an_answer_is_remembered_however_long_ago"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON operations BEGIN
                     DELETE FROM operations WHERE created_at < new.created_at - 3600000000; END",
            ),
        ),
        one(
            "the last sixteen answers of a run are kept",
            &["durability::an_answer_is_remembered_whatever_came"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON operations BEGIN
                     DELETE FROM operations WHERE run_id = new.run_id AND operation_id NOT IN (
                         SELECT operation_id FROM operations WHERE run_id = new.run_id
                         ORDER BY created_at DESC LIMIT 16); END",
            ),
        ),
        one(
            "the answers of a run go when it completes",
            &["durability::the_answers_of_a_run"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER UPDATE OF state ON runs WHEN new.state = 'COMPLETED' BEGIN
                     DELETE FROM operations WHERE run_id = new.run_id; END",
            ),
        ),
        one(
            "the answers of failures that end their run are forgotten",
            &["finish::a_failure_that_ended"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON operations WHEN EXISTS (
                     SELECT 1 FROM runs WHERE run_id = new.run_id AND state = 'FAILED') BEGIN
                     DELETE FROM operations WHERE run_id = new.run_id AND operation_id = new.operation_id; END",
            ),
        ),
        one(
            "a key is free again a day after its run finished",
            &["durability::a_key_names_its_run"],
            Tampering::Script(
                "CREATE TRIGGER saboteur BEFORE INSERT ON runs WHEN new.idempotency_key IS NOT NULL BEGIN
                     UPDATE runs SET idempotency_key = NULL
                     WHERE namespace = new.namespace AND idempotency_key = new.idempotency_key
                         AND finished_at < new.created_at - 86400000000; END",
            ),
        ),
    ]
}

fn in_another_order() -> Vec<Saboteur> {
    vec![
        one(
            "a removal takes the smallest ids first",
            &["reading::the_longest_finished_are_removed"],
            Tampering::Script(
                "CREATE TRIGGER saboteur BEFORE DELETE ON runs WHEN EXISTS (
                     SELECT 1 FROM runs WHERE namespace = old.namespace AND state = old.state
                         AND run_id < old.run_id) BEGIN
                     DELETE FROM runs WHERE run_id = (
                         SELECT min(run_id) FROM runs WHERE namespace = old.namespace AND state = old.state);
                     SELECT RAISE(IGNORE); END",
            ),
        ),
        one(
            "timeouts of steps are kept to the second",
            &["reap::the_steps_that_are_late_longest"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON steps WHEN new.deadline_at % 1000000 > 0
                     AND new.deadline_at < 4102444800000000 BEGIN
                     UPDATE steps SET deadline_at = new.deadline_at / 1000000 * 1000000
                     WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt; END",
            ),
        ),
        one(
            "a removal takes cancelled runs, whatever states it asks for",
            &["reading::a_removal_of_one_state"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER DELETE ON runs BEGIN
                     DELETE FROM runs WHERE namespace = old.namespace AND state = 'CANCELLED'; END",
            ),
        ),
        one(
            "a step is late no sooner than the one that was begun before it",
            &["reap::of_two_late_steps"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON steps WHEN new.deadline_at < (
                     SELECT max(deadline_at) FROM steps WHERE run_id = new.run_id AND state = 'RUNNING') BEGIN
                     UPDATE steps SET deadline_at = (
                         SELECT max(deadline_at) FROM steps WHERE run_id = new.run_id AND state = 'RUNNING')
                     WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt; END",
            ),
        ),
        one(
            "attempts that were open when somebody started another run stay open",
            &["finish::open_attempts_are_abandoned_whatever"],
            Tampering::Script(
                "CREATE TABLE saboteur (run_id BLOB, step_id TEXT, attempt INTEGER);
                 CREATE TRIGGER accomplice AFTER INSERT ON runs BEGIN
                     INSERT INTO saboteur SELECT run_id, step_id, attempt FROM steps WHERE state = 'RUNNING'; END;
                 CREATE TRIGGER saboteur_opens AFTER UPDATE OF state ON steps WHEN new.state = 'ABANDONED'
                     AND (new.run_id, new.step_id, new.attempt) IN (SELECT run_id, step_id, attempt FROM saboteur) BEGIN
                     UPDATE steps SET state = 'RUNNING', finished_at = NULL
                     WHERE run_id = new.run_id AND step_id = new.step_id AND attempt = new.attempt; END",
            ),
        ),
        one(
            "a run counts as created when it is due",
            &["reading::a_run_that_is_due_later"],
            Tampering::Script(
                "CREATE TRIGGER saboteur AFTER INSERT ON runs WHEN new.state = 'SLEEPING' BEGIN
                     UPDATE runs SET created_at = new.due_at WHERE run_id = new.run_id; END",
            ),
        ),
    ]
}
