-- The set-based operations, each one call with arrays in and one row per element out, in order.
--
-- They are functions, not chains of CTEs, for three reasons. Each inner statement is a look-up by
-- key whose plan cannot flip while the statistics of a young table lag. Each inner statement sees
-- what was committed while it waited for a row lock; the parts of one CTE do not. And a function
-- that is distributed by its partition argument runs on the node of the partition. The planner
-- settings below keep the cached plans on the indexes, whatever size the tables had when they were
-- made. Callers sort the elements by run id, so that locks are taken in one order.
--
-- Where a row is found by its key, the other conditions are written IS NOT DISTINCT FROM, which no index
-- serves: on an empty table every index looks equally good, and a plan that went by the namespace would
-- read ever more of it.
--
-- The fast functions act on the ordinary case only. For anything else they change nothing and answer
-- so, and the caller asks kagzi-core, where the rules are.

-- The end of time, as kagzi_core::Timestamp::MAX.
CREATE FUNCTION kagzi_end_of_time() RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN timestamptz '9999-12-31 23:59:59.999999+00';

-- Completes attempts, begins steps that have no attempt yet, and completes runs: whichever parts are
-- present in an element, whole or not at all. Answers whether it was done.
CREATE FUNCTION kagzi_steps(
    p_partition smallint, p_now timestamptz,
    p_run uuid[], p_namespace text[], p_worker text[], p_token bigint[], p_operation uuid[],
    p_step text[], p_attempt bigint[], p_output_type text[], p_output bytea[],
    p_next text[], p_position integer[], p_retry text[], p_timeout_micros bigint[],
    p_run_type text[], p_run_output bytea[]
) RETURNS SETOF boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
    v_deadline timestamptz;
    op record;
BEGIN
    FOR op IN
        SELECT * FROM UNNEST(p_run, p_namespace, p_worker, p_token, p_operation,
                             p_step, p_attempt, p_output_type, p_output,
                             p_next, p_position, p_retry, p_timeout_micros, p_run_type, p_run_output)
            AS u(run, namespace, worker, token, operation, step, attempt, output_type, output,
                 next, place, retry, timeout_micros, run_type, run_output)
    LOOP
        PERFORM FROM runs r
        WHERE r.run_id = op.run AND r.partition = p_partition AND r.namespace IS NOT DISTINCT FROM op.namespace
          AND r.state IS NOT DISTINCT FROM 'RUNNING' AND r.fencing_token = op.token AND r.worker_id = op.worker
        FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RETURN NEXT false;
            CONTINUE;
        END IF;

        IF op.next IS NOT NULL THEN
            PERFORM FROM steps s
            WHERE s.run_id = op.run AND s.step_id = op.next AND s.partition = p_partition;
            IF FOUND THEN
                RETURN NEXT false;
                CONTINUE;
            END IF;
        END IF;

        IF op.step IS NOT NULL THEN
            UPDATE steps s
            SET state = 'COMPLETED', output_type = op.output_type, output = op.output,
                end_operation = op.operation, updated_at = v_now, finished_at = v_now, attention_at = NULL
            WHERE s.run_id = op.run AND s.step_id = op.step AND s.attempt = op.attempt
              AND s.partition = p_partition AND s.state = 'RUNNING' AND s.fencing_token = op.token;
            IF NOT FOUND THEN
                RETURN NEXT false;
                CONTINUE;
            END IF;
        END IF;

        IF op.next IS NOT NULL THEN
            v_deadline := LEAST(v_now + op.timeout_micros * interval '1 microsecond', kagzi_end_of_time());
            IF op.timeout_micros IS NULL THEN
                v_deadline := NULL;
            END IF;
            INSERT INTO steps (run_id, step_id, attempt, partition, position, kind, state, fencing_token,
                               worker_id, retry, deadline_at, attention_at, begin_operation,
                               created_at, updated_at)
            VALUES (op.run, op.next, 1, p_partition, op.place, 'TASK', 'RUNNING', op.token,
                    op.worker, op.retry, v_deadline, v_deadline, op.operation, v_now, v_now);
        END IF;

        IF op.run_type IS NOT NULL THEN
            UPDATE steps s
            SET state = 'ABANDONED', updated_at = v_now, finished_at = v_now, attention_at = NULL
            WHERE s.run_id = op.run AND s.partition = p_partition AND s.state = 'RUNNING';
            UPDATE runs r
            SET state = 'COMPLETED', worker_id = NULL, lease_expires_at = NULL, claim_operation = NULL,
                attention_at = NULL, lost_leases = 0, finish_operation = op.operation,
                updated_at = v_now, finished_at = v_now
            WHERE r.run_id = op.run AND r.partition = p_partition;
            INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
            VALUES (op.run, 'OUTPUT', p_partition, op.run_type, op.run_output, v_now, v_now);
        END IF;
        RETURN NEXT true;
    END LOOP;
END $$;

-- Extends leases. Answers the new expiry, or null where the lease is not the current one.
CREATE FUNCTION kagzi_heartbeat(
    p_partition smallint, p_now timestamptz,
    p_run uuid[], p_namespace text[], p_worker text[], p_token bigint[], p_length_micros bigint[]
) RETURNS SETOF timestamptz LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- Takes leases on PENDING runs, in the order of claim_rank over all asked queues together.
--
-- Sent again, it gives what it took. If something is overdue in the queues and p_sweep is true, it
-- takes nothing and answers one row without a run: sweep first, then ask again.
CREATE FUNCTION kagzi_claim(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_types text[],
    p_worker text, p_length_micros bigint, p_limit integer, p_operation uuid, p_sweep boolean
) RETURNS TABLE (taken runs, input_type text, input bytea) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_now timestamptz;
    v_repeated boolean := false;
    v_run uuid;
BEGIN
    -- The same claim twice at one time: the second waits, and then finds what the first took.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_operation::text, 0));
    v_now := COALESCE(p_now, clock_timestamp());

    FOR taken IN
        SELECT r.* FROM runs r
        WHERE r.claim_operation = p_operation AND r.partition = p_partition
          AND r.namespace IS NOT DISTINCT FROM p_namespace AND r.state IS NOT DISTINCT FROM 'RUNNING'
          AND r.worker_id = p_worker
        ORDER BY r.claim_rank, r.run_id
    LOOP
        v_repeated := true;
        SELECT p.content_type, p.bytes INTO input_type, input FROM payloads p
        WHERE p.run_id = taken.run_id AND p.slot = 'INPUT' AND p.partition = p_partition;
        RETURN NEXT;
    END LOOP;
    IF v_repeated THEN
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
            taken := NULL;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    FOR v_run IN
        SELECT c.run_id FROM UNNEST(p_queues) AS q(queue)
        CROSS JOIN LATERAL (
            SELECT r.run_id, r.claim_rank FROM runs r
            WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
              AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > v_now)
              AND (p_types IS NULL OR r.workflow_type = ANY (p_types))
            ORDER BY r.claim_rank, r.run_id LIMIT p_limit
            FOR NO KEY UPDATE SKIP LOCKED) c
        ORDER BY c.claim_rank, c.run_id LIMIT p_limit
    LOOP
        UPDATE runs r
        SET state = 'RUNNING', fencing_token = r.fencing_token + 1, worker_id = p_worker,
            lease_expires_at = LEAST(v_now + p_length_micros * interval '1 microsecond', kagzi_end_of_time()),
            attention_at = LEAST(v_now + p_length_micros * interval '1 microsecond', kagzi_end_of_time(),
                                 r.deadline_at),
            claim_operation = p_operation, claims = r.claims + 1, updated_at = v_now
        WHERE r.run_id = v_run AND r.partition = p_partition
        RETURNING r.* INTO taken;
        SELECT p.content_type, p.bytes INTO input_type, input FROM payloads p
        WHERE p.run_id = v_run AND p.slot = 'INPUT' AND p.partition = p_partition;
        RETURN NEXT;
    END LOOP;
END $$;

-- The PENDING runs that a claim would take, without taking them: where there are several partitions,
-- a claim first finds out how many to take from each.
CREATE FUNCTION kagzi_peek(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_types text[], p_limit integer
) RETURNS TABLE (claim_rank bigint, run_id uuid) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
    RETURN QUERY
        SELECT c.claim_rank, c.run_id FROM UNNEST(p_queues) AS q(queue)
        CROSS JOIN LATERAL (
            SELECT r.run_id, r.claim_rank FROM runs r
            WHERE r.namespace = p_namespace AND r.queue = q.queue AND r.partition = p_partition
              AND r.state = 'PENDING' AND (r.deadline_at IS NULL OR r.deadline_at > COALESCE(p_now, now()))
              AND (p_types IS NULL OR r.workflow_type = ANY (p_types))
            ORDER BY r.claim_rank, r.run_id LIMIT p_limit) c
        ORDER BY c.claim_rank, c.run_id LIMIT p_limit;
END $$;

-- Locks runs whose moment has come, the longest overdue first: of the given queues, or of all where
-- p_queues is null. What others hold is left to them.
CREATE FUNCTION kagzi_overdue(
    p_partition smallint, p_now timestamptz, p_namespace text, p_queues text[], p_limit integer
) RETURNS SETOF runs LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_now timestamptz;
BEGIN
    IF p_queues IS NOT NULL THEN
        -- Claims that find the same runs overdue let one of them put these in order, and wait for it:
        -- passing by what it holds, they would come away empty though there is work.
        PERFORM pg_advisory_xact_lock(hashtextextended('kagzi sweep ' || p_namespace, p_partition));
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

-- Writes the changeable columns of runs, and abandons their open attempts where told to.
CREATE FUNCTION kagzi_save_runs(
    p_partition smallint,
    p_run uuid[], p_state text[], p_due_at timestamptz[], p_deadline_at timestamptz[], p_claim_rank bigint[],
    p_attention_at timestamptz[], p_token bigint[], p_worker text[], p_lease_expires_at timestamptz[],
    p_claim_operation uuid[], p_claims bigint[], p_lost_leases bigint[], p_failures bigint[],
    p_budget_token bigint[], p_failure text[], p_dead_letter text[], p_finish_operation uuid[],
    p_updated_at timestamptz[], p_finished_at timestamptz[], p_abandon boolean[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    n record;
BEGIN
    FOR n IN
        SELECT * FROM UNNEST(p_run, p_state, p_due_at, p_deadline_at, p_claim_rank, p_attention_at, p_token,
                             p_worker, p_lease_expires_at, p_claim_operation, p_claims, p_lost_leases,
                             p_failures, p_budget_token, p_failure, p_dead_letter, p_finish_operation,
                             p_updated_at, p_finished_at, p_abandon)
            AS u(run_id, state, due_at, deadline_at, claim_rank, attention_at, fencing_token,
                 worker_id, lease_expires_at, claim_operation, claims, lost_leases,
                 failures, budget_token, failure, dead_letter, finish_operation,
                 updated_at, finished_at, abandon)
    LOOP
        IF n.abandon THEN
            UPDATE steps s
            SET state = 'ABANDONED', updated_at = n.updated_at, finished_at = n.updated_at, attention_at = NULL
            WHERE s.run_id = n.run_id AND s.partition = p_partition AND s.state = 'RUNNING';
        END IF;
        UPDATE runs r
        SET state = n.state::run_state, due_at = n.due_at, deadline_at = n.deadline_at,
            claim_rank = n.claim_rank, attention_at = n.attention_at, fencing_token = n.fencing_token,
            worker_id = n.worker_id, lease_expires_at = n.lease_expires_at,
            claim_operation = n.claim_operation, claims = n.claims, lost_leases = n.lost_leases,
            failures = n.failures, budget_token = n.budget_token, failure = n.failure,
            dead_letter = n.dead_letter::dead_letter_reason, finish_operation = n.finish_operation,
            updated_at = n.updated_at, finished_at = n.finished_at
        WHERE r.run_id = n.run_id AND r.partition = p_partition;
    END LOOP;
END $$;
