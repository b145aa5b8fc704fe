//! A Citus cluster of a coordinator and two workers, for as long as the standard input is open. It writes the URL of its
//! coordinator to the standard output, one line, once it is ready.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use kagzi_testkit::CitusCluster;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If even that cannot be said, the exit code tells.
            writeln!(std::io::stderr(), "{error}").map_or(ExitCode::FAILURE, |()| ExitCode::FAILURE)
        }
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(why) = kagzi_testkit::why_no_citus() {
        return Err(why.into());
    }
    let cluster = CitusCluster::start(2).await?;
    writeln!(std::io::stdout(), "{}", cluster.url())?;
    let mut rest = Vec::new();
    std::io::stdin().lock().read_to_end(&mut rest)?;
    drop(cluster);
    Ok(())
}
