-- What reapers and sweeps do, the writing of what a rule decided, and how full queues are. More of
-- 0002_functions.sql, whose head says how these functions are made and why.

-- Locks runs whose moment has come, the longest overdue first: of the given queues, or of all where
-- p_queues is null. What others hold is left to them.
CREATE FUNCTION kagzi_overdue(
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

-- The moments that have come longest ago, of runs and of attempts, in the order of their indexes: with the
-- statistics of a young table the planner would read all of it and sort, once for every piece of a reap.
CREATE FUNCTION kagzi_moments_due(p_partition smallint, p_now timestamptz, p_limit bigint)
RETURNS TABLE (attention_at timestamptz, is_attempt boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    v_now timestamptz := COALESCE(p_now, clock_timestamp());
BEGIN
    RETURN QUERY
        SELECT r.attention_at, false FROM runs r
        WHERE r.attention_at <= v_now AND r.partition = p_partition ORDER BY r.attention_at LIMIT p_limit;
    RETURN QUERY
        SELECT s.attention_at, true FROM steps s
        WHERE s.attention_at <= v_now AND s.partition = p_partition ORDER BY s.attention_at LIMIT p_limit;
END $$;

-- The write of kagzi_save_runs, by the places of rows that the transaction has locked; see
-- kagzi_steps_complete.
CREATE FUNCTION kagzi_save_runs_write(
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
BEGIN
    UPDATE runs r
    SET state = n.state::run_state, due_at = n.due_at, deadline_at = n.deadline_at,
        claim_rank = n.claim_rank, attention_at = n.attention_at, fencing_token = n.fencing_token,
        worker_id = n.worker_id, lease_expires_at = n.lease_expires_at,
        claim_operation = n.claim_operation, claims = n.claims, lost_leases = n.lost_leases,
        failures = n.failures, budget_token = n.budget_token, failure = n.failure,
        dead_letter = n.dead_letter::dead_letter_reason, finish_operation = n.finish_operation,
        updated_at = n.updated_at, finished_at = n.finished_at
    FROM UNNEST(p_place, p_run, p_state, p_due_at, p_deadline_at, p_claim_rank, p_attention_at, p_token,
                p_worker, p_lease_expires_at, p_claim_operation, p_claims, p_lost_leases,
                p_failures, p_budget_token, p_failure, p_dead_letter, p_finish_operation,
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

-- Writes the changeable columns of runs, and abandons their open attempts where told to. All elements are
-- written together: row by row it took twice as long for a hundred runs, and as long for one. The plans
-- are kept: made anew for each call, they cost more than all the rest where there is one run to write.
CREATE FUNCTION kagzi_save_runs(
    p_partition smallint,
    p_run uuid[], p_state text[], p_due_at timestamptz[], p_deadline_at timestamptz[], p_claim_rank bigint[],
    p_attention_at timestamptz[], p_token bigint[], p_worker text[], p_lease_expires_at timestamptz[],
    p_claim_operation uuid[], p_claims bigint[], p_lost_leases bigint[], p_failures bigint[],
    p_budget_token bigint[], p_failure text[], p_dead_letter text[], p_finish_operation uuid[],
    p_updated_at timestamptz[], p_finished_at timestamptz[], p_abandon boolean[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_place tid[];
    -- One entry an attempt that is abandoned.
    v_abandon tid[];
    v_abandon_of uuid[];
    v_abandon_at timestamptz[];
BEGIN
    SELECT array_agg(open.place), array_agg(n.run), array_agg(n.updated_at)
    INTO v_abandon, v_abandon_of, v_abandon_at
    FROM UNNEST(p_run, p_updated_at, p_abandon) AS n(run, updated_at, abandon)
    CROSS JOIN LATERAL (
        SELECT s.ctid AS place FROM steps s
        WHERE s.run_id = n.run AND s.partition = p_partition AND s.state = 'RUNNING'
        OFFSET 0) open
    WHERE n.abandon;
    IF v_abandon IS NOT NULL THEN
        PERFORM kagzi_steps_abandon(p_partition, v_abandon, v_abandon_of, v_abandon_at);
    END IF;

    SELECT array_agg(held.place ORDER BY n.i) INTO v_place
    FROM UNNEST(p_run) WITH ORDINALITY AS n(run, i)
    LEFT JOIN LATERAL (
        SELECT r.ctid AS place FROM runs r
        WHERE r.run_id = n.run AND r.partition = p_partition
        OFFSET 0) held ON true;
    PERFORM kagzi_save_runs_write(
        p_partition, v_place, p_run, p_state, p_due_at, p_deadline_at, p_claim_rank, p_attention_at, p_token,
        p_worker, p_lease_expires_at, p_claim_operation, p_claims, p_lost_leases, p_failures, p_budget_token,
        p_failure, p_dead_letter, p_finish_operation, p_updated_at, p_finished_at);
END $$;

-- How many live runs the queues of a namespace hold by state, and since when the oldest of each is due. Every
-- live run is in one of the two indexes whose conditions and order these are: finished runs are not looked
-- at, nor those of other namespaces, of which the planner would read all where most runs that it knows of are
-- of this one.
CREATE FUNCTION kagzi_queue_depths(p_partition smallint, p_namespace text)
RETURNS TABLE (queue text, state text, runs bigint, oldest_due_at timestamptz) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
BEGIN
    RETURN QUERY
        SELECT live.queue, live.state::text, count(*), min(live.due_at) FROM (
            (SELECT r.queue, r.state, r.due_at FROM runs r
             WHERE r.namespace = p_namespace AND r.partition = p_partition AND r.state = 'PENDING'
             ORDER BY r.queue, r.claim_rank)
            UNION ALL
            (SELECT r.queue, r.state, r.due_at FROM runs r
             WHERE r.namespace = p_namespace AND r.partition = p_partition AND r.attention_at IS NOT NULL
               AND r.state <> 'PENDING'
             ORDER BY r.queue, r.attention_at)) live
        GROUP BY live.queue, live.state;
END $$;
