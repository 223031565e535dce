//! Guardians and protectors that these tests share.
#![allow(clippy::unwrap_used)]

use crate::certificate::Role;
use crate::error::Result;
use crate::guardian::Guardian;
use crate::guardian_public::GuardianPublic;
use crate::private_keys::sign;
use crate::protector::document::Protector;
use crate::protector::issue;
use crate::protector::parts::{Parts, Recipient};
use crate::test_support::{NOW, guardian};
use crate::transport_key::TransportKey;

pub(super) fn owner() -> &'static Guardian {
    guardian("tenant", Role::Owner)
}

pub(super) fn fabric() -> &'static Guardian {
    guardian("fabric", Role::Fabric)
}

pub(super) fn recovery() -> &'static Guardian {
    guardian("garage", Role::Recovery)
}

pub(super) fn publics(guardians: &[&Guardian]) -> Vec<GuardianPublic> {
    guardians.iter().map(|g| g.public().clone()).collect()
}

/// A protector for the owner and `guardians`.
pub(super) fn protector(guardians: &[&Guardian]) -> (Protector, TransportKey) {
    Protector::new(owner(), &publics(guardians), NOW).unwrap()
}

/// Owner, fabric and recovery guardian; the owner signs.
pub(super) fn parts() -> (Parts, TransportKey) {
    let (protector, key) = protector(&[fabric(), recovery()]);
    (protector.parts, key)
}

/// What a wrapping for `guardian` needs, certified by `parent`, which is at that place.
pub(super) fn child(guardian: &Guardian, parent: &Guardian, place: usize) -> Recipient {
    let public = guardian.public();
    Recipient {
        signing: public.signing.clone(),
        signing_signature: sign(parent, public.signing.der()).unwrap(),
        encryption: public.encryption.clone(),
        encryption_signature: public.encryption_signature.clone(),
        parent: place,
    }
}

pub(super) fn issue_for(recipients: &[Recipient]) -> Result<(Protector, TransportKey)> {
    let key = TransportKey::generate();
    let protector = issue::issue(recipients, &key, (0, owner()), 0, NOW)?;
    Ok((protector, key))
}

/// A protector in which the fabric guardian has certified a second one.
pub(super) fn with_child_of_fabric() -> (Protector, TransportKey) {
    issue_for(&[
        child(owner(), owner(), 0),
        child(fabric(), owner(), 0),
        child(guardian("second-fabric", Role::Fabric), fabric(), 1),
    ])
    .unwrap()
}
