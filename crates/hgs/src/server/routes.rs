//! The routes. All paths are lower case: requests are converted before they get here.

use std::sync::Arc;
use std::time::Duration;

use attestation::HostKind;
use attestation::messages::Reply;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use kps::{ApiVersion, ErrorCode, ErrorDocument};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use crate::admin::Hgs;
use crate::error::{Error, Result};
use crate::{attest, roll, tpm_attest};

const MAX_BODY: usize = 1 << 20;
/// Receiving the body included.
const REQUEST: Duration = Duration::from_secs(30);

/// Method, path, and what answers there.
type Route = (&'static str, &'static str, fn() -> MethodRouter<Arc<Hgs>>);

const ROUTES: [Route; 9] = [
    ("post", "/attestation/v2.0/hostkeyattest", || post(host_key_attest)),
    ("post", "/attestation/{version}/attest", || post(tpm_attest)),
    ("post", "/attestation/{version}/domainattest", || post(domain_attest)),
    ("get", "/attestation/getinfo", || get(get_info)),
    ("get", "/attestation/v2.0/getinfo", || get(get_info)),
    ("get", "/attestation/signingcertificates", || get(signing_certificates)),
    ("get", "/attestation/v2.0/signingcertificates", || get(signing_certificates)),
    ("post", "/keyprotection/service/{version}/rolltransportkey", || post(roll_transport_key)),
    ("get", "/keyprotection/service/metadata/2014-07/metadata.xml", || get(metadata)),
];

/// Every method and path that is served. `docs/openapi.json` describes them.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, path, _)| (*method, *path))
}

pub(super) fn router(hgs: Arc<Hgs>) -> Router {
    ROUTES
        .iter()
        .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler()))
        .layer(RequestBodyLimitLayer::new(MAX_BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST))
        .with_state(hgs)
}

async fn host_key_attest(State(hgs): State<Arc<Hgs>>, body: Bytes) -> Response {
    match hgs.mode() {
        HostKind::HostKey => reply(attest::host_key_attest(&hgs, &body).await),
        HostKind::Tpm => reply(Ok(attest::other_mode(&hgs))),
    }
}

async fn tpm_attest(State(hgs): State<Arc<Hgs>>, Path(version): Path<String>, body: Bytes) -> Response {
    match hgs.mode() {
        HostKind::HostKey => reply(Ok(attest::other_mode(&hgs))),
        HostKind::Tpm if version == "v2.0" => reply(tpm_attest::attest(&hgs, &body).await),
        HostKind::Tpm => {
            let message = "this service speaks v2.0 of attestation only".to_owned();
            reply(Ok(Reply::PayloadError { retryable: false, message }))
        }
    }
}

/// Active Directory, which Drydock does not have (MS-HGSA 3.1.5.1.1.3, 3.1.5.3.1.3).
async fn domain_attest(State(hgs): State<Arc<Hgs>>) -> Response {
    reply(Ok(attest::other_mode(&hgs)))
}

fn reply(outcome: Result<Reply>) -> Response {
    let reply = outcome.unwrap_or_else(|error| {
        log(&error);
        Reply::UnavailableError { retryable: true }
    });
    let status = match &reply {
        Reply::HealthCertificate { .. } | Reply::ServiceInfo { .. } | Reply::TpmContinue { .. } => StatusCode::OK,
        Reply::PayloadError { .. } | Reply::OperationModeError { .. } => StatusCode::BAD_REQUEST,
        Reply::UnauthorizedError { .. }
        | Reply::PolicyEvaluationError { .. }
        | Reply::RtpmError { .. }
        | Reply::TcgLogValidationError { .. } => StatusCode::FORBIDDEN,
        Reply::UnavailableError { .. } => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(reply)).into_response()
}

async fn get_info(State(hgs): State<Arc<Hgs>>) -> Json<Reply> {
    Json(attest::service_info(&hgs))
}

async fn signing_certificates(State(hgs): State<Arc<Hgs>>) -> Response {
    ([(header::CONTENT_TYPE, "application/pkcs7-mime")], attest::signing_certificates(&hgs)).into_response()
}

async fn roll_transport_key(State(hgs): State<Arc<Hgs>>, Path(version): Path<String>, body: Bytes) -> Response {
    let Some(version) = ApiVersion::from_path(&version) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match roll::roll(&hgs, version, &body).await {
        Ok(Ok(document)) => xml(StatusCode::OK, document),
        Ok(Err(refusal)) => {
            let status = match refusal.code {
                ErrorCode::HealthCertificate => StatusCode::FORBIDDEN,
                ErrorCode::InvalidProtector | ErrorCode::InvalidWrapping | ErrorCode::Service => {
                    StatusCode::BAD_REQUEST
                }
            };
            xml(status, ErrorDocument::new(refusal.code, refusal.message).write())
        }
        Err(error) => {
            log(&error);
            // The reason is for the service's log, not for its callers.
            let message = "the service could not decide; its admin finds the reason in its log".to_owned();
            xml(StatusCode::SERVICE_UNAVAILABLE, ErrorDocument::new(ErrorCode::Service, message).write())
        }
    }
}

/// MS-KPS 3.1.5.1.2.
async fn metadata(State(hgs): State<Arc<Hgs>>) -> Response {
    xml(StatusCode::OK, hgs.guardian().to_xml())
}

fn xml(status: StatusCode, document: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/xml; charset=utf-8")], document).into_response()
}

fn log(error: &Error) {
    tracing::error!(error = error as &dyn std::error::Error, "the service failed");
}
