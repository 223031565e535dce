//! The attestation service: MS-HGSA 3.1.5.3 (host key), 3.1.5.4 (getinfo), 3.1.5.5 (signing certificates).

use attestation::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, Reply, Tuple};
use attestation::{Claim, Refusal, judge};

use crate::admin::Hgs;
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::pkcs7;

/// Judges one request and writes the verdict down.
///
/// # Errors
/// Only the service's own troubles; a refusal is a reply.
pub(crate) async fn host_key_attest(hgs: &Hgs, body: &[u8]) -> Result<Reply> {
    let request: AttestationRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            let why = format!("not an AttestationRequest: {error}");
            hgs.record_stranger(Event::AttestationRefused, Record { why: why.clone(), ..Record::default() }).await?;
            return Ok(Reply::PayloadError { retryable: false, message: why });
        }
    };
    let claim = match Claim::from_request(&request) {
        Ok(claim) => claim,
        Err(refusal) => return refuse(hgs, refusal, Record::default()).await,
    };
    let fingerprint = claim.host().fingerprint();
    let registered = hgs.store.host_by_key(&fingerprint).await?;
    let mut record = Record {
        host: registered.as_ref().map(|host| host.name.clone()).unwrap_or_default(),
        host_key: fingerprint,
        ..Record::default()
    };
    let evidence = match judge(claim, registered.as_ref().map(|host| &host.public_key)) {
        Ok(evidence) => evidence,
        Err(refusal) => return refuse(hgs, refusal, record).await,
    };
    let certificate = hgs.keys.attestation_ca.issue(
        &record.host,
        &evidence.host,
        &evidence.identity,
        hgs.now(),
        hgs.health_lifetime(),
    )?;
    tracing::info!(host = %record.host, "host attested");
    record.why = format!("health certificate for {} minutes", hgs.health_lifetime().whole_minutes());
    hgs.record(Event::Attested, record).await?;
    Ok(Reply::HealthCertificate { content: vec![Tuple::new(RESULT_ENCRYPTION_CERTIFICATE, &certificate)] })
}

/// MS-HGSA 3.1.5.5: the certificate that health certificates are issued under.
pub(crate) fn signing_certificates(hgs: &Hgs) -> Vec<u8> {
    pkcs7::certificates_only(hgs.keys.attestation_ca.der())
}

async fn refuse(hgs: &Hgs, refusal: Refusal, mut record: Record) -> Result<Reply> {
    let message = refusal.to_string();
    tracing::warn!(host_key = %record.host_key, "attestation refused: {message}");
    record.why.clone_from(&message);
    hgs.record_stranger(Event::AttestationRefused, record).await?;
    Ok(if refusal.is_payload() {
        Reply::PayloadError { retryable: false, message }
    } else {
        Reply::UnauthorizedError { retryable: false, message }
    })
}
