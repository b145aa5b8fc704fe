-- A run lives in one partition, which anyone can compute from its id. Every table carries the
-- partition, every key has it at its end (run_id leads: it is time-ordered and selective), and every
-- statement names one, so that the schema can be spread over nodes later without changing a key.
--
-- Text columns sort by byte: the order of listings must not depend on the locale of the database.

CREATE TYPE run_state AS ENUM ('PENDING', 'RUNNING', 'SLEEPING', 'COMPLETED', 'FAILED', 'CANCELLED');
CREATE TYPE attempt_state AS ENUM ('RUNNING', 'COMPLETED', 'FAILED', 'ABANDONED');
CREATE TYPE step_kind AS ENUM ('TASK', 'SLEEP');
CREATE TYPE dead_letter_reason AS ENUM ('RETRIES_EXHAUSTED', 'NON_RETRYABLE', 'RUN_TIMEOUT', 'POISON');
CREATE TYPE payload_slot AS ENUM ('INPUT', 'OUTPUT');

-- The hot row of a run: no payload.
CREATE TABLE runs (
    run_id uuid NOT NULL,
    partition smallint NOT NULL CHECK (partition >= 0),
    namespace text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    workflow_type text COLLATE "C" NOT NULL,
    state run_state NOT NULL,
    priority smallint NOT NULL CHECK (priority BETWEEN -9 AND 9),
    due_at timestamptz NOT NULL,
    deadline_at timestamptz,
    run_timeout_micros bigint CHECK (run_timeout_micros > 0),
    -- The place in the order of claims, from due_at and priority.
    claim_rank bigint NOT NULL,
    -- The next moment at which time itself changes the run; nothing for finished ones.
    attention_at timestamptz,
    fencing_token bigint NOT NULL CHECK (fencing_token >= 0),
    worker_id text COLLATE "C",
    lease_expires_at timestamptz,
    claim_operation uuid,
    claims bigint NOT NULL,
    lost_leases bigint NOT NULL,
    failures bigint NOT NULL,
    budget_token bigint NOT NULL,
    retry text,
    idempotency_key text COLLATE "C",
    labels jsonb,
    trace_context text,
    -- JSON, as text: a message may hold a NUL, which jsonb refuses even escaped.
    failure text,
    dead_letter dead_letter_reason,
    finish_operation uuid,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (run_id, partition),
    CHECK ((state = 'RUNNING') = (worker_id IS NOT NULL)),
    CHECK ((state = 'RUNNING') = (lease_expires_at IS NOT NULL)),
    CHECK ((state = 'RUNNING') = (claim_operation IS NOT NULL)),
    CHECK ((state = 'FAILED') = (dead_letter IS NOT NULL)),
    CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Claims take from the left edge of a queue, or of a queue's runs of one type.
CREATE INDEX runs_ready ON runs (namespace, queue, claim_rank, run_id, partition) WHERE state = 'PENDING';
CREATE INDEX runs_ready_of_type ON runs (namespace, queue, workflow_type, claim_rank, run_id, partition)
    WHERE state = 'PENDING';
-- What is overdue: for reapers over everything, for claims in their queues.
CREATE INDEX runs_attention ON runs (attention_at, partition) WHERE attention_at IS NOT NULL;
CREATE INDEX runs_queue_attention ON runs (namespace, queue, attention_at, partition)
    WHERE attention_at IS NOT NULL;
-- A claim that is sent again finds what it took.
CREATE INDEX runs_claim_operation ON runs (claim_operation, partition) WHERE claim_operation IS NOT NULL;
-- One key names one run. The key decides the partition, so that one partition's index can say so.
CREATE UNIQUE INDEX runs_idempotency_key ON runs (namespace, idempotency_key, partition)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_created ON runs (namespace, created_at, run_id, partition);
CREATE INDEX runs_finished ON runs (finished_at, partition) WHERE finished_at IS NOT NULL;

-- What a run was started with, and what it completed with. No foreign key, whose checks would cost a tenth
-- of all that a workflow costs the database: an input is written by the statement that writes its run, an
-- output under the lock of its run, and whoever deletes a run deletes both with it.
CREATE TABLE payloads (
    run_id uuid NOT NULL,
    slot payload_slot NOT NULL,
    partition smallint NOT NULL,
    content_type text NOT NULL,
    bytes bytea NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, slot, partition)
);

-- The attempts of steps. No foreign key: its check was a seventh of what a workflow costs the database.
-- Whoever writes an attempt holds the lock of its run, which was there under it; whoever deletes a run
-- deletes its attempts by the next statement of the same transaction, which sees all that were written
-- under the lock before. No index and no predicate names `state`, and attention_at is null without a
-- timeout, so that the update that completes an attempt may stay within its page where that has room (HOT).
CREATE TABLE steps (
    run_id uuid NOT NULL,
    step_id text COLLATE "C" NOT NULL,
    attempt integer NOT NULL CHECK (attempt > 0),
    partition smallint NOT NULL,
    position integer NOT NULL CHECK (position >= 0),
    kind step_kind NOT NULL,
    state attempt_state NOT NULL,
    fencing_token bigint NOT NULL,
    worker_id text NOT NULL,
    retry text,
    deadline_at timestamptz,
    -- deadline_at as long as the attempt is RUNNING: what reapers look at.
    attention_at timestamptz,
    begin_operation uuid NOT NULL,
    end_operation uuid,
    output_type text,
    output bytea,
    failure text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (run_id, step_id, attempt, partition),
    CHECK ((state = 'COMPLETED') = (output IS NOT NULL)),
    CHECK ((state = 'FAILED') = (failure IS NOT NULL))
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX steps_attention ON steps (attention_at, partition) WHERE attention_at IS NOT NULL;

-- The answers of rare operations, for when they are asked again.
CREATE TABLE operations (
    run_id uuid NOT NULL,
    operation_id uuid NOT NULL,
    partition smallint NOT NULL,
    answer text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, operation_id, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE
);
