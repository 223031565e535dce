//! Guardians that change while VMs go on: both open, protectors move over when their owner grants the new one, and
//! the old one goes when nothing depends on it.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use hgs::server::{self, Transport};
use hgs::{Error, Hgs};
use hgs_client::{Error as ClientError, HgsClient};
use key_protector::Protector;
use support::{World, now};
use time::Duration;
use tokio::sync::oneshot;

/// Restarts the service: the same directory, opened again.
struct Again {
    hgs: Arc<Hgs>,
    stop: oneshot::Sender<()>,
    serving: server::Serving,
    client: HgsClient,
}

impl Again {
    async fn start(world: &World) -> Self {
        let hgs = Arc::new(Hgs::open(&world.dir()).await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let serving = server::serve(Arc::clone(&hgs), address, Transport::Https, shutdown).await.unwrap();
        let url = format!("https://127.0.0.1:{}", serving.local_addr().port());
        let client = HgsClient::new(&url, Some(hgs.ca_pem().as_bytes())).unwrap();
        Again { hgs, stop, serving, client }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.wait().await.unwrap();
    }
}

#[tokio::test]
async fn protectors_move_over_and_the_old_guardian_goes() {
    let world = World::start().await;
    let old = world.hgs.guardian();
    let (protector, key) = world.protector(&[]);
    let client = world.client();
    let health = client.attest(&world.host_key).await.unwrap();
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    let in_use = world.hgs.in_use().await.unwrap();
    assert_eq!(in_use.len(), 1);
    assert_eq!(in_use[0].digest, rolled.egress_protector.digest());
    assert_eq!(in_use[0].guardian, old.signing().fingerprint());
    drop(key);

    let new = world.hgs.rotate_guardian(Duration::days(365)).await.unwrap();
    assert!(new.signing() != old.signing());
    // The running service is as it was.
    assert!(world.hgs.guardian().signing() == old.signing());
    let rolled = client.roll_transport_key(&rolled.egress_protector, &health).await.unwrap();

    let again = Again::start(&world).await;
    assert!(again.hgs.guardian().signing() == new.signing());
    assert!(again.client.metadata().await.unwrap().signing() == new.signing());
    for entry in std::fs::read_dir(world.dir()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("guardian") {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
    }
    // Not granted to the new one yet: the old one still opens it.
    let health = again.client.attest(&world.host_key).await.unwrap();
    let rolled = again.client.roll_transport_key(&rolled.egress_protector, &health).await.unwrap();
    assert_eq!(rolled.egress_protector.signer().signing_certificate(), old.signing());
    let still = again.hgs.retire_guardian(&old.signing().fingerprint(), false).await;
    assert!(matches!(still, Err(Error::GuardianInUse { count: 1 })));

    // The owner grants the new one; the next roll leaves the old one behind.
    let granted = rolled.egress_protector.grant(&world.owner, &new, now()).unwrap();
    assert_eq!(granted.wrappings().len(), 3);
    let moved = again.client.roll_transport_key(&granted, &health).await.unwrap();
    assert_eq!(moved.ingress.expose(), rolled.egress.expose());
    assert_eq!(moved.egress_protector.wrappings().len(), 2);
    assert_eq!(moved.egress_protector.signer().signing_certificate(), new.signing());
    assert_eq!(moved.egress_protector.open(&world.owner, now()).unwrap().expose(), moved.egress.expose());
    let in_use = again.hgs.in_use().await.unwrap();
    assert_eq!(in_use.len(), 1, "a grant is not another VM: {in_use:?}");
    assert_eq!(in_use[0].digest, moved.egress_protector.digest());
    assert_eq!(in_use[0].guardian, new.signing().fingerprint());

    assert!(matches!(again.hgs.retire_guardian(&new.signing().fingerprint(), true).await, Err(Error::PrimaryGuardian)));
    assert!(matches!(again.hgs.retire_guardian("00", true).await, Err(Error::NoSuchGuardian { .. })));
    again.hgs.retire_guardian(&old.signing().fingerprint(), false).await.unwrap();
    again.stop().await;

    let last = Again::start(&world).await;
    assert_eq!(last.hgs.guardians().len(), 1);
    assert!(!world.dir().join("guardian.pem").exists());
    let health = last.client.attest(&world.host_key).await.unwrap();
    last.client.roll_transport_key(&moved.egress_protector, &health).await.unwrap();
    let only_old = Protector::new(&world.owner, &[old], now()).unwrap().0;
    let error = last.client.roll_transport_key(&only_old, &health).await.err().unwrap();
    assert!(matches!(error, ClientError::Wrapping { .. }), "{error}");
    last.hgs.verify_audit().await.unwrap();
    last.stop().await;
    world.shut_down().await;
}
