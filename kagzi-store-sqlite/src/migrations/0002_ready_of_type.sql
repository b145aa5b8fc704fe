-- Claims of certain types, which do not walk past the pending runs of the others. It costs two more
-- entries written for each run.
CREATE INDEX runs_ready_of_type ON runs (namespace, queue, workflow_type, claim_rank, run_id)
    WHERE state = 'PENDING';
