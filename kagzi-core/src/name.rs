//! The names that people give to things, validated once, when they are made.
//!
//! One rule for all of them, the same in every backend: a name is UTF-8 of 1 byte up to the type's
//! limit, without control characters (so without NUL and line breaks) and without white space at
//! either end. Anything else (quotes, slashes, emoji, right-to-left scripts) is kept as it came.
//! A name is accepted whole or refused whole; nothing is trimmed, folded or truncated.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

fn check(field: &'static str, max_bytes: usize, text: &str) -> Result<(), StoreError> {
    let got = if text.is_empty() {
        "an empty text".to_owned()
    } else if text.len() > max_bytes {
        format!("{} bytes", text.len())
    } else if let Some(at) = text.find(char::is_control) {
        format!("a control character at byte {at}")
    } else if text.trim().len() != text.len() {
        "white space at the beginning or the end".to_owned()
    } else {
        return Ok(());
    };
    Err(StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: format!(
            "1 to {max_bytes} bytes of UTF-8, no control characters, no white space at either end"
        ),
        got,
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $field:literal, $max:literal) => {
        $(#[$doc])*
        ///
        /// Cloning is cheap: the text is shared.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest text accepted, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// Checks `text` against the rule of this module and keeps it.
            ///
            /// # Errors
            ///
            /// [`StoreError::InvalidArgument`] naming the field and what was wrong with the text.
            pub fn new(text: impl AsRef<str>) -> Result<Self, StoreError> {
                let text = text.as_ref();
                check($field, Self::MAX_BYTES, text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = StoreError;
            fn try_from(text: String) -> Result<Self, StoreError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = StoreError;
            fn from_str(text: &str) -> Result<Self, StoreError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name!(
    /// A tenant. No call with one namespace sees or touches another's rows (invariant 11).
    Namespace, "namespace", 64
);
name!(
    /// Where runs of a namespace wait for workers.
    QueueName, "queue", 128
);
name!(
    /// Which program a run executes: the name under which workers register an async function.
    WorkflowType, "workflow_type", 128
);
name!(
    /// A unit of work inside a run. A step repeated in a loop has an id per occurrence.
    StepId, "step_id", 256
);
name!(
    /// Who holds a lease. Only the fencing token decides; the id is for people and for defence in depth.
    WorkerId, "worker_id", 128
);
name!(
    /// The caller's own name for a start: the same key names the same run for ever (invariant 7).
    IdempotencyKey, "idempotency_key", 256
);
name!(
    /// What the bytes of a payload are, such as `application/json`. kagzi never looks inside.
    ContentType, "content_type", 128
);

impl ContentType {
    /// `application/json`, what the SDK writes.
    pub fn json() -> Self {
        Self(Arc::from("application/json"))
    }

    /// `application/octet-stream`, bytes of no known kind.
    pub fn bytes() -> Self {
        Self(Arc::from("application/octet-stream"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_to_the_byte() {
        for text in ["a", "a'b\"c;--", "zahlung/ü", "عربي", "🦀", &"x".repeat(64)] {
            assert_eq!(Namespace::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_outside_the_rule_are_refused_with_the_field() {
        for text in ["", " a", "a ", "a\0b", "a\nb", &"x".repeat(65)] {
            let error = Namespace::new(text).unwrap_err();
            assert!(
                matches!(&error, StoreError::InvalidArgument { field, .. } if field == "namespace"),
                "{text:?}: {error}"
            );
        }
    }
}
