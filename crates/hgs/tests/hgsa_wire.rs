//! MS-HGSA on the wire: each reply with the properties that the specification gives it, `__type` first.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use attestation::messages::{AttestationRequest, Tuple, provided};
use attestation::{HostKey, IdentityKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde_json::{Value, json};
use support::{World, now};
use time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

const ATTEST: &str = "/Attestation/v2.0/hostkeyattest";

/// The reply, after checking that its type comes first and that it has these properties and no more than ours
/// beside them.
fn reply(body: &str, name: &str, properties: &[&str]) -> Value {
    let start = format!("{{\"__type\":\"{name}:#Microsoft.Windows.RemoteAttestation.Core\",");
    assert!(body.starts_with(&start), "{name}: {body}");
    let value: Value = serde_json::from_str(body).unwrap();
    let object = value.as_object().unwrap();
    for property in properties {
        assert!(object.contains_key(*property), "{property}: {body}");
    }
    for property in object.keys() {
        let known = property == "__type" || property == "Message" || properties.contains(&property.as_str());
        assert!(known, "{property}: {body}");
    }
    value
}

#[tokio::test]
async fn a_health_certificate_reply_certifies_the_key_that_was_sent_for_eight_hours() {
    let world = World::start().await;
    let identity = IdentityKey::generate().unwrap();
    let request = AttestationRequest::host_key(&world.host_key, identity.public(), &[3; 16]).unwrap();
    let text = serde_json::to_value(&request).unwrap();
    assert_eq!(text["SessionId"], STANDARD.encode([3; 16]));
    assert_eq!(text["RequestedContent"], json!([1]));
    let kinds: Vec<_> =
        text["ProvidedContent"].as_array().unwrap().iter().map(|item| item["m_Item1"].clone()).collect();
    assert_eq!(kinds, [1, 8, 9]);

    let (status, body) = world.post(ATTEST, text.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let value = reply(&body, "HealthCertificateReply", &["Content"]);
    let content = value["Content"].as_array().unwrap();
    assert_eq!((content.len(), &content[0]["m_Item1"]), (1, &json!(1)));
    assert_eq!(content[0].as_object().unwrap().len(), 2);
    let der = STANDARD.decode(content[0]["m_Item2"].as_str().unwrap()).unwrap();
    let (rest, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(rest.is_empty());
    assert_eq!(certificate.public_key().raw, identity.public().der());
    let left = certificate.validity().not_after.to_datetime() - now();
    assert!(left <= Duration::hours(8) && left > Duration::hours(8) - Duration::minutes(1), "{left}");
    world.shut_down().await;
}

#[tokio::test]
async fn refusals_are_payload_unauthorized_and_operation_mode_error_replies() {
    let world = World::start().await;
    let identity = IdentityKey::generate().unwrap();
    let good = AttestationRequest::host_key(&world.host_key, identity.public(), &[3; 16]).unwrap();
    let stranger = AttestationRequest::host_key(&HostKey::generate().unwrap(), identity.public(), &[3; 16]).unwrap();
    let good_json = serde_json::to_value(&good).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value = good_json.clone();
        edit(&mut value);
        value.to_string()
    };

    // 3.1.5.3.1.3: any of the three contents missing, and what is no AttestationRequest.
    let mut payload_errors: Vec<String> =
        [provided::IDENTITY_KEY, provided::HOST_KEY_PUBLIC, provided::HOST_KEY_SIGNATURE]
            .map(|missing| {
                let mut request = good.clone();
                request.provided.retain(|item| item.kind != missing);
                serde_json::to_string(&request).unwrap()
            })
            .into();
    payload_errors.extend([
        edited(&|v| drop(v.as_object_mut().unwrap().remove("SessionId"))),
        edited(&|v| drop(v.as_object_mut().unwrap().remove("RequestedContent"))),
        edited(&|v| drop(v.as_object_mut().unwrap().remove("ProvidedContent"))),
        edited(&|v| v["RequestedContent"] = json!([])),
        edited(&|v| v["RequestedContent"] = json!([-1])),
        edited(&|v| v["RequestedContent"] = json!(["VSMIdentityEncryptionKeyCertificate"])),
        edited(&|v| v["ProvidedContent"][0]["m_Item2"] = json!("not base64!")),
        edited(&|v| v["ProvidedContent"][0]["m_Item3"] = json!("one more")),
        edited(&|v| v["ProvidedContent"] = json!(vec![Tuple::new(1, b""); 17])),
        "[".repeat(5000),
        "null".to_owned(),
        String::new(),
    ]);
    for body in payload_errors {
        let (status, answer) = world.post(ATTEST, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let value = reply(&answer, "PayloadErrorReply", &["Retryable"]);
        assert_eq!(value["Retryable"], false);
    }

    let (status, answer) = world.post(ATTEST, serde_json::to_string(&stranger).unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(reply(&answer, "UnauthorizedErrorReply", &["Retryable"])["Retryable"], false);

    for path in ["/Attestation/v1.0/attest", "/Attestation/v2.0/attest", "/Attestation/v1.0/DomainAttest"] {
        let (status, answer) = world.post(path, good_json.to_string()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        let value = reply(&answer, "OperationModeErrorReply", &["ExpectedOperationMode", "Retryable"]);
        assert_eq!(value["ExpectedOperationMode"], 3, "{path}");
    }

    // A `__type` that some client sends in front is no obstacle.
    let typed = format!(
        "{{\"__type\":\"AttestationRequest:#Microsoft.Windows.RemoteAttestation.Core\",{}",
        &good_json.to_string()[1..]
    );
    assert_eq!(world.post(ATTEST, typed).await.0, StatusCode::OK);
    world.hgs.verify_audit().await.unwrap();
    world.shut_down().await;
}

#[tokio::test]
async fn getinfo_and_the_signing_certificates_are_public() {
    let world = World::start().await;
    let (status, body) = world.get("/Attestation/Getinfo").await;
    assert_eq!(status, StatusCode::OK);
    let properties = ["FunctionalLevel", "OperationMode", "SupportedFunctionalLevels"];
    let value = reply(std::str::from_utf8(&body).unwrap(), "ServiceInfoReply", &properties);
    assert_eq!(value["OperationMode"], 3);
    assert!(value["SupportedFunctionalLevels"].as_array().unwrap().contains(&value["FunctionalLevel"]));

    // Another implementation reads the bag, and the certificate in it has issued the health certificates.
    let (status, bag) = world.get("/Attestation/v2.0/signingCertificates").await;
    assert_eq!(status, StatusCode::OK);
    let pem = openssl(&["pkcs7", "-inform", "DER", "-print_certs"], &bag);
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 1, "{pem}");
    let text = pem.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap().split("-----END").next().unwrap();
    let authority = STANDARD.decode(text.split_whitespace().collect::<String>()).unwrap();
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    let health = world.client().attest(&world.host_key).await.unwrap();
    let (_, certificate) = X509Certificate::from_der(health.der()).unwrap();
    certificate.verify_signature(Some(authority.public_key())).unwrap();
    world.shut_down().await;
}

fn openssl(arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is among Debian's packages");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}
