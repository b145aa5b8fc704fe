//! The log of a case: calls and answers in order, bounded, with short names for runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many calls are kept; the ones that led to a failure are the last.
const KEPT: usize = 80;

/// The log of one case, shared by all its handles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Entries>>);

#[derive(Debug)]
struct Entries {
    /// How many are kept.
    most: usize,
    /// The number of the first entry that is kept.
    first: usize,
    kept: VecDeque<(String, Option<String>)>,
    /// What the case has to say even if it passes.
    remark: Option<String>,
}

impl Default for Entries {
    fn default() -> Self {
        Self { most: KEPT, first: 0, kept: VecDeque::new(), remark: None }
    }
}

impl Log {
    /// A log of calls that were chosen: all of them are kept.
    pub(crate) fn of_any_length() -> Self {
        Self(Arc::new(Mutex::new(Entries { most: usize::MAX, ..Entries::default() })))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Entries are pushed whole, so a panic elsewhere leaves none half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call; the number is for [`answer`](Self::answer).
    pub(crate) fn call(&self, call: String) -> usize {
        let mut entries = self.entries();
        if entries.kept.len() >= entries.most {
            entries.kept.pop_front();
            entries.first += 1;
        }
        entries.kept.push_back((call, None));
        entries.first + entries.kept.len() - 1
    }

    /// How many calls and notes there were so far.
    pub(crate) fn count(&self) -> usize {
        let entries = self.entries();
        entries.first + entries.kept.len()
    }

    /// Notes the answer of a call.
    pub(crate) fn answer(&self, entry: usize, answer: String) {
        let mut entries = self.entries();
        let place = entry.checked_sub(entries.first);
        if let Some(kept) = place.and_then(|place| entries.kept.get_mut(place)) {
            kept.1 = Some(answer);
        }
    }

    /// Notes something that is no call: the clock was turned, a handle opened.
    pub(crate) fn note(&self, note: String) {
        let entry = self.call(note);
        self.answer(entry, String::new());
    }

    /// Says something about the case that is of interest even if it passes: how much it played.
    pub(crate) fn remark(&self, remark: String) {
        self.entries().remark = Some(remark);
    }

    /// What the case said about itself.
    pub(crate) fn remarked(&self) -> Option<String> {
        self.entries().remark.clone()
    }

    /// Forgets the calls that were noted here and keeps those of `other` instead.
    pub(crate) fn replace_by(&self, other: &Self) {
        let (most, first, kept) = {
            let theirs = other.entries();
            (theirs.most, theirs.first, theirs.kept.clone())
        };
        let mut mine = self.entries();
        (mine.most, mine.first, mine.kept) = (most, first, kept);
    }

    /// The log as text, with runs called by their order of appearance.
    pub(crate) fn render(&self) -> Calls {
        let entries = self.entries();
        let forgotten = (entries.first > 0).then(|| format!("  ... {} earlier calls", entries.first));
        let kept = entries.kept.iter().enumerate().map(|(offset, (call, answer))| {
            let number = entries.first + offset + 1;
            match answer.as_deref() {
                None => format!("{number:>5}  {call} -> (no answer)"),
                Some("") => format!("{number:>5}  {call}"),
                Some(answer) => format!("{number:>5}  {call} -> {answer}"),
            }
        });
        let text = forgotten.into_iter().chain(kept).collect::<Vec<_>>().join("\n");
        Calls::new(&text)
    }
}

/// A log rendered for people.
#[derive(Debug)]
pub(crate) struct Calls {
    text: String,
    names: Vec<(String, String)>,
}

impl Calls {
    fn new(text: &str) -> Self {
        let mut names: Vec<(String, String)> = Vec::new();
        for id in uuids(text) {
            if !names.iter().any(|(known, _)| known == id) {
                names.push((id.to_owned(), format!("run#{}", names.len() + 1)));
            }
        }
        let mut calls = Self { text: String::new(), names };
        calls.text = calls.with_names(text);
        calls
    }

    /// The calls, one a line.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// `text` with the ids of runs replaced by their short names.
    pub(crate) fn with_names(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id, name))
    }
}

/// The texts of the form of a UUID; descriptions of calls name no others than run ids that way.
fn uuids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == '-'))
        .filter(|word| word.len() == 36 && word.matches('-').count() == 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end_and_late_answers_find_their_call() {
        let log = Log::default();
        let early = log.call("early".to_owned());
        let numbers: Vec<usize> = (0..KEPT).map(|n| log.call(format!("call {n}"))).collect();
        log.answer(early, "forgotten".to_owned());
        log.answer(numbers[0], "late".to_owned());
        let text = log.render().text().to_owned();
        assert!(text.contains("1 earlier calls") && text.contains("call 0 -> late"), "{text}");
        assert!(!text.contains("forgotten") && text.contains("call 79 -> (no answer)"), "{text}");
    }

    #[test]
    fn calls_that_were_chosen_are_all_kept() {
        let (log, chosen) = (Log::default(), Log::of_any_length());
        (0..2 * KEPT).for_each(|number| chosen.note(format!("call {number}.")));
        log.replace_by(&chosen);
        let text = log.render().text().to_owned();
        assert!(
            text.contains("call 0.") && text.contains("call 159.") && !text.contains("earlier"),
            "{text}"
        );
    }

    #[test]
    fn runs_are_called_by_their_order_of_appearance() {
        let log = Log::default();
        let (a, b) = ("019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11", "019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c12");
        log.note(format!("start({b})"));
        log.note(format!("start({a}) after {b}"));
        let calls = log.render();
        assert!(calls.text().contains("start(run#1)"), "{}", calls.text());
        assert!(calls.text().contains("start(run#2) after run#1"), "{}", calls.text());
        assert_eq!(calls.with_names(a), "run#2");
    }
}
