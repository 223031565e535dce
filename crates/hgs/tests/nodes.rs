//! Several nodes of one service, on one PostgreSQL, and how a node gets the service's keys.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use attestation::messages::{AttestationRequest, Reply};
use attestation::tpm::{Blob, Context, qualifying_data};
use attestation::{HostKey, IdentityKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::server::{self, Serving, Transport};
use hgs::{Error, Hgs, InitOptions, StoreUrl};
use hgs_client::HgsClient;
use key_protector::Protector;
use reqwest::StatusCode;
use support::boot::{Machine, boot, log};
use support::{HOST, World, passphrase, postgres};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tpm::HostTpm;

const ATTEST: &str = "/attestation/v2.0/attest";

/// A further node.
struct Node {
    hgs: Arc<Hgs>,
    url: String,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    serving: Serving,
}

impl Node {
    async fn of(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let exported = world.hgs.export(&passphrase()).await.unwrap();
        let hgs = Hgs::import(&folder.path().join("hgs"), exported, &passphrase(), None).await.unwrap();
        let hgs = Arc::new(hgs);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let serving = server::serve(Arc::clone(&hgs), address, Transport::Https, shutdown).await.unwrap();
        let url = format!("https://127.0.0.1:{}", serving.local_addr().port());
        Node { hgs, url, folder, stop, serving }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.wait().await.unwrap();
    }
}

#[tokio::test]
async fn nodes_know_the_same_and_hosts_need_one_ca() {
    let world = World::start().await;
    let node = Node::of(&world).await;
    // The first node's CA file: for a host they are one service.
    let there = HgsClient::new(&node.url, Some(world.hgs.ca_pem().as_bytes())).unwrap();
    let here = world.client();
    let (protector, key) = world.protector(&[]);
    let health = here.attest(&world.host_key).await.unwrap();
    let rolled = there.roll_transport_key(&protector, &health).await.unwrap();
    assert_eq!(rolled.ingress.expose(), key.expose());
    let rolled = here.roll_transport_key(&rolled.egress_protector, &health).await.unwrap();
    there.roll_transport_key(&rolled.egress_protector, &health).await.unwrap();

    node.hgs.remove_host(HOST).await.unwrap();
    for client in [&here, &there] {
        assert!(client.roll_transport_key(&rolled.egress_protector, &health).await.is_err());
        assert!(client.attest(&world.host_key).await.is_err());
    }
    let key = HostKey::generate().unwrap();
    world.hgs.add_host("host-2", key.public_pem().as_bytes()).await.unwrap();
    there.attest(&key).await.unwrap();
    // A setting too.
    world.hgs.set_strict(true).await.unwrap();
    assert!(node.hgs.strict().await.unwrap());
    assert_eq!(world.hgs.verify_audit().await.unwrap(), node.hgs.verify_audit().await.unwrap());
    let events: Vec<String> = node.hgs.audit(100).await.unwrap().into_iter().map(|entry| entry.event).collect();
    assert_eq!(events[..3], ["host-added", "keys-exported", "keys-imported"]);
    node.stop().await;
    world.shut_down().await;
}

#[tokio::test]
async fn a_stale_protector_is_stale_at_every_node() {
    let world = World::start().await;
    let node = Node::of(&world).await;
    world.hgs.set_strict(true).await.unwrap();
    let there = HgsClient::new(&node.url, Some(world.hgs.ca_pem().as_bytes())).unwrap();
    let here = world.client();
    let (first, _) = world.protector(&[]);
    let health = here.attest(&world.host_key).await.unwrap();
    let second = here.roll_transport_key(&first, &health).await.unwrap().egress_protector;
    here.roll_transport_key(&second, &health).await.unwrap();
    assert!(there.roll_transport_key(&first, &health).await.is_err());
    assert!(there.roll_transport_key(&second, &health).await.is_ok());
    node.stop().await;
    world.shut_down().await;
}

#[tokio::test]
async fn a_node_without_the_new_guardian_does_not_start_again() {
    let world = World::start().await;
    let node = Node::of(&world).await;
    let new = world.hgs.rotate_guardian(time::Duration::days(30)).await.unwrap();
    // It runs on.
    let there = HgsClient::new(&node.url, Some(world.hgs.ca_pem().as_bytes())).unwrap();
    let health = there.attest(&world.host_key).await.unwrap();
    let (protector, _) = world.protector(&[]);
    there.roll_transport_key(&protector, &health).await.unwrap();
    let again = Arc::new(Hgs::open(&node.folder.path().join("hgs")).await.unwrap());
    let refused = server::serve(again, "127.0.0.1:0".parse().unwrap(), Transport::Https, async {}).await.err().unwrap();
    assert!(matches!(&refused, Error::GuardianMissing { fingerprint } if *fingerprint == new.signing().fingerprint()));
    node.stop().await;

    // With the keys of the node that has it, it opens what is granted to it alone.
    let node = Node::of(&world).await;
    let there = HgsClient::new(&node.url, Some(world.hgs.ca_pem().as_bytes())).unwrap();
    let (protector, key) = Protector::new(&world.owner, &[new], support::now()).unwrap();
    let rolled = there.roll_transport_key(&protector, &there.attest(&world.host_key).await.unwrap()).await.unwrap();
    assert_eq!(rolled.ingress.expose(), key.expose());
    node.stop().await;
    world.shut_down().await;
}

/// Both halves of an attestation by TPM, one at each node, and the answer again at either.
#[tokio::test]
async fn a_challenge_is_answered_at_another_node_and_once() {
    let world = World::start_tpm().await;
    let machine = Machine::start(&boot(true));
    let tpm = HostTpm::open(Some(&machine.tcti), &machine.log_file()).await.unwrap();
    world.hgs.add_tpm_host(HOST, tpm.endorsement_key().der()).await.unwrap();
    world.hgs.add_baseline("good", &log(&boot(true)), &[0, 2, 4, 7]).await.unwrap();
    let node = Node::of(&world).await;
    let identity = IdentityKey::generate().unwrap();
    let send = async |url: &str, context: &Context| {
        let request = AttestationRequest::tpm(tpm.endorsement_key(), identity.public(), &[5; 16], context).unwrap();
        let (status, body) = world.post_to(url, ATTEST, serde_json::to_vec(&request).unwrap()).await;
        (status, serde_json::from_str::<Reply>(&body).unwrap())
    };
    let ak = tpm.make_attestation_key().await.unwrap();
    for (asks, answers) in [(&world.url, &node.url), (&node.url, &world.url)] {
        let (_, reply) = send(asks, &Context::new(Vec::new(), vec![(Blob::AttestationKey, ak.clone())])).await;
        let Reply::TpmContinue { context } = reply else { panic!("{reply:?}") };
        let challenge = Context::parse(&STANDARD.decode(context).unwrap()).unwrap();
        let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
        let secret = tpm.activate(challenge.blob(Blob::Credential).unwrap()).await.unwrap();
        let (quote, signature) = tpm.quote(&qualifying_data(&nonce, identity.public())).await.unwrap();
        let evidence = Context::new(
            challenge.state,
            vec![
                (Blob::AttestationKey, ak.clone()),
                (Blob::Secret, secret),
                (Blob::Quote, quote),
                (Blob::Signature, signature),
                (Blob::EventLog, tpm.event_log().unwrap()),
            ],
        );
        let (status, reply) = send(answers, &evidence).await;
        assert_eq!(status, StatusCode::OK, "{reply:?}");
        for replayed_at in [&world.url, &node.url] {
            let (status, reply) = send(replayed_at, &evidence).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
            assert!(
                matches!(&reply, Reply::RtpmError { message, .. } if message.contains("answered already")),
                "{reply:?}"
            );
        }
    }
    node.stop().await;
    world.shut_down().await;
}

#[tokio::test]
async fn exported_keys_are_whole_private_and_need_the_passphrase() {
    let world = World::start().await;
    let short = zeroize::Zeroizing::new("too short".to_owned());
    assert!(matches!(world.hgs.export(&short).await, Err(Error::ShortPassphrase { .. })));
    let before = world.hgs.guardian();
    world.hgs.rotate_guardian(time::Duration::days(30)).await.unwrap();
    let exported = world.hgs.export(&passphrase()).await.unwrap();
    assert!(!exported.windows(7).any(|bytes| bytes == b"PRIVATE" || bytes == b"version"));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("hgs");
    let wrong = zeroize::Zeroizing::new("correct horse batterie".to_owned());
    let refused = Hgs::import(&dir, exported.clone(), &wrong, None).await.err().unwrap();
    assert!(matches!(refused, Error::ExportSealed), "{refused}");
    // Any bit of it: the magic, the salt, the nonce, the content, the tag.
    for at in [0, 7, 8, 23, 24, 35, 36, exported.len() / 2, exported.len() - 1] {
        let mut bad = exported.clone();
        bad[at] ^= 1;
        let refused = Hgs::import(&dir, bad, &passphrase(), None).await.err().unwrap();
        assert!(matches!(refused, Error::ExportSealed | Error::NotAnExport), "{at}: {refused}");
    }
    for bad in [Vec::new(), exported[..30].to_vec(), vec![0; 2 << 20]] {
        assert!(matches!(Hgs::import(&dir, bad, &passphrase(), None).await, Err(Error::NotAnExport)));
    }
    // Nor a half-made directory.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let imported = Hgs::import(&dir, exported.clone(), &passphrase(), None).await.unwrap();
    // The export has what is on the disk: the new guardian is the primary one there.
    assert_eq!(imported.guardians().len(), 2);
    assert!(imported.guardians()[1].signing() == before.signing());
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        let (original, name) = (world.dir().join(entry.file_name()), entry.file_name());
        assert_eq!(std::fs::read(entry.path()).unwrap(), std::fs::read(&original).unwrap(), "{name:?}");
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&entry.path()), mode(&original), "{name:?}");
    }
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let again = Hgs::import(&dir, exported, &passphrase(), None).await.err().unwrap();
    assert!(matches!(again, Error::AlreadyThere { .. }));
    world.shut_down().await;
}

/// A service of other keys must not write into this one's log, nor this one into another's.
#[tokio::test]
async fn a_store_belongs_to_one_service() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let options = InitOptions { store: world.store.clone(), ..InitOptions::default() };
    let refused = Hgs::init(&folder.path().join("hgs"), options).await.err().unwrap();
    assert!(matches!(refused, Error::ForeignStore), "{refused}");
    assert!(!folder.path().join("hgs").exists());
    let other = World::start().await;
    let exported = other.hgs.export(&passphrase()).await.unwrap();
    let refused = Hgs::import(&folder.path().join("hgs"), exported, &passphrase(), world.store.clone()).await;
    assert!(matches!(refused, Err(Error::ForeignStore)));
    assert_eq!(world.hgs.verify_audit_since(None).await.unwrap().0, 1);
    world.shut_down().await;
    other.shut_down().await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_at_once_and_leaves_no_service() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("hgs");
    let existing = postgres::database_url().await;
    for url in ["postgres://hgs@%2Fnowhere/hgs", &format!("{existing}x")] {
        let options = InitOptions { store: Some(StoreUrl::parse(url).unwrap()), ..InitOptions::default() };
        let refused = Hgs::init(&dir, options).await.err().unwrap();
        assert!(matches!(refused, Error::StoreUnreachable(_)), "{refused:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// Requests at both nodes at once: one chain, each decision in it once.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_write_at_once_make_one_chain() {
    let world = World::start().await;
    let node = Node::of(&world).await;
    let before = world.hgs.verify_audit_since(None).await.unwrap().0;
    let ca = world.hgs.ca_pem().to_owned();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..8 {
        let url = if at % 2 == 0 { world.url.clone() } else { node.url.clone() };
        let client = HgsClient::new(&url, Some(ca.as_bytes())).unwrap();
        let health = client.attest(&world.host_key).await.unwrap();
        let (mut protector, _) = world.protector(&[]);
        tasks.spawn(async move {
            for _ in 0..10 {
                protector = client.roll_transport_key(&protector, &health).await.unwrap().egress_protector;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let (rows, _) = world.hgs.verify_audit_since(None).await.unwrap();
    assert_eq!(rows - before, 8 + 80);
    assert_eq!(node.hgs.in_use().await.unwrap().len(), 8);
    assert!(node.folder.path().join("hgs/store.url").exists());
    node.stop().await;
    world.shut_down().await;
}
