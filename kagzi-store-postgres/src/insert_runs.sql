WITH inserted AS (
    INSERT INTO runs (run_id, partition, namespace, queue, workflow_type, state, priority, due_at, deadline_at,
        run_timeout_micros, claim_rank, attention_at, fencing_token, claims, lost_leases, failures, budget_token,
        retry, idempotency_key, labels, trace_context, created_at, updated_at)
    SELECT u.run_id, $1, u.namespace, u.queue, u.workflow_type, u.state::run_state, u.priority, u.due_at,
        u.deadline_at, u.run_timeout_micros, u.claim_rank, u.attention_at, 0, 0, 0, 0, 0,
        u.retry, u.idempotency_key, u.labels::jsonb, u.trace_context, u.created_at, u.created_at
    FROM UNNEST($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::smallint[], $8::timestamptz[],
                $9::timestamptz[], $10::bigint[], $11::bigint[], $12::timestamptz[], $13::text[], $14::text[],
                $15::text[], $16::text[], $17::timestamptz[])
        AS u(run_id, namespace, queue, workflow_type, state, priority, due_at, deadline_at, run_timeout_micros,
             claim_rank, attention_at, retry, idempotency_key, labels, trace_context, created_at)
    ON CONFLICT DO NOTHING
    RETURNING run_id, created_at
)
INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
SELECT inserted.run_id, 'INPUT', $1, u.content_type, u.bytes, inserted.created_at, inserted.created_at
FROM inserted
JOIN UNNEST($2::uuid[], $18::text[], $19::bytea[]) AS u(run_id, content_type, bytes) USING (run_id)
RETURNING run_id
