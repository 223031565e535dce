//! Step 3, on the tenant host: the owner lets one recovery guardian open one VM for some hours.
//!
//! Offline and without an agent: files in, a file out. The owner's private key goes nowhere.

use key_protector::{GuardianPublic, PrivateKeys, Role};
use outcome::rfc3339;
use outcome::{Context, Error, Kind, Result};
use time::{Duration, OffsetDateTime};

use crate::documents::{CheckedRequest, MAX_HOURS, RecoveryGrant, write_grant};

/// What the owner is asked to agree to, for people and scripts.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// The VM's name in the request.
    pub vm_name: String,
    /// The VM.
    pub vm_id: uuid::Uuid,
    /// The recovery.
    pub recovery_id: uuid::Uuid,
    /// The tenant's own name for the garage, which its signature proved.
    pub garage: String,
    /// What the garage calls itself.
    pub garage_says: String,
    /// The recovery guardian's name.
    pub guardian: String,
    /// SHA-256 of its signing certificate, in hexadecimal.
    pub guardian_fingerprint: String,
    /// When the grant expires, by RFC 3339.
    pub not_after: String,
    /// Who can open the VM now, and will be able to after the grant as well.
    pub can_open_now: Vec<String>,
}

/// Describes a request before the owner's key is touched.
#[must_use]
pub fn summary(checked: &CheckedRequest) -> Summary {
    Summary {
        vm_name: checked.request.vm_name.clone(),
        vm_id: checked.request.vm_id,
        recovery_id: checked.request.recovery_id,
        garage: checked.garage.clone(),
        garage_says: checked.request.garage.clone(),
        guardian: checked.guardian.name().to_owned(),
        guardian_fingerprint: checked.guardian.signing().fingerprint(),
        not_after: rfc3339(checked.guardian.not_after()),
        can_open_now: checked
            .protector
            .wrappings()
            .iter()
            .map(|w| w.signing_certificate().common_name().to_owned())
            .collect(),
    }
}

/// Checks, with the public half of the owner guardian, everything that can stand against a grant: nobody is asked for
/// a passphrase for a request that is refused anyway.
///
/// # Errors
/// `BadInput` when the request is not for a VM of this owner, `Refused` when what it asks goes too far.
pub fn check(what: &str, checked: &CheckedRequest, owner: &GuardianPublic, now: OffsetDateTime) -> Result<()> {
    let CheckedRequest { protector, guardian, .. } = checked;
    if guardian.role() != Role::Recovery {
        return Err(Error::new(Kind::Refused, format!("{what}: '{}' is not a recovery guardian", guardian.name()))
            .remedy("a grant is for the temporary guardian that `drydock recovery import` makes, and for no other"));
    }
    if guardian.not_after() - now > Duration::hours(MAX_HOURS) {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "{what}: its recovery guardian is valid until {}, for more than {MAX_HOURS} hours",
                rfc3339(guardian.not_after())
            ),
        )
        .remedy("make a request that is valid for a shorter time: drydock recovery import --hours N, in the garage"));
    }
    let mine = owner.signing().fingerprint();
    if protector.owner().signing_certificate().fingerprint() != mine {
        return Err(Error::new(
            Kind::BadInput,
            format!(
                "{what}: the VM belongs to '{}', not to '{}'",
                protector.owner().signing_certificate().common_name(),
                owner.name()
            ),
        )
        .remedy("use the owner guardian that the VM was provisioned with"));
    }
    Ok(())
}

/// Issues the grant.
///
/// # Errors
/// Those of [`check`], and `BadInput` when the key protector cannot be granted.
pub fn issue(what: &str, checked: &CheckedRequest, owner: &dyn PrivateKeys, now: OffsetDateTime) -> Result<Vec<u8>> {
    check(what, checked, owner.public(), now)?;
    let CheckedRequest { request, protector, guardian, .. } = checked;
    let granted = protector
        .grant(owner, guardian, now)
        .context(Kind::BadInput, || format!("{what}: its key protector cannot be granted"))?;
    let grant = RecoveryGrant {
        recovery_id: request.recovery_id,
        vm_id: request.vm_id,
        vm_name: request.vm_name.clone(),
        garage: request.garage.clone(),
        ingress_protector: protector.digest(),
        guardian: guardian.signing().fingerprint(),
        not_after: guardian.not_after().unix_timestamp(),
        protector: String::from_utf8(granted.to_xml()).context(Kind::Internal, || "a protector is UTF-8".into())?,
    };
    write_grant(&grant, owner)
}
