//! The service's directory, its admin's commands, its log, and how it listens.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use attestation::HostKey;
use hgs::server::{self, Transport};
use hgs::{Error, Hgs, InitOptions};
use hgs_client::{self as client, HgsClient};
use support::{HOST, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn keys_are_private_and_a_service_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a").join("hgs");
    let made = Hgs::init(&dir, InitOptions::default()).await.unwrap();
    assert_eq!(mode(&dir), 0o700);
    for secret in ["guardian.pem", "attestation-ca.pem", "tls-ca.pem", "audit-key.pem", "challenge.key"] {
        assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(fs::read_to_string(made.ca_file()).unwrap(), made.ca_pem());
    assert!(!made.ca_pem().contains("PRIVATE"));

    assert!(matches!(Hgs::init(&dir, InitOptions::default()).await, Err(Error::AlreadyThere { .. })));
    assert!(matches!(Hgs::open(folder.path()).await, Err(Error::NotThere { .. })));
    let opened = Hgs::open(&dir).await.unwrap();
    assert!(opened.guardian().signing() == made.guardian().signing());
    assert_eq!(opened.ca_pem(), made.ca_pem());

    fs::set_permissions(dir.join("attestation-ca.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Hgs::open(&dir).await, Err(Error::Exposed { mode: 0o640, .. })));
}

#[tokio::test]
async fn a_name_no_certificate_can_carry_leaves_no_service_behind() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("hgs");
    let options = InitOptions { server_names: vec!["höst".into()], ..InitOptions::default() };
    assert!(matches!(Hgs::init(&dir, options).await, Err(Error::Certificate(_))));
    assert!(!dir.exists());
}

#[tokio::test]
async fn hosts_are_added_once_and_removed_by_name() {
    let world = World::start().await;
    let hgs = &world.hgs;
    let other = HostKey::generate().unwrap();
    assert!(matches!(hgs.add_host(HOST, other.public_pem().as_bytes()).await, Err(Error::HostExists { .. })));
    let same = world.host_key.public_pem();
    assert!(matches!(hgs.add_host("other", same.as_bytes()).await, Err(Error::KeyExists { name }) if name == HOST));
    for bad in ["", "a b", "a/b", "ü", &"x".repeat(65)] {
        let added = hgs.add_host(bad, other.public_pem().as_bytes()).await;
        assert!(matches!(added, Err(Error::BadHostName { .. })), "{bad}");
    }
    for bad in [b"".as_slice(), b"key", other.to_pem().as_bytes(), &[0x30; 91]] {
        assert!(matches!(hgs.add_host("other", bad).await, Err(Error::BadHostKey(_))));
    }
    hgs.add_host("other", other.public().unwrap().der()).await.unwrap();
    let names: Vec<String> = hgs.hosts().await.unwrap().into_iter().map(|host| host.name).collect();
    assert_eq!(names, [HOST, "other"]);
    hgs.remove_host("other").await.unwrap();
    assert!(matches!(hgs.remove_host("other").await, Err(Error::NoSuchHost { .. })));
    assert_eq!(world.last().await.0, "host-removed");
    world.shut_down().await;
}

#[tokio::test]
async fn a_flood_of_strangers_does_not_fill_the_log() {
    let world = World::start().await;
    for _ in 0..100 {
        world.post("/attestation/v2.0/hostkeyattest", "garbage").await;
    }
    let rows = world.hgs.audit(1000).await.unwrap().len();
    assert!((50..80).contains(&rows), "{rows}");
    world.shut_down().await;
}

#[tokio::test]
async fn plain_http_is_refused_where_others_could_listen() {
    let world = World::start().await;
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused =
        server::serve(Arc::clone(&world.hgs), everywhere, Transport::PlainHttp { force: false }, async {}).await;
    assert!(matches!(refused, Err(Error::PlainHttpExposed { .. })));
    let forced = Transport::PlainHttp { force: true };
    server::serve(Arc::clone(&world.hgs), everywhere, forced, async {}).await.unwrap().wait().await.unwrap();
    for url in ["http://192.0.2.1:1", "http://hgs.example", "http://127.0.0.1.example"] {
        assert!(matches!(HgsClient::new(url, None), Err(client::Error::PlainHttp { .. })), "{url}");
    }
    for url in ["", "hgs.example", "ftp://hgs.example", "https://"] {
        assert!(matches!(HgsClient::new(url, None), Err(client::Error::BadUrl { .. })), "{url}");
    }
    assert!(matches!(HgsClient::new(&world.url, Some(b"pem")), Err(client::Error::BadCa)));
    world.shut_down().await;
}

#[tokio::test]
async fn the_client_says_who_did_not_answer_and_why() {
    let world = World::start().await;
    let elsewhere = World::start().await;
    // Another service's CA: what answers is an impostor.
    let client = HgsClient::new(&world.url, Some(elsewhere.hgs.ca_pem().as_bytes())).unwrap();
    let error = client.attest(&world.host_key).await.err().unwrap();
    assert!(matches!(error, client::Error::Impostor { .. }), "{error:?}");
    // The right CA, but a name that is not in the certificate.
    let url = world.url.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let client = HgsClient::new(&url, Some(world.hgs.ca_pem().as_bytes())).unwrap();
    let error = client.attest(&world.host_key).await.err().unwrap();
    assert!(matches!(error, client::Error::Impostor { .. }), "{error:?}");
    // Nobody.
    let (url, ca) = (elsewhere.url.clone(), elsewhere.hgs.ca_pem().to_owned());
    elsewhere.shut_down().await;
    let client = HgsClient::new(&url, Some(ca.as_bytes())).unwrap();
    let error = client.attest(&world.host_key).await.err().unwrap();
    assert!(matches!(error, client::Error::Unreachable { .. }), "{error:?}");
    world.shut_down().await;
}

/// A body without an announced length is cut at the limit, and a client that sends nothing is let go at shutdown.
#[tokio::test]
async fn bodies_in_chunks_are_limited_and_idle_connections_do_not_hold_shutdown_up() {
    let world = World::over(Transport::PlainHttp { force: false }).await;
    let idle = TcpStream::connect(world.address).await.unwrap();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = "POST /attestation/v2.0/hostkeyattest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    for _ in 0..64 {
        // The service may have answered and closed already.
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    let line = String::from_utf8_lossy(&answer[..length]);
    assert!(length == 0 || line.starts_with("HTTP/1.1 413"), "{line}");
    let started = std::time::Instant::now();
    world.shut_down().await;
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    drop(idle);
}

/// A directory and a store from before rows were signed: nothing is lost, a new log begins, and the protectors
/// that are in use begin chains.
#[tokio::test]
async fn a_service_of_an_earlier_version_goes_on() {
    let world = World::start().await;
    let client = world.client();
    let health = client.attest(&world.host_key).await.unwrap();
    let rolled = client.roll_transport_key(&world.protector(&[]).0, &health).await.unwrap();
    let mut store = world.store().await;
    for statement in [
        "DROP TABLE audit",
        "ALTER TABLE audit_unsigned RENAME TO audit",
        "DROP TABLE service",
        "DROP TABLE answered",
        "DROP TABLE settings",
        "DROP TABLE chains",
        "DROP TABLE permits",
        "DROP INDEX protectors_chain",
        "DELETE FROM protectors WHERE generation = 0",
        "ALTER TABLE protectors DROP COLUMN chain",
        "ALTER TABLE protectors DROP COLUMN generation",
        "DELETE FROM _sqlx_migrations WHERE version = 4",
        "INSERT INTO audit (seq, at, event, host, host_key, protector, owner, why, previous, hash) \
         VALUES (1, 1, 'attested', 'host-1', '', '', '', '', '', '')",
    ] {
        sqlx::query(statement).execute(&mut store).await.unwrap();
    }
    for file in ["audit-key.pem", "challenge.key"] {
        fs::remove_file(world.dir().join(file)).unwrap();
    }

    let hgs = Hgs::open(&world.dir()).await.unwrap();
    assert_eq!(mode(&world.dir().join("audit-key.pem")), 0o600);
    assert_eq!(hgs.verify_audit_since(None).await.unwrap().0, 0);
    assert_eq!(hgs.hosts().await.unwrap()[0].name, HOST);
    let old: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit_unsigned").fetch_one(&mut store).await.unwrap();
    assert_eq!(old, 1);
    let in_use = hgs.in_use().await.unwrap();
    assert_eq!((in_use.len(), &in_use[0].digest), (1, &rolled.egress_protector.digest()));
    // Opened again, it is the same service with the same keys.
    let again = Hgs::open(&world.dir()).await.unwrap();
    again.set_strict(true).await.unwrap();
    hgs.verify_audit().await.unwrap();
    world.shut_down().await;
}
