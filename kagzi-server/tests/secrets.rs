//! No secret shows: a server, a worker and the command line work with planted secrets, say all that they
//! can say, and none of it holds one.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, helpers included")]

use std::io::{BufRead as _, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use kagzi_sdk::transport::{GrpcOptions, Token};
use kagzi_sdk::{Client, Context, RetryPolicy, Start, Step, StepError, Worker, WorkflowError};
use kagzi_server::NewToken;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;

const STORE_PASSWORD: &str = "planted-store-password";
const INPUT: &str = "planted-input-of-a-run";
const STEP_OUTPUT: &str = "planted-output-of-a-step";
const RUN_OUTPUT: &str = "planted-output-of-a-run";
const STEP_DETAILS: &str = "planted-details-of-a-step";
const RUN_DETAILS: &str = "planted-details-of-a-run";
const WRONG_TOKEN: &str = "planted-token-that-is-wrong";

/// Everything that the program of this test logs, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The forms in which a secret could show.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    let numbers = bytes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // Inside a longer text its encoding begins elsewhere, and its ends look differently.
    let shifted = (0..3).map(|shift| {
        let encoded = STANDARD_NO_PAD.encode([&vec![b'x'; shift], bytes].concat());
        encoded[4..encoded.len() - 4].to_owned()
    });
    let mut forms: Vec<String> = shifted.collect();
    forms.extend([secret.to_owned(), hex.concat(), hex.concat().to_uppercase(), numbers]);
    forms.extend([STANDARD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes)]);
    forms
}

fn assert_shows_none(whose: &str, said: &str, secrets: &[&str]) {
    for secret in secrets {
        for form in forms(secret) {
            let Some(at) = said.find(&form) else { continue };
            let line = said[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let end = said[at..].find('\n').map_or(said.len(), |newline| at + newline);
            panic!("{whose} shows {secret:?} as {form:?}: {}", &said[line..end]);
        }
    }
}

/// An issuer's key set and a token of it for `ada`.
fn jwt() -> (String, String) {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]}).to_string();
    let claims = json!({"iss": "acme", "aud": "kagzi", "sub": "ada", "exp": 32_503_680_000_u64});
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "EdDSA", "kid": "k"}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).as_ref());
    (set, format!("{signed}.{signature}"))
}

/// Whether the step that fails first has failed.
static FAILED: AtomicBool = AtomicBool::new(false);

async fn weave(ctx: Context, input: String) -> Result<String, WorkflowError> {
    assert_eq!(input, INPUT);
    ctx.step("ok", || async { Ok(STEP_OUTPUT.to_owned()) }).await?;
    let twice = RetryPolicy { max_attempts: 2, first_delay: Duration::ZERO, ..RetryPolicy::default() };
    let second_time = || async {
        if FAILED.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        Err(StepError::retryable("busy", "come again").with_details(STEP_DETAILS)?)
    };
    ctx.step(Step::from("fails-first").retry(twice), second_time).await?;
    Ok(RUN_OUTPUT.to_owned())
}

async fn fail(_: Context, _: String) -> Result<String, WorkflowError> {
    Err(WorkflowError::non_retryable("hopeless", "it cannot be").with_details(RUN_DETAILS)?)
}

/// Starts a server that says all that it can; answers where it listens.
fn serve(mut kagzi: Command, access: &Path, keys: &Path, log: &Path) -> (Child, String) {
    kagzi.args(["serve", "--listen", "127.0.0.1:0", "--log-level", "trace", "--access-file"]).arg(access);
    kagzi.arg("--jwt-keys").arg(keys).args(["--jwt-issuer", "acme", "--jwt-audience", "kagzi"]);
    kagzi.stdout(Stdio::piped()).stderr(std::fs::File::create(log).unwrap());
    let mut server = kagzi.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut said).unwrap();
    (server, format!("http://{}", said.trim().strip_prefix("listening on ").unwrap()))
}

/// Every command about runs that shows no payloads, with its exit code.
fn commands<'a>(run: &'a str, input: &'a str) -> [(Vec<&'a str>, i32); 8] {
    [
        (vec!["start", "weave", "--input", input], 0),
        (vec!["get", run], 0),
        (vec!["get", run, "--json"], 0),
        (vec!["steps", run], 0),
        (vec!["list"], 0),
        (vec!["dead-letters"], 0),
        (vec!["requeue", run], 1),
        (vec!["queues"], 0),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_show_nowhere_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let postgres = kagzi_testkit::postgres().await.unwrap();
    let database = postgres.fresh_database().await.unwrap();
    let store = database.url().replacen('@', &format!(":{STORE_PASSWORD}@"), 1);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (token, (keys, jwt)) = (NewToken::generate().unwrap(), jwt());
    let access = file(
        "access.toml",
        &format!(
            "[[principal]]\nname = 'ada'\ntokens = ['{}']\nsubjects = ['ada']\n\
             [[principal.grant]]\nrole = 'admin'\nnamespaces = ['*']\n",
            token.digest()
        ),
    );
    let keys = file("keys.json", &keys);
    let secrets = [
        token.reveal(),
        &token.digest()["sha256:".len()..],
        jwt.as_str(),
        WRONG_TOKEN,
        STORE_PASSWORD,
        INPUT,
        STEP_OUTPUT,
        RUN_OUTPUT,
        STEP_DETAILS,
        RUN_DETAILS,
    ];

    let server_log = directory.path().join("server.log");
    let kagzi = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.env("KAGZI_STORE", &store).env("KAGZI_TOKEN", token.reveal());
        command
    };
    let (mut server, url) = serve(kagzi(), &access, &keys, &server_log);

    let mut all = Vec::new();
    let mut ran = |whose: &str, output: Output| {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        all.push((whose.to_owned(), text(output.stdout)));
        all.push((whose.to_owned(), text(output.stderr)));
        output.status.code()
    };
    let mut options = GrpcOptions::default();
    options.token = Some(Token::new(&jwt).unwrap());
    let by_jwt = Client::connect_with(&url, &options).await.unwrap();
    options.token = Some(Token::new(WRONG_TOKEN).unwrap());
    let wrong = Client::connect_with(&url, &options).await.unwrap();
    let refused = format!("{0} {0:?}", wrong.queue_depths().await.unwrap_err());
    assert!(refused.contains("credentials"), "{refused}");

    let worker =
        Worker::builder(by_jwt.clone()).queue("default").register("weave", weave).register("fail", fail);
    let worker = tokio::spawn(worker.build().unwrap().run());
    let start = |of: &str| Start::workflow(of).input(INPUT).unwrap();
    let woven = by_jwt.start(start("weave")).await.unwrap();
    assert_eq!(woven.result::<String>().await.unwrap(), RUN_OUTPUT);
    let failed = by_jwt.start(start("fail")).await.unwrap();
    let error = failed.result::<String>().await.unwrap_err();
    worker.abort();

    let input = file("input.json", &json!(INPUT).to_string());
    let woven = woven.run_id().to_string();
    let input = format!("@{}", input.display());
    for (args, expected) in commands(&woven, &input) {
        let code = ran("the command line", kagzi().args(&args).args(["--server", &url]).output().unwrap());
        assert_eq!(code, Some(expected), "{args:?}");
    }
    let code = ran(
        "a refused command",
        kagzi().env("KAGZI_TOKEN", WRONG_TOKEN).args(["list", "--server", &url]).output().unwrap(),
    );
    assert_eq!(code, Some(6));
    for args in [["serve", "--help"].as_slice(), &["--help"], &["list", "--help"]] {
        assert_eq!(ran("--help", kagzi().args(args).output().unwrap()), Some(0));
    }
    server.kill().unwrap();
    server.wait().unwrap();

    let server_said = std::fs::read_to_string(&server_log).unwrap();
    assert!(server_said.contains("TRACE") && server_said.contains("DEBUG"), "it says all that it can");
    assert!(server_said.contains("kagzi::audit"), "it did what it was asked");
    assert_shows_none("the server", &server_said, &secrets);
    let worker_said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(worker_said.contains("TRACE"), "it says all that it can");
    assert_shows_none("the worker", &worker_said, &secrets);
    for (whose, said) in &all {
        assert_shows_none(whose, said, &secrets);
    }
    assert_shows_none("an error", &format!("{refused} {options:?} {by_jwt:?}"), &secrets);
    // What a failed run is told by has details as a payload: they do not show, but can be read.
    assert_shows_none("a failed run", &format!("{error} {error:?}"), &secrets);
}

/// A password that a URL is planted with; in a base64 text there may be any of its signs.
const PASSWORD: &str = "planted/Pass+word=";

/// What `kagzi` says to this, with variables and nothing of this process's own settings.
fn said(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    // None of the stores named here is worth waiting for.
    command.args(args).env("KAGZI_START_TIMEOUT", "0s").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn however_a_store_is_written_its_password_shows_in_no_refusal() {
    let secrets = [PASSWORD, "Pass+word"];
    for url in [
        "postgres://kagzi:PASSWORD@127.0.0.1:1/db",
        "postgres://kagzi:ab?PASSWORD@127.0.0.1:1/db",
        "postgres://kagzi:ab#PASSWORD@127.0.0.1:1/db",
        "postgres://kagzi:12/PASSWORD@127.0.0.1:1/db",
        "postgres://kagzi:PASSWORD",
        "postgres:kagzi:PASSWORD@127.0.0.1:1",
        "kagzi:PASSWORD@127.0.0.1:1/db",
        "host=127.0.0.1 user=kagzi password=PASSWORD",
        "postgres://kagzi@127.0.0.1:1/db?passw%6Frd=PASSWORD",
        "postgres://kagzi@127.0.0.1:1/db?password=PASSWORD",
        "postgres://kagzi@127.0.0.1:1/db?pass=PASSWORD",
        "postgres://kagzi@127.0.0.1:1/db?passwd=PASSWORD",
        "postgres://kagzi@127.0.0.1:1/db?PASSWORD",
        "mysql://kagzi:PASSWORD@127.0.0.1:1/db",
    ] {
        let url = url.replace("PASSWORD", PASSWORD);
        for command in ["serve", "migrate", "doctor", "backup"] {
            let args = if command == "backup" { vec![command, "--to", "/never/made"] } else { vec![command] };
            let (code, text) = said(&args, &[("KAGZI_STORE", &url), ("KAGZI_LOG_LEVEL", "trace")]);
            assert_ne!(code, Some(0), "{command} {url}: {text}");
            assert!(!text.is_empty());
            assert_shows_none(&format!("{command} of {url}"), &text, &secrets);
        }
        // A port that is none is refused for what it is; everything else as a password that everybody can read.
        let (code, text) = said(&["serve", "--store", &url], &[]);
        assert_eq!(code, Some(2), "{url}: {text}");
        assert_shows_none(&format!("serve --store {url}"), &text, &secrets);
    }
    let (_, text) = said(&["serve"], &[("KAGZI_STORE", "postgres://kagzi@127.0.0.1:1/db?pass=x")]);
    assert!(text.contains("got pass;") || text.contains("got pass\n"), "it is refused by name: {text}");
}

#[test]
fn passwords_of_other_urls_show_in_no_refusal_and_no_help() {
    let url = format!("https://kagzi:{PASSWORD}@127.0.0.1:1/?key={PASSWORD}");
    let variables = [
        ("KAGZI_STORE", url.as_str()),
        ("KAGZI_SERVER", &url),
        ("KAGZI_JWT_KEYS", &url),
        ("KAGZI_OTLP_ENDPOINT", &url),
    ];
    let secrets = [PASSWORD, "Pass+word"];
    for args in [["serve", "--help"].as_slice(), &["list", "--help"], &["doctor", "--help"], &["--help"]] {
        let (code, text) = said(args, &variables);
        assert_eq!(code, Some(0), "{text}");
        assert_shows_none(&format!("{args:?}"), &text, &secrets);
    }
    for address in
        ["http://kagzi:PASSWORD@127.0.0.1:1", "http://kagzi:a@PASSWORD@127.0.0.1:1", "kagzi:PASSWORD@h"]
    {
        for address in [address.replace("PASSWORD", PASSWORD), address.replace("PASSWORD", "planted-word")] {
            let (code, text) = said(&["list"], &[("KAGZI_SERVER", &address)]);
            assert!(matches!(code, Some(2 | 4)), "{text}");
            assert_shows_none(&address, &text, &["planted-word", "Pass+word"]);
        }
    }
    for (flag, field) in [("--jwt-keys", "jwt_keys: "), ("--otlp-endpoint", "otlp_endpoint: ")] {
        let (code, text) = said(&["serve", flag, &url], &[]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(field) && !text.contains("store: "), "{text}");
        assert_shows_none(flag, &text, &secrets);
    }
}

#[test]
fn a_server_that_cannot_use_its_files_and_keys_any_more_logs_no_secret_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let access = directory.path().join("access.toml");
    std::fs::write(&access, "[[principal]]\nname = 'ada'\n").unwrap();
    let mut kagzi = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    kagzi.args(["serve", "--listen", "127.0.0.1:0", "--store", "memory:", "--auth-reload-interval", "10ms"]);
    kagzi.arg("--access-file").arg(&access).args(["--jwt-issuer", "acme", "--jwt-audience", "kagzi"]);
    kagzi.env("KAGZI_JWT_KEYS", format!("https://u:{STORE_PASSWORD}@127.0.0.1:1/keys?key={WRONG_TOKEN}"));
    let mut server = kagzi.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let (mut log, mut lines) = (String::new(), BufReader::new(server.stderr.take().unwrap()));
    let mut read_until = |log: &mut String, expected: &str| {
        while !log.contains(expected) {
            assert_ne!(lines.read_line(log).unwrap(), 0, "it ended: {log}");
        }
    };
    // From here on it looks at the file.
    read_until(&mut log, "keys for JWTs stay");
    std::fs::write(&access, format!("[[principal]]\nname = 'ada'\ntokens = \"{WRONG_TOKEN}\"\n")).unwrap();
    read_until(&mut log, "access file is not used");
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(log.contains("line 3: ") && log.contains("expected a list"), "{log}");
    assert!(log.contains("https://***@127.0.0.1:1/keys?key=***"), "{log}");
    assert_shows_none("the server", &log, &[STORE_PASSWORD, WRONG_TOKEN]);
    let (code, text) = said(&["serve", "--store", "memory:", "--access-file", access.to_str().unwrap()], &[]);
    assert_eq!(code, Some(2), "{text}");
    assert_shows_none("a refused access file", &text, &[WRONG_TOKEN]);
}
