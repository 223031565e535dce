//! What every request for a health certificate must look like, whatever evidence is in it, and why one is refused.

use crate::error::Error;
use crate::identity::IdentityPublic;
use crate::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, provided};

/// More items than any mode of the protocol provides.
const MAX_ITEMS: usize = 16;

/// Why a host gets no health certificate: its request is malformed, or the host is not entitled to one. What is wrong
/// with the evidence in a well-formed request, its [`Verifier`](crate::Verifier) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More items than any mode provides.
    #[error("the request has too many items")]
    TooManyItems,
    /// Only an encryption key certificate is issued.
    #[error("the request asks for something other than an encryption key certificate")]
    RequestedContent,
    /// The key to certify is missing, repeated or of another kind.
    #[error("the request has no VirtualSecureModeIdentityKey, or more than one, or it is not RSA of 2048 to 4096 bits")]
    IdentityKey,
    /// The host key is missing, repeated or of another kind.
    #[error("the request has no HostKeyPublicKey, or more than one, or it is not ECDSA P-256")]
    HostKey,
    /// The host key's signature is missing or repeated.
    #[error("the request has no HostKeySignature, or more than one")]
    Signature,
    /// The TPM's endorsement key is missing, repeated or of another kind.
    #[error("the request has no EndorsementKey, or more than one, or it is not RSA of 2048 bits")]
    EndorsementKey,
    /// The TPM's context is damaged or repeated.
    #[error("the request's RtpmContext cannot be read, or there is more than one")]
    Context,
    /// No host is registered with this key.
    #[error("this host's key is not registered")]
    NotRegistered,
    /// The registered host key did not sign the key to certify.
    #[error("the signature was not made by the registered host key")]
    WrongSignature,
}

impl Refusal {
    /// Whether the request is malformed (PayloadErrorReply), as opposed to a host that is not entitled
    /// (UnauthorizedErrorReply).
    #[must_use]
    pub fn is_payload(self) -> bool {
        !matches!(self, Refusal::NotRegistered | Refusal::WrongSignature)
    }
}

/// The items of a request that asks for what is issued here, and for nothing else.
#[derive(Clone, Copy)]
pub struct Items<'a>(&'a AttestationRequest);

impl<'a> Items<'a> {
    pub(crate) fn of(request: &'a AttestationRequest) -> Result<Self, Refusal> {
        if request.provided.len() > MAX_ITEMS || request.requested.len() > MAX_ITEMS {
            return Err(Refusal::TooManyItems);
        }
        if request.requested != [RESULT_ENCRYPTION_CERTIFICATE] {
            return Err(Refusal::RequestedContent);
        }
        Ok(Items(request))
    }

    /// The key that the host wants certified.
    pub(crate) fn identity(&self) -> Result<IdentityPublic, Refusal> {
        self.parsed(provided::IDENTITY_KEY, IdentityPublic::from_der).ok_or(Refusal::IdentityKey)
    }

    /// Whether there is an item of this kind, an AttestationProvidedContentType.
    #[must_use]
    pub fn has(&self, kind: u32) -> bool {
        self.0.provided.iter().any(|item| item.kind == kind)
    }

    /// The content of the only item of this kind; two of a kind could be read differently by two readers.
    #[must_use]
    pub fn single(&self, kind: u32) -> Option<Vec<u8>> {
        let mut items = self.0.provided.iter().filter(|item| item.kind == kind);
        let item = items.next()?;
        if items.next().is_some() { None } else { item.decode() }
    }

    /// The same, if `parse` takes it.
    pub(crate) fn parsed<T>(&self, kind: u32, parse: impl FnOnce(&[u8]) -> Result<T, Error>) -> Option<T> {
        self.single(kind).and_then(|content| parse(&content).ok())
    }
}
