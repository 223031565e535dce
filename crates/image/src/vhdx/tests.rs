#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

fn qemu(program: &str, args: &[&str], image: &Path) -> String {
    let output = Command::new(program).args(args).arg(image).output().expect("the Debian package qemu-utils");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("failed"), "{program} {args:?}: {said}");
    said
}

/// What QEMU reads of the disk from `offset`.
fn read_by_qemu(image: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut disk = crate::ServedImage::open(&crate::Source::new(image, crate::Format::Vhdx), None).unwrap();
    let mut bytes = vec![0; length];
    disk.read_at(offset, &mut bytes).unwrap();
    disk.close().unwrap();
    bytes
}

#[test]
fn qemu_reads_checks_and_writes_what_was_laid_out() {
    for (size, block_size) in
        [(MIB, MIB), (44 * MIB, MIB), (44 * MIB + 512, MIB), (5 << 30, MIB), (3 << 40, 32 * MIB), (64 << 40, 32 * MIB)]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut vhdx = Writer::new(&file, size, block_size).unwrap();
        // The first and the last sector, and one behind the first chunk's bitmap entry where there is one.
        let chunk = vhdx.chunk_ratio() * block_size;
        let places: Vec<u64> = [0, chunk + block_size, size - 512].into_iter().filter(|at| at + 512 <= size).collect();
        for (n, at) in (1u8..).zip(&places) {
            vhdx.write_at(*at, &[n; 512]).unwrap();
        }
        let mut back = [9; 1024];
        vhdx.read_at(0, &mut back[..512]).unwrap();
        assert_eq!(back[0], 1);
        assert!(vhdx.write_at(size - 511, &[0; 512]).is_err());
        vhdx.finish().unwrap();
        file.sync_all().unwrap();
        drop(file);

        qemu("qemu-img", &["check", "-q", "-f", "vhdx"], &path);
        let info = qemu("qemu-img", &["info", "-f", "vhdx", "--output=json"], &path);
        assert!(info.contains(&format!("\"virtual-size\": {size}")), "{info}");
        for (n, at) in (1u8..).zip(&places) {
            assert_eq!(read_by_qemu(&path, *at, 512), [n; 512], "{size} at {at}");
        }
        let written = size / 2 / 512 * 512;
        qemu("qemu-io", &["-f", "vhdx", "-c", &format!("write -P 77 {written} 512")], &path);
        qemu("qemu-img", &["check", "-q", "-f", "vhdx"], &path);
        assert_eq!(read_by_qemu(&path, written, 512), [77; 512]);
    }
}

#[test]
fn a_copy_runs_over_blocks_and_ends_with_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let (from, path) = (dir.path().join("from"), dir.path().join("disk.vhdx"));
    let bytes: Vec<u8> = (0..3 * MIB).map(|n| (n % 251) as u8).collect();
    std::fs::write(&from, &bytes).unwrap();
    let from = File::open(&from).unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut vhdx = Writer::new(&file, 8 * MIB, MIB).unwrap();
    vhdx.copy_from(&from, 4096, MIB + 512, 2 * MIB).unwrap();
    assert!(vhdx.copy_from(&from, 2 * MIB, 5 * MIB, 2 * MIB).is_err(), "more than there is");
    assert!(vhdx.copy_from(&from, 0, 7 * MIB, 2 * MIB).is_err(), "past the end");
    vhdx.finish().unwrap();
    assert_eq!(read_by_qemu(&path, MIB + 512, 2 << 20), bytes[4096..4096 + (2 << 20)]);
    assert_eq!(read_by_qemu(&path, MIB, 512), [0; 512]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whatever_is_written_is_read_by_qemu(
        writes in prop::collection::vec((0u64..(24 << 20), 1usize..(3 << 20), any::<u8>()), 1..6),
    ) {
        let size = 24 * MIB;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut vhdx = Writer::new(&file, size, MIB).unwrap();
        let mut expected = vec![0u8; 24 << 20];
        for (at, length, byte) in writes {
            let at = usize::try_from(at).unwrap();
            let end = (at + length).min(expected.len());
            expected[at..end].fill(byte);
            vhdx.write_at(at as u64, &expected[at..end]).unwrap();
        }
        vhdx.finish().unwrap();
        qemu("qemu-img", &["check", "-q", "-f", "vhdx"], &path);
        prop_assert!(read_by_qemu(&path, 0, 24 << 20) == expected);
    }
}
