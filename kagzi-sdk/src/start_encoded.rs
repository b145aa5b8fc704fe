//! Starts that are sent through a payload codec.

use kagzi_core::{StartRun, Started, StoreError};

use crate::client::Client;
use crate::error::ClientError;

impl Client {
    /// Starts runs, their inputs encoded if there is a codec.
    ///
    /// The engine compares inputs by their bytes, and the same input has others under another key, or from
    /// before there was a codec. So where only the input of a start is said to differ from that of the run
    /// that its key names, the first input is read back, and if the values agree, it is sent in place of
    /// the new one: the start agrees with it then, and the engine says so.
    pub(crate) async fn start_encoded(&self, starts: Vec<StartRun>) -> Result<Vec<Started>, ClientError> {
        if self.payloads().are_plain() {
            return Ok(self.send_starts(&starts).await?);
        }
        let mut batch = starts.clone();
        for (encoded, start) in batch.iter_mut().zip(&starts) {
            encoded.input = self.payloads().encode_input(start)?;
        }
        // Each round makes one more key agree; more than that could only be a store that changes inputs.
        for _ in 0..starts.len() {
            match self.send_starts(&batch).await {
                Err(conflict) if self.agree_with_first(&conflict, &starts, &mut batch).await? => {}
                answer => return Ok(answer?),
            }
        }
        Ok(self.send_starts(&batch).await?)
    }

    async fn send_starts(&self, batch: &[StartRun]) -> Result<Vec<Started>, StoreError> {
        self.patiently(|| self.transport().start(batch.to_vec())).await
    }

    /// Takes over the first form of an input that another form was sent of. Answers whether there was
    /// such a one.
    async fn agree_with_first(
        &self,
        conflict: &StoreError,
        starts: &[StartRun],
        batch: &mut [StartRun],
    ) -> Result<bool, ClientError> {
        let StoreError::IdempotencyConflict { key, run_id, differs } = conflict else { return Ok(false) };
        if differs != &["input"] {
            return Ok(false);
        }
        // Not every client may look at runs; the conflict is the answer then.
        let Ok(stored) = self.patiently(|| self.transport().get_run(self.namespace(), *run_id)).await else {
            return Ok(false);
        };
        let form = stored.input.clone();
        let first = self.payloads().decode_record(self.namespace(), *run_id, stored)?;
        let mut taken = false;
        for (encoded, start) in batch.iter_mut().zip(starts) {
            let same = start.idempotency_key.as_ref() == Some(key) && start.input == first.input;
            if same && encoded.input != form {
                encoded.input.clone_from(&form);
                taken = true;
            }
        }
        Ok(taken)
    }
}
