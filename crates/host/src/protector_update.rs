//! The signed protector update: another key protector for an existing VM, because its owner granted access to one more
//! guardian or revoked it.
//!
//! A protector alone does not say which VM it is for, or that it is newer than another. So the owner signs the step:
//! from the active protector, by its digest, to the new one. The VM takes it at its next start, when its state is sealed
//! again anyway; after that the step leads from a protector that is no longer active, and is void.

use key_protector::{Approval, Protector, Refusal, Signer, signed};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use outcome::{Context, Error, Kind, Result};

/// Names this kind of document in its signature; documents of earlier releases carry the same.
const KIND: &str = "drydock/protector-change";
/// Largest document that is read (bytes); a protector has at most 1 MiB.
pub const MAX_UPDATE: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    /// SHA-256 of the active protector, in hexadecimal.
    from: String,
    /// The new protector.
    to: String,
}

/// Signs, as the owner, that `to` replaces `from`.
///
/// # Errors
/// `BadInput` when the protectors have another owner.
pub fn sign(owner: &dyn Signer, from: &Protector, to: &Protector) -> Result<Vec<u8>> {
    let signing = owner.public().signing();
    if [from, to].iter().any(|protector| protector.owner().signing_certificate() != signing) {
        return Err(Error::new(Kind::BadInput, format!("'{}' does not own the protector", owner.public().name())));
    }
    let to = String::from_utf8(to.to_xml()).context(Kind::Internal, || "a protector is not UTF-8".into())?;
    let payload = serde_json::to_vec(&Payload { from: from.digest(), to })
        .context(Kind::Internal, || "the update cannot be serialised".into())?;
    signed::sign(KIND, &payload, owner).context(Kind::Internal, || "the update cannot be signed".into())
}

/// The protector that the owner of `current` puts in its place.
///
/// # Errors
/// `BadInput`: another signer or owner, damaged, or for a protector that is not active.
pub fn verify(document: &[u8], current: &Protector, now: OffsetDateTime) -> Result<Protector> {
    let owner = current.owner().signing_certificate();
    let refused = |refusal| match refusal {
        Refusal::Document(source) => Error::new(Kind::BadInput, "this is not a signed protector update")
            .caused_by(&source)
            .remedy("bring what `drydock protector grant` or `revoke` wrote with --change"),
        Refusal::NotValid(source) => {
            Error::new(Kind::BadInput, "the signer of the update is not valid now").caused_by(&source)
        }
        Refusal::OtherSigner { .. } | Refusal::NotAnOwner { .. } => {
            Error::new(Kind::BadInput, format!("the update is not signed by the VM's owner, '{}'", owner.common_name()))
                .remedy("have it made with the owner guardian: drydock protector grant … --owner NAME --change FILE")
        }
    };
    let approved = Approval::of_owner(current).valid_at(now).verify(KIND, document).map_err(refused)?;
    let payload: Payload = serde_json::from_slice(approved.payload())
        .context(Kind::BadInput, || "the update does not have the fields of a protector update".into())?;
    if payload.from != current.digest() {
        return Err(Error::new(Kind::BadInput, "the update replaces another key protector than the active one")
            .remedy(
                "each start makes a new one: get it with `drydock vm protector NAME`, and have the update made for that one",
            ));
    }
    let to = Protector::parse(payload.to.as_bytes())
        .context(Kind::BadInput, || "the field 'to' of the update is not a key protector".into())?;
    to.verify(now).context(Kind::BadInput, || "the key protector in the update does not verify".into())?;
    if to.owner().signing_certificate() != owner {
        return Err(Error::new(Kind::BadInput, "the key protector in the update has another owner")
            .remedy("a VM never changes its owner; have the update made from the active protector"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use key_protector::{Guardian, KeyKind, Role};
    use time::Duration;

    fn guardian(name: &str, role: Role) -> Guardian {
        let now = OffsetDateTime::now_utc();
        Guardian::generate(name, role, KeyKind::Rsa2048, now - Duration::hours(1), now + Duration::days(1)).unwrap()
    }

    #[test]
    fn only_the_owners_step_from_the_active_protector_is_taken() {
        let now = OffsetDateTime::now_utc();
        let (owner, fabric) = (guardian("tenant", Role::Owner), guardian("fabric", Role::Fabric));
        let (twin, second) = (guardian("tenant", Role::Owner), guardian("second", Role::Fabric));
        let (current, _) = Protector::new(&owner, &[fabric.public().clone()], now).unwrap();
        let (other, _) = Protector::new(&owner, &[fabric.public().clone()], now).unwrap();
        let granted = current.grant(&owner, second.public(), now).unwrap();
        let good = sign(&owner, &current, &granted).unwrap();
        assert_eq!(verify(&good, &current, now).unwrap().digest(), granted.digest());

        // For another VM, or the same one a start later.
        assert!(verify(&good, &other, now).unwrap_err().message.contains("than the active one"));
        // Somebody with the owner's name, and a guardian that may open it.
        let (foreign, _) = Protector::new(&twin, &[second.public().clone()], now).unwrap();
        let forge = |by: &Guardian, from: &str, to: &Protector| {
            let payload = Payload { from: from.into(), to: String::from_utf8(to.to_xml()).unwrap() };
            signed::sign(KIND, &serde_json::to_vec(&payload).unwrap(), by).unwrap()
        };
        for (by, to) in [(&twin, &foreign), (&twin, &granted), (&fabric, &granted)] {
            let refused = verify(&forge(by, &current.digest(), to), &current, now).unwrap_err();
            assert!(refused.message.contains("not signed by the VM's owner"), "{}", refused.message);
        }
        let refused = verify(&forge(&owner, &current.digest(), &foreign), &current, now).unwrap_err();
        assert!(refused.message.contains("another owner"), "{}", refused.message);
        assert!(sign(&twin, &current, &granted).is_err());
        // Damaged anywhere.
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(verify(&bad, &current, now).is_err(), "byte {at}");
        }
        let permit = signed::sign("drydock/stale-permit", b"{}", &owner).unwrap();
        assert!(verify(&permit, &current, now).is_err());
        assert!(verify(&good, &current, now + Duration::days(2)).is_err());
    }
}
