//! An owner's permit to start a VM once from a stale protector: it makes a restore from backup possible where stale
//! protectors are refused.

use data_encoding::HEXLOWER;
use key_protector::{Approval, Protector, Refusal, Signer, signed};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::{Error, Result};

const KIND: &str = "drydock/stale-permit";

/// What the owner signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Distinguishes permits: each is good for one restore.
    pub id: String,
    /// SHA-256 of the protector document.
    pub protector: String,
    /// Fingerprint of the signer's signing certificate.
    pub owner: String,
    /// The last moment at which it is good.
    pub not_after: OffsetDateTime,
}

/// Only years beyond 9999 have no such form.
fn rfc3339(instant: OffsetDateTime) -> String {
    instant.format(&Rfc3339).unwrap_or_else(|_| instant.to_string())
}

/// Whether this is so many bytes in lower-case hexadecimal.
fn is_hex(text: &str, length: usize) -> bool {
    HEXLOWER.decode(text.as_bytes()).is_ok_and(|bytes| bytes.len() == length)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    id: String,
    protector: String,
    /// Seconds since 1970.
    not_after: i64,
}

impl Permit {
    /// Its end, in RFC 3339.
    pub(crate) fn until(&self) -> String {
        rfc3339(self.not_after)
    }

    /// Signs a permit for `protector`, which must be the signer's own.
    ///
    /// # Errors
    /// `OtherOwner`, `Permit` (the key cannot sign).
    pub fn sign(owner: &dyn Signer, protector: &Protector, not_after: OffsetDateTime) -> Result<Vec<u8>> {
        if protector.owner().signing_certificate() != owner.public().signing() {
            return Err(Error::OtherOwner { owner: protector.owner().signing_certificate().common_name().to_owned() });
        }
        let payload = Payload {
            id: uuid::Uuid::new_v4().simple().to_string(),
            protector: protector.digest(),
            not_after: not_after.unix_timestamp(),
        };
        let payload = serde_json::to_vec(&payload).map_err(|_| Error::BadPermit)?;
        signed::sign(KIND, &payload, owner).map_err(Error::Permit)
    }

    /// Reads a permit that some owner signed. Whether that is the protector's owner is checked when the protector
    /// comes.
    ///
    /// # Errors
    /// `Permit`, `BadPermit`, `PermitExpired`.
    pub fn verify(document: &[u8], now: OffsetDateTime) -> Result<Self> {
        let approval = Approval::of_any_owner().valid_at(now);
        let approved = approval.verify(KIND, document).map_err(|refusal| match refusal {
            Refusal::Document(source) | Refusal::NotValid(source) => Error::Permit(source),
            Refusal::OtherSigner { .. } | Refusal::NotAnOwner { .. } => Error::BadPermit,
        })?;
        let payload: Payload = serde_json::from_slice(approved.payload()).map_err(|_| Error::BadPermit)?;
        let not_after = OffsetDateTime::from_unix_timestamp(payload.not_after).map_err(|_| Error::BadPermit)?;
        if !is_hex(&payload.id, 16) || !is_hex(&payload.protector, 32) {
            return Err(Error::BadPermit);
        }
        if now > not_after {
            return Err(Error::PermitExpired { until: rfc3339(not_after) });
        }
        let owner = approved.by().fingerprint();
        Ok(Permit { id: format!("{owner}/{}", payload.id), protector: payload.protector, owner, not_after })
    }
}
