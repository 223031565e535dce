//! Evidence by a TPM (MS-HGSA 3.1.5.1): the requests of TPM mode, and how the last one is judged.

use super::context::{Blob, Context};
use super::event_log::{EventLog, LogError};
use super::keys::{AkPublic, EkPublic, KeyError};
use super::policy::{Evaluation, Policy};
use super::quote::{Quote, QuoteError, qualifying_data};
use crate::host_identity::HostIdentity;
use crate::identity::IdentityPublic;
use crate::messages::{AttestationRequest, Tuple, provided};
use crate::request::{Items, Refusal};
use crate::verifier::{Claim, Verifier};

/// A well-formed request of TPM mode, of which nothing has been proven.
pub struct TpmClaim {
    /// The TPM's endorsement key.
    pub ek: EkPublic,
    /// The key to certify.
    pub identity: IdentityPublic,
    /// Empty when the host sent none.
    pub context: Context,
}

impl Claim for TpmClaim {
    fn from_items(identity: IdentityPublic, items: Items<'_>) -> Result<Self, Refusal> {
        let ek = items.parsed(provided::ENDORSEMENT_KEY, EkPublic::from_der).ok_or(Refusal::EndorsementKey)?;
        let context = if items.has(provided::RTPM_CONTEXT) {
            let bytes = items.single(provided::RTPM_CONTEXT).ok_or(Refusal::Context)?;
            if bytes.is_empty() { Context::default() } else { Context::parse(&bytes).ok_or(Refusal::Context)? }
        } else {
            Context::default()
        };
        Ok(TpmClaim { ek, identity, context })
    }

    fn host(&self) -> HostIdentity {
        HostIdentity::Tpm(self.ek.clone())
    }

    fn identity(&self) -> &IdentityPublic {
        &self.identity
    }
}

/// Passes the registered TPM if its quote is fresh, the log leads to what it quoted, and the policy accepts the log.
///
/// The caller has proven that `ak` is in the registered TPM: with a [credential](super::make_credential) that it
/// opened.
pub struct TpmVerifier<'a> {
    /// The attestation key that quotes.
    pub ak: &'a AkPublic,
    /// The service's nonce for this quote.
    pub nonce: &'a [u8; 32],
    /// How the host must have been started.
    pub policy: &'a Policy,
}

impl Verifier for TpmVerifier<'_> {
    type Claim = TpmClaim;
    type Failure = TpmFailure;

    fn judge(&self, claim: &TpmClaim) -> Result<(), TpmFailure> {
        let log = measured_boot(&claim.context, self.ak, self.nonce, &claim.identity)?;
        let failed = self.policy.evaluate(&log);
        if failed.is_empty() { Ok(()) } else { Err(TpmFailure::Policy(failed)) }
    }
}

/// Why a TPM's evidence does not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TpmFailure {
    /// It does not show how the host was started.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// It shows that the host was started in another way than the policy demands.
    #[error("{}", .0.iter().map(Evaluation::to_string).collect::<Vec<_>>().join("; "))]
    Policy(Vec<Evaluation>),
}

impl AttestationRequest {
    /// The request of a host in TPM mode; `None` when the context is too large for any service.
    #[must_use]
    pub fn tpm(ek: &EkPublic, identity: &IdentityPublic, session_id: &[u8; 16], context: &Context) -> Option<Self> {
        let evidence =
            [Tuple::new(provided::ENDORSEMENT_KEY, ek.der()), Tuple::new(provided::RTPM_CONTEXT, &context.write()?)];
        Some(AttestationRequest::for_certificate(session_id, identity.der(), evidence))
    }
}

/// Why a host's evidence does not show how it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// A part of it is missing.
    #[error("the evidence has no {0:?}")]
    Missing(Blob),
    /// The attestation key is of the wrong kind.
    #[error("the attestation key cannot be used: {0}")]
    Key(KeyError),
    /// The quote proves nothing.
    #[error("{0}")]
    Quote(QuoteError),
    /// The event log cannot be read.
    #[error("{0}")]
    Log(LogError),
    /// The event log is not the log of this boot.
    #[error("the event log does not lead to the PCRs that the TPM quoted")]
    LogMismatch,
}

impl EvidenceError {
    /// Whether the log is at fault (TcgLogValidationErrorReply) rather than what the TPM said (RtpmErrorReply).
    #[must_use]
    pub fn is_log(self) -> bool {
        matches!(self, EvidenceError::Log(_) | EvidenceError::LogMismatch | EvidenceError::Missing(Blob::EventLog))
    }
}

/// The attestation key in a context.
///
/// # Errors
/// `Missing`, `Key`.
pub fn attestation_key(context: &Context) -> Result<AkPublic, EvidenceError> {
    AkPublic::parse(blob(context, Blob::AttestationKey)?).map_err(EvidenceError::Key)
}

/// Checks that `ak` quoted the PCRs for this nonce and this identity key, and that the log leads to them. The caller
/// has proven that `ak` is in the registered TPM.
///
/// # Errors
/// The rule that is broken.
pub fn measured_boot(
    context: &Context,
    ak: &AkPublic,
    nonce: &[u8; 32],
    identity: &IdentityPublic,
) -> Result<EventLog, EvidenceError> {
    let (attest, signature) = (blob(context, Blob::Quote)?, blob(context, Blob::Signature)?);
    let qualifying = qualifying_data(nonce, identity);
    let quote = Quote::verify(attest, signature, ak, &qualifying).map_err(EvidenceError::Quote)?;
    let log = EventLog::parse(blob(context, Blob::EventLog)?).map_err(EvidenceError::Log)?;
    if !quote.is_over(&log.replay()) {
        return Err(EvidenceError::LogMismatch);
    }
    Ok(log)
}

fn blob(context: &Context, kind: Blob) -> Result<&[u8], EvidenceError> {
    context.blob(kind).ok_or(EvidenceError::Missing(kind))
}
