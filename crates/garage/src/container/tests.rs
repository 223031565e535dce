#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;
use crate::manifest::{Direction, Disk, Mode};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("the Debian package qemu-utils");
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// A disk with data here and there: at its start, across a block of the VHDX, and in its last sector.
fn image(dir: &Path, name: &str, convert: &[&str]) -> PathBuf {
    let (raw, target) = (dir.join("raw"), dir.join(name));
    std::fs::File::create(&raw).unwrap().set_len(SIZE).unwrap();
    for (pattern, at, length) in
        [("1", "0", "3k"), ("2", "7900k", "900k"), ("3", "32M", "4M"), ("4", "67108352", "512")]
    {
        let write = format!("write -P {pattern} {at} {length}");
        run("qemu-io", &["-f", "raw", "-c", &write, raw.to_str().unwrap()]);
    }
    let mut args = vec!["convert", "-f", "raw"];
    args.extend(convert);
    args.extend([raw.to_str().unwrap(), target.to_str().unwrap()]);
    run("qemu-img", &args);
    target
}

fn contents(disks: usize) -> (Layout, Manifest, Bundle) {
    let layout = Layout::plan(&vec![SIZE; disks]).unwrap();
    let bundle = Bundle::from_files([("record.sealed".to_owned(), b"sealed".to_vec())]).unwrap();
    let disk = |index: u32| Disk {
        index,
        name: crate::layout::disk_name(index as usize),
        size: SIZE,
        serial: format!("disk-{index}"),
        sha256: None,
    };
    let manifest = Manifest {
        version: manifest::VERSION,
        sequence: 1,
        recovery_id: uuid::Uuid::from_u128(1),
        vm_id: uuid::Uuid::from_u128(2),
        vm_name: "dvm".into(),
        direction: Direction::Outbound,
        mode: Mode::Copy,
        created: 0,
        disks: (0..disks as u32).map(disk).collect(),
        spec: "{}".into(),
        protector: b"protector".to_vec(),
        state_sha256: bundle.sha256(),
        receipt: None,
    };
    (layout, manifest, bundle)
}

#[test]
fn every_format_arrives_whole_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let formats: [(&str, Format, &[&str]); 4] = [
        ("a.raw", Format::Raw, &["-O", "raw"]),
        ("b.qcow2", Format::Qcow2, &["-O", "qcow2"]),
        ("c,compressed.qcow2", Format::Qcow2, &["-c", "-O", "qcow2"]),
        ("d.vhdx", Format::Vhdx, &["-O", "vhdx"]),
    ];
    let sources: Vec<Source> =
        formats.iter().map(|(name, format, args)| Source::new(image(dir.path(), name, args), *format)).collect();
    let (layout, manifest, bundle) = contents(sources.len());
    let target = dir.path().join("rg.vhdx");
    let reported = std::cell::Cell::new(0);
    let report = |progress: Progress| {
        assert!(progress.bytes >= reported.get() && progress.total == 4 * SIZE);
        reported.set(progress.bytes);
    };
    create(&target, &layout, &manifest, &bundle, &sources, &report, &Cancel::new()).unwrap();
    assert_eq!(reported.get(), 4 * SIZE);
    run("qemu-img", &["check", "-q", "-f", "vhdx", target.to_str().unwrap()]);
    let found = read(&target).unwrap();
    assert_eq!((found.manifest, found.layout.total()), (manifest, layout.total()));
    for (source, part) in sources.iter().zip(layout.disks()) {
        let there = digest_disk(&target, part, &|_| {}, &Cancel::new()).unwrap();
        let here = image::digest_image(source, &|_| {}, &Cancel::new()).unwrap();
        assert_eq!(there, here, "{}", source.path().display());
    }
    let allocated = std::fs::metadata(&target).unwrap().blocks() * 512;
    assert!(allocated < 40 * MIB, "{allocated} bytes for 20 MiB of data");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(image(dir.path(), "a.raw", &["-O", "raw"]), Format::Raw);
    let (layout, manifest, bundle) = contents(1);
    let target = dir.path().join("rg.vhdx");
    let nothing = || {
        let left = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name());
        assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with("rg.")));
    };
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let cancelled =
        create(&target, &layout, &manifest, &bundle, std::slice::from_ref(&source), &|_| stop.cancel(), &cancel);
    assert!(matches!(cancelled, Err(Error::Image(image::Error::Cancelled))));
    nothing();
    let short = std::fs::OpenOptions::new().write(true).open(source.path()).unwrap();
    short.set_len(SIZE - 512).unwrap();
    let failed = create(&target, &layout, &manifest, &bundle, &[source], &|_| {}, &Cancel::new());
    assert!(matches!(failed, Err(Error::Image(image::Error::SizeMismatch { .. }))));
    nothing();
}
