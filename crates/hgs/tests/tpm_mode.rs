//! TPM mode against real TPMs (swtpm, one for each machine, started here): what passes, and each way not to.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use attestation::messages::{AttestationRequest, Reply};
use attestation::tpm::{Blob, Check, Context, EventLog, QUOTED, qualifying_data};
use attestation::{HostKey, IdentityKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::Error as ServiceError;
use hgs_client::{Error, HealthCertificate, Status, SubStatus};
use key_protector::Protector;
use reqwest::StatusCode;
use support::World;
use support::boot::{Machine, Measurement, boot, debug_mode, log};
use time::Duration;
use tpm::{HostTpm, TpmError};

const ATTEST: &str = "/Attestation/v2.0/attest";
const BASELINE_PCRS: [u32; 4] = [0, 2, 4, 7];

/// A service in TPM mode that knows one machine, and that machine.
struct Fabric {
    world: World,
    machine: Machine,
    tpm: HostTpm,
    identity: IdentityKey,
}

impl Fabric {
    /// The baseline is that of the good boot, whatever the machine's was.
    async fn with(measurements: &[Measurement]) -> Self {
        let world = World::start_tpm().await;
        let machine = Machine::start(measurements);
        let tpm = open(&machine).await;
        world.hgs.add_tpm_host("host-1", tpm.endorsement_key().der()).await.unwrap();
        world.hgs.add_baseline("good", &log(&boot(true)), &BASELINE_PCRS).await.unwrap();
        Fabric { world, machine, tpm, identity: IdentityKey::generate().unwrap() }
    }

    async fn attest(&self) -> Result<HealthCertificate, Error> {
        self.world.client().attest_tpm(&self.tpm).await
    }

    async fn send(&self, context: &Context) -> (StatusCode, Reply) {
        let ek = self.tpm.endorsement_key();
        let request = AttestationRequest::tpm(ek, self.identity.public(), &[5; 16], context).unwrap();
        let (status, body) = self.world.post(ATTEST, serde_json::to_vec(&request).unwrap()).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The service's challenge for an attestation key.
    async fn challenge(&self, ak: &[u8]) -> Context {
        let (_, reply) = self.send(&Context::new(Vec::new(), vec![(Blob::AttestationKey, ak.to_vec())])).await;
        let Reply::TpmContinue { context } = reply else { panic!("{reply:?}") };
        Context::parse(&STANDARD.decode(context).unwrap()).unwrap()
    }

    /// What an honest host answers.
    async fn evidence(&self, challenge: &Context, ak: &[u8]) -> Vec<(Blob, Vec<u8>)> {
        let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
        let secret = self.tpm.activate(challenge.blob(Blob::Credential).unwrap()).await.unwrap();
        let (quote, signature) = self.tpm.quote(&qualifying_data(&nonce, self.identity.public())).await.unwrap();
        vec![
            (Blob::AttestationKey, ak.to_vec()),
            (Blob::Secret, secret),
            (Blob::Quote, quote),
            (Blob::Signature, signature),
            (Blob::EventLog, self.tpm.event_log().unwrap()),
        ]
    }

    /// The last row says that attestation was refused, for this reason, and to whom.
    async fn assert_refused(&self, why: &str) {
        let (event, host, found) = self.world.last().await;
        assert_eq!((event.as_str(), host.as_str()), ("attestation-refused", "host-1"));
        assert!(found.contains(why), "{found}");
    }
}

async fn open(machine: &Machine) -> HostTpm {
    HostTpm::open(Some(&machine.tcti), &machine.log_file()).await.unwrap()
}

fn replaced(blobs: &[(Blob, Vec<u8>)], kind: Blob, bytes: Vec<u8>) -> Vec<(Blob, Vec<u8>)> {
    blobs.iter().map(|(found, old)| (*found, if *found == kind { bytes.clone() } else { old.clone() })).collect()
}

fn message(reply: &Reply) -> &str {
    match reply {
        Reply::RtpmError { message, .. } | Reply::TcgLogValidationError { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

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
async fn nothing_is_answered_twice_or_late_or_for_another_key() {
    let mut fabric = Fabric::with(&boot(true)).await;
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let first = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&first, &ak).await;
    let answer = Context::new(first.state.clone(), evidence.clone());

    // Another identity key: what somebody in between would like to have certified.
    let honest = std::mem::replace(&mut fabric.identity, IdentityKey::generate().unwrap());
    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&reply).contains("not made by this service for these keys"), "{reply:?}");
    fabric.identity = honest;

    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::OK, "{reply:?}");
    // Replayed as it was.
    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&reply).contains("answered already"), "{reply:?}");
    fabric.assert_refused("answered already").await;

    // The old quote, for a new challenge that the TPM itself answered.
    let second = fabric.challenge(&ak).await;
    assert_ne!(second.blob(Blob::Nonce), first.blob(Blob::Nonce));
    let fresh = fabric.evidence(&second, &ak).await;
    let mut stale = fresh.clone();
    for kind in [Blob::Quote, Blob::Signature] {
        let old = evidence.iter().find(|(found, _)| *found == kind).unwrap().1.clone();
        stale = replaced(&stale, kind, old);
    }
    let (_, reply) = fabric.send(&Context::new(second.state.clone(), stale)).await;
    assert!(message(&reply).contains("does not answer this challenge"), "{reply:?}");
    fabric.assert_refused("does not answer this challenge").await;
    // A challenge is gone once its secret was shown, even with a good quote in a second try.
    let (_, reply) = fabric.send(&Context::new(second.state, fresh)).await;
    assert!(message(&reply).contains("answered already"), "{reply:?}");

    let third = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&third, &ak).await;
    for damaged in [0, third.state.len() / 2, third.state.len() - 1] {
        let mut state = third.state.clone();
        state[damaged] ^= 1;
        let (_, reply) = fabric.send(&Context::new(state, evidence.clone())).await;
        assert!(message(&reply).contains("not made by this service"), "{reply:?}");
    }
    fabric.world.advance(Duration::minutes(5) + Duration::seconds(1));
    let (_, reply) = fabric.send(&Context::new(third.state, evidence)).await;
    assert!(message(&reply).contains("too old"), "{reply:?}");
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn each_part_of_the_evidence_counts() {
    let fabric = Fabric::with(&boot(true)).await;
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let flipped = |blobs: &[(Blob, Vec<u8>)], kind: Blob| {
        let mut bytes = blobs.iter().find(|(found, _)| *found == kind).unwrap().1.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        replaced(blobs, kind, bytes)
    };
    for (kind, why) in [
        (Blob::Secret, "the secret is not the one"),
        (Blob::Quote, "not signed by the attestation key"),
        (Blob::Signature, "not signed by the attestation key"),
    ] {
        let challenge = fabric.challenge(&ak).await;
        let evidence = fabric.evidence(&challenge, &ak).await;
        let (status, reply) = fabric.send(&Context::new(challenge.state, flipped(&evidence, kind))).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{kind:?}");
        assert!(matches!(&reply, Reply::RtpmError { message, .. } if message.contains(why)), "{kind:?}: {reply:?}");
        fabric.assert_refused(why).await;

        let challenge = fabric.challenge(&ak).await;
        let mut evidence = fabric.evidence(&challenge, &ak).await;
        evidence.retain(|(found, _)| *found != kind);
        let (status, _) = fabric.send(&Context::new(challenge.state, evidence)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "without {kind:?}");
    }
    // A quote by the right key over other PCRs, or over those of another bank.
    let private = Private::new(&fabric.machine);
    for (pcrs, passes) in [("sha256:0,1,2", false), ("sha1:0,1,2,3,4,5,6,7,8,9,14", false), (&all(), true)] {
        let challenge = fabric.challenge(&private.ak()).await;
        let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
        let secret = private.activate(challenge.blob(Blob::Credential).unwrap()).unwrap();
        let (quote, signature) = private.quote(pcrs, &qualifying_data(&nonce, fabric.identity.public()));
        let blobs = vec![
            (Blob::AttestationKey, private.ak()),
            (Blob::Secret, secret),
            (Blob::Quote, quote),
            (Blob::Signature, signature),
            (Blob::EventLog, fabric.tpm.event_log().unwrap()),
        ];
        let (status, reply) = fabric.send(&Context::new(challenge.state, blobs)).await;
        if passes {
            assert_eq!(status, StatusCode::OK, "{reply:?}");
        } else {
            assert!(message(&reply).contains("not over the PCRs"), "{pcrs}: {reply:?}");
        }
    }
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn an_attestation_key_of_another_tpm_proves_nothing() {
    let fabric = Fabric::with(&boot(true)).await;
    // The thief has a well-started machine of their own and knows the registered endorsement key.
    let thief = Machine::start(&boot(true));
    let private = Private::new(&thief);
    let challenge = fabric.challenge(&private.ak()).await;
    let credential = challenge.blob(Blob::Credential).unwrap();
    assert!(private.activate(credential).is_none(), "the credential is for the registered TPM");
    // Nor does the registered TPM open it: that key is not in there.
    fabric.tpm.make_attestation_key().await.unwrap();
    let refused = fabric.tpm.activate(credential).await.err().unwrap();
    assert!(matches!(refused, TpmError::Failed { tool: "tpm2_activatecredential", .. }), "{refused}");

    let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
    let (quote, signature) = private.quote(&all(), &qualifying_data(&nonce, fabric.identity.public()));
    for secret in [vec![0; 32], Vec::new()] {
        let blobs = vec![
            (Blob::AttestationKey, private.ak()),
            (Blob::Secret, secret),
            (Blob::Quote, quote.clone()),
            (Blob::Signature, signature.clone()),
            (Blob::EventLog, log(&boot(true))),
        ];
        let (status, reply) = fabric.send(&Context::new(challenge.state.clone(), blobs)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(message(&reply).contains("is not in the registered TPM"), "{reply:?}");
        fabric.assert_refused("is not in the registered TPM").await;
    }

    // The registered TPM opens its credential, but the quote is by the thief's key.
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let challenge = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&challenge, &ak).await;
    let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
    let (quote, signature) = private.quote(&all(), &qualifying_data(&nonce, fabric.identity.public()));
    let evidence = replaced(&replaced(&evidence, Blob::Quote, quote), Blob::Signature, signature);
    let (_, reply) = fabric.send(&Context::new(challenge.state.clone(), evidence.clone())).await;
    assert!(message(&reply).contains("not signed by the attestation key"), "{reply:?}");
    // With the thief's key beside it, it is no longer the key that the challenge was for.
    let evidence = replaced(&evidence, Blob::AttestationKey, private.ak());
    let (_, reply) = fabric.send(&Context::new(challenge.state, evidence)).await;
    assert!(message(&reply).contains("not made by this service for these keys"), "{reply:?}");
    fabric.world.shut_down().await;
}

/// A key that signs whatever it is given could sign a made-up quote.
#[tokio::test]
async fn only_restricted_keys_of_the_right_kind_are_attestation_keys() {
    let fabric = Fabric::with(&boot(true)).await;
    let make = |name: &str, arguments: &str| {
        let arguments = format!("-C o -c {name}.ctx {arguments}");
        assert!(fabric.machine.tool("tpm2_createprimary", &arguments.split(' ').collect::<Vec<_>>()), "{name}");
        assert!(fabric.machine.tool("tpm2_flushcontext", &["-t"]));
        let public = format!("-c {name}.ctx -f tss -o {name}.pub");
        assert!(fabric.machine.tool("tpm2_readpublic", &public.split(' ').collect::<Vec<_>>()));
        assert!(fabric.machine.tool("tpm2_flushcontext", &["-t"]));
        std::fs::read(fabric.machine.folder.path().join(format!("{name}.pub"))).unwrap()
    };
    let base = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth";
    for (name, arguments, why) in [
        ("free", format!("-G ecc:ecdsa-sha256 -a {base}|sign"), "not a restricted signing key"),
        ("storage", format!("-G ecc -a {base}|restricted|decrypt"), "not ECDSA P-256"),
        ("rsa", format!("-G rsa2048:rsassa-sha256:null -a {base}|restricted|sign"), "not ECDSA P-256"),
        ("p384", format!("-G ecc384:ecdsa-sha256:null -a {base}|restricted|sign"), "not"),
    ] {
        let key = make(name, &arguments);
        let (status, reply) = fabric.send(&Context::new(Vec::new(), vec![(Blob::AttestationKey, key)])).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{name}");
        assert!(message(&reply).contains(why), "{name}: {reply:?}");
        fabric.assert_refused(why).await;
    }
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn the_log_must_lead_to_what_the_tpm_quotes() {
    let fabric = Fabric::with(&boot(true)).await;
    let good = boot(true);
    let file = fabric.machine.log_file();
    let (mut changed, mut swapped) = (good.clone(), good.clone());
    changed[0].2.push(1);
    swapped.swap(1, 2);
    let bytes = log(&good);
    for (case, altered) in [
        ("an event's digest changed", log(&changed)),
        ("an event left out", log(&good[..good.len() - 1])),
        ("an event added", log(&[good.clone(), vec![(9, 13, b"initrd".to_vec())]].concat())),
        ("two events in another order", log(&swapped)),
        ("a byte missing", bytes[..bytes.len() - 1].to_vec()),
        ("a byte more", [bytes.as_slice(), &[0]].concat()),
        ("no events at all", Vec::new()),
        ("no SHA-256", log(&good).replace_algorithm()),
    ] {
        std::fs::write(&file, altered).unwrap();
        let error = fabric.attest().await.err().unwrap();
        assert!(matches!(error, Error::EventLog { .. }), "{case}: {error}");
        assert_eq!(error.status().name(), "TcgLogValidation", "{case}");
        fabric.assert_refused("event log").await;
    }
    std::fs::write(&file, &bytes).unwrap();
    fabric.attest().await.unwrap();

    // A PCR that is not where the log leads to: something was measured that nobody wrote down.
    fabric.machine.extend(4, b"bootkit");
    let error = fabric.attest().await.err().unwrap();
    assert!(matches!(error, Error::EventLog { .. }), "{error}");
    fabric.assert_refused("does not lead to the PCRs").await;
    // And written down, it is not known good.
    std::fs::write(&file, log(&[good, vec![(4, 0x8000_0003, b"bootkit".to_vec())]].concat())).unwrap();
    let error = fabric.attest().await.err().unwrap();
    assert_eq!(error.sub_statuses(), [SubStatus::KnownGood], "{error}");
    fabric.assert_refused("PCR 4 differs from the nearest baseline, 'good'").await;
    fabric.world.shut_down().await;
}

trait Bytes {
    fn replace_algorithm(self) -> Vec<u8>;
}

impl Bytes for Vec<u8> {
    /// Calls SHA-256 something of the same size.
    fn replace_algorithm(mut self) -> Vec<u8> {
        for at in 0..self.len() - 1 {
            if self[at..at + 2] == [11, 0] {
                self[at] = 0x12;
            }
        }
        self
    }
}

#[tokio::test]
async fn secure_boot_off_is_refused_however_the_log_is_told() {
    let fabric = Fabric::with(&boot(false)).await;
    let error = fabric.attest().await.err().unwrap();
    assert_eq!(error.sub_statuses(), [SubStatus::SecureBoot, SubStatus::SecureBootSettings], "{error}");
    assert_eq!(error.status(), Status::InsecureHostConfiguration);
    assert!(error.remedy().contains("turn Secure Boot on"), "{}", error.remedy());
    fabric.assert_refused("Secure Boot was off").await;

    // The operating system measures what firmware would have, and calls the events before it something else.
    let secure = boot(true)[1].clone();
    fabric.machine.extend(secure.0, &secure.2);
    fabric.machine.extend(7, &[0; 4]);
    let mut told = boot(false);
    for event in &mut told {
        if event.0 == 7 {
            event.1 = 0x8000_0007;
        }
    }
    told.extend([secure, (7, 4, vec![0; 4])]);
    std::fs::write(fabric.machine.log_file(), log(&told)).unwrap();
    let error = fabric.attest().await.err().unwrap();
    assert!(error.sub_statuses().contains(&SubStatus::SecureBoot), "{error}");

    // A fabric that does not ask for it takes the machine.
    for check in [Check::SecureBoot, Check::SecureBootSettings] {
        fabric.world.hgs.set_policy(check, false).await.unwrap();
    }
    fabric.attest().await.unwrap();
    fabric.world.hgs.set_policy(Check::SecureBoot, true).await.unwrap();
    assert!(fabric.attest().await.is_err());
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn debug_mode_and_a_missing_baseline_are_refused() {
    let mut measurements = boot(true);
    measurements.push(debug_mode());
    let fabric = Fabric::with(&measurements).await;
    let error = fabric.attest().await.err().unwrap();
    let expected = [SubStatus::DebugMode, SubStatus::SecureBootSettings];
    assert!(expected.iter().all(|sub| error.sub_statuses().contains(sub)), "{error}");

    fabric.world.hgs.add_baseline("debug", &log(&measurements), &BASELINE_PCRS).await.unwrap();
    assert_eq!(fabric.attest().await.err().unwrap().sub_statuses(), [SubStatus::DebugMode]);
    fabric.world.hgs.set_policy(Check::NoDebugMode, false).await.unwrap();
    fabric.attest().await.unwrap();

    for name in ["good", "debug"] {
        fabric.world.hgs.remove_baseline(name).await.unwrap();
    }
    let error = fabric.attest().await.err().unwrap();
    assert!(error.to_string().contains("there is no baseline"), "{error}");
    fabric.world.hgs.verify_audit().await.unwrap();
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

    // The other modes are told which one it is.
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

/// The log as others read it: tpm2-tools' PCRs are ours, and both are the TPM's.
#[tokio::test]
async fn other_tools_replay_the_log_to_the_same_pcrs() {
    let machine = Machine::start(&boot(true));
    let output = Command::new("tpm2_eventlog").arg(machine.log_file()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, sums) = text.rsplit_once("sha256:").unwrap();
    let read = machine.folder.path().join("pcrs");
    assert!(machine.tool("tpm2_pcrread", &["sha256:0,1,2,3,4,5,6,7,8,9,14", "-o", "pcrs", "-F", "values"]));
    let values = std::fs::read(read).unwrap();
    let pcrs = EventLog::parse(&log(&boot(true))).unwrap().replay();
    for (place, pcr) in QUOTED.iter().enumerate() {
        let ours = pcrs[*pcr as usize];
        assert_eq!(values[place * 32..place * 32 + 32], ours, "PCR {pcr}");
        let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
        if sums.lines().any(|line| line.trim().starts_with(&format!("{pcr} "))) {
            assert!(sums.contains(&hex), "PCR {pcr} in {sums}");
        }
    }
    assert!(sums.lines().filter(|line| line.contains(": 0x")).count() >= 9, "{sums}");
}

fn all() -> String {
    format!("sha256:{}", QUOTED.map(|pcr| pcr.to_string()).join(","))
}

/// A TPM used by hand, for what the client never does.
struct Private<'a>(&'a Machine);

impl<'a> Private<'a> {
    fn new(machine: &'a Machine) -> Self {
        let private = Private(machine);
        assert!(private.tool("tpm2_createek -c e.ctx -G rsa -u e.pem -f pem"));
        assert!(private.tool("tpm2_flushcontext -t"));
        assert!(private.tool("tpm2_createak -Q -C e.ctx -c a.ctx -G ecc -g sha256 -s ecdsa -u a.pub -f tss -n a.name"));
        assert!(private.tool("tpm2_flushcontext -t"));
        private
    }

    fn tool(&self, line: &str) -> bool {
        let (tool, arguments) = line.split_once(' ').unwrap();
        self.0.tool(tool, &arguments.split(' ').collect::<Vec<_>>())
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.folder.path().join(name)).unwrap()
    }

    fn ak(&self) -> Vec<u8> {
        self.file("a.pub")
    }

    fn activate(&self, credential: &[u8]) -> Option<Vec<u8>> {
        let framed = [&[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1], credential].concat();
        std::fs::write(self.0.folder.path().join("c"), framed).unwrap();
        assert!(self.tool("tpm2_startauthsession --policy-session -S s.ctx"));
        assert!(self.tool("tpm2_policysecret -S s.ctx -c e"));
        let done = self.tool("tpm2_activatecredential -Q -c a.ctx -C e.ctx -i c -o secret -P session:s.ctx");
        self.tool("tpm2_flushcontext s.ctx");
        assert!(self.tool("tpm2_flushcontext -t"));
        done.then(|| self.file("secret"))
    }

    fn quote(&self, pcrs: &str, qualifying: &[u8; 32]) -> (Vec<u8>, Vec<u8>) {
        let hex: String = qualifying.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(self.tool(&format!("tpm2_quote -Q -c a.ctx -l {pcrs} -q {hex} -m m -s g")), "{pcrs}");
        assert!(self.tool("tpm2_flushcontext -t"));
        (self.file("m"), self.file("g"))
    }
}
