//! Fairness between namespaces: each has a line of its own, and none keeps all lanes to itself.
//!
//! In one line a quiet tenant's operation would stand behind all that a noisy one has sent, and behind the batches
//! that are under way, however large. So the lines take turns, an operation at a time; and there are more lanes than
//! one namespace may use, so that who has nothing under way finds one free.

use std::collections::{HashMap, HashSet, VecDeque};

use kagzi_core::Namespace;

/// How many lanes there are beside those that one namespace may use.
pub(super) const FOR_OTHERS: usize = 1;

/// What waits, by namespace.
#[derive(Debug)]
pub(super) struct Lines<W> {
    lines: HashMap<Namespace, Line<W>>,
    /// The namespaces that have a line, in the order of their turns.
    turns: VecDeque<Namespace>,
}

/// What waits of one namespace, the oldest first.
#[derive(Debug)]
struct Line<W> {
    waiting: VecDeque<W>,
    /// What stood before it and could not go. Empty but while a batch is taken.
    passed_by: VecDeque<W>,
}

/// What becomes of one that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It goes.
    Take,
    /// It goes, and nothing after it.
    TakeLast,
    /// It cannot go now.
    PassBy,
}

impl<W> Default for Lines<W> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<W> Lines<W> {
    pub(super) fn push(&mut self, namespace: &Namespace, waiting: W) {
        if let Some(line) = self.lines.get_mut(namespace) {
            line.waiting.push_back(waiting);
            return;
        }
        let line = Line { waiting: VecDeque::from([waiting]), passed_by: VecDeque::new() };
        self.lines.insert(namespace.clone(), line);
        self.turns.push_back(namespace.clone());
    }

    /// Takes from the lines of the namespaces that may go, in turn, until nothing that waits there can go or `look` says
    /// that it is enough.
    pub(super) fn take(
        &mut self,
        may_go: impl Fn(&Namespace) -> bool,
        mut look: impl FnMut(&W) -> Look,
    ) -> Vec<W> {
        let mut taken = Vec::new();
        // Whose turn it remains.
        let mut resting = VecDeque::new();
        let (mut enough, mut passed_by) = (false, false);
        while !enough && let Some(namespace) = self.turns.pop_front() {
            let Some(line) = self.lines.get_mut(&namespace) else { continue };
            if !may_go(&namespace) {
                resting.push_back(namespace);
                continue;
            }
            while let Some(first) = line.waiting.pop_front() {
                match look(&first) {
                    Look::PassBy => {
                        line.passed_by.push_back(first);
                        passed_by = true;
                        continue;
                    }
                    Look::Take => {}
                    Look::TakeLast => enough = true,
                }
                taken.push(first);
                break;
            }
            if !line.waiting.is_empty() {
                self.turns.push_back(namespace);
            } else if !line.passed_by.is_empty() {
                resting.push_back(namespace);
            } else {
                self.lines.remove(&namespace);
            }
        }
        resting.append(&mut self.turns);
        self.turns = resting;
        if passed_by {
            self.lines.values_mut().for_each(Line::put_back);
        }
        taken
    }

    /// All that waits.
    pub(super) fn drain(&mut self) -> Vec<W> {
        self.turns.clear();
        self.lines.drain().flat_map(|(_, line)| line.waiting).collect()
    }
}

impl<W> Line<W> {
    fn put_back(&mut self) {
        self.passed_by.append(&mut self.waiting);
        std::mem::swap(&mut self.passed_by, &mut self.waiting);
    }
}

/// How many lanes work for each namespace.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Namespace, usize>);

impl Shares {
    pub(super) fn of(&self, namespace: &Namespace) -> usize {
        self.0.get(namespace).copied().unwrap_or_default()
    }

    /// A lane begins to work for these namespaces; answers each of them once.
    pub(super) fn join<'a>(&mut self, namespaces: impl Iterator<Item = &'a Namespace>) -> HashSet<Namespace> {
        let (mut joined, mut last) = (HashSet::new(), None);
        for namespace in namespaces {
            // Mostly they are all the same.
            if last != Some(namespace) && joined.insert(namespace.clone()) {
                *self.0.entry(namespace.clone()).or_default() += 1;
            }
            last = Some(namespace);
        }
        joined
    }

    /// It works for them no more.
    pub(super) fn leave(&mut self, namespaces: impl Iterator<Item = Namespace>) {
        for namespace in namespaces {
            match self.0.get_mut(&namespace) {
                Some(lanes) if *lanes > 1 => *lanes -= 1,
                _ => drop(self.0.remove(&namespace)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_go_stays_in_front_of_what_came_after_it() {
        let [a, b] = ["a", "b"].map(|name| Namespace::new(name).unwrap());
        let mut lines = Lines::default();
        for number in 0..6 {
            lines.push(&a, number);
        }
        lines.push(&b, 10);
        let taken = lines.take(
            |_| true,
            |&number| match number {
                0 | 10 => Look::PassBy,
                3 => Look::TakeLast,
                _ => Look::Take,
            },
        );
        assert_eq!(taken, [1, 2, 3]);
        assert_eq!(lines.take(|namespace| namespace == &a, |_| Look::Take), [0, 4, 5]);
        assert_eq!(lines.take(|_| true, |_| Look::PassBy), [0; 0]);
        assert_eq!(lines.drain(), [10]);
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
    }
}
