//! The workflow: what a run of it does follows from a number, so that anyone can say what it should do.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use kagzi_sdk::{Context, RetryPolicy, RunId, Start, Step, StepError, WorkflowError};
use serde::{Deserialize, Serialize};

use crate::Failed;
use crate::event::{Line, now};
use crate::log::Log;

/// The workflow's type.
pub const WORKFLOW: &str = "torture";

/// The queue of all runs.
pub const QUEUE: &str = "torture";

/// How often a step or a run is tried.
const ATTEMPTS: u32 = 6;

/// The longest that an attempt of a step with a timeout may take.
const TIMEOUT: Duration = Duration::from_millis(400);

/// Numbers from here on are plain runs: five steps that take a moment and never fail.
pub const PLAIN: u64 = 1 << 62;

/// How many steps a plain run has.
pub const PLAIN_STEPS: usize = 5;

/// The input of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// From which everything follows.
    pub number: u64,
}

/// One thing that a run does after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A step that takes this long, and fails so many times in a hundred.
    Step { millis: u64, fails: u8 },
    /// A step that may take longer than its timeout, so many times in a hundred.
    Limited { stalls: u8 },
    /// A step that fails so many times in a hundred, and is not retried then.
    Fatal { fails: u8 },
    /// Two steps side by side.
    Pair { millis: [u64; 2] },
    /// A sleep.
    Sleep { millis: u64 },
}

/// What a run does.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub items: Vec<Item>,
    /// How long the run may take from its start.
    pub run_timeout: Option<Duration>,
}

impl Plan {
    /// The plan of a number.
    pub fn of(number: u64) -> Self {
        if number >= PLAIN {
            let steps = std::iter::repeat_n(Item::Step { millis: 2, fails: 0 }, PLAIN_STEPS);
            return Self { items: steps.collect(), run_timeout: None };
        }
        let mut dice = Rng::with_seed(number);
        let mut item = || match dice.u8(..100) {
            0..50 => Item::Step { millis: dice.u64(..30), fails: 0 },
            50..65 => Item::Step { millis: dice.u64(..60), fails: 30 },
            65..68 => Item::Step { millis: dice.u64(500..3_000), fails: 0 },
            68..73 => Item::Limited { stalls: 20 },
            73..78 => Item::Fatal { fails: 40 },
            78..88 => Item::Pair { millis: [dice.u64(..40), dice.u64(..40)] },
            _ => Item::Sleep { millis: dice.u64(1..1_500) },
        };
        let first = item();
        let items = std::iter::once(first).chain((0..number % 5).map(|_| item())).collect();
        let run_timeout = (number % 40 == 7).then(|| Duration::from_millis(500 + number % 4_000));
        Self { items, run_timeout }
    }

    /// Whether the engine itself may end an attempt or the run by a timeout.
    pub fn has_timeouts(&self) -> bool {
        self.run_timeout.is_some() || self.items.iter().any(|item| matches!(item, Item::Limited { .. }))
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        max_attempts: ATTEMPTS,
        first_delay: Duration::from_millis(20),
        factor: 2.0,
        max_delay: Duration::from_millis(500),
        jitter: 0.5,
        non_retryable_codes: Vec::new(),
    }
}

/// The start of a run with this number.
pub fn start(number: u64) -> Result<Start, Failed> {
    let start = Start::workflow(WORKFLOW).queue(QUEUE).retry(policy()).input(&Input { number })?;
    Ok(match Plan::of(number).run_timeout {
        Some(timeout) => start.run_timeout(timeout),
        None => start,
    })
}

/// Says in the log what the code of a run does.
#[derive(Clone)]
struct Voice {
    log: Arc<Log>,
    run: RunId,
    claims: u32,
    /// Who executes, for outputs that say it.
    worker: Arc<str>,
}

impl Voice {
    fn executes(&self, step: &str) {
        let step = step.to_owned();
        self.log.note(&Line::Executes { at: now(), run: self.run, claims: self.claims, step });
    }

    fn got(&self, step: &str, output: &str) {
        let output = serde_json::to_string(output).unwrap_or_default();
        let (step, claims) = (step.to_owned(), self.claims);
        self.log.note(&Line::Got { at: now(), run: self.run, claims, step, output });
    }

    /// What a step gives: who made it, which no other execution gives, after what went before.
    fn output(&self, step: &str, before: &[String]) -> String {
        let chance = fastrand::u64(..);
        format!("{step} by {} in claim {} ({chance:016x}) after {}", self.worker, self.claims, before.len())
    }

    /// Whether this execution meets with the so-manieth part of a hundred.
    fn meets(&self, place: usize, hundredths: u8) -> bool {
        let seed = (place as u64) << 32 | u64::from(self.claims);
        let (high, low) = self.run.as_uuid().as_u64_pair();
        Rng::with_seed(seed ^ high ^ low.rotate_left(7)).u8(..100) < hundredths
    }
}

/// A run in execution.
pub type Running = Pin<Box<dyn Future<Output = Result<Vec<String>, WorkflowError>> + Send>>;

/// The workflow function of a worker.
pub fn workflow(log: Arc<Log>, worker: &str) -> impl Fn(Context, Input) -> Running + Send + Sync + 'static {
    let worker: Arc<str> = worker.into();
    move |ctx: Context, input: Input| -> Running {
        let voice = Voice {
            log: Arc::clone(&log),
            run: ctx.run_id(),
            claims: ctx.attempt(),
            worker: Arc::clone(&worker),
        };
        Box::pin(run(ctx, voice, Plan::of(input.number)))
    }
}

async fn run(ctx: Context, voice: Voice, plan: Plan) -> Result<Vec<String>, WorkflowError> {
    let mut outputs = Vec::new();
    for (place, item) in plan.items.iter().enumerate() {
        let name = format!("step-{place}");
        match item {
            Item::Step { millis, fails } => {
                let failure = voice.meets(place, *fails).then(|| StepError::retryable("flaky", "bad luck"));
                let named = Step::named(&name);
                let output = step(&ctx, &voice, named, &name, *millis, failure, &outputs).await?;
                outputs.push(output);
            }
            Item::Limited { stalls } => {
                let millis = if voice.meets(place, *stalls) { 1_500 } else { 5 };
                let limited = Step::named(&name).timeout(TIMEOUT);
                let output = step(&ctx, &voice, limited, &name, millis, None, &outputs).await?;
                outputs.push(output);
            }
            Item::Fatal { fails } => {
                let failure =
                    voice.meets(place, *fails).then(|| StepError::non_retryable("fatal", "no hope"));
                let named = Step::named(&name);
                let output = step(&ctx, &voice, named, &name, 1, failure, &outputs).await?;
                outputs.push(output);
            }
            Item::Pair { millis } => {
                let names = [format!("{name}-left"), format!("{name}-right")];
                let side = |at: usize| {
                    let one = Step::named(&names[at]);
                    step(&ctx, &voice, one, &names[at], millis[at], None, &outputs)
                };
                let (left, right) = tokio::join!(side(0), side(1));
                let both = [left?, right?];
                outputs.extend(both);
            }
            Item::Sleep { millis } => ctx.sleep(Duration::from_millis(*millis)).await?,
        }
    }
    Ok(outputs)
}

async fn step(
    ctx: &Context,
    voice: &Voice,
    described: Step,
    name: &str,
    millis: u64,
    failure: Option<StepError>,
    before: &[String],
) -> Result<String, WorkflowError> {
    let output = ctx
        .step(described, || async move {
            voice.executes(name);
            tokio::time::sleep(Duration::from_millis(millis)).await;
            failure.map_or_else(|| Ok(voice.output(name, before)), Err)
        })
        .await?;
    voice.got(name, &output);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_always_gives_the_same_plan_and_numbers_give_every_kind_of_item() {
        assert_eq!(Plan::of(7), Plan::of(7));
        let items: Vec<Item> = (0..200).flat_map(|number| Plan::of(number).items).collect();
        let kinds: std::collections::HashSet<_> = items.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 5);
        assert!((0..200).any(|number| Plan::of(number).run_timeout.is_some()));
    }
}
