//! A server that others can reach asks who calls and encrypts, or is told that something else does.

use std::process::Command;

use kagzi_server::{Exposure, Server, ServerConfig, ServerError};

use crate::pki::Authority;
use crate::support::*;

#[tokio::test]
async fn beyond_loopback_a_server_needs_authentication_and_tls_or_to_be_told_that_it_does_not() {
    let (files, own) = (Files::new(), Authority::new("a").server());
    let access = files.write("access.toml", known("ada", &[]).entry);
    let (cert, key) = (files.write("c.pem", own.certificate), files.write("k.pem", own.key));
    let beyond = || ServerConfig { listen: "0.0.0.0:0".to_owned(), ..config() };
    let with_access = |config| ServerConfig { access_file: Some(access.clone()), ..config };
    let with_tls =
        |config| ServerConfig { tls_cert: Some(cert.clone()), tls_key: Some(key.clone()), ..config };
    let cases = [
        (beyond(), "neither authentication nor TLS"),
        (ServerConfig { listen: "[::]:0".to_owned(), ..config() }, "neither authentication nor TLS"),
        (with_access(beyond()), "no TLS"),
        (with_tls(beyond()), "no authentication"),
    ];
    for (config, lacks) in cases {
        let refused = Server::bind(config).await.unwrap_err();
        assert!(matches!(refused, ServerError::Exposed { .. }), "{refused:?}");
        let said = refused.to_string();
        for part in [lacks, "listen on loopback", "access_file", "tls_cert", "--insecure"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    Server::bind(with_access(with_tls(beyond()))).await.unwrap();
    Server::bind(ServerConfig { exposure: Exposure::Insecure, ..beyond() }).await.unwrap();
    for near in ["127.0.0.1:0", "localhost:0"] {
        Server::bind(ServerConfig { listen: near.to_owned(), ..config() }).await.unwrap();
    }
}

#[test]
fn the_command_says_so_with_the_exit_code_for_usage() {
    let files = Files::new();
    let database = files.path("dev.db");
    for args in [["serve", "--store", "memory:"], ["dev", "--db", database.to_str().unwrap()]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        let refused = command.args(args).args(["--listen", "0.0.0.0:0"]).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("three ways out") && said.contains("--insecure"), "{said}");
    }
    assert!(!database.exists(), "it is refused before anything is made");
}

#[test]
fn a_server_refuses_a_password_that_everybody_could_read_and_does_not_repeat_it() {
    for store in
        [["--store", "postgres://u:s3cret@127.0.0.1:1/db"].as_slice(), &["--store=postgres://u:s3cret@h/d"]]
    {
        let refused = Command::new(env!("CARGO_BIN_EXE_kagzi")).arg("serve").args(store).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("KAGZI_STORE") && !said.contains("s3cret"), "{said}");
    }
}
