//! Cases: one named rule each, in a table.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::fixture::Capability;
use crate::scenario::Scenario;
use crate::violation::Verdict;

/// What running a case gives.
pub(crate) type CaseFuture = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// One rule of the contract, and the scenario that proves it.
#[derive(Clone)]
pub struct Case {
    /// The topic.
    pub group: &'static str,
    /// The rule, as a sentence.
    pub name: Cow<'static, str>,
    /// The invariants that it proves, by their numbers in [`kagzi_core::Store`].
    pub invariants: &'static [u8],
    /// What a backend must be able to do for the case to apply.
    pub needs: &'static [Capability],
    body: Arc<dyn Fn(Scenario) -> CaseFuture + Send + Sync>,
}

impl Case {
    pub(crate) fn new(
        group: &'static str,
        name: impl Into<Cow<'static, str>>,
        invariants: &'static [u8],
        needs: &'static [Capability],
        body: impl Fn(Scenario) -> CaseFuture + Send + Sync + 'static,
    ) -> Self {
        Self { group, name: name.into(), invariants, needs, body: Arc::new(body) }
    }

    /// `group::name`, as tests are called and filtered.
    pub fn full_name(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }

    pub(crate) fn body(&self, scenario: Scenario) -> CaseFuture {
        (self.body)(scenario)
    }

    /// What a backend with these capabilities lacks for the case to apply, if anything.
    pub fn not_applicable(&self, capabilities: &[Capability]) -> Option<String> {
        let missing: Vec<String> =
            self.needs.iter().filter(|need| !capabilities.contains(need)).map(ToString::to_string).collect();
        (!missing.is_empty()).then(|| format!("needs {}", missing.join(" and ")))
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.full_name())
            .field("invariants", &self.invariants)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Makes the table of a group: `[invariants] name_of_the_case_function (needs Capability)`, one a line.
macro_rules! cases {
    ($group:literal; $([$($invariant:literal),*] $name:ident $(needs $need:ident)?;)*) => {
        pub(super) fn cases() -> Vec<$crate::case::Case> {
            vec![$(
                $crate::case::Case::new(
                    $group,
                    stringify!($name),
                    &[$($invariant),*],
                    &[$($crate::fixture::Capability::$need)?],
                    |scenario| Box::pin($name(scenario)),
                ),
            )*]
        }
    };
}
pub(crate) use cases;
