//! The papers of a recovery and the stale permit, signed by whoever must sign them, with whatever content.

use hgs::Permit;
use key_protector::signed;
use recovery::documents::{
    self, KnownGarage, Receipt, ReceiptDisk, RecoveryGrant, RecoveryRequest, read_grant, read_receipt, read_request,
    signed_bytes, write_request_file,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::Duration;

use crate::Target;
use crate::world::{NOW, RECOVERY, VM, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "request_file", seeds: request_files, run: request_file },
    Target { name: "request", seeds: requests, run: request },
    Target { name: "grant", seeds: grants, run: grant },
    Target { name: "receipt", seeds: receipts, run: receipt },
    Target { name: "stale_permit", seeds: permits, run: permit },
    Target { name: "protector_change", seeds: changes, run: change },
];

fn garages(world: &World) -> [KnownGarage; 1] {
    [KnownGarage { name: "garage".into(), key: world.garage_public() }]
}

fn asked(world: &World) -> RecoveryRequest {
    RecoveryRequest {
        recovery_id: RECOVERY,
        vm_id: VM,
        vm_name: "dvm".into(),
        garage: "vmre".into(),
        created: NOW.unix_timestamp(),
        protector: String::from_utf8(world.protector.to_xml()).unwrap(),
        guardian: String::from_utf8(world.recovery_public.clone()).unwrap(),
    }
}

/// What a garage writes around a signed request.
fn file_of(world: &World, document: Vec<u8>) -> Vec<u8> {
    let signature = world.garage.sign(&signed_bytes(&document)).unwrap();
    write_request_file(document, &world.garage_public(), &signature).unwrap()
}

fn request_files(world: &World) -> Vec<Vec<u8>> {
    let document = documents::write_request(&asked(world), &world.recovery).unwrap();
    vec![file_of(world, document)]
}

/// Bytes as they come: only what the garage signed is read.
fn request_file(world: &World, bytes: &[u8]) -> bool {
    let Ok(read) = read_request("a file", bytes, &garages(world), NOW) else { return false };
    assert!(json(&read.request) == json(&asked(world)), "a request that no garage signed");
    true
}

fn requests(world: &World) -> Vec<Vec<u8>> {
    vec![json(&asked(world)).into_bytes()]
}

/// A garage of the tenant's gone bad: both signatures are right.
fn request(world: &World, bytes: &[u8]) -> bool {
    let document = signed::sign("drydock/recovery-request", bytes, &world.recovery).unwrap();
    let file = file_of(world, document);
    let Ok(read) = read_request("a file", &file, &garages(world), NOW) else { return false };
    same_again(&read.request);
    outcome::check_name(&read.request.vm_name).unwrap();
    assert!(read.guardian.signing() == world.recovery.public().signing(), "a guardian that did not sign");
    assert!(read.protector.to_xml() == read.request.protector.as_bytes());
    true
}

fn grants(world: &World) -> Vec<Vec<u8>> {
    let grant = RecoveryGrant {
        recovery_id: RECOVERY,
        vm_id: VM,
        vm_name: "dvm".into(),
        garage: "vmre".into(),
        ingress_protector: world.protector.digest(),
        guardian: world.recovery.public().signing().fingerprint(),
        not_after: NOW.unix_timestamp(),
        protector: String::from_utf8(world.granted.to_xml()).unwrap(),
    };
    vec![json(&grant).into_bytes()]
}

fn grant(world: &World, bytes: &[u8]) -> bool {
    let document = signed::sign("drydock/recovery-grant", bytes, &world.owner).unwrap();
    // A grant is no receipt, whoever signed it.
    assert!(read_receipt("a file", &document).is_err());
    let Ok((grant, signed)) = read_grant("a file", &document) else { return false };
    assert!(&signed.signer == world.owner.public().signing());
    same_again(&grant);
    true
}

fn receipts(world: &World) -> Vec<Vec<u8>> {
    let disk = |serial: &str, sha256| ReceiptDisk { serial: serial.into(), size: 1 << 30, sha256 };
    let receipt = Receipt {
        recovery_id: RECOVERY,
        vm_id: VM,
        ingress_protector: world.protector.digest(),
        egress_protector: world.granted.digest(),
        state: "ab".repeat(32),
        disks: vec![disk("dvm-0", Some("cd".repeat(32))), disk("dvm-1", None)],
        finished: NOW.unix_timestamp(),
    };
    vec![json(&receipt).into_bytes()]
}

fn receipt(world: &World, bytes: &[u8]) -> bool {
    let document = signed::sign("drydock/hand-back-receipt", bytes, &world.recovery).unwrap();
    let Ok((receipt, signed)) = read_receipt("a file", &document) else { return false };
    assert!(&signed.signer == world.recovery.public().signing());
    same_again(&receipt);
    true
}

fn changes(world: &World) -> Vec<Vec<u8>> {
    let change = host::protector_update::sign(&world.owner, &world.protector, &world.protector).unwrap();
    vec![signed::verify("drydock/protector-change", &change).unwrap().payload]
}

fn change(world: &World, bytes: &[u8]) -> bool {
    // Only the owner changes a protector.
    let document = signed::sign("drydock/protector-change", bytes, &world.recovery).unwrap();
    assert!(host::protector_update::verify(&document, &world.protector, NOW).is_err());
    let document = signed::sign("drydock/protector-change", bytes, &world.owner).unwrap();
    let Ok(to) = host::protector_update::verify(&document, &world.protector, NOW) else { return false };
    assert!(to.owner().signing_certificate() == world.protector.owner().signing_certificate(), "another owner");
    assert!(to.verify(NOW).is_ok());
    true
}

fn permits(world: &World) -> Vec<Vec<u8>> {
    let permit = Permit::sign(&world.owner, &world.protector, NOW + Duration::days(1)).unwrap();
    vec![signed::verify("drydock/stale-permit", &permit).unwrap().payload]
}

fn permit(world: &World, bytes: &[u8]) -> bool {
    // Only an owner permits.
    let document = signed::sign("drydock/stale-permit", bytes, &world.recovery).unwrap();
    assert!(Permit::verify(&document, NOW).is_err());
    let document = signed::sign("drydock/stale-permit", bytes, &world.owner).unwrap();
    let Ok(permit) = Permit::verify(&document, NOW) else { return false };
    assert!(NOW <= permit.not_after, "a permit that has ended");
    assert_eq!(permit.owner, world.owner.public().signing().fingerprint());
    assert_eq!(permit.protector.len(), 64);
    if let Some(after) = permit.not_after.checked_add(Duration::seconds(1)) {
        assert!(Permit::verify(&document, after).is_err());
    }
    true
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap()
}

/// What was read is what is read again.
pub(crate) fn same_again<T: Serialize + DeserializeOwned>(value: &T) {
    let text = json(value);
    assert!(json(&serde_json::from_str::<T>(&text).unwrap()) == text, "it was written and reads as something else");
}
