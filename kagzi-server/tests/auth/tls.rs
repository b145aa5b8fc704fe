//! TLS: who is trusted on either side, and certificates that are renewed.

use kagzi_sdk::Client;
use kagzi_sdk::transport::{GrpcOptions, Tls, Token};
use kagzi_server::{Server, ServerConfig, ServerHandle};
use rcgen::SanType;

use crate::pki::{Authority, Identity};
use crate::support::*;

const ADMIN: &str = "role = \"admin\"\nnamespaces = [\"*\"]";

/// A server with a certificate of `authority`, and the entries of its access file.
async fn serve_tls(files: &Files, authority: &Authority, clients: &Authority, access: &str) -> ServerHandle {
    let own = authority.server();
    serve(ServerConfig {
        tls_cert: Some(files.write("server.pem", own.certificate)),
        tls_key: Some(files.write("server.key", own.key)),
        tls_client_ca: Some(files.write("clients.pem", clients.pem())),
        access_file: Some(files.write("access.toml", access)),
        ..config()
    })
    .await
}

fn options(authority: &Authority, identity: Option<&Identity>, token: Option<&str>) -> GrpcOptions {
    let mut options = GrpcOptions::default();
    options.tls = Tls::default().authorities(authority.pem()).unwrap();
    if let Some(Identity { certificate, key }) = identity {
        options.tls = options.tls.identity(certificate.as_str(), key.as_str()).unwrap();
    }
    options.token = token.map(|token| Token::new(token).unwrap());
    options
}

/// What becomes of a call: nothing, or what is said.
async fn ask(server: &ServerHandle, options: &GrpcOptions) -> Result<(), String> {
    let client = Client::connect_with(server.url(), options).await.map_err(|error| error.to_string())?;
    let client = client.with_patience(std::time::Duration::ZERO);
    client.queue_depths().await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn tokens_and_certificates_get_in_side_by_side_and_strangers_of_either_kind_do_not() {
    let (files, ours, theirs) = (Files::new(), Authority::new("ours"), Authority::new("theirs"));
    let by_token = known("by-token", &[ADMIN]);
    let by_certificate = ["uri:spiffe://acme/w", "dns:w.internal", "cn:Old Worker"].map(|name| {
        format!(
            "[[principal]]\nname = \"{name}\"\ncertificates = [\"{name}\"]\n[[principal.grant]]\n{ADMIN}\n"
        )
    });
    let access = format!("{}{}", by_token.entry, by_certificate.concat());
    let server = serve_tls(&files, &ours, &ours, &access).await;
    assert!(server.url().starts_with("https://"));

    let uri = || SanType::URI("spiffe://acme/w".try_into().unwrap());
    let certificates = [
        ours.client(uri()),
        ours.client(SanType::DnsName("w.internal".try_into().unwrap())),
        ours.client_by_common_name("Old Worker"),
    ];
    for identity in &certificates {
        ask(&server, &options(&ours, Some(identity), None)).await.unwrap();
    }
    ask(&server, &options(&ours, None, Some(&by_token.token))).await.unwrap();
    ask(&server, &options(&ours, Some(&certificates[0]), Some(&by_token.token))).await.unwrap();

    let refused = |why: &str, answer: Result<(), String>| {
        let said = answer.unwrap_err();
        assert!(said.contains(why), "{said}");
    };
    refused("got none", ask(&server, &options(&ours, None, None)).await);
    refused("not known", ask(&server, &options(&ours, None, Some("kagzi_guess"))).await);
    let both = options(&ours, Some(&certificates[0]), Some("kagzi_guess"));
    refused("not known", ask(&server, &both).await);
    let unknown = ours.client(SanType::DnsName("x.internal".try_into().unwrap()));
    refused("no right", ask(&server, &options(&ours, Some(&unknown), None)).await);
    // Of an authority that nobody named: the handshake fails, whatever the name.
    let forged = theirs.client(uri());
    assert!(ask(&server, &options(&ours, Some(&forged), None)).await.is_err());
    // Certificates of servers are none of clients.
    assert!(ask(&server, &options(&ours, Some(&ours.server()), None)).await.is_err());
    refused("UnknownIssuer", ask(&server, &options(&theirs, None, Some(&by_token.token))).await);
    let mut misnamed = options(&ours, None, Some(&by_token.token));
    misnamed.tls = misnamed.tls.server_name("elsewhere.example");
    refused("not valid for name", ask(&server, &misnamed).await);

    // Nobody gets anywhere without TLS.
    let plain = server.url().replace("https://", "http://");
    let mut lazy = GrpcOptions::default();
    lazy.token = Some(Token::new(&by_token.token).unwrap());
    let answer = match Client::connect_with(&plain, &lazy).await {
        Ok(client) => client.with_patience(std::time::Duration::ZERO).queue_depths().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(answer.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let (files, old, new) = (Files::new(), Authority::new("old"), Authority::new("new"));
    let ada = known("ada", &[ADMIN]);
    let server = serve_tls(&files, &old, &old, &ada.entry).await;
    let (by_old, by_new) = (options(&old, None, Some(&ada.token)), options(&new, None, Some(&ada.token)));
    ask(&server, &by_old).await.unwrap();
    let renewed = new.server();
    // Until its key comes along, the new certificate is of no use, and the old one stays.
    files.write("server.pem", &renewed.certificate);
    for _ in 0..20 {
        ask(&server, &by_old).await.unwrap();
    }
    files.write("server.key", &renewed.key);
    soon(async { while ask(&server, &by_new).await.is_err() {} }).await;
    assert!(ask(&server, &by_old).await.is_err());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_by_name_and_without_what_they_hold() {
    let (files, authority) = (Files::new(), Authority::new("a"));
    let (one, other) = (authority.server(), authority.server());
    let cases = [
        (one.certificate.as_str(), "no key: s3cret", "tls_key: expected a PEM file"),
        ("no certificate: s3cret", one.key.as_str(), "tls_cert: expected a PEM file"),
        (one.certificate.as_str(), other.key.as_str(), "tls_key: expected the key of the certificate"),
    ];
    for (certificate, key, expected) in cases {
        let refused = Server::bind(ServerConfig {
            tls_cert: Some(files.write("c.pem", certificate)),
            tls_key: Some(files.write("k.pem", key)),
            ..config()
        });
        let said = refused.await.unwrap_err().to_string();
        assert!(said.contains(expected) && !said.contains("s3cret"), "{said}");
    }
    let missing = ServerConfig {
        tls_cert: Some(files.path("no-such.pem")),
        tls_key: Some(files.path("no-such.key")),
        ..config()
    };
    let said = Server::bind(missing).await.unwrap_err().to_string();
    assert!(said.contains("no-such.pem"), "{said}");
}
