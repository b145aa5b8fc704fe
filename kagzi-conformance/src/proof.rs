//! Which rules a case finds kept, in their own words: two cases that find the same are one too many.
//!
//! Noted only when asked for, by [`rules_kept`](crate::rules_kept); otherwise nobody listens.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

tokio::task_local! {
    static WITNESS: Witness;
}

/// Listens to one case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<Mutex<BTreeSet<String>>>);

impl Witness {
    /// Plays a case and listens to its task.
    pub(crate) async fn hear<F: Future>(&self, case: F) -> F::Output {
        WITNESS.scope(self.clone(), case).await
    }

    /// The rules that it found kept so far.
    pub(crate) fn rules(&self) -> BTreeSet<String> {
        // A set of whole texts cannot be left half changed by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Notes that a rule was kept.
pub(crate) fn kept(rule: &str) {
    let note = |witness: &Witness| {
        witness.0.lock().unwrap_or_else(PoisonError::into_inner).insert(rule.to_owned());
    };
    WITNESS.try_with(note).unwrap_or_default();
}
