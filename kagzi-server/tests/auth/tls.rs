//! TLS: who is trusted on either side, and certificates that are renewed.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use kagzi_sdk::Client;
use kagzi_sdk::transport::{GrpcOptions, Tls, Token};
use kagzi_server::{Server, ServerConfig, ServerHandle};
use rcgen::SanType;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
#[cfg(target_os = "linux")]
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

#[cfg(unix)]
use crate::audit::Served;
use crate::jwt::Stream;
use crate::pki::{Authority, Identity};
use crate::support::*;

const ADMIN: &str = "role = \"admin\"\nnamespaces = [\"*\"]";

/// A server with a certificate of `authority`, and the entries of its access file.
async fn serve_tls(files: &Files, authority: &Authority, clients: &Authority, access: &str) -> ServerHandle {
    serve(with_tls(files, authority, clients, access)).await
}

pub fn with_tls(files: &Files, authority: &Authority, clients: &Authority, access: &str) -> ServerConfig {
    let own = authority.server();
    ServerConfig {
        tls_cert: Some(files.write("server.pem", own.certificate)),
        tls_key: Some(files.write("server.key", own.key)),
        tls_client_ca: Some(files.write("clients.pem", clients.pem())),
        access_file: Some(files.write("access.toml", access)),
        ..config()
    }
}

pub fn options(authority: &Authority, identity: Option<&Identity>, token: Option<&str>) -> GrpcOptions {
    let mut options = GrpcOptions::default();
    options.tls = Tls::default().authorities(authority.pem()).unwrap();
    if let Some(Identity { certificate, key }) = identity {
        options.tls = options.tls.identity(certificate.as_str(), key.as_str()).unwrap();
    }
    options.token = token.map(|token| Token::new(token).unwrap());
    options
}

/// What becomes of a call: nothing, or what is said.
pub async fn ask(server: &ServerHandle, options: &GrpcOptions) -> Result<(), String> {
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
    refused("not known", ask(&server, &options(&ours, Some(&unknown), None)).await);
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
async fn a_certificate_that_expires_while_its_connection_lasts_lets_nobody_in_any_more_and_the_connection_ends()
 {
    let (files, ours) = (Files::new(), Authority::new("ours"));
    let access =
        format!("[[principal]]\nname = \"w\"\ncertificates = [\"dns:w\"]\n[[principal.grant]]\n{ADMIN}\n");
    let server = serve_tls(&files, &ours, &ours, &access).await;
    let soon_over = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(3);
    let brief = ours.client_until(SanType::DnsName("w".try_into().unwrap()), soon_over);
    let client = Client::connect_with(server.url(), &options(&ours, Some(&brief), None)).await.unwrap();
    let client = client.with_patience(std::time::Duration::ZERO);
    client.queue_depths().await.unwrap();
    let refused = async |when: fn(&str) -> bool| {
        loop {
            match client.queue_depths().await.map_err(|error| error.to_string()) {
                Err(said) if when(&said) => return said,
                _ => {}
            }
        }
    };
    let first = soon(refused(|_| true)).await;
    assert!(first.contains("one that has expired"), "{first}");
    // On another connection it does not even get through the handshake.
    soon(refused(|said| !said.contains("one that has expired"))).await;
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
async fn an_authority_that_is_taken_back_while_the_server_starts_vouches_for_nobody() {
    let (files, ours, theirs) = (Files::new(), Authority::new("ours"), Authority::new("theirs"));
    let access =
        format!("[[principal]]\nname = \"w\"\ncertificates = [\"dns:w\"]\n[[principal.grant]]\n{ADMIN}\n");
    let server = Server::bind(with_tls(&files, &ours, &theirs, &access)).await.unwrap();
    files.write("clients.pem", ours.pem());
    let server = server.spawn();
    let name = || SanType::DnsName("w".try_into().unwrap());
    let (by_ours, by_theirs) = (ours.client(name()), theirs.client(name()));
    soon(async { while ask(&server, &options(&ours, Some(&by_ours), None)).await.is_err() {} }).await;
    assert!(ask(&server, &options(&ours, Some(&by_theirs), None)).await.is_err());
}

/// A channel over one connection, by this certificate: once it has ended, there is no other.
async fn over_one_connection(server: &ServerHandle, authority: &Authority, identity: &Identity) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let chain = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let mut rules = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)
        .unwrap();
    rules.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let name = ServerName::from(server.local_addr().ip());
    let stream = TlsConnector::from(Arc::new(rules)).connect(name, stream).await.unwrap();
    let mut once = Some(TokioIo::new(stream));
    let connect = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        async { stream }
    });
    Endpoint::from_static("http://kagzi").connect_with_connector(connect).await.unwrap()
}

#[tokio::test]
async fn an_authority_that_is_taken_back_vouches_for_nobody_on_connections_that_are_open_either() {
    const WORKER: &str = "role = \"worker\"\nnamespaces = [\"*\"]\nqueues = [\"q\"]";
    let (files, taken_back, kept) = (Files::new(), Authority::new("a"), Authority::new("b"));
    let entry = |name: &str| {
        format!(
            "[[principal]]\nname = \"{name}\"\ncertificates = [\"dns:{name}\"]\n[[principal.grant]]\n{WORKER}\n"
        )
    };
    let config = with_tls(&files, &kept, &kept, &(entry("ada") + &entry("bob")));
    let both = taken_back.pem() + &kept.pem();
    files.write("clients.pem", &both);
    let server = serve(config).await;
    let named = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let (by_ada, by_bob) = (taken_back.client(named("ada")), kept.client(named("bob")));
    let mut ada = Caller::over(&over_one_connection(&server, &kept, &by_ada).await, None);
    let mut bob = Caller::over(&over_one_connection(&server, &kept, &by_bob).await, None);
    ada.ask().await.unwrap();
    bob.ask().await.unwrap();
    let (mut of_ada, mut of_bob) = (Stream::open(&mut ada).await, Stream::open(&mut bob).await);

    files.write("clients.pem", kept.pem());
    let refused = soon(async {
        loop {
            if let Err(refused) = ada.ask().await {
                return refused;
            }
        }
    })
    .await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("no authority of tls_client_ca vouches"), "{refused:?}");
    assert_eq!(of_ada.end().await, Code::Unauthenticated);
    bob.ask().await.unwrap();
    of_bob.must_answer().await;

    // Given back, it vouches again, on the same connection.
    files.write("clients.pem", both);
    soon(async { while ada.ask().await.is_err() {} }).await;
}

/// Only Linux has more than one address on every machine.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn strangers_who_connect_and_say_nothing_keep_nobody_else_from_connecting() {
    const STRANGERS: usize = 800;
    let (files, authority, ada) = (Files::new(), Authority::new("ours"), known("ada", &[ADMIN]));
    let server = serve(ServerConfig {
        http_listen: Some("127.0.0.1:0".to_owned()),
        ..with_tls(&files, &authority, &authority, &ada.entry)
    })
    .await;
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let stranger = TcpSocket::new_v4().unwrap();
        stranger.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        strangers.push(soon(stranger.connect(server.local_addr())).await.unwrap());
    }
    soon(ask(&server, &options(&authority, None, Some(&ada.token)))).await.unwrap();
    let refused = async || {
        let page = kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
        let series = "kagzi_refusals_total{reason=\"connections\"} ";
        let value = page.lines().find_map(|line| line.strip_prefix(series));
        value.unwrap_or_else(|| panic!("{series} in {page}")).parse::<usize>().unwrap()
    };
    // Those beyond the places of their address are gone already, not only those that took too long.
    soon(async { while refused().await < STRANGERS - 100 {} }).await;
    drop(strangers);
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

/// What the log says of the key; the server has begun to serve by then.
#[cfg(unix)]
#[test]
fn a_key_that_everybody_on_the_machine_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true), (0o602, true)] {
        let (files, own) = (Files::new(), Authority::new("a").server());
        let (cert, key) = (files.write("c.pem", own.certificate), files.write("k.pem", own.key));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let args = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        drop(Served::new(&files, &args));
        let log = std::fs::read_to_string(files.path("log")).unwrap();
        assert_eq!(log.contains("may read the key of TLS"), warned, "{mode:o}: {log}");
        assert_eq!(log.contains(&format!("{mode:04o}")), warned, "{log}");
    }
}
