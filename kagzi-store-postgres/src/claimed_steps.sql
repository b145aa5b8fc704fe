-- Of each of some runs of one partition that is held under its token ($5) still, the first $3 latest attempts, as far as
-- all together have room ($4 bytes); a row without a step_id if it has none. The first one that has no room is told too,
-- of each run, to show that there are more; nothing of what it holds is read. Token and steps are read at one moment: a
-- lease may have been lost since the claim, and the next holder may have gone on. What a step weighs here is never more than what kagzi_core::decide::ClaimRoom
-- reckons, which cuts them for good: a failure's JSON is at most eight times as long as its texts.
SELECT held AS run_id, step_id, attempt, position, kind::text AS kind, state::text AS state, fencing_token,
     worker_id, retry, deadline_at, begin_operation, end_operation,
     CASE WHEN fits THEN output_type END AS output_type, CASE WHEN fits THEN output END AS output,
     CASE WHEN fits THEN failure END AS failure, created_at, updated_at, finished_at, fits
 FROM (
     SELECT weighed.*, room <= $4 AS fits,
            room - weight <= $4 OR position_of_run = 1 AS wanted
     FROM (
         SELECT s.*, u.id AS held, u.i, w.weight,
                sum(w.weight) OVER (ORDER BY u.i, s.position, s.step_id) AS room,
                row_number() OVER (PARTITION BY u.i ORDER BY s.position, s.step_id) AS position_of_run
         FROM UNNEST($1::uuid[], $5::bigint[]) WITH ORDINALITY AS u(id, token, i)
         CROSS JOIN LATERAL (
             SELECT 1 FROM runs
             WHERE runs.run_id = u.id AND runs.partition = $2
                 AND runs.state = 'RUNNING' AND runs.fencing_token = u.token
             OFFSET 0) still
         LEFT JOIN LATERAL (
             SELECT * FROM (
                 SELECT DISTINCT ON (step_id) * FROM steps
                 WHERE steps.run_id = u.id AND steps.partition = $2
                 ORDER BY step_id, attempt DESC) latest
             ORDER BY position, step_id LIMIT $3) s ON true
         CROSS JOIN LATERAL (
             SELECT 256 + COALESCE(octet_length(s.output), 0)::bigint
                        + COALESCE(octet_length(s.failure), 0)::bigint / 8) AS w(weight)
     ) weighed
 ) found
 WHERE wanted
 ORDER BY i, position, step_id
