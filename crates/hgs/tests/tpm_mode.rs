//! TPM mode against real TPMs (swtpm, one for each machine, started here): who passes, and what the replies look like.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::HostKey;
use attestation::messages::{AttestationRequest, Reply};
use attestation::tpm::{Context, QUOTED};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::Error as ServiceError;
use hgs_client::{Error, Status};
use key_protector::Protector;
use reqwest::StatusCode;
use support::World;
use support::boot::{Machine, boot, log};
use support::fabric::{ATTEST, Fabric, open};

#[tokio::test]
async fn a_registered_tpm_with_a_good_boot_passes_and_gets_keys() {
    let fabric = Fabric::with(&boot(true)).await;
    let health = fabric.attest().await.unwrap();
    assert_eq!(fabric.world.last().await.0, "attested");
    let (protector, key) = Protector::new(&fabric.world.owner, &[fabric.world.hgs.guardian()], support::now()).unwrap();
    let client = fabric.world.client();
    // The certificate is for the key of the client that attested.
    assert!(client.roll_transport_key(&protector, &health).await.is_ok());
    let rolled = client.roll_transport_key(&protector, &health).await.unwrap();
    assert_eq!(rolled.ingress.expose(), key.expose());
    // Again, by the same TPM with another attestation key.
    fabric.attest().await.unwrap();

    fabric.world.hgs.remove_host("host-1").await.unwrap();
    let error = client.roll_transport_key(&protector, &health).await.err().unwrap();
    assert!(matches!(&error, Error::HealthCertificate { message } if message.contains("no longer")), "{error}");
    assert_eq!(fabric.attest().await.err().unwrap().status(), Status::UnauthorizedHost);
    fabric.world.hgs.verify_audit().await.unwrap();
    fabric.world.shut_down().await;
}

/// Two VMs that start at the same time, on one host.
#[tokio::test]
async fn two_attestations_at_once_do_not_disturb_each_other() {
    let fabric = Fabric::with(&boot(true)).await;
    let (first, second) = tokio::join!(fabric.attest(), fabric.attest());
    assert!(first.is_ok() && second.is_ok(), "{:?} {:?}", first.err(), second.err());
}

#[tokio::test]
async fn another_machines_endorsement_key_is_not_registered() {
    let fabric = Fabric::with(&boot(true)).await;
    let other = Machine::start(&boot(true));
    let other = open(&other).await;
    let error = fabric.world.client().attest_tpm(&other).await.err().unwrap();
    assert!(matches!(error, Error::NotRegistered { .. }), "{error}");
    assert_eq!(error.status().name(), "UnauthorizedHost");
    let (event, host, _) = fabric.world.last().await;
    assert_eq!((event.as_str(), host.as_str()), ("attestation-refused", ""));
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn replies_of_tpm_mode_have_the_published_shapes() {
    let fabric = Fabric::with(&boot(false)).await;
    let (_, info) = fabric.world.get("/Attestation/GetInfo").await;
    assert!(String::from_utf8(info).unwrap().contains("\"OperationMode\":1"));

    // 3.1.5.1.1.3: an empty context is answered with an empty context.
    let (status, reply) = fabric.send(&Context::default()).await;
    assert_eq!(status, StatusCode::OK);
    let Reply::TpmContinue { context } = reply else { panic!("{reply:?}") };
    assert!(Context::parse(&STANDARD.decode(context).unwrap()).unwrap().is_empty());

    let request =
        AttestationRequest::tpm(fabric.tpm.endorsement_key(), fabric.identity.public(), &[5; 16], &Context::default());
    let request = serde_json::to_value(request.unwrap()).unwrap();
    let (_, body) = fabric.world.post(ATTEST, request.to_string()).await;
    let start = "{\"__type\":\"TpmReplyContinue:#Microsoft.Windows.RemoteAttestation.Core\",\"RtpmActiveContext\":\"";
    assert!(body.starts_with(start), "{body}");

    let payload_error =
        "{\"__type\":\"PayloadErrorReply:#Microsoft.Windows.RemoteAttestation.Core\",\"Retryable\":false";
    let with = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut value = request.clone();
        edit(&mut value);
        value.to_string()
    };
    let item = |at: usize, content: &[u8]| {
        let content = STANDARD.encode(content);
        with(&|value| value["ProvidedContent"][at]["m_Item2"] = content.clone().into())
    };
    let mut size_lies = Context::default().write().unwrap();
    size_lies[0] ^= 1;
    for body in [
        with(&|value| value["RequestedContent"] = serde_json::json!([3])),
        with(&|value| drop(value["ProvidedContent"].as_array_mut().unwrap().remove(0))),
        with(&|value| drop(value["ProvidedContent"].as_array_mut().unwrap().remove(1))),
        item(1, fabric.identity.public().der()),
        item(1, b"key"),
        item(2, &size_lies),
        item(2, b"context"),
        "{}".to_owned(),
    ] {
        let (status, answer) = fabric.world.post(ATTEST, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.starts_with(payload_error), "{answer}");
    }
    let (status, answer) = fabric.world.post("/Attestation/v1.0/attest", request.to_string()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.starts_with(payload_error), "{answer}");

    // Requests of the other modes are answered with the right one.
    for path in ["/Attestation/v2.0/hostkeyattest", "/Attestation/v1.0/domainattest"] {
        let (status, answer) = fabric.world.post(path, request.to_string()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let expected = "{\"__type\":\"OperationModeErrorReply:#Microsoft.Windows.RemoteAttestation.Core\",\"ExpectedOperationMode\":1,";
        assert!(answer.starts_with(expected), "{answer}");
    }
    let error = fabric.world.client().attest(&HostKey::generate().unwrap()).await.err().unwrap();
    assert!(matches!(error, Error::OtherMode { mode: 1 }), "{error}");

    // 2.2.2.16 with 2.2.2.13: reasons are GUIDs, here SecureBootEnabledGuid first.
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let challenge = fabric.challenge(&ak).await;
    let evidence = Context::new(challenge.state.clone(), fabric.evidence(&challenge, &ak).await);
    let (ek, identity) = (fabric.tpm.endorsement_key(), fabric.identity.public());
    let request = AttestationRequest::tpm(ek, identity, &[5; 16], &evidence).unwrap();
    let (_, body) = fabric.world.post(ATTEST, serde_json::to_vec(&request).unwrap()).await;
    let start = "{\"__type\":\"PolicyEvaluationErrorReply:#Microsoft.Windows.RemoteAttestation.Core\",\"Reasons\":[{\"Result\":false,\"Reason\":\"4Q5Gaupib0GubATiljRQbQ==\"}";
    assert!(body.starts_with(start), "{body}");
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn a_service_takes_one_kind_of_host_and_sensible_baselines() {
    let tpm_world = World::start_tpm().await;
    let key_world = World::start().await;
    let machine = Machine::start(&[]);
    let tpm = open(&machine).await;
    let (ek, host_key) = (tpm.endorsement_key().der(), HostKey::generate().unwrap());
    let host_key = host_key.public_pem();
    assert!(matches!(
        tpm_world.hgs.add_host("a", host_key.as_bytes()).await,
        Err(ServiceError::OtherMode { mode: "tpm" })
    ));
    assert!(matches!(key_world.hgs.add_tpm_host("a", ek).await, Err(ServiceError::OtherMode { mode: "host-key" })));
    for bad in [host_key.as_bytes(), b"", b"-----BEGIN PUBLIC KEY-----", &ek[..ek.len() - 1], &[ek, &[0]].concat()] {
        let added = tpm_world.hgs.add_tpm_host("a", bad).await;
        assert!(matches!(added, Err(ServiceError::BadEndorsementKey(_))));
    }
    tpm_world.hgs.add_tpm_host("a", ek).await.unwrap();
    assert!(matches!(tpm_world.hgs.add_tpm_host("b", ek).await, Err(ServiceError::KeyExists { .. })));

    let log = log(&boot(true));
    let hgs = &tpm_world.hgs;
    assert!(matches!(hgs.add_baseline("a", b"log", &[7]).await, Err(ServiceError::BadLog(_))));
    for pcrs in [&[][..], &[10], &[7, 24], &[u32::MAX]] {
        assert!(matches!(hgs.add_baseline("a", &log, pcrs).await, Err(ServiceError::BadPcrs { .. })), "{pcrs:?}");
    }
    hgs.add_baseline("a", &log, &QUOTED).await.unwrap();
    assert!(matches!(hgs.add_baseline("a", &log, &[7]).await, Err(ServiceError::BaselineExists { .. })));
    assert!(matches!(hgs.remove_baseline("b").await, Err(ServiceError::NoSuchBaseline { .. })));
    assert_eq!(hgs.policy().await.unwrap().baselines[0].pcrs.len(), QUOTED.len());
    assert_eq!(tpm_world.last().await.0, "policy-changed");
    tpm_world.shut_down().await;
    key_world.shut_down().await;
}
