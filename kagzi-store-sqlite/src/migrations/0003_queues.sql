-- Queues that were paused or resumed; one that never was has no row and is open.
CREATE TABLE queues (
    namespace   TEXT    NOT NULL,
    queue       TEXT    NOT NULL,
    partition   INTEGER NOT NULL DEFAULT 0 CHECK (partition = 0),
    state       TEXT    NOT NULL CHECK (state = 'OPEN' OR state = 'PAUSED'),
    -- Since when it is paused, and why.
    paused_at   INTEGER,
    reason      TEXT,
    -- The last operations on it with their answers (invariant 8): kagzi_core::QueueOperations.
    operations  TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, queue, partition),
    CHECK ((state = 'PAUSED') = (paused_at IS NOT NULL)),
    CHECK ((state = 'PAUSED') = (reason IS NOT NULL))
) STRICT, WITHOUT ROWID;
