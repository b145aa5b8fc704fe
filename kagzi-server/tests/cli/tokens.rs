//! What `kagzi token new` prints is an access file's, as it is.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use kagzi_server::{Server, ServerConfig, ServerError};

fn token(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kagzi")).args(["token", "new"]).args(args).output().unwrap()
}

/// Whether a server takes an access file.
async fn taken(access: &Path) -> Result<(), ServerError> {
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store: "memory:".to_owned(),
        access_file: Some(access.to_owned()),
        ..ServerConfig::default()
    };
    Server::bind(config).await.map(drop)
}

#[tokio::test]
async fn entries_for_principals_are_appended_one_after_the_other_whatever_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let access = directory.path().join("access.toml");
    let mut file = OpenOptions::new().create(true).append(true).open(&access).unwrap();
    for (at, name) in ["worker", "a \"quoted\" \\ name", "Zoë's"].iter().enumerate() {
        let to = directory.path().join(format!("{at}.token"));
        let made = token(&["--principal", name, "--to", to.to_str().unwrap()]);
        assert!(made.status.success(), "{made:?}");
        file.write_all(&made.stdout).unwrap();
        taken(&access).await.unwrap();
        // Without a newline at its end, as an editor may leave it.
        file.write_all(b"[[principal.grant]]\nrole = \"worker\"\nnamespaces = [\"default\"]").unwrap();
        taken(&access).await.unwrap();
    }
    for name in ["", "two\nlines"] {
        assert_eq!(token(&["--principal", name]).status.code(), Some(2), "{name:?}");
    }
}

#[tokio::test]
async fn a_line_without_a_name_goes_where_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let access = directory.path().join("access.toml");
    let said = String::from_utf8(token(&[]).stdout).unwrap();
    assert!(said.contains("directly below the [[principal]] whose token it is, above its grants"), "{said}");
    let line = said.lines().last().unwrap();
    let grant = "[[principal.grant]]\nrole = \"worker\"\nnamespaces = [\"default\"]\n";
    std::fs::write(&access, format!("[[principal]]\nname = \"ada\"\n{line}\n{grant}")).unwrap();
    taken(&access).await.unwrap();
}
