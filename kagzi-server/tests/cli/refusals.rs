//! What is refused or goes wrong: by which exit code, in which words, by the name of which field.

use std::process::Command;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_apart_by_the_exit_code() {
    let shop = Shop::open().await;
    let unknown = shop.kagzi(&["get", UNKNOWN_RUN]).await;
    assert_eq!(unknown.code(), Some(3));
    assert!(
        unknown.stderr().starts_with("error: ") && unknown.stderr().contains("  why: "),
        "{}",
        unknown.stderr()
    );
    assert_eq!(shop.kagzi(&["get", "not-an-id"]).await.code(), Some(2));
    assert_eq!(shop.kagzi(&["start", "greet", "--input", "no json"]).await.code(), Some(2));
    assert_eq!(shop.kagzi(&["list", "--namespace", "elsewhere"]).await.stdout(), "");

    let taken = kagzi_testkit::free_port().unwrap();
    let nobody = shop.kagzi(&["list", "--server", &format!("http://127.0.0.1:{taken}")]).await;
    assert_eq!(nobody.code(), Some(4));
    assert!(nobody.stderr().contains("kagzi dev"), "it says what to do: {}", nobody.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_that_its_store_is_away_is_not_taken_for_a_wrong_address() {
    let shop = Shop::open().await;
    // Closed, as it is from then on when the database is away for good.
    shop.server.store().close().await.unwrap();
    let ended = shop.kagzi(&["list"]).await;
    assert_eq!(ended.code(), Some(4), "{}", ended.stderr());
    assert!(!ended.stderr().contains("--server"), "{}", ended.stderr());
    assert!(ended.stderr().contains(&format!("log of the server at {}", shop.server.url())));
    shop.worker.abort();
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf8_is_refused_by_the_name_of_its_field() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let bad = OsStr::from_bytes(b"a\xff");
    let refused = [
        (["start"].as_slice(), "'<TYPE>'"),
        (&["start", "greet", "--queue"], "'--queue <QUEUE>'"),
        (&["start", "--queue"], "'--queue <QUEUE>'"),
        (&["list", "--label"], "'--label <KEY=VALUE>'"),
        (&["get"], "'<RUN>'"),
        (&["--namespace"], "'--namespace <NAMESPACE>'"),
        (&["list", "--namespace"], "'--namespace <NAMESPACE>'"),
        (&["serve", "--namespaces"], "'--namespaces <NAMES>'"),
    ];
    let said = |command: &mut Command| {
        let ended = Ended(command.output().unwrap());
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr());
        ended.stderr()
    };
    for (args, field) in refused {
        let said = said(Command::new(env!("CARGO_BIN_EXE_kagzi")).args(args).arg(bad));
        assert!(said.contains(&format!("for {field}: expected UTF-8")), "{args:?}: {said}");
    }
    let said = said(Command::new(env!("CARGO_BIN_EXE_kagzi")).arg("list").env("KAGZI_NAMESPACE", bad));
    assert!(said.contains("KAGZI_NAMESPACE for '--namespace <NAMESPACE>': expected UTF-8"), "{said}");
}

#[test]
fn the_configuration_is_looked_at_before_the_store_and_the_store_before_the_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kagzi"))
            .args(["serve", "--listen", &taken])
            .args(args)
            .output()
            .unwrap();
        Ended(output)
    };
    let all_wrong = serve(&["--store", "mysql://h/db", "--max-payload-bytes", "0"]);
    assert_eq!(all_wrong.code(), Some(2));
    assert!(all_wrong.stderr().contains("max_payload_bytes: expected from 1 to"), "{}", all_wrong.stderr());
    let store_wrong = serve(&["--store", "mysql://h/db"]);
    assert_eq!(store_wrong.code(), Some(2));
    assert!(store_wrong.stderr().contains("schemes built in"), "{}", store_wrong.stderr());
    let port_taken = serve(&["--store", "memory:"]);
    assert_eq!(port_taken.code(), Some(1));
    assert!(port_taken.stderr().contains(&format!("{taken} is in use")), "{}", port_taken.stderr());
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        let script = Ended(command.args(["completions", shell]).output().unwrap());
        assert_eq!(script.code(), Some(0));
        assert!(script.stdout().contains("dead-letters"), "{shell}");
        assert!(script.stdout().contains("namespace"), "{shell}");
        assert!(!script.stdout().contains("demo-worker"), "{shell}: that is nobody's to type");
    }
}

#[test]
fn a_negative_value_is_refused_by_the_name_of_its_field() {
    let refused = [
        (["start", "greet", "--delay", "-5s"].as_slice(), "--delay"),
        (&["start", "greet", "--run-timeout", "-1s"], "--run-timeout"),
        (&["list", "--limit", "-1"], "--limit"),
        (&["serve", "--default-lease", "-5s"], "--default-lease"),
    ];
    for (args, field) in refused {
        let output = Command::new(env!("CARGO_BIN_EXE_kagzi")).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(&format!("invalid value '{}' for '{field}", args.last().unwrap())), "{said}");
    }
}

#[test]
fn what_is_no_number_is_refused_with_what_was_expected_and_by_the_name_of_its_field() {
    let said = |args: &[&str], variable: (&str, &str)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        let output = command.args(args).env(variable.0, variable.1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let told = said(&["serve"], ("KAGZI_MAX_WAITS", "abc"));
    assert!(told.contains("'abc' for '--max-waits <N>': expected a whole number, 0 or more"), "{told}");
    let told = said(&["serve", "--max-payload-bytes", "2MiB"], ("X", ""));
    assert!(told.contains("'2MiB' for '--max-payload-bytes <BYTES>': expected a whole number"), "{told}");
    let told = said(&["serve"], ("KAGZI_RETRY_FACTOR", "two"));
    assert!(told.contains("'two' for '--retry-factor <FACTOR>': expected a number"), "{told}");
}

#[test]
fn a_server_does_not_start_with_a_variable_that_is_nearly_a_setting() {
    let serve = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        // It ends at once, for another reason, if the variable is no obstacle.
        command.args(["serve", "--store", "mysql://h/db"]).env(name, "planted-value");
        Ended(command.output().unwrap())
    };
    let misspelt = serve("KAGZI_ACCESSFILE");
    assert_eq!(misspelt.code(), Some(2));
    let told = misspelt.stderr();
    assert!(told.contains("KAGZI_ACCESSFILE: ") && told.contains("KAGZI_ACCESS_FILE"), "{told}");
    assert!(!told.contains("schemes built in") && !told.contains("planted-value"), "{told}");
    let unheard = serve("KAGZI_UNHEARD_OF_THING");
    let told = unheard.stderr();
    assert!(told.contains("nobody reads the variable KAGZI_UNHEARD_OF_THING"), "{told}");
    assert!(told.contains("schemes built in") && !told.contains("planted-value"), "{told}");
    let told = serve("KAGZI_CONFORMANCE_SEED");
    assert!(!told.stderr().contains("KAGZI_CONFORMANCE_SEED"), "{}", told.stderr());
}
