//! What hosts and the attestation service say to each other, and the keys and certificates in it.

use attestation::messages::{AttestationRequest, EvaluationLog, Reply, Tuple};
use attestation::tpm::{AkPublic, Context, EkPublic, TpmClaim, make_credential};
use attestation::{
    Claim, HostIdentity, HostKeyClaim, HostKeyVerifier, HostKind, HostPublicKey, IdentityPublic, Registered, Verifier,
};
use time::Duration;

use crate::Target;
use crate::measured_boot::{ak_public, evidence};
use crate::papers::{json, same_again};
use crate::world::{NOW, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "attestation_request", seeds: requests, run: request },
    Target { name: "attestation_reply", seeds: replies, run: reply },
    Target { name: "attestation_keys", seeds: keys, run: key },
    Target { name: "health_certificate", seeds: health_certificates, run: health_certificate },
];

fn requests(world: &World) -> Vec<Vec<u8>> {
    let context = Context::parse(&evidence(world)).unwrap();
    let tpm = |context: &Context| AttestationRequest::tpm(&world.ek, &world.identity, &[7; 16], context).unwrap();
    [
        AttestationRequest::host_key(&world.host, &world.identity, &[7; 16]).unwrap(),
        tpm(&Context::default()),
        tpm(&context),
    ]
    .map(|request| json(&request).into_bytes())
    .to_vec()
}

fn request(world: &World, bytes: &[u8]) -> bool {
    let Ok(request) = serde_json::from_slice::<AttestationRequest>(bytes) else { return false };
    same_again(&request);
    let mut accepted = false;
    if let Ok(claim) = HostKeyClaim::from_request(&request) {
        accepted = true;
        let registered = HostIdentity::from(world.host.public().unwrap());
        // Nobody here has the host's key: what it proves is what the host signed.
        if let Ok(claim) = Registered::check(claim, Some(&registered))
            && let Ok(evidence) = HostKeyVerifier.verify(&claim)
        {
            assert!(*evidence.identity() == world.identity, "a key that the host did not certify");
        }
    }
    if let Ok(claim) = TpmClaim::from_request(&request) {
        let context = claim.context.write().unwrap();
        assert!(Context::parse(&context).as_ref() == Some(&claim.context));
        accepted = true;
    }
    accepted
}

fn replies(_: &World) -> Vec<Vec<u8>> {
    let reasons = vec![EvaluationLog { result: false, reason: "AAAA".into() }];
    let message = String::from("because");
    [
        Reply::HealthCertificate { content: vec![Tuple::new(1, b"certificate")] },
        Reply::service_info(1),
        Reply::TpmContinue { context: "AAAA".into() },
        Reply::PolicyEvaluationError { reasons, retryable: false, message: message.clone() },
        Reply::PayloadError { retryable: false, message },
        Reply::UnavailableError { retryable: true },
    ]
    .map(|reply| json(&reply).into_bytes())
    .to_vec()
}

fn reply(_: &World, bytes: &[u8]) -> bool {
    let Ok(reply) = serde_json::from_slice::<Reply>(bytes) else { return false };
    same_again(&reply);
    if let Reply::HealthCertificate { content } = &reply {
        for item in content {
            if let Some(bytes) = item.decode() {
                assert_eq!(Tuple::new(item.kind, &bytes).content, item.content, "base64 with a second spelling");
            }
        }
    }
    true
}

fn keys(world: &World) -> Vec<Vec<u8>> {
    vec![
        ak_public(world),
        world.ek.der().to_vec(),
        world.host.public().unwrap().der().to_vec(),
        world.host.public_pem().into_bytes(),
        world.identity.der().to_vec(),
    ]
}

fn key(world: &World, bytes: &[u8]) -> bool {
    let mut accepted = false;
    if let Ok(ak) = AkPublic::parse(bytes) {
        accepted = true;
        assert_eq!(ak.name()[..2], [0, 11]);
        make_credential(&world.ek, &ak, &[7; 32]).unwrap();
    }
    if let Ok(ek) = EkPublic::from_file(bytes) {
        accepted = true;
        assert!(EkPublic::from_der(ek.der()).unwrap() == ek);
        make_credential(&ek, &AkPublic::parse(&ak_public(world)).unwrap(), &[7; 32]).unwrap();
    }
    if let Ok(host) = HostPublicKey::from_file(bytes) {
        accepted = true;
        assert!(HostPublicKey::from_file(host.to_pem().as_bytes()).unwrap() == host);
        assert!(!host.verify(b"message", bytes));
    }
    if let Ok(identity) = IdentityPublic::from_der(bytes) {
        accepted = true;
        assert!(identity.der() == bytes);
        identity.encrypt(&[7; 32]).unwrap();
    }
    for kind in [HostKind::HostKey, HostKind::Tpm] {
        if let Ok(identity) = HostIdentity::from_der(kind, bytes) {
            accepted = true;
            assert!(identity.der() == bytes && identity.kind() == kind, "a second spelling was accepted");
        }
    }
    accepted
}

/// ecdsa-with-SHA256 (RFC 5758), and what begins a bit string of whole bytes.
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

fn health_certificates(world: &World) -> Vec<Vec<u8>> {
    [HostIdentity::from(world.host.public().unwrap()), HostIdentity::from(world.ek.clone())]
        .map(|host| {
            let der = world.health.issue("host", &host, &world.identity, NOW, Duration::hours(8)).unwrap();
            // SEQUENCE of two bytes of length, and in it first the same again: TBSCertificate.
            let length = usize::from(u16::from_be_bytes([der[6], der[7]]));
            der[4..8 + length].to_vec()
        })
        .to_vec()
}

/// The bytes are what the certificate authority signs: the signature is right, and the rest is the enemy's.
fn health_certificate(world: &World, bytes: &[u8]) -> bool {
    let signature = world.health_key.sign(bytes).unwrap();
    // A signature has at most 72 bytes.
    let bits = [&[0x03, signature.len() as u8 + 1, 0], signature.as_slice()].concat();
    let body = [bytes, &ECDSA_SHA256, &bits].concat();
    let Ok(length) = u16::try_from(body.len()) else { return false };
    let der = [&[0x30, 0x82], length.to_be_bytes().as_slice(), &body].concat();
    // Unsigned bytes certify nothing.
    assert!(world.health.verify(bytes, NOW).is_err());
    let Ok(health) = world.health.verify(&der, NOW) else { return false };
    assert!(NOW <= health.not_after, "a certificate that has ended");
    assert!(IdentityPublic::from_der(health.identity.der()).is_ok());
    let mut forged = der;
    forged[10] ^= 1;
    assert!(world.health.verify(&forged, NOW).is_err(), "a certificate that nobody signed");
    true
}
