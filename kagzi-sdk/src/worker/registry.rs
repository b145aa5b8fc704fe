//! The workflow functions of a worker, by type.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kagzi_core::{Failure, Payload, WorkflowType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::context::Context;
use crate::error::WorkflowError;

/// A workflow function with its input and output as payloads.
pub(crate) type Function =
    Arc<dyn Fn(Context, Payload) -> BoxFuture<'static, Result<Payload, WorkflowError>> + Send + Sync>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Registry(BTreeMap<WorkflowType, Function>);

impl Registry {
    /// Adds a function. Answers whether the type was free.
    pub(crate) fn add(&mut self, workflow_type: WorkflowType, function: Function) -> bool {
        self.0.insert(workflow_type, function).is_none()
    }

    pub(crate) fn types(&self) -> Vec<WorkflowType> {
        self.0.keys().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The function of a type; for an unknown one, what to fail its run with.
    pub(crate) fn find(&self, workflow_type: &WorkflowType) -> Result<&Function, Failure> {
        self.0.get(workflow_type).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(WorkflowType::as_str).collect();
            Failure::non_retryable(
                "unknown_workflow_type",
                format!(
                    "this worker has no workflow of type {workflow_type:?}, only: {}; register it, or send \
                     its runs to a queue whose workers have it",
                    known.join(", ")
                ),
            )
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Puts the decoding of the input and the encoding of the output, or of the failure, round a workflow function.
pub(crate) fn typed<F, Fut, In, Out>(function: F) -> Function
where
    F: Fn(Context, In) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Out, WorkflowError>> + Send + 'static,
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
{
    let function = Arc::new(function);
    Arc::new(move |context, input| {
        let function = Arc::clone(&function);
        async move {
            let payloads = context.payloads().clone();
            let ended: Result<Payload, WorkflowError> = async {
                let input = payloads.decode_input(context.run(), input)?;
                let input = codec::decode(&input, || "the input of the run".to_owned())?;
                let output = function(context, input).await?;
                let output = codec::encode(&output, || "the output of the run".to_owned())?;
                Ok(payloads.encode_result(output)?)
            }
            .await;
            ended.map_err(|error| WorkflowError::from_failure(payloads.encode_failure(error.into_failure())))
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_refused_with_those_that_are_known() {
        let mut registry = Registry::default();
        for name in ["ship", "charge"] {
            let function = typed(|_, (): ()| async { Ok(()) });
            assert!(registry.add(WorkflowType::new(name).unwrap(), function));
        }
        let failure = registry.find(&WorkflowType::new("refund").unwrap()).err().unwrap();
        assert_eq!(failure.code, "unknown_workflow_type");
        assert!(!failure.kind.may_retry());
        assert!(failure.message.contains("\"refund\", only: charge, ship;"), "{}", failure.message);
    }
}
