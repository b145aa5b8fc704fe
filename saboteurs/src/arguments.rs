//! The command line.

use crate::list::Kind;
use crate::reasons::Table;

const HELP: &str = "\
usage: kagzi-saboteurs [--tell | --full | --alone | --soak ROUNDS [--store NAME] | --reasons [--write]] [FILTER...]

  (nothing)      the cases meant for each saboteur whose name contains a FILTER
  --tell         the same, and what each case says that fails: how a report reads to who writes a backend
  --full         every case over each of them
  --alone        which of them one case alone catches, into saboteurs/reasons.tsv: the rest of the suite, but
                 for the random cases, over each that only one of the meant cases caught
  --soak ROUNDS  the whole suite over each unbroken store, ROUNDS times, comparing the verdicts;
                 a FILTER selects cases, --store one of memory, sqlite, postgres and postgres-7
  --reasons      whether every case is there for a reason, and for which: saboteurs/reasons.tsv;
                 --write chooses rules anew where those that stand there no longer hold";

/// How much of the suite meets each saboteur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The cases that are meant for it.
    Meant,
    /// The same, and what they say is shown.
    Told,
    /// All of it.
    Full,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chore {
    /// See which saboteurs are caught.
    Judge(Extent),
    /// See which saboteurs one case alone catches.
    Alone,
    /// See whether verdicts agree.
    Soak {
        /// How many times.
        rounds: u32,
        /// The one store; all of them if none is named.
        store: Option<Kind>,
    },
    /// Tell why each case is there.
    Reasons(Table),
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What is to be done.
    pub chore: Chore,
    /// To what: parts of names.
    pub filters: Vec<String>,
}

impl Arguments {
    /// Reads the command line; an error is a text for whoever wrote it.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self { chore: Chore::Judge(Extent::Meant), filters: Vec::new() };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--tell" => arguments.chore = Chore::Judge(Extent::Told),
                "--full" => arguments.chore = Chore::Judge(Extent::Full),
                "--alone" => arguments.chore = Chore::Alone,
                "--reasons" => arguments.chore = Chore::Reasons(Table::Checked),
                "--write" if arguments.chore == Chore::Reasons(Table::Checked) => {
                    arguments.chore = Chore::Reasons(Table::Written);
                }
                "--soak" => {
                    let rounds = words.next().and_then(|rounds| rounds.parse().ok()).filter(|n| *n > 0);
                    let rounds =
                        rounds.ok_or_else(|| format!("--soak wants a number of rounds\n\n{HELP}"))?;
                    arguments.chore = Chore::Soak { rounds, store: None };
                }
                "--store" => {
                    let Chore::Soak { store, .. } = &mut arguments.chore else {
                        return Err(format!("--store goes with --soak, behind it\n\n{HELP}"));
                    };
                    *store = Some(Kind::parse(&words.next().unwrap_or_default())?);
                }
                flag if flag.starts_with('-') => return Err(format!("unknown: {flag}\n\n{HELP}")),
                _ => arguments.filters.push(word),
            }
        }
        Ok(arguments)
    }
}
