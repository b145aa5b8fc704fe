//! What is shown: a line now and then, the violations with their stories, and one table.

use std::fmt::Write as _;
use std::time::Duration;

use kagzi_core::RunId;
use serde_json::json;

use crate::check::{Found, Judgement, Look};
use crate::event::Moment;
use crate::faults::Counts;
use crate::log::History;

/// How many violations are told with their whole story.
const TOLD: usize = 5;

/// Everything that the table shows.
#[derive(Debug)]
pub struct Report<'r> {
    pub store: &'r str,
    pub seed: u64,
    pub lasted: Duration,
    pub faults: &'r Counts,
    pub judgement: &'r Judgement,
    pub look: &'r Look,
}

impl Report<'_> {
    fn states(&self) -> Vec<(String, u64)> {
        let mut states = std::collections::BTreeMap::<String, u64>::new();
        for stored in self.look.values() {
            let run = &stored.record.run;
            let name = match run.dead_letter {
                Some(reason) => format!("{} ({})", run.state, reason.as_str()),
                None => run.state.to_string(),
            };
            *states.entry(name).or_default() += 1;
        }
        states.into_iter().collect()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text =
            format!("\ntorture over {}, seed {}, {} s\n", self.store, self.seed, self.lasted.as_secs());
        let mut row = |name: &str, count: u64| {
            // Writing to a text cannot fail.
            writeln!(text, "  {name:<44}{count:>10}").ok();
        };
        let judgement = self.judgement;
        row("operations on record", judgement.operations as u64);
        row("  of them acknowledged", judgement.answered as u64);
        row("runs", self.look.len() as u64);
        for (state, count) in self.states() {
            row(&format!("  {state}"), count);
        }
        row("attempts of steps", judgement.attempts as u64);
        row("executions of step code", judgement.executions as u64);
        row("histories for which an order was found", judgement.histories as u64);
        row("faults", self.faults.values().sum());
        for ((victim, fault), count) in self.faults {
            row(&format!("  {victim}: {fault}"), *count);
        }
        row("violations", judgement.found.len() as u64);
        text
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let faults: serde_json::Map<String, serde_json::Value> = self
            .faults
            .iter()
            .map(|((victim, fault), count)| (format!("{victim}: {fault}"), json!(count)))
            .collect();
        json!({
            "store": self.store,
            "seed": self.seed,
            "seconds": self.lasted.as_secs(),
            "operations": self.judgement.operations,
            "acknowledged": self.judgement.answered,
            "runs": self.look.len(),
            "states": self.states().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "attempts": self.judgement.attempts,
            "executions": self.judgement.executions,
            "histories": self.judgement.histories,
            "faults": faults,
            "violations": self.judgement.found.len(),
        })
    }

    /// What was violated, the first few with the whole story of their run.
    pub fn violations(&self, history: &History) -> String {
        let mut text = String::new();
        for (number, Found { rule, run, detail }) in self.judgement.found.iter().enumerate() {
            writeln!(text, "\nVIOLATION {}: {}\n  {detail}", number + 1, rule.words()).ok();
            writeln!(text, "  found by seed {}", self.seed).ok();
            if let Some(run) = run.filter(|_| number < TOLD) {
                text.push_str(&story(run, history, self.look));
            }
        }
        text
    }
}

/// Everything that is known of a run, in the order of time.
fn story(run: RunId, history: &History, look: &Look) -> String {
    let mut lines: Vec<(Moment, String)> = Vec::new();
    let first = history.heard.first().map_or(0, |heard| heard.called);
    let at = |moment: Moment| match moment {
        Moment::MAX => "never".to_owned(),
        moment => format!("{:.3}", Duration::from_nanos(moment.saturating_sub(first)).as_secs_f64()),
    };
    for heard in history.heard.iter().filter(|heard| heard.run == run) {
        let line = format!(
            "[{} .. {}] {} ({}): {:?} -> {:?}",
            at(heard.called),
            at(heard.returned),
            heard.who,
            heard.namespace,
            heard.call,
            heard.answer
        );
        lines.push((heard.called, line));
    }
    for deed in history.deeds.iter().filter(|deed| deed.run == run) {
        let what = deed.got.as_ref().map_or_else(|| "executes".to_owned(), |got| format!("got {got} of"));
        let line = format!("[{}] {} in claim {}: {what} {}", at(deed.at), deed.who, deed.claims, deed.step);
        lines.push((deed.at, line));
    }
    lines.sort();
    let mut text = format!("  the story of run {run}:\n");
    for (_, line) in lines {
        writeln!(text, "    {line}").ok();
    }
    if let Some(stored) = look.get(&run) {
        writeln!(text, "    recorded: {:?}", stored.record.run).ok();
        for attempt in &stored.attempts {
            writeln!(
                text,
                "    recorded: {}#{} {} under token {} by {}, {} to {:?}",
                attempt.step_id,
                attempt.attempt,
                attempt.state,
                attempt.fencing_token,
                attempt.worker_id,
                attempt.created_at,
                attempt.finished_at
            )
            .ok();
        }
    }
    text
}
