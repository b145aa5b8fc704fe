-- The first schema of kagzi on SQLite.
--
-- Ids are 16 bytes, moments are microseconds since 1970, states are text under a CHECK. Every key
-- leads with the run and ends with the partition (always 0 here), as on a cluster, so that one
-- reader of the schema knows both. Tables have no rowid: their primary key is the row's only home.
-- Checks are written out with OR: for an IN of three values or more, SQLite builds a table of its own
-- each time a row is written.

-- The hot row of a run. No payloads: claims and timers read many of these rows.
CREATE TABLE runs (
    run_id            BLOB    NOT NULL CHECK (length(run_id) = 16),
    partition         INTEGER NOT NULL DEFAULT 0 CHECK (partition = 0),
    namespace         TEXT    NOT NULL,
    queue             TEXT    NOT NULL,
    workflow_type     TEXT    NOT NULL,
    state             TEXT    NOT NULL
        CHECK (state = 'COMPLETED' OR state = 'RUNNING' OR state = 'PENDING' OR state = 'SLEEPING'
            OR state = 'FAILED' OR state = 'CANCELLED'),
    priority          INTEGER NOT NULL CHECK (priority BETWEEN -9 AND 9),
    due_at            INTEGER NOT NULL,
    -- The order of claims, from due_at and priority: kagzi_core::claim_rank.
    claim_rank        INTEGER NOT NULL,
    -- When time itself changes the run next: kagzi_core::Run::attention_at.
    attention_at      INTEGER,
    deadline_at       INTEGER,
    run_timeout       INTEGER,
    fencing_token     INTEGER NOT NULL CHECK (fencing_token >= 0),
    worker_id         TEXT,
    lease_expires_at  INTEGER,
    claim_operation   BLOB    CHECK (length(claim_operation) = 16),
    claims            INTEGER NOT NULL,
    lost_leases       INTEGER NOT NULL,
    failures          INTEGER NOT NULL,
    budget_token      INTEGER NOT NULL,
    finish_operation  BLOB    CHECK (length(finish_operation) = 16),
    dead_letter       TEXT
        CHECK (dead_letter = 'RETRIES_EXHAUSTED' OR dead_letter = 'NON_RETRYABLE'
            OR dead_letter = 'RUN_TIMEOUT' OR dead_letter = 'POISON'),
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    finished_at       INTEGER,
    idempotency_key   TEXT,
    -- From here on absent in most runs, and long in some: last, so that the rest is read without them.
    trace_context     TEXT,
    retry             TEXT,
    labels            TEXT,
    failure           TEXT,
    PRIMARY KEY (run_id, partition),
    CHECK ((state = 'RUNNING') = (worker_id IS NOT NULL)),
    CHECK ((state = 'RUNNING') = (lease_expires_at IS NOT NULL)),
    CHECK ((state = 'RUNNING') = (claim_operation IS NOT NULL)),
    CHECK ((state = 'FAILED') = (dead_letter IS NOT NULL)),
    CHECK ((state = 'COMPLETED' OR state = 'FAILED' OR state = 'CANCELLED') = (finished_at IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- Indexes hold live work only, but for the three about keys, listings and retention.
-- Claims: one queue in the order of claims; type and due time ride along so that filters and depths
-- need not read the rows.
CREATE INDEX runs_ready ON runs (namespace, queue, claim_rank, run_id, workflow_type, due_at)
    WHERE state = 'PENDING';
-- The reaper: whatever is due, the longest overdue first.
CREATE INDEX runs_attention ON runs (attention_at) WHERE attention_at IS NOT NULL;
-- A claim's own sweep of its queues; the state rides along for depths.
CREATE INDEX runs_queue_attention ON runs (namespace, queue, attention_at, state)
    WHERE attention_at IS NOT NULL;
-- A claim that is sent again.
CREATE INDEX runs_claim ON runs (claim_operation) WHERE state = 'RUNNING';
-- Invariant 7.
CREATE UNIQUE INDEX runs_key ON runs (namespace, idempotency_key, partition)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_listing ON runs (namespace, created_at, run_id);
CREATE INDEX runs_finished ON runs (finished_at, run_id, namespace, state)
    WHERE finished_at IS NOT NULL;

-- What runs were started with and what they gave.
CREATE TABLE payloads (
    run_id        BLOB    NOT NULL,
    slot          TEXT    NOT NULL CHECK (slot = 'INPUT' OR slot = 'OUTPUT'),
    partition     INTEGER NOT NULL DEFAULT 0 CHECK (partition = 0),
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    content_type  TEXT    NOT NULL,
    bytes         BLOB    NOT NULL,
    PRIMARY KEY (run_id, slot, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- The history: one row an attempt, with its output inline.
CREATE TABLE steps (
    run_id           BLOB    NOT NULL,
    step_id          TEXT    NOT NULL,
    attempt          INTEGER NOT NULL CHECK (attempt >= 1),
    partition        INTEGER NOT NULL DEFAULT 0 CHECK (partition = 0),
    position         INTEGER NOT NULL,
    kind             TEXT    NOT NULL CHECK (kind = 'TASK' OR kind = 'SLEEP'),
    state            TEXT    NOT NULL
        CHECK (state = 'COMPLETED' OR state = 'RUNNING' OR state = 'FAILED' OR state = 'ABANDONED'),
    fencing_token    INTEGER NOT NULL,
    worker_id        TEXT    NOT NULL,
    deadline_at      INTEGER,
    begin_operation  BLOB    NOT NULL CHECK (length(begin_operation) = 16),
    end_operation    BLOB    CHECK (length(end_operation) = 16),
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    finished_at      INTEGER,
    retry            TEXT,
    output_type      TEXT,
    output           BLOB,
    failure          TEXT,
    PRIMARY KEY (run_id, step_id, attempt, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE,
    CHECK ((state = 'RUNNING') = (finished_at IS NULL)),
    CHECK ((state = 'COMPLETED') = (output IS NOT NULL)),
    CHECK ((output IS NULL) = (output_type IS NULL)),
    CHECK ((state = 'FAILED') = (failure IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- The reaper: attempts past their timeout.
CREATE INDEX steps_deadline ON steps (deadline_at)
    WHERE deadline_at IS NOT NULL AND state = 'RUNNING';

-- The answers of rare operations, for callers who did not hear them (invariant 8).
CREATE TABLE operations (
    run_id        BLOB    NOT NULL,
    operation_id  BLOB    NOT NULL CHECK (length(operation_id) = 16),
    partition     INTEGER NOT NULL DEFAULT 0 CHECK (partition = 0),
    answer        TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    PRIMARY KEY (run_id, operation_id, partition),
    FOREIGN KEY (run_id, partition) REFERENCES runs (run_id, partition) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
