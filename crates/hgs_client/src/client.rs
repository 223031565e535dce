//! The client of one Host Guardian Service.

use std::sync::Arc;
use std::time::Duration;

use attestation::messages::{AttestationRequest, RESULT_ENCRYPTION_CERTIFICATE, Reply};
use attestation::tpm::{Blob, Context, qualifying_data};
use attestation::{HostKey, IdentityKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use key_protector::{GuardianPublic, Protector, Rolled};
use kps::{ApiVersion, Binding, ErrorCode, ErrorDocument, RollRequest, RollResponse};
use reqwest::{Certificate, Method, StatusCode, Url, redirect};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use tpm::HostTpm;

use crate::error::{Error, Result};
use crate::status::SubStatus;

const CONNECT: Duration = Duration::from_secs(10);
const TOTAL: Duration = Duration::from_secs(45);
/// Twice what the service takes: an egress protector is about as long as the ingress one.
const MAX_ANSWER: usize = 2 << 20;
const VERSION: ApiVersion = ApiVersion::V2;

/// A client of one Host Guardian Service.
pub struct HgsClient {
    base: Url,
    http: reqwest::Client,
    /// Made at the first attestation and dropped with the client: after that, no recording can be opened.
    identity: OnceCell<Arc<IdentityKey>>,
}

/// Proof that this host passed, and the key that answers are encrypted to.
#[derive(Clone)]
pub struct HealthCertificate {
    der: Vec<u8>,
    identity: Arc<IdentityKey>,
}

impl HealthCertificate {
    /// X.509 in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// From when and until when it is valid, by the service's clock; `None` if it is not a certificate.
    #[must_use]
    pub fn validity(&self) -> Option<(OffsetDateTime, OffsetDateTime)> {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        let validity = certificate.validity();
        Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
    }
}

impl HgsClient {
    /// A client of the service at `url`. `ca_pem` is the service's `hgs-ca.pem`: with it, no other authority is
    /// trusted; without it, the system's authorities are.
    ///
    /// # Errors
    /// `BadUrl`, `PlainHttp` (in the clear to another machine), `BadCa`.
    pub fn new(url: &str, ca_pem: Option<&[u8]>) -> Result<Self> {
        let mut base = Url::parse(url).map_err(|_| Error::BadUrl { url: url.to_owned() })?;
        match base.scheme() {
            "https" if base.has_host() => {}
            "http" if is_loopback(&base) => {}
            "http" => return Err(Error::PlainHttp { url: url.to_owned() }),
            _ => return Err(Error::BadUrl { url: url.to_owned() }),
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(TOTAL)
            // Neither a redirect nor a proxy variable decides who is asked for keys.
            .redirect(redirect::Policy::none())
            .no_proxy();
        if let Some(pem) = ca_pem {
            let authorities = Certificate::from_pem_bundle(pem).map_err(|_| Error::BadCa)?;
            if authorities.is_empty() {
                return Err(Error::BadCa);
            }
            builder = builder.tls_certs_only(authorities);
        }
        let http = builder.build().map_err(|_| Error::BadCa)?;
        Ok(HgsClient { base, http, identity: OnceCell::new() })
    }

    /// Proves that this host holds its registered key (MS-HGSA 3.2.5.3).
    ///
    /// # Errors
    /// `NotRegistered` above all; see [`Error::remedy`].
    pub async fn attest(&self, host_key: &HostKey) -> Result<HealthCertificate> {
        let identity = Arc::clone(self.identity.get_or_try_init(make_identity).await?);
        let session = uuid::Uuid::new_v4().into_bytes();
        let request = AttestationRequest::host_key(host_key, identity.public(), &session).map_err(Error::Keys)?;
        match self.ask("attestation/v2.0/hostkeyattest", &request, &identity).await? {
            Step::Passed(certificate) => Ok(certificate),
            // Nothing in this mode has a second step.
            Step::Continue(_) => Err(self.not_an_answer(StatusCode::OK)),
        }
    }

    /// Proves that this is the host with a registered TPM, and how it was started (MS-HGSA 3.2.5.1).
    ///
    /// # Errors
    /// `NotRegistered`, `Insecure`, `TpmRefused`, `EventLog`, `Tpm`; see [`Error::remedy`].
    pub async fn attest_tpm(&self, tpm: &HostTpm) -> Result<HealthCertificate> {
        let identity = Arc::clone(self.identity.get_or_try_init(make_identity).await?);
        let session = uuid::Uuid::new_v4().into_bytes();
        let step = async |context: &Context| {
            let request = AttestationRequest::tpm(tpm.endorsement_key(), identity.public(), &session, context);
            let request = request.ok_or(Error::EvidenceTooLarge)?;
            self.ask("attestation/v2.0/attest", &request, &identity).await
        };
        let _alone = tpm.attesting().await;
        let attestation_key = tpm.make_attestation_key().await?;
        let ours = Context::new(Vec::new(), vec![(Blob::AttestationKey, attestation_key.clone())]);
        let Step::Continue(challenge) = step(&ours).await? else { return Err(self.not_an_answer(StatusCode::OK)) };
        let nonce = challenge.blob(Blob::Nonce).and_then(|nonce| nonce.try_into().ok());
        let (Some(nonce), Some(credential)) = (nonce, challenge.blob(Blob::Credential)) else {
            return Err(self.not_an_answer(StatusCode::OK));
        };
        let secret = tpm.activate(credential).await?;
        let (quote, signature) = tpm.quote(&qualifying_data(&nonce, identity.public())).await?;
        let blobs = vec![
            (Blob::AttestationKey, attestation_key),
            (Blob::Secret, secret),
            (Blob::Quote, quote),
            (Blob::Signature, signature),
            (Blob::EventLog, tpm.event_log()?),
        ];
        match step(&Context::new(challenge.state, blobs)).await? {
            Step::Passed(certificate) => Ok(certificate),
            Step::Continue(_) => Err(self.not_an_answer(StatusCode::OK)),
        }
    }

    async fn ask(&self, path: &str, request: &AttestationRequest, identity: &Arc<IdentityKey>) -> Result<Step> {
        let body = serde_json::to_vec(request).map_err(|_| Error::Keys(attestation::Error::Crypto))?;
        let (status, answer) = self.send(Method::POST, path, "application/json", body).await?;
        let Ok(reply) = serde_json::from_slice::<Reply>(&answer) else {
            return Err(self.not_an_answer(status));
        };
        match reply {
            Reply::HealthCertificate { content } => content
                .iter()
                .find(|item| item.kind == RESULT_ENCRYPTION_CERTIFICATE)
                .and_then(|item| item.decode())
                .map(|der| Step::Passed(HealthCertificate { der, identity: Arc::clone(identity) }))
                .ok_or_else(|| self.not_an_answer(status)),
            Reply::TpmContinue { context } => STANDARD
                .decode(context)
                .ok()
                .and_then(|bytes| Context::parse(&bytes))
                .map(Step::Continue)
                .ok_or_else(|| self.not_an_answer(status)),
            Reply::UnauthorizedError { message, .. } => Err(Error::NotRegistered { message }),
            Reply::PayloadError { message, .. } => Err(Error::NotUnderstood { message }),
            Reply::OperationModeError { expected_operation_mode, .. } => {
                Err(Error::OtherMode { mode: expected_operation_mode })
            }
            Reply::PolicyEvaluationError { reasons, message, .. } => {
                Err(Error::Insecure { failed: reasons.iter().map(SubStatus::of).collect(), message })
            }
            Reply::RtpmError { message, .. } => Err(Error::TpmRefused { message }),
            Reply::TcgLogValidationError { message, .. } => Err(Error::EventLog { message }),
            Reply::UnavailableError { .. } => Err(Error::Unavailable { url: self.base.to_string() }),
            Reply::ServiceInfo { .. } => Err(self.not_an_answer(status)),
        }
    }

    /// Gets the protector's transport key, and a fresh one with a protector of its own (MS-KPS 3.2.5.1).
    ///
    /// The answer is checked: the egress protector verifies and has the same owner, and the keys were encrypted to this
    /// host and bound to both protectors.
    ///
    /// # Errors
    /// `HealthCertificate`, `Protector`, `Wrapping`; see [`Error::remedy`].
    pub async fn roll_transport_key(&self, protector: &Protector, health: &HealthCertificate) -> Result<Rolled> {
        let request = RollRequest { protector: protector.to_xml(), health_certificate: health.der.clone() }.write();
        let (status, answer) =
            self.send(Method::POST, "keyprotection/service/v2.0/rolltransportkey", "application/xml", request).await?;
        if status != StatusCode::OK {
            let document = ErrorDocument::read(&answer).map_err(|_| self.not_an_answer(status))?;
            return Err(self.refused(document));
        }
        let response = RollResponse::read(&answer).map_err(|_| self.not_an_answer(status))?;
        let egress_protector = Protector::parse(&response.egress_protector).map_err(Error::EgressProtector)?;
        egress_protector.verify(OffsetDateTime::now_utc()).map_err(Error::EgressProtector)?;
        if egress_protector.owner().signing_certificate() != protector.owner().signing_certificate() {
            return Err(Error::OwnerChanged);
        }
        let binding = Binding { version: VERSION, ingress: &protector.digest(), egress: &egress_protector.digest() };
        let (ingress, egress) = response.keys.open(&health.identity, &binding).ok_or(Error::NotForThisHost)?;
        Ok(Rolled { ingress, egress_protector, egress })
    }

    /// The service's fabric guardian (MS-KPS 3.2.5.2). Compare its fingerprint out of band before granting anything to
    /// it.
    ///
    /// # Errors
    /// `Unreachable`, `NotAnAnswer`.
    pub async fn metadata(&self) -> Result<GuardianPublic> {
        let path = "keyprotection/service/metadata/2014-07/metadata.xml";
        let (status, answer) = self.send(Method::GET, path, "application/xml", Vec::new()).await?;
        if status != StatusCode::OK {
            return Err(self.not_an_answer(status));
        }
        GuardianPublic::parse(&answer).map_err(Error::Metadata)
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>)> {
        let url = self.base.join(path).map_err(|_| Error::BadUrl { url: self.base.to_string() })?;
        let failed = |error| Error::from_transport(self.base.as_str(), error);
        let mut answer = self
            .http
            .request(method, url)
            .header(reqwest::header::CONTENT_TYPE, kind)
            .body(body)
            .send()
            .await
            .map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len().saturating_add(chunk.len()) > MAX_ANSWER {
                return Err(self.not_an_answer(answer.status()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((answer.status(), bytes))
    }

    fn not_an_answer(&self, status: StatusCode) -> Error {
        Error::NotAnAnswer { url: self.base.to_string(), status: status.as_u16() }
    }

    fn refused(&self, document: ErrorDocument) -> Error {
        let code = document.error_code();
        let message = document.message;
        match code {
            Some(ErrorCode::HealthCertificate) => Error::HealthCertificate { message },
            Some(ErrorCode::InvalidProtector) => Error::Protector { message },
            Some(ErrorCode::InvalidWrapping) => Error::Wrapping { message },
            Some(ErrorCode::Service) | None => Error::Unavailable { url: self.base.to_string() },
        }
    }
}

/// The outcome of one step of an attestation.
enum Step {
    Passed(HealthCertificate),
    Continue(Context),
}

async fn make_identity() -> Result<Arc<IdentityKey>> {
    // RSA takes long: off the threads that do I/O.
    tokio::task::spawn_blocking(IdentityKey::generate)
        .await
        .map_err(|_| Error::Keys(attestation::Error::Crypto))?
        .map(Arc::new)
        .map_err(Error::Keys)
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
