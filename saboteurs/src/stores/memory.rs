//! The reference store, as it is or with a bug round it.

use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};

use crate::wrapped::{Bug, broken};

/// The bug of a handle.
#[derive(Clone, Debug)]
enum Each {
    /// All handles of all stores have it together.
    Shared(Arc<dyn Bug>),
    /// Every handle has its own, and what it remembers.
    Own(fn() -> Arc<dyn Bug>),
}

/// What to open.
#[derive(Debug)]
pub struct Memory {
    bug: Option<Each>,
    rules: fn(Rules) -> Rules,
}

impl Memory {
    /// The store as it is.
    pub fn unbroken() -> Self {
        Self { bug: None, rules: |rules| rules }
    }

    /// The store with a bug round it.
    pub fn wrapped(bug: impl Bug) -> Self {
        Self { bug: Some(Each::Shared(Arc::new(bug))), ..Self::unbroken() }
    }

    /// The store with a bug of its own round each handle.
    pub fn each(bug: fn() -> Arc<dyn Bug>) -> Self {
        Self { bug: Some(Each::Own(bug)), ..Self::unbroken() }
    }

    /// The store under other rules than it was asked to keep.
    pub fn under(rules: fn(Rules) -> Rules) -> Self {
        Self { rules, ..Self::unbroken() }
    }
}

#[derive(Debug)]
struct Opened {
    store: MemoryStore,
    bug: Option<Each>,
}

#[async_trait::async_trait]
impl Fixture for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::SecondHandle]
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        let store = MemoryStore::new(clock, (self.rules)(rules));
        Ok(Box::new(Opened { store, bug: self.bug.clone() }))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        let store: SharedStore = Arc::new(self.store.clone());
        match &self.bug {
            Some(Each::Shared(bug)) => broken(store, Arc::clone(bug)),
            Some(Each::Own(bug)) => broken(store, bug()),
            None => store,
        }
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        Ok(self.store())
    }
}
