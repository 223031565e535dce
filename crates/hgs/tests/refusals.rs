//! Keys that are not released: one case per reason, each with its name on the wire and its row in the log.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::messages::{AttestationRequest, Reply, Tuple, provided};
use attestation::{HealthCa, HostKey, IdentityKey};
use hgs::Hgs;
use hgs_client::Error;
use key_protector::{Protector, Role};
use reqwest::StatusCode;
use support::{HOST, World, guardian, now, roll_request};
use time::Duration;

const ROLL: &str = "/KeyProtection/service/v2.0/rolltransportkey";
const ATTEST: &str = "/Attestation/v2.0/hostkeyattest";

#[tokio::test]
async fn a_host_nobody_registered_is_told_whom_to_ask() {
    let world = World::start().await;
    let error = world.client().attest(&HostKey::generate().unwrap()).await.err().unwrap();
    assert!(matches!(error, Error::NotRegistered { .. }), "{error}");
    assert!(error.remedy().contains("drydock hgs add-host"), "{}", error.remedy());
    let (event, host, why) = world.last().await;
    assert_eq!((event.as_str(), host.as_str()), ("attestation-refused", ""));
    assert!(why.contains("not registered"), "{why}");
    world.shut_down().await;
}

#[tokio::test]
async fn attestation_refuses_what_the_registered_key_did_not_sign() {
    let world = World::start().await;
    let (mine, other) = (IdentityKey::generate().unwrap(), IdentityKey::generate().unwrap());
    let good = AttestationRequest::host_key(&world.host_key, mine.public(), &[7; 16]).unwrap();
    let with = |kind: u32, content: &[u8]| {
        let mut request = good.clone();
        request.provided.retain(|item| item.kind != kind);
        request.provided.push(Tuple::new(kind, content));
        request
    };
    let without = |kind: u32| {
        let mut request = good.clone();
        request.provided.retain(|item| item.kind != kind);
        request
    };
    let mut twice = good.clone();
    twice.provided.push(Tuple::new(provided::IDENTITY_KEY, other.public().der()));
    let mut other_result = good.clone();
    other_result.requested = vec![3];
    let stranger = HostKey::generate().unwrap().public().unwrap();
    let cases = [
        ("identity key swapped", with(provided::IDENTITY_KEY, other.public().der()), StatusCode::FORBIDDEN),
        ("signature of zeros", with(provided::HOST_KEY_SIGNATURE, &[0; 70]), StatusCode::FORBIDDEN),
        ("another host's name", with(provided::HOST_KEY_PUBLIC, stranger.der()), StatusCode::FORBIDDEN),
        ("no signature", without(provided::HOST_KEY_SIGNATURE), StatusCode::BAD_REQUEST),
        ("no host key", without(provided::HOST_KEY_PUBLIC), StatusCode::BAD_REQUEST),
        ("no identity key", without(provided::IDENTITY_KEY), StatusCode::BAD_REQUEST),
        ("identity key is no key", with(provided::IDENTITY_KEY, b"key"), StatusCode::BAD_REQUEST),
        ("identity key is EC", with(provided::IDENTITY_KEY, stranger.der()), StatusCode::BAD_REQUEST),
        ("two identity keys", twice, StatusCode::BAD_REQUEST),
        ("an intermediate CA asked for", other_result, StatusCode::BAD_REQUEST),
    ];
    for (case, request, expected) in cases {
        let (status, body) = world.post(ATTEST, serde_json::to_vec(&request).unwrap()).await;
        assert_eq!(status, expected, "{case}: {body}");
        let name = if expected == StatusCode::FORBIDDEN { "Unauthorized" } else { "Payload" };
        assert!(body.starts_with(&format!("{{\"__type\":\"{name}ErrorReply:#Microsoft")), "{case}: {body}");
        assert!(body.contains("\"Retryable\":false"), "{case}: {body}");
        assert_eq!(world.last().await.0, "attestation-refused", "{case}");
    }
    let (status, _) = world.post(ATTEST, serde_json::to_vec(&good).unwrap()).await;
    assert_eq!(status, StatusCode::OK, "the request all these were made from");
    world.shut_down().await;
}

#[tokio::test]
async fn an_expired_health_certificate_and_a_removed_host_get_nothing() {
    let world = World::start().await;
    let client = world.client();
    let (protector, _) = world.protector(&[]);
    let health = client.attest(&world.host_key).await.unwrap();
    client.roll_transport_key(&protector, &health).await.unwrap();

    world.advance(Duration::hours(8) + Duration::seconds(1));
    let error = client.roll_transport_key(&protector, &health).await.err().unwrap();
    assert!(matches!(&error, Error::HealthCertificate { message } if message.contains("expired")), "{error}");
    assert_eq!(world.last().await.0, "key-refused");

    // The certificate is good, the host is not: removed by another process while this one serves.
    let health = client.attest(&world.host_key).await.unwrap();
    client.roll_transport_key(&protector, &health).await.unwrap();
    Hgs::open(&world.dir()).await.unwrap().remove_host(HOST).await.unwrap();
    let error = client.roll_transport_key(&protector, &health).await.err().unwrap();
    assert!(
        matches!(&error, Error::HealthCertificate { message } if message.contains("no longer registered")),
        "{error}"
    );
    assert_eq!(
        world.last().await,
        ("key-refused".into(), HOST.into(), "the host 'host-1' is no longer registered".into())
    );
    let error = client.attest(&world.host_key).await.err().unwrap();
    assert!(matches!(error, Error::NotRegistered { .. }), "{error}");
    world.shut_down().await;
}

/// Bodies that are too large, and paths that nothing is served at.
async fn no_answer_elsewhere(world: &World) {
    let oversized = vec![b'x'; (1 << 20) + 1];
    assert_eq!(world.post(ROLL, oversized.clone()).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(world.post(ATTEST, oversized).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, body) = world.post(ATTEST, "garbage").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(matches!(serde_json::from_str(&body).unwrap(), Reply::PayloadError { .. }));
    for (path, expected) in [
        ("/keyprotection/service/v3.0/rolltransportkey", StatusCode::NOT_FOUND),
        ("/attestation/v1.0/hostkeyattest", StatusCode::NOT_FOUND),
        ("/attestation/getinfo", StatusCode::METHOD_NOT_ALLOWED),
        ("/../etc/passwd", StatusCode::NOT_FOUND),
        ("/attestation/v2.0/attest", StatusCode::BAD_REQUEST),
        ("/attestation/v1.0/domainattest", StatusCode::BAD_REQUEST),
    ] {
        let (status, body) = world.post(path, "{}").await;
        assert_eq!(status, expected, "{path}");
        if path.ends_with("attest") && expected == StatusCode::BAD_REQUEST {
            assert!(body.contains("\"ExpectedOperationMode\":3"), "{body}");
        }
    }
}

#[tokio::test]
async fn no_key_for_any_other_request() {
    let world = World::start().await;
    let health = world.client().attest(&world.host_key).await.unwrap();
    let health = health.der();
    let (protector, _) = world.protector(&[]);
    let good = protector.to_xml();

    // A CA of the same name, and the same host and identity keys.
    let identity = IdentityKey::generate().unwrap();
    let foreign = HealthCa::generate("fabric", now(), Duration::days(1))
        .unwrap()
        .issue(HOST, &world.host_key.public().unwrap().into(), identity.public(), now(), Duration::hours(8))
        .unwrap();
    let (status, bag) = world.get("/attestation/signingcertificates").await;
    assert_eq!(status, StatusCode::OK);
    // The bag ends with the CA's certificate and an empty set of signers.
    let ca = certificate_in(&bag);

    let others = guardian("partner", Role::Fabric, Duration::days(1));
    let not_ours = Protector::new(&world.owner, &[others.public().clone()], now()).unwrap().0.to_xml();
    let text = String::from_utf8(good.clone()).unwrap();
    let tampered = |name: &str| {
        let at = text.rfind(&format!("<{name}")).unwrap();
        let value = at + text[at..].find("Value>").unwrap() + 20;
        let mut bytes = good.clone();
        bytes[value] = if bytes[value] == b'A' { b'B' } else { b'A' };
        bytes
    };
    let with_dtd = [b"<!DOCTYPE p [<!ENTITY e 'x'>]>".as_slice(), &good].concat();

    let refused = StatusCode::BAD_REQUEST;
    let (health_error, protector_error, wrapping_error) =
        ("HealthCertificateException", "InvalidProtectorException", "InvalidWrappingException");
    let forbidden = StatusCode::FORBIDDEN;
    let cases: [(&str, Vec<u8>, StatusCode, &str); 12] = [
        ("certificate of another CA", roll_request(&good, &foreign).into(), forbidden, health_error),
        ("the CA's own certificate", roll_request(&good, &ca).into(), forbidden, health_error),
        ("no certificate at all", roll_request(&good, b"certificate").into(), forbidden, health_error),
        ("our wrapping is missing", roll_request(&not_ours, health).into(), refused, wrapping_error),
        ("guardian signature", roll_request(&tampered("GuardianSignature"), health).into(), refused, protector_error),
        (
            "transport key signature",
            roll_request(&tampered("TransportKeySignature"), health).into(),
            refused,
            protector_error,
        ),
        (
            "a certificate's signature",
            roll_request(&tampered("SigningCertificateSignature"), health).into(),
            refused,
            wrapping_error,
        ),
        ("wrapped key", roll_request(&tampered("EncryptedData"), health).into(), refused, protector_error),
        ("protector with a DTD", roll_request(&with_dtd, health).into(), refused, protector_error),
        ("protector is garbage", roll_request(b"garbage", health).into(), refused, protector_error),
        ("body is garbage", b"\0\xff garbage".to_vec(), refused, protector_error),
        ("body is empty", Vec::new(), refused, protector_error),
    ];
    for (case, body, expected, code) in cases {
        let (status, answer) = world.post(ROLL, body).await;
        assert_eq!(status, expected, "{case}: {answer}");
        assert!(answer.contains(&format!("<Code>{code}</Code><Message>")), "{case}: {answer}");
        assert!(!answer.contains("Encrypted"), "{case}: {answer}");
        let (event, _, why) = world.last().await;
        assert_eq!(event, "key-refused", "{case}");
        assert!(!why.is_empty(), "{case}");
    }
    let (status, _) = world.post(ROLL, roll_request(&good, health)).await;
    assert_eq!(status, StatusCode::OK, "the request all these were made from");
    world.hgs.verify_audit().await.unwrap();
    no_answer_elsewhere(&world).await;
    world.shut_down().await;
}

/// The protector of another VM cannot be paired with keys: what a man in the middle who could read and write
/// everything would try.
#[tokio::test]
async fn a_health_certificate_of_one_host_is_of_no_use_to_another() {
    let world = World::start().await;
    let (protector, _) = world.protector(&[]);
    let stolen = world.client().attest(&world.host_key).await.unwrap();
    // The thief gets an answer, but for the host's identity key; another client has another one.
    let (status, answer) = world.post(ROLL, roll_request(&protector.to_xml(), stolen.der())).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!answer.is_empty());
    let own = world.client().attest(&world.host_key).await.unwrap();
    assert_ne!(own.der(), stolen.der());
    world.shut_down().await;
}

/// The certificate inside a certificates-only PKCS#7 of ours.
fn certificate_in(bag: &[u8]) -> Vec<u8> {
    let end = bag.len() - 2;
    (0..end)
        .filter(|at| bag[*at..].starts_with(&[0x30, 0x82]))
        .map(|at| &bag[at..end])
        .find(|der| der.len() == 4 + usize::from(der[2]) * 256 + usize::from(der[3]))
        .unwrap()
        .to_vec()
}
