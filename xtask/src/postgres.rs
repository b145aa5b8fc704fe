//! Making sure that the tests find a Postgres, a `PgBouncer` and wrong clocks: they are never skipped in silence.

use std::path::PathBuf;
use std::process::Command;

use crate::shell;

/// Where the tests will get their Postgres from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `KAGZI_TEST_POSTGRES_URL`.
    Url,
    /// Server binaries on this machine.
    Binaries,
    /// A container.
    Docker,
}

impl Source {
    /// Features that the tests need for it.
    pub const fn cargo_features(self) -> &'static [&'static str] {
        match self {
            Self::Url | Self::Binaries => &[],
            Self::Docker => &["--features", "kagzi-testkit/containers"],
        }
    }
}

/// The first that answers: a URL, binaries, Docker; else it is installed where that can be done.
pub fn find_or_install() -> Result<Source, String> {
    if std::env::var_os("KAGZI_TEST_POSTGRES_URL").is_some() {
        println!("Postgres for tests: KAGZI_TEST_POSTGRES_URL");
        return Ok(Source::Url);
    }
    if let Some(directory) = binaries() {
        println!("Postgres for tests: the server binaries in {}", directory.display());
        return Ok(Source::Binaries);
    }
    if shell::answers("docker", &["info"]) {
        println!("Postgres for tests: Docker, through testcontainers");
        return Ok(Source::Docker);
    }
    install("postgresql", HELP)?;
    binaries().map(|_| Source::Binaries).ok_or_else(|| HELP.to_owned())
}

const HELP: &str = "the tests need a real Postgres, and none was found. One of these helps:
  1. point KAGZI_TEST_POSTGRES_URL at a server where the tests may create databases
  2. install the server binaries (Debian and Ubuntu: apt-get install postgresql)
  3. start Docker";

/// The directory with `initdb` and `postgres`.
fn binaries() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"));
    std::env::split_paths(&on_path)
        .chain(debian)
        .find(|directory| directory.join("initdb").is_file() && directory.join("postgres").is_file())
}

/// Makes sure that there is a `PgBouncer`, which is installed where that can be done.
pub fn find_or_install_pooler() -> Result<(), String> {
    if pooler_is_there() {
        return Ok(());
    }
    install("pgbouncer", POOLER_HELP)?;
    if pooler_is_there() { Ok(()) } else { Err(POOLER_HELP.to_owned()) }
}

const POOLER_HELP: &str = "the tests need PgBouncer, and found it neither in PATH nor in /usr/sbin: install it \
     (Debian and Ubuntu: apt-get install pgbouncer; macOS: brew install pgbouncer)";

/// Debian puts it where the PATH of ordinary users does not lead.
fn pooler_is_there() -> bool {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|directory| directory.join("pgbouncer").is_file())
}

/// Makes sure that there is a libfaketime, for processes whose clocks are wrong; it is installed where that can
/// be done.
pub fn find_or_install_clocks() -> Result<(), String> {
    if clocks_are_there() {
        return Ok(());
    }
    install("libfaketime", CLOCKS_HELP)?;
    if clocks_are_there() { Ok(()) } else { Err(CLOCKS_HELP.to_owned()) }
}

const CLOCKS_HELP: &str = "the tests of clocks that are wrong need libfaketime, and found it below none of /usr/lib, \
     /usr/lib64 and /usr/local/lib: install it (Debian and Ubuntu: apt-get install libfaketime)";

/// Debian has a directory for the architecture in between.
fn clocks_are_there() -> bool {
    let architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    architectures
        .map(|entry| entry.path())
        .chain(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from))
        .any(|directory| directory.join("faketime/libfaketimeMT.so.1").is_file())
}

fn install(package: &str, help: &str) -> Result<(), String> {
    if !shell::answers("apt-get", &["--version"]) || !shell::answers("sh", &["-c", "test $(id -u) = 0"]) {
        return Err(help.to_owned());
    }
    println!("For the tests: installing Debian's package {package}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    shell::run("apt-get update", &mut apt(&["-q", "update"]))?;
    let install = ["-q", "-y", "install", "--no-install-recommends", package];
    shell::run(&format!("apt-get install {package}"), &mut apt(&install))
}
