-- What a Citus cluster refuses of the functions before, in forms that it takes.

-- New runs of one partition with their inputs; answers the ids of those that were not there before. It stands for
-- src/insert_runs.sql where there are several partitions: of an INSERT into one table that reads what an INSERT into
-- another returned, Citus makes several statements on several nodes, while a function goes to the node of its partition.
-- Where there is one partition, the statement costs less than the call.
CREATE FUNCTION kagzi_start(
    p_partition smallint, p_run uuid[], p_namespace text[], p_queue text[], p_workflow_type text[], p_state text[],
    p_priority smallint[], p_due_at timestamptz[], p_deadline_at timestamptz[], p_timeout_micros bigint[],
    p_claim_rank bigint[], p_attention_at timestamptz[], p_retry text[], p_key text[], p_labels text[],
    p_trace_context text[], p_created_at timestamptz[], p_input_type text[], p_input bytea[]
) RETURNS SETOF uuid LANGUAGE plpgsql
AS $$
DECLARE
    v_run uuid;
    v_new uuid[];
BEGIN
    FOR v_run IN
        INSERT INTO runs (run_id, partition, namespace, queue, workflow_type, state, priority, due_at, deadline_at,
            run_timeout_micros, claim_rank, attention_at, fencing_token, claims, lost_leases, failures, budget_token,
            retry, idempotency_key, labels, trace_context, created_at, updated_at)
        SELECT u.run, p_partition, u.namespace, u.queue, u.workflow_type, u.state::run_state, u.priority, u.due_at,
            u.deadline_at, u.timeout_micros, u.claim_rank, u.attention_at, 0, 0, 0, 0, 0,
            u.retry, u.key, u.labels::jsonb, u.trace_context, u.created_at, u.created_at
        FROM UNNEST(p_run, p_namespace, p_queue, p_workflow_type, p_state, p_priority, p_due_at, p_deadline_at,
                    p_timeout_micros, p_claim_rank, p_attention_at, p_retry, p_key, p_labels, p_trace_context,
                    p_created_at)
            AS u(run, namespace, queue, workflow_type, state, priority, due_at, deadline_at, timeout_micros,
                 claim_rank, attention_at, retry, key, labels, trace_context, created_at)
        ON CONFLICT DO NOTHING
        RETURNING run_id
    LOOP
        v_new := v_new || v_run;
        RETURN NEXT v_run;
    END LOOP;

    INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
    SELECT u.run, 'INPUT', p_partition, u.content_type, u.bytes, u.created_at, u.created_at
    FROM UNNEST(p_run, p_input_type, p_input, p_created_at) AS u(run, content_type, bytes, created_at)
    WHERE u.run = ANY (v_new);
END $$;

-- As in 0002_reaping.sql, but what becomes of a text is read before the UPDATE: reading it as an enum is a function that
-- Citus does not take in an UPDATE with columns for arguments, since another node might read it differently.
CREATE OR REPLACE FUNCTION kagzi_save_runs_write(
    p_partition smallint, p_place tid[],
    p_run uuid[], p_state text[], p_due_at timestamptz[], p_deadline_at timestamptz[], p_claim_rank bigint[],
    p_attention_at timestamptz[], p_token bigint[], p_worker text[], p_lease_expires_at timestamptz[],
    p_claim_operation uuid[], p_claims bigint[], p_lost_leases bigint[], p_failures bigint[],
    p_budget_token bigint[], p_failure text[], p_dead_letter text[], p_finish_operation uuid[],
    p_updated_at timestamptz[], p_finished_at timestamptz[]
) RETURNS void LANGUAGE plpgsql
SET enable_indexscan = off SET enable_indexonlyscan = off
AS $$
DECLARE
    v_written bigint;
    v_state run_state[] := p_state::run_state[];
    v_dead_letter dead_letter_reason[] := p_dead_letter::dead_letter_reason[];
BEGIN
    UPDATE runs r
    SET state = n.state, due_at = n.due_at, deadline_at = n.deadline_at,
        claim_rank = n.claim_rank, attention_at = n.attention_at, fencing_token = n.fencing_token,
        worker_id = n.worker_id, lease_expires_at = n.lease_expires_at,
        claim_operation = n.claim_operation, claims = n.claims, lost_leases = n.lost_leases,
        failures = n.failures, budget_token = n.budget_token, failure = n.failure,
        dead_letter = n.dead_letter, finish_operation = n.finish_operation,
        updated_at = n.updated_at, finished_at = n.finished_at
    FROM UNNEST(p_place, p_run, v_state, p_due_at, p_deadline_at, p_claim_rank, p_attention_at, p_token,
                p_worker, p_lease_expires_at, p_claim_operation, p_claims, p_lost_leases,
                p_failures, p_budget_token, p_failure, v_dead_letter, p_finish_operation,
                p_updated_at, p_finished_at)
        AS n(place, run_id, state, due_at, deadline_at, claim_rank, attention_at, fencing_token,
             worker_id, lease_expires_at, claim_operation, claims, lost_leases,
             failures, budget_token, failure, dead_letter, finish_operation,
             updated_at, finished_at)
    WHERE r.ctid = n.place AND r.run_id = n.run_id AND r.partition = p_partition;
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> cardinality(p_run) THEN
        RAISE EXCEPTION '% of % runs were written', v_written, cardinality(p_run);
    END IF;
END $$;

-- As in 0002_reaping.sql, but the lock of a sweep is that of one schema: another one in the same database may have a
-- namespace of the same name, and a claim there waited for a sweep that was none of its business.
CREATE OR REPLACE FUNCTION kagzi_overdue(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_limit integer
) RETURNS SETOF runs LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_now timestamptz;
BEGIN
    IF p_queues IS NOT NULL THEN
        -- Claims that find the same runs overdue let one of them put these in order, and wait for it:
        -- passing by what it holds, they would come away empty though there is work.
        PERFORM pg_advisory_xact_lock(hashtextextended(
            'kagzi sweep ' || current_schema() || ' ' || p_namespace, p_partition));
    END IF;
    v_now := COALESCE(p_now, clock_timestamp());
    IF p_queues IS NULL THEN
        RETURN QUERY
            SELECT r.* FROM runs r
            WHERE r.attention_at <= v_now AND r.partition = p_partition
            ORDER BY r.attention_at LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED;
    ELSE
        RETURN QUERY
            SELECT c.* FROM UNNEST(p_queues) AS q(queue)
            CROSS JOIN LATERAL (
                SELECT r.* FROM runs r
                WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                  AND r.attention_at <= v_now
                ORDER BY r.attention_at LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED) c
            ORDER BY c.attention_at LIMIT p_limit;
    END IF;
END $$;
