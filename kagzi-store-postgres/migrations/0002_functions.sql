-- The set-based operations, each one call with arrays in and one row per element out, in order.
--
-- They are functions, not chains of CTEs, for three reasons. Each inner statement is a look-up by
-- key, or by the place (ctid) where a row was just seen, whose plan cannot flip while the statistics of a
-- young table lag. Each inner statement sees
-- what was committed while it waited for a row lock; the parts of one CTE do not. And a function
-- that is distributed by its partition argument runs on the node of the partition. The planner
-- settings below keep the cached plans on the indexes, whatever size the tables had when they were
-- made. Callers sort the elements by run id, so that locks are taken in one order.
--
-- Where a row is found by its key, the other conditions are written IS NOT DISTINCT FROM, which no index
-- serves: on an empty table every index looks equally good, and a plan that went by the namespace would
-- read ever more of it.
--
-- Where many runs are locked together, lock_timeout keeps one that a stuck session holds from holding up
-- the others: the statement gives up, and the caller goes round it.
--
-- The fast functions act on the ordinary case only. For anything else they change nothing and answer
-- so, and the caller asks kagzi-core, where the rules are.

-- The end of time, as kagzi_core::Timestamp::MAX.
CREATE FUNCTION kagzi_end_of_time() RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN timestamptz '9999-12-31 23:59:59.999999+00';

-- The writes of kagzi_steps that look rows up by their place (ctid), where it has just seen them under
-- the locks of their runs; a null in p_place is an element with nothing to write. They are functions of
-- their own for the sake of their settings, which add to those of kagzi_steps: without index scans the
-- join by place is the only plan left, while in the eyes of the planner a walk through all of an index
-- costs no more as long as the table looks empty. The conditions beside the place hold already. Should
-- one not, fewer rows are written than were seen, and the error undoes the batch: nothing is called
-- done that was not written.
CREATE FUNCTION kagzi_steps_complete(
    p_partition smallint, p_now timestamptz, p_place tid[], p_run uuid[],
    p_output_type text[], p_output bytea[], p_operation uuid[]
) RETURNS void LANGUAGE plpgsql
SET enable_indexscan = off SET enable_indexonlyscan = off
AS $$
DECLARE
    v_written bigint;
BEGIN
    UPDATE steps s
    SET state = 'COMPLETED', output_type = u.output_type, output = u.output,
        end_operation = u.operation, updated_at = p_now, finished_at = p_now, attention_at = NULL
    FROM UNNEST(p_place, p_run, p_output_type, p_output, p_operation)
        AS u(place, run, output_type, output, operation)
    WHERE s.ctid = u.place AND s.run_id = u.run AND s.partition = p_partition AND s.state = 'RUNNING';
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> num_nonnulls(VARIADIC p_place) THEN
        RAISE EXCEPTION '% of % attempts were completed', v_written, num_nonnulls(VARIADIC p_place);
    END IF;
END $$;

CREATE FUNCTION kagzi_steps_abandon(p_partition smallint, p_place tid[], p_run uuid[], p_at timestamptz[])
RETURNS void LANGUAGE plpgsql
SET enable_indexscan = off SET enable_indexonlyscan = off
AS $$
DECLARE
    v_written bigint;
BEGIN
    UPDATE steps s
    SET state = 'ABANDONED', updated_at = u.at, finished_at = u.at, attention_at = NULL
    FROM UNNEST(p_place, p_run, p_at) AS u(place, run, at)
    WHERE s.ctid = u.place AND s.run_id = u.run AND s.partition = p_partition AND s.state = 'RUNNING';
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> num_nonnulls(VARIADIC p_place) THEN
        RAISE EXCEPTION '% of % attempts were abandoned', v_written, num_nonnulls(VARIADIC p_place);
    END IF;
END $$;

CREATE FUNCTION kagzi_steps_finish(
    p_partition smallint, p_now timestamptz, p_place tid[], p_run uuid[], p_operation uuid[]
) RETURNS void LANGUAGE plpgsql
SET enable_indexscan = off SET enable_indexonlyscan = off
AS $$
DECLARE
    v_written bigint;
BEGIN
    UPDATE runs r
    SET state = 'COMPLETED', worker_id = NULL, lease_expires_at = NULL, claim_operation = NULL,
        attention_at = NULL, lost_leases = 0, finish_operation = u.operation,
        updated_at = p_now, finished_at = p_now
    FROM UNNEST(p_place, p_run, p_operation) AS u(place, run, operation)
    WHERE r.ctid = u.place AND r.run_id = u.run AND r.partition = p_partition AND r.state = 'RUNNING';
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> num_nonnulls(VARIADIC p_place) THEN
        RAISE EXCEPTION '% of % runs were finished', v_written, num_nonnulls(VARIADIC p_place);
    END IF;
END $$;

-- Completes attempts, begins steps that have no attempt yet, and completes runs: whichever parts are
-- present in an element, whole or not at all. Answers whether it was done. No two elements share a run.
--
-- Most of what the store does is this, so it treats all elements together: one statement locks the runs,
-- the next looks, seeing all that was committed while the first one waited, and the others write.
-- Whoever writes a run or its attempts locks the run first, so what was seen stays true, and stays in
-- its place. LATERAL with OFFSET 0 makes every look-up a look-up by key, element after element; in one
-- statement with CTEs this could not be: its parts see one snapshot, and a distributed database (Citus)
-- refuses writes by ctid in there.
CREATE FUNCTION kagzi_steps(
    p_partition smallint, p_now timestamptz,
    p_run uuid[], p_namespace text[], p_worker text[], p_token bigint[], p_operation uuid[],
    p_step text[], p_attempt bigint[], p_output_type text[], p_output bytea[],
    p_next text[], p_position integer[], p_retry text[], p_timeout_micros bigint[],
    p_run_type text[], p_run_output bytea[]
) RETURNS SETOF boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1s'
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
    -- One entry an element, in order; a place is null where there is nothing to do.
    v_held tid[];
    v_done boolean[];
    v_complete tid[];
    v_finish tid[];
    -- One entry an attempt that is still open when its run is finished.
    v_abandon tid[];
    v_abandon_of uuid[];
BEGIN
    SELECT array_agg(held.place ORDER BY u.i) INTO v_held
    FROM UNNEST(p_run, p_namespace, p_worker, p_token) WITH ORDINALITY AS u(run, namespace, worker, token, i)
    LEFT JOIN LATERAL (
        SELECT r.ctid AS place FROM runs r
        WHERE r.run_id = u.run AND r.partition = p_partition AND r.namespace IS NOT DISTINCT FROM u.namespace
          AND r.state IS NOT DISTINCT FROM 'RUNNING' AND r.fencing_token = u.token AND r.worker_id = u.worker
        OFFSET 0 FOR NO KEY UPDATE) held ON true;

    SELECT array_agg(told.done ORDER BY u.i),
           array_agg(CASE WHEN told.done THEN attempt.place END ORDER BY u.i),
           array_agg(CASE WHEN told.done AND u.run_type IS NOT NULL THEN u.held END ORDER BY u.i)
    INTO v_done, v_complete, v_finish
    FROM UNNEST(v_held, p_run, p_token, p_step, p_attempt, p_next, p_run_type)
        WITH ORDINALITY AS u(held, run, token, step, attempt, next, run_type, i)
    LEFT JOIN LATERAL (
        SELECT s.ctid AS place FROM steps s
        WHERE s.run_id = u.run AND s.step_id = u.step AND s.attempt = u.attempt
          AND s.partition = p_partition AND s.state = 'RUNNING' AND s.fencing_token = u.token
        OFFSET 0) attempt ON true
    LEFT JOIN LATERAL (
        SELECT true AS found FROM steps s
        WHERE s.run_id = u.run AND s.step_id = u.next AND s.partition = p_partition
        LIMIT 1) begun ON true
    CROSS JOIN LATERAL (
        SELECT u.held IS NOT NULL AND (u.step IS NULL OR attempt.place IS NOT NULL) AND begun.found IS NULL
    ) AS told(done);

    IF num_nonnulls(VARIADIC v_complete) > 0 THEN
        PERFORM kagzi_steps_complete(p_partition, v_now, v_complete, p_run, p_output_type, p_output,
                                     p_operation);
    END IF;

    INSERT INTO steps (run_id, step_id, attempt, partition, position, kind, state, fencing_token,
                       worker_id, retry, deadline_at, attention_at, begin_operation, created_at, updated_at)
    SELECT u.run, u.next, 1, p_partition, u.place, 'TASK', 'RUNNING', u.token,
           u.worker, u.retry, d.deadline_at, d.deadline_at, u.operation, v_now, v_now
    FROM UNNEST(v_done, p_run, p_worker, p_token, p_operation, p_next, p_position, p_retry, p_timeout_micros)
        AS u(done, run, worker, token, operation, next, place, retry, timeout_micros)
    -- LEAST passes over a null, but no timeout is no deadline.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN u.timeout_micros IS NOT NULL
            THEN LEAST(v_now + u.timeout_micros * interval '1 microsecond', kagzi_end_of_time()) END
    ) AS d(deadline_at)
    WHERE u.done AND u.next IS NOT NULL;

    IF num_nonnulls(VARIADIC v_finish) > 0 THEN
        SELECT array_agg(open.place), array_agg(u.run) INTO v_abandon, v_abandon_of
        FROM UNNEST(v_finish, p_run) AS u(finish, run)
        CROSS JOIN LATERAL (
            SELECT s.ctid AS place FROM steps s
            WHERE s.run_id = u.run AND s.partition = p_partition AND s.state = 'RUNNING'
            OFFSET 0) open
        WHERE u.finish IS NOT NULL;
        IF v_abandon IS NOT NULL THEN
            PERFORM kagzi_steps_abandon(p_partition, v_abandon, v_abandon_of,
                                        array_fill(v_now, ARRAY[cardinality(v_abandon)]));
        END IF;
        PERFORM kagzi_steps_finish(p_partition, v_now, v_finish, p_run, p_operation);
        INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
        SELECT u.run, 'OUTPUT', p_partition, u.run_type, u.run_output, v_now, v_now
        FROM UNNEST(v_finish, p_run, p_run_type, p_run_output) AS u(finish, run, run_type, run_output)
        WHERE u.finish IS NOT NULL;
    END IF;

    RETURN QUERY SELECT u.done FROM UNNEST(v_done) WITH ORDINALITY AS u(done, i) ORDER BY u.i;
END $$;

-- Extends leases. Answers the new expiry, or null where the lease is not the current one.
CREATE FUNCTION kagzi_heartbeat(
    p_partition smallint, p_now timestamptz,
    p_run uuid[], p_namespace text[], p_worker text[], p_token bigint[], p_length_micros bigint[]
) RETURNS SETOF timestamptz LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET lock_timeout = '1s'
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
    v_wanted timestamptz;
    v_expires timestamptz;
    beat record;
BEGIN
    FOR beat IN
        SELECT * FROM UNNEST(p_run, p_namespace, p_worker, p_token, p_length_micros)
            AS u(run, namespace, worker, token, length_micros)
    LOOP
        v_wanted := LEAST(v_now + beat.length_micros * interval '1 microsecond', kagzi_end_of_time());
        v_expires := NULL;
        UPDATE runs r
        SET lease_expires_at = GREATEST(r.lease_expires_at, v_wanted),
            attention_at = LEAST(GREATEST(r.lease_expires_at, v_wanted), r.deadline_at),
            updated_at = v_now
        WHERE r.run_id = beat.run AND r.partition = p_partition
          AND r.namespace IS NOT DISTINCT FROM beat.namespace AND r.state IS NOT DISTINCT FROM 'RUNNING' AND r.fencing_token = beat.token AND r.worker_id = beat.worker
        RETURNING r.lease_expires_at INTO v_expires;
        RETURN NEXT v_expires;
    END LOOP;
END $$;

-- The first PENDING runs of some queues, in the order of claim_rank over all of them together, with the
-- size of their inputs; it takes nothing. With types, each queue and type is a range of its own in the
-- index, so that runs of other types are not looked at.
CREATE FUNCTION kagzi_peek(
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
                SELECT ready.* FROM UNNEST(p_queues) AS q(queue)
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
                SELECT ready.* FROM UNNEST(p_queues) AS q(queue) CROSS JOIN UNNEST(p_types) AS t(workflow_type)
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

-- The write of kagzi_claim, by the places of rows that it has locked; see kagzi_steps_complete.
CREATE FUNCTION kagzi_claim_take(
    p_partition smallint, p_now timestamptz, p_expires timestamptz, p_worker text, p_operation uuid,
    p_place tid[], p_input_type text[], p_input bytea[]
) RETURNS TABLE (told text, taken runs, input_type text, input bytea) LANGUAGE plpgsql
SET enable_indexscan = off SET enable_indexonlyscan = off
AS $$
DECLARE
    v_written bigint;
BEGIN
    RETURN QUERY
        UPDATE runs r
        SET state = 'RUNNING', fencing_token = r.fencing_token + 1, worker_id = p_worker,
            lease_expires_at = p_expires, attention_at = LEAST(p_expires, r.deadline_at),
            claim_operation = p_operation, claims = r.claims + 1, updated_at = p_now
        FROM UNNEST(p_place, p_input_type, p_input) AS u(place, input_type, input)
        WHERE r.ctid = u.place AND r.partition = p_partition AND r.state = 'PENDING'
        RETURNING 'TAKEN', r, u.input_type, u.input;
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> cardinality(p_place) THEN
        RAISE EXCEPTION '% of % runs were claimed', v_written, cardinality(p_place);
    END IF;
END $$;

-- Takes leases on PENDING runs, in the order of claim_rank over all asked queues together, as long as
-- their inputs have room. Answers a row for each with told = TAKEN, in no order, and perhaps one row
-- without a run:
--
-- - OVERDUE: something is overdue in the queues, and p_sweep said to look for that. Nothing was taken.
-- - HELD: nothing was taken, since others hold all that is there.
-- - LEFT: there was no room for all that the limit would have allowed.
--
-- With p_repeat it first looks for what the same claim took before, and gives that again.
CREATE FUNCTION kagzi_claim(
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
            SELECT ready.* FROM UNNEST(p_queues) AS q(queue)
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
            SELECT ready.* FROM UNNEST(p_queues) AS q(queue) CROSS JOIN UNNEST(p_types) AS t(workflow_type)
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
