//! The sealed record opens with its own key, VM and key protector, and with nothing else.
#![allow(clippy::unwrap_used)]

use key_protector::TransportKey;
use machine::record::{DiskIdentity, SealedRecord, VERSION};
use machine::{ConsoleProfile, Error, Policy};
use proptest::prelude::*;
use uuid::Uuid;

const VM: Uuid = Uuid::from_u128(0x1234);

fn record() -> SealedRecord {
    SealedRecord {
        version: VERSION,
        vm_id: VM,
        policy: Policy::Shielded,
        console_profile: ConsoleProfile::Server2016,
        generation: 4,
        disks: vec![DiskIdentity { serial: "root".into(), size: 1 << 30 }],
        nics: vec!["52:54:00:00:00:01".into()],
    }
}

fn key() -> TransportKey {
    TransportKey::from_bytes([7; 32])
}

fn digest() -> String {
    "ab".repeat(32)
}

#[test]
fn it_opens_with_what_it_was_sealed_with() {
    let sealed = record().seal(&key(), &digest()).unwrap();
    let opened = SealedRecord::open(&sealed, &key(), VM, &digest()).unwrap();
    assert_eq!(opened, record());
    let text = String::from_utf8_lossy(&sealed).into_owned();
    assert!(!text.contains("shielded") && !text.contains("root"));
}

#[test]
fn a_record_without_a_console_profile_is_of_2016_and_stays_so() {
    let text = serde_json::to_string(&record()).unwrap();
    assert!(!text.contains("console_profile"), "{text}");
    assert_eq!(serde_json::from_str::<SealedRecord>(&text).unwrap(), record());
    let with_sessions = SealedRecord { console_profile: ConsoleProfile::Server2019, ..record() };
    let sealed = with_sessions.seal(&key(), &digest()).unwrap();
    assert_eq!(SealedRecord::open(&sealed, &key(), VM, &digest()).unwrap(), with_sessions);
}

#[test]
fn it_never_comes_out_the_same_twice() {
    let seal = || record().seal(&key(), &digest()).unwrap();
    assert_ne!(seal(), seal());
}

#[test]
fn another_key_vm_or_key_protector_does_not_open_it() {
    let sealed = record().seal(&key(), &digest()).unwrap();
    let other_key = TransportKey::from_bytes([8; 32]);
    let other_vm = Uuid::from_u128(0x1235);
    for result in [
        SealedRecord::open(&sealed, &other_key, VM, &digest()),
        SealedRecord::open(&sealed, &key(), other_vm, &digest()),
        SealedRecord::open(&sealed, &key(), VM, &"ac".repeat(32)),
    ] {
        assert!(matches!(result, Err(Error::RecordSealed)));
    }
    // The id in the header is changed along with the requested one.
    let mut renamed = sealed;
    renamed[8..24].copy_from_slice(other_vm.as_bytes());
    assert!(matches!(SealedRecord::open(&renamed, &key(), other_vm, &digest()), Err(Error::RecordSealed)));
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused() {
    let sealed = record().seal(&key(), &digest()).unwrap();
    for at in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        SealedRecord::open(&bad, &key(), VM, &digest()).unwrap_err();
        SealedRecord::open(&sealed[..at], &key(), VM, &digest()).unwrap_err();
    }
}

#[test]
fn a_digest_that_is_none_is_refused() {
    for digest in ["", "ab", &"AB".repeat(32), &"zz".repeat(32)] {
        assert!(record().seal(&key(), digest).is_err());
    }
}

#[test]
fn too_much_is_refused() {
    let mut record = record();
    record.nics = vec!["52:54:00:00:00:01".into(); 5000];
    assert!(matches!(record.seal(&key(), &digest()), Err(Error::RecordFormat { .. })));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(SealedRecord::open(&bytes, &key(), VM, &digest()).is_err());
    }
}
