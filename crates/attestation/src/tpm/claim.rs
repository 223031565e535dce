//! The messages of TPM mode (MS-HGSA 3.1.5.1), and the evidence in them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{AkPublic, Blob, Context, EkPublic, EventLog, KeyError, LogError, Quote, QuoteError, qualifying_data};
use crate::identity::IdentityPublic;
use crate::judge::{MAX_ITEMS, Refusal, single};
use crate::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, Tuple, provided};

/// A well-formed request of TPM mode, of which nothing has been proven.
pub struct TpmClaim {
    pub ek: EkPublic,
    pub identity: IdentityPublic,
    /// Empty when the host sent none.
    pub context: Context,
}

impl TpmClaim {
    /// # Errors
    /// The refusals for which [`Refusal::is_payload`] holds.
    pub fn from_request(request: &AttestationRequest) -> Result<Self, Refusal> {
        if request.provided.len() > MAX_ITEMS || request.requested.len() > MAX_ITEMS {
            return Err(Refusal::TooManyItems);
        }
        if request.requested != [RESULT_ENCRYPTION_CERTIFICATE] {
            return Err(Refusal::RequestedContent);
        }
        let identity = single(request, provided::IDENTITY_KEY)
            .and_then(|der| IdentityPublic::from_der(&der).ok())
            .ok_or(Refusal::IdentityKey)?;
        let ek = single(request, provided::ENDORSEMENT_KEY)
            .and_then(|der| EkPublic::from_der(&der).ok())
            .ok_or(Refusal::EndorsementKey)?;
        let context = if request.provided.iter().any(|item| item.kind == provided::RTPM_CONTEXT) {
            let bytes = single(request, provided::RTPM_CONTEXT).ok_or(Refusal::Context)?;
            if bytes.is_empty() { Context::default() } else { Context::parse(&bytes).ok_or(Refusal::Context)? }
        } else {
            Context::default()
        };
        Ok(TpmClaim { ek, identity, context })
    }
}

impl AttestationRequest {
    /// The request of a host in TPM mode; `None` when the context is too large for any service.
    #[must_use]
    pub fn tpm(ek: &EkPublic, identity: &IdentityPublic, session_id: &[u8; 16], context: &Context) -> Option<Self> {
        Some(AttestationRequest {
            session_id: STANDARD.encode(session_id),
            requested: vec![RESULT_ENCRYPTION_CERTIFICATE],
            provided: vec![
                Tuple::new(provided::IDENTITY_KEY, identity.der()),
                Tuple::new(provided::ENDORSEMENT_KEY, ek.der()),
                Tuple::new(provided::RTPM_CONTEXT, &context.write()?),
            ],
        })
    }
}

/// Why a host's evidence does not show how it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    #[error("the evidence has no {0:?}")]
    Missing(Blob),
    #[error("the attestation key cannot be used: {0}")]
    Key(KeyError),
    #[error("{0}")]
    Quote(QuoteError),
    #[error("{0}")]
    Log(LogError),
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

/// Checks that `ak` quoted the PCRs for this nonce and this identity key, and that the log leads to them. The
/// caller has proven that the AK is in the registered TPM.
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
