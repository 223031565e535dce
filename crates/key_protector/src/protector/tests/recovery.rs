//! What protectors are for: who can open which one, through a whole recovery.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use time::Duration;

use super::made::{fabric, owner, protector, recovery, with_child_of_fabric};
use crate::certificate::Role;
use crate::guardian::Guardian;
use crate::memory_keys::KeyKind;
use crate::protector::document::Protector;
use crate::protector::parts::MAX_WRAPPINGS;
use crate::test_support::{NOW, assert_refused, guardian};

#[test]
fn recipients_open_and_others_do_not() {
    let (protector, key) = protector(&[fabric()]);
    let read = Protector::parse(&protector.to_xml()).unwrap();
    assert_eq!(read.digest(), protector.digest());
    assert_eq!(read.max_offline_unwraps(), 0);
    assert_eq!(read.owner().name(), "tenant");
    assert_eq!(read.signer().id(), read.owner().id());
    for by in [owner(), fabric()] {
        assert_eq!(read.open(by, NOW).unwrap().expose(), key.expose());
    }
    assert_refused!(read.open(recovery(), NOW), NotARecipient);
}

/// Design, section 4, "Garage keys".
#[test]
fn a_recovery_from_grant_to_first_start() {
    let (shielded, key) = protector(&[fabric()]);

    // The owner lets the garage in: same key.
    let granted = shielded.grant(owner(), recovery().public(), NOW).unwrap();
    assert_eq!(granted.open(recovery(), NOW).unwrap().expose(), key.expose());

    // The garage rolls onto a key that the fabric cannot get.
    let garage = granted.roll(recovery(), &[], NOW).unwrap();
    assert_eq!(garage.ingress.expose(), key.expose());
    assert_ne!(garage.egress.expose(), key.expose());
    let in_garage = garage.egress_protector;
    assert_eq!(in_garage.wrappings().len(), 2);
    assert_eq!(in_garage.signer().role(), Role::Recovery);
    assert_refused!(in_garage.open(fabric(), NOW), NotARecipient);
    let opened = in_garage.open(recovery(), NOW).unwrap();
    assert_eq!(opened.expose(), garage.egress.expose());

    // It hands back to the fabric guardian of the protector that it was given.
    let of_fabric = granted.wrapping_of(fabric().public()).unwrap().clone();
    let back = in_garage.roll(recovery(), &[of_fabric], NOW).unwrap();
    assert_eq!(back.ingress.expose(), garage.egress.expose());
    let handed_back = Protector::parse(&back.egress_protector.to_xml()).unwrap();
    assert_eq!(handed_back.wrappings().len(), 3);

    // The first start drops the recovery guardian.
    let started = handed_back.roll(fabric(), &[], NOW).unwrap();
    assert_eq!(started.ingress.expose(), back.egress.expose());
    let running = started.egress_protector;
    assert_refused!(running.open(recovery(), NOW), NotARecipient);
    for by in [owner(), fabric()] {
        let key = running.open(by, NOW).unwrap();
        assert_eq!(key.expose(), started.egress.expose());
    }
    assert_eq!(running.owner().name(), "tenant");
}

#[test]
fn an_expired_recovery_guardian_neither_opens_nor_has_signed() {
    let later = NOW + Duration::DAY + Duration::SECOND;
    let (granted, _) = protector(&[fabric(), recovery()]);
    assert_refused!(granted.open(recovery(), later), Expired);
    assert!(granted.open(fabric(), later).is_ok());
    let expired = granted.expired(later);
    assert_eq!(expired.len(), 1);
    assert_eq!(expired[0].role(), Role::Recovery);
    assert!(granted.expired(NOW).is_empty());
    // It is not taken along either.
    let all = granted.wrappings();
    assert_refused!(granted.roll(fabric(), all, later), Expired);

    let by_recovery = granted.roll(recovery(), all, NOW).unwrap();
    let by_recovery = by_recovery.egress_protector;
    assert_refused!(by_recovery.verify(later), Expired);
    assert_refused!(by_recovery.open(fabric(), later), Expired);
}

#[test]
fn an_unused_expired_fabric_guardian_does_no_harm() {
    let end = NOW + Duration::DAY;
    let short = Guardian::generate("short", Role::Fabric, KeyKind::Rsa2048, NOW, end).unwrap();
    let (protector, key) = protector(&[fabric(), &short]);
    let later = end + Duration::SECOND;
    assert_refused!(protector.open(&short, later), Expired);
    let all = protector.wrappings();
    let rolled = protector.roll(fabric(), all, later).unwrap();
    assert_eq!(rolled.ingress.expose(), key.expose());
    let expired = rolled.egress_protector.expired(later);
    let names: Vec<_> = expired.iter().map(|w| w.name()).collect();
    assert_eq!(names, ["short"]);
    // When the signer's time is over, so is the protector's.
    let much_later = NOW + Duration::days(366);
    assert_refused!(protector.verify(much_later), Expired);
}

#[test]
fn guardians_outside_their_lifetime_are_not_let_in() {
    let early = NOW - Duration::HOUR;
    let (shielded, _) = protector(&[]);
    let to = recovery().public();
    assert_refused!(shielded.grant(owner(), to, early), NotYetValid);
    let late = NOW + Duration::days(2);
    assert_refused!(shielded.grant(owner(), to, late), Expired);
    let made = Protector::new(owner(), std::slice::from_ref(to), late);
    assert_refused!(made, Expired);
    let made = Protector::new(owner(), &[], NOW + Duration::days(400));
    assert_refused!(made, Expired);
}

#[test]
fn only_the_owner_grants_and_revokes() {
    let (protector, _) = protector(&[fabric()]);
    let to = recovery().public();
    assert_refused!(protector.grant(fabric(), to, NOW), NotOwner);
    let fingerprint = fabric().public().signing().fingerprint();
    let revoked = protector.revoke(fabric(), &fingerprint, NOW);
    assert_refused!(revoked, NotOwner);
    let stranger = guardian("other-tenant", Role::Owner);
    assert_refused!(protector.grant(stranger, to, NOW), NotOwner);
    // Two owners are no more possible than none.
    let second = protector.grant(owner(), stranger.public(), NOW);
    assert_refused!(second, OwnerRole);
    assert_refused!(Protector::new(fabric(), &[], NOW), OwnerRole);
    let again = protector.grant(owner(), fabric().public(), NOW);
    assert_refused!(again, DuplicateEncryptionKey);
}

#[test]
fn revoking_changes_the_key() {
    let (granted, key) = protector(&[fabric(), recovery()]);
    let fingerprint = recovery().public().encryption().fingerprint();
    let (old, revoked, new) = granted.revoke(owner(), &fingerprint, NOW).unwrap();
    assert_eq!(old.expose(), key.expose());
    assert_ne!(new.expose(), key.expose());
    assert_refused!(revoked.open(recovery(), NOW), NotARecipient);
    assert_eq!(revoked.open(fabric(), NOW).unwrap().expose(), new.expose());
    assert_refused!(granted.revoke(owner(), "00", NOW), NoSuchGuardian);
    let own = owner().public().signing().fingerprint();
    assert_refused!(granted.revoke(owner(), &own, NOW), OwnerRevoked);
}

#[test]
fn revoking_takes_the_certified_along() {
    let (protector, key) = with_child_of_fabric();
    let child = guardian("second-fabric", Role::Fabric);
    assert_eq!(protector.open(child, NOW).unwrap().expose(), key.expose());
    let fingerprint = fabric().public().signing().fingerprint();
    let (_, revoked, _) = protector.revoke(owner(), &fingerprint, NOW).unwrap();
    assert_eq!(revoked.wrappings().len(), 1);
    assert_refused!(revoked.open(child, NOW), NotARecipient);
}

#[test]
fn rolling_keeps_the_tree() {
    let (protector, _) = with_child_of_fabric();
    let child = guardian("second-fabric", Role::Fabric);
    // In any order, and with ids that mean nothing.
    let mut all = protector.wrappings().to_vec();
    all.reverse();
    let rolled = protector.roll(owner(), &all, NOW).unwrap();
    assert_eq!(rolled.egress_protector.wrappings().len(), 3);
    assert!(rolled.egress_protector.open(child, NOW).is_ok());
    // The child cannot be there without its parent.
    assert_refused!(protector.roll(child, &[], NOW), ForeignRecipient);
}

#[test]
fn recipients_of_another_owner_are_refused() {
    let (protector, _) = protector(&[fabric()]);
    let stranger = guardian("other-tenant", Role::Owner);
    let to = [recovery().public().clone()];
    let (foreign, _) = Protector::new(stranger, &to, NOW).unwrap();
    let guardian = &foreign.wrappings()[1..];
    assert_refused!(protector.roll(fabric(), guardian, NOW), ForeignRecipient);
    let owner = &foreign.wrappings()[..1];
    assert_refused!(protector.roll(fabric(), owner, NOW), ForeignRecipient);
}

#[test]
fn too_many_recipients_are_refused() {
    let (protector, _) = protector(&[fabric()]);
    let many = vec![fabric().public().clone(); MAX_WRAPPINGS];
    let made = Protector::new(owner(), &many, NOW);
    assert_refused!(made, TooManyWrappings);
    // The same wrapping many times is one.
    let wrappings = vec![protector.wrappings()[1].clone(); MAX_WRAPPINGS];
    let rolled = protector.roll(fabric(), &wrappings, NOW).unwrap();
    assert_eq!(rolled.egress_protector.wrappings().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every recipient of a protector can open it, no one else can, and it survives being written and
    /// read; and so does what comes of rolling it for a part of its recipients.
    #[test]
    fn round_trip(first in any::<[bool; 4]>(), second in any::<[bool; 4]>(), by in 0usize..5) {
        let pool = [
            fabric(),
            guardian("second-fabric", Role::Fabric),
            recovery(),
            guardian("second-garage", Role::Recovery),
        ];
        let chosen: Vec<_> = (0..4).filter(|i| first[*i]).map(|i| pool[i]).collect();
        let (made, key) = protector(&chosen);
        let read = Protector::parse(&made.to_xml()).unwrap();
        prop_assert_eq!(read.to_xml(), made.to_xml());
        for (i, by) in pool.iter().enumerate() {
            let opened = read.open(by, NOW);
            prop_assert_eq!(opened.is_ok(), first[i]);
            if let Ok(opened) = opened {
                prop_assert_eq!(opened.expose(), key.expose());
            }
        }
        let by = if by < 4 && first[by] { pool[by] } else { owner() };
        let recipients: Vec<_> = pool
            .iter()
            .zip(second)
            .filter(|(_, wanted)| *wanted)
            .filter_map(|(g, _)| read.wrapping_of(g.public()).ok().cloned())
            .collect();
        let rolled = read.roll(by, &recipients, NOW).unwrap();
        let egress = Protector::parse(&rolled.egress_protector.to_xml()).unwrap();
        prop_assert_eq!(rolled.ingress.expose(), key.expose());
        prop_assert!(egress.signer().is_for(by.public()));
        for (i, guardian) in pool.iter().enumerate() {
            let expected = first[i] && second[i] || std::ptr::eq(*guardian, by);
            let opened = egress.open(guardian, NOW);
            prop_assert_eq!(opened.is_ok(), expected);
            if let Ok(opened) = opened {
                prop_assert_eq!(opened.expose(), rolled.egress.expose());
            }
        }
        let by_owner = egress.open(owner(), NOW).unwrap();
        prop_assert_eq!(by_owner.expose(), rolled.egress.expose());
    }
}
