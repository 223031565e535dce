//! Keys that are released, and what comes with them.

#![allow(clippy::unwrap_used)]

mod support;

use hgs::server::Transport;
use key_protector::{Protector, Role};
use reqwest::StatusCode;
use support::{HOST, World, guardian, now, roll_request};
use time::Duration;

fn names(protector: &Protector) -> Vec<&str> {
    protector.wrappings().iter().map(|wrapping| wrapping.name()).collect()
}

#[tokio::test]
async fn an_attested_host_gets_both_keys_and_the_owner_opens_both_protectors() {
    let world = World::start().await;
    let client = world.client();
    let (protector, transport_key) = world.protector(&[]);
    let health = client.attest(&world.host_key).await.unwrap();
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    assert_eq!(rolled.ingress.expose(), transport_key.expose());
    assert_ne!(rolled.egress.expose(), rolled.ingress.expose());
    let opened = rolled.egress_protector.open(&world.owner, now()).unwrap();
    assert_eq!(opened.expose(), rolled.egress.expose());
    assert_eq!(rolled.egress_protector.signer().name(), "fabric");

    // What came out goes in again: the next start of the same VM.
    let again = client.roll_transport_key(&rolled.egress_protector, &health).await.unwrap();
    assert_eq!(again.ingress.expose(), rolled.egress.expose());

    let log = world.hgs.audit(10).await.unwrap();
    let events: Vec<&str> = log.iter().map(|entry| entry.event.as_str()).collect();
    assert_eq!(events, ["host-added", "attested", "key-released", "key-released"]);
    assert_eq!(log[2].host, HOST);
    assert_eq!(log[2].protector, protector.digest());
    assert_eq!(log[2].owner, protector.owner().signing_certificate().fingerprint());
    assert_eq!(world.hgs.verify_audit().await.unwrap(), log[3].hash);
    world.shut_down().await;
}

#[tokio::test]
async fn recovery_guardians_and_expired_ones_are_dropped_and_others_stay() {
    let world = World::start().await;
    let recovery = guardian("garage", Role::Recovery, Duration::hours(24));
    let partner = guardian("partner", Role::Fabric, Duration::days(30));
    let brief = guardian("brief", Role::Fabric, Duration::hours(2));
    let others = [recovery.public().clone(), partner.public().clone(), brief.public().clone()];
    let (protector, _) = world.protector(&others);
    let client = world.client();
    let health = client.attest(&world.host_key).await.unwrap();
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    let mut kept = names(&rolled.egress_protector);
    kept.sort_unstable();
    assert_eq!(kept, ["brief", "fabric", "partner", "tenant"]);
    assert!(rolled.egress_protector.open(&recovery, now()).is_err());

    world.advance(Duration::hours(3));
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    let mut kept = names(&rolled.egress_protector);
    kept.sort_unstable();
    assert_eq!(kept, ["fabric", "partner", "tenant"]);
    world.shut_down().await;
}

#[tokio::test]
async fn the_published_paths_work_in_any_case_and_both_versions_answer() {
    let world = World::start().await;
    let health = world.client().attest(&world.host_key).await.unwrap();
    let request = roll_request(&world.protector(&[]).0.to_xml(), health.der());
    for path in [
        "/KeyProtection/service/v1.0/rolltransportkey",
        "/keyprotection/Service/V2.0/RollTransportKey",
        "/KEYPROTECTION/SERVICE/V2.0/ROLLTRANSPORTKEY?x=y",
    ] {
        let (status, body) = world.post(path, request.clone()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        assert!(body.contains("<RollTransportKeyResponse "), "{body}");
    }
    for path in ["/Attestation/getinfo", "/attestation/GetInfo", "/Attestation/V2.0/GETINFO"] {
        let (status, body) = world.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        // `__type` must be the first property.
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "{\"__type\":\"ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core\",\
             \"FunctionalLevel\":2,\"OperationMode\":3,\"SupportedFunctionalLevels\":[2]}"
        );
    }
    for path in ["/Attestation/signingcertificates", "/Attestation/v2.0/signingCertificates"] {
        let (status, body) = world.get(path).await;
        assert_eq!((status, body[0]), (StatusCode::OK, 0x30), "{path}");
    }
    let (status, _) = world.get("/KeyProtection/service/metadata/2014-07/Metadata.XML").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(world.client().metadata().await.unwrap().to_xml(), world.hgs.guardian().to_xml());
    world.shut_down().await;
}

#[tokio::test]
async fn plain_http_serves_loopback_when_asked() {
    let world = World::over(Transport::PlainHttp { force: false }).await;
    let client = world.client();
    let (protector, transport_key) = world.protector(&[]);
    let health = client.attest(&world.host_key).await.unwrap();
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    assert_eq!(rolled.ingress.expose(), transport_key.expose());
    world.shut_down().await;
}
