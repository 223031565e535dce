//! The rules of MS-KPS 3.1.5.1.1.3, and ours, about a protector from outside.

use std::collections::HashMap;

use aws_lc_rs::hmac;
use time::OffsetDateTime;

use super::parts::{Parts, Wrapping};
use super::xml;
use crate::certificate::Role;
use crate::error::{Error, Result};
use crate::transport_key::TransportKey;

/// Checks every signature that needs no transport key, and that `signer`'s certificates are valid at
/// `now`. Returns the bytes that both signatures of the document are over.
pub(super) fn signatures(parts: &Parts, signer: &Wrapping, now: OffsetDateTime) -> Result<Vec<u8>> {
    for wrapping in &parts.wrappings {
        let id = wrapping.id;
        // check_tree() has found the parent of each.
        let mut wrappings = parts.wrappings.iter();
        let parent = wrappings.find(|w| w.id == wrapping.parent_id).ok_or(Error::NotChained { id })?;
        if !wrapping.signing_signature.is_by(&parent.signing, wrapping.signing.der()) {
            return Err(Error::SigningCertificateSignature { id });
        }
        if !wrapping.encryption_signature.is_by(&wrapping.signing, wrapping.encryption.der()) {
            return Err(Error::EncryptionCertificateSignature { id });
        }
    }
    let signed = parts.signed_bytes()?;
    if !parts.guardian_signature.is_by(&signer.signing, &signed) {
        return Err(Error::GuardianSignature { id: signer.id });
    }
    signer.check_valid_at(now)?;
    Ok(signed)
}

/// Checks ids, parents, roles and what is bound in the owner's wrapping. Returns the places of the
/// owner's and the signer's wrapping.
pub(super) fn check_tree(parts: &Parts) -> Result<(usize, usize)> {
    let wrappings = &parts.wrappings;
    let mut places = HashMap::new();
    let mut keys = HashMap::new();
    for (place, wrapping) in wrappings.iter().enumerate() {
        let id = wrapping.id;
        if places.insert(id, place).is_some() {
            return Err(Error::DuplicateId { id });
        }
        // The key, not the certificate: another certificate can be made for the same key.
        if let Some(first) = keys.insert(wrapping.encryption.public_key().as_bytes(), id) {
            return Err(Error::DuplicateEncryptionKey { first, second: id });
        }
    }
    let owner = find_owner(wrappings)?;
    for (place, wrapping) in wrappings.iter().enumerate() {
        check_parent(wrappings, &places, wrapping)?;
        if (wrapping.role == Role::Owner) != (place == owner) {
            return Err(Error::OwnerRole { id: wrapping.id });
        }
        let bound = (place == owner).then_some(parts.max_offline_unwraps);
        if wrapping.offline_unwraps != bound {
            return Err(Error::OfflineUnwraps);
        }
    }
    let id = parts.signer_id;
    let signer = *places.get(&id).ok_or(Error::UnknownSigner { id })?;
    Ok((owner, signer))
}

fn find_owner(wrappings: &[Wrapping]) -> Result<usize> {
    let mut owners = wrappings.iter().enumerate();
    let mut owners = std::iter::from_fn(|| owners.find(|(_, w)| w.parent_id == w.id));
    let (owner, first) = owners.next().ok_or(Error::NoOwner)?;
    match owners.next() {
        None => Ok(owner),
        Some((_, second)) => Err(Error::SeveralOwners { first: first.id, second: second.id }),
    }
}

/// Requires `wrapping`'s parent to exist, not to be a recovery guardian, and to lead to the owner.
fn check_parent(wrappings: &[Wrapping], places: &HashMap<u32, usize>, wrapping: &Wrapping) -> Result<()> {
    let parent_of = |w: &Wrapping| {
        let place = places.get(&w.parent_id);
        place.and_then(|p| wrappings.get(*p))
    };
    let (id, parent) = (wrapping.id, wrapping.parent_id);
    let mut current = parent_of(wrapping).ok_or(Error::ParentMissing { id, parent })?;
    if current.role == Role::Recovery {
        return Err(Error::RecoveryParent { id, parent });
    }
    // A path to the owner has at most as many links as there are wrappings; a longer one is a circle.
    for _ in wrappings {
        if current.parent_id == current.id {
            return Ok(());
        }
        current = parent_of(current).ok_or(Error::NotChained { id })?;
    }
    Err(Error::NotChained { id })
}

/// The MAC over `signed` under the key that is derived from the transport key.
pub(super) fn transport_key_signature(key: &TransportKey, signed: &[u8]) -> Vec<u8> {
    let derived = key.derive(xml::SIGNATURE_LABEL);
    let key = hmac::Key::new(hmac::HMAC_SHA256, derived.expose());
    hmac::sign(&key, signed).as_ref().to_vec()
}

/// Checks the MAC, in constant time.
pub(super) fn check_transport_key(parts: &Parts, key: &TransportKey, signed: &[u8]) -> Result<()> {
    let derived = key.derive(xml::SIGNATURE_LABEL);
    let key = hmac::Key::new(hmac::HMAC_SHA256, derived.expose());
    hmac::verify(&key, signed, &parts.transport_key_signature).map_err(|_| Error::TransportKeySignature)
}
