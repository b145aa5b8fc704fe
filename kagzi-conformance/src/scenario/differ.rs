//! Where two values differ: field by field, so that a failure of one field is told in one line.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};

/// How many differences are told; more of them say no more.
const TOLD: usize = 40;

/// A field, and what stands there on either side; nothing where a side has no such field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) field: String,
    pub(crate) expected: Option<String>,
    pub(crate) seen: Option<String>,
}

impl Difference {
    pub(crate) fn new(field: impl Into<String>, expected: Option<String>, seen: Option<String>) -> Self {
        Self { field: field.into(), expected, seen }
    }

    /// The same, within something larger.
    pub(crate) fn within(self, outer: &str) -> Self {
        let field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}, {}", self.field) };
        Self { field, ..self }
    }
}

fn or_none(side: Option<&String>) -> &str {
    side.map_or("none", String::as_str)
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expected, seen) = (or_none(self.expected.as_ref()), or_none(self.seen.as_ref()));
        write!(f, "{}: expected {expected}, seen {seen}", self.field)
    }
}

/// The differences one a line, both sides in it.
pub(crate) fn lines(differences: &[Difference]) -> String {
    told(differences, Difference::to_string)
}

/// The differences as two texts, one for each side.
pub(crate) fn sides(differences: &[Difference]) -> (String, String) {
    let side = |of: fn(&Difference) -> Option<&String>| {
        told(differences, |one| format!("{}: {}", one.field, or_none(of(one))))
    };
    (side(|one| one.expected.as_ref()), side(|one| one.seen.as_ref()))
}

fn told(differences: &[Difference], line: impl Fn(&Difference) -> String) -> String {
    let mut lines: Vec<String> = differences.iter().take(TOLD).map(line).collect();
    if differences.len() > TOLD {
        lines.push(format!("... {} differences in all", differences.len()));
    }
    lines.join("\n")
}

/// The fields in which two values differ, as `Debug` shows them: none if it shows no difference.
pub(crate) fn fields<T: Debug>(expected: &T, seen: &T) -> Vec<Difference> {
    let (expected, seen) = (flat(&format!("{expected:#?}")), flat(&format!("{seen:#?}")));
    let there: BTreeMap<&str, &str> = seen.iter().map(|(field, value)| (&**field, &**value)).collect();
    let here: BTreeMap<&str, &str> = expected.iter().map(|(field, value)| (&**field, &**value)).collect();
    let changed = expected.iter().filter(|(field, value)| there.get(&**field) != Some(&&**value));
    let changed = changed.map(|(field, value)| {
        let seen = there.get(&**field).map(|seen| (*seen).to_owned());
        Difference::new(field, Some(value.clone()), seen)
    });
    let new = seen.iter().filter(|(field, _)| !here.contains_key(&**field));
    let new = new.map(|(field, value)| Difference::new(field, None, Some(value.clone())));
    changed.chain(new).collect()
}

/// The differences between two sets of things that have names, `brief` telling of one that only one
/// side has.
pub(crate) fn by_name<K: Ord, T: Debug>(
    expected: &BTreeMap<K, T>,
    seen: &BTreeMap<K, T>,
    name: impl Fn(&K) -> String,
    brief: impl Fn(&T) -> String,
    differences: impl Fn(&T, &T) -> Vec<Difference>,
) -> Vec<Difference> {
    let only = |key, here, there| Difference::new(name(key), here, there);
    let mut all = Vec::new();
    for (key, expected) in expected {
        match seen.get(key) {
            Some(seen) => {
                all.extend(differences(expected, seen).into_iter().map(|one| one.within(&name(key))));
            }
            None => all.push(only(key, Some(brief(expected)), None)),
        }
    }
    let new = seen.iter().filter(|(key, _)| !expected.contains_key(key));
    all.extend(new.map(|(key, seen)| only(key, None, Some(brief(seen)))));
    all
}

/// What has been opened and not closed yet, in a text of `{:#?}`.
struct Open {
    path: String,
    bracket: char,
    children: usize,
}

impl Open {
    /// The path of the next thing within, named or not.
    fn next(&mut self, name: Option<&str>) -> String {
        let place = self.children;
        self.children += 1;
        let step = match (name, self.bracket, place) {
            (Some(name), ..) => name.to_owned(),
            (None, '[', place) => place.to_string(),
            // What a tuple of one holds goes by the name of the tuple: `Some`, a newtype.
            (None, _, 0) => return self.path.clone(),
            (None, _, place) => place.to_string(),
        };
        if self.path.is_empty() { step } else { format!("{}.{step}", self.path) }
    }
}

/// Every field of a text of `{:#?}` by its path, with its value; structures with their names.
fn flat(text: &str) -> Vec<(String, String)> {
    let mut outer = vec![Open { path: String::new(), bracket: '(', children: 0 }];
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if matches!(line.trim_end_matches(','), "}" | ")" | "]") {
            outer.pop();
            continue;
        }
        let (name, value) = named(line.trim_end_matches(','));
        let Some(parent) = outer.last_mut() else { break };
        let path = parent.next(name);
        let opened =
            if line.ends_with(',') { None } else { line.chars().last().filter(|c| "{([".contains(*c)) };
        let value = if opened.is_some() { value[..value.len() - 1].trim_end() } else { value };
        match fields.last_mut() {
            // What the tuple just opened holds: shown as it stands in a line, `Some(1)`.
            Some((whole, head)) if *whole == path => *head = format!("{head}({value})"),
            _ if value.is_empty() => {}
            _ => fields.push((path.clone(), value.to_owned())),
        }
        if let Some(bracket) = opened {
            outer.push(Open { path, bracket, children: 0 });
        }
    }
    fields
}

/// The name of a field, or the key of a map, and what follows it.
fn named(line: &str) -> (Option<&str>, &str) {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let is_key = |text: &str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    match line.split_once(": ") {
        Some((name, value)) if is_name(name) || is_key(name) => (Some(name), value),
        _ => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[allow(dead_code, reason = "read through Debug")]
    enum Shape {
        Dot,
        Box { side: u32 },
    }

    #[derive(Debug)]
    #[allow(dead_code, reason = "read through Debug")]
    struct Thing {
        name: &'static str,
        shape: Option<Shape>,
        numbers: Vec<(u32, u32)>,
        labels: BTreeMap<&'static str, &'static str>,
    }

    fn thing() -> Thing {
        let labels = BTreeMap::from([("a", "x: {"), ("b", "y")]);
        Thing { name: "n", shape: Some(Shape::Box { side: 1 }), numbers: vec![(1, 2), (3, 4)], labels }
    }

    fn told(seen: &Thing) -> Vec<String> {
        fields(&thing(), seen).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_differs_in_nothing() {
        assert!(told(&thing()).is_empty());
        assert_eq!(fields(&1, &2)[0].to_string(), ": expected 1, seen 2");
    }

    #[test]
    fn each_field_that_differs_is_told_by_its_path() {
        assert_eq!(told(&Thing { name: "m", ..thing() }), ["name: expected \"n\", seen \"m\""]);
        let longer = Thing { shape: Some(Shape::Box { side: 2 }), ..thing() };
        assert_eq!(told(&longer), ["shape.side: expected 1, seen 2"]);
        let pair = Thing { numbers: vec![(1, 2), (3, 5)], ..thing() };
        assert_eq!(told(&pair), ["numbers.1.1: expected 4, seen 5"]);
        let labels = BTreeMap::from([("a", "x: {"), ("c", "y")]);
        let labelled = Thing { labels, ..thing() };
        assert_eq!(
            told(&labelled),
            ["labels.\"b\": expected \"y\", seen none", "labels.\"c\": expected none, seen \"y\""]
        );
    }

    #[test]
    fn what_is_of_another_kind_or_missing_is_told() {
        let dot = told(&Thing { shape: Some(Shape::Dot), ..thing() });
        assert_eq!(dot[0], "shape: expected Some(Box), seen Some(Dot)", "{dot:?}");
        let none = told(&Thing { shape: None, ..thing() });
        assert!(none.contains(&"shape.side: expected 1, seen none".to_owned()), "{none:?}");
        let shorter = told(&Thing { numbers: vec![(1, 2)], ..thing() });
        assert_eq!(shorter, ["numbers.1: expected 3, seen none", "numbers.1.1: expected 4, seen none"]);
    }

    #[test]
    fn things_are_matched_by_their_names() {
        let (here, there) = (BTreeMap::from([(1, 10), (2, 20)]), BTreeMap::from([(2, 21), (3, 30)]));
        let all = by_name(&here, &there, |key| format!("no {key}"), ToString::to_string, fields);
        assert_eq!(
            lines(&all),
            "no 1: expected 10, seen none\nno 2: expected 20, seen 21\nno 3: expected none, seen 30"
        );
        assert_eq!(sides(&all[1..2]), ("no 2: 20".to_owned(), "no 2: 21".to_owned()));
    }

    #[test]
    fn no_more_are_told_than_anybody_reads() {
        let (here, there) = (vec![0; 100], vec![1; 100]);
        assert!(lines(&fields(&here, &there)).ends_with("... 100 differences in all"));
    }
}
