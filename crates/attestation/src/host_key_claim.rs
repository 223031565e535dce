//! Judging a host-key attestation (MS-HGSA 3.1.5.3.1.3).

use crate::error::Result;
use crate::host_key::{HostKey, HostPublicKey};
use crate::identity::IdentityPublic;
use crate::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, Tuple, provided};

/// More items than any mode of the protocol provides.
pub(crate) const MAX_ITEMS: usize = 16;

/// Why a host gets no health certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request has too many items")]
    TooManyItems,
    #[error("the request asks for something else than an encryption key certificate")]
    RequestedContent,
    #[error("the request has no VirtualSecureModeIdentityKey, or more than one, or it is not RSA of 2048 to 4096 bits")]
    IdentityKey,
    #[error("the request has no HostKeyPublicKey, or more than one, or it is not ECDSA P-256")]
    HostKey,
    #[error("the request has no HostKeySignature, or more than one")]
    Signature,
    #[error("the request has no EndorsementKey, or more than one, or it is not RSA of 2048 bits")]
    EndorsementKey,
    #[error("the request's RtpmContext cannot be read, or there is more than one")]
    Context,
    #[error("this host's key is not registered")]
    NotRegistered,
    #[error("the signature was not made by the registered host key")]
    WrongSignature,
}

impl Refusal {
    /// Whether the request was malformed (PayloadErrorReply) rather than the host unknown
    /// (UnauthorizedErrorReply).
    #[must_use]
    pub fn is_payload(self) -> bool {
        !matches!(self, Refusal::NotRegistered | Refusal::WrongSignature)
    }
}

/// A well-formed request whose signature nobody has checked yet.
pub struct Claim {
    host: HostPublicKey,
    identity: IdentityPublic,
    signature: Vec<u8>,
}

/// What was proven: this registered host holds its key and vouches for this identity key.
pub struct Evidence {
    pub host: HostPublicKey,
    pub identity: IdentityPublic,
}

impl Claim {
    /// # Errors
    /// The refusals for which [`Refusal::is_payload`] holds.
    pub fn from_request(request: &AttestationRequest) -> std::result::Result<Self, Refusal> {
        if request.provided.len() > MAX_ITEMS || request.requested.len() > MAX_ITEMS {
            return Err(Refusal::TooManyItems);
        }
        if request.requested != [RESULT_ENCRYPTION_CERTIFICATE] {
            return Err(Refusal::RequestedContent);
        }
        let identity = single(request, provided::IDENTITY_KEY)
            .and_then(|der| IdentityPublic::from_der(&der).ok())
            .ok_or(Refusal::IdentityKey)?;
        let host = single(request, provided::HOST_KEY_PUBLIC)
            .and_then(|der| HostPublicKey::from_der(&der).ok())
            .ok_or(Refusal::HostKey)?;
        let signature = single(request, provided::HOST_KEY_SIGNATURE).ok_or(Refusal::Signature)?;
        Ok(Claim { host, identity, signature })
    }

    /// The key the host says it has: what to look up in the store.
    #[must_use]
    pub fn host(&self) -> &HostPublicKey {
        &self.host
    }
}

/// `registered` is the key found in the store under the claim's fingerprint.
///
/// A recorded request can be sent again by anybody. It gains nothing: the certificate it yields is for an
/// identity key whose private half never left the host.
///
/// # Errors
/// `NotRegistered`, `WrongSignature`.
pub fn judge(claim: Claim, registered: Option<&HostPublicKey>) -> std::result::Result<Evidence, Refusal> {
    let registered = registered.filter(|key| **key == claim.host).ok_or(Refusal::NotRegistered)?;
    if !registered.certified(&claim.identity, &claim.signature) {
        return Err(Refusal::WrongSignature);
    }
    Ok(Evidence { host: claim.host, identity: claim.identity })
}

impl AttestationRequest {
    /// The request of a host for a certificate over `identity`.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn host_key(host: &HostKey, identity: &IdentityPublic, session_id: &[u8; 16]) -> Result<Self> {
        let signature = host.certify(identity)?;
        Ok(AttestationRequest {
            session_id: Tuple::new(0, session_id).content,
            requested: vec![RESULT_ENCRYPTION_CERTIFICATE],
            provided: vec![
                Tuple::new(provided::IDENTITY_KEY, identity.der()),
                Tuple::new(provided::HOST_KEY_PUBLIC, host.public()?.der()),
                Tuple::new(provided::HOST_KEY_SIGNATURE, &signature),
            ],
        })
    }
}

/// The only item of this kind; two of a kind could be read differently by two readers.
pub(crate) fn single(request: &AttestationRequest, kind: u32) -> Option<Vec<u8>> {
    let mut items = request.provided.iter().filter(|item| item.kind == kind);
    let item = items.next()?;
    if items.next().is_some() { None } else { item.decode() }
}
