//! What was of use lately, within bounds.

use std::collections::HashMap;
use std::hash::Hash;

/// A map that forgets what has not been asked for lately.
///
/// There are two generations: when the younger one is full, the older one is forgotten. What is found in
/// the older one moves to the younger one, so what is in use stays.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Holds at most twice `generation` entries.
    pub(crate) fn new(generation: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation }
    }

    pub(crate) fn find(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_bounds_and_what_is_in_use_stays() {
        let mut recent = Recent::new(100);
        for key in 0..1000 {
            recent.insert(key, key);
            assert_eq!(recent.find(&0), Some(0), "it is in use");
            assert!(recent.young.len() + recent.old.len() <= 200);
        }
        assert_eq!((recent.find(&1), recent.find(&999)), (None, Some(999)));
        recent.clear();
        assert_eq!(recent.find(&999), None);
    }
}
