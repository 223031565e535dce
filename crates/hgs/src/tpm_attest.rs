//! The exchange of TPM mode (MS-HGSA 3.1.5.1).
//!
//! ```text
//! host                                            service
//! EK, identity key, context: AK             ->    EK registered?
//!                                           <-    context: credential for EK and AK, nonce; sealed state
//! … context: state, AK, secret, quote, log  ->    secret right? quote fresh? log fits? policy?
//!                                           <-    health certificate for the identity key
//! ```

use attestation::messages::{EvaluationLog, Reply};
use attestation::tpm::{
    AkPublic, Blob, Context, Evaluation, EvidenceError, TpmClaim, TpmFailure, TpmVerifier, attestation_key,
    make_credential,
};
use attestation::{Registered, Verifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::admin::Hgs;
use crate::attest::{certify, identify};
use crate::audit::{Event, Record};
use crate::challenge::{Answer, Unanswered};
use crate::error::Result;

/// Judges one request of TPM mode and writes the decision down.
///
/// # Errors
/// Only failures of the service itself; a refusal is a reply.
pub(crate) async fn attest(hgs: &Hgs, body: &[u8]) -> Result<Reply> {
    let (registered, record) = match identify::<TpmClaim>(hgs, body).await? {
        Ok(identified) => identified,
        Err(reply) => return Ok(reply),
    };
    let claim = registered.claim();
    if claim.context.is_empty() {
        // MS-HGSA 3.1.5.1.1.3: an empty context is answered with an empty one.
        return Ok(proceed(&Context::default()));
    }
    let ak = match attestation_key(&claim.context) {
        Ok(ak) => ak,
        Err(error) => return unproven(hgs, record, error.to_string(), false).await,
    };
    if claim.context.state.is_empty() { challenge(hgs, claim, &ak) } else { judge(hgs, &registered, &ak, record).await }
}

fn challenge(hgs: &Hgs, claim: &TpmClaim, ak: &AkPublic) -> Result<Reply> {
    let (challenge, state) = hgs.challenges.make(&claim.ek, ak, &claim.identity, hgs.now())?;
    let credential = make_credential(&claim.ek, ak, &challenge.secret)?;
    let credential = [credential.id_object, credential.encrypted_seed].concat();
    let blobs = vec![(Blob::Credential, credential), (Blob::Nonce, challenge.nonce.to_vec())];
    Ok(proceed(&Context::new(state, blobs)))
}

async fn judge(hgs: &Hgs, registered: &Registered<TpmClaim>, ak: &AkPublic, record: Record) -> Result<Reply> {
    let nonce = match answered(hgs, registered.claim(), ak).await? {
        Ok(answer) => answer.nonce,
        Err(error) => return unproven(hgs, record, error.to_string(), error.retryable()).await,
    };
    // From here on it is the registered TPM that answers: every refusal is written down.
    let policy = hgs.policy().await?;
    match (TpmVerifier { ak, nonce: &nonce, policy: &policy }).verify(registered) {
        Ok(evidence) => certify(hgs, &evidence, record, "measured boot passed; ").await,
        Err(failure) => refuse(hgs, record, failure).await,
    }
}

/// The first right answer to a challenge: it proves that the attestation key is in the registered TPM.
async fn answered(hgs: &Hgs, claim: &TpmClaim, ak: &AkPublic) -> Result<std::result::Result<Answer, Unanswered>> {
    let secret = claim.context.blob(Blob::Secret).unwrap_or_default();
    let keys = (&claim.ek, ak, &claim.identity);
    let answer = match hgs.challenges.answer(&claim.context.state, secret, keys, hgs.now()) {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let first = hgs.store.first_answer(&answer.nonce, answer.expires, hgs.now()).await?;
    Ok(if first { Ok(answer) } else { Err(Unanswered::Answered) })
}

/// A refusal before anything was proven.
async fn unproven(hgs: &Hgs, mut record: Record, message: String, retryable: bool) -> Result<Reply> {
    record.why.clone_from(&message);
    hgs.record_unproven(Event::AttestationRefused, record).await?;
    Ok(Reply::RtpmError { retryable, message })
}

/// A refusal of the registered TPM.
async fn refuse(hgs: &Hgs, mut record: Record, failure: TpmFailure) -> Result<Reply> {
    let message = failure.to_string();
    record.why.clone_from(&message);
    hgs.record(Event::AttestationRefused, record).await?;
    Ok(match failure {
        TpmFailure::Evidence(error) if EvidenceError::is_log(error) => {
            Reply::TcgLogValidationError { retryable: false, message }
        }
        TpmFailure::Evidence(_) => Reply::RtpmError { retryable: false, message },
        TpmFailure::Policy(failed) => {
            let reasons = failed.iter().map(reason).collect();
            Reply::PolicyEvaluationError { reasons, retryable: false, message }
        }
    })
}

fn reason(failed: &Evaluation) -> EvaluationLog {
    EvaluationLog { result: false, reason: STANDARD.encode(failed.check.guid()) }
}

fn proceed(context: &Context) -> Reply {
    // Ours are far below the limit.
    Reply::TpmContinue { context: STANDARD.encode(context.write().unwrap_or_default()) }
}
