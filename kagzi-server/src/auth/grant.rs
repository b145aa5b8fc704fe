//! What a principal may do: a role, and the namespaces, queues and workflow types that it is bound to.

use serde::Deserialize;

/// What somebody is for. Which calls each may make stands in `right.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Starts runs and looks after them.
    Client,
    /// Executes them.
    Worker,
    /// Looks at all of them, cancels and requeues.
    Operator,
    /// Everything.
    Admin,
}

/// A name, the beginning of names followed by `*`, or `*` for every name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(crate) enum Pattern {
    Any,
    Prefix(String),
    Exact(String),
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        match text.strip_suffix('*') {
            Some("") => Self::Any,
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(text),
        }
    }
}

impl Pattern {
    fn covers(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Exact(exact) => name == exact,
        }
    }
}

/// Whether one of `patterns` covers `name`, where nothing stands for every name there may be.
fn covered(patterns: &[Pattern], name: Option<&str>) -> bool {
    match name {
        Some(name) => patterns.iter().any(|pattern| pattern.covers(name)),
        None => patterns.contains(&Pattern::Any),
    }
}

/// Where a call reaches: a queue or type that is not told stands for every one there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) queue: Option<&'a str>,
    pub(crate) workflow_type: Option<&'a str>,
}

/// One role within bounds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    pub(crate) namespaces: Vec<Pattern>,
    #[serde(default = "any")]
    pub(crate) queues: Vec<Pattern>,
    #[serde(default = "any")]
    pub(crate) workflow_types: Vec<Pattern>,
}

fn any() -> Vec<Pattern> {
    vec![Pattern::Any]
}

impl Grant {
    /// Everything, everywhere: what everybody has while nobody is asked who they are.
    pub(crate) fn everything() -> Self {
        Self { role: Role::Admin, namespaces: any(), queues: any(), workflow_types: any() }
    }

    pub(crate) fn covers(&self, area: Area<'_>) -> bool {
        covered(&self.namespaces, Some(area.namespace))
            && covered(&self.queues, area.queue)
            && covered(&self.workflow_types, area.workflow_type)
    }

    /// The namespace that it is about, if it is one, named in full.
    pub(crate) fn only_namespace(&self) -> Option<&str> {
        match &self.namespaces[..] {
            [Pattern::Exact(name)] => Some(name),
            _ => None,
        }
    }

    /// Whether it covers anything at all of a namespace, or where none is told, of every one.
    pub(crate) fn touches(&self, namespace: Option<&str>) -> bool {
        covered(&self.namespaces, namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        toml::from_str(text).unwrap()
    }

    fn area<'a>(namespace: &'a str, queue: Option<&'a str>, workflow_type: Option<&'a str>) -> Area<'a> {
        Area { namespace, queue, workflow_type }
    }

    #[test]
    fn patterns_are_names_beginnings_of_names_or_everything() {
        let cases = [
            ("bill", "bill", true),
            ("bill", "billing", false),
            ("bill", "Bill", false),
            ("bill*", "bill", true),
            ("bill*", "billing", true),
            ("bill*", "abill", false),
            ("*", "anything", true),
            ("b*l", "bill", false),
            ("", "bill", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern::from(pattern.to_owned()).covers(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_grant_covers_what_is_within_all_of_its_bounds() {
        let grant = grant("role = 'worker'\nnamespaces = ['a', 'b*']\nqueues = ['q*']\n");
        assert!(grant.covers(area("a", Some("q1"), None)), "any type");
        assert!(grant.covers(area("bb", Some("q"), Some("t"))));
        assert!(!grant.covers(area("c", Some("q"), None)));
        assert!(!grant.covers(area("a", Some("p"), None)));
        assert!(!grant.covers(area("a", None, None)), "every queue is more than some");
        assert!(grant.touches(Some("a")) && !grant.touches(Some("c")) && !grant.touches(None));
        let everything = Grant::everything();
        assert!(everything.covers(area("x", None, None)) && everything.touches(None));
    }

    #[test]
    fn an_empty_list_covers_nothing() {
        let grant = grant("role = 'client'\nnamespaces = ['a']\nqueues = []\n");
        assert!(!grant.covers(area("a", Some("q"), None)) && !grant.covers(area("a", None, None)));
    }
}
