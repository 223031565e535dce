#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::layout::{MANIFEST_SIZE, MIB};
use crate::memory::Memory;

fn manifest(sequence: u64) -> Manifest {
    Manifest {
        version: VERSION,
        sequence,
        recovery_id: Uuid::from_u128(1),
        vm_id: Uuid::from_u128(2),
        vm_name: "web-1".into(),
        direction: Direction::Outbound,
        mode: Mode::Copy,
        created: 1_700_000_000,
        disks: vec![Disk {
            index: 0,
            name: "dd-disk-0".into(),
            size: MIB,
            serial: "root".into(),
            sha256: Some(Digest::of(b"disk")),
        }],
        spec: r#"{"memory_mib": 512}"#.into(),
        protector: b"<Protector/>".to_vec(),
        state_sha256: Digest::of(b"state"),
        receipt: None,
    }
}

fn partition() -> Memory {
    Memory::new(MANIFEST_SIZE)
}

/// A slot with a right header around any body.
fn slot(sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut slot = MAGIC.to_vec();
    slot.extend_from_slice(&(body.len() as u32).to_le_bytes());
    slot.extend_from_slice(&[0; 4]);
    slot.extend_from_slice(&sequence.to_le_bytes());
    let digest = Digest::of_parts(&[&slot, body]);
    slot.extend_from_slice(digest.as_bytes());
    slot.extend_from_slice(body);
    slot
}

/// What the reader says of slot A alone.
fn verdict(slot: &[u8]) -> SlotFault {
    let mut part = partition();
    part.write_at(0, slot).unwrap();
    match read(&mut part).unwrap_err() {
        ManifestError::NoneValid { a, b } => {
            assert_eq!(b, SlotFault::Empty);
            a
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn slots_alternate_and_the_newest_counts() {
    let mut part = partition();
    write_first(&mut part, &manifest(1)).unwrap();
    for sequence in 2..6 {
        let mut next = manifest(sequence);
        next.receipt = Some(vec![7; sequence as usize]);
        next.direction = Direction::Handback;
        write_next(&mut part, &next).unwrap();
        assert_eq!(read(&mut part).unwrap(), next);
        assert!(read_slot(&mut part, SLOTS[0]).unwrap().is_ok());
    }
    for stale in [0, 4, 5] {
        assert!(matches!(
            write_next(&mut part, &manifest(stale)).unwrap_err(),
            ManifestError::Sequence { newest: 5, .. }
        ));
    }
}

#[test]
fn a_torn_write_leaves_a_manifest() {
    let mut part = partition();
    write_first(&mut part, &manifest(1)).unwrap();
    let mut second = manifest(2);
    second.vm_name = "a longer name than the one that will overwrite it".into();
    write_next(&mut part, &second).unwrap();
    let third = manifest(3);
    let full = third.to_slot().unwrap().len();
    for cut in 0..=full {
        let mut torn = part.clone();
        torn.cut_after(cut);
        assert!(write_next(&mut torn, &third).is_err(), "cut at {cut}");
        let mut lost = torn.clone();
        lost.restore_durable();
        assert_eq!(read(&mut lost).unwrap(), second);
        torn.restore();
        let found = read(&mut torn).unwrap();
        // The slot may end in the same bytes as what was there before: then a part of the write is the whole.
        let whole = torn.get(0, full) == third.to_slot().unwrap();
        assert!(whole || cut < full);
        assert_eq!(found, if whole { third.clone() } else { second.clone() });
        // And the next attempt succeeds.
        write_next(&mut torn, &manifest(4)).unwrap();
        assert_eq!(read(&mut torn).unwrap().sequence, 4);
    }
}

#[test]
fn faults_have_names() {
    let good = manifest(9);
    let slot_of = |change: fn(&mut Manifest)| {
        let mut bad = manifest(9);
        change(&mut bad);
        slot(9, &serde_json::to_vec(&bad).unwrap())
    };
    assert!(matches!(
        read(&mut partition()).unwrap_err(),
        ManifestError::NoneValid { a: SlotFault::Empty, b: SlotFault::Empty }
    ));
    assert_eq!(verdict(b"garbage"), SlotFault::Magic);
    assert_eq!(verdict(&slot(1, b"")), SlotFault::Length);
    assert_eq!(verdict(&slot(1, &vec![b' '; MAX_BODY + 1])), SlotFault::Length);
    assert_eq!(verdict(&slot(1, b"{}")), SlotFault::Body);
    let body = serde_json::to_string(&good).unwrap();
    assert_eq!(verdict(&slot(8, body.as_bytes())), SlotFault::Sequence);
    assert_eq!(verdict(&slot(9, body.replacen('{', "{\"more\":1,", 1).as_bytes())), SlotFault::Body);
    assert_eq!(verdict(&slot(9, body.replacen('{', "{\"version\":1,", 1).as_bytes())), SlotFault::Body);
    assert_eq!(verdict(&slot(9, format!("{body} 1").as_bytes())), SlotFault::Body);
    let fields: [fn(&mut Manifest); 14] = [
        |m| m.version = 2,
        |m| m.vm_name.clear(),
        |m| m.vm_name = "a\nb".into(),
        |m| m.vm_name = "x".repeat(MAX_NAME + 1),
        |m| m.spec = "{".into(),
        |m| m.spec = format!("\"{}\"", "x".repeat(MAX_SPEC)),
        |m| m.protector.clear(),
        |m| m.protector = vec![0; MAX_PROTECTOR + 1],
        |m| m.receipt = Some(vec![0; MAX_RECEIPT + 1]),
        |m| m.disks.clear(),
        |m| m.disks[0].index = 1,
        |m| m.disks[0].name = "dd-disk-1".into(),
        |m| m.disks[0].size = 513,
        |m| m.disks[0].serial.clear(),
    ];
    for change in fields {
        assert_eq!(verdict(&slot_of(change)), SlotFault::Field);
        let mut bad = manifest(9);
        change(&mut bad);
        assert!(write_first(&mut partition(), &bad).is_err());
    }
}

#[test]
fn equal_sequences_are_not_chosen_between() {
    let mut part = partition();
    write_first(&mut part, &manifest(3)).unwrap();
    write_slot(&mut part, SLOTS[1], &manifest(3)).unwrap();
    assert_eq!(read(&mut part).unwrap(), manifest(3));
    let mut other = manifest(3);
    other.vm_name = "other".into();
    write_slot(&mut part, SLOTS[1], &other).unwrap();
    assert!(matches!(read(&mut part).unwrap_err(), ManifestError::Ambiguous { sequence: 3 }));
}

#[test]
fn layout_must_agree() {
    let one = manifest(1);
    assert!(one.check_layout(&Layout::plan(&[MIB]).unwrap()).is_ok());
    assert!(matches!(
        one.check_layout(&Layout::plan(&[MIB + 512]).unwrap()).unwrap_err(),
        ManifestError::Disk { index: 0, field: "size" }
    ));
    assert!(matches!(
        one.check_layout(&Layout::plan(&[MIB, MIB]).unwrap()).unwrap_err(),
        ManifestError::DiskCount { manifest: 1, partitions: 2 }
    ));
}

#[test]
fn an_overlay_has_no_partition_and_one_name() {
    let overlay = || Manifest {
        mode: Mode::Overlay,
        disks: vec![Disk { name: overlay_serial(Uuid::from_u128(1), 0), ..manifest(1).disks[0].clone() }],
        ..manifest(1)
    };
    let mut part = partition();
    write_first(&mut part, &overlay()).unwrap();
    assert_eq!(read(&mut part).unwrap(), overlay());
    assert!(overlay().check_layout(&Layout::plan(&[]).unwrap()).is_ok());
    // A disk of the same size on the RG disk is not the overlay.
    assert!(overlay().check_layout(&Layout::plan(&[MIB]).unwrap()).is_err());
    assert!(manifest(1).check_layout(&Layout::plan(&[]).unwrap()).is_err());
    let wrong: [fn(&mut Manifest); 7] = [
        |m| m.disks.clear(),
        |m| m.disks[0].name = "dd-disk-0".into(),
        |m| m.disks[0].name = "../../sda".into(),
        |m| m.disks[0].name = overlay_serial(Uuid::max(), 0),
        |m| m.disks[0].index = 1,
        |m| m.disks[0].size = 513,
        |m| m.disks = vec![m.disks[0].clone(); 65],
    ];
    for change in wrong {
        let mut bad = overlay();
        change(&mut bad);
        assert!(write_first(&mut partition(), &bad).is_err(), "{:?}", bad.disks);
    }
}

proptest! {
    #[test]
    fn a_flip_is_refused_or_the_old_slot_counts(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut part = partition();
        write_first(&mut part, &manifest(1)).unwrap();
        write_next(&mut part, &manifest(2)).unwrap();
        let len = manifest(2).to_slot().unwrap().len();
        part.flip(SLOTS[1] + at.index(len) as u64, 1 << bit);
        prop_assert_eq!(read(&mut part).unwrap(), manifest(1));
        part.flip(at.index(manifest(1).to_slot().unwrap().len()) as u64, 1 << bit);
        let refused = matches!(read(&mut part), Err(ManifestError::NoneValid { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn random_slots_never_panic(
        a in prop::collection::vec(any::<u8>(), 0..512),
        body in prop::collection::vec(any::<u8>(), 1..512),
        text in "[\\[{}\\]\":,a-z0-9 ]{1,200}",
        sequence in any::<u64>(),
    ) {
        for slot in [a, slot(sequence, &body), slot(sequence, text.as_bytes())] {
            let mut part = partition();
            part.write_at(0, &slot).unwrap();
            part.write_at(SLOTS[1], &slot).unwrap();
            prop_assert!(read(&mut part).is_err());
        }
    }
}
