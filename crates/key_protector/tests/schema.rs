//! What the crate writes, judged by another implementation of XML: libxml2's `xmllint`.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use key_protector::{Guardian, GuardianPublic, KeyKind, Protector, Role};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

fn xmllint(arguments: &[&str], xml: &[u8]) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(xml).unwrap();
    let outcome = Command::new("xmllint").arg("--nonet").args(arguments).arg(file.path()).output();
    match outcome {
        Ok(output) => output,
        Err(e) => panic!("xmllint cannot be run ({e}): install Debian's libxml2-utils"),
    }
}

fn valid(schema: &str, xml: &[u8]) -> Result<(), String> {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(schema);
    let output = xmllint(&["--noout", "--schema", schema.to_str().unwrap()], xml);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn guardian(name: &str, role: Role) -> Guardian {
    Guardian::generate(name, role, KeyKind::Rsa2048, NOW, NOW + Duration::DAY).unwrap()
}

fn protector(owner: &Guardian, guardians: &[GuardianPublic]) -> Vec<u8> {
    Protector::new(owner, guardians, NOW).unwrap().0.to_xml()
}

#[test]
fn a_protector_is_valid_and_canonical() {
    let owner = guardian("tenant", Role::Owner);
    let guardians =
        [guardian("fabric", Role::Fabric).public().clone(), guardian("garage", Role::Recovery).public().clone()];
    for guardians in [&guardians[..0], &guardians[..1], &guardians] {
        let xml = protector(&owner, guardians);
        assert_eq!(valid("protector.xsd", &xml), Ok(()));
        // libxml2's exclusive canonical form of what we write is what we write.
        let canonical = xmllint(&["--exc-c14n"], &xml).stdout;
        assert_eq!(canonical, xml);
    }
}

#[test]
fn the_schema_refuses_other_documents() {
    let xml = protector(&guardian("tenant", Role::Owner), &[]);
    let xml = String::from_utf8(xml).unwrap();
    for (old, new) in [
        ("<Id>1</Id>", ""),
        ("<Id>1</Id>", "<Id>one</Id>"),
        (" WrappingId=\"1\"", ""),
        ("<CipherValue>", "<CipherValue><Extra/>"),
        ("<Wrappings>", "<Wrappings><Extra/>"),
    ] {
        assert!(xml.contains(old));
        let edited = xml.replacen(old, new, 1);
        assert!(valid("protector.xsd", edited.as_bytes()).is_err(), "{old} -> {new}");
    }
}

#[test]
fn a_guardians_metadata_is_valid_and_canonical() {
    let xml = guardian("fabric", Role::Fabric).public().to_xml();
    assert_eq!(valid("metadata.xsd", &xml), Ok(()));
    assert_eq!(xmllint(&["--exc-c14n"], &xml).stdout, xml);
}

#[test]
fn requests_and_responses_are_described() {
    let namespace = "http://schemas.microsoft.com/kps/2014/07/service";
    let request = format!(
        "<RollTransportKeyRequest xmlns=\"{namespace}\"><IngressProtector>AA==</IngressProtector>\
         <HealthCertificate>AA==</HealthCertificate>\
         <TransferKeyEncryptionAlgorithm>urn:a</TransferKeyEncryptionAlgorithm>\
         <WrappingKeyEncryptionAlgorithm>urn:b</WrappingKeyEncryptionAlgorithm>\
         <TransportKeysEncryptionAlgorithm>urn:c</TransportKeysEncryptionAlgorithm>\
         </RollTransportKeyRequest>"
    );
    let response = format!(
        "<RollTransportKeyResponse xmlns=\"{namespace}\"><EgressProtector>AA==</EgressProtector>\
         <EncryptedTransferKey>AA==</EncryptedTransferKey>\
         <EncryptedWrappingKey>AA==</EncryptedWrappingKey>\
         <EncryptedTransportKeys>AA==</EncryptedTransportKeys></RollTransportKeyResponse>"
    );
    for (schema, document) in [("rolltransportkey-request.xsd", request), ("rolltransportkey-response.xsd", response)] {
        assert_eq!(valid(schema, document.as_bytes()), Ok(()));
        let empty = document.replacen("AA==", "", 1);
        assert!(valid(schema, empty.as_bytes()).is_err());
    }
}
