//! One protector per rule of MS-KPS 3.1.5.1.1.3, and per rule of ours, that breaks that rule alone:
//! every signature that the rule is not about is made again over what was changed.
#![allow(clippy::unwrap_used)]

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::signature::{RSA_PSS_SHA256, RsaKeyPair};
use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::made::{child, fabric, issue_for, owner, parts, protector, recovery, with_child_of_fabric};
use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{PublicKey, Role};
use crate::error::Result;
use crate::private_keys::sign;
use crate::protector::document::Protector;
use crate::protector::parts::{MAX_OFFLINE_UNWRAPS, MAX_WRAPPINGS, Parts, Recipient};
use crate::protector::{issue, verify};
use crate::signature::Signature;
use crate::test_support::{Is, NOW, assert_refused, certificate_for, guardian, is};
use crate::transport_key::TransportKey;

const PROTECTOR: &str = "InvalidProtectorException";
const WRAPPING: &str = "InvalidWrappingException";

/// Signs `parts` again after `edit` and tries to open what was written.
fn after(edit: impl FnOnce(&mut Parts)) -> Result<TransportKey> {
    let (mut parts, key) = parts();
    edit(&mut parts);
    issue::seal(&mut parts, &key, owner()).unwrap();
    open(&parts.to_xml())
}

fn open(xml: &str) -> Result<TransportKey> {
    Protector::parse(xml.as_bytes())?.open(fabric(), NOW)
}

/// Not quite a transport key, for the fabric guardian.
fn encrypted(plain: &[u8]) -> Vec<u8> {
    let PublicKey::Rsa { spki, .. } = fabric().public().encryption().public_key() else {
        panic!("an encryption key is RSA");
    };
    let key = PublicEncryptingKey::from_der(spki).unwrap();
    let key = OaepPublicEncryptingKey::new(key).unwrap();
    let mut cipher = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA256_MGF1SHA256, plain, &mut cipher, None).unwrap();
    cipher
}

/// Replaces `old` in a protector and makes the two signatures over the wrappings again, without a
/// parser's help.
fn text_edit((parts, key): &(Parts, TransportKey), old: &str, new: &str) -> String {
    let mut xml = parts.to_xml();
    assert!(xml.contains(old));
    xml = xml.replace(old, new);
    let start = xml.find("<Wrappings>").unwrap();
    let end = xml.find("</Wrappings>").unwrap();
    let signed = format!(
        "<Wrappings xmlns=\"{}\">{}</Wrappings>",
        crate::signature::KPS,
        &xml[start + "<Wrappings>".len()..end]
    );
    let mac = verify::transport_key_signature(key, signed.as_bytes());
    let signature = sign(owner(), signed.as_bytes()).unwrap();
    for (old, new) in [(&parts.transport_key_signature, &mac), (&parts.guardian_signature.value, &signature.value)] {
        xml = xml.replace(&BASE64_STANDARD.encode(old), &BASE64_STANDARD.encode(new));
    }
    xml
}

#[test]
fn the_tools_of_this_table_break_nothing() {
    assert!(after(|_| ()).is_ok());
    assert!(open(&text_edit(&parts(), "<Id>1</Id>", "<Id>1</Id>")).is_ok());
    let (protector, _) = with_child_of_fabric();
    assert!(protector.open(fabric(), NOW).is_ok());
}

#[test]
fn every_rule_of_the_specification() {
    let stranger = guardian("other-tenant", Role::Owner);
    let cases: Vec<(&str, Is, &str, Result<TransportKey>)> = vec![
        ("the ingress protector is valid XML", is!(Xml), PROTECTOR, open("<Protector")),
        ("it is a protector", is!(Structure), PROTECTOR, open("<Protector/>")),
        ("WrappingId points to a wrapping", is!(UnknownSigner), PROTECTOR, after(|p| p.signer_id = 9)),
        ("the guardian signature is that wrapping's", is!(GuardianSignature), PROTECTOR, after(|p| p.signer_id = 2)),
        ("the guardian signature is over the wrappings", is!(GuardianSignature), PROTECTOR, {
            let (mut parts, key) = parts();
            parts.guardian_signature = sign(owner(), b"<Wrappings></Wrappings>").unwrap();
            let signed = parts.signed_bytes().unwrap();
            parts.transport_key_signature = verify::transport_key_signature(&key, &signed);
            open(&parts.to_xml())
        }),
        ("the transport key signature has a valid value", is!(TransportKeySignature), PROTECTOR, {
            let (mut parts, _) = parts();
            issue::seal(&mut parts, &TransportKey::generate(), owner()).unwrap();
            open(&parts.to_xml())
        }),
        (
            "SigningCertificate is X.509",
            is!(Certificate),
            WRAPPING,
            open(&not_x509(|p| p.wrappings[2].signing.der().to_vec())),
        ),
        (
            "EncryptionCertificate is X.509",
            is!(Certificate),
            WRAPPING,
            open(&not_x509(|p| p.wrappings[2].encryption.der().to_vec())),
        ),
        (
            "ParentWrappingId points to a wrapping",
            is!(ParentMissing),
            WRAPPING,
            after(|p| p.wrappings[2].parent_id = 9),
        ),
        (
            "only the owner is its own parent",
            is!(SeveralOwners),
            WRAPPING,
            after(|p| {
                let fabric = &mut p.wrappings[1];
                fabric.parent_id = fabric.id;
                fabric.signing_signature = super::made::fabric().public().self_signature.clone();
            }),
        ),
        (
            "somebody is the owner",
            is!(NoOwner),
            WRAPPING,
            after(|p| {
                p.wrappings[0].parent_id = 2;
                let der = owner().public().signing().der();
                p.wrappings[0].signing_signature = sign(fabric(), der).unwrap();
            }),
        ),
        ("every wrapping chains up to the owner", is!(NotChained), WRAPPING, {
            let second = guardian("second-fabric", Role::Fabric);
            issue_for(&[child(owner(), owner(), 0), child(fabric(), second, 2), child(second, fabric(), 1)])
                .map(|(_, key)| key)
        }),
        (
            "the signing certificate is signed by the parent",
            is!(SigningCertificateSignature),
            WRAPPING,
            after(|p| {
                let der = p.wrappings[2].signing.der().to_vec();
                p.wrappings[2].signing_signature = sign(stranger, &der).unwrap();
            }),
        ),
        (
            "the signing certificate is signed by that parent and not by itself",
            is!(SigningCertificateSignature),
            WRAPPING,
            after(|p| {
                p.wrappings[2].signing_signature = recovery().public().self_signature.clone();
            }),
        ),
        (
            "the encryption certificate is signed by the same guardian",
            is!(EncryptionCertificateSignature),
            WRAPPING,
            after(|p| {
                let der = p.wrappings[2].encryption.der().to_vec();
                p.wrappings[2].encryption_signature = sign(owner(), &der).unwrap();
            }),
        ),
        ("there is a wrapping for the service", is!(NotARecipient), WRAPPING, {
            let (without, _) = protector(&[recovery()]);
            without.open(fabric(), NOW)
        }),
    ];
    for (rule, broken, code, outcome) in cases {
        let error = outcome.err().unwrap_or_else(|| panic!("not kept: {rule}"));
        assert!(broken(&error), "{rule}: {error}");
        assert_eq!(error.kps_code(), code, "{rule}");
    }
}

/// A protector whose recovery guardian has, where `which` is, a certificate that ends too early.
/// It is signed as a certificate would be.
fn not_x509(which: impl Fn(&Parts) -> Vec<u8>) -> String {
    // Signatures differ each time they are made, so the texts are taken from one protector.
    let original = parts();
    let der = which(&original.0);
    let short = &der[..der.len() - 1];
    let old = BASE64_STANDARD.encode(&der);
    let new = BASE64_STANDARD.encode(short);
    // Parsing ends at the certificate, before any signature over it matters.
    text_edit(&original, &old, &new)
}

#[test]
fn every_rule_of_ours() {
    let second = guardian("second-fabric", Role::Fabric);
    let cases: Vec<(&str, Is, Result<TransportKey>)> = vec![
        ("ids are unique", is!(DuplicateId), after(|p| p.wrappings[2].id = 2)),
        (
            "encryption keys are unique",
            is!(DuplicateEncryptionKey),
            after(|p| {
                let mut again = p.wrappings[1].clone();
                again.id = 4;
                p.wrappings.push(again);
            }),
        ),
        ("encryption keys are unique, whatever their certificates", is!(DuplicateEncryptionKey), {
            let encryption = certificate_for(fabric(), "fabric", Role::Fabric);
            assert_ne!(encryption.der(), fabric().public().encryption().der());
            let mut again = child(fabric(), owner(), 0);
            again.encryption_signature = sign(fabric(), encryption.der()).unwrap();
            again.encryption = encryption;
            issue_for(&[child(owner(), owner(), 0), child(fabric(), owner(), 0), again]).map(|(_, key)| key)
        }),
        ("MaxOfflineUnwraps is bound", is!(OfflineUnwraps), after(|p| p.max_offline_unwraps = 7)),
        (
            "the owner's wrapping binds it",
            is!(OfflineUnwraps),
            after(|p| {
                p.wrappings[0].offline_unwraps = None;
            }),
        ),
        (
            "no other wrapping does",
            is!(OfflineUnwraps),
            after(|p| {
                p.wrappings[1].offline_unwraps = Some(0);
            }),
        ),
        ("only the owner has the owner's role", is!(OwnerRole), {
            let stranger = guardian("other-tenant", Role::Owner);
            issue_for(&[child(owner(), owner(), 0), child(stranger, owner(), 0)]).map(|(_, key)| key)
        }),
        ("a recovery guardian certifies nobody", is!(RecoveryParent), {
            issue_for(&[child(owner(), owner(), 0), child(recovery(), owner(), 0), child(second, recovery(), 1)])
                .map(|(_, key)| key)
        }),
        (
            "both certificates have one role",
            is!(RolesDiffer),
            after(|p| {
                let der = recovery().public().encryption().der();
                p.wrappings[1].encryption_signature = sign(fabric(), der).unwrap();
                p.wrappings[1].encryption = recovery().public().encryption().clone();
                p.wrappings.pop();
            }),
        ),
        (
            "both certificates have one name",
            is!(NamesDiffer),
            after(|p| {
                let der = second.public().encryption().der();
                p.wrappings[1].encryption_signature = sign(fabric(), der).unwrap();
                p.wrappings[1].encryption = second.public().encryption().clone();
            }),
        ),
        (
            "a signing certificate may sign",
            is!(KeyUsage),
            after(|p| {
                p.wrappings[1].signing = p.wrappings[1].encryption.clone();
            }),
        ),
        (
            "an encryption certificate may encrypt",
            is!(KeyUsage),
            after(|p| {
                p.wrappings[1].encryption = p.wrappings[1].signing.clone();
            }),
        ),
        ("there is a wrapping", is!(NoWrapping), after(|p| p.wrappings.clear())),
        (
            "there are at most 64",
            is!(TooManyWrappings),
            after(|p| {
                let one = p.wrappings[1].clone();
                p.wrappings.resize(MAX_WRAPPINGS + 1, one);
            }),
        ),
        (
            "the cipher text is for the guardian",
            is!(Unwrap),
            after(|p| {
                p.wrappings[1].cipher = p.wrappings[2].cipher.clone();
            }),
        ),
        ("the cipher text is one key", is!(Unwrap), after(|p| p.wrappings[1].cipher = encrypted(&[7; 31]))),
    ];
    for (rule, broken, outcome) in cases {
        let error = outcome.err().unwrap_or_else(|| panic!("not kept: {rule}"));
        assert!(broken(&error), "{rule}: {error}");
    }
}

#[test]
fn offline_unwraps_are_carried_along() {
    let key = TransportKey::generate();
    let recipients = [child(owner(), owner(), 0), child(fabric(), owner(), 0)];
    let protector = issue::issue(&recipients, &key, (1, fabric()), 3, NOW).unwrap();
    let read = Protector::parse(&protector.to_xml()).unwrap();
    assert_eq!(read.max_offline_unwraps(), 3);
    let rolled = read.roll(fabric(), &[], NOW).unwrap();
    assert_eq!(rolled.egress_protector.max_offline_unwraps(), 3);
    // The host cannot raise it.
    let xml = String::from_utf8(read.to_xml()).unwrap();
    let raised = xml.replacen("MaxOfflineUnwraps=\"3\"", "MaxOfflineUnwraps=\"4\"", 1);
    assert_refused!(open(&raised), OfflineUnwraps);
}

#[test]
fn only_the_owner_allows_offline_unwraps() {
    let (none, key) = protector(&[fabric(), recovery()]);
    let some = none.allow_offline(owner(), MAX_OFFLINE_UNWRAPS, NOW).unwrap();
    assert_eq!(some.max_offline_unwraps(), MAX_OFFLINE_UNWRAPS);
    assert_eq!(some.wrappings().len(), none.wrappings().len());
    for by in [owner(), fabric(), recovery()] {
        assert_eq!(some.open(by, NOW).unwrap().expose(), key.expose());
        if by.public().name() != owner().public().name() {
            assert_refused!(some.allow_offline(by, 1, NOW), NotOwner);
        }
    }
    assert_refused!(none.allow_offline(owner(), MAX_OFFLINE_UNWRAPS + 1, NOW), TooManyOfflineUnwraps);
    // It can be taken back, and stays through everything else that makes protectors.
    assert_eq!(some.allow_offline(owner(), 0, NOW).unwrap().max_offline_unwraps(), 0);
    let other = guardian("other-fabric", Role::Fabric);
    let granted = some.grant(owner(), other.public(), NOW).unwrap();
    let (_, revoked, _) = granted.revoke(owner(), &other.public().signing().fingerprint(), NOW).unwrap();
    let rolled = revoked.roll(fabric(), &[], NOW).unwrap().egress_protector;
    for protector in [granted, revoked, rolled] {
        assert_eq!(protector.max_offline_unwraps(), MAX_OFFLINE_UNWRAPS);
    }
}

#[test]
fn rsa_pss_signatures_are_accepted() {
    // A guardian who signs with RSA, which ours never do: both certificates for one key.
    let key = guardian("rsa-fabric", Role::Fabric);
    let certificate = certificate_for(key, "rsa-fabric", Role::Fabric);
    let pair = RsaKeyPair::from_pkcs8(key.encryption_pkcs8()).unwrap();
    let sign_pss = |message: &[u8]| {
        let mut value = vec![0; pair.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        pair.sign(&RSA_PSS_SHA256, &random, message, &mut value).unwrap();
        Signature { algorithm: SignatureAlgorithm::RsaPss, value }
    };
    let rsa = Recipient {
        signing_signature: sign(owner(), certificate.der()).unwrap(),
        encryption_signature: sign_pss(certificate.der()),
        signing: certificate.clone(),
        encryption: certificate,
        parent: 0,
    };
    let recipients = [child(owner(), owner(), 0), child(fabric(), owner(), 0), rsa];
    let (protector, key) = issue_for(&recipients).unwrap();
    let mut parts = protector.parts;
    parts.signer_id = 3;
    parts.guardian_signature = sign_pss(&parts.signed_bytes().unwrap());
    assert_eq!(open(&parts.to_xml()).unwrap().expose(), key.expose());
    // An algorithm that does not fit the key is no signature.
    parts.guardian_signature.algorithm = SignatureAlgorithm::EcdsaP256;
    assert_refused!(open(&parts.to_xml()), GuardianSignature);
}
