//! MS-KPS on the wire: the documents as client and service really send them, against the specification's schemas,
//! and the payloads of both versions, opened here by hand.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::IdentityKey;
use attestation::messages::{AttestationRequest, Reply};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::server::Transport;
use hgs_client::{Error, HgsClient};
use key_protector::{Protector, Role};
use reqwest::StatusCode;
use roxmltree::Document;
use support::schema::{assert_valid, validate};
use support::tap::Tap;
use support::{World, guardian, now, roll_request};
use time::Duration;

#[tokio::test]
async fn what_client_and_service_send_follows_the_schemas() {
    let world = World::over(Transport::PlainHttp { force: false }).await;
    let (tap, address) = Tap::before(world.address).await;
    let client = HgsClient::new(&format!("http://{address}"), None).unwrap();
    let (protector, _) = world.protector(&[]);
    let health = client.attest(&world.host_key).await.unwrap();

    client.roll_transport_key(&protector, &health).await.unwrap();
    let request = tap.sent("RollTransportKeyRequest");
    assert_valid("rolltransportkey-request.xsd", &request);
    let response = tap.answered("RollTransportKeyResponse");
    assert_valid("rolltransportkey-response.xsd", &response);
    let egress = element(&response, "EgressProtector");
    assert_valid("protector.xsd", &egress);
    assert_valid("protector.xsd", &element(&request, "IngressProtector"));

    client.metadata().await.unwrap();
    assert_valid("metadata.xsd", &tap.answered("Metadata"));

    let partner = guardian("partner", Role::Fabric, Duration::days(1));
    let not_ours = Protector::new(&world.owner, &[partner.public().clone()], now()).unwrap().0;
    let error = client.roll_transport_key(&not_ours, &health).await.err().unwrap();
    assert!(matches!(error, Error::Wrapping { .. }), "{error}");
    let document = tap.answered("Error");
    assert_valid("error.xsd", &document);

    // The schemas are not content with anything.
    let text = String::from_utf8(document).unwrap();
    for (schema, bad) in [
        ("error.xsd", text.replace("Code>", "Name>")),
        ("error.xsd", text.replace("/service\"", "\"")),
        ("rolltransportkey-response.xsd", String::from_utf8(request).unwrap()),
        ("rolltransportkey-response.xsd", String::from_utf8(response).unwrap().replace("EncryptedWrappingKey", "Key")),
    ] {
        assert!(validate(schema, bad.as_bytes()).is_err(), "{schema}: {bad}");
    }
    world.shut_down().await;
}

/// Whatever a refused request has in it, the error document stays XML that others can read.
#[tokio::test]
async fn error_documents_survive_what_strangers_put_into_them() {
    let world = World::start().await;
    let health = world.client().attest(&world.host_key).await.unwrap();
    let good = String::from_utf8(world.protector(&[]).0.to_xml()).unwrap();
    for strange in ["<>&\"'", "]]>", "\u{1}\u{7f}\u{85}", "\u{fffe}\u{ffff}", "\u{1f6a2}", "\u{202e}", "%s%n"] {
        let algorithm = good.replacen("ecdsa-sha256\"", &format!("{}\"", strange.replace(['<', '&', '"'], "")), 1);
        let renamed = roll_request(good.as_bytes(), health.der()).replace("RollTransportKeyRequest", strange);
        for body in [roll_request(algorithm.as_bytes(), health.der()), renamed, strange.to_owned()] {
            let (status, answer) = world.post("/keyprotection/service/v2.0/rolltransportkey", body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{strange:?}");
            assert_valid("error.xsd", answer.as_bytes());
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn each_version_answers_with_its_own_payload() {
    let world = World::start().await;
    let identity = IdentityKey::generate().unwrap();
    let request = AttestationRequest::host_key(&world.host_key, identity.public(), &[1; 16]).unwrap();
    let (_, reply) = world.post("/Attestation/v2.0/hostkeyattest", serde_json::to_vec(&request).unwrap()).await;
    let Reply::HealthCertificate { content } = serde_json::from_str(&reply).unwrap() else { panic!("{reply}") };
    let health = content[0].decode().unwrap();
    let (protector, transport_key) = world.protector(&[]);
    for (path, version) in [
        ("/KeyProtection/service/v1.0/rolltransportkey", 1_u32),
        ("/KEYPROTECTION/Service/V2.0/RollTransportKey", 2),
        ("/keyprotection/service/v1.0/ROLLTRANSPORTKEY", 1),
    ] {
        let (status, answer) = world.post(path, roll_request(&protector.to_xml(), &health)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        assert_valid("rolltransportkey-response.xsd", answer.as_bytes());
        let answer = answer.as_bytes();
        let egress = Protector::parse(&element(answer, "EgressProtector")).unwrap();
        let transfer_key = identity.decrypt(&element(answer, "EncryptedTransferKey")).unwrap();
        let wrapping_key =
            open(&transfer_key, "drydock/kps/wrapping-key/1", &element(answer, "EncryptedWrappingKey")).unwrap();
        let binding = format!("drydock/kps/transport-keys/1|{version}|{}|{}", protector.digest(), egress.digest());
        let payload = open(&wrapping_key, &binding, &element(answer, "EncryptedTransportKeys")).unwrap();

        let number = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
        let header = [number(0), number(4), number(8), number(12)];
        assert_eq!(header, [u32::try_from(payload.len()).unwrap(), version, 2, 32], "{path}");
        assert_eq!(payload[16..48], *transport_key.expose());
        assert_eq!(payload[48..80], *egress.open(&world.owner, now()).unwrap().expose());
        match version {
            1 => assert_eq!(payload.len(), 80),
            _ => assert_eq!((payload.len(), number(80)), (84, 0)),
        }
        // Not under the other version's name, and not with another protector.
        let sealed = element(answer, "EncryptedTransportKeys");
        assert!(open(&wrapping_key, &binding.replace("/1|", "/1|9"), &sealed).is_none());
        let swapped = format!("drydock/kps/transport-keys/1|{version}|{}|{}", egress.digest(), protector.digest());
        assert!(open(&wrapping_key, &swapped, &sealed).is_none());
    }
    for path in [
        "/keyprotection/service/v3.0/rolltransportkey",
        "/keyprotection/service/v1/rolltransportkey",
        "/keyprotection/service//rolltransportkey",
    ] {
        let (status, _) = world.post(path, roll_request(&protector.to_xml(), &health)).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    world.shut_down().await;
}

fn element(xml: &[u8], name: &str) -> Vec<u8> {
    let document = Document::parse(std::str::from_utf8(xml).unwrap()).unwrap();
    let node = document.descendants().find(|node| node.tag_name().name() == name).unwrap();
    STANDARD.decode(node.text().unwrap().trim()).unwrap()
}

fn open(key: &[u8], bound_to: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).unwrap();
    let (nonce, ciphertext) = sealed.split_at(NONCE_LEN);
    let mut buffer = ciphertext.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    Some(cipher.open_in_place(nonce, Aad::from(bound_to.as_bytes()), &mut buffer).ok()?.to_vec())
}
