-- What a claim over several partitions would find in one of them; it takes nothing. So such a claim asks each
-- partition once, side by side, and then takes from those where the first runs are. It answers rows with told =
--
-- - AGAIN: the same claim took runs here before. Nothing else is told.
-- - OVERDUE: something is overdue in the queues, and p_sweep said to look for that. Nothing else is told.
-- - READY: a run that is there to be taken, the first in the order of claims in front.
CREATE FUNCTION kagzi_look(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_types text[],
    p_worker text, p_limit integer, p_operation uuid, p_sweep boolean
) RETURNS TABLE (told text, claim_rank bigint, run_id uuid, input_bytes integer) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz;
BEGIN
    -- The same claim that takes here at this moment, for a caller who went away, ends first and is seen.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_operation::text, p_partition));
    v_now := COALESCE(p_now, clock_timestamp());

    PERFORM FROM runs r
    WHERE r.claim_operation = p_operation AND r.partition = p_partition
      AND r.namespace IS NOT DISTINCT FROM p_namespace AND r.state IS NOT DISTINCT FROM 'RUNNING'
      AND r.worker_id = p_worker
    LIMIT 1;
    IF FOUND THEN
        RETURN QUERY SELECT 'AGAIN', NULL::bigint, NULL::uuid, NULL::integer;
        RETURN;
    END IF;

    IF p_sweep THEN
        PERFORM FROM UNNEST(p_queues) AS q(queue)
        CROSS JOIN LATERAL (
            SELECT 1 FROM runs r
            WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
              AND r.attention_at <= v_now
            LIMIT 1) due;
        IF FOUND THEN
            RETURN QUERY SELECT 'OVERDUE', NULL::bigint, NULL::uuid, NULL::integer;
            RETURN;
        END IF;
    END IF;

    RETURN QUERY
        SELECT 'READY', c.claim_rank, c.run_id, c.input_bytes
        FROM kagzi_peek(p_partition, v_now, p_namespace, p_queues, p_types, p_limit) c;
END $$;

-- As in 0003_queues.sql, but with a lock for each partition: a claim over several takes from them side by side, and must
-- not wait for itself.
CREATE OR REPLACE FUNCTION kagzi_claim(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_types text[],
    p_worker text, p_length_micros bigint, p_limit integer, p_room bigint, p_operation uuid,
    p_repeat boolean, p_sweep boolean
) RETURNS TABLE (told text, taken runs, input_type text, input bytea) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz;
    -- One entry a run, the first in the order of claims in front; places and payloads only as far as
    -- they have room.
    v_run uuid[];
    v_place tid[];
    v_input_type text[];
    v_input bytea[];
BEGIN
    -- The same claim twice at one time: the second waits, and then finds what the first took.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_operation::text, p_partition));
    v_now := COALESCE(p_now, clock_timestamp());

    IF p_repeat THEN
        RETURN QUERY
            SELECT 'AGAIN', r, p.content_type, p.bytes FROM runs r
            LEFT JOIN LATERAL (
                SELECT p.content_type, p.bytes FROM payloads p
                WHERE p.run_id = r.run_id AND p.slot = 'INPUT' AND p.partition = p_partition OFFSET 0) p ON true
            WHERE r.claim_operation = p_operation AND r.partition = p_partition
              AND r.namespace IS NOT DISTINCT FROM p_namespace AND r.state IS NOT DISTINCT FROM 'RUNNING'
              AND r.worker_id = p_worker;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    IF p_sweep THEN
        PERFORM FROM UNNEST(p_queues) AS q(queue)
        CROSS JOIN LATERAL (
            SELECT 1 FROM runs r
            WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
              AND r.attention_at <= v_now
            LIMIT 1) due;
        IF FOUND THEN
            RETURN QUERY SELECT 'OVERDUE', NULL::runs, NULL::text, NULL::bytea;
            RETURN;
        END IF;
    END IF;
    IF p_limit = 0 THEN
        RETURN;
    END IF;

    IF p_types IS NULL THEN
        SELECT array_agg(c.run_id ORDER BY c.claim_rank, c.run_id),
               array_agg(c.place ORDER BY c.claim_rank, c.run_id)
        INTO v_run, v_place
        FROM (
            SELECT ready.* FROM (
                SELECT u.queue FROM UNNEST(p_queues) AS u(queue)
                WHERE NOT EXISTS (
                    SELECT 1 FROM queues z
                    WHERE z.namespace = p_namespace AND z.queue = u.queue AND z.partition = p_partition
                      AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN LATERAL (
                SELECT r.ctid AS place, r.run_id, r.claim_rank FROM runs r
                WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED) ready
            ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c;
    ELSE
        SELECT array_agg(c.run_id ORDER BY c.claim_rank, c.run_id),
               array_agg(c.place ORDER BY c.claim_rank, c.run_id)
        INTO v_run, v_place
        FROM (
            SELECT ready.* FROM (
                SELECT u.queue FROM UNNEST(p_queues) AS u(queue)
                CROSS JOIN LATERAL (
                    SELECT 1 FROM runs r
                    WHERE r.namespace = p_namespace AND r.queue = u.queue AND r.partition = p_partition
                      AND r.state = 'PENDING' LIMIT 1) busy
                WHERE NOT EXISTS (
                    SELECT 1 FROM queues z
                    WHERE z.namespace = p_namespace AND z.queue = u.queue AND z.partition = p_partition
                      AND z.state = 'PAUSED')
                OFFSET 0) AS q
            CROSS JOIN UNNEST(p_types) AS t(workflow_type)
            CROSS JOIN LATERAL (
                SELECT r.ctid AS place, r.run_id, r.claim_rank FROM runs r
                WHERE r.namespace = p_namespace AND r.queue = q.queue
                  AND r.workflow_type = t.workflow_type AND r.partition = p_partition
                  AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                ORDER BY r.claim_rank, r.run_id LIMIT p_limit
                FOR NO KEY UPDATE SKIP LOCKED) ready
            ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c;
    END IF;
    IF v_run IS NULL THEN
        PERFORM FROM kagzi_peek(p_partition, v_now, p_namespace, p_queues, p_types, 1);
        IF FOUND THEN
            RETURN QUERY SELECT 'HELD', NULL::runs, NULL::text, NULL::bytea;
        END IF;
        RETURN;
    END IF;

    -- Sizes are known without reading large payloads; of those that have no room nothing more is read.
    SELECT array_agg(i.place ORDER BY i.i), array_agg(i.content_type ORDER BY i.i),
           array_agg(i.bytes ORDER BY i.i)
    INTO v_place, v_input_type, v_input
    FROM (
        SELECT u.i, u.place, p.content_type, p.bytes, sum(octet_length(p.bytes)) OVER (ORDER BY u.i) AS room
        FROM UNNEST(v_run, v_place) WITH ORDINALITY AS u(run, place, i)
        LEFT JOIN LATERAL (
            SELECT p.content_type, p.bytes FROM payloads p
            WHERE p.run_id = u.run AND p.slot = 'INPUT' AND p.partition = p_partition OFFSET 0) p ON true) i
    WHERE i.i = 1 OR i.room <= p_room;

    RETURN QUERY
        SELECT t.* FROM kagzi_claim_take(
            p_partition, v_now, LEAST(v_now + p_length_micros * interval '1 microsecond', kagzi_end_of_time()),
            p_worker, p_operation, v_place, v_input_type, v_input) t;
    IF cardinality(v_place) < cardinality(v_run) THEN
        RETURN QUERY SELECT 'LEFT', NULL::runs, NULL::text, NULL::bytea;
    END IF;
END $$;
