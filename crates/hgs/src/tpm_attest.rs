//! TPM mode of the attestation service (MS-HGSA 3.1.5.1).
//!
//! ```text
//! host                                            service
//! EK, identity key, context: AK             ->    EK registered?
//!                                           <-    context: credential for EK and AK, nonce; sealed state
//! … context: state, AK, secret, quote, log  ->    secret right? quote fresh? log fits? policy?
//!                                           <-    health certificate for the identity key
//! ```

use attestation::HostIdentity;
use attestation::messages::{EvaluationLog, Reply};
use attestation::tpm::{
    AkPublic, Blob, Check, Context, Evaluation, EvidenceError, TpmClaim, attestation_key, make_credential,
    measured_boot,
};
use attestation::{Refusal, tpm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::admin::Hgs;
use crate::attest::{certify, read_request, refuse};
use crate::audit::{Event, Record};
use crate::challenge::Unanswered;
use crate::error::Result;

/// Judges one request and writes the verdict down.
///
/// # Errors
/// Only the service's own troubles; a refusal is a reply.
pub(crate) async fn attest(hgs: &Hgs, body: &[u8]) -> Result<Reply> {
    let request = match read_request(hgs, body).await? {
        Ok(request) => request,
        Err(reply) => return Ok(reply),
    };
    let claim = match TpmClaim::from_request(&request) {
        Ok(claim) => claim,
        Err(refusal) => return refuse(hgs, refusal, Record::default()).await,
    };
    let fingerprint = claim.ek.fingerprint();
    let registered = hgs.store.host_by_key(&fingerprint).await?;
    let mut record = Record { host_key: fingerprint, ..Record::default() };
    match registered {
        Some(host) if host.identity == HostIdentity::Tpm(claim.ek.clone()) => record.host = host.name,
        _ => return refuse(hgs, Refusal::NotRegistered, record).await,
    }
    if claim.context.is_empty() {
        // MS-HGSA 3.1.5.1.1.3: an empty context is answered with an empty one.
        return Ok(proceed(&Context::default()));
    }
    let ak = match attestation_key(&claim.context) {
        Ok(ak) => ak,
        Err(error) => return unproven(hgs, record, error.to_string(), false).await,
    };
    if claim.context.state.is_empty() { challenge(hgs, &claim, &ak) } else { judge(hgs, &claim, &ak, record).await }
}

fn challenge(hgs: &Hgs, claim: &TpmClaim, ak: &AkPublic) -> Result<Reply> {
    let (challenge, state) = hgs.challenges.make(&claim.ek, ak, &claim.identity, hgs.now())?;
    let credential = make_credential(&claim.ek, ak, &challenge.secret)?;
    let credential = [credential.id_object, credential.encrypted_seed].concat();
    let blobs = vec![(Blob::Credential, credential), (Blob::Nonce, challenge.nonce.to_vec())];
    Ok(proceed(&Context::new(state, blobs)))
}

async fn judge(hgs: &Hgs, claim: &TpmClaim, ak: &AkPublic, mut record: Record) -> Result<Reply> {
    let secret = claim.context.blob(Blob::Secret).unwrap_or_default();
    let keys = (&claim.ek, ak, &claim.identity);
    let answer = match hgs.challenges.answer(&claim.context.state, secret, keys, hgs.now()) {
        Ok(answer) => answer,
        Err(error) => return unproven(hgs, record, error.to_string(), error.retryable()).await,
    };
    if !hgs.store.first_answer(&answer.nonce, answer.expires, hgs.now()).await? {
        let error = Unanswered::Answered;
        return unproven(hgs, record, error.to_string(), error.retryable()).await;
    }
    // From here on it is the registered TPM that answers: every refusal is written down.
    let log = match measured_boot(&claim.context, ak, &answer.nonce, &claim.identity) {
        Ok(log) => log,
        Err(error) => return bad_evidence(hgs, record, error).await,
    };
    let failed = hgs.policy().await?.evaluate(&log);
    if !failed.is_empty() {
        return insecure(hgs, record, &failed).await;
    }
    record.why =
        format!("measured boot passed; health certificate for {} minutes", hgs.health_lifetime().whole_minutes());
    certify(hgs, &claim.ek.clone().into(), &claim.identity, record).await
}

/// A refusal before anything was proven.
async fn unproven(hgs: &Hgs, mut record: Record, message: String, retryable: bool) -> Result<Reply> {
    tracing::warn!(host = %record.host, "attestation refused: {message}");
    record.why.clone_from(&message);
    hgs.record_stranger(Event::AttestationRefused, record).await?;
    Ok(Reply::RtpmError { retryable, message })
}

async fn bad_evidence(hgs: &Hgs, mut record: Record, error: EvidenceError) -> Result<Reply> {
    let message = error.to_string();
    tracing::warn!(host = %record.host, "attestation refused: {message}");
    record.why.clone_from(&message);
    hgs.record(Event::AttestationRefused, record).await?;
    Ok(if error.is_log() {
        Reply::TcgLogValidationError { retryable: false, message }
    } else {
        Reply::RtpmError { retryable: false, message }
    })
}

async fn insecure(hgs: &Hgs, mut record: Record, failed: &[Evaluation]) -> Result<Reply> {
    let message = failed.iter().map(describe).collect::<Vec<_>>().join("; ");
    tracing::warn!(host = %record.host, "attestation refused: {message}");
    record.why.clone_from(&message);
    hgs.record(Event::AttestationRefused, record).await?;
    let reason = |check: Check| EvaluationLog { result: false, reason: STANDARD.encode(check.guid()) };
    let reasons = failed.iter().map(|failed| reason(failed.check)).collect();
    Ok(Reply::PolicyEvaluationError { reasons, retryable: false, message })
}

fn describe(failed: &tpm::Evaluation) -> String {
    let what = failed.check.failure();
    if failed.detail.is_empty() { what.to_owned() } else { format!("{what}: {}", failed.detail) }
}

fn proceed(context: &Context) -> Reply {
    // Ours are far below the limit.
    Reply::TpmContinue { context: STANDARD.encode(context.write().unwrap_or_default()) }
}
