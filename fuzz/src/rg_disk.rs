//! The RG disk: partition table, manifest, sealed state.

use std::path::Path;

use garage::layout::{MANIFEST_SIZE, MIB, STATE_SIZE, disk_name, overlay_serial};
use garage::{Bundle, Direction, Disk, Layout, Manifest, Mode, manifest, state};
use image::blocks::Blocks;
use image::extents::read_map;
use image::{Cancel, Digest};

use crate::Target;
use crate::blocks::Sparse;
use crate::papers::json;
use crate::vm::spec;
use crate::world::{RECOVERY, VM, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "rg_layout", seeds: layouts, run: layout },
    Target { name: "rg_manifest", seeds: manifests, run: manifest },
    Target { name: "rg_state", seeds: states, run: state },
    Target { name: "image_map", seeds: maps, run: map },
];

const SECTOR: usize = 512;
const GPT_HEADER: usize = 92;
const ENTRIES: usize = 128 * 128;

/// An input is: size of the disk in MiB (4 bytes), protective MBR, GPT header without its padding, entries up to the
/// last that is used. The rest follows from that, the two checksums included.
fn disk(bytes: &[u8]) -> Option<Sparse> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (mbr, rest) = rest.split_at_checked(SECTOR)?;
    let (header, used) = rest.split_first_chunk::<GPT_HEADER>()?;
    let size = u64::from(u32::from_le_bytes(*size)) * MIB;
    let mut entries = vec![0; ENTRIES];
    entries.get_mut(..used.len())?.copy_from_slice(used);
    let last = (size / SECTOR as u64).checked_sub(1)?;
    let backup_entries = last.checked_sub(32)?;
    let sum = |bytes: &[u8]| crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes).to_le_bytes();
    let whole = |mut header: [u8; GPT_HEADER]| {
        header[88..92].copy_from_slice(&sum(&entries));
        header[16..20].fill(0);
        let sum = sum(&header);
        header[16..20].copy_from_slice(&sum);
        header
    };
    let mut backup = *header;
    backup[24..32].copy_from_slice(&header[32..40]);
    backup[32..40].copy_from_slice(&header[24..32]);
    backup[72..80].copy_from_slice(&backup_entries.to_le_bytes());
    Some(
        Sparse::new(size)
            .with(0, mbr)
            .with(SECTOR as u64, &whole(*header))
            .with(2 * SECTOR as u64, &entries)
            .with(backup_entries * SECTOR as u64, &entries)
            .with(last * SECTOR as u64, &whole(backup)),
    )
}

fn layouts(_: &World) -> Vec<Vec<u8>> {
    [[].as_slice(), &[1 << 30], &[512, 3 << 20]]
        .map(|sizes| {
            let layout = Layout::plan(sizes).unwrap();
            let mut disk = Sparse::new(layout.total());
            layout.write(&mut disk).unwrap();
            let mut input = ((layout.total() / MIB) as u32).to_le_bytes().to_vec();
            let used = (2 + sizes.len()) * 128;
            for (offset, length) in [(0, SECTOR), (SECTOR, GPT_HEADER), (2 * SECTOR, used)] {
                let mut part = vec![0; length];
                disk.read_at(offset as u64, &mut part).unwrap();
                input.extend_from_slice(&part);
            }
            input
        })
        .to_vec()
}

fn layout(_: &World, bytes: &[u8]) -> bool {
    let Some(mut disk) = disk(bytes) else { return false };
    let Ok(layout) = Layout::read(&mut disk) else { return false };
    assert_eq!(layout.total(), disk.size());
    let mut free_from = MIB;
    for (number, partition) in layout.partitions().enumerate() {
        assert!(partition.offset >= free_from && partition.offset.is_multiple_of(MIB), "partition {number}");
        free_from = partition.offset.checked_add(partition.size).unwrap();
    }
    assert!(free_from <= layout.total() - MIB, "partitions past the end");
    let sizes: Vec<u64> = layout.disks().iter().map(|partition| partition.size).collect();
    assert_eq!(Layout::plan(&sizes).unwrap(), layout);
    let mut again = Sparse::new(layout.total());
    layout.write(&mut again).unwrap();
    assert_eq!(Layout::read(&mut again).unwrap(), layout);
    true
}

/// What travels: a VM with one disk.
fn outbound(world: &World, mode: Mode) -> Manifest {
    let spec = spec();
    let name = match mode {
        Mode::Copy => disk_name(0),
        Mode::Overlay => overlay_serial(RECOVERY, 0),
    };
    Manifest {
        version: manifest::VERSION,
        sequence: 1,
        recovery_id: RECOVERY,
        vm_id: VM,
        vm_name: spec.name.clone(),
        direction: Direction::Outbound,
        mode,
        created: 1,
        disks: vec![Disk {
            index: 0,
            name,
            size: spec.disks[0].size,
            serial: spec.disks[0].serial.clone(),
            sha256: None,
        }],
        spec: json(&spec),
        protector: world.owner.public().name().as_bytes().to_vec(),
        state_sha256: Digest::of(b"state"),
        receipt: None,
    }
}

fn manifests(world: &World) -> Vec<Vec<u8>> {
    let handback = Manifest {
        sequence: 2,
        direction: Direction::Handback,
        receipt: Some(b"receipt".to_vec()),
        ..outbound(world, Mode::Overlay)
    };
    [outbound(world, Mode::Copy), outbound(world, Mode::Overlay), handback]
        .map(|manifest| [&manifest.sequence.to_le_bytes(), json(&manifest).as_bytes()].concat())
        .to_vec()
}

/// A slot as `manifest` has it, with the right digest: sequence (8 bytes) and body are the input's.
fn slot(bytes: &[u8]) -> Option<Vec<u8>> {
    let (sequence, body) = bytes.split_first_chunk::<8>()?;
    let length = u32::try_from(body.len()).ok()?.to_le_bytes();
    let header = [b"DDRGMAN1".as_slice(), &length, &[0; 4], sequence].concat();
    let digest = Digest::of_parts(&[&header, body]);
    Some([&header, digest.as_bytes().as_slice(), body].concat())
}

fn manifest(world: &World, bytes: &[u8]) -> bool {
    let Some(slot) = slot(bytes) else { return false };
    // As a first manifest, and beside one that is in force.
    let first = Sparse::new(MANIFEST_SIZE).with(0, &slot);
    let mut second = Sparse::new(MANIFEST_SIZE);
    let known = outbound(world, Mode::Copy);
    manifest::write_first(&mut second, &known).unwrap();
    let second = second.with(2 << 20, &slot);
    let mut accepted = false;
    for (mut partition, beside) in [(first, false), (second, true)] {
        let Ok(read) = manifest::read(&mut partition) else {
            assert!(!beside || bytes[..8] == known.sequence.to_le_bytes(), "a bad manifest hid a good one");
            continue;
        };
        accepted |= !beside;
        read.validate().unwrap();
        assert!(!beside || read == known || read.sequence > known.sequence, "an older manifest is in force");
        let mut again = Sparse::new(MANIFEST_SIZE);
        manifest::write_first(&mut again, &read).unwrap();
        assert!(manifest::read(&mut again).unwrap() == read);
        if let Some(sequence) = read.sequence.checked_add(1) {
            let next = Manifest { sequence, ..read };
            manifest::write_next(&mut partition, &next).unwrap();
            assert!(manifest::read(&mut partition).unwrap() == next);
        }
    }
    // The same bytes as a slot of their own making.
    let mut raw = Sparse::new(MANIFEST_SIZE).with(0, &bytes[..bytes.len().min(2 << 20)]);
    if let Ok(read) = manifest::read(&mut raw) {
        read.validate().unwrap();
    }
    accepted
}

fn states(_: &World) -> Vec<Vec<u8>> {
    // Small ones are changed into names that lead elsewhere sooner.
    [vec!["a"], vec!["a/b"], vec!["record.sealed", "vars.luks", "vtpm/tpm2-00.permall"]]
        .map(|names| {
            let files = names.into_iter().map(|name| (name.to_owned(), vec![7; name.len() - 1]));
            Bundle::from_files(files).unwrap().to_bytes()
        })
        .to_vec()
}

fn state(_: &World, bytes: &[u8]) -> bool {
    let expected = Digest::of(bytes);
    let header = [b"DDRGSTA1".as_slice(), &(bytes.len() as u32).to_le_bytes(), &[0; 4]].concat();
    let mut partition = Sparse::new(STATE_SIZE).with(0, &[&header, bytes].concat());
    let read = state::read(&mut partition, expected);
    let Ok(bundle) = Bundle::parse(bytes) else {
        assert!(read.is_err());
        return false;
    };
    assert!(read.unwrap() == bundle);
    assert!(bundle.to_bytes() == bytes, "a second spelling was accepted");
    for (name, _) in bundle.files() {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
        assert!(name.split('/').count() <= 2 && name.split('/').all(plain), "a name that leads elsewhere: {name:?}");
    }
    // Beside it there is room for the next, and both can be had.
    let next = Bundle::from_files([("a".to_owned(), Vec::new())]).unwrap();
    let digest = state::write(&mut partition, &next, Some(expected)).unwrap();
    assert!(state::read(&mut partition, digest).unwrap() == next);
    assert!(state::read(&mut partition, expected).unwrap() == bundle);
    true
}

/// Size of the disk whose map is read.
const DISK: u64 = 1 << 30;

fn maps(_: &World) -> Vec<Vec<u8>> {
    let map = "[{\"start\":0,\"length\":65536,\"depth\":0,\"present\":true,\"zero\":false,\"data\":true,\
               \"compressed\":false,\"offset\":327680},{\"start\":65536,\"length\":1073676288,\"depth\":0,\
               \"present\":false,\"zero\":true,\"data\":false,\"compressed\":false}]";
    ["[]", map].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// What `qemu-img map` says of an image of a tenant's.
fn map(_: &World, bytes: &[u8]) -> bool {
    let mut free_from = 0;
    let read = read_map(bytes, Path::new("/image"), DISK, &Cancel::new(), &mut |extent| {
        let end = extent.start.checked_add(extent.length).unwrap();
        assert!(extent.start >= free_from && end <= DISK && extent.length > 0, "data that lies outside the disk");
        free_from = end;
        Ok(())
    });
    matches!(read, Ok(Ok(())))
}
