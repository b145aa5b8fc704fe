//! The child: writes without end, and tells of each acknowledgement after it came.

use std::io::{self, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use kagzi_core::ManualClock;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::CrashFixture;
use super::script::{Script, rules};
use crate::fixture::FixtureError;

/// How many scripts are played at one time.
pub(super) const WRITERS: usize = 8;

/// The first argument of a child.
const MARK: &str = "kagzi-crash-writer";

/// What a child writes.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) address: String,
    pub(super) round: String,
    pub(super) seed: u64,
}

/// The task of this process, if it was started as a child.
pub(super) fn asked_for() -> Option<Task> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != MARK {
        return None;
    }
    Some(Task { address: arguments.next()?, round: arguments.next()?, seed: arguments.next()?.parse().ok()? })
}

/// The command that starts a child for `task`.
pub(super) fn command(task: &Task) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MARK, &task.address, &task.round, &task.seed.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(command)
}

/// The `main` of a child: eight tasks play one script after the other, until the process is killed or
/// the store fails.
pub(super) fn write(fixture: &Arc<dyn CrashFixture>, task: &Task) -> ExitCode {
    let written = Runtime::new().map_err(FixtureError::from).and_then(|runtime| {
        runtime.block_on(async {
            let store = fixture.open(&task.address, Arc::new(ManualClock::default()), rules()).await?;
            let mut writers = JoinSet::new();
            for writer in 0..WRITERS {
                let (store, task) = (Arc::clone(&store), task.clone());
                writers.spawn(async move {
                    for number in (writer..).step_by(WRITERS) {
                        let script = Script::new(&task.round, task.seed, number)?;
                        for place in 0..script.len() {
                            script.send(&*store, place).await?;
                            // A line in one write: the reader sees all of it or nothing.
                            io::stdout().lock().write_all(format!("{number} {place}\n").as_bytes())?;
                        }
                    }
                    Ok::<_, FixtureError>(())
                });
            }
            // A server that is killed ends its writers with an error, as it should.
            writers.join_all().await.into_iter().collect::<Result<(), _>>()
        })
    });
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
