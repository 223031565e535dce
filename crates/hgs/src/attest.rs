//! The attestation service: MS-HGSA 3.1.5.3 (host key), 3.1.5.4 (getinfo), 3.1.5.5 (signing certificates), and what is
//! the same for every kind of evidence. The exchange of TPM mode is in [`crate::tpm_attest`].

use attestation::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, Reply, Tuple};
use attestation::{Claim, Evidence, HostKeyClaim, HostKeyVerifier, Refusal, Registered, Verifier};

use crate::admin::Hgs;
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::pkcs7;

/// A request that went as far as the store: the registered host that it claims to be from, and the row to write about
/// it. Otherwise the reply that refuses it.
type Identified<C> = std::result::Result<(Registered<C>, Record), Reply>;

/// Judges one request of host-key mode and writes the decision down.
///
/// # Errors
/// Only failures of the service itself; a refusal is a reply.
pub(crate) async fn host_key_attest(hgs: &Hgs, body: &[u8]) -> Result<Reply> {
    let (claim, record) = match identify::<HostKeyClaim>(hgs, body).await? {
        Ok(identified) => identified,
        Err(reply) => return Ok(reply),
    };
    match HostKeyVerifier.verify(&claim) {
        Ok(evidence) => certify(hgs, &evidence, record, "").await,
        Err(refusal) => refuse(hgs, refusal, record).await,
    }
}

/// Reads a request, whatever its kind of evidence, and looks its host up. Refusals are written down.
///
/// # Errors
/// Only failures of the service itself.
pub(crate) async fn identify<C: Claim>(hgs: &Hgs, body: &[u8]) -> Result<Identified<C>> {
    let request: AttestationRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("not an AttestationRequest: {error}");
            let record = Record { why: message.clone(), ..Record::default() };
            hgs.record_unproven(Event::AttestationRefused, record).await?;
            return Ok(Err(Reply::PayloadError { retryable: false, message }));
        }
    };
    let claim = match C::from_request(&request) {
        Ok(claim) => claim,
        Err(refusal) => return refuse(hgs, refusal, Record::default()).await.map(Err),
    };
    let host_key = claim.host().fingerprint();
    let (host, identity) = match hgs.store.host_by_key(&host_key).await? {
        Some(entry) => (entry.name, Some(entry.identity)),
        None => Default::default(),
    };
    let mut record = Record { host_key, ..Record::default() };
    match Registered::check(claim, identity.as_ref()) {
        Ok(registered) => {
            record.host = host;
            Ok(Ok((registered, record)))
        }
        Err(refusal) => refuse(hgs, refusal, record).await.map(Err),
    }
}

/// Issues the health certificate of a host that passed, after writing it down. `how` begins the row's reason.
pub(crate) async fn certify(hgs: &Hgs, evidence: &Evidence, mut record: Record, how: &str) -> Result<Reply> {
    record.why = format!("{how}health certificate for {} minutes", hgs.health_lifetime().whole_minutes());
    let ca = &hgs.keys.attestation_ca;
    let certificate = ca.issue(&record.host, evidence.host(), evidence.identity(), hgs.now(), hgs.health_lifetime())?;
    hgs.record(Event::Attested, record).await?;
    Ok(Reply::HealthCertificate { content: vec![Tuple::new(RESULT_ENCRYPTION_CERTIFICATE, &certificate)] })
}

/// Refuses a peer that has not proved who it is.
async fn refuse(hgs: &Hgs, refusal: Refusal, mut record: Record) -> Result<Reply> {
    let message = refusal.to_string();
    record.why.clone_from(&message);
    hgs.record_unproven(Event::AttestationRefused, record).await?;
    Ok(if refusal.is_payload() {
        Reply::PayloadError { retryable: false, message }
    } else {
        Reply::UnauthorizedError { retryable: false, message }
    })
}

/// The reply to a request for another mode than the service's own.
pub(crate) fn other_mode(hgs: &Hgs) -> Reply {
    Reply::OperationModeError { expected_operation_mode: hgs.mode().operation_mode(), retryable: false }
}

/// The reply to getinfo.
pub(crate) fn service_info(hgs: &Hgs) -> Reply {
    Reply::service_info(hgs.mode().operation_mode())
}

/// MS-HGSA 3.1.5.5: the certificate under which health certificates are issued.
pub(crate) fn signing_certificates(hgs: &Hgs) -> Vec<u8> {
    pkcs7::certificates_only(hgs.keys.attestation_ca.der())
}
