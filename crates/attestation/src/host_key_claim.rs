//! Evidence by a host key (MS-HGSA 3.1.5.3.1.3).

use crate::error::Result;
use crate::host_identity::HostIdentity;
use crate::host_key::{HostKey, HostPublicKey};
use crate::identity::IdentityPublic;
use crate::messages::{AttestationRequest, Tuple, provided};
use crate::request::{Items, Refusal};
use crate::verifier::{Claim, Verifier};

/// A well-formed request of host-key mode whose signature has not been checked.
pub struct HostKeyClaim {
    host: HostPublicKey,
    identity: IdentityPublic,
    signature: Vec<u8>,
}

impl Claim for HostKeyClaim {
    fn from_items(identity: IdentityPublic, items: Items<'_>) -> std::result::Result<Self, Refusal> {
        let host = items.parsed(provided::HOST_KEY_PUBLIC, HostPublicKey::from_der).ok_or(Refusal::HostKey)?;
        let signature = items.single(provided::HOST_KEY_SIGNATURE).ok_or(Refusal::Signature)?;
        Ok(HostKeyClaim { host, identity, signature })
    }

    fn host(&self) -> HostIdentity {
        HostIdentity::HostKey(self.host.clone())
    }

    fn identity(&self) -> &IdentityPublic {
        &self.identity
    }
}

/// Passes whoever holds the private half of the registered key.
///
/// Anyone can send a recorded request again. That gains nothing: the certificate that it yields is for an identity key
/// whose private half never left the host.
pub struct HostKeyVerifier;

impl Verifier for HostKeyVerifier {
    type Claim = HostKeyClaim;
    type Failure = Refusal;

    fn judge(&self, claim: &HostKeyClaim) -> std::result::Result<(), Refusal> {
        let HostKeyClaim { host, identity, signature } = claim;
        if host.certified(identity, signature) { Ok(()) } else { Err(Refusal::WrongSignature) }
    }
}

impl AttestationRequest {
    /// The request of a host for a certificate over `identity`.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn host_key(host: &HostKey, identity: &IdentityPublic, session_id: &[u8; 16]) -> Result<Self> {
        let signature = host.certify(identity)?;
        let evidence = [
            Tuple::new(provided::HOST_KEY_PUBLIC, host.public()?.der()),
            Tuple::new(provided::HOST_KEY_SIGNATURE, &signature),
        ];
        Ok(AttestationRequest::for_certificate(session_id, identity.der(), evidence))
    }
}
