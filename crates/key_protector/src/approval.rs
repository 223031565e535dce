//! Who must have signed a document before it counts.
//!
//! A document that verifies proves only that some key signed it. An [`Approval`] says whose key it
//! has to be, and is the one place that compares signers:
//!
//! ```
//! use key_protector::{Approval, Guardian, KeyKind, Refusal, Role, signed};
//! use time::{Duration, OffsetDateTime};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = OffsetDateTime::now_utc();
//! let guardian = |name| Guardian::generate(name, Role::Owner, KeyKind::Rsa2048, now, now + Duration::DAY);
//! let (owner, other) = (guardian("tenant")?, guardian("other-tenant")?);
//!
//! let document = signed::sign("example/order", b"start", &owner)?;
//! let needed = Approval::of(owner.public().signing()).valid_at(now);
//! assert_eq!(needed.verify("example/order", &document)?.payload(), b"start");
//!
//! let forged = signed::sign("example/order", b"start", &other)?;
//! assert!(matches!(needed.verify("example/order", &forged), Err(Refusal::OtherSigner { .. })));
//! # Ok(())
//! # }
//! ```
//!
//! Today one signature approves. Several owners, M of N, are another way to make an [`Approval`]
//! and more signatures in [`Verified`]; the callers stay as they are.

use time::OffsetDateTime;

use crate::certificate::{Certificate, Role};
use crate::error::Error;
use crate::protector::Protector;
use crate::signed::{self, Verified};

/// Whose signature a document needs.
#[derive(Clone, Debug)]
pub struct Approval {
    approver: Approver,
    at: Option<OffsetDateTime>,
}

#[derive(Clone, Debug)]
enum Approver {
    This(Certificate),
    AnyOwner,
}

/// What was approved, and by whom.
#[derive(Debug)]
pub struct Approved {
    verified: Verified,
}

/// Why a document is not approved.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not a signed document of this type, or its signature is wrong.
    #[error("it is not a signed document of the expected type")]
    Document(#[source] Error),
    /// Its signer's certificate is not valid at the instant that counts.
    #[error("its signer is not valid now")]
    NotValid(#[source] Error),
    /// Another key signed it, perhaps of a guardian with the same name.
    #[error("it is signed by {signer:?}, not by {expected:?}")]
    OtherSigner {
        /// Who must sign.
        expected: String,
        /// Who did.
        signer: String,
    },
    /// Its signer is not an owner guardian.
    #[error("it is signed by {signer:?}, who is not an owner guardian")]
    NotAnOwner {
        /// Who signed.
        signer: String,
    },
}

impl Approval {
    /// The signature of exactly this certificate's key.
    pub fn of(signing_certificate: &Certificate) -> Self {
        Self { approver: Approver::This(signing_certificate.clone()), at: None }
    }

    /// The signature of `protector`'s owner.
    pub fn of_owner(protector: &Protector) -> Self {
        Self::of(protector.owner().signing_certificate())
    }

    /// The signature of some owner guardian, where whose VM it is shows only later. Compare
    /// [`Approved::by`] then.
    pub fn of_any_owner() -> Self {
        Self { approver: Approver::AnyOwner, at: None }
    }

    /// Requires the signer's certificate to be valid at `now` as well.
    #[must_use]
    pub fn valid_at(self, now: OffsetDateTime) -> Self {
        Self { at: Some(now), ..self }
    }

    /// Reads a signed document of type `kind` and requires this approval of it.
    ///
    /// # Errors
    /// Every [`Refusal`].
    pub fn verify(&self, kind: &str, document: &[u8]) -> Result<Approved, Refusal> {
        self.check(signed::verify(kind, document).map_err(Refusal::Document)?)
    }

    /// Requires this approval of a document that has been read already, because its content says
    /// who has to approve it.
    ///
    /// # Errors
    /// Every [`Refusal`] but [`Refusal::Document`].
    pub fn check(&self, verified: Verified) -> Result<Approved, Refusal> {
        let signer = &verified.signer;
        if let Some(now) = self.at {
            signer.check_valid_at(now).map_err(Refusal::NotValid)?;
        }
        let name = || signer.common_name().to_owned();
        match &self.approver {
            Approver::This(expected) if signer != expected => {
                Err(Refusal::OtherSigner { expected: expected.common_name().to_owned(), signer: name() })
            }
            Approver::AnyOwner if signer.role() != Some(Role::Owner) => Err(Refusal::NotAnOwner { signer: name() }),
            Approver::This(_) | Approver::AnyOwner => Ok(Approved { verified }),
        }
    }
}

impl Approved {
    /// What was signed.
    pub fn payload(&self) -> &[u8] {
        &self.verified.payload
    }

    /// The signing certificate of whoever approved it.
    pub fn by(&self) -> &Certificate {
        &self.verified.signer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use time::Duration;

    use super::*;
    use crate::guardian::Guardian;
    use crate::guardian_public::GuardianPublic;
    use crate::memory_keys::KeyKind;
    use crate::test_support::{NOW, guardian};

    const KIND: &str = "order";

    fn order(by: &Guardian) -> Vec<u8> {
        signed::sign(KIND, b"start", by).unwrap()
    }

    #[test]
    fn only_the_named_signer_approves() {
        let owner = guardian("tenant", Role::Owner);
        let publics: [GuardianPublic; 1] = [guardian("fabric", Role::Fabric).public().clone()];
        let (protector, _) = Protector::new(owner, &publics, NOW).unwrap();
        let needed = Approval::of_owner(&protector).valid_at(NOW);
        let approved = needed.verify(KIND, &order(owner)).unwrap();
        assert_eq!(approved.payload(), b"start");
        assert_eq!(approved.by(), owner.public().signing());
        // A guardian of the same protector, and another with the owner's name.
        let namesake = Guardian::generate("tenant", Role::Owner, KeyKind::Rsa2048, NOW, NOW + Duration::DAY).unwrap();
        for by in [guardian("fabric", Role::Fabric), &namesake] {
            let refused = needed.verify(KIND, &order(by)).unwrap_err();
            assert!(matches!(refused, Refusal::OtherSigner { .. }), "{refused}");
        }
    }

    #[test]
    fn an_expired_signer_approves_nothing() {
        let owner = guardian("tenant", Role::Owner);
        let end = owner.public().signing().not_after();
        let needed = Approval::of(owner.public().signing());
        assert!(needed.clone().valid_at(end).verify(KIND, &order(owner)).is_ok());
        let late = needed.clone().valid_at(end + Duration::SECOND);
        assert!(matches!(late.verify(KIND, &order(owner)), Err(Refusal::NotValid(Error::Expired { .. }))));
        // Where no instant counts, the lifetime does not either.
        assert!(needed.verify(KIND, &order(owner)).is_ok());
    }

    #[test]
    fn any_owner_is_an_owner() {
        let needed = Approval::of_any_owner();
        for name in ["tenant", "other-tenant"] {
            let owner = guardian(name, Role::Owner);
            assert_eq!(needed.verify(KIND, &order(owner)).unwrap().by(), owner.public().signing());
        }
        for role in [Role::Fabric, Role::Recovery] {
            let refused = needed.verify(KIND, &order(guardian("someone", role))).unwrap_err();
            assert!(matches!(refused, Refusal::NotAnOwner { .. }), "{refused}");
        }
    }

    #[test]
    fn what_does_not_verify_is_not_approved() {
        let owner = guardian("tenant", Role::Owner);
        let needed = Approval::of_any_owner();
        let refused = needed.verify("receipt", &order(owner)).unwrap_err();
        assert!(matches!(refused, Refusal::Document(Error::SignedKind { .. })), "{refused}");
        assert!(matches!(needed.verify(KIND, b"{}"), Err(Refusal::Document(Error::SignedEncoding { .. }))));
    }
}
