//! MS-KPS 3.1.5.1.1.3 over the network: for each check one request that fails it and no other, the error's name
//! as the specification gives it, nothing released, and a row in the log.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::{HealthCa, IdentityKey};
use key_protector::{Guardian, Protector, Role, TransportKey};
use reqwest::StatusCode;
use support::forge::{Forge, sign};
use support::{HOST, World, guardian, now, roll_request};
use time::Duration;

const HEALTH: &str = "HealthCertificateException";
const PROTECTOR: &str = "InvalidProtectorException";
const WRAPPING: &str = "InvalidWrappingException";
const OWNER: usize = 0;
const FABRIC: usize = 1;
const PARTNER: usize = 2;

struct Bench {
    world: World,
    partner: Guardian,
    good: Protector,
    key: TransportKey,
    health: Vec<u8>,
}

impl Bench {
    async fn new() -> Self {
        let world = World::start().await;
        let partner = guardian("partner", Role::Fabric, Duration::days(1));
        let (good, key) = world.protector(&[partner.public().clone()]);
        let health = world.client().attest(&world.host_key).await.unwrap().der().to_vec();
        Bench { world, partner, good, key, health }
    }

    fn forge(&self) -> Forge {
        Forge::of(&self.good.to_xml(), &self.key)
    }

    /// The good protector with one change, signed again by its owner.
    fn with(&self, change: impl FnOnce(&mut Forge)) -> Vec<u8> {
        let mut forge = self.forge();
        change(&mut forge);
        forge.seal(&self.world.owner)
    }

    fn fabric(&self) -> Guardian {
        Guardian::from_pem(&std::fs::read_to_string(self.world.dir().join("guardian.pem")).unwrap()).unwrap()
    }
}

/// A rule, the error's name, a part of its reason, and the request that breaks this rule and no other.
type Case = (&'static str, &'static str, &'static str, String);

impl Bench {
    fn bad_protector(&self, rule: &'static str, code: &'static str, why: &'static str, protector: Vec<u8>) -> Case {
        (rule, code, why, roll_request(&protector, &self.health))
    }
}

fn health_certificates(bench: &Bench) -> Vec<Case> {
    let good = bench.good.to_xml();
    let host = bench.world.host_key.public().unwrap().into();
    let identity = IdentityKey::generate().unwrap();
    let foreign_health = HealthCa::generate("fabric", now(), Duration::days(1))
        .unwrap()
        .issue(HOST, &host, identity.public(), now(), Duration::hours(8))
        .unwrap();
    vec![
        ("the health certificate is one", HEALTH, "is not a certificate", roll_request(&good, b"certificate")),
        (
            "the health certificate is of this service's attestation",
            HEALTH,
            "not issued by this service",
            roll_request(&good, &foreign_health),
        ),
        (
            "the health certificate is checked first",
            HEALTH,
            "not issued by this service",
            roll_request(b"<Protector", &foreign_health),
        ),
    ]
}

fn documents(bench: &Bench) -> Vec<Case> {
    vec![
        bench.bad_protector("the protector is XML", PROTECTOR, "not well-formed XML", b"<Protector".to_vec()),
        bench.bad_protector(
            "the protector is a protector",
            PROTECTOR,
            "not the element that belongs here",
            b"<Protector/>".to_vec(),
        ),
        bench.bad_protector(
            "WrappingId names a wrapping",
            PROTECTOR,
            "names wrapping 9",
            bench.with(|p| p.signer_id = 9),
        ),
        bench.bad_protector(
            "GuardianSignature is by that wrapping",
            PROTECTOR,
            "not made by wrapping 2",
            bench.with(|p| p.signer_id = 2),
        ),
        bench.bad_protector(
            "GuardianSignature is over the wrappings",
            PROTECTOR,
            "not made by wrapping 1",
            bench.with(|p| p.guardian_signs = Some(b"<Wrappings></Wrappings>".to_vec())),
        ),
        bench.bad_protector(
            "TransportKeySignature is by the transport key",
            PROTECTOR,
            "transport key signature was not made",
            bench.with(|p| p.transport_key = [7; 32]),
        ),
    ]
}

fn certificates(bench: &Bench) -> Vec<Case> {
    let truncated = |der: &[u8]| der[..der.len() - 1].to_vec();
    vec![
        bench.bad_protector(
            "SigningCertificate is X.509",
            WRAPPING,
            "not acceptable X.509",
            bench.with(|p| {
                let piece = &mut p.wrappings[PARTNER];
                piece.signing = truncated(&piece.signing);
                piece.signing_signature = sign(&bench.world.owner, &piece.signing);
            }),
        ),
        bench.bad_protector(
            "EncryptionCertificate is X.509",
            WRAPPING,
            "not acceptable X.509",
            bench.with(|p| {
                let piece = &mut p.wrappings[PARTNER];
                piece.encryption = truncated(&piece.encryption);
                piece.encryption_signature = sign(&bench.partner, &piece.encryption);
            }),
        ),
    ]
}

fn chains(bench: &Bench) -> Vec<Case> {
    let fabric = bench.fabric();
    vec![
        bench.bad_protector(
            "ParentWrappingId names a wrapping",
            WRAPPING,
            "names parent 9",
            bench.with(|p| p.wrappings[PARTNER].parent = 9),
        ),
        bench.bad_protector(
            "only the owner's names itself",
            WRAPPING,
            "both claim to be the owner's",
            bench.with(|p| {
                let piece = &mut p.wrappings[PARTNER];
                piece.parent = piece.id;
                piece.signing_signature = sign(&bench.partner, &piece.signing);
            }),
        ),
        bench.bad_protector(
            "there is an owner",
            WRAPPING,
            "has no owner",
            bench.with(|p| {
                p.wrappings[OWNER].parent = p.wrappings[FABRIC].id;
                p.wrappings[OWNER].signing_signature = sign(&fabric, &p.wrappings[OWNER].signing);
            }),
        ),
        bench.bad_protector(
            "every wrapping chains to the owner",
            WRAPPING,
            "does not chain to the owner",
            bench.with(|p| {
                p.wrappings[FABRIC].parent = p.wrappings[PARTNER].id;
                p.wrappings[FABRIC].signing_signature = sign(&bench.partner, &p.wrappings[FABRIC].signing);
                p.wrappings[PARTNER].parent = p.wrappings[FABRIC].id;
                p.wrappings[PARTNER].signing_signature = sign(&fabric, &p.wrappings[PARTNER].signing);
            }),
        ),
    ]
}

fn certificate_signatures(bench: &Bench) -> Vec<Case> {
    let stranger = guardian("stranger", Role::Owner, Duration::days(1));
    vec![
        bench.bad_protector(
            "SigningCertificateSignature is by the parent",
            WRAPPING,
            "not signed by its parent",
            bench.with(|p| p.wrappings[PARTNER].signing_signature = sign(&stranger, &p.wrappings[PARTNER].signing)),
        ),
        bench.bad_protector(
            "SigningCertificateSignature is over that certificate",
            WRAPPING,
            "not signed by its parent",
            bench.with(|p| {
                p.wrappings[PARTNER].signing_signature = sign(&bench.world.owner, &p.wrappings[FABRIC].signing)
            }),
        ),
        bench.bad_protector(
            "EncryptionCertificateSignature is by the current wrapping",
            WRAPPING,
            "not signed by its signing certificate",
            bench.with(|p| {
                p.wrappings[PARTNER].encryption_signature = sign(&bench.world.owner, &p.wrappings[PARTNER].encryption);
            }),
        ),
    ]
}

fn own_wrappings(bench: &Bench) -> Vec<Case> {
    vec![
        bench.bad_protector(
            "there is a wrapping for this service",
            WRAPPING,
            "no wrapping for this service",
            bench.with(|p| drop(p.wrappings.remove(FABRIC))),
        ),
        bench.bad_protector(
            "MaxOfflineUnwraps is the one that is bound",
            PROTECTOR,
            "MaxOfflineUnwraps differs",
            bench.with(|p| p.offline = 9),
        ),
        bench.bad_protector(
            "the wrapped key is for this service",
            PROTECTOR,
            "does not contain a transport key",
            bench.with(|p| p.wrappings[FABRIC].transport_key = p.wrappings[PARTNER].transport_key.clone()),
        ),
    ]
}

async fn assert_refused(world: &World, path: &str, (rule, code, why, request): &Case) {
    let rows = world.hgs.audit(1000).await.unwrap().len();
    let (status, answer) = world.post(path, request.clone()).await;
    let expected = if *code == HEALTH { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    assert_eq!(status, expected, "{rule}: {answer}");
    assert!(answer.contains(&format!("<Code>{code}</Code>")), "{rule}: {answer}");
    support::schema::assert_valid("error.xsd", answer.as_bytes());
    for released in ["EgressProtector", "EncryptedTransportKeys", "EncryptedTransferKey"] {
        assert!(!answer.contains(released), "{rule}: {answer}");
    }
    let log = world.hgs.audit(1000).await.unwrap();
    assert_eq!(log.len(), rows + 1, "{rule}");
    let last = log.last().unwrap();
    assert_eq!(last.event, "key-refused", "{rule}");
    assert_eq!(last.host, if *code == HEALTH { "" } else { HOST }, "{rule}");
    // An owner is named when everything that it signed was found to be right.
    let verified = ["no wrapping for this service", "does not contain a transport key", "transport key signature"];
    assert_eq!(!last.owner.is_empty(), verified.iter().any(|fault| why.contains(fault)), "{rule}");
    assert!(last.why.contains(why) && answer.contains("<Message>"), "{rule}: {}", last.why);
}

#[tokio::test]
async fn each_check_of_the_specification_has_its_error_and_its_row() {
    let bench = Bench::new().await;
    let world = &bench.world;
    let kinds: [fn(&Bench) -> Vec<Case>; 6] =
        [health_certificates, documents, certificates, chains, certificate_signatures, own_wrappings];
    let cases: Vec<Case> = kinds.iter().flat_map(|kind| kind(&bench)).collect();
    assert_eq!(cases.len(), 21);
    for version in ["v1.0", "v2.0"] {
        let path = format!("/keyprotection/service/{version}/rolltransportkey");
        for case in &cases {
            assert_refused(world, &path, case).await;
        }
        // What all of these were made from, taken apart and put together by the same tool.
        let (status, answer) = world.post(&path, roll_request(&bench.with(|_| ()), &bench.health)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(world.last().await.0, "key-released");
    }
    world.hgs.verify_audit().await.unwrap();
    bench.world.shut_down().await;
}
