//! Files in whose place stands something that never answers.
#![cfg(unix)]

use kagzi_server::{AccessError, Server, ServerConfig, ServerError, ServerHandle};
use tonic::Code;

use crate::audit::{lines, pause};
use crate::jwt::{HOUR, Issuer, in_file, with_keys};
use crate::pki::Authority;
use crate::support::*;
use crate::tls;

const OPERATOR: &str = "role = 'operator'\nnamespaces = ['default']";

/// Puts a pipe that nobody writes to in the place of a file.
fn hang(files: &Files, name: &str) {
    let pipe = files.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    std::fs::rename(pipe, files.path(name)).unwrap();
}

fn with_http(config: ServerConfig) -> ServerConfig {
    ServerConfig { http_listen: Some("127.0.0.1:0".to_owned()), ..config }
}

async fn page(server: &ServerHandle, path: &str) -> String {
    soon(kagzi_testkit::http_get(server.http_addr().unwrap(), path)).await.unwrap()
}

/// Until the server says of a file that it cannot be used, or that it can; all the while it answers.
async fn shows(server: &ServerHandle, file: &str, unusable: u8) {
    let line = format!("kagzi_file_unusable{{file=\"{file}\"}} {unusable}\n");
    soon(async { while !page(server, "/metrics").await.contains(&line) {} }).await;
    assert!(page(server, "/livez").await.ends_with("alive\n"));
}

/// Ends it, which no pipe holds up.
async fn end(server: ServerHandle) {
    soon(server.shutdown()).await.unwrap();
}

#[tokio::test]
async fn an_access_file_that_hangs_leaves_who_may_come_as_it_was() {
    let (files, ada, bob) = (Files::new(), known("ada", &[OPERATOR]), known("bob", &[OPERATOR]));
    let access_file = Some(files.write("access.toml", &ada.entry));
    let server = serve(with_http(ServerConfig { access_file, ..config() })).await;
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    hang(&files, "access.toml");
    shows(&server, "access_file", 1).await;
    soon(by_ada.ask()).await.unwrap();
    files.write("access.toml", &bob.entry);
    shows(&server, "access_file", 0).await;
    assert_eq!(code(by_ada.ask().await), Code::Unauthenticated);
    Caller::with_token(&server, &bob.token).await.ask().await.unwrap();
    hang(&files, "access.toml");
    shows(&server, "access_file", 1).await;
    end(server).await;
}

#[tokio::test]
async fn an_access_file_that_names_nobody_is_unusable_and_throws_nobody_out() {
    let (files, ada) = (Files::new(), known("ada", &[OPERATOR]));
    let access = files.write("access.toml", "");
    let closed = || with_http(ServerConfig { access_file: Some(access.clone()), ..config() });
    let refused = Server::bind(closed()).await.unwrap_err();
    assert!(matches!(refused, ServerError::Access(AccessError::Nobody { .. })), "{refused}");
    files.write("access.toml", &ada.entry);
    let server = serve(closed()).await;
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    for empty in ["", "# to be filled in\n"] {
        files.write("access.toml", empty);
        shows(&server, "access_file", 1).await;
        soon(by_ada.ask()).await.unwrap();
        files.write("access.toml", &ada.entry);
        shows(&server, "access_file", 0).await;
    }
    end(server).await;
}

#[tokio::test]
async fn keys_of_jwts_that_hang_leave_those_that_count_as_they_were() {
    let (files, old, new) = (Files::new(), Issuer::new("old"), Issuer::new("new"));
    let server = serve(with_http(with_keys(&files, in_file(&files, &[&old])))).await;
    let mut by_old = Caller::with_token(&server, &old.token("acme|ada", HOUR)).await;
    hang(&files, "keys.json");
    shows(&server, "jwt_keys", 1).await;
    soon(by_old.ask()).await.unwrap();
    in_file(&files, &[&new]);
    shows(&server, "jwt_keys", 0).await;
    assert_eq!(code(by_old.ask().await), Code::Unauthenticated);
    Caller::with_token(&server, &new.token("acme|ada", HOUR)).await.ask().await.unwrap();
    hang(&files, "keys.json");
    shows(&server, "jwt_keys", 1).await;
    end(server).await;
}

#[tokio::test]
async fn files_of_tls_that_hang_leave_the_certificate_and_the_authorities_as_they_were() {
    let (files, old, new) = (Files::new(), Authority::new("old"), Authority::new("new"));
    let ada = known("ada", &[OPERATOR]);
    let server = serve(with_http(tls::with_tls(&files, &old, &old, &ada.entry))).await;
    let (by_old, by_new) =
        (tls::options(&old, None, Some(&ada.token)), tls::options(&new, None, Some(&ada.token)));
    for name in ["server.pem", "server.key", "clients.pem"] {
        let kept = std::fs::read(files.path(name)).unwrap();
        hang(&files, name);
        shows(&server, "tls_cert", 1).await;
        soon(tls::ask(&server, &by_old)).await.unwrap();
        files.write(name, kept);
        shows(&server, "tls_cert", 0).await;
    }
    let renewed = new.server();
    files.write("server.key", &renewed.key);
    files.write("server.pem", &renewed.certificate);
    soon(async { while tls::ask(&server, &by_new).await.is_err() {} }).await;
    shows(&server, "tls_cert", 0).await;
    hang(&files, "server.key");
    shows(&server, "tls_cert", 1).await;
    end(server).await;
}

#[tokio::test]
async fn a_record_that_could_not_be_opened_anew_stays_unusable_though_the_old_one_takes_its_lines() {
    let (files, op) = (Files::new(), known("op", &[OPERATOR]));
    let server = serve(with_http(ServerConfig {
        access_file: Some(files.write("access.toml", &op.entry)),
        audit_log: Some(files.path("audit.jsonl")),
        ..config()
    }))
    .await;
    let mut op = Caller::with_token(&server, &op.token).await;
    let mut act = async |expected: usize, name: &str| {
        op.workflows.pause_queue(pause("q")).await.unwrap();
        assert_eq!(lines(&files, name).len(), expected);
    };
    act(2, "audit.jsonl").await;
    std::fs::rename(files.path("audit.jsonl"), files.path("audit.1")).unwrap();
    hang(&files, "audit.jsonl");
    server.reload().now();
    shows(&server, "audit_log", 1).await;
    act(4, "audit.1").await;
    assert!(page(&server, "/metrics").await.contains("kagzi_file_unusable{file=\"audit_log\"} 1\n"));
    std::fs::remove_file(files.path("audit.jsonl")).unwrap();
    server.reload().now();
    shows(&server, "audit_log", 0).await;
    act(2, "audit.jsonl").await;
    // It is not told, but sees for itself, that its file was deleted.
    std::fs::rename(files.path("audit.jsonl"), files.path("audit.1")).unwrap();
    hang(&files, "audit.jsonl");
    server.reload().now();
    shows(&server, "audit_log", 1).await;
    for name in ["audit.jsonl", "audit.1"] {
        std::fs::remove_file(files.path(name)).unwrap();
    }
    act(2, "audit.jsonl").await;
    shows(&server, "audit_log", 0).await;
}
