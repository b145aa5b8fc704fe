//! What the author of a backend supplies: how to open a fresh store, and what the backend can do.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{Clock, Rules, SharedStore};

/// Why a fixture could not do what it was asked. It is shown in the report of the case.
pub type FixtureError = Box<dyn Error + Send + Sync>;

/// Something that not every backend can do. A case that needs it is reported as not applicable to a
/// backend that cannot, never as passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// A second handle on the same data, as a second server has.
    SecondHandle,
    /// Opening the same data again after every handle on it is gone.
    Reopen,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SecondHandle => "a second handle",
            Self::Reopen => "reopening",
        })
    }
}

/// How the suite gets stores of one backend.
///
/// All cases share one multi-threaded tokio runtime and run at the same time, so every call of
/// [`open`](Fixture::open) must give data of its own: a new directory, database or schema. Making a
/// fixture should cost nothing, since test runners make one only to list the cases; do the work in
/// `open`. The fixture is dropped when the last case has ended.
///
/// ```no_run
/// use std::process::ExitCode;
/// use std::sync::Arc;
///
/// use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
/// use kagzi_core::{Clock, Rules, SharedStore};
///
/// #[derive(Debug)]
/// struct MyFixture;
/// #[derive(Debug)]
/// struct MyInstance(SharedStore);
///
/// #[async_trait::async_trait]
/// impl Fixture for MyFixture {
///     fn name(&self) -> String {
///         "my-store".to_owned()
///     }
///     fn capabilities(&self) -> Vec<Capability> {
///         Vec::new()
///     }
///     async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
///         # let my_store = |clock, rules| -> SharedStore { Arc::new(kagzi_core::memory::MemoryStore::new(clock, rules)) };
///         Ok(Box::new(MyInstance(my_store(clock, rules))))
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl Instance for MyInstance {
///     fn store(&self) -> SharedStore {
///         self.0.clone()
///     }
/// }
///
/// fn main() -> ExitCode {
///     kagzi_conformance::test_main(MyFixture)
/// }
/// ```
#[async_trait]
pub trait Fixture: fmt::Debug + Send + Sync + 'static {
    /// What the reports call the backend, with its variant if it has any: `postgres, 7 partitions`.
    fn name(&self) -> String;

    /// Why no case applies here and now, such as a server that is not there: then each is reported as not applicable,
    /// with this reason, and never as passed. Nothing by default.
    fn not_applicable(&self) -> Option<String> {
        None
    }

    /// What the backend can do.
    fn capabilities(&self) -> Vec<Capability>;

    /// Opens a fresh, empty store that tells time by `clock` and applies `rules`.
    ///
    /// # Errors
    ///
    /// Whatever stands in the way; the case is reported as failed.
    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError>;
}

/// One fresh store, and what is needed to open it again. Dropping it must remove its data as far as
/// that is possible without waiting; [`discard`](Instance::discard) is called first where it is not.
#[async_trait]
pub trait Instance: fmt::Debug + Send + Sync + 'static {
    /// The handle that was opened last by [`Fixture::open`] or [`reopen`](Instance::reopen).
    fn store(&self) -> SharedStore;

    /// One more handle on the same data, with the same clock and rules, sharing nothing with the first
    /// but the data: what a second server would open. Needs [`Capability::SecondHandle`].
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        Err("this fixture has no second handle".into())
    }

    /// Lets go of the handle of this instance **without closing it** and opens the same data again,
    /// with the same clock and rules; [`store`](Instance::store) then gives the new handle. The suite
    /// has closed or dropped its own handles before. Needs [`Capability::Reopen`].
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn reopen(&mut self) -> Result<(), FixtureError> {
        Err("this fixture cannot reopen".into())
    }

    /// Closes what is open and removes the data.
    ///
    /// # Errors
    ///
    /// Whatever stands in the way; a case that passed is reported as failed then.
    async fn discard(self: Box<Self>) -> Result<(), FixtureError> {
        Ok(())
    }
}
