#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::memory::Memory;

fn written(sizes: &[u64]) -> (Layout, Memory) {
    let layout = Layout::plan(sizes).unwrap();
    let mut disk = Memory::new(layout.total());
    layout.write(&mut disk).unwrap();
    (layout, disk)
}

/// Writes a GPT with whatever entries `change` makes of the right ones, checksums and all.
fn forged(sizes: &[u64], change: impl FnOnce(&mut Vec<GptEntry>)) -> Memory {
    let (layout, mut disk) = written(sizes);
    let mut ends = Ends::new(layout.total());
    disk.read_at(0, &mut ends.head).unwrap();
    let tail_offset = ends.tail_offset();
    disk.read_at(tail_offset, &mut ends.tail).unwrap();
    let mut gpt = GptConfig::new()
        .logical_block_size(LogicalBlockSize::Lb512)
        .writable(true)
        .open_from_device(&mut ends)
        .unwrap();
    let mut entries: Vec<GptEntry> = gpt.partitions().values().cloned().collect();
    change(&mut entries);
    gpt.update_partitions((1u32..).zip(entries).collect()).unwrap();
    gpt.write().unwrap();
    disk.write_at(0, &ends.head).unwrap();
    disk.write_at(ends.tail_offset(), &ends.tail).unwrap();
    disk
}

fn fault(mut disk: Memory) -> (usize, PartitionFault) {
    match Layout::read(&mut disk).unwrap_err() {
        LayoutError::Partition { number, fault } => (number, fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn plan_places_everything() {
    let layout = Layout::plan(&[512, 3 * MIB, MIB + 512]).unwrap();
    let disks: Vec<_> = layout.disks().iter().map(|disk| (disk.offset / MIB, disk.size)).collect();
    assert_eq!(disks, [(37, 512), (38, 3 * MIB), (41, MIB + 512)]);
    assert_eq!(layout.total(), 44 * MIB);
    assert_eq!(layout.disks()[2].name, "dd-disk-2");
}

#[test]
fn serial_numbers_of_overlays_fit() {
    assert!(overlay_serial(Uuid::new_v4(), MAX_DISKS - 1).len() <= 20);
}

#[test]
fn plan_refuses_impossible_disks() {
    let plan = |sizes: &[u64]| Layout::plan(sizes).unwrap_err();
    assert!(matches!(plan(&[512; 65]), LayoutError::DiskCount { count: 65 }));
    for size in [0, 511, 513, MAX_SIZE + 512, u64::MAX] {
        assert!(matches!(plan(&[512, size]), LayoutError::DiskSize { index: 1, .. }));
    }
    assert!(matches!(plan(&[MAX_SIZE]), LayoutError::TooLarge));
    assert!(matches!(plan(&[MAX_SIZE; 64]), LayoutError::TooLarge));
    assert!(Layout::plan(&[MAX_SIZE - 38 * MIB]).is_ok());
}

#[test]
fn what_is_written_is_read() {
    for sizes in [vec![], vec![512], vec![20 * MIB, 1536], vec![MIB; 64], vec![MAX_SIZE - 38 * MIB]] {
        let (layout, mut disk) = written(&sizes);
        assert_eq!(Layout::read(&mut disk).unwrap(), layout);
    }
}

#[test]
fn a_forger_with_good_checksums_is_refused() {
    let sizes = [2 * MIB, MIB];
    let f = |change: fn(&mut Vec<GptEntry>)| fault(forged(&sizes, change));
    assert_eq!(f(|e| e[3].first_lba -= 2048), (4, PartitionFault::Overlap));
    assert_eq!(f(|e| e[2].last_lba += 2048), (4, PartitionFault::Overlap));
    assert_eq!(f(|e| e[3].last_lba += 1 << 20), (4, PartitionFault::Size));
    assert_eq!(f(|e| e[3].last_lba = u64::MAX), (4, PartitionFault::Size));
    assert_eq!(f(|e| e[1].last_lba -= 1), (2, PartitionFault::Size));
    assert_eq!(f(|e| e[0].first_lba += 1), (1, PartitionFault::Place));
    assert_eq!(f(|e| e[3].last_lba = 0), (4, PartitionFault::Place));
    assert_eq!(f(|e| e.swap(2, 3)), (3, PartitionFault::Name));
    assert_eq!(f(|e| e[2].name = "dd-disk-00".into()), (3, PartitionFault::Name));
    assert_eq!(f(|e| e[2].flags = 4), (3, PartitionFault::Flags));
    assert_eq!(f(|e| e[0].part_type_guid = gpt::partition_types::LINUX_FS), (1, PartitionFault::Type));
    let mut disk = forged(&sizes, |e| e.truncate(1));
    assert!(matches!(Layout::read(&mut disk).unwrap_err(), LayoutError::PartitionCount { count: 1 }));
    let mut disk = forged(&sizes, |e| e.truncate(2));
    assert!(matches!(Layout::read(&mut disk).unwrap_err(), LayoutError::TotalSize { .. }));
    let mut disk = forged(&sizes, |e| e.resize(67, e[2].clone()));
    assert!(matches!(Layout::read(&mut disk).unwrap_err(), LayoutError::PartitionCount { count: 67 }));
}

#[test]
fn a_smaller_or_larger_disk_is_refused() {
    let (layout, mut disk) = written(&[2 * MIB]);
    for total in [layout.total() - MIB, layout.total() + MIB] {
        let mut other = Memory::new(total);
        other.write_at(0, &disk.get(0, HEAD)).unwrap();
        let tail = disk.get(layout.total() - TAIL as u64, TAIL);
        other.write_at(total - TAIL as u64, &tail).unwrap();
        assert!(matches!(Layout::read(&mut other).unwrap_err(), LayoutError::Header { .. }));
    }
    for size in [0, 1, MIB, 40 * MIB + 1, MAX_SIZE + MIB, u64::MAX] {
        assert!(matches!(Layout::read(&mut Memory::new(size)).unwrap_err(), LayoutError::TotalSize { .. }));
    }
}

#[test]
fn every_single_bit_counts() {
    let (layout, disk) = written(&[MIB, 512]);
    let offsets = (0..HEAD as u64).chain(layout.total() - TAIL as u64..layout.total());
    // Every byte of what is used, every 61st of the empty entries.
    for offset in offsets.filter(|at| *at < 2048 || at % 61 == 0 || *at >= layout.total() - 512) {
        let mut disk = disk.clone();
        disk.flip(offset, 1 << (offset % 8));
        assert!(Layout::read(&mut disk).is_err(), "byte {offset}");
    }
}

proptest! {
    #[test]
    fn any_disks_round_trip(sectors in prop::collection::vec(1u64..1 << 30, 1..=64)) {
        let sizes: Vec<u64> = sectors.iter().map(|count| count * 512).collect();
        let (layout, mut disk) = written(&sizes);
        prop_assert_eq!(&Layout::read(&mut disk).unwrap(), &layout);
        let mut free_from = MIB;
        for part in layout.partitions() {
            prop_assert!(part.offset >= free_from && part.offset % MIB == 0);
            free_from = part.offset + part.size;
        }
        prop_assert!(free_from + MIB <= layout.total());
    }

    #[test]
    fn random_bytes_never_panic(
        head in prop::collection::vec(any::<u8>(), HEAD),
        tail in prop::collection::vec(any::<u8>(), TAIL),
    ) {
        let mut disk = Memory::new(40 * MIB);
        disk.write_at(0, &head).unwrap();
        disk.write_at(40 * MIB - TAIL as u64, &tail).unwrap();
        prop_assert!(Layout::read(&mut disk).is_err());
    }

    /// Past the checksums: arbitrary entries and arbitrary header fields, sealed correctly.
    #[test]
    fn arbitrary_entries_never_panic(
        entries in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), ".{0,40}"), 3..128),
        own_type in any::<bool>(),
    ) {
        let mut disk = forged(&[MIB], |to| {
            let like = to[0].clone();
            *to = entries.into_iter().map(|(first_lba, last_lba, flags, name)| {
                let mut entry = GptEntry { first_lba, last_lba, flags, name, ..like.clone() };
                if !own_type { entry.part_type_guid = gpt::partition_types::BASIC; }
                entry
            }).collect();
        });
        prop_assert!(Layout::read(&mut disk).is_err());
    }

    /// Header fields changed, header checksum made right again: the gpt crate alone would panic on some.
    #[test]
    fn forged_headers_never_panic(at in 8usize..92, byte in any::<u8>(), backup in any::<bool>()) {
        let (layout, mut disk) = written(&[MIB]);
        let start = if backup { layout.total() - 512 } else { 512 };
        let mut header = disk.get(start, 92);
        prop_assume!(!(16..20).contains(&at) && header[at] != byte);
        header[at] = byte;
        header[16..20].fill(0);
        let checksum = crc32(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        disk.write_at(start, &header).unwrap();
        prop_assert!(Layout::read(&mut disk).is_err());
    }
}

/// CRC-32 as the UEFI specification has it (ISO HDLC), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
