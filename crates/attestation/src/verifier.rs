//! How a host's evidence is judged, whatever its kind.
//!
//! ```text
//! AttestationRequest ──▶ Claim ──▶ Registered ──▶ Verifier ──▶ Evidence ──▶ HealthCa::issue
//!                     well-formed   host known     proven
//! ```
//!
//! The types enforce the order: only a [`Verifier`] makes [`Evidence`], and it judges only claims of hosts that were
//! found in the store.
//!
//! | Kind of evidence | Claim | Verifier |
//! |---|---|---|
//! | a host key's signature | [`HostKeyClaim`](crate::HostKeyClaim) | [`HostKeyVerifier`](crate::HostKeyVerifier) |
//! | a TPM's quote and the firmware's log | [`TpmClaim`](crate::tpm::TpmClaim) | [`TpmVerifier`](crate::tpm::TpmVerifier) |
//!
//! A further kind (a measured host image, a report of SEV-SNP or TDX) is a claim and a verifier of its own, a
//! [`HostKind`](crate::HostKind) with its [`HostIdentity`], and a route of the service that reads its requests.

use crate::host_identity::HostIdentity;
use crate::identity::IdentityPublic;
use crate::messages::AttestationRequest;
use crate::request::{Items, Refusal};

/// What a request of one kind claims. It is well-formed; nothing in it has been proven.
pub trait Claim: Sized {
    /// Reads the items of this kind of evidence. `identity` is the key that the host wants certified.
    ///
    /// # Errors
    /// The refusals for which [`Refusal::is_payload`] holds.
    fn from_items(identity: IdentityPublic, items: Items<'_>) -> Result<Self, Refusal>;

    /// The host that the request claims to be from: its fingerprint is what to look up in the store.
    fn host(&self) -> HostIdentity;

    /// The key to certify.
    fn identity(&self) -> &IdentityPublic;

    /// Checks what all kinds have in common, then reads the rest.
    ///
    /// # Errors
    /// The refusals for which [`Refusal::is_payload`] holds.
    fn from_request(request: &AttestationRequest) -> Result<Self, Refusal> {
        let items = Items::of(request)?;
        Self::from_items(items.identity()?, items)
    }
}

/// A claim to be a host that is registered with that very key.
pub struct Registered<C>(C);

impl<C: Claim> Registered<C> {
    /// `found` is what the store has under the fingerprint of [`Claim::host`].
    ///
    /// # Errors
    /// `NotRegistered`.
    pub fn check(claim: C, found: Option<&HostIdentity>) -> Result<Self, Refusal> {
        if found == Some(&claim.host()) { Ok(Registered(claim)) } else { Err(Refusal::NotRegistered) }
    }

    /// What the registered host claims.
    #[must_use]
    pub fn claim(&self) -> &C {
        &self.0
    }
}

/// Judges one kind of evidence. An implementation has what it compares with; it does no I/O and reads no clock.
pub trait Verifier {
    /// What it judges.
    type Claim: Claim;
    /// Why evidence of this kind proves nothing.
    type Failure: std::error::Error;

    /// Whether the evidence in the claim proves it: this host, in an acceptable state, vouches for the key to certify.
    ///
    /// # Errors
    /// The rule that is broken.
    fn judge(&self, claim: &Self::Claim) -> Result<(), Self::Failure>;

    /// Judges the claim of a registered host.
    ///
    /// # Errors
    /// The rule that is broken.
    fn verify(&self, registered: &Registered<Self::Claim>) -> Result<Evidence, Self::Failure> {
        let claim = registered.claim();
        self.judge(claim)?;
        Ok(Evidence { host: claim.host(), identity: claim.identity().clone() })
    }
}

/// What was proven: this registered host vouches for this identity key.
pub struct Evidence {
    host: HostIdentity,
    identity: IdentityPublic,
}

impl Evidence {
    /// The host that gave it.
    #[must_use]
    pub fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// The key to certify.
    #[must_use]
    pub fn identity(&self) -> &IdentityPublic {
        &self.identity
    }
}
