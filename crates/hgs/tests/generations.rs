//! Protectors that are older than what the service rolled last: reported, or refused, unless their owner permits it.

#![allow(clippy::unwrap_used)]

mod support;

use hgs::{Error, Permit};
use hgs_client::{Error as ClientError, HealthCertificate, HgsClient};
use key_protector::{Protector, Role, signed};
use support::{World, guardian, now};
use time::Duration;

/// A host that rolls.
struct Host<'a> {
    world: &'a World,
    client: HgsClient,
    health: HealthCertificate,
}

impl<'a> Host<'a> {
    async fn of(world: &'a World) -> Self {
        let client = world.client();
        let health = client.attest(&world.host_key).await.unwrap();
        Host { world, client, health }
    }

    async fn roll(&self, protector: &Protector) -> Protector {
        self.client.roll_transport_key(protector, &self.health).await.unwrap().egress_protector
    }

    /// The protector is released, and the log calls it stale.
    async fn roll_stale(&self, protector: &Protector) -> Protector {
        let egress = self.roll(protector).await;
        let (event, _, why) = self.world.last().await;
        assert_eq!(event, "stale-key-released", "{why}");
        assert!(why.contains("stale"), "{why}");
        egress
    }

    /// The protector is released, and the log has nothing to say.
    async fn roll_current(&self, protector: &Protector) -> Protector {
        let egress = self.roll(protector).await;
        let (event, _, why) = self.world.last().await;
        assert_eq!((event, why), ("key-released".to_owned(), format!("rolled to {}", egress.digest())));
        egress
    }

    async fn is_refused(&self, protector: &Protector) {
        let error = self.client.roll_transport_key(protector, &self.health).await.err().unwrap();
        assert!(matches!(&error, ClientError::Protector { message } if message.contains("stale")), "{error}");
        let entry = self.world.hgs.audit(1).await.unwrap().remove(0);
        assert_eq!(entry.event, "key-refused");
        assert_eq!(entry.protector, protector.digest());
        assert!(entry.why.contains("stale"), "{}", entry.why);
    }
}

#[tokio::test]
async fn a_stale_protector_is_reported_and_released_unless_the_service_is_strict() {
    let world = World::start().await;
    assert!(!world.hgs.strict().await.unwrap());
    let host = Host::of(&world).await;
    let (first, _) = world.protector(&[]);
    let second = host.roll_current(&first).await;
    let third = host.roll_current(&second).await;
    // Restored from a backup: it continues from there, and the branch that it left is the stale one now.
    let restored = host.roll_stale(&first).await;
    let next = host.roll_current(&restored).await;
    host.roll_stale(&third).await;

    world.hgs.set_strict(true).await.unwrap();
    assert_eq!(world.last().await.0, "policy-changed");
    host.is_refused(&next).await;
    host.is_refused(&first).await;
    host.is_refused(&second).await;
    world.hgs.set_strict(false).await.unwrap();
    host.roll_stale(&second).await;
    world.hgs.verify_audit().await.unwrap();
    world.shut_down().await;
}

/// The answer never came, or the host crashed before it had sealed the state again: it comes with the same protector.
/// It is also what an aborted recovery starts the VM with.
#[tokio::test]
async fn the_last_rolled_protector_can_be_rolled_again_in_strict_mode() {
    let world = World::start().await;
    world.hgs.set_strict(true).await.unwrap();
    let host = Host::of(&world).await;
    let (first, _) = world.protector(&[]);
    let lost = host.roll_current(&first).await;
    let kept = host.roll_current(&first).await;
    // Which of two answers the host kept, the service cannot know; one of a VM that is started with either is stale
    // as soon as the other one was rolled twice.
    let second = host.roll_current(&kept).await;
    host.is_refused(&first).await;
    host.roll_current(&lost).await;
    host.roll_current(&kept).await;
    let third = host.roll_current(&second).await;
    host.is_refused(&lost).await;
    host.is_refused(&kept).await;
    host.roll_current(&third).await;
    host.is_refused(&second).await;
    world.shut_down().await;
}

/// The same key in another document is the same generation: a grant does not make a stale protector new.
#[tokio::test]
async fn a_grant_makes_no_stale_protector_current() {
    let world = World::start().await;
    world.hgs.set_strict(true).await.unwrap();
    let host = Host::of(&world).await;
    let partner = guardian("partner", Role::Fabric, Duration::days(30));
    let (first, _) = world.protector(&[]);
    let second = host.roll_current(&first).await;
    let granted = second.grant(&world.owner, partner.public(), now()).unwrap();
    let third = host.roll_current(&granted).await;
    host.roll_current(&third).await;
    host.is_refused(&first).await;
    host.is_refused(&first.grant(&world.owner, partner.public(), now()).unwrap()).await;
    // Rolled by its owner, offline: a chain of its own.
    let (_, rolled, _) = third.revoke(&world.owner, &partner.public().signing().fingerprint(), now()).unwrap();
    host.roll_current(&rolled).await;
    world.shut_down().await;
}

#[tokio::test]
async fn the_owners_permit_restores_a_backup_once() {
    let world = World::start().await;
    world.hgs.set_strict(true).await.unwrap();
    let host = Host::of(&world).await;
    let (backup, _) = world.protector(&[]);
    let second = host.roll_current(&backup).await;
    let third = host.roll_current(&second).await;
    host.is_refused(&backup).await;
    let document = Permit::sign(&world.owner, &backup, now() + Duration::hours(1)).unwrap();
    let permit = world.hgs.permit(&document).await.unwrap();
    assert_eq!(permit.protector, backup.digest());
    assert_eq!(world.last().await.0, "stale-permitted");
    // Not for another protector.
    host.roll_current(&second).await;
    // The host may crash in between, as always.
    host.roll_stale(&backup).await;
    let restored = host.roll_stale(&backup).await;
    // What it replaces is over.
    host.is_refused(&third).await;
    // Once the restored VM went on, the permit is used up; taking it in again does not renew it.
    host.roll_current(&restored).await;
    host.is_refused(&backup).await;
    assert!(matches!(world.hgs.permit(&document).await, Err(Error::PermitKnown)));
    host.is_refused(&backup).await;
    // Another one is another restore.
    let again = Permit::sign(&world.owner, &backup, now() + Duration::hours(1)).unwrap();
    world.hgs.permit(&again).await.unwrap();
    host.roll_stale(&backup).await;
    world.hgs.verify_audit().await.unwrap();
    world.shut_down().await;
}

#[tokio::test]
async fn a_permit_is_the_owners_alone_and_ends() {
    let world = World::start().await;
    world.hgs.set_strict(true).await.unwrap();
    let host = Host::of(&world).await;
    let (backup, _) = world.protector(&[]);
    let second = host.roll_current(&backup).await;
    host.roll_current(&second).await;

    // Another tenant can sign no permit for it, and what they sign with tools of their own lets nobody in.
    let other = guardian("other", Role::Owner, Duration::days(30));
    let soon = now() + Duration::hours(1);
    assert!(matches!(Permit::sign(&other, &backup, soon), Err(Error::OtherOwner { .. })));
    let payload = format!(
        r#"{{"id":"{}","protector":"{}","not_after":{}}}"#,
        "00".repeat(16),
        backup.digest(),
        soon.unix_timestamp()
    );
    let forged = signed::sign("drydock/stale-permit", payload.as_bytes(), &other).unwrap();
    world.hgs.permit(&forged).await.unwrap();
    host.is_refused(&backup).await;
    // Neither the fabric's own guardian nor a recovery guardian is an owner.
    for role in [Role::Fabric, Role::Recovery] {
        let by = guardian("not-the-owner", role, Duration::days(1));
        let forged = signed::sign("drydock/stale-permit", payload.as_bytes(), &by).unwrap();
        assert!(matches!(world.hgs.permit(&forged).await, Err(Error::BadPermit)));
    }
    // Not what the owner signed, or not meant for this.
    let good = Permit::sign(&world.owner, &backup, soon).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    for bad in [
        text.replace("stale-permit", "recovery-grant").into_bytes(),
        signed::sign("drydock/recovery-grant", payload.as_bytes(), &world.owner).unwrap(),
        good[..good.len() - 1].to_vec(),
        Vec::new(),
    ] {
        assert!(matches!(world.hgs.permit(&bad).await, Err(Error::Permit(_))));
    }
    for payload in ["", "{}", &payload.replace("00", "0"), &payload.replace("not_after", "until")] {
        let bad = signed::sign("drydock/stale-permit", payload.as_bytes(), &world.owner).unwrap();
        assert!(matches!(world.hgs.permit(&bad).await, Err(Error::BadPermit)), "{payload}");
    }
    // Over before it was brought, and over after it was brought.
    let over = Permit::sign(&world.owner, &backup, now() - Duration::seconds(1)).unwrap();
    assert!(matches!(world.hgs.permit(&over).await, Err(Error::PermitExpired { .. })));
    world.hgs.permit(&good).await.unwrap();
    world.advance(Duration::hours(2));
    host.is_refused(&backup).await;
    world.shut_down().await;
}
