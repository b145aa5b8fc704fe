//! `kagzi conformance`: the suite against a live database.

mod scratch;

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kagzi_conformance::{Case, CaseReport, Filter, Fixture, Report, Settings, Totals, all_cases, run};

use super::error::{CliError, Exit};
use super::host::stop_signal;
use super::output::{Audience, Output, complain, print, table};
use scratch::Scratch;

/// `kagzi conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// The store to judge: `sqlite://path`, `postgres://user@host/database` or `memory:`. Your data are
    /// left alone: in Postgres every case has a schema of its own (`kagzi_conformance_...`), in SQLite a
    /// file in a directory beside the path; all of them are removed, however the command ends.
    #[arg(long, value_name = "URL")]
    store: String,
    /// Only cases of this group; may be given again.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// No cases whose `group::name` contains this; may be given again.
    #[arg(long, value_name = "TEXT")]
    except: Vec<String>,
    /// Say on the standard error how each case ends, as it does.
    #[arg(long)]
    verbose: bool,
    /// Answer with a report in Markdown on the standard output.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Only cases whose `group::name` contains one of these.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs the suite. Ctrl-C ends it at any moment, and what it made is removed.
///
/// # Errors
///
/// [`CliError`] if the arguments or the environment make no sense, the store cannot be opened, no chosen case
/// applies to it, or what was made could not be removed.
pub async fn conformance(args: ConformanceArgs, output: Output) -> Result<Exit, CliError> {
    let filter = Filter { groups: args.groups, containing: args.names, except: args.except };
    let count = count(&filter)?;
    let settings = Settings::from_environment()
        .map_err(|error| CliError::usage("could not read the environment", error))?;
    let scratch = Arc::new(Scratch::new(&args.store)?);
    // One store is opened first, so that a wrong URL is said once and not by every case.
    let ready = scratch.try_out().await;
    let audience = if args.markdown { Audience::Programs } else { output.audience() };
    let bar = progress(count, audience);
    let follow = |case: &CaseReport| {
        bar.inc(1);
        bar.set_message(case.group.clone());
        if args.verbose || case.outcome.is_failure() {
            bar.suspend(|| complain(format_args!("{} {}::{}", case.outcome.as_str(), case.group, case.name)));
        }
    };
    let ended: Result<Result<Report, Exit>, CliError> = if let Err(error) = ready {
        Err(error)
    } else {
        let fixture: Arc<dyn Fixture> = Arc::<Scratch>::clone(&scratch);
        tokio::select! {
            report = run(fixture, &filter, settings, follow) => Ok(Ok(report)),
            signal = stop_signal() => Ok(Err(signal.into())),
        }
    };
    bar.finish_and_clear();
    let removed = scratch.remove_all().await;
    // Where no store could be opened nothing was made, and why it could not is all there is to say.
    let report = match ended? {
        Ok(report) => report,
        Err(stopped) => return removed.map(|()| stopped),
    };
    show(&report, args.markdown, output)?;
    removed?;
    verdict(report.totals())
}

/// How the command ends. A store of which nothing was asked has not passed.
fn verdict(totals: Totals) -> Result<Exit, CliError> {
    match totals {
        Totals { failed: 1.., .. } => Ok(Exit::Failed),
        Totals { passed: 1.., .. } => Ok(Exit::Ok),
        Totals { not_applicable, .. } => {
            let why = format!("none of the {not_applicable} chosen cases applies to this store, see above");
            Err(CliError::usage("nothing was proved", why)
                .remedy("choose cases that need only what the store can do, or another store"))
        }
    }
}

/// How many cases the filter accepts; none at all is a mistake in the command line.
fn count(filter: &Filter) -> Result<usize, CliError> {
    let cases = all_cases();
    let groups: BTreeSet<&str> = cases.iter().map(|case| case.group).collect();
    let known = groups.iter().copied().collect::<Vec<_>>().join(", ");
    if let Some(unknown) = filter.groups.iter().find(|group| !groups.contains(group.as_str())) {
        return Err(CliError::usage("could not choose cases", format!("there is no group {unknown:?}"))
            .remedy(format!("take one of {known}")));
    }
    let names: Vec<String> = cases.iter().map(Case::full_name).collect();
    if let Some(unknown) =
        filter.containing.iter().find(|text| !names.iter().any(|name| name.contains(*text)))
    {
        return Err(CliError::usage(
            "could not choose cases",
            format!("no case's name contains {unknown:?}"),
        )
        .remedy(format!("name a part of group::name; the groups are {known}")));
    }
    match cases.iter().filter(|case| filter.accepts(case)).count() {
        0 => Err(CliError::usage("could not choose cases", "no case is left of those asked for")
            .remedy("--group, --except and the names must all hold: leave one of them out")),
        count => Ok(count),
    }
}

fn progress(count: usize, audience: Audience) -> ProgressBar {
    let target = match audience {
        Audience::People => ProgressDrawTarget::stderr(),
        Audience::Programs => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(count as u64), target);
    let style = ProgressStyle::with_template("[{bar:40}] {human_pos}/{human_len} cases  {elapsed}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

fn show(report: &Report, markdown: bool, output: Output) -> Result<(), CliError> {
    if markdown { print(report.to_markdown().trim_end()) } else { output.show(report, people) }
}

/// What failed and why, then the table.
fn people(report: &Report) -> String {
    let mut parts: Vec<&str> = report.failures().filter_map(|case| case.outcome.detail()).collect();
    let mut rows: Vec<[String; 4]> = Vec::new();
    let groups = report.groups().into_iter().chain([("all", report.totals())]);
    for (group, totals) in groups {
        let numbers = [totals.passed, totals.failed, totals.not_applicable].map(|n| n.to_string());
        let [passed, failed, not_applicable] = numbers;
        rows.push([group.to_owned(), passed, failed, not_applicable]);
    }
    let table = table(["GROUP", "PASSED", "FAILED", "NOT APPLICABLE"], rows);
    parts.push(&table);
    let notes = report.notes().collect::<Vec<_>>().join("\n");
    parts.extend((!notes.is_empty()).then_some(notes.as_str()));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use kagzi_conformance::Outcome;

    use super::*;

    #[test]
    fn what_failed_is_told_above_the_table() {
        let case = |name: &str, outcome| CaseReport {
            group: "claim".to_owned(),
            name: name.to_owned(),
            invariants: vec![1],
            outcome,
            note: Some(format!("12 states of {name}")),
        };
        let report = Report {
            store: "mine".to_owned(),
            cases: vec![
                case("a", Outcome::Failed("rule      x\nseen      y".to_owned())),
                case("b", Outcome::Passed),
            ],
        };
        let text = people(&report);
        assert!(text.starts_with("rule      x\nseen      y\n\n"), "{text}");
        assert!(text.contains("NOT APPLICABLE") && text.contains("claim"), "{text}");
        assert!(text.ends_with("\n\nclaim::a: 12 states of a\nclaim::b: 12 states of b"), "{text}");
    }
}
