//! The attestation service: MS-HGSA 3.1.5.3 (host key), 3.1.5.4 (getinfo), 3.1.5.5 (signing certificates). TPM mode
//! is in [`crate::tpm_attest`].

use attestation::messages::{AttestationRequest, MODE_HOST_KEY, MODE_TPM, RESULT_ENCRYPTION_CERTIFICATE, Reply, Tuple};
use attestation::{Claim, HostIdentity, HostKind, IdentityPublic, Refusal, judge};

use crate::admin::Hgs;
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::pkcs7;

/// Judges one request and writes the verdict down.
///
/// # Errors
/// Only the service's own troubles; a refusal is a reply.
pub(crate) async fn host_key_attest(hgs: &Hgs, body: &[u8]) -> Result<Reply> {
    let request = match read_request(hgs, body).await? {
        Ok(request) => request,
        Err(reply) => return Ok(reply),
    };
    let claim = match Claim::from_request(&request) {
        Ok(claim) => claim,
        Err(refusal) => return refuse(hgs, refusal, Record::default()).await,
    };
    let fingerprint = claim.host().fingerprint();
    let registered = hgs.store.host_by_key(&fingerprint).await?;
    let record = Record {
        host: registered.as_ref().map(|host| host.name.clone()).unwrap_or_default(),
        host_key: fingerprint,
        ..Record::default()
    };
    let key = registered.as_ref().and_then(|host| match &host.identity {
        HostIdentity::HostKey(key) => Some(key),
        HostIdentity::Tpm(_) => None,
    });
    let evidence = match judge(claim, key) {
        Ok(evidence) => evidence,
        Err(refusal) => return refuse(hgs, refusal, record).await,
    };
    let why = format!("health certificate for {} minutes", hgs.health_lifetime().whole_minutes());
    certify(hgs, &evidence.host.into(), &evidence.identity, Record { why, ..record }).await
}

/// Issues the health certificate of a host that passed, and writes it down first.
pub(crate) async fn certify(
    hgs: &Hgs,
    host: &HostIdentity,
    identity: &IdentityPublic,
    record: Record,
) -> Result<Reply> {
    let certificate = hgs.keys.attestation_ca.issue(&record.host, host, identity, hgs.now(), hgs.health_lifetime())?;
    tracing::info!(host = %record.host, "host attested");
    hgs.record(Event::Attested, record).await?;
    Ok(Reply::HealthCertificate { content: vec![Tuple::new(RESULT_ENCRYPTION_CERTIFICATE, &certificate)] })
}

/// What the service answers to a request for another mode than its own.
pub(crate) fn other_mode(hgs: &Hgs) -> Reply {
    Reply::OperationModeError { expected_operation_mode: mode_number(hgs), retryable: false }
}

pub(crate) fn service_info(hgs: &Hgs) -> Reply {
    Reply::service_info(mode_number(hgs))
}

fn mode_number(hgs: &Hgs) -> u32 {
    match hgs.mode() {
        HostKind::HostKey => MODE_HOST_KEY,
        HostKind::Tpm => MODE_TPM,
    }
}

/// The request in a body; a reply when there is none.
pub(crate) async fn read_request(hgs: &Hgs, body: &[u8]) -> Result<std::result::Result<AttestationRequest, Reply>> {
    match serde_json::from_slice(body) {
        Ok(request) => Ok(Ok(request)),
        Err(error) => {
            let message = format!("not an AttestationRequest: {error}");
            hgs.record_stranger(Event::AttestationRefused, Record { why: message.clone(), ..Record::default() })
                .await?;
            Ok(Err(Reply::PayloadError { retryable: false, message }))
        }
    }
}

/// MS-HGSA 3.1.5.5: the certificate that health certificates are issued under.
pub(crate) fn signing_certificates(hgs: &Hgs) -> Vec<u8> {
    pkcs7::certificates_only(hgs.keys.attestation_ca.der())
}

pub(crate) async fn refuse(hgs: &Hgs, refusal: Refusal, mut record: Record) -> Result<Reply> {
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
