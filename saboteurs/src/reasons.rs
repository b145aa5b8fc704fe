//! Why each case is there: saboteurs that it alone catches, or a rule that it alone finds kept.
//!
//! `saboteurs/reasons.tsv` says which; a test checks it against the cases, the saboteurs, and what every
//! case finds kept over stores that nobody broke, and each judgement checks the catches. So a case that
//! has nothing of its own to say does not stay. A rule is a sentence, though: that the case would catch what no
//! other catches is shown by the second column alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kagzi_conformance::{Filter, rules_kept};

use crate::list::{self, Kind, Saboteur};
use crate::stores::postgres::Database;

const HEAD: &str = "\
# Why each case is there. Catches: `cargo xtask saboteurs --alone`; rules: `cargo xtask saboteurs --reasons --write`.
# case\tthe rule that it alone finds kept\tsaboteurs that it alone of the named cases catches, each `store: name`
";

/// Stands between two saboteurs of one case.
const AND: &str = "; ";

/// What one case is there for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// A rule in words that no other case finds kept.
    pub rule: Option<String>,
    /// Saboteurs that no other named case catches, as [`Saboteur::key`] calls them.
    pub alone: BTreeSet<String>,
}

/// By the full name of each case, its reason.
pub type Reasons = BTreeMap<String, Reason>;

/// By the full name of each case, the rules that it finds kept.
pub type Kept = BTreeMap<String, BTreeSet<String>>;

/// Whether the table is to be written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// It is checked.
    Checked,
    /// Its rules are chosen anew, as far as they no longer hold.
    Written,
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/reasons.tsv"))
}

/// Reads the table.
///
/// # Errors
///
/// If it is not there, a line has not three columns, or a case stands in it twice.
pub fn read() -> Result<Reasons, String> {
    let text = std::fs::read_to_string(path()).map_err(|error| format!("{}: {error}", path().display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Reasons, String> {
    let mut reasons = Reasons::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [case, rule, alone] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(format!("reasons.tsv: expected a case, a rule and saboteurs, got {line:?}"));
        };
        let rule = (!rule.is_empty()).then(|| rule.to_owned());
        let alone = alone.split(AND).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if reasons.insert(case.to_owned(), Reason { rule, alone }).is_some() {
            return Err(format!("reasons.tsv: {case} stands there twice"));
        }
    }
    Ok(reasons)
}

/// Writes the table.
///
/// # Errors
///
/// Whatever stands in the way.
pub fn write(reasons: &Reasons) -> Result<(), String> {
    let lines = reasons.iter().map(|(case, reason)| {
        let alone: Vec<&str> = reason.alone.iter().map(String::as_str).collect();
        format!("{case}\t{}\t{}\n", reason.rule.as_deref().unwrap_or_default(), alone.join(AND))
    });
    let text = format!("{HEAD}{}", lines.collect::<String>());
    std::fs::write(path(), text).map_err(|error| format!("{}: {error}", path().display()))
}

/// Plays every case over a store that nobody broke, and gives the rules that each found kept.
///
/// # Errors
///
/// The names of cases that failed.
pub async fn kept() -> Result<Kept, String> {
    let database = Database::default();
    let (mut kept, mut filter) = (Kept::new(), Filter::default());
    // The reference is the fastest, and SQLite plays what the reference cannot: opening its data again.
    for kind in [Kind::Memory, Kind::Sqlite] {
        let played = rules_kept(kind.unbroken(&database), &filter).await;
        filter.containing.clear();
        for (case, rules) in played {
            match rules {
                Some(rules) => drop(kept.insert(case.full_name(), rules)),
                None if !kept.contains_key(&case.full_name()) => filter.containing.push(case.full_name()),
                None => {}
            }
        }
        if filter.containing.is_empty() {
            return Ok(kept);
        }
    }
    Err(format!("these cases fail, so nothing is known of them: {}", filter.containing.join(", ")))
}

/// The rules of each case that no other finds kept.
fn own_rules(kept: &Kept) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut keepers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (case, rules) in kept {
        for rule in rules {
            keepers.entry(rule).or_default().insert(case);
        }
    }
    let mut own: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (rule, cases) in keepers {
        if let Some(case) = cases.first().filter(|_| cases.len() == 1) {
            own.entry(case).or_default().insert(rule);
        }
    }
    own
}

/// The reasons anew: every case has its row, a rule that no longer holds is replaced by one that does, and
/// what a case caught alone stays.
pub fn renewed(before: &Reasons, kept: &Kept) -> Reasons {
    let own = own_rules(kept);
    let nothing = BTreeSet::new();
    let reason = |case: &String| {
        let own = own.get(case.as_str()).unwrap_or(&nothing);
        let Reason { rule, alone } = before.get(case).cloned().unwrap_or_default();
        let rule = rule.filter(|rule| own.contains(rule.as_str()));
        // The longest says most.
        let longest = own.iter().max_by_key(|rule| rule.len()).map(ToString::to_string);
        (case.clone(), Reason { rule: rule.or(longest), alone })
    };
    kept.keys().map(reason).collect()
}

/// What is wrong with the table.
pub fn faults(reasons: &Reasons, kept: &Kept, saboteurs: &[Saboteur]) -> Vec<String> {
    let own = own_rules(kept);
    let mut faults = Vec::new();
    for case in kept.keys().filter(|case| !reasons.contains_key(*case)) {
        faults.push(format!("{case} has no row, so there is no reason for it"));
    }
    let mut claimed: BTreeMap<&str, &str> = BTreeMap::new();
    for (case, reason) in reasons {
        let Some(rules) = kept.get(case) else {
            faults.push(format!("there is no case {case}"));
            continue;
        };
        if reason.rule.is_none() && reason.alone.is_empty() {
            faults.push(format!(
                "{case} catches no saboteur alone and finds no rule kept that no other case does: it is one \
                 too many, or what it is about wants to be said in its rule"
            ));
        }
        if let Some(rule) = &reason.rule
            && !own.get(case.as_str()).is_some_and(|own| own.contains(rule.as_str()))
        {
            let others = kept.iter().filter(|(other, rules)| *other != case && rules.contains(rule));
            let others: Vec<&str> = others.map(|(other, _)| other.as_str()).collect();
            faults.push(if rules.contains(rule) {
                format!("{case}: not its own rule, {} keep it too: {rule}", others.join(", "))
            } else {
                format!("{case} does not find this rule kept: {rule}")
            });
        }
        for key in &reason.alone {
            match saboteurs.iter().find(|one| one.key() == *key) {
                None => faults.push(format!("{case}: there is no saboteur {key}")),
                Some(one) if !one.is_meant_for(case) => {
                    faults.push(format!("{case} is not meant for the saboteur {key}"));
                }
                Some(_) => {}
            }
            if let Some(other) = claimed.insert(key, case) {
                faults.push(format!("{case} and {other} cannot both catch {key} alone"));
            }
        }
    }
    faults
}

/// How many cases no saboteur is meant for.
fn meant_for_none(reasons: &Reasons, saboteurs: &[Saboteur]) -> usize {
    reasons.keys().filter(|case| !saboteurs.iter().any(|one| one.is_meant_for(case))).count()
}

/// Runs the chore; whether every case has its reason.
pub async fn run(table: Table) -> bool {
    let saboteurs = list::all(&Database::default());
    let outcome = async {
        let kept = kept().await?;
        let mut reasons = match table {
            Table::Checked => read()?,
            Table::Written => read().unwrap_or_default(),
        };
        if table == Table::Written {
            reasons = renewed(&reasons, &kept);
            write(&reasons)?;
        }
        Ok::<_, String>((faults(&reasons, &kept, &saboteurs), reasons))
    };
    let (faults, reasons) = match outcome.await {
        Ok(told) => told,
        Err(error) => {
            println!("{error}");
            return false;
        }
    };
    for (case, Reason { rule, alone }) in &reasons {
        println!("{case}\n    rule: {}", rule.as_deref().unwrap_or("(none)"));
        for key in alone {
            println!("    alone: {key}");
        }
    }
    println!();
    for fault in &faults {
        println!("{fault}");
    }
    let catch = reasons.values().filter(|reason| !reason.alone.is_empty()).count();
    let rule = reasons.values().filter(|reason| reason.rule.is_some()).count();
    let unproven = meant_for_none(&reasons, &saboteurs);
    println!(
        "{} cases: {catch} catch a saboteur alone, {rule} have a rule of their own, {} stand without reason; \
         {unproven} are meant for no saboteur, so nothing shows that they can fail",
        reasons.len(),
        faults.len()
    );
    faults.is_empty()
}

/// What a judgement says against the table: of a saboteur that one case is said to catch alone, the cases
/// that caught it.
pub fn contradiction(reasons: &Reasons, key: &str, caught: &[String]) -> Option<String> {
    let (case, _) = reasons.iter().find(|(_, reason)| reason.alone.contains(key))?;
    let others: Vec<&str> =
        caught.iter().map(String::as_str).filter(|name| name != case && !list::is_random(name)).collect();
    let caught_it = caught.contains(case);
    (!caught_it || !others.is_empty()).then(|| {
        let others = if others.is_empty() { "no other".to_owned() } else { others.join(", ") };
        let did = if caught_it { "caught it" } else { "did not catch it" };
        format!("reasons.tsv: {case} alone is to catch {key}; it {did}, {others} did")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_case_has_a_reason_of_its_own() {
        let faults = faults(&read().unwrap(), &kept().await.unwrap(), &list::all(&Database::default()));
        assert!(faults.is_empty(), "see `cargo xtask saboteurs --reasons`: {faults:#?}");
    }

    fn kept_by(cases: &[(&str, &[&str])]) -> Kept {
        let rules = |rules: &[&str]| rules.iter().map(ToString::to_string).collect();
        cases.iter().map(|(case, kept)| ((*case).to_owned(), rules(kept))).collect()
    }

    #[test]
    fn a_case_like_another_has_no_reason_and_takes_the_others() {
        let alone = kept_by(&[("a::one", &["both", "mine"])]);
        let reasons = renewed(&Reasons::new(), &alone);
        assert_eq!(faults(&reasons, &alone, &[]), Vec::<String>::new());
        let twice = kept_by(&[("a::one", &["both", "mine"]), ("a::two", &["both", "mine"])]);
        assert_eq!(faults(&reasons, &twice, &[]).len(), 2, "no row, and no rule of its own any more");
        assert_eq!(faults(&renewed(&reasons, &twice), &twice, &[]).len(), 2, "neither has a reason");
    }

    #[test]
    fn a_row_names_what_there_is() {
        let kept = kept_by(&[("a::one", &["mine"])]);
        let told = |line: &str| faults(&parse(line).unwrap(), &kept, &list::all(&Database::default()));
        assert!(told("a::one\tmine\t").is_empty());
        let (no_case, no_rule) = ("a::one\tmine\t\na::gone\tmine\t", "a::one\tyours\t");
        let no_saboteur = "a::one\t\tmemory: nobody";
        let not_meant = "a::one\t\tmemory: nothing is ever due next";
        for line in [no_case, no_rule, no_saboteur, not_meant, "a::one\t\t"] {
            assert_eq!(told(line).len(), 1, "{line}");
        }
        assert!(parse("a::one\tmine").is_err() && parse("a::one\t\t\na::one\t\t").is_err());
    }

    #[test]
    fn cases_that_no_saboteur_is_meant_for_are_counted() {
        let reasons = parse("reap::next_due_is_none_when_nothing_is_due\tmine\t\na::one\tyours\t").unwrap();
        let saboteurs = list::all(&Database::default());
        let of = |name: &str| saboteurs.iter().filter(|one| one.name == name).cloned().collect::<Vec<_>>();
        assert_eq!(meant_for_none(&reasons, &[]), 2);
        let meant = of("nothing is ever due next");
        let named: Vec<String> = meant[0].meant.iter().map(|part| format!("{part}\tmine\t\n")).collect();
        let reasons = parse(&format!("{}a::one\tyours\t", named.concat())).unwrap();
        assert_eq!(meant_for_none(&reasons, &meant), 1);
    }

    #[test]
    fn a_judgement_may_contradict_the_table() {
        let reasons = parse("a::one\t\tmemory: x").unwrap();
        let told = |caught: &[&str]| {
            let caught: Vec<String> = caught.iter().map(ToString::to_string).collect();
            contradiction(&reasons, "memory: x", &caught)
        };
        assert!(told(&["a::one"]).is_none() && told(&["a::one", "model::some"]).is_none());
        assert!(told(&["a::one", "a::two"]).is_some() && told(&[]).is_some());
        assert!(contradiction(&reasons, "memory: y", &[]).is_none());
    }

    #[test]
    fn the_table_is_read_as_it_was_written() {
        let text = "a::one\tmine [1]\tmemory: x; sqlite: y\na::two\t\tsqlite: z\n";
        let reasons = parse(text).unwrap();
        assert_eq!(reasons["a::one"].alone.len(), 2);
        assert_eq!((reasons["a::one"].rule.as_deref(), &reasons["a::two"].rule), (Some("mine [1]"), &None));
    }
}
