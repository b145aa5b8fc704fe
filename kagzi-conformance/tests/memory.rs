//! The suite over the reference store: the rules themselves, before any database.

use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};

#[derive(Debug)]
struct Memory;

#[derive(Debug)]
struct Opened(MemoryStore);

#[async_trait::async_trait]
impl Fixture for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        // Its data lives as long as the process: there is nothing to reopen.
        vec![Capability::SecondHandle]
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        Ok(Box::new(Opened(MemoryStore::new(clock, rules))))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        Arc::new(self.0.clone())
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        Ok(Arc::new(self.0.clone()))
    }
}

fn main() -> ExitCode {
    kagzi_conformance::test_main(Memory)
}
