//! The ids of steps: a name for its first use in a run, and an occurrence for each further one.

use std::collections::HashMap;

use kagzi_core::{StepId, StoreError};

/// Counts how often each name was used in one execution of a run.
///
/// The first use of a name has the name itself as its id, the second `name#2`, the third `name#3`, so
/// that loops work and never meet a stale memo. A name that itself ends in `#` and digits carries its
/// occurrence from the first use on (`a#2` becomes `a#2#1`), so that no two names share an id: an id
/// that ends in `#` and digits is always a name and its occurrence, any other is a name used first.
/// Tasks and sleeps count together.
#[derive(Debug, Default)]
pub(crate) struct Occurrences(HashMap<String, u32>);

impl Occurrences {
    /// The id of the next use of `name`.
    pub(crate) fn next(&mut self, name: &str) -> Result<StepId, StoreError> {
        let count = match self.0.get_mut(name) {
            Some(count) => count,
            None => self.0.entry(name.to_owned()).or_default(),
        };
        *count += 1;
        if *count == 1 && !ends_in_occurrence(name) {
            StepId::new(name)
        } else {
            StepId::new(format!("{name}#{count}"))
        }
    }
}

fn ends_in_occurrence(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ids(names: &[&str]) -> Vec<String> {
        let mut occurrences = Occurrences::default();
        names.iter().map(|name| occurrences.next(name).unwrap().as_str().to_owned()).collect()
    }

    #[test]
    fn a_name_used_again_gets_its_own_id() {
        assert_eq!(ids(&["a", "b", "a", "a", "b"]), ["a", "b", "a#2", "a#3", "b#2"]);
    }

    #[test]
    fn a_name_that_looks_like_an_occurrence_meets_no_other() {
        assert_eq!(ids(&["a", "a", "a#2", "a#2"]), ["a", "a#2", "a#2#1", "a#2#2"]);
        let names = ["a", "a#", "#", "#1", "a#1", "a#2", "a#02", "a#2#1", "a#2#2", "a##2", "a#x", "a#2x"];
        let thrice: Vec<&str> = names.iter().flat_map(|name| [*name; 3]).collect();
        let all = ids(&thrice);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{all:?}");
    }

    #[test]
    fn a_name_outside_the_rule_is_refused() {
        let mut occurrences = Occurrences::default();
        for name in ["", " a", "a\n", &"x".repeat(257)] {
            assert!(occurrences.next(name).is_err(), "{name:?}");
        }
    }
}
