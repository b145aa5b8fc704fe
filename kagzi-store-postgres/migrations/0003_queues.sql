-- Queues that can be paused, and claims that pass by those that are.
--
-- The state of a queue stands in every partition, written in one transaction, so that a claim in a partition
-- reads that partition and no other. The row in partition 0 is the one that a change of the state locks and
-- decides by; the others follow it.
--
-- A claim looks whether a queue is paused by the statement that locks its runs, which takes no lock for it: so
-- claims never wait for one another nor for a pause, and one that began before a pause was committed may
-- still take runs. Pauses are rare, and the table small: a queue that was never paused costs a claim one look
-- into an index that has no such key.

CREATE TYPE queue_state AS ENUM ('OPEN', 'PAUSED');

CREATE TABLE queues (
    namespace text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    partition smallint NOT NULL CHECK (partition >= 0),
    state queue_state NOT NULL,
    -- Since when it is paused, and why.
    paused_at timestamptz,
    reason text,
    -- The last operations on it with their answers (invariant 8): kagzi_core::QueueOperations.
    operations text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, queue, partition),
    CHECK ((state = 'PAUSED') = (paused_at IS NOT NULL)),
    CHECK ((state = 'PAUSED') = (reason IS NOT NULL))
);

-- As in 0002_functions.sql, where the comments on them stand, but for queues that are paused: those give
-- nothing. OFFSET 0 keeps the look at them before the look at their runs, which would be locked. And but for queues
-- in which nothing is ready, where types are named: a claim may name a thousand queues and a thousand types, and a
-- million pairs take seconds.
CREATE OR REPLACE FUNCTION kagzi_peek(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_types text[], p_limit integer
) RETURNS TABLE (claim_rank bigint, run_id uuid, input_bytes integer) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
BEGIN
    IF p_types IS NULL THEN
        RETURN QUERY
            SELECT c.claim_rank, c.run_id, p.input_bytes FROM (
                SELECT ready.* FROM (
                    SELECT u.queue FROM UNNEST(p_queues) AS u(queue)
                    WHERE NOT EXISTS (
                        SELECT 1 FROM queues z
                        WHERE z.namespace = p_namespace AND z.queue = u.queue AND z.partition = p_partition
                          AND z.state = 'PAUSED')
                    OFFSET 0) AS q
                CROSS JOIN LATERAL (
                    SELECT r.run_id, r.claim_rank FROM runs r
                    WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
                      AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                    ORDER BY r.claim_rank, r.run_id LIMIT p_limit) ready
                ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c
            LEFT JOIN LATERAL (
                SELECT octet_length(p.bytes) AS input_bytes FROM payloads p
                WHERE p.run_id = c.run_id AND p.slot = 'INPUT' AND p.partition = p_partition OFFSET 0) p ON true
            ORDER BY c.claim_rank, c.run_id;
    ELSE
        RETURN QUERY
            SELECT c.claim_rank, c.run_id, p.input_bytes FROM (
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
                    SELECT r.run_id, r.claim_rank FROM runs r
                    WHERE r.namespace = p_namespace AND r.queue = q.queue
                      AND r.workflow_type = t.workflow_type AND r.partition = p_partition
                      AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
                    ORDER BY r.claim_rank, r.run_id LIMIT p_limit) ready
                ORDER BY ready.claim_rank, ready.run_id LIMIT p_limit) c
            LEFT JOIN LATERAL (
                SELECT octet_length(p.bytes) AS input_bytes FROM payloads p
                WHERE p.run_id = c.run_id AND p.slot = 'INPUT' AND p.partition = p_partition OFFSET 0) p ON true
            ORDER BY c.claim_rank, c.run_id;
    END IF;
END $$;

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
    PERFORM pg_advisory_xact_lock(hashtextextended(p_operation::text, 0));
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

-- Locks the row of a queue, which it makes if there is none, for a change of its state.
CREATE FUNCTION kagzi_queue_lock(p_partition smallint, p_now timestamptz, p_namespace text, p_queue text)
RETURNS TABLE (
    paused_at timestamptz, reason text, operations text, created_at timestamptz, updated_at timestamptz,
    now timestamptz
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
BEGIN
    INSERT INTO queues AS z (namespace, queue, partition, state, operations, created_at, updated_at)
    VALUES (p_namespace, p_queue, p_partition, 'OPEN', '[]', v_now, v_now)
    ON CONFLICT DO NOTHING;
    PERFORM FROM queues z
    WHERE z.namespace = p_namespace AND z.queue = p_queue AND z.partition = p_partition
    FOR NO KEY UPDATE;
    -- What is seen and what time it is from here on was so under the lock.
    RETURN QUERY
        SELECT z.paused_at, z.reason, z.operations, z.created_at, z.updated_at,
               COALESCE(p_now, clock_timestamp())
        FROM queues z
        WHERE z.namespace = p_namespace AND z.queue = p_queue AND z.partition = p_partition;
END $$;

-- The paused queues of a namespace.
CREATE FUNCTION kagzi_paused_queues(p_partition smallint, p_namespace text)
RETURNS TABLE (queue text, paused_at timestamptz, reason text) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    RETURN QUERY
        SELECT z.queue, z.paused_at, z.reason FROM queues z
        WHERE z.namespace = p_namespace AND z.partition = p_partition AND z.state = 'PAUSED';
END $$;
