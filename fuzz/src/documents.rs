//! Key protectors, guardians, certificates and signed documents: what `key_protector` reads.

use key_protector::{Certificate, GuardianPublic, Protector, signed};

use crate::Target;
use crate::world::{NOW, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "protector", seeds: protectors, run: protector },
    Target { name: "guardian", seeds: guardians, run: guardian },
    Target { name: "certificate", seeds: certificates, run: certificate },
    Target { name: "signed_document", seeds: signed_documents, run: signed_document },
];

const KIND: &str = "drydock/fuzz";
const PAYLOAD: &[u8] = b"{\"a\":1}";

fn protectors(world: &World) -> Vec<Vec<u8>> {
    vec![world.protector.to_xml(), world.granted.to_xml()]
}

fn protector(world: &World, bytes: &[u8]) -> bool {
    let Ok(protector) = Protector::parse(bytes) else { return false };
    assert!(protector.to_xml() == bytes, "a second spelling was accepted");
    assert_eq!(protector.digest().len(), 64);
    // What `protector show` prints.
    let (owner, signer) = (protector.owner(), protector.signer());
    assert_eq!(owner.id(), owner.parent_id());
    assert!(protector.wrappings().iter().any(|wrapping| wrapping.id() == signer.id()));
    for wrapping in protector.wrappings() {
        assert!(!wrapping.name().chars().any(char::is_control), "a name that is not safe to print");
        let _ = (wrapping.role(), wrapping.check_valid_at(NOW));
        assert_eq!(wrapping.signing_certificate().fingerprint().len(), 64);
    }
    assert!(protector.expired(NOW).len() <= protector.wrappings().len());
    // Nobody here has the owner's key: what verifies as the owner's says what the owner signed.
    if protector.verify(NOW).is_ok() && owner.signing_certificate() == world.owner.public().signing() {
        let xml = protector.to_xml();
        let known = [world.protector.to_xml(), world.granted.to_xml()];
        assert!(known.iter().any(|known| wrappings(known) == wrappings(&xml)), "wrappings that nobody signed");
    }
    if let Ok(key) = protector.open(&world.fabric, NOW) {
        let real = world.protector.open(&world.fabric, NOW).unwrap();
        assert!(key.expose() == real.expose(), "a transport key that the owner did not wrap");
    }
    true
}

/// What the signatures are over.
fn wrappings(xml: &[u8]) -> &str {
    let xml = std::str::from_utf8(xml).unwrap();
    let (_, tail) = xml.split_once("<Wrappings").unwrap();
    tail.split_once("</Wrappings>").unwrap().0
}

fn guardians(world: &World) -> Vec<Vec<u8>> {
    [&world.owner, &world.fabric, &world.recovery].map(|guardian| guardian.public().to_xml()).to_vec()
}

fn guardian(_: &World, bytes: &[u8]) -> bool {
    let Ok(guardian) = GuardianPublic::parse(bytes) else { return false };
    assert!(guardian.to_xml() == bytes, "a second spelling was accepted");
    assert!(!guardian.name().chars().any(char::is_control), "a name that is not safe to print");
    assert_eq!(guardian.signing().role(), Some(guardian.role()));
    assert_eq!(guardian.encryption().role(), Some(guardian.role()));
    guardian.check_valid_at(NOW).is_ok()
}

fn certificates(world: &World) -> Vec<Vec<u8>> {
    let (owner, recovery) = (world.owner.public(), world.recovery.public());
    [owner.signing(), owner.encryption(), recovery.signing()].map(|certificate| certificate.der().to_vec()).to_vec()
}

fn certificate(_: &World, bytes: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(bytes) else { return false };
    assert!(certificate.der() == bytes);
    assert!(!certificate.common_name().chars().any(char::is_control), "a name that is not safe to print");
    let valid = certificate.check_valid_at(NOW).is_ok();
    assert_eq!(valid, certificate.not_before() <= NOW && NOW <= certificate.not_after());
    true
}

fn signed_documents(world: &World) -> Vec<Vec<u8>> {
    [&world.owner, &world.recovery].map(|by| signed::sign(KIND, PAYLOAD, by).unwrap()).to_vec()
}

fn signed_document(world: &World, bytes: &[u8]) -> bool {
    let Ok(verified) = signed::verify(KIND, bytes) else { return false };
    for known in [&world.owner, &world.recovery] {
        if &verified.signer == known.public().signing() {
            assert!(verified.payload == PAYLOAD, "a payload that nobody signed");
        }
    }
    true
}
