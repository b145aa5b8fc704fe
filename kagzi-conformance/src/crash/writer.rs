//! The child: writes without end, and tells of each acknowledgement after it came.

use std::io::{self, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use kagzi_core::SharedStore;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::CrashFixture;
use super::lapsed;
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

/// The `main` of a child: eight tasks play one script after the other, and one reaps what has lapsed, until the
/// process is killed or the store fails.
pub(super) fn write(fixture: &Arc<dyn CrashFixture>, task: &Task) -> ExitCode {
    let written = Runtime::new().map_err(FixtureError::from).and_then(|runtime| {
        runtime.block_on(async {
            let store = fixture.open(&task.address, Arc::new(lapsed::clock()), rules()).await?;
            let mut writers = JoinSet::new();
            writers.spawn(reap(Arc::clone(&store)));
            for writer in 0..WRITERS {
                writers.spawn(play(Arc::clone(&store), task.clone(), writer));
            }
            // A server that is killed ends its writers with an error, as it should.
            writers.join_all().await.into_iter().collect::<Result<(), _>>()
        })
    });
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn play(store: SharedStore, task: Task, writer: usize) -> Result<(), FixtureError> {
    for number in (writer..).step_by(WRITERS) {
        let script = Script::new(&task.round, task.seed, number)?;
        for place in 0..script.len() {
            script.send(&*store, place).await?;
            tell(&format!("{number} {place}"))?;
        }
    }
    Ok(())
}

async fn reap(store: SharedStore) -> Result<(), FixtureError> {
    loop {
        match store.reap(lapsed::LIMIT).await?.total() {
            0 => return Ok(()),
            reaped => tell(&format!("reaped {reaped}"))?,
        }
    }
}

/// A line in one write: the reader sees all of it or nothing.
fn tell(what: &str) -> io::Result<()> {
    io::stdout().lock().write_all(format!("{what}\n").as_bytes())
}
